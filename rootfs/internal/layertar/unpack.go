// Package layertar turns image layers, which are tar streams (OCI image-spec, layer.md), into directories for
// overlayfs, and directories into such streams.
//
// A layer is written by a stranger. So no path is ever handed to the kernel as a whole: every operation is
// relative to a descriptor of the layer's own root, resolved by openat2 beneath it, and what tries to leave is an
// error, not something to be repaired. Whiteouts become what overlayfs understands; nothing in the tar can say
// so by itself (device nodes are left out, trusted.* attributes dropped).
//
// It does not decompress, verify digests, or decide where a layer lives.
package layertar

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/rootfs/internal/rmtree"
)

// MaxID is the first user or group id that an environment's range of ids has no room for.
const MaxID = 65536

// ErrLayer is wrapped by every error that is the layer's own fault: a name that leaves the root, an id out of
// range, a limit passed, a damaged stream. Other errors are the machine's.
var ErrLayer = errors.New("bad layer")

// Options bound and loosen what Unpack accepts. Zero limits mean the defaults.
type Options struct {
	MaxBytes   int64 // sum of file sizes, also of the holes in sparse files; default 64 GiB
	MaxEntries int64 // default 2,000,000
	MaxDepth   int   // path components; default 255
	// SpareBytes is what the file system must keep free while a layer is unpacked, whatever the layer says of its size;
	// default the lesser of a twentieth of the file system and 1 GiB.
	SpareBytes int64
	// AbsoluteNames takes "/a/b" as "a/b" instead of refusing it.
	AbsoluteNames bool
}

func (o Options) withDefaults() Options {
	if o.MaxBytes == 0 {
		o.MaxBytes = 64 << 30
	}
	if o.MaxEntries == 0 {
		o.MaxEntries = 2_000_000
	}
	if o.MaxDepth == 0 {
		o.MaxDepth = 255
	}
	return o
}

// Result says what a layer held.
type Result struct {
	Bytes   int64 `json:"bytes"`   // sum of file sizes
	Entries int64 `json:"entries"` // tar entries that had an effect
	// Implicit lists directories that had to be made for their contents without an entry of their own, sorted;
	// "." is the root. Their attributes are a guess until the layers below are known.
	Implicit []string `json:"implicit,omitempty"`
	// Whiteouts lists the directories that hold whiteouts, sorted. Overlayfs hides these from a listing only where
	// a layer below has the directory, too.
	Whiteouts []string `json:"whiteouts,omitempty"`
	// OpaqueRoot says that the layer hides everything below it.
	OpaqueRoot bool `json:"opaqueRoot,omitempty"`
	// Devices counts block and character devices that were left out.
	Devices int64 `json:"devices,omitempty"`
}

const (
	whPrefix = ".wh."
	whOpaque = ".wh..wh..opq"
	whMeta   = ".wh..wh."

	opaqueXattr = "trusted.overlay.opaque"
	paxXattr    = "SCHILY.xattr."

	copyBuffer = 256 << 10
	holeChunk  = 32 << 10
	maxOpen    = 64 // directories kept open
)

type unpacker struct {
	ctx      context.Context
	root     int
	o        Options
	res      Result
	dirs     map[string]int // open directories by clean path
	stale    bool           // something on the way to a cached directory may have been replaced
	implicit map[string]struct{}
	hiding   map[string]struct{}  // directories with whiteouts
	times    map[string]time.Time // of directories: set last, for making files changes them
	buf      []byte
	written  int64 // since the last look at what is free
}

// roomEvery is how much is written, in bytes, between looks at what is free; an entry counts for one block.
const roomEvery = 16 << 20

// room refuses to go on where the layer would fill the machine's disk.
func (u *unpacker) room(more int64) error {
	u.written += more
	if u.written < roomEvery {
		return nil
	}
	u.written = 0
	var st unix.Statfs_t
	if err := unix.Fstatfs(u.root, &st); err != nil {
		return fmt.Errorf("look at what is free: %w", err)
	}
	spare := u.o.SpareBytes
	if spare == 0 {
		spare = min(int64(st.Blocks)*st.Bsize/20, 1<<30)
	}
	if free := int64(st.Bavail) * st.Bsize; free < spare || st.Files > 0 && st.Ffree < st.Files/100 {
		return fmt.Errorf("the image does not fit: %d MiB and %d files are free on the node's disk, of which %d MiB and %d files must stay so: %w",
			free>>20, st.Ffree, spare>>20, st.Files/100, unix.ENOSPC)
	}
	return nil
}

