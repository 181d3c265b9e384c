#!/usr/bin/env bash
# A TPU pod through queued resources. In the order of use:
#
#     launch/tpu_vm.sh book        # asks for the TPU; it costs from the moment it is ACTIVE until `delete`
#     launch/tpu_vm.sh state
#     launch/tpu_vm.sh install     # the committed checkout, on every host
#     launch/tpu_vm.sh start --config=configs/bagel_7b.py:paper --workdir=... --config.train.batch_size=64 \
#       --config.mesh.data=2 --config.mesh.fsdp=32
#     launch/tpu_vm.sh watch
#     launch/tpu_vm.sh stop        # all hosts save and end
#     launch/tpu_vm.sh delete      # gives the TPU back
#
# Settings: NAME and ZONE always; to book TYPE (v5litepod-256, v6e-64, v5p-128: this one counts cores, two a
# chip), SPOT (empty: on demand), VALID_UNTIL (6h: how long the request may wait), RUNTIME (of the TPU's kind); to
# install MOUNT (a command that mounts what the hosts share); PROJECT and SLICES (1) everywhere.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

action="${1:-}"
[[ $# -eq 0 ]] || shift
case "$action" in
  book | state | install | start | watch | stop | delete) ;;
  *)
    sed -n '2,16p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac

: "${NAME:?set NAME, of the queued resource}" "${ZONE:?set ZONE, us-east5-a say}"
slices="${SLICES:-1}"
here=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"} --quiet)
nodes=("$NAME")
if ((slices > 1)); then
  nodes=()
  for ((i = 0; i < slices; i++)); do nodes+=("$NAME-$i"); done # as gcloud numbers the nodes of a prefix
fi

# Runs a command on every host of every slice at once; fails if it does anywhere.
everywhere() {
  local node pids=() failed=0
  for node in "${nodes[@]}"; do
    gcloud compute tpus tpu-vm ssh "$node" "${here[@]}" --worker=all --command="$1" &
    pids+=("$!")
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  return "$failed"
}

runtime() { # the image that the documentation of Cloud TPU names for JAX on this kind
  case "${TYPE:?set TYPE, v5p-128 say}" in
    v6e*) echo v2-alpha-tpuv6e ;;
    v5p*) echo v2-alpha-tpuv5 ;;
    v5lite*) echo v2-alpha-tpuv5-lite ;;
    *) echo "launch/tpu_vm.sh: set RUNTIME, no image is known for TYPE=$TYPE" >&2 && return 2 ;;
  esac
}

case "$action" in
  book)
    image="${RUNTIME:-$(runtime)}"
    which=(--node-id="$NAME")
    ((slices == 1)) || which=(--node-count="$slices" --node-prefix="$NAME")
    # A request that waits longer is dropped, so that no TPU starts to cost when nobody is waiting for it.
    gcloud compute tpus queued-resources create "$NAME" "${here[@]}" "${which[@]}" \
      --accelerator-type="$TYPE" --runtime-version="$image" \
      --valid-until-duration="${VALID_UNTIL:-6h}" ${SPOT:+--spot}
    ;;
  state)
    gcloud compute tpus queued-resources describe "$NAME" "${here[@]}" --format="value(state.state)"
    ;;
  install)
    # A bundle carries the revision, which checkpoints record.
    bundle="$(mktemp -d)/process_gen.bundle"
    git bundle create "$bundle" HEAD
    for node in "${nodes[@]}"; do
      gcloud compute tpus tpu-vm scp "$bundle" "$node:process_gen.bundle" "${here[@]}" --worker=all
    done
    [[ -z ${MOUNT:-} ]] || everywhere "$MOUNT"
    everywhere 'set -e; rm -rf process_gen; git clone -q process_gen.bundle process_gen; cd process_gen
      python3 -m venv ~/venv; ~/venv/bin/pip install -q -e ".[tpu,bagel]"; ~/venv/bin/python -c "import jax"'
    ;;
  start)
    platform=tpu
    ((slices == 1)) || platform=tpu_slices
    # Where the run is going on it is left alone: a second process could not have the chips anyway.
    everywhere "cd process_gen || exit 1
      if [ -f train.pid ] && kill -0 \$(cat train.pid) 2>/dev/null; then
        echo \"\$(hostname): running since \$(date -r train.pid)\"
      else
        COMMAND=${COMMAND:-train} PYTHON=\${PYTHON:-\$HOME/venv/bin/python} nohup launch/restart.sh launch/run.sh $platform \
          $(printf '%q ' "$@") >>train.log 2>&1 </dev/null &
        echo \$! >train.pid
      fi"
    ;;
  watch)
    gcloud compute tpus tpu-vm ssh "${nodes[0]}" "${here[@]}" --worker=0 --command='tail -n 50 -F process_gen/train.log'
    ;;
  stop)
    everywhere "cd process_gen && kill -TERM \$(cat train.pid); for i in \$(seq ${GRACE:-300}); do
      kill -0 \$(cat train.pid) 2>/dev/null || exit 0; sleep 1; done; exit 1"
    ;;
  delete)
    gcloud compute tpus queued-resources delete "$NAME" "${here[@]}" --force
    ;;
esac
