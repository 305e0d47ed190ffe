package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
)

// benchImage has the given number of layers with as many megabytes each (uncompressed) of files of 1 KiB to
// 1 MiB, about as compressible as programs are.
func benchImage(b *testing.B, layers, megabytes int) *testImage {
	b.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	words := make([][]byte, 4096)
	for i := range words {
		words[i] = make([]byte, 4+rng.IntN(12))
		for j := range words[i] {
			words[i][j] = byte(rng.Uint32())
		}
	}
	var all []testLayer
	for l := range layers {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for i := 0; buf.Len() < megabytes<<20; i++ {
			content := make([]byte, 0, 1<<20)
			for size := 1 << (10 + rng.IntN(11)); len(content) < size; {
				content = append(content, words[rng.IntN(len(words))]...)
			}
			w.WriteHeader(&tar.Header{Name: fmt.Sprintf("l%d/d%d/f%d", l, i%20, i), Mode: 0o644, Size: int64(len(content))})
			w.Write(content)
		}
		w.Close()
		all = append(all, testLayer{tar: buf.Bytes(), press: gz})
	}
	return makeImage(all...)
}

// BenchmarkPull pulls and unpacks from a registry in the same process, which takes its share of the machine.
func BenchmarkPull(b *testing.B) {
	for _, c := range []struct{ layers, megabytes int }{{8, 40}, {1, 100}} {
		b.Run(fmt.Sprintf("%dx%dMB", c.layers, c.megabytes), func(b *testing.B) {
			img := benchImage(b, c.layers, c.megabytes)
			ref := startRegistry(b, nil).push(b, "x", img)
			b.SetBytes(int64(c.layers*c.megabytes) << 20)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				s := testStore(b)
				b.StartTimer()
				if _, err := s.Pull(context.Background(), ref, PullOptions{}); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				s.Remove(context.Background(), ref)
				b.StartTimer()
			}
		})
	}
}