// Unpack writes the layer that r streams into the empty directory root, which must be on a file system that
// takes trusted.* attributes, and reads r to its end. On error the directory holds an unusable part.
func Unpack(ctx context.Context, root *os.File, r io.Reader, o Options) (Result, error) {
	u := &unpacker{
		ctx: ctx, root: int(root.Fd()), o: o.withDefaults(),
		dirs: map[string]int{}, implicit: map[string]struct{}{}, hiding: map[string]struct{}{}, times: map[string]time.Time{},
		buf: make([]byte, copyBuffer), written: roomEvery,
	}
	defer u.closeDirs()
	u.implicit["."] = struct{}{}
	if err := unix.Fchmod(u.root, 0o755); err != nil {
		return Result{}, fmt.Errorf("set mode of the layer's root: %w", err)
	}
	tr := tar.NewReader(r)
	for n := int64(0); ; n++ {
		if err := ctx.Err(); err != nil {
			return Result{}, err
		}
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return Result{}, streamError("read tar header", err)
		}
		if n >= u.o.MaxEntries {
			return Result{}, fmt.Errorf("%w: more than %d entries", ErrLayer, u.o.MaxEntries)
		}
		if u.stale || len(u.dirs) > maxOpen {
			u.closeDirs()
		}
		if err := u.room(4096); err != nil {
			return Result{}, err
		}
		if err := u.entry(hdr, tr); err != nil {
			return Result{}, err
		}
	}
	// The digest covers the padding, too. Padding beyond reason is a bomb.
	rest, err := io.CopyBuffer(io.Discard, io.LimitReader(r, u.o.MaxBytes+1), u.buf)
	if err != nil {
		return Result{}, streamError("read the end of the tar", err)
	}
	if rest > u.o.MaxBytes {
		return Result{}, fmt.Errorf("%w: more than %d bytes behind the last entry", ErrLayer, u.o.MaxBytes)
	}
	return u.finish()
}

// streamError keeps errors of the source (network, digest, context) as they are and marks those of the tar
// format as the layer's fault.
func streamError(doing string, err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %s: %w", ErrLayer, doing, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

func (u *unpacker) entry(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := u.clean(h.Name, "entry")
	if err != nil {
		return err
	}
	if h.Uid < 0 || h.Uid >= MaxID || h.Gid < 0 || h.Gid >= MaxID {
		return fmt.Errorf("%w: %q belongs to %d:%d, but an environment has room for the ids 0 to %d only",
			ErrLayer, name, h.Uid, h.Gid, MaxID-1)
	}
	dir, base := split(name)
	for _, c := range strings.Split(dir, "/") {
		if strings.HasPrefix(c, whMeta) {
			return nil // bookkeeping of AUFS, from which the format stems
		}
		if strings.HasPrefix(c, whPrefix) {
			return fmt.Errorf("%w: %q lies below a name reserved for whiteouts", ErrLayer, name)
		}
	}
	if strings.HasPrefix(base, whPrefix) {
		return u.whiteout(name, dir, base)
	}
	switch h.Typeflag {
	case tar.TypeChar, tar.TypeBlock:
		u.res.Devices++
		return nil
	case tar.TypeDir:
		return u.directory(name, dir, base, h)
	}
	if name == "." {
		return fmt.Errorf("%w: the root of the layer is not a directory", ErrLayer)
	}
	parent, err := u.parent(dir)
	if err != nil {
		return err
	}
	u.res.Entries++
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return u.file(parent, base, name, h, r)
	case tar.TypeSymlink:
		return u.symlink(parent, base, name, h)
	case tar.TypeLink:
		return u.link(parent, base, name, h)
	case tar.TypeFifo:
		if _, err := u.create(parent, base, func() error {
			return unix.Mknodat(parent, base, unix.S_IFIFO|0o600, 0)
		}); err != nil {
			return fmt.Errorf("make fifo %q: %w", name, err)
		}
		if err := unix.Fchownat(parent, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("chown %q: %w", name, err)
		}
		if err := unix.Fchmodat(parent, base, uint32(h.Mode&0o7777), 0); err != nil {
			return fmt.Errorf("chmod %q: %w", name, err)
		}
		return setTime(parent, base, name, h.ModTime)
	}
	return fmt.Errorf("%w: %q is of the unknown type %q", ErrLayer, name, h.Typeflag)
}

