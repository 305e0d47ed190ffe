package runtime

import (
	"strconv"
	"strings"
)

// OCIBefore says whether a configuration's ociVersion is one before 1.minor. A few of the specification's sentences have
// turned round between its releases, and a bundle complies with the one that it names (config, "Specification version").
// What was developed after 1.0.2 calls itself "1.0.2-dev", after 1.1.0 "1.1.0+dev" and so on: that counts as the release it
// became. One that can't be read is taken for the newest.
func OCIBefore(ociVersion string, minor int) bool {
	number, suffix := ociVersion, ""
	if i := strings.IndexAny(ociVersion, "-+"); i >= 0 {
		number, suffix = ociVersion[:i], ociVersion[i+1:]
	}
	parts := strings.Split(number, ".")
	if len(parts) < 2 || parts[0] != "1" {
		return false
	}
	n, err := strconv.Atoi(parts[1])
	if err != nil {
		return false
	}
	if suffix == "dev" {
		n++
	}
	return n < minor
}
