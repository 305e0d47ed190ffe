package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"regexp"
	"sort"
	"strings"
	"time"
)

// embedded holds the image's ping (internal/ping), if `make init` has been run: busybox' own wants a raw socket. The .gitkeep
// beside it lets a fresh clone compile.
//
//go:embed all:embedded
var embedded embed.FS

// busyboxPaths are where distributions put a static busybox.
var busyboxPaths = []string{"/bin/busybox", "/usr/bin/busybox", "/bin/busybox.static", "/usr/lib/busybox/busybox"}

const busyboxHint = "install a static one: apt-get install busybox-static"

// findBusybox returns the host's static busybox.
func findBusybox(paths []string) (string, error) {
	var dynamic string
	for _, p := range paths {
		f, err := elf.Open(p)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("%s is no program: %w; %s", p, err, busyboxHint)
		}
		static := true
		for _, prog := range f.Progs {
			static = static && prog.Type != elf.PT_INTERP
		}
		f.Close()
		if static {
			return p, nil
		}
		dynamic = p
	}
	if dynamic != "" {
		return "", fmt.Errorf("%s is linked dynamically and would not run in an image of its own; %s", dynamic, busyboxHint)
	}
	return "", fmt.Errorf("there is no busybox on this host; %s", busyboxHint)
}

type busyboxFile struct {
	mode    int64
	content string
}

// busyboxFiles returns the image's configuration files. version is busybox' own, e.g. "1.35.0".
func busyboxFiles(version string) map[string]busyboxFile {
	return map[string]busyboxFile{
		"etc/passwd": {0o644, `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
user:x:1000:1000:user:/home/user:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
`},
		"etc/group": {0o644, `root:x:0:
daemon:x:1:
bin:x:2:
tty:x:5:
disk:x:6:
wheel:x:10:root
www-data:x:33:
users:x:100:
user:x:1000:
nogroup:x:65534:
`},
		// No password: nobody can log in by one, which is not how one gets into an environment.
		"etc/shadow": {0o600, `root:*:19000:0:99999:7:::
daemon:*:19000:0:99999:7:::
bin:*:19000:0:99999:7:::
www-data:*:19000:0:99999:7:::
user:*:19000:0:99999:7:::
nobody:*:19000:0:99999:7:::
`},
		"etc/hosts":         {0o644, "127.0.0.1\tlocalhost\n::1\tlocalhost\n"},
		"etc/hostname":      {0o644, "localhost\n"},
		"etc/resolv.conf":   {0o644, ""},
		"etc/nsswitch.conf": {0o644, "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\nprotocols: files\n"},
		"etc/shells":        {0o644, "/bin/sh\n/bin/ash\n"},
		"etc/issue":         {0o644, "BusyBox " + version + "\n"},
		"etc/os-release": {0o644, fmt.Sprintf(`NAME="BusyBox"
ID=busybox
VERSION_ID=%[1]s
PRETTY_NAME="BusyBox %[1]s"
HOME_URL="https://busybox.net/"
`, version)},
		"etc/protocols": {0o644, "ip\t0\tIP\nicmp\t1\tICMP\ntcp\t6\tTCP\nudp\t17\tUDP\nipv6-icmp\t58\tIPv6-ICMP\n"},
		"etc/services": {0o644, `ftp	21/tcp
ssh	22/tcp
telnet	23/tcp
smtp	25/tcp
domain	53/tcp
domain	53/udp
bootps	67/udp
bootpc	68/udp
tftp	69/udp
http	80/tcp
ntp	123/udp
https	443/tcp
`},
		"etc/profile": {0o644, `# Read by login shells, and by every interactive shell through ENV.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PAGER=less
if [ "$(id -u)" = 0 ]; then
	PS1='\[\e[1;32m\]\u@\h\[\e[0m\]:\[\e[1;34m\]\w\[\e[0m\]# '
else
	PS1='\[\e[1;32m\]\u@\h\[\e[0m\]:\[\e[1;34m\]\w\[\e[0m\]$ '
fi
alias ll='ls -l'
alias la='ls -la'
for f in /etc/profile.d/*.sh; do
	[ -r "$f" ] && . "$f"
done
unset f
`},
	}
}

