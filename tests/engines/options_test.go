package engines

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPodmanOptions goes through what podman run can ask of a runtime, each by what is to be seen inside.
func TestPodmanOptions(t *testing.T) {
	withImage(t)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"vol/file": "outside\n",
		"no-mkdir.json": `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
			{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}`,
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// No driver has this number: whoever may open it is told so, who may not is told that.
	if err := unix.Mknod(dir+"/nobody", unix.S_IFCHR|0o666, int(unix.Mkdev(239, 77))); err != nil {
		t.Fatal(err)
	}
	ours := func(ns string) string {
		link, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		return strings.NewReplacer("[", `\[`, "]", `\]`).Replace("^" + link + "$")
	}
	hostname, _ := os.Hostname()
	for _, c := range []struct {
		name    string
		options string // separated by spaces
		script  string
		code    int
		says    []string
	}{
		{"--init reaps for a program that does not", "--init --init-path /usr/bin/tini-static", "tr '\\0' ' ' </proc/1/cmdline", 0, []string{"^/(run/podman|dev)[-/]init -- sh -c"}},
		{"--read-only is, but for the usual places", "--read-only", "touch /tmp/x /run/x /dev/shm/x && touch /x", 1, []string{"^touch: /x: Read-only file system"}},
		{"--read-only --read-only-tmpfs=false is everywhere", "--read-only --read-only-tmpfs=false", "touch /tmp/x", 1, []string{"/tmp/x: Read-only file system"}},
		{"--cap-drop all leaves no capability", "--cap-drop all", "grep Cap /proc/self/status", 0,
			[]string{`CapEff:\s+0{16}`, `CapBnd:\s+0{16}`, `CapPrm:\s+0{16}`, `CapAmb:\s+0{16}`}},
		{"--cap-add gives that one", "--cap-drop all --cap-add net_admin", "grep Cap /proc/self/status", 0, []string{`CapEff:\s+0{12}1000$`, `CapBnd:\s+0{12}1000$`}},
		{"--user keeps no capability", "--user 1000:1000 --group-add 7", "id; grep Cap /proc/self/status", 0,
			[]string{`uid=1000\(user\) gid=1000\(user\) groups=7,1000`, `CapEff:\s+0{16}`}},
		{"--privileged may all, and sees devices", "--privileged", "grep Seccomp: /proc/self/status; ls /dev | wc -l; mount -t tmpfs x /tmp && echo mounted", 0, []string{`Seccomp:\s+0`, "^mounted$"}},
		{"the default profile filters", "", "grep Seccomp: /proc/self/status; unshare -m true", 1, []string{`Seccomp:\s+2`, "not permitted"}},
		{"--security-opt seccomp=unconfined does not", "--security-opt seccomp=unconfined", "grep Seccomp: /proc/self/status", 0, []string{`Seccomp:\s+0`}},
		{"--security-opt seccomp=FILE is obeyed", "--security-opt seccomp=" + dir + "/no-mkdir.json", "mkdir /tmp/d", 1, []string{"Function not implemented"}},
		{"--security-opt no-new-privileges", "--security-opt no-new-privileges", "grep NoNewPrivs /proc/self/status", 0, []string{`NoNewPrivs:\s+1`}},
		{"--security-opt mask and unmask", "--security-opt unmask=/proc/keys --security-opt mask=/etc/group", "head -c1 /proc/keys | wc -c; wc -c </etc/group", 0, []string{"^1$", "^0$"}},
		{"what is masked is empty", "", "cat /proc/keys /proc/timer_list | wc -c; ls /sys/firmware | wc -l", 0, []string{"^0\n0$"}},
		{"--device lends a device", "--device " + dir + "/nobody:/dev/lent:r", "cat /dev/lent; echo x >/dev/lent", 1,
			[]string{"/dev/lent'?: No such device or address", "can't create /dev/lent: Operation not permitted"}},
		{"a device that was not lent can't be opened", "", "mknod /dev/kernel c 1 11 && head -c1 /dev/kernel", 1, []string{"not permitted"}},
		{"--tmpfs is of its size, and has what it covers", "--tmpfs /data:size=1m", "cat /data/there; dd if=/dev/zero of=/data/x bs=1M count=2", 1,
			[]string{"^from the image$", "No space left"}},
		{"--shm-size", "--shm-size 2m", "df -k /dev/shm", 0, []string{`shm +2048 `}},
		{"--network none has a loopback and nothing else", "--network none", "ip -o addr; ls /sys/class/net", 0, []string{"inet 127.0.0.1/8", "^lo$"}},
		{"--network host is the host's", "--network host", "readlink /proc/self/ns/net", 0, []string{ours("net")}},
		{"--pid host is the host's", "--pid host", "readlink /proc/self/ns/pid", 0, []string{ours("pid")}},
		{"--ipc host is the host's", "--ipc host", "readlink /proc/self/ns/ipc", 0, []string{ours("ipc")}},
		{"--uts host is the host's", "--uts host", "readlink /proc/self/ns/uts; hostname", 0, []string{ours("uts"), "^" + hostname + "$"}},
		{"--hostname", "--hostname there", "hostname; cat /etc/hostname", 0, []string{"^there\nthere$"}},
		{"-v is read-only if asked", "-v " + dir + "/vol:/v:rslave,ro", "cat /v/file; touch /v/x", 1, []string{"^outside$", "Read-only file system"}},
		{"-v takes mount options and propagation", "-v " + dir + "/vol:/v:rslave,nosuid,nodev,noexec", "grep ' /v ' /proc/self/mountinfo", 0, []string{` /v rw,nosuid,nodev,noexec,relatime `}},
		{"--mount type=tmpfs", "--mount type=tmpfs,destination=/t,tmpfs-size=1m,tmpfs-mode=0700", "stat -c %a /t; df -k /t", 0, []string{"^700$", `tmpfs +1024 `}},
		{"--sysctl of the container's namespaces", "--sysctl net.ipv4.ip_forward=0 --sysctl kernel.msgmax=5000", "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax", 0, []string{"^0\n5000$"}},
		{"--ulimit", "--ulimit nofile=123:456 --ulimit nproc=100:100", "ulimit -n; ulimit -Hn", 0, []string{"^123\n456$"}},
		{"--oom-score-adj", "--oom-score-adj 500", "cat /proc/self/oom_score_adj", 0, []string{"^500$"}},
		{"--cgroupns private shows the root", "--cgroupns private", "grep -v ':/$' /proc/self/cgroup; true", 0, []string{`\A\z`}},
		{"--cgroupns host shows where it is", "--cgroupns host", "cat /proc/self/cgroup", 0, []string{`:/libpod_parent/libpod-`}},
		{"--cpus, --cpu-shares and --cpuset-cpus", "--cpus 0.5 --cpu-shares 512 --cpuset-cpus 0", "cd /sys/fs/cgroup; cat cpu.max cpuset.cpus cpu/cpu.cfs_quota_us cpuset/cpuset.cpus 2>/dev/null; nproc", 0,
			[]string{"^50000( 100000)?\n0\n1$"}},
		{"--env, --workdir and --umask", "--env A=b --workdir /data --umask 027", "echo $A; pwd; umask", 0, []string{"^b\n/data\n0027$"}},
		{"--systemd=always has the file systems that systemd wants", "--systemd=always", "mount", 0, []string{" on /run type tmpfs", " on /tmp type tmpfs", " on /run/lock type tmpfs"}},
		{"--entrypoint", "--entrypoint /bin/echo", "said", 0, []string{`^sh -c said$`}},
		{"--preserve-fds", "--preserve-fds 0", "ls /proc/self/fd | wc -l", 0, []string{"^4$"}},
		{"--log-driver none", "--log-driver none", "echo said", 0, []string{"^said$"}},
		{"--timeout ends it", "--timeout 1", "exec sleep 1000", 255, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			args := append([]string{"run", "--rm"}, strings.Fields(c.options)...)
			r := podman(t, append(args, image, "sh", "-c", c.script)...)
			r.says(t, c.says...)
			r.status(t, c.code)
		})
	}
}
