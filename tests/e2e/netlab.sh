#!/usr/bin/env bash
# Machines on a network of their own, on one machine: each host is a network namespace behind a
# shaped link to a switch, which is a bridge in a namespace as well. Used by netlab.cc, or by hand:
#
#   netlab.sh check                 says what is missing; nothing and exit code 0: all is there
#   netlab.sh up N [OWNER]          hosts h1 to hN, 10gbit each; prints the lab's number. It is taken
#                                   down by the next `up` when the process OWNER is gone
#   LAB=number netlab.sh …
#     down                          removes it, and kills what runs in its hosts
#     rate I RATE                   of host I's link, each way; e.g. 100mbit
#     rate I:J RATE                 of what I sends to J
#     sent I:J                      bytes of frames that I has sent to J so far
#     cut I                         host I's link swallows everything
#     cut I:J                       nothing passes between I and J
#     delay I MS                    host I's link delays so long, each way; 0 ends it
#     heal                          joins all that was cut
#     exec I COMMAND…               runs a command in host I
#
# Host I has the address 198.18.LAB.I. The caller is on the network too, as 198.18.LAB.254, by a link
# from the switch to the root namespace; what passes between it and a host is not limited by `rate`,
# so that whoever watches does not disturb. Needs root, iproute2, nftables, ethtool; for `delay`
# netlab_delay, whose path is in NETLAB_DELAY. The kernel's netem is not needed: many lack it.
set -Eeuo pipefail

STATE=/run/tandem-netlab
# Jumbo frames: at 1500 bytes and without offloads one core does not reach 1 Gbit/s.
MTU=9000
# A bucket holds so many milliseconds at the link's rate, a queue so many.
BURST_MS=5
QUEUE_MS=50

die() { echo "netlab: $*" >&2; exit 1; }

use_lab() {
  LAB=$1 PREFIX=tnl$1 NET=198.18.$1 RUN=$STATE/$1
  SWITCH=${PREFIX}sw
}
in_switch() { ip netns exec "$SWITCH" "$@"; }
in_host() { local host=$1; shift; ip netns exec "${PREFIX}h$host" "$@"; }
hosts() { seq "$(cat "$RUN/hosts" 2>/dev/null || echo 0)"; }

# 100mbit → bits a second.
bits() {
  local number=${1%%[a-z]*} unit=${1##*[0-9.]}
  case $unit in
    gbit) awk "BEGIN { printf \"%d\", $number * 1e9 }" ;;
    mbit) awk "BEGIN { printf \"%d\", $number * 1e6 }" ;;
    kbit) awk "BEGIN { printf \"%d\", $number * 1e3 }" ;;
    *) die "'$1' is no rate: 10gbit, 100mbit, 64kbit" ;;
  esac
}
# Bytes of a bucket: three frames at least, or nothing passes at low rates.
burst() {
  local bytes=$(($(bits "$1") / 8 * BURST_MS / 1000))
  echo $((bytes < 3 * MTU ? 3 * MTU : bytes))
}
# Packets of a queue.
queue() {
  local packets=$(($(bits "$1") / 8 * QUEUE_MS / 1000 / MTU))
  echo $((packets < 64 ? 64 : packets))
}

# segments RUNNER DEVICE RATE: TCP hands a device up to 64 kB at a time, offloads or not; on a slow
# link that passes as one lump. No more than half a millisecond's worth.
segments() {
  local bytes=$(($(bits "$3") / 16000))
  ((bytes < MTU)) && bytes=$MTU
  ((bytes > 65536)) && bytes=65536
  $1 ip link set dev "$2" gso_max_size "$bytes"
}

