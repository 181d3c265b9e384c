"""One stage of one step for all rows: what is compiled.

Each function is jitted once, with the model and a spec as static arguments, and
made of the model's own pieces. While a step is under way its parts live in
`Work.parts`, next to the context; `commit` moves them there.

B rows, M slots of memory, N latent tokens, V values of a latent token, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from process_gen.models import autoencoder
from process_gen.models import context as context_lib
from process_gen.models.context import Context, Memory, joined
from process_gen.models.unified import UnifiedModel, at_token, token_count
from process_gen.sampling import flow
from process_gen.sampling.text import TextSpec, choose, decode
from process_gen.trajectory.layout import Layout

DRAWS = ("plan", "sketch", "inspect", "after_inspect", "refine", "refined", "after_refined")
"""What draws random numbers in a step; each folds its place here into the step's key."""


@flax.struct.dataclass
class Work:
    """A step under way.

    Attributes:
      context: what came before the step.
      parts: the step's texts and visual states so far, by name (`Layout.visible_parts`).
      next_id: [B] int32, the next rotary id.
      rows: [B] bool, which rows take part in the next stage.
      keys: [B] random keys of this step.
    """

    context: Context
    parts: dict[str, Memory]
    next_id: Any
    rows: Any
    keys: Any


@flax.struct.dataclass
class Written:
    """A text: tokens [B, T], hidden state [B, D] of the closing one, its slots, the next rotary id."""

    tokens: Any
    end: Any
    memory: Memory
    next_id: Any


@flax.struct.dataclass
class Drawn:
    """An image: [B, H, W, 3] uint8, hidden state [B, D] of its closing token, its slots, the next id."""

    images: Any
    end: Any
    memory: Memory
    next_id: Any


def pieces(layout: Layout, context: Context, parts: dict[str, Memory]) -> dict[str, Memory]:
    """Everything that the next stage sees, by name, in the order in which it stands in memory."""
    step = {name: parts[name] for name in layout.visible_parts if name in parts}
    return {"prompt": context.prompt, "history": context.history, **step}


def visible_without(layout: Layout, target: str, seen: dict[str, Memory], branch: str) -> jax.Array:
    """[B, M] bool: what the flow of `target` (`sketch` or `refined`) sees in a branch of guidance.

    `full` is everything; `notext` everything but the newest text; `noimg` the
    texts only. The same as training's conditioning dropout (`UnifiedModel.step`):
    the newest text is the refine instruction for a corrected image, else the
    plan, else the prompt.
    """
    visible = {name: memory.visible for name, memory in seen.items()}
    if branch == "notext" and target == "refined":
        visible["refine"] = jnp.zeros_like(visible["refine"])
    elif branch == "notext":
        rows, plan = visible["prompt"].shape[0], visible.get("plan")
        has_plan = jnp.zeros(rows, bool) if plan is None else plan.any(1)
        visible["prompt"] = visible["prompt"] & has_plan[:, None]
        if plan is not None:
            visible["plan"] = jnp.zeros_like(plan)
    elif branch == "noimg":
        images = jnp.asarray(context_lib.image_slots(layout)[layout.prompt :])
        visible["history"] = visible["history"] & ~images[None]
        if "sketch" in visible:
            visible["sketch"] = jnp.zeros_like(visible["sketch"])
    return jnp.concatenate(list(visible.values()), axis=1)


def branch_memory(layout: Layout, target: str, seen: dict[str, Memory], branches: Sequence[str]) -> Memory:
    """The memory [G * B] of some branches of guidance as one batch."""
    memory = joined(list(seen.values()))
    repeats = len(branches)
    return Memory(
        jnp.concatenate([memory.k] * repeats, axis=1),
        jnp.concatenate([memory.v] * repeats, axis=1),
        jnp.concatenate([visible_without(layout, target, seen, branch) for branch in branches], axis=0),
    )


def _keys(work: Work, draw: str, *more: jax.Array) -> jax.Array:
    """The random keys [B] of one draw, folded with the numbers `more` [] besides."""
    keys = work.keys
    for number in (DRAWS.index(draw), *more):
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
    return keys


@jax.jit
def row_keys(seeds: jax.Array, hashes: jax.Array) -> jax.Array:
    """[B] random keys of trajectories, from seeds and hashes of prompts, [B] uint32 each."""
    return jax.vmap(lambda seed, prompt: jax.random.fold_in(jax.random.key(seed), prompt))(seeds, hashes)


@jax.jit
def step_keys(keys: jax.Array, steps: jax.Array) -> jax.Array:
    """[B] random keys of each row's step, numbered [B] int32 from the start of its trajectory."""
    return jax.vmap(jax.random.fold_in)(keys, steps)


@functools.partial(jax.jit, static_argnames="model")
def begin(model: UnifiedModel, params: Any, prompts: jax.Array) -> tuple[Memory, jax.Array]:
    """Reads prompts [B, T], all pad in rows that stay idle: their slots and the next rotary id."""
    context, _ = model.apply({"params": params}, prompts, method="begin")
    return context.prompt, context.next_id


