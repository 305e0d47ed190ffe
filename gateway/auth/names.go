package auth

import (
	"errors"
	"net/mail"
	"strings"
	"unicode/utf8"
)

// Username checks a wished name and returns it as it is kept: in lower case.
func Username(s string) (string, error) {
	s = strings.ToLower(s)
	if len(s) < 3 || len(s) > 32 {
		return "", errors.New("must have 3 to 32 characters")
	}
	for i, c := range []byte(s) {
		letter := 'a' <= c && c <= 'z'
		if i == 0 && !letter {
			return "", errors.New("must start with a letter")
		}
		if !letter && !('0' <= c && c <= '9') && c != '_' && c != '-' {
			return "", errors.New("may only have letters a to z, digits, _ and -")
		}
	}
	return s, nil
}

// Email checks an address and returns it as it is kept: in lower case.
func Email(s string) (string, error) {
	s = strings.ToLower(strings.TrimSpace(s))
	bad := errors.New("is not a mail address like name@example.org")
	if len(s) < 3 || len(s) > 254 || strings.ContainsAny(s, "<>\"\\,;: \t\r\n\x00()[]") {
		return "", bad
	}
	for _, c := range s {
		if c < 0x21 || c > 0x7e {
			return "", bad
		}
	}
	if parsed, err := mail.ParseAddress(s); err != nil || parsed.Address != s {
		return "", bad
	}
	return s, nil
}

// Password checks a wished password.
func Password(s string) error {
	switch {
	case utf8.RuneCountInString(s) < 8:
		return errors.New("must have at least 8 characters")
	case utf8.RuneCountInString(s) > 256:
		return errors.New("must have at most 256 characters")
	case !utf8.ValidString(s):
		return errors.New("must be valid UTF-8")
	}
	return nil
}
