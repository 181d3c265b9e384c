"""Training's forward pass: teacher-forced turns of packed rows, in either order of the loops.

    layers   the backbone once over the whole row: each layer goes over all turns
             before the next one starts (`UnifiedModel.forward_rows`)
    scan     the definition: `step` scanned over the turn slots

Both give the same outputs. With `layers` the weights of a layer are gathered once in the forward pass and
once in the backward pass. `scan` is for histories too long for device memory, and the reference of tests.

B rows, S turn slots, R trajectories of a row, J noised copies, I latent tokens of an
image, C channels of a latent token, T tokens of a text slot, D width.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from process_gen.models import autoencoder
from process_gen.models.cache import Context, KVCache
from process_gen.models.config import NO_RANDOM_DROPS, UnrollOptions
from process_gen.models.content import ChunkInputs
from process_gen.models.inputs import make_inputs
from process_gen.models.outputs import REFERENCE, Outputs
from process_gen.models.unified import UnifiedModel
from process_gen.trajectory.batch import Batch


def scan_turns(
    model: UnifiedModel, params: Any, batch: Batch, prompts: ChunkInputs, turns: ChunkInputs
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Runs `prefill` for every prompt, then scans `step` over the turn slots.

    The backward pass keeps the context between turns and computes each turn again
    (`jax.checkpoint`), unless `model.remat` is `none`.

    Returns:
      The hidden state [B, R, D] of each prompt's last token, and outputs [B, S, ...].
    """
    rows, trajectories = batch.prompt_tokens.shape[:2]
    flat_prompts = jax.tree.map(lambda x: x.reshape(rows * trajectories, *x.shape[2:]), prompts)
    prefilled, prompt_end = model.apply({"params": params}, flat_prompts, method="prefill")

    def pick_prompt(x: jax.Array, index: jax.Array, axis: int) -> jax.Array:
        """Picks one prompt of each row, `index` [B]; `axis` of x counts the B * R prompts."""
        x = x.reshape(*x.shape[:axis], rows, trajectories, *x.shape[axis + 1 :])
        at = index.reshape((1,) * axis + (rows, 1) + (1,) * (x.ndim - axis - 2))
        return jnp.take_along_axis(x, at, axis=axis + 1).squeeze(axis + 1)

    def body(context, xs):
        is_first, index, turn, refines = xs
        k, v = (pick_prompt(x, index, 1) for x in (prefilled.prompt.k, prefilled.prompt.v))
        mask, position = (pick_prompt(x, index, 0) for x in (prefilled.prompt.mask, prefilled.position))
        context = context.with_prompts(is_first, KVCache(k, v, mask), position)
        return model.apply({"params": params}, context, turn, refines, method="step")

    context = Context.empty(model.config, model.layout, rows)
    xs = (batch.is_first, batch.prompt_index, turns, batch.refines)
    xs = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), xs)
    body = body if model.config.remat == "none" else jax.checkpoint(body, prevent_cse=False)
    _, outputs = jax.lax.scan(body, context, xs)
    outputs = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), outputs)
    return prompt_end.reshape(rows, trajectories, -1), outputs


def run_turns(
    model: UnifiedModel, params: Any, batch: Batch, prompts: ChunkInputs, turns: ChunkInputs, order: str
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Runs prompts and turns in the given order of the loops; returns what `scan_turns` does."""
    if order == "scan":
        return scan_turns(model, params, batch, prompts, turns)
    args = (prompts, turns, batch.prompt_index, batch.is_first, batch.refines)
    return model.apply({"params": params}, *args, method="forward_rows")


def unroll(
    model: UnifiedModel,
    params: Any,
    batch: Batch,
    key: jax.Array,
    options: UnrollOptions = NO_RANDOM_DROPS,
    frozen: Any = None,
    reference: Any = None,
) -> Outputs:
    """Runs packed rows through the model, teacher-forced; returns what the losses read.

    `key` draws timesteps, noise and conditioning dropout as `options` say; `options.order` is that of the
    loops. `frozen` are the weights of the autoencoder, if it has any. `reference` are parameters that get no
    gradient; their outputs on the same inputs are in the result, as its network `reference`.
    """
    inputs = make_inputs(model, batch, key, options, frozen)

    def run(params: Any, networks: Mapping[str, Any]) -> Outputs:
        prompt_end, outputs = run_turns(model, params, batch, inputs.prompts, inputs.turns, options.order)
        return make_outputs(model, params, prompt_end, outputs, inputs.flows, frozen, networks)

    if reference is None:
        return run(params, {})
    return run(params, {REFERENCE: run(jax.lax.stop_gradient(reference), {})})


def make_outputs(
    model: UnifiedModel,
    params: Any,
    prompt_end: jax.Array,
    outputs: Mapping[str, jax.Array],
    flows: Mapping[str, Any],
    frozen: Any = None,
    networks: Mapping[str, Any] | None = None,
) -> Outputs:
    """Assembles `Outputs` from the results of `run_turns` and from `Inputs.flows`."""
    hidden = {name: x for name, x in outputs.items() if name != "velocity"}
    return Outputs(
        hidden={"prompt_end": prompt_end} | hidden,
        velocity=outputs["velocity"],
        logits=lambda hidden: model.apply({"params": params}, hidden, method="logits"),
        nll=lambda hidden, labels: model.apply({"params": params}, hidden, labels, method="cross_entropy"),
        ids=model.ids,
        in_chunks=model.config.logits_in_chunks,
        decode=functools.partial(autoencoder.to_pixels, model.config, model.layout, params=frozen),
        networks=networks or {},
        **flows,
    )


def blank_outputs(
    model: UnifiedModel, batch: Batch, key: jax.Array, options: UnrollOptions, frozen: Any = None
) -> Outputs:
    """A cheap `unroll`, enough to count targets: hidden states and velocities are 0, logits uniform."""
    flows = make_inputs(model, batch, key, options, frozen).flows
    turns, layout = batch.present.shape, model.layout
    shapes = {"prompt_end": batch.prompt_tokens.shape[:2], "image_end": turns}
    shapes |= {name: (*turns, getattr(layout, name)) for name in ("before", "after")}
    shapes["noised_end"] = (*turns, layout.copies)
    outputs = {name: jnp.zeros((*shape, model.config.width)) for name, shape in shapes.items()}
    outputs["velocity"] = jnp.zeros_like(flows["target"])
    blank = dataclasses.replace(
        make_outputs(model, None, outputs.pop("prompt_end"), outputs, flows, frozen),
        logits=lambda hidden: jnp.zeros((*hidden.shape[:-1], model.config.vocab_size)),
        nll=lambda _, labels: jnp.full(labels.shape, jnp.log(float(model.config.vocab_size))),
        in_chunks=False,
    )
    return dataclasses.replace(blank, networks={REFERENCE: blank})
