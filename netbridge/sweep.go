package netbridge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"
)

// Sweep releases every attachment whose environment is not live, and clears what killed processes left: half-written
// records, links without a lease, rules without one. It returns the ids it released. A caller that attaches
// environments meanwhile must count them as live before it calls Attach.
func (b *Bridge) Sweep(ctx context.Context, live func(id string) bool) ([]string, error) {
	fail := func(removed []string, err error) ([]string, error) {
		return removed, fmt.Errorf("sweep bridge %s: %w", b.cfg.Name, err)
	}
	unlock, err := b.lock()
	if err != nil {
		return fail(nil, err)
	}
	removed, kept, err := b.sweepRecords(ctx, live)
	if err == nil && !b.rules.loaded(kept) {
		err = b.rules.load(kept)
	}
	unlock()
	if err != nil {
		return fail(removed, err)
	}
	if err := b.sweepLinks(ctx); err != nil {
		return fail(removed, err)
	}
	return removed, nil
}

// sweepRecords does so for the files, with the lock held.
func (b *Bridge) sweepRecords(ctx context.Context, live func(string) bool) (removed []string, kept []*Attachment, err error) {
	all, broken, err := b.leases()
	if err != nil {
		return nil, nil, err
	}
	for _, name := range broken {
		if err := os.Remove(b.leasePath(name)); err != nil {
			return nil, nil, fmt.Errorf("remove the broken lease %s: %w", name, err)
		}
	}
	for _, l := range all {
		if err := ctx.Err(); err != nil {
			return removed, nil, err
		}
		if live(l.ID) {
			kept = append(kept, b.attachment(l))
			continue
		}
		if err := b.release(l); err != nil {
			return removed, nil, fmt.Errorf("release %s: %w", l.ID, err)
		}
		removed = append(removed, l.ID)
	}
	ids, err := os.ReadDir(filepath.Join(b.cfg.StateDir, "ids"))
	if err != nil {
		return removed, nil, fmt.Errorf("list ids: %w", err)
	}
	for _, e := range ids {
		if !slices.ContainsFunc(kept, func(a *Attachment) bool { return a.ID == e.Name() }) {
			if err := os.Remove(b.idPath(e.Name())); err != nil {
				return removed, nil, fmt.Errorf("remove a name without a lease: %w", err)
			}
		}
	}
	slices.Sort(removed)
	return removed, kept, nil
}

// sweepLinks removes our links that no lease owns. The lock is held for each look and each deletion, not for all: an
// Attach waiting in between takes an address whose link is not there.
func (b *Bridge) sweepLinks(ctx context.Context) error {
	links, err := b.h.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	prefix := portPrefix(b.cfg.Name)
	for _, link := range links {
		name := link.Attrs().Name
		ours := strings.HasPrefix(name, prefix) && link.Type() == "veth" || strings.HasPrefix(name, "li"+prefix[2:]) && link.Type() == "ifb"
		if !ours {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		unlock, err := b.lock()
		if err != nil {
			return err
		}
		if _, err := os.Stat(b.leasePath(addressIn(name))); errors.Is(err, os.ErrNotExist) {
			err = b.deleteLink(name)
			unlock()
			if err != nil {
				return err
			}
			continue
		}
		unlock()
	}
	return nil
}

// addressIn is the address at the end of a link's name, or a text that is no address.
func addressIn(link string) string {
	var a [4]byte
	if len(link) < 8 {
		return link
	}
	if _, err := fmt.Sscanf(link[len(link)-8:], "%02x%02x%02x%02x", &a[0], &a[1], &a[2], &a[3]); err != nil {
		return link
	}
	return fmt.Sprintf("%d.%d.%d.%d", a[0], a[1], a[2], a[3])
}

// Destroy removes every link, rule and record of this bridge, live environments' too, and closes the handle. The
// StateDir itself stays if others' files are in it. net.ipv4.ip_forward stays on.
func (b *Bridge) Destroy(ctx context.Context) error {
	if _, err := b.Sweep(ctx, func(string) bool { return false }); err != nil {
		return fmt.Errorf("destroy: %w", err)
	}
	b.closeOnce.Do(func() { close(b.closing) })
	b.background.Wait()
	unlock, err := b.lock()
	if err != nil {
		return fmt.Errorf("destroy bridge %s: %w", b.cfg.Name, err)
	}
	defer unlock()
	err = b.rules.batch(func(c *nftables.Conn) error {
		for _, t := range []*nftables.Table{b.rules.ip, b.rules.bridge} {
			c.AddTable(t) // so that there is one to delete
			c.DelTable(t)
		}
		return nil
	})
	err = errors.Join(err, b.deleteLink(b.cfg.Name))
	for _, name := range []string{"leases", "ids", "next", "bridge.json", "bridge.json.tmp", "lock"} {
		err = errors.Join(err, os.RemoveAll(filepath.Join(b.cfg.StateDir, name)))
	}
	os.Remove(b.cfg.StateDir)
	if err != nil {
		return fmt.Errorf("destroy bridge %s: %w", b.cfg.Name, err)
	}
	return b.Close()
}