# class_of HOST: the HTB class of what goes to it.
class_of() { printf '1:%x' $((16 + $1)); }
# The namespace's end of a link: shape add|change RUNNER DEVICE RATE. RUNNER runs a command there.
# 1:1 is the link; 1:2, which has no limit, is for the caller; 1:3 is for all that has no class.
shape() {
  local verb=$1 runner=$2 device=$3 rate=$4
  $runner tc class "$verb" dev "$device" parent 1: classid 1:1 htb rate "$rate" ceil "$rate" \
    burst "$(burst "$rate")" cburst "$(burst "$rate")" quantum 60000
  $runner tc class "$verb" dev "$device" parent 1:1 classid 1:3 htb rate "$rate" ceil "$rate" \
    burst "$(burst "$rate")" cburst "$(burst "$rate")" quantum 60000
  $runner tc qdisc replace dev "$device" parent 1:3 pfifo limit "$(queue "$rate")"
}
# start_shaping RUNNER DEVICE RATE src|dst: the caller's packets are known by that address.
start_shaping() {
  local runner=$1 device=$2 rate=$3 side=$4
  $runner tc qdisc add dev "$device" root handle 1: htb default 3 r2q 100
  shape add "$runner" "$device" "$rate"
  $runner tc class add dev "$device" parent 1: classid 1:2 htb rate 40gbit \
    burst 1mb cburst 1mb quantum 60000
  $runner tc filter add dev "$device" parent 1: protocol ip prio 1 \
    u32 match ip "$side" "$NET.254/32" flowid 1:2
}
# pair add|change FROM TO RATE. HTB grants a class its `rate` even past its parent's, so that is
# tiny; up to `ceil` it borrows from the link.
pair() {
  local verb=$1 from=$2 to=$3 rate=$4 granted=1000000
  (($(bits "$rate") < granted)) && granted=$(bits "$rate")
  in_host "$from" tc class "$verb" dev eth0 parent 1:1 classid "$(class_of "$to")" \
    htb rate "$granted" ceil "$rate" burst 16000 cburst "$(burst "$rate")" quantum 30000
  in_host "$from" tc qdisc replace dev eth0 parent "$(class_of "$to")" pfifo limit "$(queue "$rate")"
}

# Without offloads, so that what is metered are frames as they would be on a wire.
no_offloads() {
  local runner=$1 device=$2 feature
  for feature in tso gso gro tx; do $runner ethtool -K "$device" "$feature" off >/dev/null; done
}

add_switch() {
  ip netns add "$SWITCH"
  in_switch ip link add br0 type bridge stp_state 0 forward_delay 0
  in_switch ip link set br0 mtu "$MTU" up
  in_switch nft -f - <<'NFT'
table bridge netlab {
  set cut { type ipv4_addr . ipv4_addr; }
  chain forwarded {
    type filter hook forward priority 0;
    ip saddr . ip daddr @cut drop
  }
}
NFT
  ip link add "$PREFIX" mtu "$MTU" type veth peer name caller mtu "$MTU" netns "$SWITCH"
  no_offloads "" "$PREFIX"
  no_offloads in_switch caller
  in_switch ip link set caller master br0 up
  ip addr add "$NET.254/24" dev "$PREFIX"
  ip link set "$PREFIX" up
}

add_host() {
  local host=$1 n=$2 rate=10gbit other
  ip netns add "${PREFIX}h$host"
  in_host "$host" ip link set lo up
  ip link add eth0 mtu "$MTU" netns "${PREFIX}h$host" type veth \
    peer name "p$host" mtu "$MTU" netns "$SWITCH"
  no_offloads "in_host $host" eth0
  no_offloads in_switch "p$host"
  in_host "$host" ip addr add "$NET.$host/24" dev eth0
  in_host "$host" ip link set eth0 up
  in_switch ip link set "p$host" master br0 up
  start_shaping "in_host $host" eth0 $rate dst
  for other in $(seq "$n"); do
    ((other == host)) && continue
    pair add "$host" "$other" $rate
    in_host "$host" tc filter add dev eth0 parent 1: protocol ip prio 2 \
      u32 match ip dst "$NET.$other/32" flowid "$(class_of "$other")"
  done
  # What comes in is what the switch sends out of its port.
  start_shaping in_switch "p$host" $rate src
}

# Claims the first free number, after labs have been removed whose owners ended without `down`.
claim() {
  local run owner
  mkdir -p $STATE
  exec 9>$STATE/lock
  flock 9
  for run in $STATE/[0-9]*; do
    owner=$(cat "$run/owner" 2>/dev/null) || continue
    [[ -d /proc/$owner ]] || (use_lab "${run##*/}"; down)
  done
  for LAB in $(seq 1 250); do
    use_lab "$LAB"
    mkdir "$RUN" 2>/dev/null && break
    ((LAB < 250)) || die "250 labs are up"
  done
  echo "$1" >"$RUN/owner"
  exec 9>&-
}

up() {
  local n=$1 host
  claim "${2:-1}"
  echo "$n" >"$RUN/hosts"
  trap down ERR
  add_switch
  for host in $(seq "$n"); do add_host "$host" "$n"; done
  trap - ERR
  echo "$LAB"
}

down() {
  local host pid
  for pid in "$RUN"/delay.*; do
    [[ -e $pid ]] && kill "$(cat "$pid")" 2>/dev/null || true
  done
  for host in $(hosts); do
    for pid in $(ip netns pids "${PREFIX}h$host" 2>/dev/null); do kill -9 "$pid" 2>/dev/null || true; done
    ip netns del "${PREFIX}h$host" 2>/dev/null || true
  done
  ip link del "$PREFIX" 2>/dev/null || true
  ip netns del "$SWITCH" 2>/dev/null || true
  rm -rf "$RUN"
}

