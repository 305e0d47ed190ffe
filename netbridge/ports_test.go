package netbridge

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
)

func TestPublishedPorts(t *testing.T) {
	b := openBridge(t, testConfig(t))
	loopback := netip.MustParseAddr("127.0.0.1")
	a, nsA := attach(t, b, "env-a", AttachOptions{Ports: []Port{
		{HostPort: 8080, Port: 80}, {HostPort: 8080, Port: 81, Proto: "udp"}, {HostIP: loopback, HostPort: 2222, Port: 22, Proto: "tcp"},
		{HostIP: netip.MustParseAddr(hostAddress), HostPort: 2223, Port: 22, Proto: "tcp"},
	}})
	_, nsB := attach(t, b, "env-b", AttachOptions{})
	serve(t, nsA, "tcp4", a.IP.String()+":80", "web")
	serve(t, nsA, "udp4", a.IP.String()+":81", "time")
	serve(t, nsA, "tcp4", a.IP.String()+":22", "shell")

	mustAnswer(t, outside, "tcp4", hostAddress+":8080", "web")
	mustAnswer(t, outside, "udp4", hostAddress+":8080", "time")
	for _, own := range []string{"127.0.0.1", hostAddress, "127.1.2.3", a.Gateway.String()} {
		mustAnswer(t, nil, "tcp4", own+":8080", "web")
		mustAnswer(t, nil, "udp4", own+":8080", "time")
	}
	mustAnswer(t, nil, "tcp4", "127.0.0.1:2222", "shell")
	mustNotAnswer(t, nil, "tcp4", hostAddress+":2222")
	mustNotAnswer(t, outside, "tcp4", hostAddress+":2222")
	mustAnswer(t, outside, "tcp4", hostAddress+":2223", "shell")
	mustNotAnswer(t, nil, "tcp4", "127.0.0.1:2223")

	// Environments are kept out, the publishing one too.
	for _, ns := range []*os.File{nsA, nsB} {
		mustNotAnswer(t, ns, "tcp4", hostAddress+":8080")
		mustNotAnswer(t, ns, "tcp4", a.Gateway.String()+":8080")
	}
	// Knowing the address is not enough: only published ports are open to the outside.
	if err := ipIn(outside, "route add "+b.subnet.String()+" via "+hostAddress); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ipIn(outside, "route del "+b.subnet.String()) })
	mustNotAnswer(t, outside, "tcp4", a.IP.String()+":80")

	if err := b.Detach(t.Context(), "env-a"); err != nil {
		t.Fatal(err)
	}
	mustNotAnswer(t, outside, "tcp4", hostAddress+":8080")
	mustNotAnswer(t, nil, "tcp4", "127.0.0.1:2222")
	if !b.rules.loaded([]*Attachment{mustAttachment(t, b, "env-b")}) {
		t.Errorf("elements are left:\n%s", output(t, "nft", "list", "ruleset"))
	}
}

func TestPortConflicts(t *testing.T) {
	b := openBridge(t, testConfig(t))
	loopback, own := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr(hostAddress)
	attach(t, b, "holder", AttachOptions{Ports: []Port{{HostPort: 8080, Port: 80}, {HostIP: loopback, HostPort: 9090, Port: 90}}})
	serve(t, nil, "tcp4", "127.0.0.1:7000", "host")
	serve(t, nil, "udp4", "0.0.0.0:7001", "host")

	try := func(ports ...Port) error {
		_, err := b.Attach(t.Context(), "env-b", newNetns(t), AttachOptions{Ports: ports})
		if err == nil {
			b.Detach(t.Context(), "env-b")
		}
		return err
	}
	for name, c := range map[string]struct {
		port Port
		says []string
	}{
		"same port":           {Port{HostPort: 8080, Port: 1}, []string{"8080/tcp", "holder"}},
		"one address of all":  {Port{HostIP: loopback, HostPort: 8080, Port: 1}, []string{"8080/tcp", "holder"}},
		"all over one":        {Port{HostPort: 9090, Port: 1}, []string{"9090/tcp", "holder"}},
		"host listens":        {Port{HostIP: loopback, HostPort: 7000, Port: 1}, []string{"7000", "host"}},
		"host listens on one": {Port{HostPort: 7000, Port: 1}, []string{"7000", "host"}},
		"host's UDP":          {Port{HostPort: 7001, Port: 1, Proto: "udp"}, []string{"7001", "host"}},
	} {
		err := try(c.port)
		if !errors.Is(err, ErrPortTaken) {
			t.Errorf("%s: %v, want ErrPortTaken", name, err)
			continue
		}
		for _, word := range c.says {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %q does not name %s", name, err, word)
			}
		}
	}
	if err := try(Port{HostPort: 1234, Port: 1}, Port{HostIP: own, HostPort: 1234, Port: 2}); err == nil {
		t.Error("the same host port twice in one request: no error")
	}
	for name, p := range map[string]Port{
		"other protocol": {HostPort: 8080, Port: 1, Proto: "udp"},
		"other address":  {HostIP: own, HostPort: 9090, Port: 1},
		"other port":     {HostPort: 8081, Port: 80},
	} {
		if err := try(p); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := b.Detach(t.Context(), "holder"); err != nil {
		t.Fatal(err)
	}
	if err := try(Port{HostPort: 8080, Port: 1}); err != nil {
		t.Errorf("a port given back: %v", err)
	}
}
