// Command ping is the ping of the busybox image: busybox' own wants a raw socket, for which root inside lacks CAP_NET_RAW.
// This one uses a datagram socket of ICMP (icmp(7), ping_group_range), as iputils' does, so that every user has it. Its
// options and output are busybox' own, since scripts read them.
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// fallback is busybox' own ping, by the name that the image has it (rootfs/busybox.go): for who may have a raw socket and no
// other, as on the host's network.
const fallback, fallbackName = "/bin/busybox", "pinf"

// options are what was asked for.
type options struct {
	count            int
	interval, linger float64 // seconds
	deadline         float64 // seconds; 0: none
	size, ttl        int     // bytes of payload; 0: the kernel's
	quiet, v4, v6    bool
	host             string
}

func main() { os.Exit(run(os.Args, os.Stdout, os.Stderr)) }

// run is the command; its status is 0 if anybody answered, 1 if not or if it can't be tried.
func run(args []string, out, errs io.Writer) int {
	o, err := parse(args)
	if errors.Is(err, pflag.ErrHelp) {
		return 1
	}
	var answered int
	if err == nil {
		answered, err = o.ping(out)
	}
	if errors.Is(err, unix.EACCES) && mayRaw() {
		err = unix.Exec(fallback, append([]string{fallbackName}, args[1:]...), os.Environ())
	}
	if err != nil {
		fmt.Fprintln(errs, "ping:", err)
	}
	if err != nil || answered == 0 {
		return 1
	}
	return 0
}

func mayRaw() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err == nil {
		unix.Close(fd)
	}
	return err == nil
}

func parse(args []string) (*options, error) {
	o := &options{}
	f := pflag.NewFlagSet("ping", pflag.ContinueOnError)
	f.SortFlags = false
	f.BoolVarP(&o.v4, "ipv4", "4", false, "IPv4 only")
	f.BoolVarP(&o.v6, "ipv6", "6", strings.HasSuffix(args[0], "ping6"), "IPv6 only")
	f.IntVarP(&o.count, "count", "c", 0, "send so many pings")
	f.IntVarP(&o.size, "size", "s", 56, "bytes of data in each")
	f.Float64VarP(&o.interval, "interval", "i", 1, "seconds between them")
	f.IntVarP(&o.ttl, "ttl", "t", 0, "time to live")
	f.Float64VarP(&o.linger, "wait", "W", 10, "seconds to wait for answers after all are sent")
	f.Float64VarP(&o.deadline, "deadline", "w", 0, "seconds until the end")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "only the beginning and the end")
	if err := f.Parse(args[1:]); err != nil {
		return o, err
	}
	switch {
	case f.NArg() != 1:
		return o, errors.New("say which host, and one only (ping --help)")
	case o.size < 0 || o.size > 65507:
		return o, fmt.Errorf("-s %d: want 0 to 65507 bytes", o.size)
	case o.ttl < 0 || o.ttl > 255:
		return o, fmt.Errorf("-t %d: want 1 to 255", o.ttl)
	case !(o.interval >= 0.002) || !(o.linger >= 0) || !(o.deadline >= 0) || o.count < 0:
		return o, errors.New("want seconds and counts that are not negative, and at least 0.002 between pings")
	}
	o.host = f.Arg(0)
	return o, nil
}

// resolve finds the host's address.
func (o *options) resolve() (*net.IPAddr, error) {
	network := "ip"
	if o.v4 {
		network = "ip4"
	} else if o.v6 {
		network = "ip6"
	}
	to, err := net.ResolveIPAddr(network, o.host)
	if err != nil {
		return nil, fmt.Errorf("bad address '%s'", o.host)
	}
	return to, nil
}

// conn is a datagram socket of ICMP: its identifier is the kernel's business, and what arrives on it are answers to what it
// has sent.
type conn struct {
	fd    int
	to    unix.Sockaddr
	v6    bool
	reply byte
}

func (o *options) dial(to *net.IPAddr) (*conn, error) {
	c := &conn{v6: to.IP.To4() == nil}
	family, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if c.v6 {
		family, proto, c.reply = unix.AF_INET6, unix.IPPROTO_ICMPV6, 129
		a := &unix.SockaddrInet6{Addr: [16]byte(to.IP.To16())}
		if i, err := net.InterfaceByName(to.Zone); err == nil {
			a.ZoneId = uint32(i.Index)
		}
		c.to = a
	} else {
		c.to = &unix.SockaddrInet4{Addr: [4]byte(to.IP.To4())}
	}
	var err error
	if c.fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, proto); err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	level, hops, tell := unix.IPPROTO_IP, unix.IP_TTL, unix.IP_RECVTTL
	if c.v6 {
		level, hops, tell = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_RECVHOPLIMIT
	}
	err = unix.SetsockoptInt(c.fd, level, tell, 1)
	if err == nil && o.ttl > 0 {
		err = unix.SetsockoptInt(c.fd, level, hops, o.ttl)
	}
	if err != nil {
		return nil, fmt.Errorf("setsockopt: %w", err)
	}
	return c, nil
}