@functools.partial(jax.jit, static_argnames="model")
def blank(model: UnifiedModel, params: Any, prompt: Memory, next_id: jax.Array) -> Context:
    """The context of fresh prompts."""
    context = model.apply({"params": params}, next_id.shape[0], method="empty_context")
    return context.replace(prompt=prompt, next_id=next_id)


@jax.jit
def enter(context: Context, prompt: Memory, next_id: jax.Array, fresh: jax.Array) -> Context:
    """The context with new prompts in the rows `fresh` [B], whose history is forgotten."""
    return context.replace(
        prompt=context_lib.where(fresh, prompt, context.prompt),
        history=context.history.only(~fresh),
        next_id=jnp.where(fresh, next_id, context.next_id),
    )


@functools.partial(jax.jit, static_argnames=("model", "spec", "stage"))
def write(model: UnifiedModel, spec: TextSpec, stage: str, params: Any, work: Work) -> Written:
    """The text of a stage, `plan`, `inspect` or `refine`."""
    allowed = spec.allowed(model.config.vocab_size)
    allowed[model.ids.im_end] = True

    def pick(hidden, at):
        logits = model.apply({"params": params}, hidden, method="logits")
        return choose(logits, allowed, spec.temperature, _keys(work, stage, at))

    memory = joined(list(pieces(model.layout, work.context, work.parts).values()))
    text = decode(model, params, memory, work.next_id, work.rows, spec, pick)
    count = token_count(text.tokens)
    return Written(text.tokens, at_token(text.hidden, count - 1), text.memory, work.next_id + count)


@functools.partial(jax.jit, static_argnames=("model", "spec", "target"))
def draw(model: UnifiedModel, spec: flow.FlowSpec, target: str, params: Any, work: Work) -> Drawn:
    """An image, `sketch` or `refined`, out of noise.

    What later tokens see of it is read from its pixels, so that a trajectory
    can be taken up again from the pictures it left on disk.
    """
    layout = model.layout
    seen = pieces(layout, work.context, work.parts)
    velocity = velocity_of(model, params, target, seen, work.next_id, {("full",), spec.branches})
    shape = (layout.latents, layout.latent_values)
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(_keys(work, target))
    images = autoencoder.to_images(model.config, layout, flow.integrate(spec, velocity, noise))
    end, memory, next_id = look(model, params, seen, autoencoder.to_tokens(model.config, images), work)
    return Drawn(images, end, memory, next_id)


def velocity_of(
    model: UnifiedModel,
    params: Any,
    target: str,
    seen: dict[str, Memory],
    next_id: jax.Array,
    sets: Collection[tuple[str, ...]],
) -> flow.Velocity:
    """The velocity of an image after what is `seen`, for each of some `sets` of branches of guidance."""
    memories = {branches: branch_memory(model.layout, target, seen, branches) for branches in sets}

    def velocity(branches, x, t):
        count = len(branches)
        x_t, ids = jnp.concatenate([x] * count), jnp.concatenate([next_id] * count)
        t = jnp.broadcast_to(t, x.shape[0])
        v = model.apply(
            {"params": params}, memories[branches], x_t, jnp.concatenate([t] * count), ids, method="velocity"
        )
        return dict(zip(branches, jnp.split(v, count), strict=True))

    return velocity


def look(
    model: UnifiedModel, params: Any, seen: dict[str, Memory], latents: jax.Array, work: Work
) -> tuple[jax.Array, Memory, jax.Array]:
    """A clean image [B, N, V]: hidden state [B, D] of its closing token, its slots, the next rotary id."""
    memory = joined(list(seen.values()))
    end, new = model.apply({"params": params}, memory, latents, work.next_id, method="read_image")
    return end, new.only(work.rows), work.next_id + model.layout.state_ids * work.rows.astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("model", "choices", "temperature", "draw"))
def decide(
    model: UnifiedModel,
    choices: tuple[int, ...],
    temperature: float,
    draw: str,
    params: Any,
    hidden: jax.Array,
    work: Work,
) -> jax.Array:
    """What a closing token with hidden state [B, D] opens: one of the ids `choices`, [B] int32."""
    allowed = np.isin(np.arange(model.config.vocab_size), choices)
    logits = model.apply({"params": params}, hidden, method="logits")
    return choose(logits, allowed, temperature, _keys(work, draw))


@functools.partial(jax.jit, static_argnames="model")
def commit(model: UnifiedModel, params: Any, work: Work, present: jax.Array) -> Context:
    """The context after the step, in the rows `present` [B]; stages that did not happen leave nothing.

    With the `full` context policy the slots of the oldest step are written
    again once all are used: a row has forgotten it by then, because its own
    trajectory is no longer than the layout's steps.
    """
    layout, rows = model.layout, present.shape[0]
    new = {
        name: Memory.empty(model.config, rows, sum(s.tokens for s in segments))
        for name, segments in layout.visible_parts.items()
    } | work.parts
    context = work.context.replace(slot=work.context.slot % layout.steps)
    return model.apply({"params": params}, context, new, present, work.next_id, method="advance")
