package auth

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// ErrToken: the access token is malformed, expired, or was signed by somebody else.
var ErrToken = errors.New("access token is not valid")

const issuer = "learnos"

// Keyring signs and checks access tokens: JWTs (RFC 7519) with HS256. The first key signs; all of them check, so a
// key can be replaced while tokens of the one before live out their minutes. The kid header tells them apart.
type Keyring struct {
	signer string
	keys   map[string][]byte
	parser *jwt.Parser
}

// NewKeyring makes a keyring of secrets of at least 32 bytes, the signing one first.
func NewKeyring(secrets ...[]byte) (*Keyring, error) {
	k := &Keyring{keys: make(map[string][]byte)}
	for i, secret := range secrets {
		if len(secret) < 32 {
			return nil, fmt.Errorf("token key %d has %d bytes; 32 are the least", i, len(secret))
		}
		sum := sha256.Sum256(append([]byte("kid "), secret...))
		kid := hex.EncodeToString(sum[:6])
		if i == 0 {
			k.signer = kid
		}
		k.keys[kid] = secret
	}
	if k.signer == "" {
		return nil, errors.New("no token key")
	}
	k.parser = jwt.NewParser(jwt.WithValidMethods([]string{"HS256"}), jwt.WithIssuer(issuer), jwt.WithExpirationRequired(), jwt.WithIssuedAt())
	return k, nil
}

// Access is what an access token says.
type Access struct {
	User    int64
	Session string
	Expires time.Time
}

type claims struct {
	Session string `json:"sid"`
	jwt.RegisteredClaims
}

// Sign makes an access token.
func (k *Keyring) Sign(a Access, now time.Time) (string, error) {
	t := jwt.NewWithClaims(jwt.SigningMethodHS256, claims{a.Session, jwt.RegisteredClaims{
		Issuer: issuer, Subject: strconv.FormatInt(a.User, 10), IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(a.Expires),
	}})
	t.Header["kid"] = k.signer
	s, err := t.SignedString(k.keys[k.signer])
	if err != nil {
		return "", fmt.Errorf("sign an access token: %w", err)
	}
	return s, nil
}

// Parse checks an access token. It does not know whether the session behind it still lives.
func (k *Keyring) Parse(token string) (Access, error) {
	var c claims
	_, err := k.parser.ParseWithClaims(token, &c, func(t *jwt.Token) (any, error) {
		kid, _ := t.Header["kid"].(string)
		key, ok := k.keys[kid]
		if !ok {
			return nil, errors.New("unknown kid")
		}
		return key, nil
	})
	if err != nil {
		return Access{}, fmt.Errorf("%w: %v", ErrToken, err)
	}
	user, err := strconv.ParseInt(c.Subject, 10, 64)
	if err != nil || c.Session == "" {
		return Access{}, fmt.Errorf("%w: no user or session in it", ErrToken)
	}
	return Access{User: user, Session: c.Session, Expires: c.ExpiresAt.Time}, nil
}

// NewID is a random identifier of 26 lower-case letters and digits, starting with prefix (one letter): 125 bits.
func NewID(prefix string) string {
	return prefix + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(random(16)))[:25]
}

// NewRefresh makes a refresh token (256 random bits) and the hash that is kept of it.
func NewRefresh() (token, hash string) {
	token = base64.RawURLEncoding.EncodeToString(random(32))
	return token, HashRefresh(token)
}

// HashRefresh is the hash under which a refresh token is kept. The token is random, so a plain hash is enough.
func HashRefresh(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// NewPassword is a random password for people to copy: 24 characters, 119 bits.
func NewPassword() string {
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(random(15)))
}
