package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Retire removes the cgroup that containers' cgroups live in, on every hierarchy, for who gives a machine back. It is an
// error while a container is left; a later Create makes it anew.
func (r *Runtime) Retire() error {
	var errs []error
	for _, h := range r.hierarchies.all {
		dir := filepath.Join(h.dir, r.opts.CgroupParent)
		if err := unix.Rmdir(dir); err != nil && err != unix.ENOENT {
			errs = append(errs, fmt.Errorf("runtime: retire: %w", &os.PathError{Op: "rmdir", Path: dir, Err: err}))
		}
	}
	return errors.Join(errs...)
}
