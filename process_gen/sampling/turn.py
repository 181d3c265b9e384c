"""The pieces of a turn, for all rows at once: what is compiled.

    prefill, enter                                  a prompt takes the place of an ended trajectory
    decode_text before, sample_image, append_image  a text and an image, in the rows that ask for them
    decide, decode_text after, decide               what follows
    commit                                          the turn becomes history

Each function is jitted once, with the model and a spec as static arguments, and
made of the model's own pieces. The autoencoder has programs of its own, `decode_image`
and `encode_image`: its convolutions take a TPU's compiler longer than the whole backbone,
and so they are compiled once for all images.

B rows, M keys, C = len(Opens) choices, N latent tokens, V values of a latent token, D width,
P ViT tokens of an image, U values of one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.models import autoencoder, vit
from process_gen.models.cache import Context, KVCache, part_slices
from process_gen.models.content import at_token, prompt_inputs, token_count
from process_gen.models.partition import constrain
from process_gen.models.unified import UnifiedModel
from process_gen.sampling import extend, flow
from process_gen.sampling.decisions import Opens, choice_ids
from process_gen.sampling.state import Extended, SamplingState, branch, stacked
from process_gen.sampling.text import TextSpec, decode, sample_token
from process_gen.trajectory.batch import PAD_ID

RNG_STREAMS = ("after_prompt", "before", "image", "after_image", "after", "after_text", "answer")
"""What is random in a turn; each stream folds its place here into the turn's key."""


def scanned(model: UnifiedModel) -> UnifiedModel:
    """The model as it is sampled: one layer at a time, also where training unrolls them.

    On a CPU unrolled layers take longer to compile and draw no faster.
    """
    return model.clone(config=dataclasses.replace(model.config, scan_unroll=1))


def _keys(keys: jax.Array, stream: str, *more: jax.Array) -> jax.Array:
    """The random keys [B] of one stream of a turn, folded with the numbers `more` [] besides."""
    for number in (RNG_STREAMS.index(stream), *more):
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
    return keys


@jax.jit
def turn_keys(seeds: jax.Array, hashes: jax.Array, turns: jax.Array) -> jax.Array:
    """[B] random keys of turns: seeds and hashes of prompts [B] uint32, numbers of the turns [B] int32."""

    def key(seed, prompt, turn):
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), prompt), turn)

    return jax.vmap(key)(seeds, hashes, turns)


@functools.partial(jax.jit, static_argnames="model")
def encode_image(
    model: UnifiedModel, images: jax.Array, frozen: Any = None
) -> tuple[jax.Array, jax.Array | None]:
    """What the model takes of images [B, H, W, 3] uint8: latents [B, N, V], for a ViT patches [B, P, U]."""
    latents = autoencoder.to_tokens(model.config, images, frozen)
    return latents, vit.views(model.config, model.layout, images, latents)


@functools.partial(jax.jit, static_argnames="model")
def decode_image(model: UnifiedModel, latents: jax.Array, frozen: Any = None) -> jax.Array:
    """Latents [B, N, V] as images [B, H, W, 3] uint8."""
    return autoencoder.to_images(model.config, model.layout, latents, frozen)


# -------------------------------------------------------------------- prompts


@functools.partial(jax.jit, static_argnames="model")
def prefill(
    model: UnifiedModel, params: Any, prompts: Mapping[str, Any]
) -> tuple[KVCache, jax.Array, jax.Array]:
    """Reads prompts: their keys, the next rotary position [B], the hidden state [B, D] of the last token.

    `prompts` are the arguments of `prompt_inputs`, all padding in rows that stay idle.
    """
    context, end = model.apply({"params": params}, prompt_inputs(**prompts), method="prefill")
    return context.prompt, context.position, end


@functools.partial(jax.jit, static_argnames="model")
def blank(model: UnifiedModel, prompt: KVCache, position: jax.Array) -> tuple[Context, KVCache]:
    """The context of fresh prompts, and a turn that has not begun."""
    rows = position.shape[0]
    context = Context.empty(model.config, model.layout, rows)
    context = context.started(jnp.ones(rows, bool), prompt, position)
    turn = KVCache.empty(model.config, rows, model.layout.visible_tokens)
    return context.replace(history=_split(context.history)), _split(turn)


