from __future__ import annotations

import socket
import sys
import time
from concurrent import futures

import jax
import pytest
from absl import logging
from jax._src import clusters

from process_gen.distributed import hosts, rollcall
from tests.own_process import free_port, start_job


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for variable in (*hosts.CLUSTER_VARIABLES, "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(clusters.cloud_tpu_cluster, "running_in_cloud_tpu_vm", False)


@pytest.fixture
def joined(monkeypatch):
    """What `jax.distributed.initialize` is called with."""
    seen = {}

    def initialize(address, count, index, **_):
        seen.update(address=address, count=count, index=index)

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    return seen


def test_a_machine_of_its_own():
    assert hosts.cluster() is None
    assert hosts.initialize() is False
    assert hosts.is_lead()
    hosts.barrier("nobody else")
    with hosts.lead_first("nothing"), hosts.lead_alone("nothing"):
        pass


def test_explicit_settings(monkeypatch, joined):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost")
    with pytest.raises(ValueError, match="must be HOST:PORT, got 'localhost'"):
        hosts.initialize()
    hosts.name_processes("localhost:1234", 1, None)
    with pytest.raises(ValueError, match="JAX_PROCESS_ID must be a number"):
        hosts.initialize()
    hosts.name_processes(None, None, 1)
    with pytest.raises(ValueError, match=r"JAX_PROCESS_ID \(1\) must be below JAX_NUM_PROCESSES \(1\)"):
        hosts.initialize()
    hosts.name_processes(None, None, 0)
    assert hosts.initialize() is True
    assert joined == {"address": "localhost:1234", "count": 1, "index": 0}


def test_slurm_is_left_to_jax(monkeypatch, joined):
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[1-2]")
    with pytest.raises(ValueError, match="looks like Slurm .*, but JAX finds no coordinator.*SLURM_STEP_"):
        hosts.initialize()
    for name, value in {"JOB_ID": 7, "NTASKS": 1, "PROCID": 0, "LOCALID": 0}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert hosts.initialize() is True
    assert joined == {"address": "node1:61447", "count": 1, "index": 0}


def test_tpus_are_joined_where_there_are_tpus(monkeypatch):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    assert hosts.cluster() is None  # a variable that was left over
    monkeypatch.setattr(clusters.cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert hosts.cluster() is None
    monkeypatch.setenv("JAX_PLATFORMS", "")
    assert hosts.cluster() == "a TPU pod"
    monkeypatch.setenv("MEGASCALE_COORDINATOR_ADDRESS", "a:8080")
    assert hosts.cluster() == "several TPU slices"


def test_a_tpu_vm_without_variables_asks_the_metadata_server_and_never_hangs(monkeypatch):
    monkeypatch.setattr(clusters.cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)

    def connect(address, timeout):
        assert address == ("metadata.google.internal", 80) and timeout <= 5
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", connect)
    assert hosts.cluster() is None
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: socket.socket())
    assert hosts.cluster() == "a TPU VM"


def test_other_processes_log_warnings_only_and_every_line_has_its_process(monkeypatch):
    handler, level = logging.get_absl_handler(), logging.get_verbosity()
    formatter = handler.formatter
    try:
        logging.set_verbosity(logging.INFO)
        hosts._log_as(3)
        assert logging.get_verbosity() == logging.WARNING
        record = logging.get_absl_logger().makeRecord("absl", 30, "x.py", 1, "hot", (), None)
        assert handler.format(record).startswith("[3] ") and handler.format(record).endswith("hot")
    finally:
        handler.setFormatter(formatter)
        logging.set_verbosity(level)


SCRIPT = """
import sys, time
import jax
jax.config.update("jax_platforms", "cpu")
from process_gen.distributed import hosts
try:
    hosts.initialize(timeout=float(sys.argv[1]))
    print("joined", jax.process_count(), flush=True)
    if jax.process_index() == 2:
        time.sleep(60)
    hosts.barrier("the first step", timeout=3)
except hosts.HostMissing as error:
    print(error, flush=True)
    import os
    os._exit(7)
"""


def test_a_process_that_never_starts_is_named():
    for process in start_job([sys.executable, "-c", SCRIPT, "8"], 3, started=2):
        out, error = process.communicate(timeout=60)
        assert process.returncode == 7, error[-2000:]
        assert "process 2 of 3 did not come to 'start' within 8 s" in out


def test_a_process_that_hangs_is_named_with_its_host():
    running = start_job([sys.executable, "-c", SCRIPT, "40"], 3)
    try:
        out, error = running[0].communicate(timeout=60)
        assert running[0].returncode == 7, error[-2000:]
        assert f"process 2 ({socket.gethostname()}) of 3 did not come to 'the first step' within 3 s" in out
        running[1].communicate(timeout=60)
        assert running[1].returncode, "it does not go on without the others"
    finally:
        for process in running:
            process.kill()
            process.communicate()


def test_the_lead_that_cannot_be_reached_is_named():
    with pytest.raises(rollcall.HostMissing, match="process 0 of 2 was not reached at localhost:.* in 1 s"):
        rollcall.call(f"localhost:{free_port()}", 2, 1, timeout=1)


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\n", b"[" * 4000 + b"\n", b"[1]\n", b'{"process": 9}\n', b"\xff\n"]
)
def test_a_stranger_at_the_port_ends_nothing(said):
    port = free_port()
    with futures.ThreadPoolExecutor(1) as pool:
        served = pool.submit(rollcall.call, f"localhost:{port}", 2, 0, 30)
        for _ in range(100):
            try:
                stranger = socket.create_connection(("localhost", port), timeout=5)
                break
            except OSError:
                time.sleep(0.1)
        with stranger:
            stranger.sendall(said)
            found = rollcall.call(f"localhost:{port}", 2, 1, timeout=30)
        assert found == served.result() == dict.fromkeys(range(2), socket.gethostname())
