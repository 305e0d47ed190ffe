package nodeagent

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// Host user and group ids are handed out in ranges of idRangeSize, above everything that distributions and
// subuid files use by default (they stay below 2^28). Range k begins at idBase + k·idRangeSize.
const (
	idBase      = 0x10000000
	idRangeSize = 65536
	idRangeMax  = (0xf0000000 - idBase) / idRangeSize
)

// idDir is one for the machine, not one per root: a range is given once, whoever's root it serves.
const idDir = runDir + "/ids"

// idRanges hands out ranges of ids by creating one file per range, exclusively.
type idRanges struct {
	dir  string
	root string // whose ranges: written into the file, so that a sweep touches only its own
}

// rangeOwner is what a range's file holds.
type rangeOwner struct {
	Root string `json:"root"`
	Env  string `json:"env"`
}

// allocate gives env a range and returns its first id. It calls note with a range's first id before it takes it, so that
// who is killed in between has written down what may be its own.
func (r idRanges) allocate(env string, note func(first int) error) (int, error) {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return 0, fmt.Errorf("id ranges: %w", err)
	}
	// Starting at a random place keeps processes that allocate at once off each other's feet, and keeps a
	// released range unused for a while.
	var seed [4]byte
	_, _ = rand.Read(seed[:])
	start := int(binary.BigEndian.Uint32(seed[:]) % idRangeMax)
	for i := range idRangeMax {
		k := (start + i) % idRangeMax
		if _, err := os.Lstat(r.path(k)); err == nil {
			continue
		}
		first := idBase + k*idRangeSize
		if err := note(first); err != nil {
			return 0, err
		}
		err := r.claim(k, env)
		if err == nil {
			return first, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return 0, err
		}
	}
	return 0, fmt.Errorf("all %d id ranges are taken: run `nodeagent gc`", idRangeMax)
}

func (r idRanges) path(k int) string { return filepath.Join(r.dir, strconv.Itoa(k)) }

// claim creates the file of range k complete, or fails with fs.ErrExist.
func (r idRanges) claim(k int, env string) error {
	body, err := json.Marshal(rangeOwner{Root: r.root, Env: env})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(r.path(k), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("id range %d: %w", k, err)
	}
	_, err = f.Write(body)
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(r.path(k))
		return fmt.Errorf("id range %d: %w", k, err)
	}
	return nil
}

// reclaim takes the range that begins at first again for env, which an environment on disk still has after the
// machine was restarted and /run emptied. A range that another root got meanwhile stays theirs.
func (r idRanges) reclaim(first int, env string) error {
	if first < idBase || (first-idBase)%idRangeSize != 0 {
		return nil
	}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return fmt.Errorf("id ranges: %w", err)
	}
	if err := r.claim((first-idBase)/idRangeSize, env); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// release gives the range that begins at first back, if env holds it. It is idempotent.
func (r idRanges) release(first int, env string) error {
	if first < idBase || (first-idBase)%idRangeSize != 0 {
		return nil
	}
	path := r.path((first - idBase) / idRangeSize)
	owner, err := readRange(path)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && owner != rangeOwner{Root: r.root, Env: env}) {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("release id range: %w", err)
	}
	return nil
}

// sweep releases ranges of this root whose environment is not live, and ranges of roots that are gone.
func (r idRanges) sweep(live func(env string) bool) ([]string, error) {
	entries, err := os.ReadDir(r.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("sweep id ranges: %w", err)
	}
	var removed []string
	for _, e := range entries {
		path := filepath.Join(r.dir, e.Name())
		owner, err := readRange(path)
		if err != nil {
			continue // being written or removed by another process this very moment
		}
		switch {
		case owner.Root == r.root:
			if live(owner.Env) {
				continue
			}
		default:
			if _, err := os.Stat(owner.Root); !errors.Is(err, fs.ErrNotExist) {
				continue
			}
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return removed, fmt.Errorf("sweep id ranges: %w", err)
		}
		removed = append(removed, owner.Env)
	}
	return removed, nil
}

func readRange(path string) (rangeOwner, error) {
	var owner rangeOwner
	body, err := os.ReadFile(path)
	if err != nil {
		return owner, err
	}
	return owner, json.Unmarshal(body, &owner)
}
