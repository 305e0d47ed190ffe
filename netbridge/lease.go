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

// lease is the record of one address. On disk it is leases/<ip>, which comes into being complete (a link(2) of
// a finished file), and ids/<id>, a symlink whose text is the address.
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

// readLease returns fs.ErrNotExist for no lease, another error for a record that is not one (a machine
// that lost power may leave an empty file).
func (b *Bridge) readLease(ip string) (*lease, error) {
	raw, err := os.ReadFile(b.leasePath(ip))
	if err != nil {
		return nil, err
	}
	var l lease
	if err := json.Unmarshal(raw, &l); err != nil {
		return nil, fmt.Errorf("lease %s: %w", ip, err)
	}
	if l.IP.String() != ip || !idPattern.MatchString(l.ID) {
		return nil, fmt.Errorf("lease %s: record of %q at %s", ip, l.ID, l.IP)
	}
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
	ip, err := os.Readlink(b.idPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, missing
	}
	if err != nil {
		return nil, fmt.Errorf("find the lease of %s: %w", id, err)
	}
	l, err := b.readLease(filepath.Base(ip))
	if errors.Is(err, fs.ErrNotExist) || err == nil && l.ID != id { // a name that a killed process left
		return nil, missing
	}
	return l, err
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
	tmp := filepath.Join(b.cfg.StateDir, "lease.tmp") // one name, for the lock is held: a killed process leaves one file
	defer os.Remove(tmp)
	for i := range count {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], first+(offset+i)%count)
		l.IP = netip.AddrFrom4(a)
		raw, err := json.Marshal(l)
		if err != nil {
			return fmt.Errorf("encode lease: %w", err)
		}
		if _, err := os.Lstat(b.leasePath(l.IP.String())); err == nil {
			continue
		}
		if err := os.WriteFile(tmp, raw, 0o600); err != nil {
			return fmt.Errorf("write lease: %w", err)
		}
		if err := os.WriteFile(b.cursorPath(), []byte(l.IP.String()), 0o600); err != nil {
			return fmt.Errorf("record the last address given: %w", err)
		}
		// The name before the lease, so that there is never a lease that can't be found by its name.
		os.Remove(b.idPath(l.ID)) // left by a killed process, or the caller would have found the lease
		if err := os.Symlink(l.IP.String(), b.idPath(l.ID)); err != nil {
			return fmt.Errorf("record lease: %w", err)
		}
		if err := os.Link(tmp, b.leasePath(l.IP.String())); err != nil {
			return fmt.Errorf("record lease: %w", err)
		}
		return nil
	}
	return fmt.Errorf("subnet %s: %w: all %d are leased", b.subnet, ErrFull, count)
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
		ID: l.ID, IP: l.IP, Prefix: netip.PrefixFrom(l.IP, b.subnet.Bits()), Gateway: b.gateway(),
		MAC: macOf(l.IP), HostIf: b.linkName(l.IP), Hostname: l.Hostname, Ports: l.Ports, NetUp: l.NetUp, NetDown: l.NetDown,
	}
}
