// Package buildinfo says which build a binary is.
package buildinfo

import (
	"runtime"
	"runtime/debug"
)

// version is what `make build` was told by git; the linker sets it.
var version string

// Version is the release or commit that the binary was built from, and the Go that built it.
func Version() string {
	v := version
	if info, ok := debug.ReadBuildInfo(); v == "" && ok {
		v = info.Main.Version // what the toolchain knows, if it was asked to
	}
	if v == "" {
		v = "(devel)"
	}
	return v + " " + runtime.Version()
}
