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
from process_gen.experiment import cli
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
    with pytest.raises(ValueError, match="Slurm .* was detected, but JAX finds no coordinator.*SLURM_STEP_"):
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


FAILS = """
import os
import jax
jax.config.update("jax_platforms", "cpu")
from process_gen.distributed import hosts
from process_gen.experiment import cli
def main(argv):
    hosts.initialize()
    if os.environ["WHO"] in ("all", str(jax.process_index())):
        raise OSError(int(os.environ["NUMBER"]), "no good")
    hosts.barrier("the first step", timeout=60)
cli.run(main, (OSError, hosts.HostMissing))
"""


@pytest.mark.parametrize(
    ("who", "number", "code"), [("0", 28, 2), ("1", 28, 2), ("all", 28, 2), ("1", 116, 1)]
)
def test_a_process_that_fails_alone_ends_with_its_own_code(tmp_path, monkeypatch, who, number, code):
    monkeypatch.setenv("PROCESS_GEN_REFUSED", str(tmp_path / "refused"))
    monkeypatch.setenv("WHO", who)
    monkeypatch.setenv("NUMBER", str(number))
    running = start_job([sys.executable, "-c", FAILS], 3)
    try:
        for index in range(3) if who == "all" else [int(who)]:
            _, error = running[index].communicate(timeout=60)
            assert running[index].returncode == code, error[-2000:]
            assert error.count("error: ") == 1 and "no good" in error
        assert (tmp_path / "refused").exists() == (code == 2)
    finally:
        for process in running:
            process.kill()
            process.communicate()


def test_a_host_that_is_missing_is_no_final_refusal(capfd):
    with pytest.raises(SystemExit) as end:
        cli.fail(rollcall.missing({0}, 2, "start", 1, {}))
    assert end.value.code == 1 and "did not come" in capfd.readouterr().err


def test_the_lead_that_cannot_be_reached_is_named():
    with pytest.raises(rollcall.HostMissing, match="process 0 of 2 was not reached at localhost:.* in 1 s"):
        rollcall.call(f"localhost:{free_port()}", 2, 1, timeout=1)


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\n",
        b"[" * 4000 + b"\n",
        b"[1]\n",
        b'{"process": 9}\n',
        b'{"process": 2, "host": "x"}\n',
        b"\xff\n",
    ],
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
