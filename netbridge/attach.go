package netbridge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// Attach gives the network namespace an eth0 with an address, a default route and a working lo, and opens the
// rules for it. The namespace must be fresh: it has no eth0 yet. When it fails, nothing of the attachment is left.
func (b *Bridge) Attach(ctx context.Context, id string, netns *os.File, o AttachOptions) (*Attachment, error) {
	a, err := b.Reserve(ctx, id, o)
	if err != nil {
		return nil, err
	}
	if err := b.Connect(ctx, a, netns); err != nil {
		if undo := b.Detach(context.WithoutCancel(ctx), id); undo != nil {
			err = errors.Join(err, undo)
		}
		return nil, err
	}
	return a, nil
}

// Reserve is the part of Attach that needs no namespace yet: an address, the ports, and the rules for them. Connect is
// the other. Detach takes either back.
func (b *Bridge) Reserve(ctx context.Context, id string, o AttachOptions) (*Attachment, error) {
	fail := func(err error) (*Attachment, error) { return nil, fmt.Errorf("attach %s: %w", id, err) }
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	ports, err := normalPorts(o.Ports)
	if err != nil {
		return fail(err)
	}
	for _, rate := range []uint64{o.NetUp, o.NetDown} {
		if rate != 0 && rate < minRate {
			return fail(fmt.Errorf("a limit of %d bit/s: want 0 (none) or at least %d", rate, minRate))
		}
	}
	l := &lease{ID: id, Hostname: o.Hostname, Ports: ports, NetUp: o.NetUp, NetDown: o.NetDown}
	if err := b.admit(l); err != nil {
		return fail(err)
	}
	return b.attachment(l), nil
}

// Connect gives a fresh network namespace what was reserved. When it fails, the reservation is still there.
func (b *Bridge) Connect(ctx context.Context, a *Attachment, netns *os.File) error {
	own, err := sameNamespace(netns)
	if err == nil && own {
		err = errors.New("that is the host's own network namespace")
	}
	if err == nil {
		err = b.connect(ctx, a, netns)
	}
	if err != nil {
		return fmt.Errorf("attach %s: %w", a.ID, err)
	}
	return nil
}

// admit records the lease and puts it into the rules.
func (b *Bridge) admit(l *lease) error {
	unlock, err := b.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if held, err := b.findLease(l.ID); err == nil {
		return fmt.Errorf("%w at %s", ErrExists, held.IP)
	} else if !errors.Is(err, ErrNotFound) {
		return err
	}
	if err := b.checkPorts(l.Ports); err != nil {
		return err
	}
	if err := b.allocate(l); err != nil {
		return err
	}
	if err := b.rules.add(b.attachment(l)); err != nil {
		// Most likely somebody flushed the tables; write them anew, this lease included.
		if err := b.reload(); err != nil {
			return errors.Join(err, b.forget(l))
		}
	}
	return nil
}

// Detach takes the environment's address, ports and rules back and ends its connections. It is idempotent: an
// environment that is not attached is no error. The link itself goes with the namespace, or else a little later:
// Detach does not wait for it (Close does, Sweep finds what is left), and without its rules it carries nothing.
func (b *Bridge) Detach(ctx context.Context, id string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("detach %s: %w", id, err)
	}
	unlock, err := b.lock()
	if err != nil {
		return fmt.Errorf("detach %s: %w", id, err)
	}
	defer unlock()
	l, err := b.findLease(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("detach %s: %w", id, err)
	}
	links := b.linksOf(l)
	if err := b.release(l); err != nil {
		return fmt.Errorf("detach %s: %w", id, err)
	}
	b.background.Go(func() {
		select {
		case <-time.After(linkGrace):
		case <-b.closing:
		}
		for _, index := range links {
			b.deleteLinkAt(index) // what fails is left to Sweep
		}
	})
	return nil
}

// linkGrace is how long Detach leaves a link to its namespace's end. That takes many links away at one time; to delete
// one by name, the kernel keeps every other change of links on the machine waiting for some 30 ms.
const linkGrace = time.Second

// linksOf finds what an attachment has in the host's namespace, by index: by the time they are deleted somebody else
// may have the address, and with it the names.
func (b *Bridge) linksOf(l *lease) (indexes []int) {
	names := []string{b.linkName(l.IP)}
	if l.NetUp > 0 {
		names = append(names, b.ifbName(l.IP))
	}
	for _, name := range names {
		if link, err := b.h.LinkByName(name); err == nil {
			indexes = append(indexes, link.Attrs().Index)
		}
	}
	return indexes
}

// release undoes admit, with the lock held. The record goes last: whoever is killed before that leaves a lease
// that is released again.
func (b *Bridge) release(l *lease) error {
	a := b.attachment(l)
	stale := b.rules.remove(a) != nil // not as they should be: write them anew below, without this lease
	if !b.silent(l) {
		if err := b.endFlows(l.IP); err != nil {
			return err
		}
	}
	if err := b.forgetNeighbour(l.IP); err != nil {
		return err
	}
	if err := b.forget(l); err != nil {
		return err
	}
	if stale {
		return b.reload()
	}
	return nil
}

// silent tells whether an environment, cut off by now, has certainly no tracked connections: not a packet passed its
// link, and nothing was published that somebody may have tried before the link was up. It saves two walks through the
// machine's whole connection table, under a lock of all network namespaces.
func (b *Bridge) silent(l *lease) bool {
	if len(l.Ports) > 0 {
		return false
	}
	link, err := b.h.LinkByName(b.linkName(l.IP))
	if err != nil {
		return false
	}
	s := link.Attrs().Statistics
	return s != nil && s.RxPackets == 0 && s.TxPackets == 0
}

// Attachment returns what Attach made, also in another process.
func (b *Bridge) Attachment(id string) (*Attachment, error) {
	l, err := b.findLease(id)
	if err != nil {
		return nil, err
	}
	return b.attachment(l), nil
}

// Stats reads an environment's traffic counters. Each has only ever grown since Attach.
func (b *Bridge) Stats(ctx context.Context, id string) (Stats, error) {
	if err := ctx.Err(); err != nil {
		return Stats{}, err
	}
	l, err := b.findLease(id)
	if err != nil {
		return Stats{}, err
	}
	link, err := b.h.LinkByName(b.linkName(l.IP))
	if err != nil {
		if notThere(err) {
			return Stats{}, fmt.Errorf("traffic of %s: its link is gone: %w", id, ErrNotFound)
		}
		return Stats{}, fmt.Errorf("traffic of %s: %w", id, err)
	}
	s := link.Attrs().Statistics
	if s == nil {
		return Stats{}, fmt.Errorf("traffic of %s: the kernel gave no counters", id)
	}
	// What the host's end received is what the environment sent.
	return Stats{RxBytes: s.TxBytes, TxBytes: s.RxBytes, RxPackets: s.TxPackets, TxPackets: s.RxPackets}, nil
}
