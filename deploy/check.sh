#!/usr/bin/env bash
# Builds the image (deploy/Dockerfile) on a Debian base made by debootstrap and tries the stack of
# deploy/compose.yaml with it; called by `./dev image`. A line for each check; exit 0 when all pass,
# 1 when one fails, 77 when this machine cannot run containers. Nothing of it stays, unless --keep:
# then images and build cache stay in $TANDEM_CACHE/containers and the next run takes a minute.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source cmake/llama.pin
source tests/e2e/deploy/machine.sh
source tests/e2e/deploy/checks.sh

KEEP=
for argument; do
  case $argument in
    --keep) KEEP=1 ;;
    *) echo "usage: deploy/check.sh [--keep]" >&2; exit 2 ;;
  esac
done

CACHE_DIR=${TANDEM_CACHE:-$HOME/.cache/tandem}
STATE=$CACHE_DIR/containers
BASE=localhost/tandem-base:bookworm
COMMIT=$(git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)

# What compose.yaml asks the environment for. The ports leave a daemon on this machine alone.
export TANDEM_IMAGE=localhost/tandem:check TANDEM_MODELS=$PWD/models TANDEM_THREADS=1
export HAPROXY_IMAGE=localhost/tandem-haproxy:check PROMETHEUS_IMAGE=localhost/tandem-prometheus:check
export TANDEM_PORT=18470 HAPROXY_PORT=18404 PROMETHEUS_PORT=19090
PROJECT=tandemcheck

build_image() {
  local source_mount=()
  # The pinned source, if `./dev setup` has fetched it: saves the builder npm and a download.
  local llama=llama.cpp-${LLAMA_COMMIT:0:8}
  [[ -f $CACHE_DIR/$llama/CMakeLists.txt ]] && source_mount=(-v "$CACHE_DIR/$llama:/cache/$llama:ro")
  build -f deploy/Dockerfile -t "$TANDEM_IMAGE" --build-arg COMMIT="$COMMIT" "${source_mount[@]}" .
}

build_peers() {
  build -f tests/e2e/deploy/peers.Dockerfile --target haproxy -t "$HAPROXY_IMAGE" tests/e2e/deploy &&
    build -f tests/e2e/deploy/peers.Dockerfile --target prometheus -t "$PROMETHEUS_IMAGE" tests/e2e/deploy
}

prepare_machine
trap 'tear_down' EXIT
check "base image (debootstrap)" make_base
check "image builds" build_image
check "images of HAProxy and Prometheus build" build_peers
check "Prometheus and HAProxy accept their configurations, the alerts their tests" configurations_are_valid
check "image: not root, all libraries there, $(image_megabytes "$TANDEM_IMAGE") MB" image_is_sound
check "image: refuses an open port unless told so" refuses_open_port
check "image: one container answers a request" one_container_serves
check "stack starts" compose up -d --no-build
check "both routers list both workers" wait_for 60 routers_list_workers
check "HAProxy finds both routers healthy" wait_for 20 haproxy_sees 2
check "a request through HAProxy brings text back" request_brings_text
check "the published port serves this machine" published_port_serves
check "Prometheus scrapes every target" wait_for 60 targets_are_up 6
check "Prometheus has counted the request" wait_for 20 requests_are_counted
check "a router is killed: HAProxy takes it out, 20 requests of 20 are served" router_may_die
check "the router is back: workers register again" router_comes_back
check "SIGTERM while a request runs: it ends whole, every daemon exits 0" termination_drains
finish