// clean checks a name from the tar and returns it without leading, trailing and doubled slashes; "." is the root.
func (u *unpacker) clean(name, what string) (string, error) {
	if name == "" {
		return "", fmt.Errorf("%w: %s with an empty name", ErrLayer, what)
	}
	if len(name) >= unix.PathMax {
		return "", fmt.Errorf("%w: %s %.40q…: the name is longer than %d bytes", ErrLayer, what, name, unix.PathMax-1)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", fmt.Errorf("%w: %s %q: the name holds a zero byte", ErrLayer, what, name)
	}
	if name[0] == '/' && !u.o.AbsoluteNames {
		return "", fmt.Errorf("%w: %s %q: the name is absolute; names in a layer are relative to its root", ErrLayer, what, name)
	}
	parts := strings.Split(name, "/")
	kept := parts[:0]
	for _, p := range parts {
		switch {
		case p == "" || p == ".":
		case p == "..":
			return "", fmt.Errorf("%w: %s %q leaves the layer's root through \"..\"", ErrLayer, what, name)
		case len(p) > 255:
			return "", fmt.Errorf("%w: %s %.40q…: a part of the name is longer than 255 bytes", ErrLayer, what, name)
		default:
			kept = append(kept, p)
		}
	}
	if len(kept) > u.o.MaxDepth {
		return "", fmt.Errorf("%w: %s %.40q… lies deeper than %d directories", ErrLayer, what, name, u.o.MaxDepth)
	}
	if len(kept) == 0 {
		return ".", nil
	}
	return strings.Join(kept, "/"), nil
}

func split(name string) (dir, base string) {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i], name[i+1:]
	}
	return ".", name
}

// parent returns a descriptor of the directory at the clean path dir, making it and what is above it if the
// layer has not. It stays open until the next entry at least.
func (u *unpacker) parent(dir string) (int, error) {
	if dir == "." {
		return u.root, nil
	}
	if fd, ok := u.dirs[dir]; ok {
		return fd, nil
	}
	fd, err := openBeneath(u.root, dir)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		fd, err = u.makeParent(dir)
	}
	if err != nil {
		if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.ELOOP) {
			return -1, fmt.Errorf("%w: the way to %q leaves the layer's root through a symbolic link", ErrLayer, dir)
		}
		return -1, err
	}
	u.dirs[dir] = fd
	return fd, nil
}

func (u *unpacker) makeParent(dir string) (int, error) {
	up, base := split(dir)
	upfd, err := u.parent(up)
	if err != nil {
		return -1, err
	}
	opaque := false
	var st unix.Stat_t
	switch err := unix.Fstatat(upfd, base, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case errors.Is(err, unix.ENOENT):
	case err != nil:
		return -1, fmt.Errorf("look at %q: %w", dir, err)
	case isWhiteout(&st):
		opaque = true
		if err := unix.Unlinkat(upfd, base, 0); err != nil {
			return -1, fmt.Errorf("replace whiteout %q: %w", dir, err)
		}
	default:
		return -1, fmt.Errorf("%w: %q is used as a directory but is none", ErrLayer, dir)
	}
	if err := unix.Mkdirat(upfd, base, 0o755); err != nil {
		return -1, fmt.Errorf("make directory %q: %w", dir, err)
	}
	fd, err := openBeneath(upfd, base)
	if err != nil {
		return -1, fmt.Errorf("open directory %q: %w", dir, err)
	}
	if err := unix.Fchmod(fd, 0o755); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("chmod %q: %w", dir, err)
	}
	if opaque {
		if err := unix.Fsetxattr(fd, opaqueXattr, []byte("y"), 0); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("mark %q as opaque: %w", dir, err)
		}
	}
	u.implicit[dir] = struct{}{}
	u.times[dir] = time.Unix(0, 0)
	return fd, nil
}

// openBeneath opens a directory without leaving dirfd. Symbolic links inside are followed, links out of it
// and absolute ones give EXDEV.
func openBeneath(dirfd int, path string) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(dirfd, path, &how)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		return fd, err
	}
}

