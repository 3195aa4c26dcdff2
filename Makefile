# The front door. What is more than one line lives in xtask.
.DEFAULT_GOAL := help
REGENT := target/release/regent
.PHONY: help setup images clients build up down test unit worlds simulate e2e crashes fuzz drills soak check fmt bench load

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: ## install what is missing (Debian packages, kubectl)
	@command -v cc >/dev/null || { echo "==> installing build-essential, which Rust links with"; apt-get update -q && apt-get install -yq build-essential; }
	@cargo xtask setup $(if $(ROOM_GB),--room-gb $(ROOM_GB))

images: ## build the container images from Debian packages into target/images
	@cargo xtask images

build: setup ## build the release binary, target/release/regent
	@cargo build --release --package regent

up: build images ## bring up a cluster of four nodes here and serve nginx from it
	@cargo xtask up --regent $(REGENT)

down: ## take the cluster away, without a trace
	@$(REGENT) sandbox down

clients: ## fetch the clients that the end-to-end tests use (kubectl of many versions, Helm, Python's, Node's)
	@cargo xtask clients

# What is built once needs no incremental compilation, which would take three times the disk.
test: export CARGO_INCREMENTAL = 0
test: ROOM_GB = 14
test: setup images clients ## everything that must pass: house rules, unit and API tests, the cluster end to end
	@cargo xtask tidy
	@cargo test --workspace --quiet --exclude regent --all-targets
	@$(MAKE) --no-print-directory worlds
	@cargo test --package regent --quiet --bins
	@cargo test --package regent --quiet --test operations
	@cargo test --package regent --quiet --test crashes
	@$(MAKE) --no-print-directory e2e

unit: setup ## the tests that need no cluster
	@cargo test --workspace --quiet --exclude regent --all-targets
	@cargo test --package regent --quiet --bins

worlds: ## a thousand simulated clusters, and what they must find when a mechanism is switched off
	@REGENT_PROGRESS=1 REGENT_SEEDS=$(or $(seeds),1000) REGENT_ONLY=$(only) $(if $(seed),REGENT_SEED=$(seed)) cargo test --profile simulation --quiet --package simulation --test simulation

simulate: worlds ## the same, and parts alone; `seeds=5000` for more, `only=world seed=17` for one again
ifeq ($(only)$(seed),)
	@REGENT_SEEDS=$(or $(seeds),1000) cargo test --profile simulation --quiet --package membership --test simulation -- --nocapture
	@REGENT_SEEDS=$(or $(seeds),1000) cargo test --profile simulation --quiet --package client --test simulation -- --nocapture
	@REGENT_SEEDS=$(or $(seeds),1000) cargo test --profile simulation --quiet --package network --lib balancer::simulation -- --nocapture
	@REGENT_SEEDS=$(or $(seeds),1000) cargo test --profile simulation --quiet --package node --lib pod::simulation -- --nocapture
endif

crashes: setup ## 10,000 acknowledged writes on each store while the API server is killed at random; `make crashes writes=50000`
	@REGENT_WRITES=$(or $(writes),10000) cargo test --package regent --test crashes -- --nocapture --test-threads=1

fuzz: setup ## every parser that meets the network with nearly right inputs, for=60 seconds each; `make fuzz only=json`
	@REGENT_FUZZ_MS=$(or $(for),60)000 cargo test --package fuzz --test parsers -- $(only)

e2e: setup images clients ## the cluster end to end, with real containers; `make e2e only=NAME` runs what has NAME in its name
	@cargo test --package regent --test e2e -- $(only)

drills: build images ## every drill, with a report: target/drills.html; some of them take minutes
	@$(REGENT) drill run all --dir target/drills-sandbox --images target/images --report target/drills.html --document docs/what-happens-when.md

soak: build images ## random faults under constant traffic, for=1h: a table of faults and figures
	@$(REGENT) drill soak --duration $(or $(for),1h) --dir target/drills-sandbox --images target/images --report target/soak.html

check: setup ## formatting, lints and house rules
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --quiet -- --deny warnings
	@cargo xtask tidy

fmt: ## format the code
	@cargo fmt --all

bench: build images ## measure start, memory, time to serve (the README's figures), and the API server phase by phase
	@cargo xtask bench --regent $(REGENT)
	@$(MAKE) --no-print-directory load
	@cargo bench --quiet --package apiserver --bench phases

load: build ## the API server over HTTPS, phase by phase, beside Kubernetes' figures (docs/performance.md)
	@cargo run --release --quiet --package xtask -- load --regent $(REGENT)
