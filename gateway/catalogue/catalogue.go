// Package catalogue says what an image of the gallery must look like, and which ones a new installation starts with.
package catalogue

import (
	"math"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/learnos/learnos/gateway/problem"
	"github.com/learnos/learnos/gateway/store"
)

var (
	nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
	logoForm = regexp.MustCompile(`^[a-z0-9]{0,64}$`)
	// A registry reference as of the distribution project's grammar, loosely: host, path, tag, digest.
	referenceForm = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9._:/-]*[a-zA-Z0-9])?(@sha256:[0-9a-f]{64})?$`)
	suiteForm     = regexp.MustCompile(`^debootstrap(:[a-z][a-z0-9-]{0,30})?$`)
	localForm     = regexp.MustCompile(`^(oci|docker-archive|dir):/[^\x00-\x1f]*$`)
)

// Capabilities are those that an image may grant root inside besides the usual ones. Not NET_ADMIN, which opens the kernel's
// packet filters and schedulers, has their modules loaded, and makes links and tables by the thousand under a lock that is the
// whole machine's; nor SYS_PTRACE, which is what init is closed off from. Who needs those has `nodeagent run --cap-add`.
var Capabilities = []string{"NET_RAW"}

// Check tells what is wrong with an image, as a *problem.Problem that names the field, or nil.
func Check(i *store.Image) error {
	limit := func(field string, value, least, most int64) error {
		if value < least || value > most {
			return problem.Field(field, "must be %d to %d", least, most)
		}
		return nil
	}
	optional := func(field string, value, least, most int64) error {
		if value != 0 && (value < least || value > most) {
			return problem.Field(field, "must be 0 (no limit) or %d to %d", least, most)
		}
		return nil
	}
	const most = 1 << 50 // of anything in a second
	text := func(field, value string, most int) error {
		if !utf8.ValidString(value) || utf8.RuneCountInString(value) > most || strings.ContainsAny(value, "\x00\r\n") {
			return problem.Field(field, "must be one line of at most %d characters", most)
		}
		return nil
	}
	if !nameForm.MatchString(i.Name) {
		return problem.Field("name", "must be 1 to 63 of a-z, 0-9, '.', '_' and '-', and start with a letter or a digit")
	}
	if !logoForm.MatchString(i.Logo) {
		return problem.Field("logo", "must be a simple-icons slug: lower-case letters and digits, or empty")
	}
	if err := Source(i.Source); err != nil {
		return err
	}
	if len(i.Command) > 64 {
		return problem.Field("command", "must have at most 64 words")
	}
	for _, word := range i.Command {
		if len(word) > 4096 || strings.ContainsRune(word, 0) || !utf8.ValidString(word) {
			return problem.Field("command", "has a word that is longer than 4096 bytes, not UTF-8, or has a NUL")
		}
	}
	for _, name := range i.CapAdd {
		if !slices.Contains(Capabilities, name) {
			return problem.Field("capAdd", "has %.32q; an image can grant %s", name, strings.Join(Capabilities, ", "))
		}
	}
	if len(i.CapAdd) > len(Capabilities) {
		return problem.Field("capAdd", "names a capability twice")
	}
	if math.IsNaN(i.CPUs) || i.CPUs < 0.01 || i.CPUs > 512 {
		return problem.Field("cpus", "must be 0.01 to 512")
	}
	for _, err := range []error{
		text("title", i.Title, 64), text("titleZh", i.TitleZh, 64), text("description", i.Description, 512), text("descriptionZh", i.DescriptionZh, 512),
		limit("memoryBytes", i.MemoryBytes, 6<<20, 1<<40), // less, and init does not begin
		limit("pids", i.PIDs, 16, 1<<22),                  // init has threads of its own
		optional("memoryHighBytes", i.MemoryHighBytes, 6<<20, i.MemoryBytes),
		optional("diskBytes", i.DiskBytes, 16<<20, 16<<40-4096), // what a node can make an image of
		optional("netUpBits", i.NetUpBits, 8_000, most),         // less, and no packet gets through in a second
		optional("netDownBits", i.NetDownBits, 8_000, most),
		optional("ioReadBps", i.IOReadBPS, 4096, most), // a page a second
		optional("ioWriteBps", i.IOWriteBPS, 4096, most),
		optional("ioReadIops", i.IOReadIOPS, 1, most),
		optional("ioWriteIops", i.IOWriteIOPS, 1, most),
		limit("netQuotaBytes", i.NetQuotaBytes, 0, 100<<40),
		limit("blkQuotaBytes", i.BlkQuotaBytes, 0, 100<<40),
		limit("lifetimeSeconds", i.LifetimeSeconds, 0, 365*24*3600),
		limit("position", int64(i.Position), 0, 1_000_000),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

// Source tells what is wrong with an image's source.
func Source(s string) error {
	switch {
	case len(s) > 512:
		return problem.Field("source", "must have at most 512 bytes")
	case s == "busybox", suiteForm.MatchString(s):
		return nil
	case strings.HasPrefix(s, "oci:"), strings.HasPrefix(s, "docker-archive:"), strings.HasPrefix(s, "dir:"):
		if !localForm.MatchString(s) || strings.Contains(s+"/", "/../") {
			return problem.Field("source", "must have an absolute path without '..' after the colon")
		}
		return nil
	case referenceForm.MatchString(s) && !strings.Contains(s, "//") && !strings.Contains(s, ".."):
		return nil
	}
	return problem.Field("source", "must be a registry reference such as docker.io/library/redis:7, or busybox, debootstrap:SUITE, oci:DIR, docker-archive:FILE or dir:PATH")
}

// Defaults are the limits of an image that does not say.
func Defaults() store.Image {
	return store.Image{Enabled: true, Position: 1000,
		Rations: store.Rations{MemoryBytes: 256 << 20, CPUs: 1, PIDs: 256, DiskBytes: 2 << 30, NetQuotaBytes: 1 << 30, BlkQuotaBytes: 20 << 30}}
}
