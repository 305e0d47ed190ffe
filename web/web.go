// Package web is the front of the house: it serves the browser panel, passes the API through to the
// gateway, and opens the SSH door (package sshdoor).
//
// It keeps nothing and decides nothing about people or environments: the gateway does. What it adds is the
// edge: security headers, caching, the client's true address, and a useful answer while the gateway is away.
package web

import "embed"

//go:embed all:dist
var dist embed.FS
