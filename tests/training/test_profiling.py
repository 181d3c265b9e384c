from __future__ import annotations

import pytest

from process_gen.training import profiling
from process_gen.training.profiling import REQUEST, Profiler


@pytest.fixture
def traced(monkeypatch):
    """What was asked of JAX's profiler."""
    calls = []
    monkeypatch.setattr(profiling.jax.profiler, "start_trace", lambda folder: calls.append(folder))
    monkeypatch.setattr(profiling.jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


def steps_traced(profiler: Profiler, steps: int) -> list[int]:
    """The steps that were dispatched while a trace was going on."""
    found = []
    for step in range(1, steps + 1):
        profiler.before(step)
        if profiler.tracing:
            found.append(step)
    profiler.stop()
    return found


def test_early_steps_are_traced_if_the_config_asks(tmp_path, traced):
    # Steps 5 to 7; 8 is dispatched by the time that the metrics of 7 are there.
    assert steps_traced(Profiler(str(tmp_path), tmp_path, True, 1), 20) == [5, 6, 7, 8]
    assert traced == [str(tmp_path / "profile"), "stop"]
    assert steps_traced(Profiler(str(tmp_path), tmp_path, False, 1), 20) == []


def test_a_file_asks_for_a_trace_once(tmp_path, traced):
    profiler = Profiler(str(tmp_path), tmp_path, False, look_every=10)
    (tmp_path / REQUEST).touch()
    assert steps_traced(profiler, 40) == [10, 11, 12, 13]
    assert not (tmp_path / REQUEST).exists() and traced.count("stop") == 1


def test_a_run_that_ends_early_ends_its_trace(tmp_path, traced):
    assert steps_traced(Profiler(str(tmp_path), tmp_path, True, 1), 6) == [5, 6]
    assert traced[-1] == "stop"


def test_hosts_other_than_the_lead_leave_the_request_alone(tmp_path, traced, monkeypatch):
    monkeypatch.setattr(profiling.hosts, "is_lead", lambda: False)
    (tmp_path / REQUEST).touch()
    assert steps_traced(Profiler(str(tmp_path), tmp_path, True, 1), 20) == []
    assert (tmp_path / REQUEST).exists() and not traced
