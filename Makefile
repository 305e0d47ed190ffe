# Learnos: every common task, by name. `make help` lists them.
SHELL := /bin/bash
GO ?= go
export CGO_ENABLED ?= 0
LDFLAGS := -s -w
BINS := learnos nodeagent gateway web

.PHONY: help build init panel
help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

init: ## build PID 1 of an environment, which package runtime embeds
	@mkdir -p runtime/embedded
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o runtime/embedded/init ./init

panel: ## build the browser panel into web/dist
	cd web/panel && npm ci --no-progress && npm run build

build: init panel ## build every binary into bin/
	@mkdir -p bin
	for b in $(BINS); do $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/$$b ./cmd/$$b || exit 1; done
