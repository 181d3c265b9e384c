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

from process_gen.capacity import hlo
from process_gen.models import cost, flux, kernels
from process_gen.models.config import FluxConfig, UnrollOptions, VitConfig
from process_gen.models.unified import UnifiedModel
from process_gen.models.unroll import unroll
from process_gen.training.amounts import amounts, of_a_full_row
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.visibility import Chunk
from tests.data.fake import fake_batch
from tests.models import tiny

CONFIG = dataclasses.replace(
    tiny.CONFIG,
    width=96,
    mlp=160,
    heads=4,
    kv_heads=2,
    head_dim=24,
    vocab_size=200,
    attention="dense",
    vit=VitConfig(width=48, layers=2, mlp=80, heads=2, patch=4, max_side=4),
)
LAYOUT = tiny.layout(
    prompt=24, before=40, after=30, latent_grid=(4, 4), latent_values=48, image_size=(16, 16),
    vit_grid=(3, 3), prompt_image=True, instruction=12, turns=3, corrections=1,
)  # fmt: skip
ONE_TURN = dataclasses.replace(LAYOUT, turns=1, trajectories=1)
"""No history, of which a program holds a branch for every length."""


@functools.cache
def parameters(layout):
    """Shapes of those of `CONFIG`, which are the same for every attention and every way to recompute."""
    found = jax.eval_shape(
        UnifiedModel(CONFIG, layout, tiny.IDS).init, jax.random.key(0), Batch.spec(layout, 1)
    )
    return nn.unbox(found["params"])


def lowered(config, layout, gradient: bool, order: str = "layers"):
    """What XLA is given: forward or gradient of a loss that reads everything that the losses read."""
    model = UnifiedModel(config, layout, tiny.IDS)
    spec = Batch.spec(layout, 1)

    def total(params, batch):
        outputs = unroll(model, params, batch, jax.random.key(0), UnrollOptions(order=order))
        read = ("before", "after", "image_end", "prompt_end")
        scored = jnp.concatenate([outputs.hidden[name].reshape(-1, config.width) for name in read])
        return jnp.sum(jnp.square(outputs.logits(scored))) + jnp.sum(jnp.square(outputs.velocity))

    function = jax.grad(total) if gradient else total
    return jax.jit(function).lower(parameters(layout), spec)


def products(lowered: jax.stages.Lowered) -> float:
    """FLOP of the matrix products of a program, loops in full."""
    program, total = hlo.parse(lowered.as_text("hlo")), 0.0
    for name, runs in program.runs.items():
        computation = program.computations[name]
        for one in computation.values():
            if one.op == "dot":
                left = re.search(r"\[([\d,]*)\]", computation[one.operands[0]].type)[1].split(",")
                inner = one.attribute("lhs_contracting_dims").strip("{}")
                depth = math.prod(int(left[int(i)]) for i in inner.split(",") if i)
                shape = re.search(r"\[([\d,]*)\]", one.type)[1]
                total += runs * 2.0 * depth * math.prod(int(side) for side in shape.split(",") if side)
    return total


def worked_through(config, layout, order: str = "layers", counts=None) -> cost.Flops:
    return cost.executed(config, layout, counts or cost.every_slot(layout), cost.Program(order))


@pytest.mark.parametrize(("attention", "layout"), [("dense", ONE_TURN), ("blocked", LAYOUT)])
def test_the_forward_pass_costs_what_xla_counts(attention, layout):
    config = dataclasses.replace(CONFIG, attention=attention)
    counted = products(lowered(config, layout, gradient=False))
    expected = cost.computed(config, layout, cost.every_slot(layout), cost.Program())
    assert counted == pytest.approx(sum(expected.values()), rel=0.003)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attention", "remat", "order"),
    [
        ("dense", "full", "layers"),
        ("dense", "none", "scan"),
        ("blocked", "full", "scan"),
        *(("blocked", remat, "layers") for remat in ("none", "dots", "save_attended", "save_qkv")),
    ],
)
def test_the_train_step_works_through_what_is_counted_with_recomputation(attention, remat, order):
    layout = ONE_TURN if attention == "dense" else LAYOUT
    config = dataclasses.replace(CONFIG, attention=attention, remat=remat)
    counted = products(lowered(config, layout, gradient=True, order=order))
    assert counted == pytest.approx(sum(worked_through(config, layout, order).values()), rel=0.01)


