# What there is to do here. `make help` lists it.

.DEFAULT_GOAL := help
.PHONY: help demo demo-up test contract servers bench fuzz deny flood soak

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1 /p' $(MAKEFILE_LIST) | while read -r target text; do printf '  make %-9s %s\n' "$$target" "$$text"; done

demo: ## a real Envoy with tollgate behind it plays a story of limits at work
	@python3 examples/envoy/demo.py $(if $(filter-out memory,$(STORE)),--store $(STORE))

demo-up: ## the same gateway, left running, with requests to try; Ctrl-C stops it
	@python3 examples/envoy/demo.py --up $(if $(filter-out memory,$(STORE)),--store $(STORE))

# The servers that tests talk to: none may be missing.
WITH_SERVERS = TOLLGATE_REQUIRE_SERVERS=1 TOLLGATE_ENVOY="$$(scripts/envoy)" TOLLGATE_VALKEY="$$(scripts/valkey)"

ifdef STORE
test: servers
	$(WITH_SERVERS) cargo test --locked $(if $(filter memory,$(STORE)),--test memory --test store_contract,--test 'store_$(STORE)*' --test store_races --test store_faults --test store_app)
else
test: servers ## formatting, clippy, all tests, instructions a decision and a request; STORE=redis|postgres|memory: the tests of that store, and those of all shared stores
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --quiet
	@scripts/deny --if-installed
	$(WITH_SERVERS) cargo test --locked
	@# Fails above benches/engine/instructions.baseline by more than 1 %.
	cargo bench --locked --profile test --bench engine -- instructions
endif

contract: servers ## the contract of every store at length: a million random plans each, compared with the reference
	TOLLGATE_CONTRACT=10 $(WITH_SERVERS) cargo test --locked --test store_contract --test spread --test wrappers --test 'store_redis*' --test 'store_cluster*' -- contract decided_as_if
	TOLLGATE_CONTRACT=50 $(WITH_SERVERS) cargo test --locked --test 'store_postgres*' -- contract

servers: ## install what the tests talk to, where it is missing: nginx, promtool, Redis, Valkey, PostgreSQL, Envoy, libfaketime
	@scripts/servers

bench: ## CPU per request and decisions per second, beside what they are compared with
	@benches/run.sh

fuzz: ## hostile input led by coverage, DURATION=60 seconds for each target; a short run is a part of test
	@scripts/fuzz

deny: ## licences, banned crates, sources and advisories; installs cargo-deny, which takes minutes to build
	@scripts/deny

flood: ## millions of keys nobody has seen before against a full store: memory, time, locks, and the account under attack
	@benches/run.sh flood

soak: ## two tollgates behind Envoy for DURATION=30m: load, reloads, restarts, hostile clients; fails on growth or a wrong answer
	@scripts/soak
