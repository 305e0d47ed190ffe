package runtime

import (
	"os"
	"path/filepath"
	"testing"
)

// A retired runtime leaves no cgroup behind, refuses while a container lives, and can be used again.
func TestRetire(t *testing.T) {
	r, root := newRuntime(t), busyboxRoot(t)
	for range 2 {
		c, err := r.Create(t.Context(), CreateOptions{ID: "one", Spec: testSpec()})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(t.Context(), StartOptions{Root: mountRoot(t, c, root)}); err != nil {
			t.Fatal(err)
		}
		if err := r.Retire(); err == nil {
			t.Fatal("retired with a container alive")
		}
		if err := c.Delete(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := r.Retire(); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(r.opts.StateDir); err != nil {
			t.Fatal(err)
		}
		if left, err := r.List(t.Context()); err != nil || len(left) > 0 {
			t.Errorf("without its directory it lists %v %v", left, err)
		}
		for _, h := range r.hierarchies.all {
			if _, err := os.Stat(filepath.Join(h.dir, r.opts.CgroupParent)); !os.IsNotExist(err) {
				t.Errorf("%s is still there (%v)", filepath.Join(h.dir, r.opts.CgroupParent), err)
			}
		}
	}
}
