// Command gateway is the API daemon of Learnos.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/learnos/learnos/gateway"
	"github.com/learnos/learnos/internal/buildinfo"
	"github.com/learnos/learnos/internal/config"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "gateway:", err)
		os.Exit(1)
	}
}

func run() error {
	flags := pflag.NewFlagSet("gateway", pflag.ContinueOnError)
	path := flags.StringP("config", "c", "", "configuration `FILE` (TOML); without one the defaults and LEARNOS_… variables count (see: learnos config)")
	show := flags.Bool("version", false, "print the version and end")
	flags.Usage = func() {
		fmt.Printf("Serve Learnos' HTTP API, keep people, images and environments in SQL, and let nodes dial in.\n\nUsage: gateway [--config FILE]\n\n%s\nExample: gateway --config /etc/learnos/config.toml\n", flags.FlagUsages())
	}
	if err := flags.Parse(os.Args[1:]); errors.Is(err, pflag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q; see gateway --help", flags.Arg(0))
	}
	if *show {
		fmt.Println("gateway", buildinfo.Version())
		return nil
	}
	cfg, err := config.Load(*path)
	if err != nil {
		return err
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Common.LogLevel)); err != nil {
		return fmt.Errorf("common.logLevel: %w", err)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	server, err := gateway.New(ctx, cfg, gateway.Deps{Log: log, Version: buildinfo.Version()})
	if err != nil {
		return err
	}
	if err := server.Run(ctx); err != nil {
		return err
	}
	log.Info("gateway ended")
	return nil
}
