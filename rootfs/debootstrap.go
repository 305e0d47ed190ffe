package rootfs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/learnos/learnos/rootfs/internal/rmtree"
)

const debianMirror = "http://deb.debian.org/debian"

// debianInclude is what a minbase system lacks to be of use: certificates, and programs to look at the network.
const debianInclude = "ca-certificates,iproute2"

// buildDebian runs debootstrap and turns the tree into a layer.
//
// debootstrap mounts inside its target and starts many programs. It runs in mount and process namespaces of its
// own, so nothing it mounts shows on the host, and killing it ends everything it has started.
func (s *Store) buildDebian(ctx context.Context, suite, mirror string, report func(Progress)) (*content, error) {
	program, err := exec.LookPath("debootstrap")
	if err != nil {
		return nil, errors.New("debootstrap is not installed on this host: apt-get install debootstrap")
	}
	if _, err := os.Stat(filepath.Join("/usr/share/debootstrap/scripts", suite)); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("debootstrap knows no suite %q; /usr/share/debootstrap/scripts has those it knows", suite)
	}
	if mirror == "" {
		mirror = hostMirror("/etc/apt")
	}
	if u, err := url.Parse(mirror); err != nil || u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "file" || strings.HasPrefix(mirror, "-") {
		return nil, fmt.Errorf("mirror %q is no http, https or file URL", mirror)
	}
	t, err := s.temp("debootstrap")
	if err != nil {
		return nil, err
	}
	defer t.remove()
	target := filepath.Join(t.path, "root")
	if err := os.Mkdir(target, 0o755); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, program, "--variant=minbase", "--include="+debianInclude, suite, target, mirror)
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/root", "TMPDIR=" + t.path,
		"DEBIAN_FRONTEND=noninteractive", "http_proxy=" + os.Getenv("http_proxy"), "https_proxy=" + os.Getenv("https_proxy"),
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC, Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	var progress debootstrapProgress
	if err := runLines(cmd, func(line string) {
		if percent, message, ok := progress.line(line); ok {
			report(Progress{Phase: PhaseBuilding, Done: percent, Total: 100, Message: message})
		}
	}); err != nil {
		if cerr := ctx.Err(); cerr != nil {
			return nil, cerr
		}
		log, _ := os.ReadFile(filepath.Join(target, "debootstrap/debootstrap.log"))
		return nil, fmt.Errorf("debootstrap %s from %s: %w: %s", suite, mirror, err, tail(progress.errors, string(log)))
	}
	report(Progress{Phase: PhaseBuilding, Done: 95, Total: 100, Message: "cleaning up and copying"})
	if err := finishDebian(target, suite); err != nil {
		return nil, err
	}
	return s.packed(ctx, target, ImageConfig{
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"},
		Cmd: []string{"bash"}, WorkingDir: "/root",
	})
}

// runLines runs a command and gives its output, both streams, line by line.
func runLines(cmd *exec.Cmd, each func(line string)) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd.Stdout, cmd.Stderr = w, w
	// The kernel sends Pdeathsig when the thread that forked ends, so this one must stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err = cmd.Start()
	w.Close()
	if err != nil {
		return err
	}
	in := bufio.NewScanner(r)
	for in.Scan() {
		each(in.Text())
	}
	io.Copy(io.Discard, r) // a line too long must not block the writer
	return cmd.Wait()
}

// debootstrapProgress guesses how far debootstrap is from what it prints. It says nowhere how many packages
// there will be; from the second phase on the first has told.
type debootstrapProgress struct {
	retrieved, extracted, unpacked, configured int64
	last                                       int64
	errors                                     []string
}

// usualPackages is about how many packages make a minbase system.
const usualPackages = 100

func (p *debootstrapProgress) line(line string) (percent int64, message string, ok bool) {
	if rest, isErr := strings.CutPrefix(line, "E: "); isErr {
		p.errors = append(p.errors, rest)
		return 0, "", false
	}
	message, ok = strings.CutPrefix(line, "I: ")
	if !ok {
		return 0, "", false
	}
	part := func(from, to, done, total int64) int64 { return from + (to-from)*min(done, total)/max(1, total) }
	switch word, _, _ := strings.Cut(message, " "); word {
	case "Retrieving", "Validating":
		p.retrieved++
		percent = part(2, 35, p.retrieved, 2*usualPackages)
	case "Extracting":
		p.extracted++
		percent = part(35, 50, p.extracted, max(1, p.retrieved/2))
	case "Unpacking":
		p.unpacked++
		percent = part(50, 70, p.unpacked, max(1, p.retrieved/2))
	case "Configuring":
		p.configured++
		percent = part(70, 94, p.configured, max(1, p.retrieved/2))
	case "Installing":
		percent = 50
	default:
		percent = p.last
	}
	p.last = max(p.last, percent)
	return p.last, message, true
}

