# The tasks of this project. `make help` lists them.

.DEFAULT_GOAL := help
.PHONY: help demo demo-up test contract servers bench fuzz deny flood soak

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1 /p' $(MAKEFILE_LIST) | while read -r target text; do printf '  make %-9s %s\n' "$$target" "$$text"; done

demo: ## a real Envoy with tollgate behind it: sends requests and shows each answer; STORE=redis|postgres: two instances on one store
	@python3 examples/envoy/demo.py $(if $(filter-out memory,$(STORE)),--store $(STORE))

demo-up: ## the same gateway, left running, with requests to try; Ctrl-C stops it
	@python3 examples/envoy/demo.py --up $(if $(filter-out memory,$(STORE)),--store $(STORE))

# Every server of the tests has to be there: a missing one fails the tests.
WITH_SERVERS = TOLLGATE_REQUIRE_SERVERS=1 TOLLGATE_ENVOY="$$(scripts/envoy)" TOLLGATE_VALKEY="$$(scripts/valkey)" TOLLGATE_REDIS_6="$$(scripts/redis_6)" TOLLGATE_TRAEFIK="$$(scripts/traefik)" TOLLGATE_SCHEMATHESIS="$$(scripts/schemathesis)"

ifdef STORE
test: servers
	$(WITH_SERVERS) cargo test --locked --test stores --test shared_stores --test program -- $(if $(filter memory,$(STORE)),stores::memory stores::contract,stores::$(STORE) shared_stores:: program::on_redis)
else
test: servers ## formatting, clippy, docs, all tests, instructions per decision and request; STORE=redis|postgres|memory: the tests of that store, and those of all shared stores
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --quiet
	@scripts/deny --if-installed
	@scripts/msrv --if-installed
	@scripts/features --count
	$(WITH_SERVERS) cargo test --locked
	@# Fails above benches/engine/instructions.baseline by more than 1 %.
	cargo bench --locked --profile test --bench engine -- instructions
endif

contract: servers ## a million random plans for each store, compared with the reference; stores that blink for a minute; workers and instances that are killed; this version beside an earlier one; repeated entries and recipes with older versions of Envoy
	TOLLGATE_CONTRACT=10 $(WITH_SERVERS) cargo test --locked --test stores -- the_contract decided_as_if --skip stores::postgres
	TOLLGATE_CONTRACT=50 $(WITH_SERVERS) cargo test --locked --test stores -- postgres_keeps_the_contract
	TOLLGATE_BLINKS=40 $(WITH_SERVERS) cargo test --locked --test shared_stores -- blips::semantics_31
	TOLLGATE_KILLS=30 $(WITH_SERVERS) cargo test --locked --test shared_stores -- killed_workers --nocapture
	$(WITH_SERVERS) scripts/fleet
	for version in 1.36 1.38; do $(WITH_SERVERS) TOLLGATE_ENVOY="$$(scripts/envoy $$version)" cargo test --locked --test gateways -- repeats:: recipe_ || exit; done

servers: ## install what the tests need, if missing: nginx, HAProxy, Caddy, Traefik, promtool, Redis, Valkey, twemproxy, PostgreSQL, Envoy, valgrind, libfaketime, schemathesis
	@scripts/servers

bench: ## CPU per request and decisions per second, each compared with a baseline of the same run
	@benches/run.sh

fuzz: ## fuzzing with coverage guidance, DURATION=60 seconds for each target; a short run is part of make test
	@scripts/fuzz

deny: ## check licences, banned crates, sources and advisories; installs cargo-deny, which takes minutes to build
	@scripts/deny

flood: ## millions of new keys against a full memory store: memory, time, locks, and an account under attack
	@benches/run.sh flood

soak: ## two instances behind Envoy for DURATION=30m: load, reloads, restarts, hostile clients; fails on growth or a wrong answer
	@scripts/soak
