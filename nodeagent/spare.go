package nodeagent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/learnos/learnos/rootfs"
	"github.com/learnos/learnos/runtime"
)

// A spare is an environment that was made ahead of need: its processes, disk and network are as those of any other, with
// every limit set, but nobody's. What an environment is known by (id, host name, /etc/hosts) it is given when it
// becomes one, and it becomes one once. Nothing has run in it until then but init, which waits.
type spare struct {
	rec     SpareRecord
	c       *runtime.Container
	address netip.Addr
	etc     map[string]*os.File // generated files of /etc, opened before anything inside could be in the way
}

// SpareRecord is what <root>/spares/<id>.json holds.
type SpareRecord struct {
	ID      string    `json:"id"` // under which runtime, disk, network and id range know it, for ever
	Image   string    `json:"image"`
	Digest  string    `json:"digest"`
	Limits  Limits    `json:"limits"`
	CapAdd  []string  `json:"capAdd,omitempty"`
	CapDrop []string  `json:"capDrop,omitempty"`
	FirstID int       `json:"firstID"`
	Maker   Process   `json:"maker"` // who alone can give it away; with it a spare ends
	MadeAt  time.Time `json:"madeAt"`
	// Ready: it is complete.
	Ready bool `json:"ready"`
	// For is the environment that it became.
	For string `json:"for,omitempty"`
}

// fitsSpare tells whether an environment is one of the kind that spares are made of: everything that is decided at its
// start, and not by image, limits and capabilities, is as usual.
func (o *CreateOptions) fitsSpare() bool {
	return o.Owner == OwnerPlatform && o.NoMain && o.Net == NetBridge && !o.ReadOnly && !o.HostUsers &&
		len(o.Ports) == 0 && len(o.Volumes) == 0
}

// spareLimits are the limits that a spare is made with. Quotas are no part of it: they are kept by counting what an
// environment has used.
func spareLimits(l Limits) Limits {
	l.NetQuotaBytes, l.BlkQuotaBytes = 0, 0
	return l
}

// spareLike is what spares for such an environment are made like, whatever their image.
func spareLike(o *CreateOptions) CreateOptions {
	return CreateOptions{NoMain: true, Owner: OwnerPlatform, Net: NetBridge, Hostname: "spare",
		Limits: spareLimits(o.Limits), CapAdd: properNames(o.CapAdd), CapDrop: properNames(o.CapDrop)}
}

// makeSpare makes an environment of that image, for nobody yet. On an error nothing is left.
func (n *Node) makeSpare(ctx context.Context, img *rootfs.Image, o CreateOptions) (*spare, error) {
	o.ID, o.Image = NewID(), img
	if err := o.check(); err != nil {
		return nil, err
	}
	b := &builder{node: n, o: &o, env: &Environment{node: n, rec: *o.record()}, timings: map[string]int64{}}
	defer b.close()
	s, err := b.spare(ctx)
	if err != nil {
		b.revert()
		return nil, fmt.Errorf("spare environment: %w", err)
	}
	return s, nil
}

func (b *builder) spare(ctx context.Context) (*spare, error) {
	n, r := b.node, &b.env.rec
	s := &spare{rec: SpareRecord{ID: r.ID, Image: r.Image, Digest: r.Digest, Limits: r.Limits, CapAdd: r.CapAdd, CapDrop: r.CapDrop,
		Maker: r.Maker, MadeAt: r.CreatedAt}}
	b.onFailure(func(context.Context) error { return n.forgetSpare(r.ID) })
	if err := b.identify(func() error {
		s.rec.FirstID = r.FirstID
		return n.saveSpare(&s.rec)
	}); err != nil {
		return nil, err
	}
	if err := b.prepare(ctx); err != nil {
		return nil, err
	}
	err := b.join(ctx, func() (err error) {
		s.etc, err = makeEtc(b.root, map[string][]byte{"hostname": nil, "hosts": nil, "resolv.conf": nil}, r.FirstID, r.FirstID)
		return err
	})
	if err == nil {
		s.rec.Ready = true
		err = n.saveSpare(&s.rec)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	s.c, s.address = b.env.c, b.address()
	return s, nil
}

// give makes a spare the environment that the record describes. On an error the record is gone again, and the spare is
// good for nothing but to be thrown away.
func (n *Node) give(ctx context.Context, s *spare, r *Record) (_ *Environment, err error) {
	begin := time.Now()
	defer s.close()
	if r.Digest != s.rec.Digest || spareLimits(r.Limits) != s.rec.Limits || s.rec.For != "" ||
		!slices.Equal(r.CapAdd, s.rec.CapAdd) || !slices.Equal(r.CapDrop, s.rec.CapDrop) {
		return nil, fmt.Errorf("spare %s was made for something else", s.rec.ID)
	}
	dir := n.envDir(r.ID)
	if err := os.Mkdir(dir, 0o700); err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("environment %s exists already", r.ID)
		}
		return nil, fmt.Errorf("environment %s: %w", r.ID, err)
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(dir)
		}
	}()
	unlock, err := n.lock(r.ID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	// First this, and the environment's record last: in between the spare is its maker's, who may die.
	s.rec.For = r.ID
	if err := n.saveSpare(&s.rec); err != nil {
		return nil, err
	}
	if err := s.c.SetHostname(ctx, r.Hostname); err != nil {
		return nil, err
	}
	hosts, err := hosts(r.Hostname, s.address)
	if err != nil {
		return nil, err
	}
	for name, body := range map[string][]byte{"hostname": []byte(r.Hostname + "\n"), "hosts": hosts, "resolv.conf": resolvConf(r.Net)} {
		if _, err := s.etc[name].WriteAt(body, 0); err != nil {
			return nil, fmt.Errorf("write /etc/%s: %w", name, err)
		}
	}
	e := &Environment{node: n, c: s.c, rec: *r}
	if err := e.update(func(r *Record) {
		r.Prepared, r.FirstID, r.PID, r.Address = s.rec.ID, s.rec.FirstID, s.c.PID(), s.address.String()
		r.State, r.StartedAt = StateRunning, time.Now().UTC()
		r.Timings = maps.Clone(r.Timings)
		r.Timings["total"] = time.Since(begin).Microseconds()
		r.Timings["spare"] = r.Timings["total"]
	}); err != nil {
		return nil, err
	}
	return e, nil
}

