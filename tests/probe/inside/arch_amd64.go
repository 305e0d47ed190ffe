package main

import "golang.org/x/sys/unix"

func ioperm() error        { return call(unix.SYS_IOPL, 3) }
func lookupDcookie() error { return call(unix.SYS_LOOKUP_DCOOKIE, 1, 0, 0) }

// x32 is what marks a call of that ABI.
const x32 = 0x40000000

// int80 makes a system call by the 32-bit gate. Whoever passes a pointer keeps it below 4 GiB.
func int80(nr, a, b, c, d, e uint32) int32

const has32 = true