// create runs make, and if the name is taken clears it and runs make again. It says whether something other
// than a directory gave way, be it a whiteout.
func (u *unpacker) create(parent int, base string, make func() error) (replaced bool, err error) {
	err = make()
	if !errors.Is(err, unix.EEXIST) {
		return false, err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR, unix.S_IFLNK:
		u.stale = true
	}
	if err := rmtree.RemoveAt(parent, base); err != nil {
		return false, err
	}
	return st.Mode&unix.S_IFMT != unix.S_IFDIR, make()
}

func (u *unpacker) directory(name, dir, base string, h *tar.Header) error {
	u.res.Entries++
	if name == "." {
		delete(u.implicit, ".")
		u.times["."] = h.ModTime
		return u.dirAttributes(u.root, name, h)
	}
	parent, err := u.parent(dir)
	if err != nil {
		return err
	}
	opaque := false
	err = unix.Mkdirat(parent, base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("look at %q: %w", name, err)
		}
		err = nil
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			// What stood here hid everything below it, so the new directory must, too.
			opaque, err = u.create(parent, base, func() error { return unix.Mkdirat(parent, base, 0o700) })
		}
	}
	if err != nil {
		return fmt.Errorf("make directory %q: %w", name, err)
	}
	fd, err := unix.Openat(parent, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open directory %q: %w", name, err)
	}
	if old, ok := u.dirs[name]; ok {
		unix.Close(old)
	}
	u.dirs[name] = fd
	if opaque {
		if err := unix.Fsetxattr(fd, opaqueXattr, []byte("y"), 0); err != nil {
			return fmt.Errorf("mark %q as opaque: %w", name, err)
		}
	}
	delete(u.implicit, name)
	u.times[name] = h.ModTime
	return u.dirAttributes(fd, name, h)
}

func (u *unpacker) dirAttributes(fd int, name string, h *tar.Header) error {
	if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
		return fmt.Errorf("chown %q: %w", name, err)
	}
	if err := unix.Fchmod(fd, uint32(h.Mode&0o7777)); err != nil {
		return fmt.Errorf("chmod %q: %w", name, err)
	}
	return setXattrs(fd, name, h, false)
}

func (u *unpacker) file(parent int, base, name string, h *tar.Header, r io.Reader) error {
	if h.Size > u.o.MaxBytes-u.res.Bytes {
		return fmt.Errorf("%w: its files are larger than %d bytes together", ErrLayer, u.o.MaxBytes)
	}
	u.res.Bytes += h.Size
	var fd int
	_, err := u.create(parent, base, func() (err error) {
		fd, err = unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return fmt.Errorf("create %q: %w", name, err)
	}
	defer unix.Close(fd)
	if err := u.write(fd, h.Size, r); err != nil {
		return streamError(fmt.Sprintf("write %q", name), err)
	}
	// In this order: a change of owner clears set-id bits and capabilities.
	if h.Uid != 0 || h.Gid != 0 {
		if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
			return fmt.Errorf("chown %q: %w", name, err)
		}
	}
	if err := unix.Fchmod(fd, uint32(h.Mode&0o7777)); err != nil {
		return fmt.Errorf("chmod %q: %w", name, err)
	}
	if err := setXattrs(fd, name, h, true); err != nil {
		return err
	}
	return setTime(parent, base, name, h.ModTime)
}

// write copies size bytes and leaves holes where whole chunks are zero, so that sparse files stay sparse.
func (u *unpacker) write(fd int, size int64, r io.Reader) error {
	var off int64
	hole := false
	for off < size {
		if err := u.ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(r, u.buf[:min(int64(len(u.buf)), size-off)])
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		for b := u.buf[:n]; len(b) > 0; {
			end := 0 // of the data in front of the next hole
			for end < len(b) && !isHole(b[end:]) {
				end += min(holeChunk, len(b)-end)
			}
			if end == 0 {
				off += holeChunk
				b = b[holeChunk:]
				hole = true
				continue
			}
			hole = false
			for w := 0; w < end; {
				k, err := unix.Pwrite(fd, b[w:end], off)
				if errors.Is(err, unix.EINTR) {
					continue
				}
				if err != nil {
					return err
				}
				w += k
				off += int64(k)
			}
			if err := u.room(int64(end)); err != nil {
				return err
			}
			b = b[end:]
		}
	}
	if hole {
		return unix.Ftruncate(fd, size)
	}
	return nil
}

