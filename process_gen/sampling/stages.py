"""One stage of one step for all rows: what is compiled.

Each function is jitted once, with the model and a spec as static arguments, and
made of the model's own pieces. While a step is under way its parts live in
`Work.parts`, next to the context; `commit` moves them there. The autoencoder has
programs of its own, `show` and `see`: its convolutions take a TPU's compiler
longer than the whole backbone, and so they are compiled once for all images.

B rows, M slots of memory, N latent tokens, V values of a latent token, D width,
P tokens of a view, U values of one.
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
from process_gen.models.step_io import PromptInputs
from process_gen.models.unified import UnifiedModel, at_token, token_count
from process_gen.models.unroll import views_of
from process_gen.sampling import flow
from process_gen.sampling.text import TextSpec, choose, decode
from process_gen.trajectory.layout import Layout

DRAWS = ("plan", "sketch", "inspect", "after_inspect", "refine", "refined", "after_refined", "answer")
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
      texts: the same step as a reader of the texts alone knows it, where guidance
        by images asks for one (`SamplerConfig.contexts` is `own`).
    """

    context: Context
    parts: dict[str, Memory]
    next_id: Any
    rows: Any
    keys: Any
    texts: Work | None = None

    def adding(self, name: str, new: Written | Seen) -> Work:
        """The work with a text or a visual state more."""
        texts = self.texts
        if texts is not None and isinstance(new, Written):
            texts = texts.adding(name, new.texts)
        return self.replace(parts={**self.parts, name: new.memory}, next_id=new.next_id, texts=texts)


@flax.struct.dataclass
class Written:
    """A text.

    Attributes:
      tokens: [B, T] int32.
      end: [B, D], hidden state of the closing token.
      memory: its slots.
      next_id: [B] int32, the rotary id that follows.
      texts: the same for the reader of the texts alone, if there is one.
    """

    tokens: Any
    end: Any
    memory: Memory
    next_id: Any
    texts: Written | None = None


@flax.struct.dataclass
class Seen:
    """An image that was read: hidden state [B, D] of its closing token, its slots, the next rotary id [B]."""

    end: Any
    memory: Memory
    next_id: Any


def pieces(layout: Layout, context: Context, parts: dict[str, Memory]) -> dict[str, Memory]:
    """Everything that the next stage sees, by name, in the order in which it stands in memory."""
    step = {name: parts[name] for name in layout.visible_parts if name in parts}
    return {"prompt": context.prompt, "history": context.history, **step}


def newest_text(layout: Layout, target: str, seen: dict[str, Memory]) -> dict[str, jax.Array]:
    """[B, M] bool by piece: the newest text that the flow of `target` (`sketch` or `refined`) sees.

    The refine instruction for a corrected image, else the plan, else the last
    text of the prompt: as in training's conditioning dropout (`UnifiedModel.step`).
    """
    if target == "refined":
        return {"refine": seen["refine"].visible}
    prompt = seen["prompt"].visible
    prompt = prompt & context_lib.newest_prompt_text(layout, prompt)
    if "plan" not in seen:
        return {"prompt": prompt}
    plan = seen["plan"].visible
    return {"prompt": prompt & ~plan.any(1)[:, None], "plan": plan}


def visible_without(layout: Layout, target: str, seen: dict[str, Memory], branch: str) -> jax.Array:
    """[B, M] bool: what the flow of `target` (`sketch` or `refined`) sees in a branch of guidance.

    `full` is everything; `notext` everything but the newest text; `noimg` the texts only.
    """
    visible = {name: memory.visible for name, memory in seen.items()}
    if branch == "notext":
        for name, text in newest_text(layout, target, seen).items():
            visible[name] = visible[name] & ~text
    elif branch == "noimg":
        images = jnp.asarray(context_lib.image_slots(layout))
        visible["prompt"] = visible["prompt"] & ~images[None, : layout.prompt_slots]
        visible["history"] = visible["history"] & ~images[None, layout.prompt_slots :]
        if "sketch" in visible:
            visible["sketch"] = jnp.zeros_like(visible["sketch"])
    return jnp.concatenate(list(visible.values()), axis=1)


def branch_memory(
    layout: Layout, target: str, work: Work, branch: str, own: bool
) -> tuple[Memory, jax.Array]:
    """What a branch of guidance reads: a memory, and the rotary id [B] of the image after it.

    With contexts of their `own`, `noimg` is what the reader of the texts knows, and
    without the newest text the image has the id with which that text began.
    """
    seen = pieces(layout, work.context, work.parts)
    if own and branch == "noimg":
        texts = pieces(layout, work.texts.context, work.texts.parts)
        blank = {name: memory.only(jnp.zeros_like(work.rows)) for name, memory in seen.items()}
        return joined(list((blank | texts).values())), work.texts.next_id
    memory = joined(list(seen.values())).replace(visible=visible_without(layout, target, seen, branch))
    if not own or branch == "full":
        return memory, work.next_id
    newest = newest_text(layout, target, seen)
    if "prompt" in newest and layout.prompt_image:
        where = context_lib.prompt_slots(layout)["prompt_image"]
        ends = ~seen["prompt"].visible[:, where].any(1)[:, None]  # the prompt's own text is not the end
        if "instruction" in context_lib.prompt_slots(layout):
            where = context_lib.prompt_slots(layout)["instruction"]
            ends |= seen["prompt"].visible[:, where].any(1)[:, None]
        newest["prompt"] = newest["prompt"] & ends
    shift = sum(text.sum(1, dtype=jnp.int32) for text in newest.values())
    return memory, work.next_id - shift


