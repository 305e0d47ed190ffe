//go:build suite

// Package suite pins the conformance suite's modules; it is never built itself.
package suite

import (
	_ "github.com/opencontainers/runtime-tools/cmd/runtimetest"
	_ "github.com/opencontainers/runtime-tools/validation/create"
)
