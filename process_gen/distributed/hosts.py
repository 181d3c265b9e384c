"""Many hosts: joining them, asking which one this is, and waiting for one another."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from typing import NoReturn

import jax
from absl import logging
from jax._src import clusters  # how JAX finds out where it runs; there is no public way to ask
from jax._src import distributed as jax_distributed  # the only way to a barrier that has a time-out

from process_gen.distributed import rollcall
from process_gen.distributed.agreement import allgather_text
from process_gen.distributed.rollcall import HostMissing


class HostSettingsError(ValueError):
    """The settings that place this process in its job (coordinator, count, index) are missing or invalid."""


# A variable that only exists where a launcher started several processes of one job -> who sets it.
CLUSTER_VARIABLES = {
    "JAX_COORDINATOR_ADDRESS": "explicit settings",
    "MEGASCALE_COORDINATOR_ADDRESS": "several TPU slices",
    "TPU_PROCESS_ADDRESSES": "a TPU pod",
    "TPU_WORKER_HOSTNAMES": "a TPU pod",
    "SLURM_STEP_NODELIST": "Slurm (srun)",
    "OMPI_MCA_orte_hnp_uri": "Open MPI",
}

JOIN_SECONDS = 600.0
"""How long processes of a job wait for one another at the start: a pod's hosts boot minutes apart."""
PREPARE_SECONDS = 4 * 3600.0
"""How long the others wait for what one host alone does: building data, drawing pictures."""

_names: dict[int, str] = {}
_passed = 0


def cluster() -> str | None:
    """Names the cluster environment that this process was started in, None on a machine of its own."""
    for variable, who in CLUSTER_VARIABLES.items():
        of_tpus = variable.startswith(("TPU_", "MEGASCALE_"))
        if os.environ.get(variable) and (not of_tpus or _has_tpus()):
            return who
    return "a TPU VM" if _has_tpus() and _metadata_answers() else None


def _has_tpus() -> bool:
    """True on a TPU VM whose chips this process is to use."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return clusters.cloud_tpu_cluster.running_in_cloud_tpu_vm and (not platforms or "tpu" in platforms)


def _metadata_answers() -> bool:
    """Whether the metadata server of a TPU pod is there; JAX would wait minutes for one that is not."""
    if os.environ.get("TPU_SKIP_MDS_QUERY"):
        return False
    try:
        host = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
        socket.create_connection((host, 80), timeout=2.0).close()
    except OSError:
        return False
    return True


def name_processes(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Puts settings from flags into the environment variables that `initialize` reads; None leaves one."""
    given = {
        "JAX_COORDINATOR_ADDRESS": coordinator,
        "JAX_NUM_PROCESSES": processes,
        "JAX_PROCESS_ID": process,
    }
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})


def initialize(timeout: float = JOIN_SECONDS) -> bool:
    """Joins the other processes of the job, if a launcher started any; True if this one belongs to a job now.

    To be called before JAX sees a device; waits `timeout` seconds for the others. Explicit settings are
    `JAX_COORDINATOR_ADDRESS` (host:port), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`; on TPU pods (by
    environment or metadata), Slurm and Open MPI everything is found by JAX. It matters with a single process
    too: JAX catches the signal that announces a preemption only in processes that have joined. Afterwards
    log lines begin with the index of their process, and only process 0 logs more than warnings and errors.

    Raises:
      HostMissing: a process did not come; the message names it.
      HostSettingsError: settings are missing or make no sense.
    """
    if jax.distributed.is_initialized():
        return True
    if (found := cluster()) is None:
        return False
    address, count, index, devices = _settings(found, int(timeout))
    if count > 1:
        _names.update(rollcall.call(address, count, index, timeout))
    jax.distributed.initialize(
        address,
        count,
        index,
        local_device_ids=devices,
        cluster_detection_method="deactivate",  # all settings are known by now
        initialization_timeout=max(60, int(timeout)),
        shutdown_timeout_seconds=30,  # a failed process does not wait long for hanging ones
    )
    if count > 1:
        _log_as(index)
    logging.info("joined %s as process %d of %d", found, index, count)
    return True


