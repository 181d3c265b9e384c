"""Rates, the cost of a token by part, memory, and what the meter leaves out of them."""

from __future__ import annotations

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from process_gen import metering, norms
from process_gen.models.config import model_config
from process_gen.models.unified import UnifiedModel
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.layout import Layout
from tests.models.tiny import CONFIG, IDS, VIT, layout

AMOUNTS = {
    "batch/und_tokens": 10.0,
    "batch/gen_tokens": 20.0,
    "batch/attention_pairs": 300.0,
    "batch/views": 2.0,
    "batch/head_tokens": 4.0,
    "batch/steps": 3.0,
}


@pytest.fixture
def clock(monkeypatch):
    now = types.SimpleNamespace(time=0.0)
    monkeypatch.setattr(metering.time, "perf_counter", lambda: now.time)
    return now


def shapes(config, there: Layout):
    model = UnifiedModel(config, there, IDS)
    batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), Batch.spec(there, 1))
    return nn.unbox(jax.eval_shape(model.init, jax.random.key(0), batch))["params"]


def test_the_cost_of_a_token_is_worked_out_by_hand():
    there = layout(vit_grid=VIT)
    cost = metering.Cost.of(shapes(CONFIG, there), CONFIG, there)
    expert = 2 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24)  # two layers: q and o, k and v, the MLP
    assert cost.und == expert
    assert cost.gen == expert + 2 * 16 * 48
    assert cost.head == 16 * 32
    assert cost.attention == 2 * 2 * 2 * 8  # scores and values, layers, heads, head_dim
    vit = 27 * 12 + 2 * (4 * 12 * 12 + 2 * 12 * 20) + 12 * 16 + 16 * 16  # patches, blocks, connector
    assert cost.vit == 6 * vit + 2 * 2 * 12 * 6**2


def test_no_vit_tokens_cost_nothing():
    assert metering.Cost.of(shapes(CONFIG, layout()), CONFIG, layout()).vit == 0


@pytest.mark.parametrize("size", ["debug", "bagel_7b"])
def test_every_parameter_belongs_to_a_part(size):
    config = model_config(size)
    there = layout(vit_grid=(4, 4))
    leaves = jax.tree_util.tree_leaves_with_path(shapes(config, there))
    assert {norms.part_of(path) for path, _ in leaves} == set(norms.PARTS)


def test_norms_by_part_make_up_the_global_norm():
    layers = {"und": {"q": jnp.ones(9)}, "gen": {"q": jnp.full(4, 2.0)}}
    tree = {
        "embedding": jnp.full(4, 2.0),
        "backbone": {"layers": layers, "norms_gen": jnp.full(5, 2.0)},
        "mine": jnp.full((1, 1), 7.0, jnp.bfloat16),
    }
    found = norms.by_part("grad_norm", tree)
    assert {name: float(value) for name, value in found.items()} == {
        "grad_norm/embedding": 4.0,
        "grad_norm/gen": 6.0,
        "grad_norm/other": 7.0,
        "grad_norm/und": 3.0,
    }


def test_rates_of_two_devices(clock):
    meter = metering.Meter(metering.Cost(5.0, 7.0, 1.0, 50.0, 2.0), peak=600.0, devices=2, first=0, last=10)
    for _ in range(2):
        clock.time += 1.5
        meter.count(AMOUNTS, waited=0.3)
    rates = meter.read(2)
    assert rates["speed/step_seconds"] == 1.5
    assert rates["speed/tokens_per_second"] == 20 and rates["speed/tokens_per_second_per_chip"] == 10
    assert rates["speed/data_wait_share"] == pytest.approx(0.2)
    assert rates["speed/eta_seconds"] == 8 * 1.5
    # 6 FLOP per multiply-add; the two devices could have done 600 x 2 x 3.
    parts = {"und": 2 * 50.0, "gen": 2 * 140.0, "attention": 2 * 300.0, "vit": 2 * 100.0, "head": 2 * 8.0}
    for part, adds in parts.items():
        assert rates[f"mfu/{part}"] == pytest.approx(6 * adds / 3600)
    assert rates["speed/mfu"] == pytest.approx(6 * sum(parts.values()) / 3600)


def test_what_was_forgotten_is_in_no_rate(clock):
    meter = metering.Meter(metering.Cost(1.0, 1.0, 1.0, 1.0, 1.0), peak=1.0, devices=1, first=0, last=10)
    clock.time = 100.0  # compiling, in which step 1 was done
    meter.restart()
    meter.count(AMOUNTS, 90.0)
    assert "speed/mfu" not in meter.read(1) and meter.mean() == {}
    for _ in range(2):
        clock.time += 2.0
        meter.count(AMOUNTS, 0.0)
    assert meter.read(3)["speed/step_seconds"] == 2.0
    clock.time += 4.0
    meter.count(AMOUNTS, 0.0)
    meter.read(4)
    assert meter.mean()["speed/step_seconds"] == pytest.approx(8 / 3)
    assert "tokens/s" in meter.table() and "attention" in meter.table()


def test_memory_of_the_fullest_device(monkeypatch):
    gib = 2**30

    def device(used, peak):
        stats = {"bytes_in_use": used * gib, "peak_bytes_in_use": peak * gib, "bytes_limit": 16 * gib}
        return types.SimpleNamespace(memory_stats=lambda: stats)

    monkeypatch.setattr(metering.jax, "local_devices", lambda: [device(1, 5), device(3, 4)])
    found = metering.memory()
    assert found.pop("memory/host_peak_gib") > 0.01
    assert found == {"memory/in_use_gib": 3.0, "memory/peak_gib": 5.0, "memory/limit_gib": 16.0}
    monkeypatch.undo()
    assert set(metering.memory()) == {"memory/host_peak_gib"}  # a CPU keeps no account
