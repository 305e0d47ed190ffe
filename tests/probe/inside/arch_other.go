//go:build !amd64

package main

import "golang.org/x/sys/unix"

func ioperm() error        { return unix.ENOSYS }
func lookupDcookie() error { return unix.ENOSYS }

const (
	x32   = 0
	has32 = false
)

func int80(nr, a, b, c, d, e uint32) int32 { return -int32(unix.ENOSYS) }
