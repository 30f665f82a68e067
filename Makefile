# Everything that a contributor runs. "make" alone lists it.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# CLUSTER: local (built and started for the occasion) or current (that of the kubeconfig).
CLUSTER ?= local
# SOURCE: redis, azure-storage-queue or azure-event-hubs. The latter two need Azurite, which is fetched.
SOURCE ?= redis
# VERSION goes into the binary; without it, the Go tool records the commit.
VERSION ?=
# N is how many fresh seeds the simulation runs.
N ?= 1000
# SEED is one to replay instead, or that of chaos; without it chaos takes another one each time, and prints it.
SEED ?=
# T is for how long each fuzz test runs.
T ?= 1m
# ARGS are handed on to the demo, the simulation, chaos or the benchmarks.
ARGS ?=

TOOL  := go tool -modfile=$(CURDIR)/.ci/tools/go.mod
LDFLAGS := $(if $(VERSION),-ldflags "-X main.version=$(VERSION)")
AZURITE := lease/leasetest/azurite
AZURITE_INSTALLED := $(AZURITE)/node_modules/.package-lock.json

.PHONY: help
help: ## List these targets.
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)


.PHONY: build
build: ## Build bin/lighterman.
	go build $(LDFLAGS) -o bin/lighterman ./cmd/lighterman

.PHONY: demo
demo: $(if $(filter azure-%,$(SOURCE)),$(AZURITE_INSTALLED))
demo: ## 100 messages, 100 Jobs, an empty queue. CLUSTER=current takes your kubeconfig's cluster, SOURCE=azure-event-hubs another queue.
	@echo "building the demo (once; later runs start at once)"
	@cd bench && go build -o ../bin/demo ./demo && exec ../bin/demo -cluster $(CLUSTER) -source $(SOURCE) $(ARGS)

.PHONY: test
test: deps ## Run all tests: units with the race detector, conformance of the sources, integration on a real cluster.
	@.ci/test

.PHONY: unit
unit: ## Run the tests that need nothing but Go.
	go test -race ./cmd/... ./dispatcher/... ./jobs/... ./metrics/... ./lease

.PHONY: conformance
conformance: deps ## Run the conformance suite on every source, with real servers.
	go test -race ./lease/...

.PHONY: integration
integration: deps ## Run the tests on a real cluster.
	cd bench && go run ./cluster build && go test -p 1 -timeout 30m ./...

.PHONY: simulate
simulate: ## Run the deterministic simulation over N=1000 fresh seeds; SEED=123 replays one.
	cd bench && go run ./simulate $(if $(SEED),-seed $(SEED),-n $(N)) $(ARGS)

# Each is run from its own folder, and so in its own module. "go test" runs one fuzz test at a time, and would by default spend up to a minute on making one
# input smaller that is only interesting.
.PHONY: fuzz
fuzz: ## Run all fuzz tests, one after another, T=1m each. What one finds stays in testdata/fuzz, for "make test" to repeat.
	@failed=(); \
	while IFS=: read -r file name; do \
	  echo "== $$file $$name"; \
	  go -C "$${file%/*}" test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(T) -fuzzminimizetime 2s . </dev/null || failed+=("$$file $$name"); \
	done < <(grep -rEo --include='*_test.go' --exclude-dir=node_modules '^func Fuzz[A-Za-z0-9_]+' . | sed 's/func //' | sort); \
	if (($${#failed[@]} > 0)); then printf 'failed: %s\n' "$${failed[@]}"; exit 1; fi

.PHONY: mutations
mutations: ## Break each promise on purpose, one after another, and let the simulation find it.
	cd bench && go test -count=1 -timeout 30m -run '^TestMutations$$' -v ./simulate

.PHONY: bench
bench: deps ## Run the benchmarks.
	cd bench && go test -run '^$$' -bench . -timeout 60m $(ARGS) ./...

.PHONY: chaos
chaos: deps ## Break everything while 4,000 messages are dispatched, and check that each was done once: about 7 minutes. SEED=n repeats a run's faults.
	@echo "building chaos (once; later runs start at once)"
	@cd bench && go build -o ../bin/chaos ./chaos && exec ../bin/chaos $(if $(SEED),-seed $(SEED)) $(ARGS)

.PHONY: cluster-up
cluster-up: ## Start a local cluster, and say where its kubeconfig is.
	cd bench && go run ./cluster up --detach

.PHONY: cluster-down
cluster-down: ## Stop the local cluster.
	cd bench && go run ./cluster down

.PHONY: lint
lint: ## Check style, imports and dead code in both modules.
	$(TOOL) golangci-lint run ./...
	cd bench && $(TOOL) golangci-lint run --config ../.golangci.yml ./...
	@echo deadcode
	@dead=$$($(TOOL) deadcode -test ./... | grep -v '^lease/leasetest/' || true); \
	if [[ -n $$dead ]]; then printf '%s\n' "$$dead"; exit 1; fi
	@dead=$$(cd bench && $(TOOL) deadcode -test ./...); \
	if [[ -n $$dead ]]; then printf '%s\n' "$$dead"; exit 1; fi

.PHONY: fmt
fmt: ## Format all Go code.
	$(TOOL) golangci-lint fmt ./...
	cd bench && $(TOOL) golangci-lint fmt --config ../.golangci.yml ./...

.PHONY: docs
docs: ## Write the reference documentation anew from the code.
	go test -run '^TestReference$$' ./dispatcher/annotation ./metrics -update

.PHONY: deps
deps: $(AZURITE_INSTALLED) ## Check for what the tests need, and fetch Azurite.
	@.ci/deps

# npm writes this file last. Its time is set since npm keeps that of an older one.
$(AZURITE_INSTALLED): $(AZURITE)/package-lock.json
	@.ci/deps
	cd $(AZURITE) && npm ci --no-audit --no-fund
	@touch $@

.PHONY: clean
clean: ## Remove what was built here. The caches of Go are left alone.
	rm -rf bin .cache $(AZURITE)/node_modules
