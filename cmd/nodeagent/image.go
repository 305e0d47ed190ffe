package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"github.com/learnos/learnos/rootfs"
)

func imageCommand() command {
	table := []command{imageBuildCommand(), imagePullCommand(), imageLsCommand(), imageRmCommand()}
	return command{name: "image", args: "build|pull|ls|rm", short: "build, pull, list and remove images", inner: true,
		long:    "Commands: build, pull, ls, rm; `nodeagent image COMMAND --help` says more.",
		example: "nodeagent image build busybox\nnodeagent image pull docker.io/library/alpine:3.22\nnodeagent image ls",
		define: func(*pflag.FlagSet) func(context.Context, *app, []string) error {
			return func(ctx context.Context, a *app, args []string) error {
				return a.dispatch(ctx, "nodeagent image", table, args)
			}
		}}
}

func imageBuildCommand() command {
	return command{name: "build", args: "busybox|debootstrap[:SUITE]", short: "make an image on the spot",
		long: `busybox is this machine's static busybox (Debian: apt-get install busybox-static) with its applets and the few
files in /etc that programs look for. debootstrap is a small Debian; it needs debootstrap(8) and a mirror.`,
		example: "nodeagent image build busybox\nnodeagent image build debootstrap:bookworm",
		define: func(f *pflag.FlagSet) func(context.Context, *app, []string) error {
			force := f.Bool("force", false, "build even if the image is there")
			mirror := f.String("mirror", "", "Debian mirror `URL` (default: this machine's own)")
			return func(ctx context.Context, a *app, args []string) error {
				if len(args) != 1 {
					return badUsage("say what to build: busybox or debootstrap[:SUITE]")
				}
				n, err := a.node()
				if err != nil {
					return err
				}
				p := newProgress(a.stderr)
				img, err := n.Images().Build(ctx, args[0], rootfs.BuildOptions{Force: *force, Mirror: *mirror, Progress: p.report})
				p.finish(err == nil)
				if err != nil {
					return err
				}
				fmt.Fprintln(a.stdout, img.Name)
				return nil
			}
		}}
}

func imagePullCommand() command {
	return command{name: "pull", args: "REF", short: "fetch an image",
		long: `REF is a registry's (docker.io/library/alpine:3.22), oci:DIR[:TAG] for an OCI layout, docker-archive:FILE for what
` + "`docker save`" + ` writes, or dir:PATH for a plain root file system. What was fetched before an interruption is not
fetched again.`,
		example: "nodeagent image pull docker.io/library/redis:8\nnodeagent image pull --name mine dir:/srv/rootfs",
		define: func(f *pflag.FlagSet) func(context.Context, *app, []string) error {
			name := f.String("name", "", "`NAME` to give the image (default: from REF)")
			insecure := f.Bool("insecure", false, "talk plain HTTP to the registry")
			absolute := f.Bool("absolute-names", false, "accept layers with names that begin with /, relative to the root")
			return func(ctx context.Context, a *app, args []string) error {
				if len(args) != 1 {
					return badUsage("say what to pull")
				}
				n, err := a.node()
				if err != nil {
					return err
				}
				p := newProgress(a.stderr)
				img, err := n.Images().Pull(ctx, args[0], rootfs.PullOptions{
					Name: *name, Insecure: *insecure, AbsoluteNames: *absolute, Progress: p.report,
				})
				p.finish(err == nil)
				if err != nil {
					return err
				}
				fmt.Fprintln(a.stdout, img.Name)
				return nil
			}
		}}
}

func imageLsCommand() command {
	return command{name: "ls", short: "list images", example: "nodeagent image ls\nnodeagent image ls --json",
		define: func(f *pflag.FlagSet) func(context.Context, *app, []string) error {
			asJSON := f.Bool("json", false, "print JSON")
			return func(ctx context.Context, a *app, args []string) error {
				if err := noArgs(args); err != nil {
					return err
				}
				n, err := a.node()
				if err != nil {
					return err
				}
				images, err := n.Images().Images(ctx)
				if err != nil {
					return err
				}
				if *asJSON {
					return printJSON(a.stdout, images)
				}
				t := newTable("NAME", "DIGEST", "SIZE", "CREATED", "SOURCE")
				for _, img := range images {
					t.row(img.Name, shortDigest(img.Digest), sizeText(img.Size), since(img.Created)+" ago", img.Source)
				}
				return t.print(a.stdout)
			}
		}}
}

func imageRmCommand() command {
	return command{name: "rm", args: "NAME…", short: "remove images", example: "nodeagent image rm busybox",
		define: func(f *pflag.FlagSet) func(context.Context, *app, []string) error {
			return func(ctx context.Context, a *app, args []string) error {
				if len(args) == 0 {
					return badUsage("say which image (see `nodeagent image ls`)")
				}
				n, err := a.node()
				if err != nil {
					return err
				}
				return forEach(a, args, ownFailure, func(name string) error {
					err := n.Images().Remove(ctx, name)
					if errors.Is(err, rootfs.ErrInUse) {
						return fmt.Errorf("%w (remove the environments made from it first: `nodeagent ps -a`)", err)
					}
					return err
				})
			}
		}}
}

func shortDigest(d string) string {
	_, hex, ok := strings.Cut(d, ":")
	if !ok {
		return d
	}
	return clipText(hex, 12)
}
