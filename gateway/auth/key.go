package auth

import (
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"strings"

	"golang.org/x/crypto/ssh"
)

// PublicKey is a parsed line of an authorized_keys file (sshd(8)).
type PublicKey struct {
	Type        string // e.g. ssh-ed25519
	Fingerprint string // SHA256:…, as ssh-keygen -l prints it
	Line        string // type and base64, without comment
	Comment     string
}

// ParseKey reads one line of an authorized_keys file. Its errors are for the person who pasted it.
func ParseKey(text string) (PublicKey, error) {
	text = strings.TrimSpace(text)
	switch {
	case strings.Contains(text, "PRIVATE KEY"):
		return PublicKey{}, errors.New("this is a private key: keep it to yourself and paste the .pub file")
	case strings.ContainsAny(text, "\n\r\x00"):
		return PublicKey{}, errors.New("more than one line; paste one key at a time")
	}
	key, comment, options, rest, err := ssh.ParseAuthorizedKey([]byte(text))
	switch {
	case err != nil:
		return PublicKey{}, errors.New("not a public key; it looks like \"ssh-ed25519 AAAA… name\"")
	case len(options) > 0:
		return PublicKey{}, errors.New("options before the key are not supported; paste only the type and the key")
	case len(rest) > 0:
		return PublicKey{}, errors.New("more than one line; paste one key at a time")
	}
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoSKECDSA256:
	case ssh.KeyAlgoRSA:
		if crypto, ok := key.(ssh.CryptoPublicKey); ok {
			if k, ok := crypto.CryptoPublicKey().(*rsa.PublicKey); ok && k.N.BitLen() < 2048 {
				return PublicKey{}, errors.New("RSA keys need at least 2048 bits; ssh-keygen -t ed25519 makes a better one")
			}
		}
	default:
		return PublicKey{}, errors.New("keys of type " + key.Type() + " are not accepted; ssh-keygen -t ed25519 makes one that is")
	}
	return PublicKey{
		Type:        key.Type(),
		Fingerprint: ssh.FingerprintSHA256(key),
		Line:        key.Type() + " " + base64.StdEncoding.EncodeToString(key.Marshal()),
		Comment:     comment,
	}, nil
}
