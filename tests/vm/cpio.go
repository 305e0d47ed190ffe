package vm

import (
	"fmt"
	"io"
)

// cpioWriter writes the "newc" form of cpio that the kernel unpacks as its first root (kernel documentation,
// driver-api/early-userspace/buffer-format).
type cpioWriter struct {
	w     io.Writer
	inode int
	err   error
}

// file adds a regular file; its directories must have been added before.
func (c *cpioWriter) file(name string, mode uint32, data []byte) { c.entry(name, 0o100000|mode, data) }

func (c *cpioWriter) dir(name string) { c.entry(name, 0o040755, nil) }

// close ends the archive and returns the first error.
func (c *cpioWriter) close() error {
	c.entry("TRAILER!!!", 0, nil)
	return c.err
}

func (c *cpioWriter) entry(name string, mode uint32, data []byte) {
	c.inode++
	c.printf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", c.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	c.printf("%s\x00", name)
	c.pad(110 + len(name) + 1)
	c.write(data)
	c.pad(len(data))
}

func (c *cpioWriter) pad(n int) { c.write(make([]byte, (4-n%4)%4)) }

func (c *cpioWriter) printf(format string, args ...any) { c.write(fmt.Appendf(nil, format, args...)) }

func (c *cpioWriter) write(b []byte) {
	if c.err == nil {
		_, c.err = c.w.Write(b)
	}
}
