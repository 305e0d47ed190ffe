# Learnos: every common task, by name. `make help` lists them.
SHELL := /bin/bash
GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X github.com/learnos/learnos/internal/buildinfo.version=$(VERSION)
BINS := learnos nodeagent gateway web lrun
DATA ?= /var/lib/learnos
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

.DEFAULT_GOAL := help
.PHONY: help setup init panel build up test lint bench probe engines conformance rations fuzz vm vagrant clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

up: setup build ## set up, build and start the whole product on this machine (Ctrl-C stops it; environments stay)
	@if [ "$$(id -u)" -eq 0 ]; then exec bin/learnos up --data-dir $(DATA) $(ARGS); \
	elif command -v sudo >/dev/null; then echo "make up: containers need root, so sudo starts bin/learnos"; exec sudo bin/learnos up --data-dir $(DATA) $(ARGS); \
	else echo "make up: containers need root: run it as root, or install sudo"; exit 1; fi

setup: ## install what building and running need (apt), and say what
	@scripts/setup build

init: ## build PID 1 of an environment, which package runtime embeds, and the busybox image's ping, which rootfs does
	@mkdir -p runtime/embedded rootfs/embedded
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS) -E main.entry' -o runtime/embedded/init ./init
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o rootfs/embedded/ping ./rootfs/internal/ping

web/panel/node_modules: web/panel/package-lock.json
	cd web/panel && npm ci --no-progress --no-audit --no-fund
	@touch $@

panel: web/panel/node_modules ## build the browser panel into web/dist
	cd web/panel && npm run --silent build

build: init panel ## build every binary into bin/
	@mkdir -p bin
	set -e; for b in $(BINS); do CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/$$b ./cmd/$$b; done

test: ## install what tests need, build, and run every test
	@scripts/setup test
	@if [ "$$(id -u)" -ne 0 ]; then echo "make test: most tests make real containers and need root: run it as root"; exit 1; fi
	$(MAKE) build
	cd web/panel && npm run --silent check && npm test --silent
	CGO_ENABLED=1 $(GO) test -race -count=1 -timeout 40m $(TESTFLAGS) ./...

lint: ## gofmt, go vet, staticcheck, and the panel's type check
	@out=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "gofmt would change:"; echo "$$out"; exit 1; fi
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	cd web/panel && npm run --silent check

bench: build ## measure beside crun, runc, podman and docker, each started here; a table (and ARGS="-json F -page F")
	@scripts/setup bench
	$(GO) build -o bin/bench ./tests/bench
	bin/bench $(ARGS)

probe: setup init ## a hostile program tries to get out of an environment, here and in the cgroup v2 guest; a table of what it tried
	@scripts/setup test
	$(GO) test -count=1 -v -run Probe ./tests/probe
	$(GO) test -count=1 -v -run 'TestRoomsInGuest/tests-probe' ./tests/vm

engines: init ## podman and containerd on lrun: all that their tests do, here and in the cgroup v2 guest (20 min there)
	@scripts/setup test
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./cmd/lrun ./tests/vm/vmexec
	LEARNOS_ENGINES_LRUN=$$PWD/bin/lrun $(GO) test -count=1 -v ./tests/engines
	LEARNOS_ENGINES_LRUN=$$PWD/bin/lrun CGO_ENABLED=0 $(GO) test -count=1 -v -p 1 -timeout 1h -exec $$PWD/bin/vmexec ./tests/engines

conformance: init ## the OCI validation programs on lrun beside Debian's crun and runc: a table for here, one for the cgroup v2 guest
	@scripts/setup test
	CGO_ENABLED=0 $(GO) run ./tests/conformance $(ARGS)

fuzz: init ## fuzz every parser that reads what a stranger sends, FUZZTIME each (10s)
	@for pkg in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' $$pkg 2>/dev/null | grep '^Fuzz'); do \
			echo "$$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $${FUZZTIME:-10s} -fuzzminimizetime 1s $$pkg || exit 1; \
		done; \
	done

rations: init ## measure every limit of an environment, here (v1 or v2) and in the cgroup v2 guest: a table each
	@scripts/setup test
	$(GO) test -count=1 -v ./tests/rations
	$(GO) test -count=1 -v -run 'TestRoomsInGuest/tests-rations' ./tests/vm

vm: init ## a root shell on a pure cgroup v2 machine (QEMU, a Debian kernel, this checkout read-only), and a table of what is in it
	@scripts/setup test
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/vmexec ./tests/vm/vmexec
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/nodeagent ./cmd/nodeagent
	bin/vmexec -shell

vagrant: build ## prove the Vagrantfile: a box made on the spot comes up under emulation and runs an environment (3 min)
	@scripts/setup vagrant
	tests/vm/vagrant.sh

clean: ## remove what building left here (never an environment or a data directory)
	rm -rf bin runtime/embedded/init rootfs/embedded/ping web/panel/node_modules
	find web/dist -mindepth 1 ! -name .gitkeep -delete