func isHole(b []byte) bool {
	return len(b) >= holeChunk && [holeChunk]byte(b[:holeChunk]) == [holeChunk]byte{}
}

func (u *unpacker) symlink(parent int, base, name string, h *tar.Header) error {
	if h.Linkname == "" || len(h.Linkname) >= unix.PathMax {
		return fmt.Errorf("%w: symbolic link %q has a target of %d bytes", ErrLayer, name, len(h.Linkname))
	}
	if _, err := u.create(parent, base, func() error { return unix.Symlinkat(h.Linkname, parent, base) }); err != nil {
		return fmt.Errorf("make symbolic link %q: %w", name, err)
	}
	if h.Uid != 0 || h.Gid != 0 {
		if err := unix.Fchownat(parent, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("chown %q: %w", name, err)
		}
	}
	return setTime(parent, base, name, h.ModTime)
}

func (u *unpacker) link(parent int, base, name string, h *tar.Header) error {
	target, err := u.clean(h.Linkname, fmt.Sprintf("hard link %q to", name))
	if err != nil {
		return err
	}
	missing := fmt.Errorf("%w: hard link %q to %q, which is not a file in this layer", ErrLayer, name, target)
	tdir, tbase := split(target)
	if target == "." || strings.HasPrefix(tbase, whPrefix) {
		return missing
	}
	tparent, err := u.linkParent(tdir)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			return missing
		}
		return err
	}
	var from, to unix.Stat_t
	if err := unix.Fstatat(tparent, tbase, &from, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return missing
		}
		return fmt.Errorf("look at %q: %w", target, err)
	}
	if isWhiteout(&from) || from.Mode&unix.S_IFMT == unix.S_IFDIR {
		return missing
	}
	if unix.Fstatat(parent, base, &to, unix.AT_SYMLINK_NOFOLLOW) == nil && to.Ino == from.Ino {
		return nil
	}
	_, err = u.create(parent, base, func() error { return unix.Linkat(tparent, tbase, parent, base, 0) })
	if errors.Is(err, unix.ENOENT) {
		return missing // it lay inside the directory that gave way
	}
	if errors.Is(err, unix.EMLINK) {
		return fmt.Errorf("%w: %q has more hard links than the file system allows", ErrLayer, target)
	}
	if err != nil {
		return fmt.Errorf("hard link %q to %q: %w", name, target, err)
	}
	return nil
}

// linkParent is parent without making anything.
func (u *unpacker) linkParent(dir string) (int, error) {
	if dir == "." {
		return u.root, nil
	}
	if fd, ok := u.dirs[dir]; ok {
		return fd, nil
	}
	fd, err := openBeneath(u.root, dir)
	if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.ELOOP) {
		return -1, fmt.Errorf("%w: the way to %q leaves the layer's root through a symbolic link", ErrLayer, dir)
	}
	if err != nil {
		return -1, fmt.Errorf("open %q: %w", dir, err)
	}
	u.dirs[dir] = fd
	return fd, nil
}

// whiteout applies image-spec layer.md "Whiteouts": it hides what the layers below have, never what this
// layer itself brings, in whichever order the two come.
func (u *unpacker) whiteout(name, dir, base string) error {
	if base == whOpaque {
		u.res.Entries++
		if dir == "." {
			u.res.OpaqueRoot = true
			return nil
		}
		fd, err := u.parent(dir)
		if err != nil {
			return err
		}
		if err := unix.Fsetxattr(fd, opaqueXattr, []byte("y"), 0); err != nil {
			return fmt.Errorf("mark %q as opaque: %w", dir, err)
		}
		return nil
	}
	if strings.HasPrefix(base, whMeta) {
		return nil
	}
	hidden := base[len(whPrefix):]
	if hidden == "" || hidden == "." || hidden == ".." {
		return fmt.Errorf("%w: whiteout %q hides no name inside its directory", ErrLayer, name)
	}
	parent, err := u.parent(dir)
	if err != nil {
		return err
	}
	u.res.Entries++
	err = unix.Mknodat(parent, hidden, unix.S_IFCHR, int(unix.Mkdev(0, 0)))
	if err == nil {
		if dir != "." {
			u.hiding[dir] = struct{}{}
		}
		return nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make whiteout %q: %w", name, err)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(parent, hidden, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("look at %q: %w", name, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	fd, err := unix.Openat(parent, hidden, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %q: %w", name, err)
	}
	defer unix.Close(fd)
	if err := unix.Fsetxattr(fd, opaqueXattr, []byte("y"), 0); err != nil {
		return fmt.Errorf("mark %q as opaque: %w", name, err)
	}
	return nil
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// setXattrs sets what a layer may say: file capabilities and user attributes. trusted.* would let it forge
// overlayfs' own marks, security.* and system.* speak of the machine that packed it.
func setXattrs(fd int, name string, h *tar.Header, file bool) error {
	for key, value := range h.PAXRecords {
		attr, ok := strings.CutPrefix(key, paxXattr)
		if !ok || !keepXattr(attr, file) {
			continue
		}
		if err := unix.Fsetxattr(fd, attr, []byte(value), 0); err != nil {
			if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ERANGE) || errors.Is(err, unix.E2BIG) {
				return fmt.Errorf("%w: %q has a malformed attribute %.60q: %w", ErrLayer, name, attr, err)
			}
			return fmt.Errorf("set attribute %.60q of %q: %w", attr, name, err)
		}
	}
	return nil
}

