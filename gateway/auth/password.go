// Package auth holds what proves who somebody is: password hashes, access and refresh tokens, codes sent by mail, SSH
// keys, and the limits on guessing. It keeps no rows (package store does) and speaks no HTTP.
package auth

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"strings"

	"golang.org/x/crypto/argon2"
)

// ErrBusy: too many passwords wait to be hashed; trying again in a second is fine.
var ErrBusy = errors.New("too many logins at once")

// params of argon2id (RFC 9106). The defaults cost about 50 ms on one core of a small server.
type params struct {
	time, memory uint32 // passes, KiB
	threads      uint8
}

var defaults = params{time: 3, memory: 32 << 10, threads: 1}

// Hasher hashes passwords with argon2id, a few at a time: a flood of logins waits, then is refused, and can't take
// more memory than the few that run (32 MiB each).
type Hasher struct {
	running chan struct{}
	waiting chan struct{}
	decoy   string
}

// NewHasher makes a hasher that runs as many hashes as there are CPUs, at most 4.
func NewHasher() *Hasher {
	n := min(max(runtime.GOMAXPROCS(0), 1), 4)
	h := &Hasher{running: make(chan struct{}, n), waiting: make(chan struct{}, 32*n)}
	h.decoy = encode(defaults, random(32), random(16))
	return h
}

// Hash makes a PHC string of a new password.
func (h *Hasher) Hash(ctx context.Context, password string) (string, error) {
	release, err := h.enter(ctx)
	if err != nil {
		return "", err
	}
	defer release()
	salt := random(16)
	return encode(defaults, derive(defaults, password, salt, 32), salt), nil
}

// Verify tells whether password is the one behind the PHC string encoded, and whether that string should be made anew
// with today's parameters. An empty encoded (no such user) costs the same as a wrong password.
func (h *Hasher) Verify(ctx context.Context, encoded, password string) (ok, stale bool, err error) {
	nobody := encoded == ""
	if nobody {
		encoded = h.decoy
	}
	p, key, salt, err := decode(encoded)
	if err != nil {
		return false, false, err
	}
	release, err := h.enter(ctx)
	if err != nil {
		return false, false, err
	}
	defer release()
	same := subtle.ConstantTimeCompare(derive(p, password, salt, len(key)), key) == 1
	return same && !nobody, p != defaults, nil
}

func (h *Hasher) enter(ctx context.Context) (release func(), err error) {
	select {
	case h.waiting <- struct{}{}:
	default:
		return nil, ErrBusy
	}
	defer func() { <-h.waiting }()
	select {
	case h.running <- struct{}{}:
		return func() { <-h.running }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func derive(p params, password string, salt []byte, size int) []byte {
	return argon2.IDKey([]byte(password), salt, p.time, p.memory, p.threads, uint32(size))
}

func encode(p params, key, salt []byte) string {
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, p.memory, p.time, p.threads, b64.EncodeToString(salt), b64.EncodeToString(key))
}

// decode reads a PHC string and refuses parameters that would cost absurdly much.
func decode(s string) (p params, key, salt []byte, err error) {
	parts := strings.Split(s, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" {
		return p, nil, nil, errors.New("stored password hash is not argon2id")
	}
	var version int
	if _, err := fmt.Sscanf(parts[2], "v=%d", &version); err != nil || version != argon2.Version {
		return p, nil, nil, fmt.Errorf("stored password hash has argon2 version %q", parts[2])
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &p.memory, &p.time, &p.threads); err != nil ||
		p.memory < 8 || p.memory > 1<<20 || p.time < 1 || p.time > 64 || p.threads < 1 {
		return p, nil, nil, fmt.Errorf("stored password hash has parameters %q", parts[3])
	}
	if salt, err = base64.RawStdEncoding.DecodeString(parts[4]); err != nil || len(salt) < 8 {
		return p, nil, nil, errors.New("stored password hash has no salt")
	}
	if key, err = base64.RawStdEncoding.DecodeString(parts[5]); err != nil || len(key) < 16 || len(key) > 128 {
		return p, nil, nil, errors.New("stored password hash has no key")
	}
	return p, key, salt, nil
}

// random bytes; crypto/rand never fails on Linux (it would end the program instead).
func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}