def _split(cache: KVCache) -> KVCache:
    """Keys and values over the devices that rows and heads are split over."""
    k, v = (constrain("a context", x, None, "rows", "kv_heads", None, None) for x in (cache.k, cache.v))
    return cache.replace(k=k, v=v)


@functools.partial(jax.jit, donate_argnames="context")
def enter(context: Context, fresh: jax.Array, prompt: KVCache, position: jax.Array) -> Context:
    """The context, which is given up, with new prompts in the rows `fresh` [B]."""
    return context.started(fresh, prompt, position)


# ----------------------------------------------------------------- text, image


@functools.partial(jax.jit, static_argnames=("model", "spec", "part"))
def decode_text(
    model: UnifiedModel, spec: TextSpec, part: str, params: Any, state: SamplingState, given: jax.Array
) -> Extended:
    """The text `before` or `after` an image.

    `given` [B, T] int32 holds texts that are not for the model to write; padding elsewhere.
    """
    place = part_slices(model.layout.visible_parts)[part]
    opening = [jnp.full_like(state.position, model.ids.im_start)]
    if part == "before":
        opening.append(jnp.where(state.refines, model.ids.refine, model.ids.ins).astype(jnp.int32))
    is_given = given[:, 0] != PAD_ID
    prefix = jnp.stack(opening, axis=1)
    prefix = jnp.where(is_given[:, None], given[:, : prefix.shape[1]], prefix)
    prefix = jnp.where(state.rows[:, None], prefix, PAD_ID)
    pick = _picker(model, spec, part, params, state.keys)

    def written_or_given(hidden, at):
        told = jax.lax.dynamic_slice_in_dim(given, at, 1, 1)[:, 0]
        return jnp.where(is_given, told, pick(hidden, at))

    history, context = state.history(model.layout), [state.context.prompt]
    so_far = state.turn.cut(slice(place.stop))
    around = (history, context, so_far, place, state.position)
    tokens, hidden, cache = decode(model, params, *around, prefix, written_or_given)
    count = token_count(tokens)
    end = at_token(hidden, count - 1)
    texts = None if state.texts is None else append_text(model, part, params, state.texts, tokens)
    return Extended(state.turn.write(cache, 0), state.position + count, end, tokens, texts)


def _picker(model: UnifiedModel, spec: TextSpec, stream: str, params: Any, keys: jax.Array):
    """Picks the next token among those that the spec allows."""
    allowed = np.arange(model.config.vocab_size) < spec.vocabulary
    allowed[list(spec.banned)] = False
    allowed[model.ids.im_end] = True

    def pick(hidden, at):
        logits = model.apply({"params": params}, hidden, method="logits")
        return sample_token(logits, jnp.asarray(allowed)[None], spec.temperature, _keys(keys, stream, at))

    return pick


def append_text(
    model: UnifiedModel, part: str, params: Any, state: SamplingState, tokens: jax.Array
) -> Extended:
    """A given text [B, T] `before` or `after` an image, all of it at once."""
    place = part_slices(model.layout.visible_parts)[part]
    pieces = [state.context.prompt, state.turn.cut(slice(place.start))]
    given = (state.history(model.layout), pieces, tokens, state.position)
    hidden, new = model.apply({"params": params}, *given, method=extend.text)
    count = token_count(tokens)
    turn = state.turn.write(new, place.start)
    return Extended(turn, state.position + count, at_token(hidden, count - 1), tokens)


@functools.partial(jax.jit, static_argnames=("model", "spec"))
def answer(
    model: UnifiedModel, spec: TextSpec, params: Any, prompt: KVCache, position: jax.Array, rows, keys
) -> jax.Array:
    """What the model says to prompts in words, [B, T] int32, in the `rows` [B]."""
    cache = KVCache.empty(model.config, rows.shape[0], spec.size)
    prefix = jnp.where(rows[:, None], model.ids.im_start, PAD_ID).astype(jnp.int32)
    nothing, place = KVCache.empty(model.config, rows.shape[0], 0), slice(0, spec.size)
    pick = _picker(model, spec, "answer", params, keys)
    return decode(model, params, nothing, [prompt], cache, place, position, prefix, pick)[0]


