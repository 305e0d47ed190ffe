// Command web serves the browser panel and the SSH front door of Learnos, in front of a gateway.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/learnos/learnos/internal/buildinfo"
	"github.com/learnos/learnos/internal/config"
	"github.com/learnos/learnos/web"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends it at once
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return
		}
		fmt.Fprintln(os.Stderr, "web:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := pflag.NewFlagSet("web", pflag.ContinueOnError)
	f.SetOutput(stdout)
	file := f.String("config", "", "configuration `FILE`; without it defaults and LEARNOS_… variables count (see: learnos config)")
	panelAddr := f.String("web-addr", "", "`HOST:PORT` of the panel, over web.webAddr")
	sshAddr := f.String("ssh-addr", "", "`HOST:PORT` of the SSH door, over web.sshAddr")
	show := f.Bool("version", false, "print the version")
	f.Usage = func() {
		fmt.Fprintf(stdout, "Serve the browser panel and the SSH front door.\n\nUsage: web [--config FILE]\n\n%s\nExample: web --config /etc/learnos/config.toml\n", f.FlagUsages())
	}
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("%q is not understood; see web --help", f.Arg(0))
	}
	if *show {
		_, err := fmt.Fprintln(stdout, "web", buildinfo.Version())
		return err
	}
	cfg, err := config.Load(*file, func(c *config.Config) {
		if f.Changed("web-addr") {
			c.Web.WebAddr = *panelAddr
		}
		if f.Changed("ssh-addr") {
			c.Web.SSHAddr = *sshAddr
		}
	})
	if err != nil {
		return err
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Common.LogLevel)); err != nil {
		return fmt.Errorf("common.logLevel: %w", err)
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level})))
	s, err := web.Open(cfg, buildinfo.Version())
	if err != nil {
		return err
	}
	host, port := s.SSHAddr()
	slog.Info("web is up", "panel", s.PanelURL(), "sshHost", host, "sshPort", port, "hostKey", s.Fingerprint(), "gateway", cfg.Web.GatewayURL)
	return s.Run(ctx)
}