func keepXattr(attr string, file bool) bool {
	return strings.HasPrefix(attr, "user.") && len(attr) > len("user.") && strings.IndexByte(attr, 0) < 0 ||
		file && attr == "security.capability"
}

func setTime(parent int, base, name string, t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	if t.Year() < 1901 || t.Year() > 2200 { // beyond what UnixNano and ext4 hold
		ts = unix.Timespec{}
	}
	if err := unix.UtimesNanoAt(parent, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set times of %q: %w", name, err)
	}
	return nil
}

func (u *unpacker) finish() (Result, error) {
	if err := u.finishWhiteouts(); err != nil {
		return Result{}, err
	}
	names := make([]string, 0, len(u.times))
	for name := range u.times {
		names = append(names, name)
	}
	sort.Strings(names)
	u.closeDirs()
	for _, name := range names {
		if err := u.ctx.Err(); err != nil {
			return Result{}, err
		}
		if len(u.dirs) > maxOpen {
			u.closeDirs()
		}
		dir, base := split(name)
		parent, err := u.linkParent(dir)
		if err != nil {
			delete(u.implicit, name)
			continue // a later entry put something else in its place
		}
		var st unix.Stat_t
		if unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			delete(u.implicit, name)
			continue
		}
		if err := setTime(parent, base, name, u.times[name]); err != nil {
			return Result{}, err
		}
	}
	for name := range u.implicit {
		u.res.Implicit = append(u.res.Implicit, name)
	}
	sort.Strings(u.res.Implicit)
	return u.res, nil
}

// finishWhiteouts removes the whiteouts that lie in or below opaque directories, where there is nothing left to
// hide and overlayfs would list them, and notes where the others are.
func (u *unpacker) finishWhiteouts() error {
	for dir := range u.hiding {
		if err := u.ctx.Err(); err != nil {
			return err
		}
		if len(u.dirs) > maxOpen {
			u.closeDirs()
		}
		fd, err := u.linkParent(dir)
		if err != nil {
			continue // a later entry put something else in its place
		}
		if !u.res.OpaqueRoot && !u.opaqueAt(dir) {
			u.res.Whiteouts = append(u.res.Whiteouts, dir)
			continue
		}
		if err := dropWhiteouts(fd); err != nil {
			return fmt.Errorf("drop whiteouts in %q: %w", dir, err)
		}
	}
	sort.Strings(u.res.Whiteouts)
	return nil
}

func (u *unpacker) opaqueAt(dir string) bool {
	for ; dir != "."; dir, _ = split(dir) {
		fd, err := u.linkParent(dir)
		if err != nil {
			return false
		}
		if n, err := unix.Fgetxattr(fd, opaqueXattr, make([]byte, 1)); err == nil && n > 0 {
			return true
		}
	}
	return false
}

func dropWhiteouts(dirfd int) error {
	fd, err := unix.Openat(dirfd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	d := os.NewFile(uintptr(fd), ".")
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if isWhiteout(&st) {
			if err := unix.Unlinkat(fd, name, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

func (u *unpacker) closeDirs() {
	for _, fd := range u.dirs {
		unix.Close(fd)
	}
	clear(u.dirs)
	u.stale = false
}
