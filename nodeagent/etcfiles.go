package nodeagent

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// hostResolvers lists the nameservers of the first file that names one an environment can reach: a resolver on
// the host's loopback (systemd-resolved's stub) is not one, and then its upstream file is the place to look.
func hostResolvers(files ...string) []netip.Addr {
	var found []netip.Addr
	for _, file := range files {
		body, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(body)) {
			fields := strings.Fields(line)
			if len(fields) < 2 || fields[0] != "nameserver" {
				continue
			}
			if a, err := netip.ParseAddr(fields[1]); err == nil && !a.IsLoopback() && a.Zone() == "" {
				found = append(found, a.Unmap())
			}
		}
		if len(found) > 0 {
			return found
		}
	}
	return nil
}

// resolvConf is /etc/resolv.conf inside. With the host's network the host's own file is right as it is.
func resolvConf(net string) []byte {
	host, err := os.ReadFile("/etc/resolv.conf")
	if net == NetHost && err == nil {
		return host
	}
	var out bytes.Buffer
	for line := range strings.Lines(string(host)) {
		if fields := strings.Fields(line); len(fields) > 1 && (fields[0] == "search" || fields[0] == "options") {
			fmt.Fprintln(&out, strings.Join(fields, " "))
		}
	}
	for _, a := range hostResolvers("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf") {
		fmt.Fprintln(&out, "nameserver", a)
	}
	return out.Bytes()
}

// hosts is /etc/hosts of an environment of that name and address.
func hosts(hostname string, own netip.Addr) ([]byte, error) {
	host, err := os.ReadFile("/etc/hosts")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read the host's hosts: %w", err)
	}
	return hostsFile(host, hostname, own), nil
}

// hostsFile is /etc/hosts inside: loopback, its own name, and what the host's file adds that is not loopback.
func hostsFile(host []byte, hostname string, own netip.Addr) []byte {
	var out bytes.Buffer
	fmt.Fprintf(&out, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	if own.IsValid() {
		fmt.Fprintf(&out, "%s\t%s\n", own, hostname)
	} else {
		fmt.Fprintf(&out, "127.0.1.1\t%s\n", hostname)
	}
	lines := bufio.NewScanner(bytes.NewReader(host))
	for lines.Scan() {
		text, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(text)
		if len(fields) < 2 {
			continue
		}
		a, err := netip.ParseAddr(fields[0])
		if err != nil || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsUnspecified() {
			continue
		}
		fmt.Fprintf(&out, "%s\t%s\n", a, strings.Join(fields[1:], " "))
	}
	return out.Bytes()
}

// writeEtc puts generated files into /etc of a root that is mounted but not yet anyone's "/". Every step resolves
// inside the root and follows no link, so an image can't point it at the host: openat2(2), RESOLVE_IN_ROOT.
// uid and gid own the files on the host.
func writeEtc(root *os.File, files map[string][]byte, uid, gid int) error {
	made, err := makeEtc(root, files, uid, gid)
	for _, f := range made {
		err = errors.Join(err, f.Close())
	}
	return err
}

// makeEtc is writeEtc for who wants to write more to the files, which it returns by name, on an error too.
func makeEtc(root *os.File, files map[string][]byte, uid, gid int) (made map[string]*os.File, err error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	etc, err := unix.Openat2(int(root.Fd()), "etc", how)
	if errors.Is(err, unix.ENOENT) {
		if err := unix.Mkdirat(int(root.Fd()), "etc", 0o755); err != nil {
			return nil, fmt.Errorf("make /etc: %w", err)
		}
		if etc, err = unix.Openat2(int(root.Fd()), "etc", how); err == nil {
			err = unix.Fchownat(etc, "", uid, gid, unix.AT_EMPTY_PATH)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open /etc of the image: %w", err)
	}
	defer unix.Close(etc)
	made = map[string]*os.File{}
	for name, body := range files {
		f, err := writeNew(etc, name, body, uid, gid)
		if f != nil {
			made[name] = f
		}
		if err != nil {
			return made, fmt.Errorf("write /etc/%s: %w", name, err)
		}
	}
	return made, nil
}

// writeNew replaces whatever dir has under name by a new file.
func writeNew(dir int, name string, body []byte, uid, gid int) (*os.File, error) {
	err := unix.Unlinkat(dir, name, 0)
	if errors.Is(err, unix.EISDIR) {
		err = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, err
	}
	fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.Write(body)
	return f, errors.Join(err, f.Chmod(0o644), f.Chown(uid, gid))
}