func tail(lines []string, log string) string {
	if len(lines) > 0 {
		return strings.Join(lines, "; ")
	}
	all := strings.Split(strings.TrimSpace(log), "\n")
	return strings.Join(all[max(0, len(all)-5):], "; ")
}

// finishDebian makes an image of a fresh system: sources to install from, no services started by installing, no
// caches, nothing that tells one copy from another. The tree is not a running system yet and was written by
// Debian's packages alone, so plain paths are safe here.
func finishDebian(target, suite string) error {
	files := map[string]struct {
		mode    os.FileMode
		content string
	}{
		"etc/apt/sources.list": {0o644, debianSources(suite)},
		// Whoever installs a server in a container has no init to start it.
		"usr/sbin/policy-rc.d":          {0o755, "#!/bin/sh\nexit 101\n"},
		"etc/apt/apt.conf.d/90learnos":  {0o644, "APT::Install-Recommends \"false\";\nAPT::Install-Suggests \"false\";\nAcquire::Languages \"none\";\n"},
		"etc/dpkg/dpkg.cfg.d/90learnos": {0o644, "# An environment is gone when the machine crashes.\nforce-unsafe-io\n"},
		"etc/hostname":                  {0o644, "localhost\n"},
		"etc/hosts":                     {0o644, "127.0.0.1\tlocalhost\n::1\tlocalhost\n"},
		"etc/resolv.conf":               {0o644, ""},
		"etc/machine-id":                {0o444, ""},
		"etc/profile.d/learnos.sh":      {0o644, debianProfile},
	}
	for _, name := range sortedKeys(files) {
		f := files[name]
		path := filepath.Join(target, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(path, []byte(f.content), f.mode); err != nil {
			return err
		}
		if err := os.Chmod(path, f.mode); err != nil {
			return err
		}
	}
	for _, pattern := range []string{
		"debootstrap", "dev/*", "proc/*", "sys/*", "run/*", "tmp/*", "var/tmp/*",
		"var/cache/apt/archives/*.deb", "var/cache/apt/*.bin", "var/cache/debconf/*-old", "var/cache/ldconfig/aux-cache",
		"var/lib/apt/lists/*", "var/lib/dpkg/*-old", "var/log/*.log", "var/log/apt/*", "etc/*-",
	} {
		paths, err := filepath.Glob(filepath.Join(target, pattern))
		if err != nil {
			return err
		}
		for _, p := range paths {
			if err := rmtree.Remove(p); err != nil {
				return err
			}
		}
	}
	return nil
}

const debianProfile = `# Colours for interactive shells.
if [ -n "$BASH_VERSION" ] && [ -n "$PS1" ]; then
	PS1='\[\e[1;32m\]\u@\h\[\e[0m\]:\[\e[1;34m\]\w\[\e[0m\]\$ '
	alias ls='ls --color=auto' ll='ls -l'
fi
`

// debianSources is the sources.list of a suite, always at Debian's own mirror: the host's may be reachable from
// the host only.
func debianSources(suite string) string {
	lines := "deb " + debianMirror + " " + suite + " main\n"
	switch suite {
	case "sid", "unstable", "experimental":
	default:
		lines += "deb " + debianMirror + " " + suite + "-updates main\n" +
			"deb " + debianMirror + "-security " + suite + "-security main\n"
	}
	return lines
}

// hostMirror finds the mirror that the host itself installs Debian from, in apt's configuration directory.
func hostMirror(apt string) string {
	files := []string{filepath.Join(apt, "sources.list")}
	for _, pattern := range []string{"*.sources", "*.list"} {
		more, _ := filepath.Glob(filepath.Join(apt, "sources.list.d", pattern))
		files = append(files, more...)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for _, line := range strings.Split(string(data), "\n") {
			fields := strings.Fields(line)
			if len(fields) < 2 || fields[0] != "deb" && fields[0] != "URIs:" {
				continue
			}
			for _, f := range fields[1:] {
				uri := strings.TrimSuffix(f, "/")
				if strings.HasPrefix(uri, "http") && strings.HasSuffix(uri, "/debian") {
					return uri
				}
			}
		}
	}
	return debianMirror
}
