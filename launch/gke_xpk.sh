#!/usr/bin/env bash
# A TPU job on GKE through xpk, which makes the JobSet.
#
#     CLUSTER=... ZONE=... TYPE=v5p-128 IMAGE=... launch/gke_xpk.sh run1 --config=... --workdir=...
#
# Also: PROJECT, SLICES (1), MAX_RESTARTS (20), GRACE (300 seconds for a save). IMAGE is built from
# launch/Dockerfile. More flags of xpk (--spot, --reservation=..., --dry-run) go into XPK_FLAGS.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${1:?usage: launch/gke_xpk.sh WORKLOAD --config=... --workdir=...}"
: "${CLUSTER:?set CLUSTER}" "${ZONE:?set ZONE}" "${TYPE:?set TYPE, v5p-128 say}" "${IMAGE:?set IMAGE}"
workload="$1"
shift
platform=tpu
((${SLICES:-1} == 1)) || platform=tpu_slices
read -ra more <<<"${XPK_FLAGS:-}"
# 75 is a run that was stopped and has saved, 1 what the runtime raises when a chip or a peer fails; xpk restarts
# on signals anyway. 2, what only a person can put right, ends the workload. exec: xpk puts the command into a
# subshell and sends SIGTERM to that.
xpk workload create --workload="$workload" --cluster="$CLUSTER" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"} \
  --tpu-type="$TYPE" --num-slices="${SLICES:-1}" --docker-image="$IMAGE" \
  --max-restarts="${MAX_RESTARTS:-20}" --restart-on-exit-codes=1,75 \
  --termination-grace-period-seconds="${GRACE:-300}" "${more[@]}" \
  --command="exec env COMMAND=${COMMAND:-train} launch/run.sh $platform $(printf '%q ' "$@")"