@functools.partial(jax.jit, static_argnames=("model", "spec"))
def sample_image(model: UnifiedModel, spec: flow.FlowSpec, params: Any, state: SamplingState) -> jax.Array:
    """The latents [B, N, V] of the turn's image out of noise.

    What later tokens see of it is read from its pixels, so that a trajectory
    can be taken up again from the pictures it left on disk.
    """
    velocity = velocity_of(model, params, state, {("full",), spec.branches})
    shape = (model.layout.latents, model.layout.latent_values)
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(_keys(state.keys, "image"))
    return flow.integrate(spec, velocity, noise)


def velocity_of(
    model: UnifiedModel, params: Any, state: SamplingState, sets: Collection[tuple[str, ...]]
) -> flow.Velocity:
    """The velocity of an image after what a turn has so far, for some `sets` of branches of guidance."""
    branches = {name: branch(model.layout, state, name) for names in sets for name in names}
    caches = {
        names: [stacked(parts) for parts in zip(*(branches[name][0] for name in names), strict=True)]
        for names in sets
    }

    def velocity(names, x, t):
        count, (history, *context) = len(names), caches[names]
        position, t = jnp.concatenate([branches[name][1] for name in names]), jnp.broadcast_to(t, x.shape[0])
        given = (history, context, jnp.concatenate([x] * count), jnp.concatenate([t] * count), position)
        v = model.apply({"params": params}, *given, method=extend.velocity)
        return dict(zip(names, jnp.split(v, count), strict=True))

    return velocity


@functools.partial(jax.jit, static_argnames="model")
def append_image(
    model: UnifiedModel, params: Any, latents: jax.Array, patches: jax.Array | None, state: SamplingState
) -> Extended:
    """Reads the turn's image, given as `encode_image` gives it."""
    place = part_slices(model.layout.visible_parts)["image"]
    pieces = [state.context.prompt, state.turn.cut(slice(place.start))]
    given = (state.history(model.layout), pieces, latents, patches, state.position)
    end, new = model.apply({"params": params}, *given, method=extend.image)
    turn = state.turn.write(new.only(state.rows[:, None]), place.start)
    return Extended(turn, state.position + model.layout.state_ids * state.rows.astype(jnp.int32), end)


# ----------------------------------------------------------- decisions, the end


@functools.partial(jax.jit, static_argnames=("model", "temperature", "threshold", "stream"))
def decide(
    model: UnifiedModel,
    temperature: float,
    threshold: float | None,
    stream: str,
    params: Any,
    hidden: jax.Array,
    allowed: jax.Array,
    keys: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """What a closing token with hidden state [B, D] opens, and how likely each choice was.

    Args:
      temperature: 0 is greedy.
      threshold: `<refine>` is opened where its probability among what is allowed
        is at least this, and nowhere else; None decides it as all else.
      stream: one of `RNG_STREAMS`.
      allowed: [B, C] bool, in the order of `Opens`.
      keys: [B] random keys of the turn.

    Returns:
      [B] int32, one of `Opens`.
      [B, C] float32, probabilities at temperature 1 among what is allowed; NaN where nothing is.
    """
    logits = model.apply({"params": params}, hidden, method="logits")[:, jnp.asarray(choice_ids(model.ids))]
    keys, refine = _keys(keys, stream), int(Opens.REFINE)
    shares = jax.nn.softmax(jnp.where(allowed, logits, -jnp.inf), axis=-1)
    if threshold is None:
        return sample_token(logits, allowed, temperature, keys), shares
    refines = allowed[:, refine] & (shares[:, refine] >= threshold)
    others = allowed & (jnp.arange(len(Opens)) != refine)[None]
    found = jnp.where(refines, refine, sample_token(logits, others, temperature, keys)).astype(jnp.int32)
    return found, shares


@functools.partial(jax.jit, static_argnames="model", donate_argnames="context")
def commit(
    model: UnifiedModel,
    context: Context,
    turn: KVCache,
    rows: jax.Array,
    refines: jax.Array,
) -> tuple[Context, jax.Array]:
    """The context, which is given up, after a turn, and the mask of a turn that has not begun.

    `context` has the position that the turn has come to, `rows` [B] are those that had a turn; `turn` and
    `refines` are as of `SamplingState`.
    """
    context = context.pushed(model.layout, turn, rows, refines, context.position)
    return context, jnp.zeros_like(turn.mask)
