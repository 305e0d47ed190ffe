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
	"github.com/learnos/learnos/internal/config"
)

// version is set by the linker.
var version = "dev"

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "gateway:", err)
		os.Exit(1)
	}
}

func run() error {
	flags := pflag.NewFlagSet("gateway", pflag.ContinueOnError)
	path := flags.StringP("config", "c", "", "configuration file (TOML); without one the defaults and LEARNOS_… variables count")
	show := flags.Bool("version", false, "print the version and end")
	flags.Usage = func() {
		fmt.Fprintf(os.Stderr, "Usage: gateway [--config FILE]\n\nServes Learnos' HTTP API, keeps people, images and environments in SQL, and lets nodes dial in.\n\n%s", flags.FlagUsages())
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
		fmt.Println("gateway", version)
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
	server, err := gateway.New(ctx, cfg, gateway.Deps{Log: log, Version: version})
	if err != nil {
		return err
	}
	if err := server.Run(ctx); err != nil {
		return err
	}
	log.Info("gateway ended")
	return nil
}
