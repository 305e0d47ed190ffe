package store

import "time"

// Time is a moment as Unix milliseconds, 0 for "never". Databases disagree on how they keep and compare dates;
// they all agree on integers.
type Time int64

// At is t in milliseconds; the zero time becomes 0.
func At(t time.Time) Time {
	if t.IsZero() {
		return 0
	}
	return Time(t.UnixMilli())
}

// Std is t in UTC; 0 becomes the zero time.
func (t Time) Std() time.Time {
	if t == 0 {
		return time.Time{}
	}
	return time.UnixMilli(int64(t)).UTC()
}

// Ptr is like Std, but 0 becomes nil: a null in JSON.
func (t Time) Ptr() *time.Time {
	if t == 0 {
		return nil
	}
	std := t.Std()
	return &std
}

// User is an account.
type User struct {
	ID       int64  `gorm:"primaryKey"`
	Username string `gorm:"size:32;uniqueIndex;not null"` // lower case
	Email    string `gorm:"size:254;not null"`            // lower case; "" for none; what the user claims
	// VerifiedEmail is set when a code proved the address; only proven addresses are unique, so nobody can squat one.
	VerifiedEmail   *string `gorm:"size:254;uniqueIndex"`
	PasswordHash    string  `gorm:"size:255;not null"` // PHC string
	Admin           bool    `gorm:"not null"`
	Disabled        bool    `gorm:"not null"`
	MaxEnvironments int     `gorm:"not null"` // 0: the installation's default
	CreatedAt       Time    `gorm:"autoCreateTime:false;not null"`
	LastLoginAt     Time    `gorm:"not null"`
}

// Session is one login: the family of all refresh tokens that descend from it.
type Session struct {
	ID        string `gorm:"primaryKey;size:32"`
	UserID    int64  `gorm:"index;not null"`
	CreatedAt Time   `gorm:"autoCreateTime:false;not null"`
	ExpiresAt Time   `gorm:"index;not null"` // moves on with every refresh
	RevokedAt Time   `gorm:"not null"`
	Address   string `gorm:"size:64;not null"`
	Agent     string `gorm:"size:255;not null"`
}

// RefreshToken is one refresh token, kept as its hash. A used one stays until it would have expired, so that its
// second use can be told from a random string.
type RefreshToken struct {
	Hash      string `gorm:"primaryKey;size:64"` // hex SHA-256
	SessionID string `gorm:"size:32;index;not null"`
	CreatedAt Time   `gorm:"autoCreateTime:false;not null"`
	ExpiresAt Time   `gorm:"index;not null"`
	UsedAt    Time   `gorm:"not null"`
}

// Code is the verification code that was last sent to an address.
type Code struct {
	Email     string `gorm:"primaryKey;size:254"`
	Hash      string `gorm:"size:64;not null"` // hex HMAC-SHA-256
	ExpiresAt Time   `gorm:"index;not null"`
	Attempts  int    `gorm:"not null"`
}

// Key is an SSH public key of a user.
type Key struct {
	ID          int64  `gorm:"primaryKey"`
	UserID      int64  `gorm:"not null;uniqueIndex:user_key,priority:1"`
	Fingerprint string `gorm:"size:64;not null;uniqueIndex:user_key,priority:2"`
	Name        string `gorm:"size:64;not null"`
	Type        string `gorm:"size:64;not null"`
	Key         string `gorm:"type:text;not null"` // type and base64, no comment
	CreatedAt   Time   `gorm:"autoCreateTime:false;not null"`
	LastUsedAt  Time   `gorm:"not null"`
}

// Rations are what an environment may have: of an image those of every environment made from it. They are columns of
// both tables and, under the same names everywhere, fields of the API. 0 means no limit of that kind.
type Rations struct {
	MemoryBytes     int64   `json:"memoryBytes" gorm:"not null"`
	MemoryHighBytes int64   `json:"memoryHighBytes" gorm:"not null;default:0"` // above it memory is reclaimed and its users slowed down
	CPUs            float64 `json:"cpus" gorm:"column:cpus;not null"`
	PIDs            int64   `json:"pids" gorm:"column:pids;not null"`
	DiskBytes       int64   `json:"diskBytes" gorm:"not null"`
	NetUpBits       int64   `json:"netUpBits" gorm:"not null;default:0"` // per second
	NetDownBits     int64   `json:"netDownBits" gorm:"not null;default:0"`
	IOReadBPS       int64   `json:"ioReadBps" gorm:"column:io_read_bps;not null;default:0"` // bytes per second, of the node's disk
	IOWriteBPS      int64   `json:"ioWriteBps" gorm:"column:io_write_bps;not null;default:0"`
	IOReadIOPS      int64   `json:"ioReadIops" gorm:"column:io_read_iops;not null;default:0"` // operations per second
	IOWriteIOPS     int64   `json:"ioWriteIops" gorm:"column:io_write_iops;not null;default:0"`
	NetQuotaBytes   int64   `json:"netQuotaBytes" gorm:"not null"`
	BlkQuotaBytes   int64   `json:"blkQuotaBytes" gorm:"not null"`
}

