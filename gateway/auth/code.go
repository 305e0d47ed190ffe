package auth

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/smtp"
	"strings"
	"time"
)

// NewCode is a verification code: six random digits.
func NewCode() (string, error) {
	n, err := rand.Int(rand.Reader, big.NewInt(1_000_000))
	if err != nil {
		return "", fmt.Errorf("make a code: %w", err)
	}
	return fmt.Sprintf("%06d", n), nil
}

// HashCode is what is kept of a code. A million codes are soon tried, so the hash has a key, and the address is in it.
func HashCode(key []byte, email, code string) string {
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%d:%s%s", len(email), email, code)
	return hex.EncodeToString(mac.Sum(nil))
}

// CodeSender brings a verification code to its address.
type CodeSender interface {
	SendCode(ctx context.Context, email, code string, lifetime time.Duration) error
}

// LogSender writes codes to the log: for installations without mail, whose operator passes them on.
type LogSender struct{ Log *slog.Logger }

// SendCode logs the code.
func (s LogSender) SendCode(ctx context.Context, email, code string, lifetime time.Duration) error {
	s.Log.InfoContext(ctx, "verification code (no mail server is configured)", "email", email, "code", code, "lifetime", lifetime)
	return nil
}

// SMTPSender mails codes (RFC 5321). It uses STARTTLS whenever the server offers it, implicit TLS on port 465, and
// never sends a password in the clear but to the same machine.
type SMTPSender struct {
	Addr           string // host:port
	User, Password string // "" for none
	From           string
	TLS            *tls.Config // nil for the usual roots
}

// SendCode mails the code and waits for the server's word, at most 20 seconds.
func (s SMTPSender) SendCode(ctx context.Context, email, code string, lifetime time.Duration) error {
	if err := s.send(ctx, email, s.message(email, code, lifetime)); err != nil {
		return fmt.Errorf("mail a code through %s: %w", s.Addr, err)
	}
	return nil
}

func (s SMTPSender) message(email, code string, lifetime time.Duration) string {
	return strings.Join([]string{
		"From: Learnos <" + s.From + ">",
		"To: <" + email + ">",
		"Subject: Learnos code: " + code,
		"Date: " + time.Now().Format(time.RFC1123Z),
		"Message-ID: <" + NewID("m") + "@learnos>",
		"Auto-Submitted: auto-generated",
		"MIME-Version: 1.0",
		"Content-Type: text/plain; charset=utf-8",
		"",
		fmt.Sprintf("Your Learnos code is %s. It works for %d minutes.", code, int(lifetime.Minutes())),
		fmt.Sprintf("您的 Learnos 验证码是 %s,%d 分钟内有效。", code, int(lifetime.Minutes())),
		"",
		"If you did not ask for it, do nothing. 如非本人操作,请忽略。",
		"",
	}, "\r\n")
}

func (s SMTPSender) send(ctx context.Context, email, message string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	host, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		return err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.Addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	conf := &tls.Config{}
	if s.TLS != nil {
		conf = s.TLS.Clone()
	}
	if conf.ServerName == "" {
		conf.ServerName = host
	}
	if port == "465" {
		conn = tls.Client(conn, conf)
	}
	client, err := smtp.NewClient(conn, host)
	if err != nil {
		return err
	}
	if ok, _ := client.Extension("STARTTLS"); ok {
		if err := client.StartTLS(conf); err != nil {
			return err
		}
	}
	if s.User != "" {
		if err := client.Auth(smtp.PlainAuth("", s.User, s.Password, host)); err != nil {
			return err
		}
	}
	if err := client.Mail(s.From); err != nil {
		return err
	}
	if err := client.Rcpt(email); err != nil {
		return err
	}
	w, err := client.Data()
	if err != nil {
		return err
	}
	if _, err := w.Write([]byte(message)); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return client.Quit()
}
