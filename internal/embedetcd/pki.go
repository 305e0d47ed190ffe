package embedetcd

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// pki names the PEM files of one server's own authority.
type pki struct{ ca, caKey, serverCert, serverKey, clientCert, clientKey string }

// makePKI makes what is missing: the authority and the client's certificate once, the server's at each start, since
// its names depend on where it listens.
func makePKI(dir, host string) (pki, error) {
	at := func(name string) string { return filepath.Join(dir, name) }
	p := pki{ca: at("ca.pem"), caKey: at("ca.key"), serverCert: at("server.pem"), serverKey: at("server.key"),
		clientCert: at("client.pem"), clientKey: at("client.key")}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return p, err
	}
	ca, caKey, err := readPair(p.ca, p.caKey)
	if errors.Is(err, fs.ErrNotExist) {
		ca, caKey, err = issue(p.ca, p.caKey, &x509.Certificate{
			Subject: pkix.Name{CommonName: "learnos etcd authority"},
			IsCA:    true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}, nil, nil)
		os.Remove(p.clientCert) // of another authority, if there
	}
	if err != nil {
		return p, err
	}
	server := &x509.Certificate{
		Subject:  pkix.Name{CommonName: "learnos etcd"},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if ip := net.ParseIP(host); ip != nil {
		server.IPAddresses = append(server.IPAddresses, ip)
	} else if host != "" {
		server.DNSNames = append(server.DNSNames, host)
	}
	if _, _, err := issue(p.serverCert, p.serverKey, server, ca, caKey); err != nil {
		return p, err
	}
	if _, _, err := readPair(p.clientCert, p.clientKey); errors.Is(err, fs.ErrNotExist) {
		_, _, err = issue(p.clientCert, p.clientKey, &x509.Certificate{
			Subject:     pkix.Name{CommonName: "learnos"},
			KeyUsage:    x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}, ca, caKey)
		return p, err
	} else if err != nil {
		return p, err
	}
	return p, nil
}

// issue makes a key and a certificate signed by ca, or by itself when ca is nil. The certificate is written last: it
// being there says that both are.
func issue(certFile, keyFile string, t, ca *x509.Certificate, caKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if t.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		return nil, nil, err
	}
	t.NotBefore = time.Now().Add(-24 * time.Hour)
	t.NotAfter = time.Now().AddDate(50, 0, 0)
	if ca == nil {
		ca, caKey = t, key
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca, &key.PublicKey, caKey)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	if err := writePEM(keyFile, "EC PRIVATE KEY", keyDER); err != nil {
		return nil, nil, err
	}
	if err := writePEM(certFile, "CERTIFICATE", der); err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}

// writePEM replaces the file whole.
func writePEM(path, kind string, der []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	err = pem.Encode(f, &pem.Block{Type: kind, Bytes: der})
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func readPair(certFile, keyFile string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	certDER, err := readPEM(certFile)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := readPEM(keyFile)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(certDER)
	if err != nil {
		return nil, nil, err
	}
	key, err := x509.ParseECPrivateKey(keyDER)
	return cert, key, err
}

func readPEM(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New(path + " holds no PEM block; remove the directory it is in to have all made anew")
	}
	return block.Bytes, nil
}
