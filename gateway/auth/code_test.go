package auth

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"
)

// mailbox is a small but real SMTP server on a socket: it takes one message, optionally after STARTTLS and AUTH.
type mailbox struct {
	addr  string
	roots *x509.CertPool
	got   chan letter
}

type letter struct {
	from, to, auth, data string
	tls                  bool
}

func serveMail(t *testing.T, withTLS, refuse bool) *mailbox {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	m := &mailbox{addr: ln.Addr().String(), roots: x509.NewCertPool(), got: make(chan letter, 1)}
	m.roots.AddCert(cert)
	conf := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer func() { conn.Close() }()
		var l letter
		r := bufio.NewReader(conn)
		say := func(s string) { fmt.Fprintf(conn, "%s\r\n", s) }
		say("220 test ESMTP")
		for {
			text, err := r.ReadString('\n')
			if err != nil {
				return
			}
			text = strings.TrimRight(text, "\r\n")
			verb := strings.ToUpper(strings.Fields(text + " x")[0])
			switch {
			case verb == "EHLO" && withTLS && !l.tls:
				say("250-test")
				say("250 STARTTLS")
			case verb == "EHLO":
				say("250-test")
				say("250 AUTH PLAIN")
			case verb == "STARTTLS":
				say("220 go")
				c := tls.Server(conn, conf)
				conn, r, l.tls = c, bufio.NewReader(c), true
			case verb == "AUTH":
				l.auth = text
				say("235 ok")
			case verb == "MAIL":
				l.from = text
				say("250 ok")
			case verb == "RCPT" && refuse:
				say("550 no such mailbox")
			case verb == "RCPT":
				l.to = text
				say("250 ok")
			case verb == "DATA":
				say("354 go")
				for {
					s, err := r.ReadString('\n')
					if err != nil || s == ".\r\n" {
						break
					}
					l.data += s
				}
				say("250 queued")
			case verb == "QUIT":
				say("221 bye")
				m.got <- l
				return
			default:
				say("500 what?")
			}
		}
	}()
	return m
}

func TestMailedCode(t *testing.T) {
	for _, withTLS := range []bool{false, true} {
		t.Run(fmt.Sprint("starttls=", withTLS), func(t *testing.T) {
			m := serveMail(t, withTLS, false)
			s := SMTPSender{Addr: m.addr, User: "u", Password: "p", From: "learnos@example.org", TLS: &tls.Config{RootCAs: m.roots}}
			if err := s.SendCode(ctx, "ada@example.org", "123456", 10*time.Minute); err != nil {
				t.Fatal(err)
			}
			l := <-m.got
			if l.tls != withTLS || !strings.Contains(l.from, "<learnos@example.org>") || !strings.Contains(l.to, "<ada@example.org>") ||
				!strings.Contains(l.data, "is 123456. It works for 10 minutes") || !strings.HasPrefix(l.auth, "AUTH PLAIN") {
				t.Fatalf("%+v", l)
			}
		})
	}
}

func TestMailTroubles(t *testing.T) {
	m := serveMail(t, true, false)
	if err := (SMTPSender{Addr: m.addr, From: "a@b"}).SendCode(ctx, "c@d", "1", time.Minute); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Error("an unknown certificate:", err)
	}
	m = serveMail(t, false, true)
	if err := (SMTPSender{Addr: m.addr, From: "a@b"}).SendCode(ctx, "c@d", "1", time.Minute); err == nil || !strings.Contains(err.Error(), "no such mailbox") {
		t.Error("a refused recipient:", err)
	}
	if err := (SMTPSender{Addr: "127.0.0.1:1", From: "a@b"}).SendCode(ctx, "c@d", "1", time.Minute); err == nil {
		t.Error("nobody listens there")
	}
}

func TestLoggedCode(t *testing.T) {
	var out bytes.Buffer
	s := LogSender{slog.New(slog.NewTextHandler(&out, nil))}
	if err := s.SendCode(ctx, "a@b", "654321", time.Minute); err != nil || !strings.Contains(out.String(), "code=654321") {
		t.Fatal(out.String(), err)
	}
}
