package config

import (
	"errors"
	"fmt"
	"net"
	"net/mail"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

var (
	nodeName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)
	linkName = regexp.MustCompile(`^[a-zA-Z0-9_.-]{1,15}$`) // IFNAMSIZ
)

func (c *Config) check() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf(key+": "+format, args...))
	}
	address := func(key, v string, optional bool) {
		if v == "" && optional {
			return
		}
		if err := checkAddress(v); err != nil {
			bad(key, "%v", err)
		}
	}
	pair := func(section, a, av, b, bv string) {
		if (av == "") != (bv == "") {
			bad(section, "%s and %s belong together: set both or neither", a, b)
		}
	}
	least := func(key string, v, lowest time.Duration) {
		if v < lowest {
			bad(key, "%v is too short, the least is %v", v, lowest)
		}
	}

	if !filepath.IsAbs(c.Common.DataDir) {
		bad("common.dataDir", "%q is not an absolute path", c.Common.DataDir)
	}
	if levels := []string{"debug", "info", "warn", "error"}; !slices.Contains(levels, c.Common.LogLevel) {
		bad("common.logLevel", "%q is none of %s", c.Common.LogLevel, strings.Join(levels, ", "))
	}

	if len(c.Etcd.Addresses) == 0 {
		bad("etcd.addresses", "is empty; name at least one host:port")
	}
	for _, a := range c.Etcd.Addresses {
		if u, err := url.Parse(a); err == nil && strings.Contains(a, "://") {
			switch {
			case u.Scheme == "unix" && u.Path != "":
				continue
			case u.Scheme != "http" && u.Scheme != "https":
				bad("etcd.addresses", "%q: the scheme must be http, https or unix", a)
				continue
			}
			a = u.Host
		}
		address("etcd.addresses", a, false)
	}
	if p := c.Etcd.Prefix; len(p) < 3 || p[0] != '/' || p[len(p)-1] != '/' {
		bad("etcd.prefix", "%q must start and end with \"/\" and have a name between, such as \"/learnos/\"", p)
	}
	pair("etcd", "certFile", c.Etcd.CertFile, "keyFile", c.Etcd.KeyFile)
	if c.Etcd.User == "" && c.Etcd.Password != "" {
		bad("etcd.user", "is empty, but there is a password")
	}

	address("web.webAddr", c.Web.WebAddr, false)
	address("web.sshAddr", c.Web.SSHAddr, true)
	if u, err := url.Parse(c.Web.GatewayURL); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		bad("web.gatewayURL", "%q is no http or https URL such as \"http://127.0.0.1:8010\"", c.Web.GatewayURL)
	}
	for _, o := range c.Web.Origins {
		u, err := url.Parse(o)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.TrimSuffix(o, "/") != u.Scheme+"://"+u.Host {
			bad("web.origins", "%q is no origin such as \"https://learn.example.org\"", o)
		}
	}
	pair("web", "tlsCert", c.Web.TLSCert, "tlsKey", c.Web.TLSKey)

	g := c.Gateway
	address("gateway.addr", g.Addr, false)
	address("gateway.tunnelAddr", g.TunnelAddr, false)
	switch g.Driver {
	case "sqlite":
	case "mysql":
		if g.DSN == "" {
			bad("gateway.dsn", "is empty; mysql needs one such as \"user:password@tcp(127.0.0.1:3306)/learnos\"")
		}
	default:
		bad("gateway.driver", "%q is neither sqlite nor mysql", g.Driver)
	}
	least("gateway.accessTTL", g.AccessTTL, 10*time.Second)
	if g.RefreshTTL < g.AccessTTL {
		bad("gateway.refreshTTL", "%v is shorter than accessTTL %v", g.RefreshTTL, g.AccessTTL)
	}
	if g.MaxEnvironments < 1 {
		bad("gateway.maxEnvironments", "%d is less than 1", g.MaxEnvironments)
	}
	if g.IdleTimeout < 0 {
		bad("gateway.idleTimeout", "%v is negative; 0 lets idle environments stay", g.IdleTimeout)
	}
	least("gateway.defaultLifetime", g.DefaultLifetime, time.Second)
	if g.MaxLifetime < g.DefaultLifetime {
		bad("gateway.maxLifetime", "%v is shorter than defaultLifetime %v", g.MaxLifetime, g.DefaultLifetime)
	}
	address("gateway.smtpAddr", g.SMTPAddr, true)
	if g.SMTPAddr != "" {
		if _, err := mail.ParseAddress(g.SMTPFrom); err != nil {
			bad("gateway.smtpFrom", "%q is no mail address; smtpAddr needs one", g.SMTPFrom)
		}
	}
	if g.RequireCode && g.SMTPAddr == "" {
		bad("gateway.requireCode", "codes go by mail: set smtpAddr too")
	}
	if g.LoginPerMinute < 1 {
		bad("gateway.loginPerMinute", "%d is less than 1", g.LoginPerMinute)
	}
	if g.RegisterPerHour < 1 {
		bad("gateway.registerPerHour", "%d is less than 1", g.RegisterPerHour)
	}

	n := c.Node
	if !nodeName.MatchString(n.Name) {
		bad("node.name", "%q must be 1 to 63 of a-z, 0-9, \"-\" and \".\", starting and ending with a letter or digit", n.Name)
	}
	if !filepath.IsAbs(n.Root) {
		bad("node.root", "%q is not an absolute path", n.Root)
	}
	if n.Reserve < 0 {
		bad("node.reserve", "is negative")
	}
	if n.DiskReserve < 0 {
		bad("node.diskReserve", "is negative")
	}
	if n.DiskOvercommit < 1 || n.DiskOvercommit > 1000 {
		bad("node.diskOvercommit", "%d is not between 1 (promise no more than is free) and 1000", n.DiskOvercommit)
	}
	if n.MaxEnvironments < 0 {
		bad("node.maxEnvironments", "%d is negative; 0 means as many as memory allows", n.MaxEnvironments)
	}
	if n.Spares < 0 || n.Spares > maxSpares {
		bad("node.spares", "%d is not between 0 (none) and %d", n.Spares, maxSpares)
	}
	if n.Bridge != "" && !linkName.MatchString(n.Bridge) {
		bad("node.bridge", "%q must be 1 to 15 letters, digits, \"-\", \"_\" and \".\"", n.Bridge)
	}
	if n.Subnet != "" {
		if p, err := netip.ParsePrefix(n.Subnet); err != nil || !p.Addr().Is4() || p.Bits() > 29 || p.Masked() != p {
			bad("node.subnet", "%q is no IPv4 network of at least 8 addresses such as \"10.64.0.0/16\"", n.Subnet)
		}
	}
	return errors.Join(errs...)
}

// maxSpares bounds what a slip of the finger can cost: each takes 1.5 MiB and an address.
const maxSpares = 256

func checkAddress(a string) error {
	host, port, err := net.SplitHostPort(a)
	if err != nil {
		return fmt.Errorf("%q is no address; write host:port, for example \"127.0.0.1:8010\"", a)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q: port %q is not a number from 0 to 65535", a, port)
	}
	if strings.ContainsAny(host, " /@") {
		return fmt.Errorf("%q: %q is no host", a, host)
	}
	return nil
}
