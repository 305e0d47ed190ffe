package layertar

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Pack writes the tree below dir to w as one layer: owners, modes, times, attributes, hard links and symbolic
// links as they are; devices and sockets left out; what is mounted inside left out, its mount points kept. The
// same tree gives the same bytes. Names that the format reserves for whiteouts are an error.
func Pack(ctx context.Context, dir *os.File, w io.Writer) error {
	p := &packer{ctx: ctx, tw: tar.NewWriter(w), links: map[inode]string{}, buf: make([]byte, copyBuffer)}
	mount, err := mountID(int(dir.Fd()))
	if err != nil {
		return fmt.Errorf("look at %s: %w", dir.Name(), err)
	}
	p.mount = mount
	if err := p.directory(dir, "."); err != nil {
		return err
	}
	if err := p.tw.Close(); err != nil {
		return fmt.Errorf("write tar: %w", err)
	}
	return nil
}

type inode struct{ dev, ino uint64 }

type packer struct {
	ctx   context.Context
	tw    *tar.Writer
	mount uint64
	links map[inode]string
	buf   []byte
}

func mountID(fd int) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return 0, err
	}
	return st.Mnt_id, nil
}

func (p *packer) directory(dir *os.File, name string) error {
	fd := int(dir.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("look at %q: %w", name, err)
	}
	h := header(name+"/", &st)
	h.Typeflag = tar.TypeDir
	if err := readXattrs(fd, name, h, false); err != nil {
		return err
	}
	if err := p.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("write header of %q: %w", name, err)
	}
	if mount, err := mountID(fd); err != nil || mount != p.mount {
		return err
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("list %q: %w", name, err)
	}
	sort.Strings(names)
	for _, base := range names {
		if err := p.ctx.Err(); err != nil {
			return err
		}
		if strings.HasPrefix(base, whPrefix) {
			return fmt.Errorf("%w: %q begins with %q, which a layer reserves for whiteouts: rename it", ErrLayer, path.Join(name, base), whPrefix)
		}
		if err := p.entry(fd, base, path.Join(name, base)); err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) entry(dirfd int, base, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dirfd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("look at %q: %w", name, err)
	}
	kind := st.Mode & unix.S_IFMT
	switch kind {
	case unix.S_IFCHR, unix.S_IFBLK, unix.S_IFSOCK:
		return nil
	case unix.S_IFDIR:
		fd, err := unix.Openat(dirfd, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %q: %w", name, err)
		}
		dir := os.NewFile(uintptr(fd), name)
		defer dir.Close()
		return p.directory(dir, name)
	}
	h := header(name, &st)
	if st.Nlink > 1 {
		id := inode{uint64(st.Dev), st.Ino}
		if first, ok := p.links[id]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return p.write(h, name)
		}
		p.links[id] = name
	}
	switch kind {
	case unix.S_IFLNK:
		n, err := unix.Readlinkat(dirfd, base, p.buf)
		if err != nil {
			return fmt.Errorf("read link %q: %w", name, err)
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, string(p.buf[:n])
		return p.write(h, name)
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
		return p.write(h, name)
	}
	fd, err := unix.Openat(dirfd, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %q: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("look at %q: %w", name, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("%q changed while it was read", name)
	}
	h.Typeflag, h.Size = tar.TypeReg, st.Size
	if err := readXattrs(fd, name, h, true); err != nil {
		return err
	}
	if err := p.write(h, name); err != nil {
		return err
	}
	n, err := io.CopyBuffer(p.tw, io.LimitReader(fileReader{f, p.ctx}, st.Size), p.buf)
	if err != nil {
		return fmt.Errorf("read %q: %w", name, err)
	}
	if n != st.Size {
		return fmt.Errorf("%q shrank while it was read", name)
	}
	return nil
}

// fileReader hides *os.File's WriterTo, which would bypass the buffer, and looks at the context.
type fileReader struct {
	f   *os.File
	ctx context.Context
}

func (r fileReader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.f.Read(b)
}

func (p *packer) write(h *tar.Header, name string) error {
	if err := p.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("write header of %q: %w", name, err)
	}
	return nil
}

func header(name string, st *unix.Stat_t) *tar.Header {
	return &tar.Header{
		Format:  tar.FormatPAX,
		Name:    name,
		Mode:    int64(st.Mode & 0o7777),
		Uid:     int(st.Uid),
		Gid:     int(st.Gid),
		ModTime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec),
	}
}

func readXattrs(fd int, name string, h *tar.Header, file bool) error {
	size, err := unix.Flistxattr(fd, nil)
	if errors.Is(err, unix.ENOTSUP) || err == nil && size == 0 {
		return nil
	}
	list := make([]byte, size+4096)
	if err == nil {
		size, err = unix.Flistxattr(fd, list)
	}
	if err != nil {
		return fmt.Errorf("list attributes of %q: %w", name, err)
	}
	for _, attr := range strings.Split(string(list[:size]), "\x00") {
		if attr == "" || !keepXattr(attr, file) {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Fgetxattr(fd, attr, value)
		if err != nil {
			return fmt.Errorf("read attribute %q of %q: %w", attr, name, err)
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[paxXattr+attr] = string(value[:n])
	}
	return nil
}
