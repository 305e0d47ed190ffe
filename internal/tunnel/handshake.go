package tunnel

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"
	"regexp"
	"time"
)

const (
	alpn     = "learnos-tunnel/1"
	exporter = "EXPORTER-learnos-tunnel-v1"
	maxHello = 4 << 10
	minToken = 16
)

var nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)

// ErrRefused: the other side could not prove that it knows the token, or does not accept our proof.
var ErrRefused = errors.New("tunnel refused")

// Identity is a gateway's certificate for its tunnels.
type Identity struct {
	Certificate tls.Certificate
	SHA256      string // hex, of the certificate's DER: what nodes pin
}

// NewIdentity makes a key and a self-signed certificate that live as long as the process.
func NewIdentity() (*Identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make tunnel key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("make tunnel certificate: %w", err)
	}
	// Nodes look at the hash alone: names and dates mean nothing here, and clocks may differ.
	t := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "learnos tunnel"},
		NotBefore:    time.Unix(0, 0),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280 section 4.1.2.5
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make tunnel certificate: %w", err)
	}
	sum := sha256.Sum256(der)
	return &Identity{
		Certificate: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		SHA256:      hex.EncodeToString(sum[:]),
	}, nil
}

// hello is the node's first line, welcome the gateway's answer.
type hello struct {
	Node  string `json:"node"`
	Proof string `json:"proof"`
}

type welcome struct {
	Proof string `json:"proof,omitempty"`
	Error string `json:"error,omitempty"`
}

// proof shows that role knows the token, for this connection and this node only.
func proof(token []byte, state tls.ConnectionState, role, node string) (string, error) {
	material, err := state.ExportKeyingMaterial(exporter, nil, 32)
	if err != nil {
		return "", fmt.Errorf("bind proof to the TLS connection: %w", err)
	}
	m := hmac.New(sha256.New, token)
	fmt.Fprintf(m, "%s\x00%s\x00", role, node)
	m.Write(material)
	return hex.EncodeToString(m.Sum(nil)), nil
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// acceptNode is the gateway's half: it returns the TLS connection and the name that the node proved.
func acceptNode(ctx context.Context, raw net.Conn, token []byte, id *Identity) (*tls.Conn, string, error) {
	conn := tls.Server(raw, &tls.Config{
		Certificates:           []tls.Certificate{id.Certificate},
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{alpn},
		SessionTicketsDisabled: true,
	})
	_ = conn.SetDeadline(time.Now().Add(handshakeIn))
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, "", fmt.Errorf("TLS handshake: %w", err)
	}
	line, err := readLine(conn, maxHello)
	if err != nil {
		return nil, "", fmt.Errorf("read the node's hello: %w", err)
	}
	node, err := checkHello(line, token, conn.ConnectionState())
	if err != nil {
		_ = writeLine(conn, welcome{Error: err.Error()}, maxHello)
		conn.Close()
		return nil, "", err
	}
	p, err := proof(token, conn.ConnectionState(), "gateway", node)
	if err != nil {
		return nil, "", err
	}
	if err := writeLine(conn, welcome{Proof: p}, maxHello); err != nil {
		return nil, "", fmt.Errorf("welcome node %s: %w", node, err)
	}
	return conn, node, conn.SetDeadline(time.Time{})
}

func checkHello(line, token []byte, state tls.ConnectionState) (string, error) {
	h, err := parseHello(line)
	if err != nil {
		return "", err
	}
	want, err := proof(token, state, "node", h.Node)
	if err != nil {
		return "", err
	}
	if !same(want, h.Proof) {
		return "", fmt.Errorf("%w: node %s does not know this installation's token", ErrRefused, h.Node)
	}
	return h.Node, nil
}

func parseHello(line []byte) (hello, error) {
	var h hello
	if err := json.Unmarshal(line, &h); err != nil {
		return hello{}, fmt.Errorf("%w: the hello is no JSON", ErrRefused)
	}
	if !nameForm.MatchString(h.Node) {
		return hello{}, fmt.Errorf("%w: %.80q is no node name", ErrRefused, h.Node)
	}
	return h, nil
}

// dialGateway is the node's half.
func dialGateway(ctx context.Context, addr, certSHA256 string, token []byte, node string) (*tls.Conn, error) {
	pin, err := hex.DecodeString(certSHA256)
	if err != nil || len(pin) != sha256.Size {
		return nil, fmt.Errorf("certificate hash %q is no SHA-256 in hex", certSHA256)
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeIn)
	defer cancel()
	d := tls.Dialer{
		NetDialer: &net.Dialer{},
		Config: &tls.Config{
			MinVersion: tls.VersionTLS13,
			NextProtos: []string{alpn},
			// The certificate is known beforehand, by its hash; there is no name or authority to check.
			InsecureSkipVerify: true,
			VerifyConnection: func(s tls.ConnectionState) error {
				if len(s.PeerCertificates) == 0 {
					return errors.New("the gateway shows no certificate")
				}
				sum := sha256.Sum256(s.PeerCertificates[0].Raw)
				if !bytes.Equal(sum[:], pin) {
					return errors.New("the gateway's certificate is not the one it announced in etcd")
				}
				return nil
			},
		},
	}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	conn := c.(*tls.Conn)
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err = introduce(conn, token, node)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func introduce(conn *tls.Conn, token []byte, node string) error {
	p, err := proof(token, conn.ConnectionState(), "node", node)
	if err != nil {
		return err
	}
	if err := writeLine(conn, hello{Node: node, Proof: p}, maxHello); err != nil {
		return fmt.Errorf("send hello: %w", err)
	}
	line, err := readLine(conn, maxHello)
	if err != nil {
		return fmt.Errorf("read the gateway's welcome: %w", err)
	}
	var w welcome
	if err := json.Unmarshal(line, &w); err != nil {
		return fmt.Errorf("%w: the welcome is no JSON", ErrRefused)
	}
	if w.Error != "" {
		return fmt.Errorf("%w by the gateway: %s", ErrRefused, w.Error)
	}
	want, err := proof(token, conn.ConnectionState(), "gateway", node)
	if err != nil {
		return err
	}
	if !same(want, w.Proof) {
		return fmt.Errorf("%w: the gateway does not know this installation's token", ErrRefused)
	}
	return nil
}
