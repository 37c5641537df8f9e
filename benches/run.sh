#!/bin/sh
# Builds and runs every bench and prints their tables; benches/README.md says how to read them.
#   benches/run.sh           all of them
#   benches/run.sh engine    the engine in process
#   benches/run.sh doors     the doors under load
#   benches/run.sh stores    the doors with a Redis behind them, a Redis Cluster, and a real Envoy in front with both stores
#   benches/run.sh gateway   a real Envoy in front of the doors, without a Redis; all has it in stores
#   benches/run.sh postgres  a PostgreSQL under load; not a part of all
#   benches/run.sh flood     a flood of new keys, in process and through RLS; not a part of all
set -eu
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}/release

engine() {
    cargo bench --locked --bench engine --no-run
    taskset -c 0 cargo bench --locked --bench engine
}

programs() {
    if ! command -v h2load >/dev/null; then
        echo "installing h2load (nghttp2-client)" >&2
        apt-get install -y --no-install-recommends nghttp2-client >&2
    fi
    cargo build --locked --release --example doors --example idle_tonic --example noop_hyper
    # Built alone and last, so that the measured binary is the shipped one: the examples need more features of some crates.
    cargo build --locked --release --bin tollgate
}

measure() {
    taskset -c 1 "$target/examples/doors" "$target/examples/idle_tonic" "$target/examples/noop_hyper" "$target/tollgate" "$@"
}

doors() {
    programs
    measure
}

gateway() {
    programs
    measure --gateway "$(scripts/envoy)"
}

stores() {
    programs
    measure --store
    measure --gateway "$(scripts/envoy)" --store
}

flood() {
    cargo bench --locked --bench flood --no-run
    cargo build --locked --release --bin tollgate
    taskset -c 1 cargo bench --locked --bench flood
    taskset -c 1 cargo bench --locked --bench flood -- rls "$target/tollgate"
}

postgres() {
    cargo bench --locked --bench postgres
}

case "${1:-all}" in
    all) engine; doors; stores ;;
    engine) engine ;;
    doors) doors ;;
    gateway) gateway ;;
    stores) stores ;;
    postgres) postgres ;;
    flood) flood ;;
    *) echo "usage: benches/run.sh [engine|doors|gateway|stores|postgres|flood]" >&2; exit 2 ;;
esac
