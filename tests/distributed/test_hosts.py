from __future__ import annotations

import jax
import pytest

from process_gen.distributed import hosts


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for variable in hosts.CLUSTER_VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def test_a_machine_of_its_own():
    assert hosts.cluster() is None
    assert hosts.initialize() is False
    assert hosts.is_lead() and hosts.process_index() == 0 and hosts.process_count() == 1


def test_a_launcher_is_joined(monkeypatch):
    seen = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **kwargs: seen.update(kwargs))
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1234")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    with pytest.raises(ValueError, match="JAX_PROCESS_ID must be a number"):
        hosts.initialize()
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    assert hosts.initialize() is True
    assert seen == {"coordinator_address": "localhost:1234", "num_processes": 1, "process_id": 0}


def test_slurm_is_left_to_jax(monkeypatch):
    seen = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **kwargs: seen.append(kwargs))
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[1-2]")
    assert hosts.initialize() is True and seen == [{}]
