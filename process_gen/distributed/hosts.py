"""Many hosts: joining them, and asking which one this is."""

from __future__ import annotations

import os

import jax
from absl import logging

# A variable that only exists where a launcher started several processes of one job -> who sets it.
CLUSTER_VARIABLES = {
    "JAX_COORDINATOR_ADDRESS": "explicit settings",
    "MEGASCALE_COORDINATOR_ADDRESS": "several TPU slices",
    "TPU_WORKER_HOSTNAMES": "a TPU pod",
    "SLURM_STEP_NODELIST": "Slurm (srun)",
    "OMPI_MCA_orte_hnp_uri": "Open MPI",
}


def cluster() -> str | None:
    """Names the cluster environment that this process was started in, None on a machine of its own."""
    for variable, who in CLUSTER_VARIABLES.items():
        if os.environ.get(variable):
            return who
    return None


def initialize() -> bool:
    """Joins the other processes of the job, if a launcher started any; call it before JAX sees a device.

    Explicit settings are `JAX_COORDINATOR_ADDRESS` (host:port), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`;
    on TPU pods, Slurm and Open MPI everything is found by JAX. It matters with a single process too: the
    signal that announces a preemption is only heard by processes that have joined.

    Returns:
      True if this process now belongs to a group.
    """
    if jax.distributed.is_initialized():
        return True
    found = cluster()
    if found is None:
        return False
    explicit = {}
    if found == "explicit settings":
        explicit = {
            "coordinator_address": os.environ["JAX_COORDINATOR_ADDRESS"],
            "num_processes": _number("JAX_NUM_PROCESSES"),
            "process_id": _number("JAX_PROCESS_ID"),
        }
    jax.distributed.initialize(**explicit)
    logging.info("joined %s as process %d of %d", found, jax.process_index(), jax.process_count())
    return True


def _number(variable: str) -> int:
    text = os.environ.get(variable)
    if text is None or not text.isdigit():
        raise ValueError(f"JAX_COORDINATOR_ADDRESS is set, so {variable} must be a number, got {text!r}")
    return int(text)


def process_index() -> int:
    """Which host this is, from 0."""
    return jax.process_index()


def process_count() -> int:
    """How many hosts run this job."""
    return jax.process_count()


def is_lead() -> bool:
    """True on the one host that writes logs, pictures and reports."""
    return jax.process_index() == 0