def _settings(found: str, timeout: int) -> tuple[str, int, int, list[int] | None]:
    """Address of the coordinator, number of processes, own number, and local devices (None for all)."""
    if found == "explicit settings":
        address = os.environ["JAX_COORDINATOR_ADDRESS"]
        if not address.rpartition(":")[2].isdigit():
            raise HostSettingsError(f"JAX_COORDINATOR_ADDRESS must be HOST:PORT, got {address!r}")
        count, index = _number("JAX_NUM_PROCESSES"), _number("JAX_PROCESS_ID")
        if index >= count:
            raise HostSettingsError(f"JAX_PROCESS_ID ({index}) must be below JAX_NUM_PROCESSES ({count})")
        return address, count, index, None
    detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
    try:
        address, count, index, devices = detect(None, None, None, None, None, timeout)
    except (ValueError, KeyError) as error:
        raise HostSettingsError(
            f"{found} was detected, but its environment variables are invalid: {error!r}"
        ) from error
    if address is None or count is None or index is None:
        raise HostSettingsError(
            f"{found} was detected, but JAX finds no coordinator there; set JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID, or unset "
            + ", ".join(name for name, who in CLUSTER_VARIABLES.items() if who == found)
        )
    if os.environ.get("JAX_LOCAL_DEVICE_IDS"):
        devices = None  # JAX reads the variable
    return address, count, index, None if devices is None else list(devices)


def _number(variable: str) -> int:
    text = os.environ.get(variable)
    if text is None or not text.isdigit():
        raise HostSettingsError(
            f"JAX_COORDINATOR_ADDRESS is set, so {variable} must be a number, got {text!r}"
        )
    return int(text)


def _log_as(index: int) -> None:
    """Begins log lines with the process index; processes other than 0 log warnings and errors only."""

    class FromProcess(logging.PythonFormatter):
        def format(self, record) -> str:
            return f"[{index}] {super().format(record)}"

    logging.get_absl_handler().setFormatter(FromProcess())
    if index and logging.get_verbosity() == logging.INFO:
        logging.set_verbosity(logging.WARNING)


def is_lead() -> bool:
    """True in process 0, the one that writes logs, pictures and reports."""
    return jax.process_index() == 0


def barrier(name: str, timeout: float = JOIN_SECONDS) -> None:
    """Waits until every process is here; all have to pass the same barriers in the same order.

    Raises:
      HostMissing: a process did not come within `timeout` seconds (the message names it), or has ended.
    """
    global _passed
    client = jax_distributed.global_state.client
    if client is None or jax.process_count() == 1:
        return
    _passed += 1
    key = f"process_gen/barrier/{_passed}"
    client.key_value_set(f"{key}/{jax.process_index()}", "")
    try:
        client.wait_at_barrier(key, int(timeout * 1000))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise HostMissing(f"while waiting for {name!r}, another process has ended: {error}") from error
        came = {int(path.rpartition("/")[2]) for path, _ in client.key_value_dir_get(key)}
        raise rollcall.missing(came, jax.process_count(), name, timeout, _names) from error


def leave(code: int) -> NoReturn:
    """Ends this process with the exit code `code`, whatever the others of its job do.

    On a plain exit JAX waits for all of them, and aborts a process that fails alone, with code 134.
    """
    client = jax_distributed.global_state.client
    if client is not None and jax.process_count() > 1:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            client.wait_at_barrier("process_gen/failed", 5_000)
            sys.exit(code)  # all processes are leaving: JAX need not abort
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


@contextlib.contextmanager
def lead_first(name: str) -> Iterator[None]:
    """Runs the block in process 0 first, then in the others, which find the shared files already made.

    All processes leave it together.
    """
    if not is_lead():
        barrier(f"{name}, by process 0", PREPARE_SECONDS)
    yield
    if is_lead():
        barrier(f"{name}, by process 0", PREPARE_SECONDS)
    barrier(name, PREPARE_SECONDS)


@contextlib.contextmanager
def lead_alone(name: str, timeout: float = PREPARE_SECONDS) -> Iterator[None]:
    """All wait at the end of the block until process 0, which alone works in it (no collectives), is done."""
    yield
    barrier(name, timeout)


def broadcast_from_lead(number: float | None) -> float | None:
    """Collective: the number of process 0, in every process; all have to call it."""
    return json.loads(allgather_text(json.dumps(None if number is None else float(number)))[0])
