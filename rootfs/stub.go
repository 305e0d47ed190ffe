package rootfs

import (
	"context"
	"errors"
	"os"
	"time"
)

var errLater = errors.New("not there yet")

// Store is a directory of images, layers and snapshots.
type Store struct{ root string }

// Snapshot is a writable layer over an image.
type Snapshot struct {
	ID          string
	Image       string
	ImageDigest string
	Layers      []string
	HostUID     int
	HostGID     int
	Volatile    bool
	Created     time.Time
}

func Open(root string) (*Store, error) { return nil, errLater }

func (s *Store) Pull(ctx context.Context, ref string, o PullOptions) (*Image, error) {
	return nil, errLater
}
func (s *Store) Build(ctx context.Context, kind string, o BuildOptions) (*Image, error) {
	return nil, errLater
}
func (s *Store) Image(ctx context.Context, name string) (*Image, error) { return nil, errLater }
func (s *Store) Ensure(ctx context.Context, nameOrSource string, o PullOptions) (*Image, error) {
	return nil, errLater
}
func (s *Store) Images(ctx context.Context) ([]*Image, error)  { return nil, errLater }
func (s *Store) Remove(ctx context.Context, name string) error { return errLater }
func (s *Store) Prepare(ctx context.Context, id string, img *Image, o SnapshotOptions) (*Snapshot, error) {
	return nil, errLater
}
func (s *Store) Snapshot(ctx context.Context, id string) (*Snapshot, error) { return nil, errLater }
func (s *Store) Snapshots(ctx context.Context) ([]*Snapshot, error)         { return nil, errLater }
func (sn *Snapshot) Mount(ctx context.Context, userns *os.File, readOnly bool) (*os.File, error) {
	return nil, errLater
}
func (sn *Snapshot) Usage(ctx context.Context) (int64, error) { return 0, errLater }
func (s *Store) Release(ctx context.Context, id string) error { return errLater }
func (s *Store) Sweep(ctx context.Context, live func(id string) bool) ([]string, error) {
	return nil, errLater
}
func Volume(ctx context.Context, src string, userns *os.File, readOnly bool) (*os.File, error) {
	return nil, errLater
}
