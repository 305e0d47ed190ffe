package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"path"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/rootfs/internal/layertar"
)

// stack decides which of an image's layers, given lowest first, become overlayfs' layers, and in which order.
// It leaves out what has no effect, and adds a layer where the ones there are do not say what a directory looks
// like.
func (s *Store) stack(ctx context.Context, c *content, infos []*layerInfo) error {
	seen := map[string]bool{}
	for i := len(infos) - 1; i >= 0; i-- {
		info := infos[i]
		// A layer's second occurrence, further down, brings nothing the upper one does not say, and overlayfs
		// refuses it. An empty one brings nothing at all.
		if seen[info.Digest] || info.Entries == 0 {
			continue
		}
		seen[info.Digest] = true
		c.layers = append(c.layers, info.Digest)
		c.size += info.Bytes
		if info.OpaqueRoot {
			break
		}
	}
	for i, j := 0, len(c.layers)-1; i < j; i, j = i+1, j-1 {
		c.layers[i], c.layers[j] = c.layers[j], c.layers[i]
	}
	if len(c.layers) == 0 {
		// An image made from nothing still has a root directory.
		return s.push(ctx, c, emptyTar())
	}
	fix, err := s.fixDirs(ctx, c.layers)
	if err == nil && fix != nil {
		err = s.push(ctx, c, fix)
	}
	if err != nil {
		return err
	}
	return s.underlay(ctx, c)
}

// underlay puts layers of empty directories below those that need it: overlayfs lists the whiteouts of a directory that only one layer has, as names without a file. With a second one underneath it
// knows that it has to look.
func (s *Store) underlay(ctx context.Context, c *content) error {
	var roots []int
	defer func() {
		for _, fd := range roots {
			unix.Close(fd)
		}
	}()
	open := func(digest string) error {
		fd, err := unix.Open(s.layerFS(digest), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: s.layerFS(digest), Err: err}
		}
		roots = append(roots, fd)
		return nil
	}
	layers := c.layers
	c.layers = nil
	for i, d := range layers {
		info, err := s.haveLayer(d)
		if err != nil {
			return err
		}
		if info == nil {
			return fmt.Errorf("layer %s vanished", d)
		}
		need := map[string]bool{}
		for _, name := range info.Whiteouts {
			if dirBelow(roots, name) {
				continue
			}
			for p := name; p != "."; p = path.Dir(p) {
				need[p] = true
			}
		}
		if len(need) > 0 {
			if err := s.push(ctx, c, dirsTar(sortedKeys(need), i)); err != nil {
				return err
			}
			if err := open(c.layers[len(c.layers)-1]); err != nil {
				return err
			}
		}
		if err := open(d); err != nil {
			return err
		}
		c.layers = append(c.layers, d)
	}
	return nil
}

// dirBelow says whether a directory on top of the given layers would be merged with one of theirs.
func dirBelow(roots []int, name string) bool {
	for i := len(roots) - 1; i >= 0; i-- {
		found, last := lookDir(roots[i], name)
		if found || last {
			return found
		}
	}
	return false
}

// dirsTar is a layer of directories. Its place in the stack makes it unlike that of another place, for overlayfs
// takes a layer only once.
func dirsTar(names []string, place int) []byte {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, name := range names {
		// Neither can fail: the names came from a tar, and the buffer takes all.
		tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, Format: tar.FormatPAX, ModTime: time.Unix(int64(place), 0)})
	}
	tw.Close()
	return buf.Bytes()
}

// push adds a layer on top.
func (s *Store) push(ctx context.Context, c *content, layer []byte) error {
	info, l, err := s.addLayer(ctx, bytes.NewReader(layer), layertar.Options{})
	if err != nil {
		return err
	}
	c.layers = append(c.layers, info.Digest)
	c.holds = append(c.holds, l)
	return nil
}

func emptyTar() []byte {
	return make([]byte, 1024) // the two zero blocks that end a tar
}

// A dirState is what a directory of the merged tree looks like.
type dirState struct {
	layer    int // the topmost that shows it
	from     int // the topmost that has an entry for it; -1 if none has
	st       unix.Stat_t
	xattrs   map[string]string
	explicit bool
}