// send sends one echo request (RFC 792, RFC 4443); checksum and identifier are filled in by the kernel.
func (c *conn) send(seq uint16, size int) error {
	b := make([]byte, 8+size)
	b[0] = 8
	if c.v6 {
		b[0] = 128
	}
	binary.BigEndian.PutUint16(b[6:], seq)
	return unix.Sendto(c.fd, b, 0, c.to)
}

// answer is an echo reply.
type answer struct {
	seq  uint16
	size int // of all of ICMP
	ttl  int // -1: not told
	at   time.Time
	err  error
}

// receive waits for the next answer.
func (c *conn) receive(b []byte) answer {
	control := make([]byte, 128)
	for {
		n, m, _, _, err := unix.Recvmsg(c.fd, b, control, 0)
		a := answer{size: n, ttl: -1, at: time.Now(), err: err}
		if err == unix.EINTR || err == nil && (n < 8 || b[0] != c.reply) {
			continue
		}
		if err != nil {
			return a
		}
		a.seq = binary.BigEndian.Uint16(b[6:])
		messages, _ := unix.ParseSocketControlMessage(control[:m])
		for _, m := range messages {
			told := m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_TTL ||
				m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_HOPLIMIT
			if told && len(m.Data) >= 4 {
				a.ttl = int(binary.NativeEndian.Uint32(m.Data))
			}
		}
		return a
	}
}

// ping asks until it is done, and tells how many have answered.
func (o *options) ping(out io.Writer) (answered int, err error) {
	to, err := o.resolve()
	if err != nil {
		return 0, err
	}
	c, err := o.dial(to)
	if err != nil {
		return 0, err
	}
	fmt.Fprintf(out, "PING %s (%s): %d data bytes\n", o.host, to, o.size)
	answers := make(chan answer)
	go func() {
		b := make([]byte, 1<<16)
		for {
			answers <- c.receive(b)
		}
	}()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, unix.SIGINT)
	var end <-chan time.Time
	if o.deadline > 0 {
		end = time.After(seconds(o.deadline))
	}
	next := time.NewTimer(0)
	s := &score{}
	for more := true; more; {
		select {
		case <-next.C:
			if o.count > 0 && s.sent == o.count { // lingered long enough
				more = false
				break
			}
			s.ask(time.Now())
			if err := c.send(uint16(s.sent-1), o.size); err != nil {
				return 0, fmt.Errorf("sendto: %w", err)
			}
			next.Reset(seconds(o.interval))
			if s.sent == o.count {
				next.Reset(seconds(o.linger))
			}
		case a := <-answers:
			if a.err != nil {
				return 0, fmt.Errorf("recvfrom: %w", a.err)
			}
			line := s.note(a)
			if !o.quiet {
				fmt.Fprintf(out, "%d bytes from %s: %s\n", a.size, to, line)
			}
			more = o.count == 0 || s.received < o.count
		case <-end:
			more = false
		case <-interrupted:
			more = false
		}
	}
	fmt.Fprintf(out, "\n--- %s ping statistics ---\n%s\n", o.host, s)
	return s.received, nil
}

func seconds(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }

// score counts. Sequence numbers come round after 65,536.
type score struct {
	sent, received, twice int
	asked                 [1 << 16]time.Time // zero: answered
	least, most, sum      time.Duration
}

func (s *score) ask(now time.Time) {
	s.asked[uint16(s.sent)] = now
	s.sent++
}

// note takes an answer in and says what is to be said of it.
func (s *score) note(a answer) string {
	line := fmt.Sprintf("seq=%d", a.seq)
	if a.ttl >= 0 {
		line += fmt.Sprintf(" ttl=%d", a.ttl)
	}
	asked := s.asked[a.seq]
	if asked.IsZero() {
		s.twice++
		return line + " (DUP!)"
	}
	s.asked[a.seq] = time.Time{}
	took := a.at.Sub(asked)
	if s.received == 0 || took < s.least {
		s.least = took
	}
	s.most = max(s.most, took)
	s.sum += took
	s.received++
	return fmt.Sprintf("%s time=%.3f ms", line, milliseconds(took))
}

func (s *score) String() string {
	text := fmt.Sprintf("%d packets transmitted, %d packets received, ", s.sent, s.received)
	if s.twice > 0 {
		text += fmt.Sprintf("%d duplicates, ", s.twice)
	}
	if s.sent > 0 {
		text += fmt.Sprintf("%d%% packet loss", (s.sent-s.received)*100/s.sent)
	}
	if s.received > 0 {
		text += fmt.Sprintf("\nround-trip min/avg/max = %.3f/%.3f/%.3f ms", milliseconds(s.least),
			milliseconds(s.sum/time.Duration(s.received)), milliseconds(s.most))
	}
	return text
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
