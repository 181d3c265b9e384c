"""Rates, the cost of a token by part, memory, and what the meter leaves out of them."""

from __future__ import annotations

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from process_gen.models import cost
from process_gen.models.config import model_config
from process_gen.models.unified import UnifiedModel
from process_gen.training import metering, norms
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.layout import Layout
from tests.models.tiny import CONFIG, IDS, VIT, layout

AMOUNTS = {
    "batch/rows": 2.0,
    "batch/slots": 50.0,
    "batch/und_tokens": 10.0,
    "batch/gen_tokens": 20.0,
    "batch/attention_pairs": 300.0,
    "batch/images": 3.0,
    "batch/flow_targets": 2.0,
    "batch/vit_images": 2.0,
    "batch/head_tokens": 4.0,
    "batch/turns": 3.0,
    "batch/trajectories": 1.0,
    "batch/history_turns": 2.0,
    "batch/branch_turns": 2.0,
}
LAYOUT = layout(vit_grid=VIT)
PARTS = ("embedding", "und", "gen", "vit", "head", "latent")


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
    def of(**counts) -> dict[str, float]:
        found = cost.useful(CONFIG, LAYOUT, counts)
        return {part: flops / 6 for part, flops in found.items() if flops}

    expert = 2 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24)  # two layers: q and o, k and v, the MLP
    assert of(und_tokens=1) == {"und": expert}
    assert of(gen_tokens=1) == {"gen": expert}
    entering = 4 * 48 * 16 + 256 * 16 + 16 * 16  # four latent tokens, and their timestep
    assert of(images=1) == {"gen": entering}
    assert of(flow_targets=1) == {"gen": entering + 4 * 48 * 16}
    assert of(head_tokens=1) == {"head": 16 * 32}
    assert of(attention_pairs=1) == {"attention": 2 * 2 * 2 * 8}  # scores and values, layers, heads, head_dim
    vit = 27 * 12 + 2 * (4 * 12 * 12 + 2 * 12 * 20) + 12 * 16 + 16 * 16  # patches, blocks, connector
    assert of(vit_images=1) == {"vit": 6 * vit + 2 * 2 * 12 * 6**2}


def test_a_token_goes_through_the_matrices_of_its_part():
    """Counted from sizes, and from the parameters that there are."""
    sizes = dict.fromkeys(PARTS, 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes(CONFIG, LAYOUT)):
        names = [str(getattr(key, "key", key)) for key in path]
        if names[-1] == "kernel":
            sizes[norms.part_of(path)] += leaf.size * (LAYOUT.latents if names[0].startswith("latent") else 1)
    one = dict(und_tokens=1, gen_tokens=1, head_tokens=1, flow_targets=1, vit_images=1)
    found = {part: flops / 2 for part, flops in cost.forward(CONFIG, LAYOUT, one).items()}
    assert found["und"] == sizes["und"] and found["head"] == sizes["head"]
    assert found["gen"] == sizes["gen"] + sizes["latent"]
    assert found["vit"] == sizes["vit"] * LAYOUT.vit_tokens + 2 * 2 * 12 * LAYOUT.vit_tokens**2


def test_no_vit_tokens_cost_nothing():
    assert cost.useful(CONFIG, layout(), {"und_tokens": 9, "vit_images": 0})["vit"] == 0


@pytest.mark.parametrize("size", ["debug", "bagel_7b"])
def test_every_parameter_belongs_to_a_part(size):
    config = model_config(size)
    there = layout(vit_grid=(4, 4))
    leaves = jax.tree_util.tree_leaves_with_path(shapes(config, there))
    assert {norms.part_of(path) for path, _ in leaves} == set(PARTS)


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


def meter(peak: float, devices: int) -> metering.Meter:
    return metering.Meter(CONFIG, LAYOUT, cost.Program(), peak, devices, last=10)


def test_rates_of_two_devices(clock):
    one = meter(peak=600.0, devices=2)
    for _ in range(2):
        clock.time += 1.5
        one.count(AMOUNTS | {"loss": 1.0}, waited=0.3)
    rates = one.read(2)
    assert rates["speed/step_seconds"] == 1.5
    assert rates["speed/tokens_per_second"] == 20 and rates["speed/tokens_per_second_per_chip"] == 10
    assert rates["speed/turns_per_second"] == 2 and rates["speed/trajectories_per_second"] == 2 / 3
    assert rates["speed/data_wait_share"] == pytest.approx(0.2)
    assert rates["speed/eta_seconds"] == 8 * 1.5
    # In three seconds the two devices could have done 600 x 2 x 3.
    held = {name.removeprefix("batch/"): 2 * value for name, value in AMOUNTS.items()}
    parts = cost.useful(CONFIG, LAYOUT, held)
    assert {part for part, flops in parts.items() if flops} == set(cost.PARTS) - {"autoencoder"}
    for part, flops in parts.items():
        assert rates[f"mfu/{part}"] == pytest.approx(flops / 3600)
    assert rates["speed/mfu"] == pytest.approx(sum(parts.values()) / 3600)
    assert rates["speed/useful_tokens"] == pytest.approx(30 / 50)
    executed = cost.executed(CONFIG, LAYOUT, held, cost.Program())
    assert rates["speed/useful_flops"] == pytest.approx(sum(parts.values()) / sum(executed.values()))
    assert 0 < rates["speed/useful_flops"] < 0.5


def test_what_was_forgotten_is_in_no_rate(clock):
    one = meter(peak=1.0, devices=1)
    clock.time = 100.0  # compiling, in which step 1 was done
    one.restart()
    one.count(AMOUNTS, 90.0)
    assert "speed/mfu" not in one.read(1) and one.mean() == {}
    for _ in range(2):
        clock.time += 2.0
        one.count(AMOUNTS, 0.0)
    assert one.read(3)["speed/step_seconds"] == 2.0
    clock.time += 4.0
    one.count(AMOUNTS, 0.0)
    one.read(4)
    assert one.mean()["speed/step_seconds"] == pytest.approx(8 / 3)
    table = one.table()
    assert "useful tokens/s" in table and "attention" in table
    assert "useful share of the tokens" in table and "60.0%" in table and "useful share of the FLOP" in table


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