def together(memories: Sequence[Memory]) -> Memory:
    """Memories of the same slots as one batch."""
    return Memory(
        jnp.concatenate([m.k for m in memories], axis=1),
        jnp.concatenate([m.v for m in memories], axis=1),
        jnp.concatenate([m.visible for m in memories], axis=0),
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
def see(model: UnifiedModel, images: jax.Array, frozen: Any = None) -> tuple[jax.Array, jax.Array | None]:
    """What the model takes of images [B, H, W, 3] uint8: latents [B, N, V], and views [B, P, U] for a ViT."""
    latents = autoencoder.to_tokens(model.config, images, frozen)
    return latents, views_of(model, images, latents)


@functools.partial(jax.jit, static_argnames="model")
def show(model: UnifiedModel, latents: jax.Array, frozen: Any = None) -> jax.Array:
    """Latents [B, N, V] as images [B, H, W, 3] uint8."""
    return autoencoder.to_images(model.config, model.layout, latents, frozen)


@flax.struct.dataclass
class Prompts:
    """The prompts of all rows; all padding in rows that stay idle.

    Attributes:
      tokens: [B, T] int32.
      latents, view: of input images, see `see`; None where the layout has no room.
      has_image: [B] bool.
      instruction: [B, T] int32, texts after the images; None where the layout has no room.
    """

    tokens: Any
    latents: Any = None
    view: Any = None
    has_image: Any = None
    instruction: Any = None


@functools.partial(jax.jit, static_argnames="model")
def begin(model: UnifiedModel, params: Any, prompts: Prompts) -> tuple[Memory, jax.Array, jax.Array]:
    """Reads prompts: their slots, the next rotary id, and the hidden state [B, D] of the last token."""
    there = {}
    if prompts.has_image is not None:
        there = {s.name: prompts.has_image for s in model.layout.prompt_parts["prompt_image"]}
    inputs = PromptInputs(prompts.tokens, prompts.latents, prompts.view, prompts.instruction, there)
    context, end = model.apply({"params": params}, inputs, method="begin")
    return context.prompt, context.next_id, end


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
    end = at_token(text.hidden, count - 1)
    texts = None if work.texts is None else read(model, params, text.tokens, work.texts)
    return Written(text.tokens, end, text.memory, work.next_id + count, texts)


def read(model: UnifiedModel, params: Any, tokens: jax.Array, work: Work) -> Written:
    """A given text [B, T] after what a step has so far."""
    memory = joined(list(pieces(model.layout, work.context, work.parts).values()))
    hidden, new = model.apply({"params": params}, memory, tokens, work.next_id, method="read_text")
    count = token_count(tokens)
    return Written(tokens, at_token(hidden, count - 1), new, work.next_id + count)


@functools.partial(jax.jit, static_argnames=("model", "spec", "target"))
def draw(model: UnifiedModel, spec: flow.FlowSpec, target: str, params: Any, work: Work) -> jax.Array:
    """The latents [B, N, V] of an image, `sketch` or `refined`, out of noise.

    What later tokens see of it is read from its pixels, so that a trajectory
    can be taken up again from the pictures it left on disk.
    """
    velocity = velocity_of(model, params, target, work, {("full",), spec.branches}, spec.own)
    shape = (model.layout.latents, model.layout.latent_values)
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(_keys(work, target))
    return flow.integrate(spec, velocity, noise)


def velocity_of(
    model: UnifiedModel,
    params: Any,
    target: str,
    work: Work,
    sets: Collection[tuple[str, ...]],
    own: bool = False,
) -> flow.Velocity:
    """The velocity of an image after what a step has so far, for some `sets` of branches of guidance."""
    names = {name for some in sets for name in some}
    branches = {name: branch_memory(model.layout, target, work, name, own) for name in names}
    memories = {names: together([branches[name][0] for name in names]) for names in sets}

    def velocity(names, x, t):
        count = len(names)
        ids, t = jnp.concatenate([branches[name][1] for name in names]), jnp.broadcast_to(t, x.shape[0])
        x_t, t = jnp.concatenate([x] * count), jnp.concatenate([t] * count)
        v = model.apply({"params": params}, memories[names], x_t, t, ids, method="velocity")
        return dict(zip(names, jnp.split(v, count), strict=True))

    return velocity


@functools.partial(jax.jit, static_argnames="model")
def look(model: UnifiedModel, params: Any, latents: jax.Array, view: jax.Array | None, work: Work) -> Seen:
    """Reads a clean image, given as what `see` makes of it, after what a step has so far."""
    memory = joined(list(pieces(model.layout, work.context, work.parts).values()))
    end, new = model.apply({"params": params}, memory, latents, work.next_id, view, method="read_image")
    next_id = work.next_id + model.layout.state_ids * work.rows.astype(jnp.int32)
    return Seen(end, new.only(work.rows), next_id)


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
def commit(
    model: UnifiedModel, params: Any, work: Work, present: jax.Array
) -> tuple[Context, Context | None]:
    """The context after the step, in the rows `present` [B]; stages that did not happen leave nothing.

    With the `full` context policy the slots of the oldest step are written
    again once all are used: a row has forgotten it by then, because its own
    trajectory is no longer than the layout's steps.

    Returns:
      The context, and that of the reader of the texts if there is one.
    """
    layout, rows = model.layout, present.shape[0]
    new = {
        name: Memory.empty(model.config, rows, sum(s.tokens for s in segments))
        for name, segments in layout.visible_parts.items()
    } | work.parts
    context = work.context.replace(slot=work.context.slot % layout.steps)
    context = model.apply({"params": params}, context, new, present, work.next_id, method="advance")
    texts = None if work.texts is None else commit(model, params, work.texts, present)[0]
    return context, texts
