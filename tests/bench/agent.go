package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/learnos/learnos/nodeagent"
)

// residentNode creates and deletes an environment with its network in this process, as the daemon does.
func (b *bench) residentNode(ctx context.Context) (func(context.Context, int) (sample, error), error) {
	root, err := b.node()
	if err != nil {
		return nil, err
	}
	ref, err := b.busyboxImage(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := output(ctx, b.nodeagent("image", "pull", "--insecure", ref)...); err != nil {
		return nil, err
	}
	n, err := nodeagent.Open(root, nodeagent.Options{})
	if err != nil {
		return nil, err
	}
	img, err := n.Images().Image(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	return func(ctx context.Context, _ int) (sum sample, err error) {
		start := time.Now()
		e, err := n.Create(ctx, nodeagent.CreateOptions{Image: img, NoMain: true, Owner: nodeagent.OwnerPlatform, Net: nodeagent.NetBridge,
			Platform: &nodeagent.PlatformRecord{}})
		if err != nil {
			return sum, err
		}
		created := time.Since(start)
		for stage, us := range e.Record().Timings {
			sum.detail(stage, sample{wall: time.Duration(us) * time.Microsecond})
		}
		err = e.Delete(ctx)
		sum.wall = time.Since(start)
		sum.detail("create", sample{wall: created})
		return sum, errors.Join(err)
	}, nil
}
