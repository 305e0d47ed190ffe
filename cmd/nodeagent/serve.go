package main

import (
	"context"
	"log/slog"
	"os"
	"runtime/debug"

	"github.com/learnos/learnos/internal/config"
	"github.com/learnos/learnos/nodeagent"
)

// serve reads the configuration and runs the daemon until ctx ends. A root given on the command line wins.
func serve(ctx context.Context, path, root string) error {
	debug.SetGCPercent(100)
	cfg, err := config.Load(path, func(c *config.Config) {
		if root != "" {
			c.Node.Root = root
		}
	})
	if err != nil {
		return err
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Common.LogLevel)); err != nil {
		return err
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
	return nodeagent.Serve(ctx, cfg)
}