func (s *spare) close() {
	for _, f := range s.etc {
		_ = f.Close()
	}
	s.etc = nil
}

// removeSpare gives back all that a spare holds. What it could not give back is nobody's any more: a Sweep clears it.
func (n *Node) removeSpare(ctx context.Context, s *spare) error {
	s.close()
	if err := n.teardown(ctx, &Record{ID: s.rec.ID, Prepared: s.rec.ID, FirstID: s.rec.FirstID}); err != nil {
		return fmt.Errorf("remove spare environment: %w", errors.Join(err, n.forgetSpare(s.rec.ID)))
	}
	return nil
}

func (n *Node) sparePath(id string) string { return filepath.Join(n.root, "spares", id+".json") }

func (n *Node) saveSpare(r *SpareRecord) error {
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := replaceFile(n.sparePath(r.ID), body); err != nil {
		return fmt.Errorf("record spare %s: %w", r.ID, err)
	}
	return nil
}

func (n *Node) forgetSpare(id string) error {
	if err := os.Remove(n.sparePath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget spare %s: %w", id, err)
	}
	return nil
}

func (n *Node) spare(id string) (*SpareRecord, error) {
	body, err := os.ReadFile(n.sparePath(id))
	if err != nil {
		return nil, err
	}
	var r SpareRecord
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, fmt.Errorf("spare %s: %w", id, err)
	}
	return &r, nil
}

// liveSpare tells whether what is held under a spare's id belongs to somebody: to its maker, or to the environment that it
// became.
func (n *Node) liveSpare(id string) bool {
	if !validID(id) {
		return false
	}
	s, err := n.spare(id)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if err != nil {
		return true // unreadable is not the same as gone
	}
	if s.For != "" {
		r, err := n.Record(s.For)
		switch {
		case err == nil:
			return r.Prepared == id && r.State != StateExited
		case !errors.Is(err, ErrNotFound):
			return true
		}
	}
	return s.Maker.alive() // it waits, or is being given away
}

func (n *Node) spareIDs() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(n.root, "spares"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list spares: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), ".json"); ok {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Spares lists the environments that wait to be given away, whoever made them.
func (n *Node) Spares() ([]SpareRecord, error) {
	ids, err := n.spareIDs()
	if err != nil {
		return nil, err
	}
	var list []SpareRecord
	for _, id := range ids {
		if r, err := n.spare(id); err == nil && r.Ready && r.For == "" && r.Maker.alive() {
			list = append(list, *r)
		}
	}
	return list, nil
}

// sweepSpares forgets those that are nobody's, after the sweeps of the parts have cleared what they held.
func (n *Node) sweepSpares() ([]string, error) {
	ids, err := n.spareIDs()
	if err != nil {
		return nil, err
	}
	var gone []string
	var errs []error
	for _, id := range ids {
		if n.liveSpare(id) {
			continue
		}
		if err := n.forgetSpare(id); err != nil {
			errs = append(errs, err)
			continue
		}
		gone = append(gone, id)
	}
	return gone, errors.Join(errs...)
}

// forgetSpares makes every spare nobody's, so that a Sweep clears them, their maker being alive or not.
func (n *Node) forgetSpares() {
	ids, err := n.spareIDs()
	if err != nil {
		return
	}
	for _, id := range ids {
		if s, err := n.spare(id); err != nil || s.For == "" {
			if err := n.forgetSpare(id); err != nil {
				slog.Warn("forget a spare environment", "spare", id, "err", err)
			}
		}
	}
}
