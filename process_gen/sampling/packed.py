"""Samples an image for every turn of packed training rows, all in parallel.

B rows, S turn slots, I latent tokens of an image, C channels of a latent token.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from process_gen.models.config import NO_RANDOM_DROPS
from process_gen.models.inputs import make_inputs
from process_gen.models.unified import UnifiedModel
from process_gen.models.unroll import run_turns
from process_gen.sampling.flow import FlowSpec, integrate
from process_gen.trajectory.batch import Batch


def draw_rows(
    model: UnifiedModel,
    params: Any,
    batch: Batch,
    key: jax.Array,
    flow_steps: int,
    time_shift: float,
    order: str = "layers",
    frozen: Any = None,
) -> jax.Array:
    """Samples latents [B, S, I, C] of an image for every turn, from noise and without guidance.

    The context of each is that of training: the batch's own texts and images before it. No text is decoded,
    and no image sees another one that is sampled here. One forward pass over the rows is one Euler step of
    all images. See `FlowSpec` for `flow_steps` and `time_shift`, `UnrollOptions` for the `order` of the
    loops; `frozen` are the weights of an autoencoder that has any.
    """
    model = model.clone(layout=dataclasses.replace(model.layout, copies=1))
    options = dataclasses.replace(NO_RANDOM_DROPS, order=order)
    inputs = make_inputs(model, batch, key, options, frozen)
    shape = inputs.flows["clean"].shape

    def velocity(names: Any, x: jax.Array, t: jax.Array) -> dict[str, jax.Array]:
        latents = {**inputs.turns.latents, "noised_0": x.reshape(shape)}
        turns = inputs.turns.replace(latents=latents, times={"noised_0": jnp.broadcast_to(t, shape[:2])})
        _, outputs = run_turns(model, params, batch, inputs.prompts, turns, order)
        return {name: outputs["velocity"].reshape(x.shape) for name in names}

    noise = jax.random.normal(key, (shape[0] * shape[1], *shape[2:]))
    return integrate(FlowSpec(flow_steps, time_shift), velocity, noise).reshape(shape)
