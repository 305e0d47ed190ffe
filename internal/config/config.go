// Package config reads the one configuration file that all of Learnos' programs share.
//
// The file is TOML with a section for each program. Values come from, each over the one before: the defaults,
// the file, environment variables LEARNOS_<SECTION>_<KEY>, and the overrides a program passes to Load (its
// flags). Whatever is unknown or makes no sense is an error that names the key; nothing is guessed.
//
// It knows no other package, opens no connection and watches nothing: a change needs a restart.
package config

import "time"

// Config is the whole file.
type Config struct {
	Common  Common  `toml:"common"`
	Etcd    Etcd    `toml:"etcd"`
	Web     Web     `toml:"web"`
	Gateway Gateway `toml:"gateway"`
	Node    Node    `toml:"node"`
}

// Common is what every program reads.
type Common struct {
	DataDir  string `toml:"dataDir"`  // absolute; also LEARNOS_ROOT
	LogLevel string `toml:"logLevel"` // debug, info, warn or error
}

// Etcd says how to reach etcd.
type Etcd struct {
	Addresses []string `toml:"addresses"` // host:port, or URLs with http, https or unix
	User      string   `toml:"user"`
	Password  string   `toml:"password"`
	Prefix    string   `toml:"prefix"` // of every key; starts and ends with "/"
	CAFile    string   `toml:"caFile"` // any of the three files turns TLS on
	CertFile  string   `toml:"certFile"`
	KeyFile   string   `toml:"keyFile"`
}

// Web is the panel and the SSH front door.
type Web struct {
	WebAddr    string   `toml:"webAddr"`    // host:port
	SSHAddr    string   `toml:"sshAddr"`    // host:port; "" for no SSH door
	GatewayURL string   `toml:"gatewayURL"` // http or https
	Origins    []string `toml:"origins"`    // allowed besides the panel's own, e.g. https://learn.example.org
	TLSCert    string   `toml:"tlsCert"`    // PEM files; both or neither
	TLSKey     string   `toml:"tlsKey"`
}

// Gateway is the API daemon.
type Gateway struct {
	Addr             string        `toml:"addr"`       // host:port of the API
	TunnelAddr       string        `toml:"tunnelAddr"` // host:port that nodes dial, as they see it
	Driver           string        `toml:"driver"`     // sqlite or mysql
	DSN              string        `toml:"dsn"`        // sqlite: a file, default <dataDir>/learnos.db
	AccessTTL        time.Duration `toml:"accessTTL"`
	RefreshTTL       time.Duration `toml:"refreshTTL"`
	MaxEnvironments  int           `toml:"maxEnvironments"` // of one user at a time
	IdleTimeout      time.Duration `toml:"idleTimeout"`     // 0: idle environments stay
	DefaultLifetime  time.Duration `toml:"defaultLifetime"`
	MaxLifetime      time.Duration `toml:"maxLifetime"` // how far a user may extend
	SMTPAddr         string        `toml:"smtpAddr"`    // host:port; "" for no mail
	SMTPUser         string        `toml:"smtpUser"`
	SMTPPassword     string        `toml:"smtpPassword"`
	SMTPFrom         string        `toml:"smtpFrom"`
	OpenRegistration bool          `toml:"openRegistration"`
	RequireCode      bool          `toml:"requireCode"` // a code sent by mail is needed to register
	LoginPerMinute   int           `toml:"loginPerMinute"`
	RegisterPerHour  int           `toml:"registerPerHour"`
}

// Node is the node agent.
type Node struct {
	Name            string `toml:"name"`            // unique among nodes; default the host's name
	Root            string `toml:"root"`            // default <dataDir>
	Reserve         Size   `toml:"reserve"`         // memory that environments never get
	DiskReserve     Size   `toml:"diskReserve"`     // disk that environments never get; a tenth of it at most
	DiskOvercommit  int    `toml:"diskOvercommit"`  // how many times over what is free of the disk may be promised
	MaxEnvironments int    `toml:"maxEnvironments"` // 0: as many as memory allows
	Spares          int    `toml:"spares"`          // environments made ahead of need, at most; 0: none
	Bridge          string `toml:"bridge"`          // "": chosen from Root
	Subnet          string `toml:"subnet"`          // CIDR; "": a free one is chosen and kept
	BlockPrivate    bool   `toml:"blockPrivate"`    // environments can't reach private networks
}
