package web

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/learnos/learnos/internal/config"
)

func writeCertificate(t *testing.T, dir string, serial int64) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: cert}, keyFile: {Type: "PRIVATE KEY", Bytes: pk}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

func TestServerWithTLSAndItsEnd(t *testing.T) {
	gw := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Header.Get("X-Forwarded-Proto"))
	}))
	defer gw.Close()
	dir := t.TempDir()
	cfg := config.Default()
	cfg.Common.DataDir = dir
	cfg.Web.WebAddr, cfg.Web.SSHAddr, cfg.Web.GatewayURL = "127.0.0.1:0", "127.0.0.1:0", gw.URL
	cfg.Web.TLSCert, cfg.Web.TLSKey = writeCertificate(t, dir, 1)
	s, err := Open(cfg, "v")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	if !strings.HasPrefix(s.PanelURL(), "https://127.0.0.1:") {
		t.Fatal(s.PanelURL())
	}
	res, err := client.Get(s.PanelURL() + "/api/v1/x")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(res.Body)
	if string(body) != "https" || res.Header.Get("Strict-Transport-Security") == "" {
		t.Errorf("%q %v", body, res.Header)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestRenewedCertificateIsTakenUp(t *testing.T) {
	dir := t.TempDir()
	c := &certificates{}
	c.certFile, c.keyFile = writeCertificate(t, dir, 1)
	serial := func() int64 {
		t.Helper()
		cert, err := c.get(nil)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(cert.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		c.looked = time.Time{}
		return leaf.SerialNumber.Int64()
	}
	if serial() != 1 {
		t.Error("not the first")
	}
	// Half a renewal: the certificate is there, its key is not.
	key, _ := os.ReadFile(c.keyFile)
	writeCertificate(t, dir, 2)
	later := time.Now().Add(time.Hour)
	_ = os.Chtimes(c.certFile, later, later)
	newKey, _ := os.ReadFile(c.keyFile)
	_ = os.WriteFile(c.keyFile, key, 0o600)
	if serial() != 1 {
		t.Error("half a renewal was taken up")
	}
	_ = os.WriteFile(c.keyFile, newKey, 0o600)
	if serial() != 2 {
		t.Error("the renewal was not taken up")
	}
	if _, err := (&certificates{certFile: "/none", keyFile: "/none"}).get(nil); err == nil || !strings.Contains(err.Error(), "web.tlsCert") {
		t.Errorf("%v", err)
	}
}