def test_the_encoder_costs_what_xla_counts():
    config = dataclasses.replace(CONFIG, autoencoder="flux", flux=FluxConfig(ch=32, ch_mult=(1, 2)))
    layout = dataclasses.replace(LAYOUT, image_size=(32, 32))
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    module = flux.FluxAutoencoder(config.flux)
    params = jax.eval_shape(module.init, jax.random.key(0), image)
    counted = jax.jit(functools.partial(module.apply, method="encode")).lower(params, image).cost_analysis()
    # At the edges of an image XLA leaves out what a filter would read outside of it; norms are extra.
    assert counted["flops"] == pytest.approx(cost.encoder_flops(config, layout), rel=0.08)


def test_what_is_useful_never_exceeds_what_every_slot_holds():
    every, full = cost.every_slot(LAYOUT), of_a_full_row(LAYOUT)
    held = {name: full[name] for name in every if name not in ("history_turns", "branch_turns")}
    assert held == {name: every[name] for name in held}
    once = cost.computed(CONFIG, LAYOUT, every, cost.Program())
    useful = cost.useful(CONFIG, LAYOUT, full)
    assert {part for part in once if useful[part] != 3 * once[part]} == {"attention"}
    assert useful["attention"] < 3 * once["attention"]
    batch = Batch(**fake_batch(LAYOUT, 3, 0, tiny.VOCAB))
    counts = {name.removeprefix("batch/"): float(x) for name, x in amounts(LAYOUT, batch).items()}
    parts = cost.useful(CONFIG, LAYOUT, counts)
    executed = worked_through(CONFIG, LAYOUT, counts=counts)
    assert all(0 < parts[part] < executed[part] for part in parts if part != "autoencoder")


def test_useful_pairs_are_those_of_the_mask():
    layout = dataclasses.replace(LAYOUT, turns=1, trajectories=1)
    chunks = Chunk(layout.prompt_segments), Chunk(layout.turn_segments)
    pairs = sum(int(chunk.mask.sum()) for chunk in chunks) + chunks[1].tokens * layout.prompt_tokens
    flops = cost.forward(CONFIG, layout, of_a_full_row(layout))["attention"]
    assert flops == 4 * CONFIG.heads * CONFIG.head_dim * CONFIG.layers * pairs


@pytest.mark.parametrize("attention", ["dense", "splash"])
def test_a_history_that_is_empty_is_left_out(attention):
    """Five trajectories of a turn each see nothing of one another; kernels keep what a block needs."""
    config = dataclasses.replace(CONFIG, attention=attention)
    layout = dataclasses.replace(LAYOUT, turns=5, trajectories=5, before=600, after=600)
    every, alone = cost.every_slot(layout), of_a_full_row(layout)
    assert every["history_turns"] == 10 and alone["history_turns"] == alone["branch_turns"] == 0
    program = cost.Program(platform="tpu")
    most, least = (cost.computed(config, layout, one, program)["attention"] for one in (every, alone))
    turn = Chunk(layout.turn_segments).tokens
    skipped = 10 * layout.visible_tokens * turn * 4 * config.heads * config.head_dim * config.layers
    if attention == "dense":
        assert most - least == pytest.approx(skipped)
    else:
        block = kernels.BLOCK_KV * turn * 5 * 4 * config.heads * config.head_dim * config.layers
        assert most - least == pytest.approx(skipped, abs=block)
    other = {part: value for part, value in every.items() if not part.endswith("_turns")}
    assert other == {part: alone[part] for part in other}


def test_flash_is_what_the_platform_has():
    config = dataclasses.replace(CONFIG, attention="flash")
    ways = {platform: cost.Program(platform=platform).attention(config) for platform in ("tpu", "gpu", "cpu")}
    assert ways == {"tpu": "splash", "gpu": "cudnn", "cpu": "blocked"}
    assert cost.Program(platform="tpu").attention(CONFIG) == "dense"
