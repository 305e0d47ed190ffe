package netbridge

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// closedRanges are the IPv4 ranges that are not the Internet (IANA's special-purpose registry, RFC 6890), without
// the documentation ranges, which hide nothing and which test networks use for outside addresses.
var closedRanges = []string{
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.0.0.0/24", "192.88.99.0/24",
	"192.168.0.0/16", "198.18.0.0/15",
}

// neverRanges stay closed whatever is allowed: link-local (cloud metadata), multicast, reserved, broadcast.
var neverRanges = []string{"169.254.0.0/16", "224.0.0.0/3"}

// maxFlows is how many connections one environment may have tracked at once, to the outside and to the host together, and
// as many again that came in by its published ports; beyond it new ones are refused, so that no environment can fill the
// host's connection table, neither by itself nor with somebody's help. nft's count is exact but walks the source's
// connections for every new one, which bounds the figure from above.
const maxFlows = 4096

// rules is the pair of nftables tables, as seen from here: what they hold is derived from Config and the leases.
// A packet passes a fixed number of rules; environments are elements of hash sets only.
type rules struct {
	mu      sync.Mutex     // one batch at a time
	conn    *nftables.Conn // lasting: closing one after deletions waits for an RCU grace period, some 10 ms
	home    *os.File       // the network namespace the tables are in
	ip      *nftables.Table
	bridge  *nftables.Table
	pins    *nftables.Set // ifname . ether . ip: who may send as what, and where
	anyPort *nftables.Set // proto . port : ip . port, on every address of the host
	onePort *nftables.Set // ip . proto . port : ip . port, on one of them
	version string        // name of an empty chain that tells which rules are loaded

	cfg      Config
	prefix   string
	subnet   netip.Prefix
	networks []netip.Prefix // the host's own
	counts   map[string]int // how many rules load puts into each chain, by family and name
}

func newRules(cfg Config, subnet netip.Prefix, networks []netip.Prefix) (*rules, error) {
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open the own network namespace: %w", err)
	}
	r := &rules{
		home:   home,
		ip:     &nftables.Table{Name: cfg.Table, Family: nftables.TableFamilyIPv4},
		bridge: &nftables.Table{Name: cfg.Table, Family: nftables.TableFamilyBridge},
		cfg:    cfg, prefix: portPrefix(cfg.Name), subnet: subnet, networks: networks,
	}
	service := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	r.pins = &nftables.Set{Table: r.bridge, Name: "pins", Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, nftables.TypeIPAddr)}
	r.anyPort = &nftables.Set{Table: r.ip, Name: "published", IsMap: true, Concatenation: true, DataType: service,
		KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)}
	r.onePort = &nftables.Set{Table: r.ip, Name: "published-on", IsMap: true, Concatenation: true, DataType: service,
		KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)}

	text, err := json.Marshal(struct {
		Name               string
		Private            bool
		Allow, Closed, Own []netip.Prefix
		Resolvers          []netip.Addr
		Subnet             netip.Prefix
		Layout             int // raise it when load changes what it writes
	}{cfg.Name, cfg.BlockPrivate, cfg.Allow, prefixes(closedRanges), networks, cfg.Resolvers, subnet, 2})
	if err != nil {
		panic(err) // plain data
	}
	sum := sha256.Sum256(text)
	r.version = "version-" + hex.EncodeToString(sum[:8])
	// Written once to nowhere, to count.
	r.counts = make(map[string]int)
	var nowhere nftables.Conn
	r.bridgeRules(&nowhere)
	if err := r.ipRules(&nowhere); err != nil {
		panic(err) // the sets are constant in kind
	}
	return r, nil
}

// pad puts a value at the start of as many 4-byte registers as it needs.
func pad(v []byte) []byte { return append(slices.Clone(v), make([]byte, (4-len(v)%4)%4)...) }

func name16(s string) []byte { return append([]byte(s), make([]byte, 16-len(s))...) }

func port16(p uint16) []byte { return binary.BigEndian.AppendUint16(nil, p) }

func protoNumber(proto string) byte {
	if proto == "udp" {
		return unix.IPPROTO_UDP
	}
	return unix.IPPROTO_TCP
}