// busyboxDirs are the image's directories and their modes; parents come before what is inside.
var busyboxDirs = []struct {
	name string
	mode int64
	id   int
}{
	{"./", 0o755, 0}, {"bin/", 0o755, 0}, {"dev/", 0o755, 0}, {"etc/", 0o755, 0}, {"etc/profile.d/", 0o755, 0},
	{"home/", 0o755, 0}, {"home/user/", 0o755, 1000}, {"mnt/", 0o755, 0}, {"opt/", 0o755, 0}, {"proc/", 0o555, 0},
	{"root/", 0o700, 0}, {"run/", 0o755, 0}, {"sbin/", 0o755, 0}, {"srv/", 0o755, 0}, {"sys/", 0o555, 0},
	{"tmp/", 0o1777, 0}, {"usr/", 0o755, 0}, {"usr/bin/", 0o755, 0}, {"usr/lib/", 0o755, 0}, {"usr/local/", 0o755, 0},
	{"usr/local/bin/", 0o755, 0}, {"usr/local/sbin/", 0o755, 0}, {"usr/sbin/", 0o755, 0}, {"usr/share/", 0o755, 0},
	{"var/", 0o755, 0}, {"var/cache/", 0o755, 0}, {"var/lib/", 0o755, 0}, {"var/log/", 0o755, 0},
	{"var/spool/", 0o755, 0}, {"var/spool/cron/", 0o755, 0}, {"var/spool/cron/crontabs/", 0o700, 0},
	{"var/tmp/", 0o1777, 0}, {"var/www/", 0o755, 0},
}

var busyboxVersion = regexp.MustCompile(`^BusyBox v([0-9A-Za-z.+~-]+)`)

// hidePing gives busybox' own ping another name in a copy of it: busybox' shell takes an applet before it looks for a program
// (FEATURE_SH_STANDALONE), and this one needs a raw socket. Its table of names must stay sorted, and of that length. A
// busybox with a table of another kind stays as it is.
func hidePing(busybox []byte) []byte {
	names, hidden := []byte("\x00ping\x00ping6\x00"), []byte("\x00pinf\x00pinf6\x00")
	if bytes.Count(busybox, names) != 1 {
		return busybox
	}
	return bytes.Replace(busybox, names, hidden, 1)
}

// busyboxTar returns the layer of the busybox image. The same busybox gives the same bytes.
func busyboxTar(ctx context.Context, program string) (io.Reader, error) {
	data, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	list, err := exec.CommandContext(ctx, program, "--list-full").Output()
	if err != nil {
		return nil, fmt.Errorf("ask %s for its applets: %w", program, err)
	}
	banner, err := exec.CommandContext(ctx, program).Output()
	if err != nil {
		return nil, fmt.Errorf("ask %s for its version: %w", program, err)
	}
	version := "unknown"
	if m := busyboxVersion.FindSubmatch(banner); m != nil {
		version = string(m[1])
	}
	info, err := os.Stat(program)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	add := func(h *tar.Header, content []byte) {
		h.ModTime = info.ModTime().Truncate(time.Second)
		h.Size = int64(len(content))
		if err == nil {
			err = tw.WriteHeader(h)
		}
		if err == nil {
			_, err = tw.Write(content)
		}
	}
	for _, d := range busyboxDirs {
		add(&tar.Header{Typeflag: tar.TypeDir, Name: d.name, Mode: d.mode, Uid: d.id, Gid: d.id}, nil)
	}
	ping, noPing := embedded.ReadFile("embedded/ping")
	if noPing == nil {
		data = hidePing(data)
	}
	add(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, data)
	// A link in /bin for every applet, and one where its own path says, so that scripts find either.
	links := map[string]bool{"bin/busybox": true}
	for _, applet := range strings.Fields(string(list)) {
		applet = path.Clean("/" + applet)[1:]
		for _, name := range []string{applet, "bin/" + path.Base(applet)} {
			if !links[name] && (strings.HasPrefix(name, "bin/") || strings.HasPrefix(name, "sbin/") || strings.HasPrefix(name, "usr/bin/") || strings.HasPrefix(name, "usr/sbin/")) {
				links[name] = true
			}
		}
	}
	delete(links, "bin/busybox")
	if noPing == nil {
		add(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/ping", Mode: 0o755}, ping)
		add(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/ping6", Linkname: "ping", Mode: 0o777}, nil)
		delete(links, "bin/ping")
		delete(links, "bin/ping6")
	}
	for _, name := range sortedKeys(links) {
		add(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: "/bin/busybox", Mode: 0o777}, nil)
	}
	files := busyboxFiles(version)
	for _, name := range sortedKeys(files) {
		f := files[name]
		add(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: f.mode}, []byte(f.content))
	}
	if err == nil {
		err = tw.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("put the busybox image together: %w", err)
	}
	return &buf, nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// busyboxConfig starts an interactive shell that reads /etc/profile.
func busyboxConfig() ImageConfig {
	return ImageConfig{
		Env: []string{
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
			"ENV=/etc/profile",
		},
		Cmd:        []string{"sh"},
		WorkingDir: "/root",
	}
}
