# shellcheck shell=bash
# The environment of a training process, one platform at a time: sourced by launch/run.sh as
#
#     source launch/env.sh cpu | gpu | tpu | tpu_slices
#
# This is the only place that sets variables and XLA flags, each with its reason. What is set already
# stays as it is, and flags of the caller come last, so that they win.

# Exit code of a run that was told to stop and has saved its state: the same command goes on from there.
STOPPED=75
# Exit code of what only a person can put right: a wrong flag or config, a loss that is not finite.
REFUSED=2
export STOPPED REFUSED

# Python stacks where native code crashes: a segmentation fault or an abort of the runtime says where it was.
export PYTHONFAULTHANDLER="${PYTHONFAULTHANDLER:-1}"
# The last lines before a kill reach the log.
export PYTHONUNBUFFERED="${PYTHONUNBUFFERED:-1}"

case "${1:-}" in
  cpu)
    # Where libtpu or CUDA is installed beside it, JAX would look for accelerators first.
    export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
    # Devices of each process; a mesh of several axes can be tried on one machine.
    export JAX_NUM_CPU_DEVICES="${JAX_NUM_CPU_DEVICES:-1}"
    # Memory in pages of 2 MiB where Linux gives them on request (transparent_hugepage/enabled is "madvise"): a step
    # takes a fifth less time. Older than 2.35, glibc does not know it. (glibc manual: Memory Allocation Tunables)
    export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
    ;;
  gpu)
    # Fails where CUDA cannot be used. JAX passes over it without a word where there is no GPU, though, and would
    # train on the CPU; so that is looked at here.
    if [[ -z ${JAX_PLATFORMS:-} ]] && ! compgen -G "/dev/nvidia[0-9]*" >/dev/null && [[ ! -e /dev/dxg ]]; then
      echo "launch/env.sh: there is no NVIDIA GPU on this machine" >&2
      exit "$REFUSED"
    fi
    export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda,cpu}"
    # JAX takes 75% of a GPU's memory by default, and a training has it to itself. The rest is for CUDA, cuDNN
    # and NCCL. (JAX: GPU memory allocation; NVIDIA's JAX guide takes 0.8 to 0.9.)
    if [[ -z "${XLA_PYTHON_CLIENT_MEM_FRACTION:-}" ]]; then # its older name; JAX refuses both together
        export XLA_CLIENT_MEM_FRACTION="${XLA_CLIENT_MEM_FRACTION:-0.9}"
    fi
    # Lets all-gathers of parameters and reduce-scatters of gradients run while matrices are multiplied; XLA's
    # own default is off. (JAX: GPU performance tips; set in NVIDIA's JAX image.)
    export XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true ${XLA_FLAGS:-}"
    # A collective that fails or cannot start says why; nothing else is printed at this level. (NCCL: NCCL_DEBUG)
    export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
    ;;
  tpu | tpu_slices)
    # Fails where the TPU cannot be used (another process holds it, say), instead of training on the CPU.
    export JAX_PLATFORMS="${JAX_PLATFORMS:-tpu,cpu}"
    # One slice needs no flags: the asynchronous and fused collectives that recipes of 2023 and 2024 list are
    # defaults by now. (OpenXLA: XLA flags guidance)
    if [[ $1 == tpu_slices ]]; then
      # Between slices gradients are summed over the data-center network, far slower than within one. The first
      # flag lets those sums run while the backward pass goes on, the second does so where gradients of
      # different sizes are in flight; it may take more memory. (JAX: XLA compiler flags, TPU)
      LIBTPU_INIT_ARGS="--xla_tpu_data_parallel_opt_different_sized_ops=true ${LIBTPU_INIT_ARGS:-}"
      export LIBTPU_INIT_ARGS="--xla_tpu_enable_data_parallel_all_reduce_opt=true $LIBTPU_INIT_ARGS"
    fi
    ;;
  *)
    echo "launch/env.sh: no platform '${1:-}': launch/run.sh PLATFORM ... takes cpu, gpu, tpu or tpu_slices" >&2
    exit "$REFUSED"
    ;;
esac

if [[ $1 != cpu ]]; then
  # A restart loads the compiled step instead of compiling it for minutes once more. (JAX: persistent
  # compilation cache) A folder that hosts share or that outlives them helps most.
  export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/process_gen/compiled}"
fi
