"""FLOP counted from sizes against those that XLA counts in the compiled program."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from process_gen.distributed import hlo
from process_gen.models import cost, flux
from process_gen.models.config import FluxConfig, VitConfig
from process_gen.models.unified import UnifiedModel
from process_gen.models.unroll import unroll
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.visibility import Chunk
from tests.models import tiny

CONFIG = dataclasses.replace(
    tiny.CONFIG,
    width=96,
    mlp=160,
    heads=4,
    kv_heads=2,
    head_dim=24,
    vocab_size=200,
    attention="grouped",
    vit=VitConfig(width=48, layers=2, mlp=80, heads=2, patch=4, max_side=4),
)
LAYOUT = tiny.layout(
    prompt=24, plan=40, inspect=30, refine=20, latent_grid=(4, 4), latent_values=48, image_size=(16, 16),
    vit_grid=(3, 3), prompt_image=True, instruction=12,
)  # fmt: skip


def lowered(config, layout, gradient: bool):
    """What XLA is given: forward or gradient of a loss that reads everything that the losses read."""
    model = UnifiedModel(config, layout, tiny.IDS)
    spec = Batch.spec(layout, 1)
    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), spec)["params"])

    def total(params, batch):
        outputs = unroll(model, params, batch, jax.random.key(0))
        texts = [outputs.hidden[name][0] for name in ("plan", "inspect", "refine")]
        ends = [x.reshape(-1, config.width) for name, x in outputs.hidden.items() if name.endswith("end")]
        scored = jnp.concatenate([x.reshape(-1, config.width) for x in texts] + ends)
        flows = sum(jnp.sum(jnp.square(v)) for v in outputs.velocity.values())
        return jnp.sum(jnp.square(outputs.head(scored))) + flows

    function = jax.grad(total) if gradient else total
    return jax.jit(function).lower(params, spec)


def products(lowered: jax.stages.Lowered) -> float:
    """FLOP of the matrix products of a program, loops in full."""
    program, total = hlo.parse(lowered.as_text("hlo")), 0.0
    for name, runs in program.runs.items():
        computation = program.computations[name]
        for one in computation.instructions:
            if one.op == "dot":
                left = re.search(r"\[([\d,]*)\]", computation.by_name[one.operands[0]].type)[1].split(",")
                inner = one.attribute("lhs_contracting_dims").strip("{}")
                depth = math.prod(int(left[int(i)]) for i in inner.split(",") if i)
                shape = re.search(r"\[([\d,]*)\]", one.type)[1]
                total += runs * 2.0 * depth * math.prod(int(side) for side in shape.split(",") if side)
    return total


@pytest.mark.parametrize("attention", ["grouped", "dense"])
def test_the_forward_pass_costs_what_xla_counts_when_it_is_unrolled(attention, monkeypatch):
    config = dataclasses.replace(CONFIG, attention=attention, scan_unroll=CONFIG.layers)
    monkeypatch.setattr(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=True))
    counted = lowered(config, LAYOUT, gradient=False).cost_analysis()["flops"]
    expected = sum(cost.forward(config, LAYOUT).values())
    assert counted == pytest.approx(expected, rel=0.06)  # XLA counts norms, softmax and sums as well


@pytest.mark.slow
def test_the_train_step_works_through_what_is_counted_with_recomputation():
    config = dataclasses.replace(CONFIG, remat="full", remat_steps=True)
    counted = products(lowered(config, LAYOUT, gradient=True))
    assert counted == pytest.approx(sum(cost.executed(config, LAYOUT).values()), rel=0.03)


def test_the_encoder_costs_what_xla_counts():
    config = dataclasses.replace(CONFIG, autoencoder="flux", flux=FluxConfig(ch=32, ch_mult=(1, 2)))
    layout = dataclasses.replace(LAYOUT, image_size=(32, 32))
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    module = flux.FluxAutoencoder(config.flux)
    params = jax.eval_shape(module.init, jax.random.key(0), image)
    counted = jax.jit(functools.partial(module.apply, method="encode")).lower(params, image).cost_analysis()
    # At the edges of an image XLA leaves out what a filter would read outside of it; norms are extra.
    assert counted["flops"] == pytest.approx(cost.encoder_flops(config, layout), rel=0.08)


def test_useful_tokens_and_pairs_never_exceed_those_of_the_slots():
    every, full = cost.tokens(LAYOUT), cost.tokens(LAYOUT, cost.Fill())
    assert every == full
    half = cost.tokens(LAYOUT, cost.Fill(texts=0.5, steps=0.5, refines=0.25))
    assert half.und < full.und / 2 and half.gen < full.gen / 2
    slots, seen = cost.forward(CONFIG, LAYOUT), cost.forward(CONFIG, LAYOUT, cost.Fill())
    assert seen["attention"] < slots["attention"]
    assert {part for part in slots if slots[part] != seen[part]} == {"attention"}
    with pytest.raises(ValueError, match="fill texts must be above 0"):
        cost.Fill(texts=0.0)


def test_visible_pairs_are_those_of_the_mask():
    layout = dataclasses.replace(LAYOUT, steps=1, trajectories=1)
    chunks = Chunk(layout.prompt_segments), Chunk(layout.step_segments)
    pairs = sum(int(chunk.mask.sum()) for chunk in chunks) + chunks[1].tokens * layout.prompt_slots
    flops = cost.forward(CONFIG, layout, cost.Fill())["attention"]
    assert flops == 4 * CONFIG.heads * CONFIG.head_dim * CONFIG.layers * pairs