# The switch's device that joins host I to the bridge: with a delay another one.
port() { [[ -e $RUN/delay.$1 ]] && echo "q$1" || echo "p$1"; }

rate() {
  if [[ $1 == *:* ]]; then
    pair change "${1%:*}" "${1#*:}" "$2"
    segments "in_host ${1%:*}" eth0 "$2"
  else
    shape change "in_host $1" eth0 "$2"
    segments "in_host $1" eth0 "$2"
    shape change in_switch "$(port "$1")" "$2"
  fi
}

sent() {
  in_host "${1%:*}" tc -s class show dev eth0 classid "$(class_of "${1#*:}")" |
    sed -n 's/^ Sent \([0-9]*\) bytes.*/\1/p'
}

cut_pair() { echo "{ $NET.$1 . $NET.$2, $NET.$2 . $NET.$1 }"; }
cut_link() {
  if [[ $1 == *:* ]]; then
    in_switch nft add element bridge netlab cut "$(cut_pair "${1%:*}" "${1#*:}")"
  else
    in_switch ip link set "$(port "$1")" nomaster
  fi
}

heal() {
  local host
  for host in $(hosts); do in_switch ip link set "$(port "$host")" master br0; done
  in_switch nft flush set bridge netlab cut
}

# The rate of host I's link.
rate_of() { in_host "$1" tc class show dev eth0 classid 1:1 | sed -n 's/.* ceil \([^ ]*\) .*/\L\1/p'; }

# Without a delay: eth0 in the host, p$I on the bridge. With one: eth0, p$I, netlab_delay, d$I, and
# its peer q$I on the bridge, which then carries the shaping.
delay() {
  local host=$1 ms=$2 rate
  rate=$(rate_of "$host")
  if [[ -e $RUN/delay.$host ]]; then
    kill "$(cat "$RUN/delay.$host")" 2>/dev/null || true
    rm "$RUN/delay.$host"
    in_switch ip link del "q$host"
    in_switch ip link set "p$host" master br0
    start_shaping in_switch "p$host" "$rate" src
  fi
  awk "BEGIN { exit !($ms == 0) }" && return
  in_switch ip link add "d$host" mtu "$MTU" type veth peer name "q$host" mtu "$MTU"
  no_offloads in_switch "d$host"
  no_offloads in_switch "q$host"
  in_switch tc qdisc del dev "p$host" root
  in_switch ip link set "p$host" nomaster
  in_switch ip link set "d$host" up
  in_switch setsid "$NETLAB_DELAY" "p$host" "d$host" "$ms" "$RUN/delay.$host" \
    </dev/null >"$RUN/log.$host" 2>&1 &
  local left=500
  until [[ -s $RUN/delay.$host ]]; do
    ((left--)) || die "netlab_delay did not start: $(cat "$RUN/log.$host")"
    sleep 0.01
  done
  in_switch ip link set "q$host" master br0 up
  start_shaping in_switch "q$host" "$rate" src
}

# Tries what a kernel or a container may refuse.
check() {
  ((EUID == 0)) || die "needs root"
  local program
  for program in ip tc nft ethtool flock; do
    command -v $program >/dev/null || die "needs $program: apt-get install iproute2 nftables ethtool"
  done
  local name=tnlcheck$$
  trap 'ip netns del '$name' 2>/dev/null' EXIT
  {
    ip netns add $name
    ip netns exec $name ip link add br0 type bridge
    ip netns exec $name ip link add near mtu "$MTU" type veth peer name far
    ip netns exec $name tc qdisc add dev near root handle 1: htb default 3
    ip netns exec $name tc filter add dev near parent 1: protocol ip prio 1 \
      u32 match ip dst 198.18.0.1/32 flowid 1:2
    ip netns exec $name nft add table bridge netlab
  } 2>&1 || die "this kernel or container has no network namespaces, veth, bridge, HTB or nftables"
}

command=${1:-help}
(($#)) && shift
case $command in
  check | up | help) ;;
  *) use_lab "${LAB:?LAB is the number that \`up\` printed}" ;;
esac
case $command in
  check | up | down | rate | sent | heal | delay) "$command" "$@" ;;
  cut) cut_link "$@" ;;
  exec) host=$1; shift; exec ip netns exec "${PREFIX}h$host" "$@" ;;
  *) sed -n '2,/^set/{/^set/d;s/^# \?//;p}' "$0" ;;
esac
