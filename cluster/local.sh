#!/usr/bin/env bash
# A Ray cluster on this machine, with dashboard, job server and token authentication.
#
#   cluster/local.sh up [FOLDER]     start it; state and logs in FOLDER (default .ray); prints the
#                                    settings that a shell needs: eval "$(cluster/local.sh up)"
#   cluster/local.sh join [FOLDER]   one more node of it, on this machine too (Linux), with an address
#                                    of its own: 127.0.0.2, 127.0.0.3, …
#   cluster/local.sh env [FOLDER]    print the settings again
#   cluster/local.sh down [FOLDER]   stop it: the processes of this cluster and no others
#
# XTDIST_CPUS (default: all) sets how many CPUs the cluster, or the node that joins, offers.
set -euo pipefail
verb=${1:-}; state=${2:-.ray}
ray=$(command -v "${RAY_BIN:-ray}") || { echo "local.sh: no ray on PATH; set RAY_BIN" >&2; exit 1; }
PATH=$(dirname "$ray"):$PATH  # jobs start with this python

die() { echo "local.sh: $*" >&2; exit 1; }
# A node's processes are one session, and name the cluster's folder: a number that is someone else's by
# now is not it.
alive() {  # [FILE of the node's first process]
  local pid=${1:-$state/pid}
  [ -s "$pid" ] && [ -s "$state/tmp" ] && pgrep -s "$(cat "$pid")" -f -- "$(cat "$state/tmp")" >/dev/null
}
stop_node() {  # FILE
  local pid
  if alive "$1"; then
    pid=$(cat "$1")
    kill -TERM "$pid" 2>/dev/null || pkill -TERM -s "$pid"
    for _ in $(seq 60); do pgrep -s "$pid" -r D,R,S,T >/dev/null || break; sleep 0.25; done
    pkill -KILL -s "$pid" || true
  fi
  rm -f "$1"
}
cpus() { echo "${XTDIST_CPUS:-$(env -u OMP_NUM_THREADS nproc)}"; }
settings() {  # of every node
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$state/token RAY_USAGE_STATS_ENABLED=0
}
free_ports() {  # N free TCP ports outside of Ray's worker range, at random: clusters may start at once
  python3 - "$1" <<'PY'
import random, socket, sys
found, open_ = [], []
for port in random.sample(range(21000, 32000), 11000):
    s = socket.socket()
    try:
        s.bind(("127.0.0.1", port))
    except OSError:
        continue
    open_.append(s); found.append(str(port))
    if len(found) == int(sys.argv[1]):
        break
print(*found)
PY
}
answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
gcs() { sed -n "s/.*ray start --address='\([^']*\)'.*/\1/p" "$state/ray.log" | head -1; }
print_env() {
  alive || die "no cluster in $state; start one with: cluster/local.sh up $state"
  echo "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$(printf %q "$state/token")"
  echo "export RAY_API_SERVER_ADDRESS=$(cat "$state/address")"
  echo "export RAY_ADDRESS=$(gcs)"
}

case $verb in
  up)
    mkdir -p "$state"; state=$(cd "$state" && pwd); chmod 700 "$state"
    if ! alive; then
      (umask 077; head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$state/token")
      read -r dashboard agent client <<<"$(free_ports 3)"
      # A short path: sockets live below it, and their names have at most 107 bytes.
      tmp=$(mktemp -d /tmp/xtdist-ray-XXXXXX); echo "$tmp" >"$state/tmp"
      settings
      export RAY_TRAIN_HEALTH_CHECK_INTERVAL_S=${RAY_TRAIN_HEALTH_CHECK_INTERVAL_S:-0.5}
      export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=1  # no other node could take over
      export RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD=${RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD:-0}
      export RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S=1
      rm -f "$state/ray.log"
      setsid "$ray" start --head --block --port 0 --temp-dir "$tmp" --disable-usage-stats \
        --dashboard-host 127.0.0.1 --dashboard-port "$dashboard" \
        --dashboard-agent-listen-port "$agent" --ray-client-server-port "$client" \
        --num-cpus "$(cpus)" >"$state/ray.log" 2>&1 </dev/null &
      echo $! >"$state/pid"; echo "http://127.0.0.1:$dashboard" >"$state/address"
      for _ in $(seq 240); do
        grep -qs -- --block "$state/ray.log" && answers "$dashboard" && break
        alive || { tail -5 "$state/ray.log" >&2; die "Ray did not start; see $state/ray.log"; }
        sleep 0.25
      done
    fi
    print_env
    ;;
  join)
    state=$(cd "$state" 2>/dev/null && pwd) || die "no such folder"
    alive || die "no cluster in $state; start one with: cluster/local.sh up $state"
    number=2; while alive "$state/pid-$number"; do number=$((number + 1)); done
    pid=$state/pid-$number log=$state/ray-$number.log
    read -r agent <<<"$(free_ports 1)"
    settings; rm -f "$log"
    # A folder of its own: two nodes that unpack the same working directory remove each other's.
    setsid "$ray" start --block --address "$(gcs)" --node-ip-address "127.0.0.$number" \
      --temp-dir "$(cat "$state/tmp")-$number" --disable-usage-stats \
      --dashboard-agent-listen-port "$agent" --num-cpus "$(cpus)" >"$log" 2>&1 </dev/null &
    echo $! >"$pid"
    for _ in $(seq 240); do
      grep -qs -- --block "$log" && break
      kill -0 "$(cat "$pid")" 2>/dev/null || { tail -5 "$log" >&2; die "it did not join; see $log"; }
      sleep 0.25
    done
    grep -qs -- --block "$log" || { stop_node "$pid"; die "it did not join in 60 s; see $log"; }
    echo "127.0.0.$number joined" >&2
    ;;
  env) state=$(cd "$state" 2>/dev/null && pwd) || die "no such folder"; print_env ;;
  down)
    for pid in "$state"/pid-* "$state/pid"; do stop_node "$pid"; done  # the head last
    [ -s "$state/tmp" ] && tmp=$(cat "$state/tmp") && rm -rf "$tmp" "$tmp"-*
    rm -f "$state/address" "$state/token" "$state/tmp"
    ;;
  *) sed -n '2,/^set /p' "$0" | sed '$d;s/^# \{0,1\}//'; exit 2 ;;
esac
