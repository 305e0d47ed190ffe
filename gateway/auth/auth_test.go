package auth

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/crypto/ssh"
)

var ctx = context.Background()

func TestPasswords(t *testing.T) {
	h := NewHasher()
	enc, err := h.Hash(ctx, "correct horse")
	if err != nil || !strings.HasPrefix(enc, "$argon2id$v=19$m=32768,t=3,p=1$") {
		t.Fatal(enc, err)
	}
	if ok, stale, err := h.Verify(ctx, enc, "correct horse"); !ok || stale || err != nil {
		t.Fatal(ok, stale, err)
	}
	if ok, _, err := h.Verify(ctx, enc, "wrong"); ok || err != nil {
		t.Fatal(ok, err)
	}
	if ok, _, err := h.Verify(ctx, "", "anything"); ok || err != nil { // no such user: hashed all the same
		t.Fatal(ok, err)
	}
	old := encode(params{1, 64, 1}, derive(params{1, 64, 1}, "pw", []byte("saltsalt"), 32), []byte("saltsalt"))
	if ok, stale, err := h.Verify(ctx, old, "pw"); !ok || !stale || err != nil {
		t.Fatal(ok, stale, err)
	}
	for _, bad := range []string{"x", "$argon2i$v=19$m=64,t=1,p=1$c2FsdHNhbHQ$AAAA", "$argon2id$v=19$m=99999999,t=1,p=1$c2FsdHNhbHQ$AAAA",
		"$argon2id$v=18$m=64,t=1,p=1$c2FsdHNhbHQ$AAAA", "$argon2id$v=19$m=64,t=1,p=0$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAA", "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHQ$AAAA"} {
		if _, _, err := h.Verify(ctx, bad, "pw"); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestHasherRefusesAFlood(t *testing.T) {
	h := &Hasher{running: make(chan struct{}, 1), waiting: make(chan struct{}, 2)}
	h.running <- struct{}{} // one runs
	cancelled, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for range 2 { // two wait
		wg.Go(func() {
			if _, err := h.Hash(cancelled, "x"); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	for len(h.waiting) < 2 {
		time.Sleep(time.Millisecond)
	}
	if _, err := h.Hash(ctx, "x"); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
	cancel()
	wg.Wait()
}

func TestAccessTokens(t *testing.T) {
	k1, k2 := random(32), random(32)
	old, err := NewKeyring(k1)
	if err != nil {
		t.Fatal(err)
	}
	ring, err := NewKeyring(k2, k1)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	a := Access{User: 7, Session: "s1", Expires: now.Add(time.Minute).Truncate(time.Second)}
	for _, signer := range []*Keyring{old, ring} { // rotation: both are good
		token, err := signer.Sign(a, now)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ring.Parse(token)
		if err != nil || got.User != 7 || got.Session != "s1" || !got.Expires.Equal(a.Expires) {
			t.Fatal(got, err)
		}
	}
	newer, _ := ring.Sign(a, now)
	if _, err := old.Parse(newer); !errors.Is(err, ErrToken) {
		t.Error("a key that was never there:", err)
	}
	forge := func(method jwt.SigningMethod, key any, kid string, c jwt.Claims) string {
		tok := jwt.NewWithClaims(method, c)
		tok.Header["kid"] = kid
		s, err := tok.SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	good := func() claims {
		return claims{"s1", jwt.RegisteredClaims{Issuer: issuer, Subject: "7", ExpiresAt: jwt.NewNumericDate(now.Add(time.Hour))}}
	}
	if _, err := ring.Parse(forge(jwt.SigningMethodHS256, k2, ring.signer, good())); err != nil {
		t.Fatal("the forger's tools are blunt:", err)
	}
	expired, eternal, elsewhere, nobody, noSession := good(), good(), good(), good(), good()
	expired.ExpiresAt = jwt.NewNumericDate(now.Add(-time.Second))
	eternal.ExpiresAt = nil
	elsewhere.Issuer = "x"
	nobody.Subject = "seven"
	noSession.Session = ""
	for name, token := range map[string]string{
		"alg none":    forge(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, ring.signer, good()),
		"alg HS512":   forge(jwt.SigningMethodHS512, k2, ring.signer, good()),
		"other key":   forge(jwt.SigningMethodHS256, random(32), ring.signer, good()),
		"unknown kid": forge(jwt.SigningMethodHS256, k2, "x", good()),
		"expired":     forge(jwt.SigningMethodHS256, k2, ring.signer, expired),
		"eternal":     forge(jwt.SigningMethodHS256, k2, ring.signer, eternal),
		"issuer":      forge(jwt.SigningMethodHS256, k2, ring.signer, elsewhere),
		"subject":     forge(jwt.SigningMethodHS256, k2, ring.signer, nobody),
		"no session":  forge(jwt.SigningMethodHS256, k2, ring.signer, noSession),
		"empty":       "",
		"garbage":     "a.b.c",
	} {
		if _, err := ring.Parse(token); !errors.Is(err, ErrToken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewKeyring([]byte("short")); err == nil {
		t.Error("a short key was accepted")
	}
	if _, err := NewKeyring(); err == nil {
		t.Error("no key was accepted")
	}
}

func TestIdentifiers(t *testing.T) {
	id := regexp.MustCompile(`^e[a-z2-7]{25}$`)
	seen := map[string]bool{}
	for range 1000 {
		s := NewID("e")
		if !id.MatchString(s) || seen[s] {
			t.Fatal(s)
		}
		seen[s] = true
	}
	if code, err := NewCode(); err != nil || !regexp.MustCompile(`^\d{6}$`).MatchString(code) {
		t.Fatal(code, err)
	}
	if p := NewPassword(); len(p) != 24 {
		t.Fatal(p)
	}
	if HashCode([]byte("k"), "a@b1", "23") == HashCode([]byte("k"), "a@b", "123") {
		t.Fatal("two codes, one hash")
	}
}

func TestNames(t *testing.T) {
	for in, out := range map[string]string{"Ada": "ada", "a-b_9": "a-b_9", strings.Repeat("x", 32): strings.Repeat("x", 32),
		"ab": "", "9ab": "", "-ab": "", "a b": "", "ädä": "", strings.Repeat("x", 33): "", "abc\n": "", "a\x00b": "", "": ""} {
		if got, err := Username(in); got != out || (err == nil) != (out != "") {
			t.Errorf("Username(%q) = %q, %v", in, got, err)
		}
	}
	for in, out := range map[string]string{"Ada@Example.org": "ada@example.org", " a@b ": "a@b", "a+b@c.d": "a+b@c.d",
		"a": "", "@b": "", "a@": "", "a@b,c@d": "", "A <a@b>": "", "a@b\r\nBcc: c@d": "", "": "", "\"a b\"@c": ""} {
		if got, err := Email(in); got != out || (err == nil) != (out != "") {
			t.Errorf("Email(%q) = %q, %v", in, got, err)
		}
	}
	for in, ok := range map[string]bool{"12345678": true, "пароль12": true, "1234567": false, strings.Repeat("x", 257): false, "1234567\xff": false} {
		if err := Password(in); (err == nil) != ok {
			t.Errorf("Password(%q): %v", in, err)
		}
	}
}

func line(t testing.TB, key any) string {
	t.Helper()
	k, err := ssh.NewPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k)))
}

func TestKeys(t *testing.T) {
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	big, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	good := line(t, pub)
	k, err := ParseKey("  " + good + " me@laptop \n")
	if err != nil || k.Line != good || k.Comment != "me@laptop" || k.Type != "ssh-ed25519" || !strings.HasPrefix(k.Fingerprint, "SHA256:") {
		t.Fatal(k, err)
	}
	if _, err := ParseKey(line(t, &big.PublicKey)); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "ssh-ed25519", "ssh-ed25519 AAAA", "# " + good, good + "\n" + good, `command="x" ` + good, line(t, &small.PublicKey),
		"-----BEGIN OPENSSH PRIVATE KEY-----", "ssh-rsa " + strings.Fields(good)[1][:20], "\x00" + good} {
		if k, err := ParseKey(bad); err == nil {
			t.Errorf("%q was read as %+v", bad, k)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	pub, _, _ := ed25519.GenerateKey(rand.Reader)
	f.Add(line(f, pub) + " comment")
	f.Add(`from="1.2.3.4",command="a \" b" ` + line(f, pub))
	f.Add("ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAA")
	f.Add("sk-ssh-ed25519@openssh.com AAAA")
	f.Fuzz(func(t *testing.T, text string) {
		k, err := ParseKey(text)
		if err != nil {
			return
		}
		if strings.ContainsAny(k.Line+k.Comment, "\n\r\x00") || len(strings.Fields(k.Line)) != 2 {
			t.Fatalf("%q gave %+v", text, k)
		}
		if _, err := base64.StdEncoding.DecodeString(strings.Fields(k.Line)[1]); err != nil {
			t.Fatal(err)
		}
		again, err := ParseKey(k.Line)
		if err != nil || again.Fingerprint != k.Fingerprint {
			t.Fatalf("%q: %v", k.Line, err)
		}
	})
}

func TestLimiter(t *testing.T) {
	now := time.Now()
	l := NewLimiter(3, time.Minute)
	for range 3 {
		if _, ok := l.Allow("a", now); !ok {
			t.Fatal("refused too early")
		}
	}
	if wait, ok := l.Allow("a", now); ok || wait <= 19*time.Second || wait > 20*time.Second {
		t.Fatal(wait, ok)
	}
	if _, ok := l.Allow("b", now); !ok {
		t.Fatal("one key pays for another")
	}
	l.Refund("a", now)
	if _, ok := l.Allow("a", now); !ok {
		t.Fatal("the refund was kept")
	}
	l.Refund("c", now)
	l.Refund("c", now)
	for i := range 4 { // refunds never make more than the burst
		if _, ok := l.Allow("c", now); ok != (i < 3) {
			t.Fatal(i, ok)
		}
	}
	if _, ok := l.Allow("a", now.Add(20*time.Second)); !ok {
		t.Fatal("no refill")
	}
	l.max = 2
	l.Allow("x", now)
	l.Allow("y", now)
	l.Allow("z", now)
	if len(l.buckets) > 4 || l.recent.Len() != len(l.buckets) {
		t.Fatal(len(l.buckets))
	}
	if _, ok := NewLimiter(0, time.Minute).Allow("a", now); !ok {
		t.Fatal("0 is no limit")
	}
	for in, out := range map[string]string{"1.2.3.4": "1.2.3.4", "::ffff:1.2.3.4": "1.2.3.4", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64", "fe80::1%eth0": "fe80::/64", "?": "?"} {
		if got := AddressKey(in); got != out {
			t.Errorf("%s: %s, want %s", in, got, out)
		}
	}
}
