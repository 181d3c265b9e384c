"""Attention under a mesh, and what the program of a whole step holds."""

from __future__ import annotations

import dataclasses
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from absl import logging
from jax.sharding import PartitionSpec as P

from process_gen.distributed.sharding import ACTIVATION_RULES
from process_gen.models import partition
from process_gen.models.config import model_config
from process_gen.models.unified import UnifiedModel
from process_gen.models.unroll import unroll
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.layout import Layout
from tests.models.test_kernels import sizes
from tests.models.tiny import IDS
from tests.own_process import printed


@pytest.mark.slow
def test_eight_devices_give_the_numbers_of_one():
    assert printed(pathlib.Path(__file__).with_name("eight_devices_attention.py")) == ["OK"]


def test_without_a_mesh_of_several_devices_nothing_is_added():
    x = jnp.ones((4, 6, 8))
    one = jax.sharding.Mesh(jax.devices()[:1], ("data",))
    assert partition.constrain("x", x, "rows", "tokens", None) is x
    with partition.on_mesh(one, {"rows": "data", "tokens": None}):
        assert partition.constrain("x", x, "rows", "tokens", None) is x
        assert partition.mesh() is None and partition.platform() == "cpu"


def test_a_size_that_does_not_divide_stays_whole_with_one_line(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: lines.append(text % args))
    mesh = jax.sharding.AbstractMesh((2, 2, 1, 4), ("data", "fsdp", "tensor", "context"))
    monkeypatch.setattr(partition, "_AMBIENT", partition.contextvars.ContextVar("test"))
    partition._AMBIENT.set(partition._Ambient(mesh, ACTIVATION_RULES))
    axes = ("rows", "tokens", "heads")
    assert partition.spec("x", (8, 12, 3), axes) == P(("data", "fsdp"), ("context",), None)
    for _ in range(2):
        assert partition.spec("x", (8, 13, 3), axes) == P(("data", "fsdp"), None, None)
    assert lines == ["x: 13 tokens do not divide by context=4, so they stay whole on every device"]
    assert (partition.shards("rows"), partition.shards("tokens"), partition.shards("heads")) == (4, 4, 1)


@pytest.mark.slow
def test_a_step_of_the_long_rows_holds_no_scores():
    """Every array of the traced gradient, at the token counts of `bagel_7b.py:paper` and small widths."""
    layout = Layout(
        image_size=(512, 512),
        latent_grid=(32, 32),
        latent_values=64,
        vit_grid=(22, 22),
        prompt=361,
        prompt_image=True,
        instruction=361,
        before=288,
        after=208,
        turns=5,
        trajectories=2,
    )
    config = model_config(
        "bagel_7b", vocab_size=32, width=16, layers=1, mlp=8, heads=2, kv_heads=1, head_dim=8
    )
    config = dataclasses.replace(
        config, vit=dataclasses.replace(config.vit, width=8, layers=1, mlp=8, heads=1)
    )
    model = UnifiedModel(dataclasses.replace(config, attention="flash"), layout, IDS)
    latents = {
        name: jax.ShapeDtypeStruct((1, n, layout.latents, layout.latent_values), jnp.float32)
        for name, n in (("image_latents", 5), ("prompt_latents", 2))
    }
    batch = Batch.spec(layout, 1).replace(**latents)

    def loss(params, batch):
        outputs = unroll(model, params, batch, jax.random.key(0))
        return sum(x.astype(jnp.float32).sum() for x in (*outputs.hidden.values(), outputs.velocity))

    small = jax.tree.map(lambda x: jnp.zeros((1, *x.shape[1:]), x.dtype), batch)
    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), small)["params"])
    chunk = sum(s.tokens for s in layout.turn_segments)
    keys = chunk + layout.prompt_tokens + layout.visible_tokens * layout.window
    largest = max(sizes(jax.make_jaxpr(jax.grad(loss))(params, batch).jaxpr))
    assert largest < chunk * keys / 7, f"an array of {largest} elements; scores of a head have {chunk * keys}"