// elements of one attachment, per set.
func (r *rules) elements(a *Attachment) (pin nftables.SetElement, anyPort, onePort []nftables.SetElement) {
	pin = nftables.SetElement{Key: slices.Concat(name16(a.HostIf), pad(a.MAC), a.IP.AsSlice())}
	for _, p := range a.Ports {
		e := nftables.SetElement{
			Key: slices.Concat(pad([]byte{protoNumber(p.Proto)}), pad(port16(p.HostPort))),
			Val: slices.Concat(a.IP.AsSlice(), pad(port16(p.Port))),
		}
		if p.HostIP.IsValid() {
			e.Key = slices.Concat(p.HostIP.AsSlice(), e.Key)
			onePort = append(onePort, e)
		} else {
			anyPort = append(anyPort, e)
		}
	}
	return pin, anyPort, onePort
}

// connection returns the socket, with mu held.
func (r *rules) connection() (*nftables.Conn, error) {
	if r.conn == nil {
		c, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(int(r.home.Fd())))
		if err != nil {
			return nil, fmt.Errorf("nftables socket: %w", err)
		}
		r.conn = c
	}
	return r.conn, nil
}

// hangUp closes the socket, with mu held; the next use opens another.
func (r *rules) hangUp() {
	if r.conn != nil {
		r.conn.CloseLasting()
		r.conn = nil
	}
}

func (r *rules) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hangUp()
	r.home.Close()
}

// batch runs a set of commands as one transaction: all of it or nothing.
func (r *rules) batch(f func(*nftables.Conn) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, err := r.connection()
	if err != nil {
		return err
	}
	if err = f(c); err == nil {
		err = c.Flush()
	}
	if err != nil {
		r.hangUp() // commands or answers of the failed batch may be left in it
	}
	return err
}

// add admits an attachment. It fails as a whole if the tables are not there.
func (r *rules) add(a *Attachment) error { return r.change(a, (*nftables.Conn).SetAddElements) }

// remove takes an attachment back. It fails as a whole if an element is not there.
func (r *rules) remove(a *Attachment) error { return r.change(a, (*nftables.Conn).SetDeleteElements) }

func (r *rules) change(a *Attachment, op func(*nftables.Conn, *nftables.Set, []nftables.SetElement) error) error {
	pin, anyPort, onePort := r.elements(a)
	return r.batch(func(c *nftables.Conn) error {
		if err := op(c, r.pins, []nftables.SetElement{pin}); err != nil {
			return err
		}
		if len(anyPort) > 0 {
			if err := op(c, r.anyPort, anyPort); err != nil {
				return err
			}
		}
		if len(onePort) > 0 {
			return op(c, r.onePort, onePort)
		}
		return nil
	})
}

// load replaces both tables by fresh ones with these attachments, in one transaction.
func (r *rules) load(all []*Attachment) error {
	var pins, anyPort, onePort []nftables.SetElement
	for _, a := range all {
		pin, x, y := r.elements(a)
		pins, anyPort, onePort = append(pins, pin), append(anyPort, x...), append(onePort, y...)
	}
	err := r.batch(func(c *nftables.Conn) error {
		for _, t := range []*nftables.Table{r.ip, r.bridge} {
			c.AddTable(t) // so that there is one to delete
			c.DelTable(t)
			c.AddTable(t)
		}
		c.AddChain(&nftables.Chain{Name: r.version, Table: r.ip})
		for set, elements := range map[*nftables.Set][]nftables.SetElement{r.pins: nil, r.anyPort: nil, r.onePort: nil} {
			set.ID = 0
			if err := c.AddSet(set, elements); err != nil {
				return err
			}
		}
		for _, s := range []struct {
			set      *nftables.Set
			elements []nftables.SetElement
		}{{r.pins, pins}, {r.anyPort, anyPort}, {r.onePort, onePort}} {
			// A netlink attribute is at most 64 KiB long.
			for part := range slices.Chunk(s.elements, 256) {
				if err := c.SetAddElements(s.set, part); err != nil {
					return err
				}
			}
		}
		r.bridgeRules(c)
		return r.ipRules(c)
	})
	if err != nil {
		return fmt.Errorf("load nftables rules: %w", err)
	}
	return nil
}

func chainKey(t *nftables.Table, chain string) string { return fmt.Sprintf("%d/%s", t.Family, chain) }

