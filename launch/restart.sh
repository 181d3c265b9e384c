#!/usr/bin/env bash
# Runs a command again until it is done: for machines without a scheduler that would.
#
#     launch/restart.sh launch/run.sh tpu --config=... --workdir=...
#
# Ends with the command's exit code if that is 0, if it is 2 (what only a person can put right), if this script
# was told to stop (SIGTERM or SIGINT, passed on), or after MAX_RESTARTS crashes in a row (10). A run that held
# for HEALTHY seconds (1800) ends such a row. After a crash it waits for PAUSE seconds (20): on several hosts,
# all of them have to notice that one is gone, and a chip has to be let go of before it can be taken again.
set -uo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
STOPPED=75 REFUSED=2 # as in env.sh
max="${MAX_RESTARTS:-10}" healthy="${HEALTHY:-1800}" pause="${PAUSE:-20}"
[[ $# -gt 0 ]] || { echo "usage: $here/restart.sh COMMAND [ARGUMENT...]" >&2; exit "$REFUSED"; }

told='' child=''
stop() {
  told=yes
  [[ -z $child ]] || kill -TERM "$child" 2>/dev/null
}
trap stop TERM INT

crashes=0
while true; do
  began=$SECONDS
  "$@" &
  child=$!
  [[ -z $told ]] || kill -TERM "$child" 2>/dev/null # told between two runs
  wait "$child"
  code=$?
  while kill -0 "$child" 2>/dev/null; do # a signal ended the wait and not the command
    wait "$child"
    code=$?
  done
  child=''
  if [[ -n $told || $code -eq 0 || $code -eq $REFUSED ]]; then
    exit "$code"
  fi
  if [[ $code -ne $STOPPED ]]; then
    ((SECONDS - began < healthy)) || crashes=0
    crashes=$((crashes + 1))
    if ((crashes > max)); then
      echo "launch/restart.sh: $crashes crashes in a row, the last with exit code $code: giving up" >&2
      exit "$code"
    fi
  fi
  echo "launch/restart.sh: exit code $code, starting again in $pause s ($crashes of $max crashes)" >&2
  sleep "$pause" &
  child=$!
  wait "$child"
  [[ -z $told ]] || exit "$code"
done
