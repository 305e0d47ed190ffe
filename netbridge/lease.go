package netbridge

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// lease is the record of one address. On disk it is one file with two names: ids/<id>, under which it is written, and
// leases/<ip>, linked when it is complete. It counts when it has both.
type lease struct {
	ID       string     `json:"id"`
	IP       netip.Addr `json:"ip"`
	Hostname string     `json:"hostname,omitempty"`
	Ports    []Port     `json:"ports,omitempty"`
	NetUp    uint64     `json:"netUp,omitempty"`
	NetDown  uint64     `json:"netDown,omitempty"`
}

func (b *Bridge) leaseDir() string           { return filepath.Join(b.cfg.StateDir, "leases") }
func (b *Bridge) leasePath(ip string) string { return filepath.Join(b.leaseDir(), ip) }
func (b *Bridge) idPath(id string) string    { return filepath.Join(b.cfg.StateDir, "ids", id) }
func (b *Bridge) cursorPath() string         { return filepath.Join(b.cfg.StateDir, "next") }

// readLease returns fs.ErrNotExist for no lease, another error for a record that is not one (a machine that lost its
// power may leave part of it, or nothing).
func (b *Bridge) readLease(ip string) (*lease, error) {
	raw, err := os.ReadFile(b.leasePath(ip))
	if err != nil {
		return nil, err
	}
	l, err := parseLease(raw)
	if err == nil && l.IP.String() != ip {
		err = fmt.Errorf("it is of %s", l.IP)
	}
	if err != nil {
		return nil, fmt.Errorf("lease %s: %w", ip, err)
	}
	return l, nil
}

func parseLease(raw []byte) (*lease, error) {
	var l lease
	if err := json.Unmarshal(raw, &l); err != nil {
		return nil, err
	}
	if !idPattern.MatchString(l.ID) || !l.IP.Is4() {
		return nil, fmt.Errorf("record of %q at %s", l.ID, l.IP)
	}
	ports, err := normalPorts(l.Ports)
	if err != nil {
		return nil, err
	}
	l.Ports = ports
	return &l, nil
}

// leases reads all records. Records that can't be read are returned by name in broken.
func (b *Bridge) leases() (good []*lease, broken []string, err error) {
	entries, err := os.ReadDir(b.leaseDir())
	if err != nil {
		return nil, nil, fmt.Errorf("list leases: %w", err)
	}
	for _, e := range entries {
		l, err := b.readLease(e.Name())
		switch {
		case err == nil:
			good = append(good, l)
		case errors.Is(err, fs.ErrNotExist):
		default:
			broken = append(broken, e.Name())
		}
	}
	return good, broken, nil
}

// findLease looks an environment up.
func (b *Bridge) findLease(id string) (*lease, error) {
	if !idPattern.MatchString(id) {
		return nil, fmt.Errorf("environment id %q: want letters, digits, dots, dashes or underscores", id)
	}
	missing := fmt.Errorf("environment %s: %w", id, ErrNotFound)
	raw, err := os.ReadFile(b.idPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, missing
	}
	if err != nil {
		return nil, fmt.Errorf("find the lease of %s: %w", id, err)
	}
	l, err := parseLease(raw)
	if err != nil || l.ID != id {
		return nil, missing // its writer was killed before it linked the lease
	}
	if _, err := os.Lstat(b.leasePath(l.IP.String())); err != nil {
		return nil, missing // likewise
	}
	return l, nil
}

// allocate records a lease at a free address, with the lock held. Addresses are given out in turn, so one
// that was just given back rests as long as the subnet allows.
func (b *Bridge) allocate(l *lease) error {
	first := binary.BigEndian.Uint32(b.subnet.Addr().AsSlice()) + 2 // after the network's and the gateway's
	count := uint32(1)<<(32-b.subnet.Bits()) - 3                    // without those two and the broadcast's
	offset := rand.Uint32N(count)
	if raw, err := os.ReadFile(b.cursorPath()); err == nil {
		if a, err := netip.ParseAddr(strings.TrimSpace(string(raw))); err == nil && a.Is4() && b.subnet.Contains(a) {
			offset = (binary.BigEndian.Uint32(a.AsSlice()) - first + 1) % count
		}
	}
	for i := range count {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], first+(offset+i)%count)
		l.IP = netip.AddrFrom4(a)
		if _, err := os.Lstat(b.leasePath(l.IP.String())); err == nil {
			continue
		}
		if err := b.moveCursor(l.IP); err != nil {
			return err
		}
		return b.writeLease(l)
	}
	return fmt.Errorf("subnet %s: %w: all %d are leased", b.subnet, ErrFull, count)
}

// moveCursor overwrites the record of the last address given in place: cutting the file to length first would make
// some file systems (ext4) write it to the disk at once.
func (b *Bridge) moveCursor(ip netip.Addr) error {
	f, err := os.OpenFile(b.cursorPath(), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("record the last address given: %w", err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "%-15s\n", ip); err != nil {
		return fmt.Errorf("record the last address given: %w", err)
	}
	return nil
}

func (b *Bridge) writeLease(l *lease) error {
	raw, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("encode lease: %w", err)
	}
	path := b.idPath(l.ID)
	flags := os.O_CREATE | os.O_EXCL | os.O_WRONLY
	f, err := os.OpenFile(path, flags, 0o600)
	if errors.Is(err, fs.ErrExist) { // left by a killed process, or the caller would have found the lease
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("record lease: %w", err)
		}
		f, err = os.OpenFile(path, flags, 0o600)
	}
	if err != nil {
		return fmt.Errorf("record lease: %w", err)
	}
	defer f.Close()
	if _, err := f.Write(raw); err != nil {
		return fmt.Errorf("record lease: %w", err)
	}
	if err := os.Link(path, b.leasePath(l.IP.String())); err != nil {
		return fmt.Errorf("record lease: %w", err)
	}
	return nil
}

// forget removes the record: the lease first, for its name finds it as long as it is there.
func (b *Bridge) forget(l *lease) error {
	for _, path := range []string{b.leasePath(l.IP.String()), b.idPath(l.ID)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget %s: %w", l.ID, err)
		}
	}
	return nil
}

func (b *Bridge) attachment(l *lease) *Attachment {
	return &Attachment{
		ID: l.ID, IP: l.IP, Prefix: netip.PrefixFrom(l.IP, 32), Gateway: b.gateway(),
		MAC: macOf(l.IP), HostIf: b.linkName(l.IP), Hostname: l.Hostname, Ports: l.Ports, NetUp: l.NetUp, NetDown: l.NetDown,
	}
}

func (b *Bridge) attachments(all []*lease) []*Attachment {
	out := make([]*Attachment, len(all))
	for i, l := range all {
		out[i] = b.attachment(l)
	}
	return out
}
