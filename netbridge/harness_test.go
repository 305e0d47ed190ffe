package netbridge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The tests run in a network namespace of their own: the test binary starts itself again in a fresh one, which plays
// the host. Nothing here touches the machine's network.
func TestMain(m *testing.M) {
	if role := os.Getenv("NETBRIDGE_TEST_ROLE"); role != "" {
		os.Exit(playRole(role))
	}
	if os.Getenv("NETBRIDGE_TEST_HOST") == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), "NETBRIDGE_TEST_HOST=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
		runtime.LockOSThread() // Pdeathsig is the thread's
		err := cmd.Run()
		var exit *exec.ExitError
		switch {
		case errors.As(err, &exit):
			os.Exit(exit.ExitCode())
		case err != nil:
			fmt.Fprintln(os.Stderr, "start the tests in a network namespace (they need root):", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if err := buildWorld(); err != nil {
		fmt.Fprintln(os.Stderr, "build the test network:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// The test network: this namespace is a host with the uplink eth0; behind it is "outside", which has a
// public address, a private one, a resolver and a metadata service.
var outside *os.File

const (
	hostAddress     = "203.0.113.2"
	outsideAddress  = "203.0.113.1" // in the uplink's own subnet
	publicAddress   = "198.51.100.80"
	privateAddress  = "10.9.9.9"
	resolverAddress = "10.255.255.53"
	metadataAddress = "169.254.169.254"
	uplinkMTU       = 1400
)

func buildWorld() error {
	if err := command("ip", "link", "set", "lo", "up"); err != nil {
		return err
	}
	var err error
	if outside, err = scratchNetns(); err != nil {
		return err
	}
	for _, line := range []string{
		"link add eth0 mtu 1400 type veth peer name eth0 mtu 1400 netns /proc/self/fd/3",
		"addr add " + hostAddress + "/24 dev eth0",
		"link set eth0 up",
		"route add default via " + outsideAddress,
	} {
		if err := ipIn(nil, line); err != nil {
			return err
		}
	}
	for _, line := range []string{
		"link set lo up", "link set eth0 up", "addr add " + outsideAddress + "/24 dev eth0",
		"addr add " + publicAddress + "/32 dev lo", "addr add " + privateAddress + "/32 dev lo",
		"addr add " + resolverAddress + "/32 dev lo", "addr add " + metadataAddress + "/32 dev lo",
	} {
		if err := ipIn(outside, line); err != nil {
			return err
		}
	}
	return nil
}

// ipIn runs ip(8); descriptor 3 is the outside's namespace.
func ipIn(ns *os.File, line string) error {
	return in(ns, func() error { return command("ip", strings.Fields(line)...) })
}

func command(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	if outside != nil {
		cmd.ExtraFiles = []*os.File{outside}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

func output(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// in runs f in a namespace; nil is the host's.
func in(ns *os.File, f func() error) error {
	if ns == nil {
		return f()
	}
	return inNetns(ns, f)
}

func newNetns(t testing.TB) *os.File {
	t.Helper()
	f, err := scratchNetns()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// userNetns is a namespace owned by a user namespace, as an environment's is.
func userNetns(t testing.TB) *os.File {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}},
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	cmd.Process.Kill()
	cmd.Wait()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func testConfig(t testing.TB) Config {
	t.Helper()
	c := DefaultConfig(bridgeName(t), filepath.Join(t.TempDir(), "net"))
	c.Resolvers = []netip.Addr{netip.MustParseAddr(resolverAddress)}
	return c
}

var bridges int

func bridgeName(testing.TB) string {
	bridges++
	return fmt.Sprintf("brtest%d", bridges)
}

func openBridge(t testing.TB, cfg Config) *Bridge {
	t.Helper()
	b, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Destroy(context.Background()); err != nil {
			t.Error(err)
		}
		left := output(t, "ip", "-o", "link")
		if strings.Contains(left, cfg.Name) || strings.Contains(left, portPrefix(cfg.Name)) {
			t.Errorf("links left:\n%s", left)
		}
		if left := output(t, "nft", "list", "tables"); strings.Contains(left, " "+b.cfg.Table+"\n") {
			t.Errorf("tables left:\n%s", left)
		}
	})
	return b
}

func attach(t testing.TB, b *Bridge, id string, o AttachOptions) (*Attachment, *os.File) {
	t.Helper()
	ns := userNetns(t)
	a, err := b.Attach(t.Context(), id, ns, o)
	if err != nil {
		t.Fatal(err)
	}
	return a, ns
}

// serve answers every connection and datagram at the address with the text.
func serve(t testing.TB, ns *os.File, network, address, text string) {
	t.Helper()
	var closer io.Closer
	err := in(ns, func() error {
		if strings.HasPrefix(network, "udp") {
			c, err := net.ListenPacket(network, address)
			if err != nil {
				return err
			}
			closer = c
			go func() {
				buf := make([]byte, 2048)
				for {
					_, from, err := c.ReadFrom(buf)
					if err != nil {
						return
					}
					c.WriteTo([]byte(text), from)
				}
			}()
			return nil
		}
		l, err := net.Listen(network, address)
		if err != nil {
			return err
		}
		closer = l
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				io.WriteString(c, text)
				c.Close()
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closer.Close() })
}

// ask returns what the server at the address says.
func ask(ns *os.File, network, address string, patience time.Duration) (string, error) {
	var c net.Conn
	err := in(ns, func() (err error) {
		c, err = net.DialTimeout(network, address, patience)
		return err
	})
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if strings.HasPrefix(network, "udp") {
		if _, err := c.Write([]byte("?")); err != nil {
			return "", err
		}
		buf := make([]byte, 2048)
		n, err := c.Read(buf)
		return string(buf[:n]), err
	}
	text, err := io.ReadAll(c)
	return string(text), err
}

func mustAnswer(t testing.TB, ns *os.File, network, address, want string) {
	t.Helper()
	got, err := ask(ns, network, address, 5*time.Second)
	for try := 0; try < 2 && err != nil && strings.HasPrefix(network, "udp"); try++ {
		got, err = ask(ns, network, address, 5*time.Second) // datagrams may be lost, and whoever sends them asks again
	}
	if err != nil || got != want {
		t.Errorf("%s %s: got %q, %v; want %q", network, address, got, err, want)
	}
}

func mustNotAnswer(t testing.TB, ns *os.File, network, address string) {
	t.Helper()
	if got, err := ask(ns, network, address, 500*time.Millisecond); err == nil {
		t.Errorf("%s %s answered %q: want it closed", network, address, got)
	}
}

// connectionFrom opens a TCP connection from the namespace to the outside and returns both ends.
func connectionFrom(t testing.TB, ns *os.File) (inside, far net.Conn) {
	t.Helper()
	var l net.Listener
	err := in(outside, func() (err error) {
		l, err = net.Listen("tcp4", publicAddress+":0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = in(ns, func() (err error) {
		inside, err = net.DialTimeout("tcp4", l.Addr().String(), 5*time.Second)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { inside.Close(); far.Close() })
	return inside, far
}

func linkIn(t testing.TB, ns *os.File, name string) netlink.Link {
	t.Helper()
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// playRole is what this binary does when a test starts it as another process of the same host: it attaches fresh
// namespaces to the bridge of NETBRIDGE_TEST_BRIDGE with state in NETBRIDGE_TEST_STATE.
func playRole(role string) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cfg := DefaultConfig(os.Getenv("NETBRIDGE_TEST_BRIDGE"), os.Getenv("NETBRIDGE_TEST_STATE"))
	cfg.Resolvers = []netip.Addr{netip.MustParseAddr(resolverAddress)}
	b, err := Open(context.Background(), cfg)
	if err != nil {
		return fail(err)
	}
	switch role {
	case "attach-ten": // print each address, then keep the namespaces until stdin ends
		for i := range 10 {
			ns, err := scratchNetns()
			if err != nil {
				return fail(err)
			}
			defer ns.Close()
			a, err := b.Attach(context.Background(), fmt.Sprintf("p%d-%d", os.Getpid(), i), ns, AttachOptions{})
			if err != nil {
				return fail(err)
			}
			fmt.Println(a.IP)
		}
		fmt.Println("done")
		io.Copy(io.Discard, os.Stdin)
	case "churn": // until killed
		fmt.Println("ready")
		for i := 0; ; i++ {
			ns, err := scratchNetns()
			if err != nil {
				return fail(err)
			}
			id := fmt.Sprintf("churn-%d", i)
			if _, err := b.Attach(context.Background(), id, ns, AttachOptions{NetUp: 1e8, NetDown: 1e8, Ports: []Port{{HostPort: 8080, Port: 80}}}); err != nil {
				return fail(err)
			}
			if err := b.Detach(context.Background(), id); err != nil {
				return fail(err)
			}
			ns.Close()
		}
	default:
		return fail(fmt.Errorf("unknown role %q", role))
	}
	return 0
}

// otherProcess starts this binary as another process of the same host.
func otherProcess(t testing.TB, b *Bridge, role string) (*exec.Cmd, *bufio.Scanner, io.Closer) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "NETBRIDGE_TEST_ROLE="+role, "NETBRIDGE_TEST_BRIDGE="+b.cfg.Name, "NETBRIDGE_TEST_STATE="+b.cfg.StateDir)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd, bufio.NewScanner(out), in
}
