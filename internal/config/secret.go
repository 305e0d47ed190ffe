package config

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

var secretName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)

// Secret returns the installation's secret of that name and length, made of crypto/rand at the first call by
// whichever process comes first. It is kept in hex in <dataDir>/secrets/<name>, mode 0600, so that an operator can
// copy it to another machine. A file of another length or that others may read is an error, never replaced.
func Secret(dataDir, name string, bytes int) ([]byte, error) {
	if !secretName.MatchString(name) || bytes < 16 || bytes > 1024 {
		return nil, fmt.Errorf("secret %q of %d bytes: the name must be of a-z, 0-9, \"-\" and \"_\", the length 16 to 1024", name, bytes)
	}
	dir := filepath.Join(dataDir, "secrets")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of secrets: %w", err)
	}
	path := filepath.Join(dir, name)
	secret, err := readSecret(path, bytes)
	if !errors.Is(err, fs.ErrNotExist) {
		return secret, err
	}
	// Written whole under another name, then linked: link fails when another process was first.
	f, err := os.CreateTemp(dir, "."+name+"-")
	if err != nil {
		return nil, fmt.Errorf("make secret %s: %w", path, err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	fresh := make([]byte, bytes)
	rand.Read(fresh) // never fails, crypto/rand says
	if _, err := f.WriteString(hex.EncodeToString(fresh) + "\n"); err != nil {
		return nil, fmt.Errorf("make secret %s: %w", path, err)
	}
	if err := f.Sync(); err != nil {
		return nil, fmt.Errorf("make secret %s: %w", path, err)
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make secret %s: %w", path, err)
	}
	if d, err := os.Open(dir); err == nil {
		_ = d.Sync() // a file system that can't sync directories keeps the name anyway
		d.Close()
	}
	return readSecret(path, bytes)
}

func readSecret(path string, bytes int) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read secret: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("secret %s may be read by others (mode %04o): chmod 600 it, or remove it if it may be known", path, st.Mode().Perm())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read secret: %w", err)
	}
	secret, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(secret) != bytes {
		return nil, fmt.Errorf("secret %s is not %d bytes in hex: restore it, or remove it to have a new one made", path, bytes)
	}
	return secret, nil
}