// fixDirs builds a layer of directories, or nil. A layer may hold /a/b without an entry for /a itself. It then
// got a made-up /a, which overlayfs would show in place of the one with the right owner and mode further down:
// the added layer repeats the right one on top.
func (s *Store) fixDirs(ctx context.Context, layers []string) ([]byte, error) {
	implicit := make([]map[string]bool, len(layers))
	roots := make([]int, len(layers))
	candidates := map[string]bool{}
	for i, d := range layers {
		info, err := s.haveLayer(d)
		if err != nil {
			return nil, err
		}
		if info == nil {
			return nil, fmt.Errorf("layer %s vanished", d)
		}
		implicit[i] = map[string]bool{}
		for _, name := range info.Implicit {
			implicit[i][name] = true
			if i > 0 {
				candidates[name] = true
			}
		}
		if roots[i], err = unix.Open(s.layerFS(d), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			return nil, &os.PathError{Op: "open", Path: s.layerFS(d), Err: err}
		}
		defer unix.Close(roots[i])
	}
	fix := map[string]dirState{}
	for name := range candidates {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		state, ok := mergedDir(roots, implicit, name)
		if !ok || !state.explicit || state.from == state.layer {
			continue
		}
		var shown unix.Stat_t
		xattrs, err := dirXattrs(roots[state.layer], name, &shown)
		if err != nil {
			return nil, err
		}
		if shown.Mode == state.st.Mode && shown.Uid == state.st.Uid && shown.Gid == state.st.Gid && fmt.Sprint(xattrs) == fmt.Sprint(state.xattrs) {
			continue
		}
		// Its parents come along, and must look as they do without the added layer.
		for p := name; ; p = path.Dir(p) {
			if _, done := fix[p]; done {
				break
			}
			if parent, ok := mergedDir(roots, implicit, p); ok {
				fix[p] = parent
			}
			if p == "." {
				break
			}
		}
	}
	if len(fix) == 0 {
		return nil, nil
	}
	names := make([]string, 0, len(fix))
	for name := range fix {
		names = append(names, name)
	}
	sort.Strings(names)
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, name := range names {
		d := fix[name]
		h := &tar.Header{
			Typeflag: tar.TypeDir, Name: name + "/", Mode: int64(d.st.Mode & 0o7777), Uid: int(d.st.Uid), Gid: int(d.st.Gid),
			ModTime: time.Unix(d.st.Mtim.Sec, d.st.Mtim.Nsec), Format: tar.FormatPAX, PAXRecords: map[string]string{},
		}
		for k, v := range d.xattrs {
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
		if err := tw.WriteHeader(h); err != nil {
			return nil, err
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// mergedDir finds what the directory name looks like in the stack; ok is false if it does not show there.
func mergedDir(roots []int, implicit []map[string]bool, name string) (state dirState, ok bool) {
	for i := len(roots) - 1; i >= 0; i-- {
		found, last := lookDir(roots[i], name)
		if found {
			entry := !implicit[i][name]
			if !ok {
				state, ok = dirState{layer: i, from: -1}, true
			}
			if entry || state.from < 0 {
				xattrs, err := dirXattrs(roots[i], name, &state.st)
				if err != nil {
					return state, false
				}
				state.xattrs, state.from, state.explicit = xattrs, i, entry
			}
			if entry {
				return state, true
			}
		}
		if last {
			break
		}
	}
	return state, ok
}

// lookDir says whether a layer has the directory name, and whether the layers below it do not count any more.
func lookDir(root int, name string) (found, last bool) {
	fd := root
	defer func() {
		if fd != root {
			unix.Close(fd)
		}
	}()
	if name == "." {
		return true, false
	}
	for _, part := range strings.Split(name, "/") {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, part, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return false, last
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return false, true
		}
		next, err := unix.Openat(fd, part, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return false, last
		}
		if fd != root {
			unix.Close(fd)
		}
		fd = next
		if n, err := unix.Fgetxattr(fd, "trusted.overlay.opaque", make([]byte, 1)); err == nil && n > 0 {
			last = true
		}
	}
	return true, last
}

func dirXattrs(root int, name string, st *unix.Stat_t) (map[string]string, error) {
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(root, name, &how)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	if err := unix.Fstat(fd, st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	list := make([]byte, 64<<10)
	n, err := unix.Flistxattr(fd, list)
	if err != nil {
		return nil, &os.PathError{Op: "listxattr", Path: name, Err: err}
	}
	xattrs := map[string]string{}
	for _, attr := range strings.Split(string(list[:n]), "\x00") {
		if !strings.HasPrefix(attr, "user.") {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Fgetxattr(fd, attr, value)
		if err != nil {
			return nil, &os.PathError{Op: "getxattr", Path: name, Err: err}
		}
		xattrs[attr] = string(value[:n])
	}
	return xattrs, nil
}
