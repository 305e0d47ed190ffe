package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// local is the registry that everybody pulls from: plain HTTP on the loopback of the namespace that all are in, which
// engines take for harmless.
func (b *bench) local() (string, error) {
	if b.registry != "" {
		return b.registry, nil
	}
	blobs := filepath.Join(b.work, "registry")
	if err := os.Mkdir(blobs, 0o700); err != nil {
		return "", err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithBlobHandler(registry.NewDiskBlobHandler(blobs)))
	server := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0)}
	go func() { _ = server.Serve(l) }() // until the process ends
	b.registry = l.Addr().String()
	return b.registry, nil
}

// push makes an image of layers, which are gzipped tar files, and returns its reference.
func (b *bench) push(ctx context.Context, repository string, layers []string) (string, error) {
	addr, err := b.local()
	if err != nil {
		return "", err
	}
	ref, err := name.ParseReference(addr+"/bench/"+repository+":latest", name.Insecure)
	if err != nil {
		return "", err
	}
	img := empty.Image
	for _, path := range layers {
		layer, err := tarball.LayerFromFile(path)
		if err != nil {
			return "", err
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			return "", err
		}
	}
	img, err = mutate.Config(img, v1.Config{Cmd: []string{"/bin/sh"}, Env: []string{"PATH=/bin"}})
	if err != nil {
		return "", err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return "", err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", runtime.GOARCH
	if img, err = mutate.ConfigFile(img, file); err != nil {
		return "", err
	}
	if err := remote.Write(ref, img, remote.WithContext(ctx)); err != nil {
		return "", fmt.Errorf("push %s: %w", ref, err)
	}
	return ref.String(), nil
}

// busyboxImage pushes the root file system that the OCI runtimes are given as an image of one layer.
func (b *bench) busyboxImage(ctx context.Context) (string, error) {
	if b.busybox != "" {
		return b.busybox, nil
	}
	root, err := b.rootfs()
	if err != nil {
		return "", err
	}
	path := filepath.Join(b.work, "busybox.tar.gz")
	if err := gzipped(path, func(t *tar.Writer) error { return t.AddFS(os.DirFS(root)) }); err != nil {
		return "", fmt.Errorf("pack %s: %w", root, err)
	}
	b.busybox, err = b.push(ctx, "busybox", []string{path})
	return b.busybox, err
}

// gzipped writes a gzipped tar file.
func gzipped(path string, write func(*tar.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	z := gzip.NewWriter(f)
	t := tar.NewWriter(z)
	for _, step := range []func() error{func() error { return write(t) }, t.Close, z.Close, f.Close} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// bigLayer writes a layer of files of 1 KiB to 1 MiB that are about as compressible as programs are.
func bigLayer(path string, seed uint64, size int) error {
	random := rand.New(rand.NewPCG(seed, 1))
	words := make([]string, 4096)
	for i := range words {
		var w strings.Builder
		for range 4 + random.IntN(12) {
			w.WriteByte(byte(random.Uint32()))
		}
		words[i] = w.String()
	}
	return gzipped(path, func(t *tar.Writer) error {
		for i, written := 0, 0; written < size; i++ {
			want := min(1<<(10+random.IntN(11)), size-written)
			content := make([]byte, 0, want+16)
			for len(content) < want {
				content = append(content, words[random.IntN(len(words))]...)
			}
			content = content[:want]
			h := &tar.Header{Name: fmt.Sprintf("data/%d/%d/%d", seed, i%20, i), Mode: 0o644, Size: int64(want), Typeflag: tar.TypeReg}
			if err := t.WriteHeader(h); err != nil {
				return err
			}
			if _, err := t.Write(content); err != nil {
				return err
			}
			written += want
		}
		return nil
	})
}