// loaded tells whether the kernel holds these rules with just these attachments. It compares the version, the number
// of rules in each chain and every element: not each rule's text, which only somebody who means it would change.
func (r *rules) loaded(all []*Attachment) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, err := r.connection()
	if err != nil {
		return false
	}
	if _, err := c.ListChain(r.ip, r.version); err != nil {
		return false
	}
	for _, t := range []*nftables.Table{r.ip, r.bridge} {
		for key, want := range r.counts {
			name, ok := strings.CutPrefix(key, chainKey(t, ""))
			if !ok {
				continue
			}
			if have, err := c.GetRules(t, &nftables.Chain{Name: name}); err != nil || len(have) != want {
				return false
			}
		}
	}
	want := map[*nftables.Set]map[string]bool{r.pins: {}, r.anyPort: {}, r.onePort: {}}
	for _, a := range all {
		pin, anyPort, onePort := r.elements(a)
		want[r.pins][string(pin.Key)] = true
		for _, e := range anyPort {
			want[r.anyPort][string(e.Key)+string(e.Val)] = true
		}
		for _, e := range onePort {
			want[r.onePort][string(e.Key)+string(e.Val)] = true
		}
	}
	for set, elements := range want {
		have, err := c.GetSetElements(set)
		if err != nil || len(have) != len(elements) {
			return false
		}
		for _, e := range have {
			if !elements[string(e.Key)+string(e.Val)] {
				return false
			}
		}
	}
	return true
}

// bridgeRules pin every port of ours to one MAC and one IPv4 address, in ARP too, and pass nothing else. Ports
// of other bridges return at the first rule.
func (r *rules) bridgeRules(c *nftables.Conn) {
	in := c.AddChain(&nftables.Chain{Name: "prerouting", Table: r.bridge, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(-300)})
	fwd := c.AddChain(&nftables.Chain{Name: "forward", Table: r.bridge, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
	rule := r.adder(c, r.bridge)

	rule(in, ifNameStarts(expr.MetaKeyIIFNAME, expr.CmpOpNeq, r.prefix), accept)
	rule(in, etherType(unix.ETH_P_IP), loadName(expr.MetaKeyIIFNAME, 1),
		load(expr.PayloadBaseLLHeader, 6, 6, 12), load(expr.PayloadBaseNetworkHeader, 12, 4, 14), inSet(r.pins), accept)
	// ARP for Ethernet and IPv4 (RFC 826); the sender of frame and message must be the same and the pinned one.
	rule(in, etherType(unix.ETH_P_ARP),
		load(expr.PayloadBaseNetworkHeader, 0, 6, 1), equal([]byte{0, 1, 8, 0, 6, 4}),
		loadName(expr.MetaKeyIIFNAME, 1), load(expr.PayloadBaseLLHeader, 6, 6, 12), load(expr.PayloadBaseNetworkHeader, 14, 4, 14), inSet(r.pins),
		loadName(expr.MetaKeyIIFNAME, 1), load(expr.PayloadBaseNetworkHeader, 8, 6, 12), load(expr.PayloadBaseNetworkHeader, 14, 4, 14), inSet(r.pins), accept)
	rule(in, drop)

	// Isolated ports do this already; two locks are better than one.
	rule(fwd, ifNameStarts(expr.MetaKeyIIFNAME, expr.CmpOpEq, r.prefix), drop)
	rule(fwd, ifNameStarts(expr.MetaKeyOIFNAME, expr.CmpOpEq, r.prefix), drop)
}

// ipRules decide what reaches the host, the outside and the environments.
func (r *rules) ipRules(c *nftables.Conn) error {
	base := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Name: name, Table: r.ip, Type: kind, Hooknum: hook, Priority: prio})
	}
	pre := base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	out := base("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	post := base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	input := base("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter)
	forward := base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	from := c.AddChain(&nftables.Chain{Name: "from-environment", Table: r.ip})
	to := c.AddChain(&nftables.Chain{Name: "to-environment", Table: r.ip})
	counted := c.AddChain(&nftables.Chain{Name: "counted", Table: r.ip})

	resolvers := &nftables.Set{Table: r.ip, Name: "resolvers", KeyType: nftables.TypeIPAddr}
	var servers []nftables.SetElement
	for _, a := range r.cfg.Resolvers {
		if a = a.Unmap(); a.Is4() {
			servers = append(servers, nftables.SetElement{Key: a.AsSlice()})
		}
	}
	never := &nftables.Set{Table: r.ip, Name: "never", KeyType: nftables.TypeIPAddr, Interval: true}
	allowed := &nftables.Set{Table: r.ip, Name: "allowed", KeyType: nftables.TypeIPAddr, Interval: true}
	closed := &nftables.Set{Table: r.ip, Name: "closed", KeyType: nftables.TypeIPAddr, Interval: true}
	var closedNow []netip.Prefix
	if r.cfg.BlockPrivate {
		closedNow = append(prefixes(closedRanges), r.networks...)
	}
	for _, s := range []struct {
		set      *nftables.Set
		elements []nftables.SetElement
	}{{resolvers, servers}, {never, intervals(prefixes(neverRanges))}, {allowed, intervals(r.cfg.Allow)}, {closed, intervals(closedNow)}} {
		if err := c.AddSet(s.set, s.elements); err != nil {
			return err
		}
	}
	flows := &nftables.Set{Table: r.ip, Name: "flows", KeyType: nftables.TypeIPAddr, Dynamic: true, Size: 65535}
	visits := &nftables.Set{Table: r.ip, Name: "visits", KeyType: nftables.TypeIPAddr, Dynamic: true, Size: 65535}
	for _, s := range []*nftables.Set{flows, visits} {
		if err := c.AddSet(s, nil); err != nil {
			return err
		}
	}
	rule := r.adder(c, r.ip)
	bridgeIn, bridgeOut := ifName(expr.MetaKeyIIFNAME, expr.CmpOpEq, r.cfg.Name), ifName(expr.MetaKeyOIFNAME, expr.CmpOpEq, r.cfg.Name)

	// Published ports answer at the host's addresses, to the host and to the outside; not to environments.
	rule(pre, bridgeIn, accept)
	for _, chain := range []*nftables.Chain{pre, out} {
		rule(chain, localDestination, load(expr.PayloadBaseNetworkHeader, 16, 4, 1), loadProto(9), load(expr.PayloadBaseTransportHeader, 2, 2, 10),
			fromMap(r.onePort), redirectTo)
		rule(chain, localDestination, loadProto(1), load(expr.PayloadBaseTransportHeader, 2, 2, 9), fromMap(r.anyPort), redirectTo)
	}
	rule(post, ifName(expr.MetaKeyOIFNAME, expr.CmpOpNeq, r.cfg.Name), source(r.subnet), masquerade)
	// The host itself by 127.0.0.1: an environment can't answer to a loopback address.
	rule(post, bridgeOut, source(netip.MustParsePrefix("127.0.0.0/8")), masquerade)

	// To the host: answers, and DNS if the resolver is the host itself. An echo of the gateway is all else.
	rule(input, ifName(expr.MetaKeyIIFNAME, expr.CmpOpNeq, r.cfg.Name), accept)
	rule(input, ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept)
	for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		rule(input, loadDestination, member(resolvers), service(proto, 53), goTo(counted))
	}
	rule(input, loadDestination, equal(r.subnet.Addr().Next().AsSlice()), loadProto(1), equal([]byte{unix.IPPROTO_ICMP}),
		load(expr.PayloadBaseTransportHeader, 0, 1, 1), equal([]byte{8}), perSecond(1000), goTo(counted))
	rule(input, reject)

	rule(forward, bridgeIn, jump(from))
	rule(forward, bridgeOut, jump(to))

	rule(from, ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), goTo(to))
	rule(from, ctState(expr.CtStateBitINVALID), drop)
	rule(from, bridgeOut, reject) // another environment
	rule(from, loadDestination, member(never), reject)
	rule(from, loadSource, tooMany(flows), reject)
	for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		rule(from, loadDestination, member(resolvers), service(proto, 53), accept)
	}
	rule(from, loadDestination, member(allowed), accept)
	rule(from, loadDestination, member(closed), reject)

	rule(to, ifName(expr.MetaKeyOIFNAME, expr.CmpOpNeq, r.cfg.Name), accept)
	rule(to, ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept)
	rule(to, ctPublished, loadDestination, tooMany(visits), drop)
	rule(to, ctPublished, accept)
	rule(to, drop) // routed here past the published ports

	rule(counted, loadSource, tooMany(flows), reject)
	rule(counted, accept)
	return nil
}

