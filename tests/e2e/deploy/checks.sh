# The checks of deploy/check.sh, one function each, and the means to run and wait. Sourced.

FAILED=0
PASSED=0
SECONDS=0

# check WHAT COMMAND…: one line with the outcome; without the first of them the others make no sense.
check() {
  local what=$1 start=$SECONDS
  shift
  echo "== $what" >>"$LOG"
  if "$@" >>"$LOG" 2>&1; then
    PASSED=$((PASSED + 1))
    echo "ok      $what ($((SECONDS - start)) s)"
    return 0
  fi
  FAILED=$((FAILED + 1))
  echo "FAILED  $what ($((SECONDS - start)) s)"
  tail -n 15 "$LOG" | sed 's/^/        /'
  case $1 in make_base | build_*) finish ;; esac
}

finish() {
  echo "$PASSED checks passed, $FAILED failed, $SECONDS s"
  exit $((FAILED > 0))
}

# wait_for SECONDS COMMAND…: until the command succeeds; fails after so long.
wait_for() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < deadline)) || return 1
    sleep 0.2
  done
}

compose() { podman-compose -p "$PROJECT" -f deploy/compose.yaml "$@"; }
container() { echo "${PROJECT}_$1_1"; }
image_megabytes() { echo $(($(podman image inspect -f '{{.Size}}' "$1" 2>/dev/null || echo 0) / 1000000)); }

# inside SERVICE COMMAND…: the command in a running container of the stack.
inside() { podman exec "$(container "$1")" "${@:2}"; }

configurations_are_valid() {
  local tree=(-v "$PWD/deploy:/t/deploy:ro" -v "$PWD/tests/e2e/deploy:/t/tests/e2e/deploy:ro" --network none)
  podman run --rm "${tree[@]}" --entrypoint promtool "$PROMETHEUS_IMAGE" check config /t/deploy/prometheus.yml &&
    podman run --rm "${tree[@]}" --entrypoint promtool "$PROMETHEUS_IMAGE" test rules /t/tests/e2e/deploy/alerts_test.yml &&
    podman run --rm "${tree[@]}" "$HAPROXY_IMAGE" haproxy -c -f /t/deploy/haproxy.cfg
}

image_is_sound() {
  [[ $(podman run --rm --network none --entrypoint id "$TANDEM_IMAGE" -u) == 10001 ]] &&
    podman run --rm --network none "$TANDEM_IMAGE" --version &&
    ! podman run --rm --network none --entrypoint sh "$TANDEM_IMAGE" -c 'ldd /usr/local/bin/*' | grep 'not found'
}

refuses_open_port() {
  local said
  ! said=$(podman run --rm --network none -v "$TANDEM_MODELS:/models:ro" \
    -e TANDEM_MODEL=/models/demo-q8_0.gguf "$TANDEM_IMAGE" 2>&1) && echo "$said" && [[ $said == *insecure* ]]
}

one_container_serves() {
  podman run -d --name single --network none -v "$TANDEM_MODELS:/models:ro" -e TANDEM_THREADS=1 \
    -e TANDEM_MODEL=/models/demo-q8_0.gguf -e TANDEM_INSECURE=true "$TANDEM_IMAGE" &&
    wait_for 60 podman exec single tandem generate --max-tokens=8 --stats "Once upon a time" &&
    stop_and_expect_zero single
  local code=$?
  podman logs single
  podman rm -f single
  return $code
}

# stop_and_expect_zero CONTAINER…: SIGTERM to all of them, then each one's exit code.
stop_and_expect_zero() {
  local name code all=0
  podman kill --signal TERM "$@" || return 1
  for name; do
    code=$(timeout 60 podman wait "$name") || return 1
    echo "$name exited with $code"
    [[ $code == 0 ]] || all=1
  done
  return $all
}

# What router $1 calls its workers, sorted, with their states.
workers_of() {
  inside "$1" tandem status --json |
    jq -r '[.workers[] | select(.report_age_s < 5 and (.load.draining | not)) | .info.name] | sort | join(" ")'
}
router_lists_workers() { [[ $(workers_of "$1") == "decode-1 prefill-1" ]]; }
routers_list_workers() { router_lists_workers router-1 && router_lists_workers router-2; }

# How many routers HAProxy has in rotation.
haproxy_sees() {
  [[ $(curl -fsS "http://127.0.0.1:$HAPROXY_PORT/;csv" |
    awk -F, '$1 == "routers" && $2 ~ /^router/ && $18 == "UP"' | wc -l) == "$1" ]]
}

generate() { inside decode-1 tandem generate --router=haproxy:8470 --timeout=60s "$@"; }

request_brings_text() {
  local text
  text=$(generate --max-tokens=40 --temperature=0 --stats "Once upon a time, there was") || return 1
  echo "$text"
  [[ $(wc -w <<<"$text") -ge 10 ]]
}

published_port_serves() {
  local text
  text=$(podman run --rm --network host --entrypoint tandem "$TANDEM_IMAGE" generate \
    --router="127.0.0.1:$TANDEM_PORT" --timeout=60s --max-tokens=8 "The king") || return 1
  echo "$text"
  [[ $text == *[a-z]* ]]
}

prometheus() { curl -fsS --get "http://127.0.0.1:$PROMETHEUS_PORT/api/v1/$1" "${@:2}"; }

targets_are_up() {
  local answer
  answer=$(prometheus targets | jq -c '[.data.activeTargets[] | {(.labels.instance): .health}]') || return 1
  echo "$answer"
  [[ $(jq '[.[][] | select(. == "up")] | length' <<<"$answer") == "$1" && $(jq length <<<"$answer") == "$1" ]]
}

requests_are_counted() {
  local counted
  counted=$(prometheus query --data-urlencode 'query=sum(tandem_router_requests_total{code="OK"})' |
    jq -r '.data.result[0].value[1] // 0') || return 1
  echo "counted: $counted"
  ((counted >= 2))
}

router_may_die() {
  podman kill --signal KILL "$(container router-1)" || return 1
  # From this very moment on: HAProxy tries the other router where a connection fails.
  local served=0 i
  for ((i = 0; i < 20; ++i)); do
    generate --max-tokens=4 "One day" && served=$((served + 1))
  done
  echo "served: $served of 20"
  wait_for 10 haproxy_sees 1 && [[ $served == 20 ]]
}

router_comes_back() {
  podman start "$(container router-1)" && wait_for 60 routers_list_workers && wait_for 20 haproxy_sees 2
}

termination_drains() {
  local out=$STATE/stream tokens=1500 reader daemons=() service
  rm -f "$out"
  for service in router-1 router-2 prefill-1 decode-1; do daemons+=("$(container "$service")"); done
  # From outside the daemons' containers: those end.
  podman run --rm --network "${PROJECT}_default" --entrypoint tandem "$TANDEM_IMAGE" generate \
    --router=haproxy:8470 --json --ignore-eos --max-tokens=$tokens "A long tale:" >"$out" &
  reader=$!
  wait_for 30 test -s "$out" || return 1
  local before
  before=$(wc -l <"$out")
  stop_and_expect_zero "${daemons[@]}" || return 1
  wait "$reader" || return 1
  echo "messages when SIGTERM was sent: $before, in all: $(wc -l <"$out")"
  ((before < tokens)) && tail -n 1 "$out" | jq -e ".finish_reason == \"FINISH_REASON_LENGTH\" and .usage.generated_tokens == $tokens"
}