// Image is a row of the catalogue.
type Image struct {
	ID            int64    `gorm:"primaryKey"`
	Name          string   `gorm:"size:63;uniqueIndex;not null"`
	Title         string   `gorm:"size:64;not null"`
	TitleZh       string   `gorm:"size:64;not null"`
	Description   string   `gorm:"size:512;not null"`
	DescriptionZh string   `gorm:"size:512;not null"`
	Source        string   `gorm:"size:512;not null"`
	Insecure      bool     `gorm:"not null"`
	Command       []string `gorm:"serializer:json;type:text"`
	Logo          string   `gorm:"size:64;not null"`
	Rations
	CapAdd          []string `gorm:"serializer:json;type:text"` // capabilities of root inside besides the usual ones
	LifetimeSeconds int64    `gorm:"not null"`
	Enabled         bool     `gorm:"not null"`
	Position        int      `gorm:"not null"`
	CreatedAt       Time     `gorm:"autoCreateTime:false;not null"`
}

// Environment is what is remembered of an environment, for ever. It copies the image it was made from: a later change
// of the catalogue changes no environment.
type Environment struct {
	ID       string   `gorm:"primaryKey;size:63"`
	UserID   int64    `gorm:"not null;index:user_state,priority:1"`
	Owner    string   `gorm:"size:32;not null"`
	Name     string   `gorm:"size:63;not null"`
	Image    string   `gorm:"size:63;not null"`
	Title    string   `gorm:"size:64;not null"`
	TitleZh  string   `gorm:"size:64;not null"`
	Logo     string   `gorm:"size:64;not null"`
	Source   string   `gorm:"size:512;not null"`
	Insecure bool     `gorm:"not null"`
	Command  []string `gorm:"serializer:json;type:text"`
	Rations
	CapAdd          []string `gorm:"serializer:json;type:text"`
	LifetimeSeconds int64    `gorm:"not null"` // first deadline after the (re)try was asked for
	IdleSeconds     int64    `gorm:"not null"`

	State     string           `gorm:"size:16;not null;index:user_state,priority:2;index:state"`
	Stage     string           `gorm:"size:64;not null"`
	Percent   int              `gorm:"not null"`
	Reason    string           `gorm:"type:text"`
	Node      string           `gorm:"size:255;not null"`
	Address   string           `gorm:"size:64;not null"`
	Timings   map[string]int64 `gorm:"serializer:json;type:text"`
	StatusRev int64            `gorm:"not null"` // etcd revision of the newest status that went into this row

	Try           int  `gorm:"not null"` // 0 the first time, one more with each retry
	Enqueued      bool `gorm:"not null"` // the create job of this try is in the queue, or was
	DeleteAskedAt Time `gorm:"not null"`
	DeleteJobAt   Time `gorm:"not null"` // when the delete job was last put into the queue

	CreatedAt Time `gorm:"autoCreateTime:false;not null"`
	TriedAt   Time `gorm:"not null"` // when this try was asked for
	StartedAt Time `gorm:"not null"`
	EndedAt   Time `gorm:"not null"`
	Deadline  Time `gorm:"not null"`
	UpdatedAt Time `gorm:"autoUpdateTime:false;not null;index"`
}

// History is one thing that happened to an environment.
type History struct {
	ID            int64  `gorm:"primaryKey"`
	EnvironmentID string `gorm:"size:63;not null;index"`
	At            Time   `gorm:"not null"`
	State         string `gorm:"size:16;not null"`
	Reason        string `gorm:"type:text"`
}

// Audit is one security-relevant action.
type Audit struct {
	ID       int64  `gorm:"primaryKey"`
	At       Time   `gorm:"not null;index"`
	UserID   int64  `gorm:"not null"` // who did it; 0: nobody who is known
	Username string `gorm:"size:64;not null"`
	Action   string `gorm:"size:64;not null"`
	Target   string `gorm:"size:255;not null"`
	Detail   string `gorm:"size:512;not null"`
	Address  string `gorm:"size:64;not null"`
}

// Mark says that something which happens once per database has happened.
type Mark struct {
	Name string `gorm:"primaryKey;size:64"`
	At   Time   `gorm:"not null"`
}