// The vocabulary of the rules above.

type exprs []expr.Any

func (r *rules) adder(c *nftables.Conn, t *nftables.Table) func(*nftables.Chain, ...exprs) {
	for key := range r.counts {
		if strings.HasPrefix(key, chainKey(t, "")) {
			delete(r.counts, key)
		}
	}
	return func(chain *nftables.Chain, parts ...exprs) {
		r.counts[chainKey(t, chain.Name)]++
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: slices.Concat(parts...)})
	}
}

var (
	accept     = exprs{&expr.Verdict{Kind: expr.VerdictAccept}}
	drop       = exprs{&expr.Verdict{Kind: expr.VerdictDrop}}
	reject     = exprs{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 13}} // administratively prohibited, RFC 1812
	masquerade = exprs{&expr.Masq{}}

	loadSource      = load(expr.PayloadBaseNetworkHeader, 12, 4, 1)
	loadDestination = load(expr.PayloadBaseNetworkHeader, 16, 4, 1)

	localDestination = exprs{&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)}}
	redirectTo       = exprs{&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 9}}
	ctPublished      = exprs{&expr.Ct{Key: expr.CtKeySTATUS, Register: 1}, bit(1 << 5 /* IPS_DST_NAT */), nonZero}
	nonZero          = &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)}
)

