package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Size is a number of bytes, written "512MiB" in files: a whole number and one of B, KiB, MiB, GiB and TiB.
// Decimal units (MB) are refused, because people mean both things by them.
type Size int64

var sizeUnits = []struct {
	name  string
	bytes int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

// ParseSize reads what String writes; "0" needs no unit.
func ParseSize(s string) (Size, error) {
	bad := func(why string) (Size, error) {
		return 0, fmt.Errorf("%q is no size: %s; write for example \"512MiB\"", s, why)
	}
	if s == "0" {
		return 0, nil
	}
	unit := strings.TrimLeft(s, "0123456789.+- ")
	digits := strings.TrimSpace(strings.TrimSuffix(s, unit))
	for _, u := range sizeUnits {
		if u.name != unit {
			continue
		}
		if digits == "" || strings.Trim(digits, "0123456789") != "" {
			return bad("before the unit there must be a whole number")
		}
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || n > math.MaxInt64/u.bytes {
			return bad("it is too large")
		}
		return Size(n * u.bytes), nil
	}
	return bad("the unit must be B, KiB, MiB, GiB or TiB")
}

// String writes the size in the largest unit that divides it.
func (s Size) String() string {
	if s == 0 {
		return "0"
	}
	for _, u := range sizeUnits {
		if int64(s)%u.bytes == 0 {
			return strconv.FormatInt(int64(s)/u.bytes, 10) + u.name
		}
	}
	panic("unreachable: every number is a multiple of one byte")
}
