#!/usr/bin/env bash
# One process of a job: what every way of launching ends in.
#
#     launch/run.sh PLATFORM --config=configs/scenes.py:quick --workdir=runs/quick
#     COMMAND=sample launch/run.sh PLATFORM --workdir=runs/quick --prompts_file=prompts.txt
#
# PLATFORM is cpu, gpu, tpu or tpu_slices (see env.sh). COMMAND is train, sample, evaluate, sweep, recipe, prepare or convert;
# PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/env.sh
source launch/env.sh "${1:-}"
shift
# exec: signals reach Python itself, which saves and ends with $STOPPED.
exec "${PYTHON:-python}" -m "process_gen.${COMMAND:-train}" "$@"