func jump(to *nftables.Chain) exprs {
	return exprs{&expr.Verdict{Kind: expr.VerdictJump, Chain: to.Name}}
}

func goTo(to *nftables.Chain) exprs {
	return exprs{&expr.Verdict{Kind: expr.VerdictGoto, Chain: to.Name}}
}

// tooMany counts the connection for the address that was loaded, and holds where it is one more than may be.
func tooMany(set *nftables.Set) exprs {
	return exprs{&expr.Dynset{SrcRegKey: 1, SetName: set.Name, SetID: set.ID, Operation: unix.NFT_DYNSET_OP_ADD,
		Exprs: []expr.Any{&expr.Connlimit{Count: maxFlows, Flags: expr.NFT_CONNLIMIT_F_INV}}}}
}

func bit(mask uint32) expr.Any {
	return &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4)}
}

func ctState(bits uint32) exprs {
	return exprs{&expr.Ct{Key: expr.CtKeySTATE, Register: 1}, bit(bits), nonZero}
}

func load(base expr.PayloadBase, offset, length, register uint32) exprs {
	return exprs{&expr.Payload{OperationType: expr.PayloadLoad, DestRegister: register, Base: base, Offset: offset, Len: length}}
}

func loadName(key expr.MetaKey, register uint32) exprs {
	return exprs{&expr.Meta{Key: key, Register: register}}
}

func loadProto(register uint32) exprs {
	return exprs{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register}}
}

func equal(v []byte) exprs { return exprs{&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: v}} }

func ifName(key expr.MetaKey, op expr.CmpOp, name string) exprs {
	return exprs{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: name16(name)}}
}

func ifNameStarts(key expr.MetaKey, op expr.CmpOp, prefix string) exprs {
	return exprs{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: []byte(prefix)}}
}

func etherType(t uint16) exprs {
	return exprs{&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: port16(t)}}
}

func inSet(s *nftables.Set) exprs {
	return exprs{&expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID}}
}

func member(s *nftables.Set) exprs { return inSet(s) }

func fromMap(s *nftables.Set) exprs {
	return exprs{&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: s.Name, SetID: s.ID}}
}

func service(proto byte, port uint16) exprs {
	return slices.Concat(loadProto(1), equal([]byte{proto}), load(expr.PayloadBaseTransportHeader, 2, 2, 1), equal(port16(port)))
}

func perSecond(n uint64) exprs {
	return exprs{&expr.Limit{Type: expr.LimitTypePkts, Rate: n, Unit: expr.LimitTimeSecond, Burst: uint32(n)}}
}

func source(p netip.Prefix) exprs {
	mask := make([]byte, 4)
	binary.BigEndian.PutUint32(mask, ^uint32(0)<<(32-p.Bits()))
	return slices.Concat(load(expr.PayloadBaseNetworkHeader, 12, 4, 1),
		exprs{&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)}}, equal(p.Masked().Addr().AsSlice()))
}

func prefixes(text []string) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range text {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

// intervals turns prefixes, which may contain each other or touch, into the ordered, disjoint half-open ranges an
// nftables interval set wants. One that ends at the end of the address space has no end element.
func intervals(ps []netip.Prefix) []nftables.SetElement {
	type span struct{ from, to uint64 }
	var spans []span
	for _, p := range ps {
		from := uint64(binary.BigEndian.Uint32(p.Masked().Addr().AsSlice()))
		spans = append(spans, span{from, from + 1<<(32-p.Bits())})
	}
	slices.SortFunc(spans, func(a, b span) int {
		switch {
		case a.from < b.from:
			return -1
		case a.from > b.from:
			return 1
		}
		return 0
	})
	var merged []span
	for _, s := range spans {
		if n := len(merged); n > 0 && s.from <= merged[n-1].to {
			merged[n-1].to = max(merged[n-1].to, s.to)
			continue
		}
		merged = append(merged, s)
	}
	var out []nftables.SetElement
	for _, s := range merged {
		out = append(out, nftables.SetElement{Key: binary.BigEndian.AppendUint32(nil, uint32(s.from))})
		if s.to < 1<<32 {
			out = append(out, nftables.SetElement{Key: binary.BigEndian.AppendUint32(nil, uint32(s.to)), IntervalEnd: true})
		}
	}
	return out
}
