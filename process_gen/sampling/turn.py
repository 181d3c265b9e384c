"""The compiled functions of the sampler: each runs one part of a turn for all rows of the batch.

    prefill, enter                                  new prompts replace ended trajectories
    decode_text before, sample_image, append_image  a text and an image, in the rows that have them
    decide, decode_text after, decide               an inspection or none, and what comes next
    commit                                          the turn is appended to the history

Each of these is jitted, with the model and its settings as static arguments. The
autoencoder has programs of its own, `decode_image` and `encode_image`: a TPU's compiler
needs longer for its convolutions than for the whole backbone, so they are compiled once
for all images.

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
from process_gen.models.cache import ROWS, Context, KVCache, joined, part_slices
from process_gen.models.content import at_token, prompt_inputs, token_count
from process_gen.models.partition import constrain
from process_gen.models.unified import UnifiedModel
from process_gen.sampling import extend, flow
from process_gen.sampling.decisions import Opens, choice_ids
from process_gen.sampling.state import Extended, SamplingState, branch
from process_gen.sampling.text import Pick, TextSpec, decode, sample_token
from process_gen.trajectory.batch import PAD_ID

RNG_STREAMS = ("after_prompt", "before", "image", "after_image", "after", "after_text", "answer")
"""The random choices of a turn. A stream's index is folded into the turn's key: keep the order."""


def for_sampling(model: UnifiedModel) -> UnifiedModel:
    """The model with `scan_unroll=1`: on a CPU unrolled layers compile longer and sample no faster."""
    return model.clone(config=dataclasses.replace(model.config, scan_unroll=1))


def _stream_keys(keys: jax.Array, stream: str, *more: jax.Array) -> jax.Array:
    """Keys [B] of one stream of a turn, from the turn's keys [B]; numbers `more` [] are folded in too."""
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
    """Encodes images [B, H, W, 3] uint8 to latents [B, N, V] and ViT patches [B, P, U] (None without ViT)."""
    latents = autoencoder.to_tokens(model.config, images, frozen)
    return latents, vit.views(model.config, model.layout, images, latents)


@functools.partial(jax.jit, static_argnames="model")
def decode_image(model: UnifiedModel, latents: jax.Array, frozen: Any = None) -> jax.Array:
    """Decodes latents [B, N, V] to images [B, H, W, 3] uint8."""
    return autoencoder.to_images(model.config, model.layout, latents, frozen)


# -------------------------------------------------------------------- prompts


@functools.partial(jax.jit, static_argnames="model")
def prefill(
    model: UnifiedModel, params: Any, prompts: Mapping[str, Any]
) -> tuple[KVCache, jax.Array, jax.Array]:
    """Prefills prompts: their KV cache, the next rotary position [B], the last token's hidden state [B, D].

    `prompts` are the arguments of `prompt_inputs`, all padding in rows without a new prompt.
    """
    context, end = model.apply({"params": params}, prompt_inputs(**prompts), method="prefill")
    return context.prompt, context.position, end


@functools.partial(jax.jit, static_argnames="model")
def new_context(model: UnifiedModel, prompt: KVCache, position: jax.Array) -> tuple[Context, KVCache]:
    """The context of prefilled prompts, with an empty history, and the KV cache of an empty turn."""
    rows = position.shape[0]
    context = Context.empty(model.config, model.layout, rows)
    context = context.with_prompts(jnp.ones(rows, bool), prompt, position)
    turn = KVCache.empty(model.config, rows, model.layout.visible_tokens)
    return context.replace(history=_shard(context.history)), _shard(turn)


def _shard(cache: KVCache) -> KVCache:
    """Shards keys and values over rows and KV heads."""
    k, v = (constrain("a context", x, None, "rows", "kv_heads", None, None) for x in (cache.k, cache.v))
    return cache.replace(k=k, v=v)


@functools.partial(jax.jit, donate_argnames="context")
def enter(context: Context, fresh: jax.Array, prompt: KVCache, position: jax.Array) -> Context:
    """Puts prompts into the rows `fresh` [B] bool and clears their history; `context` is donated."""
    return context.with_prompts(fresh, prompt, position)


# ----------------------------------------------------------------- text, image


@functools.partial(jax.jit, static_argnames=("model", "spec", "part"))
def decode_text(
    model: UnifiedModel, spec: TextSpec, part: str, params: Any, state: SamplingState, given: jax.Array
) -> Extended:
    """Decodes the text `before` or `after` an image (`part`) in the rows `state.rows`.

    `given` [B, T] int32 holds texts to read instead; all padding in rows where the model writes.
    """
    place = part_slices(model.layout.visible_parts)[part]
    prefix = [jnp.full_like(state.position, model.ids.im_start)]
    if part == "before":
        prefix.append(jnp.where(state.refines, model.ids.refine, model.ids.ins).astype(jnp.int32))
    is_given = given[:, 0] != PAD_ID
    prefix = jnp.stack(prefix, axis=1)
    prefix = jnp.where(is_given[:, None], given[:, : prefix.shape[1]], prefix)
    prefix = jnp.where(state.rows[:, None], prefix, PAD_ID)
    sample = _token_sampler(model, spec, part, params, state.keys)

    def pick(hidden, at):
        given_token = jax.lax.dynamic_slice_in_dim(given, at, 1, 1)[:, 0]
        return jnp.where(is_given, given_token, sample(hidden, at))

    *context, turn = state.seen(model.layout, place.stop)
    tokens, hidden, cache = decode(model, params, context, turn, place, state.position, prefix, pick)
    count = token_count(tokens)
    end = at_token(hidden, count - 1)
    texts = None if state.texts is None else append_text(model, part, params, state.texts, tokens)
    return Extended(state.turn.write(cache, 0), state.position + count, end, tokens, texts)


def _token_sampler(model: UnifiedModel, spec: TextSpec, stream: str, params: Any, keys: jax.Array) -> Pick:
    """Makes the function that samples the next token among those that the spec allows."""
    allowed = np.arange(model.config.vocab_size) < spec.vocabulary
    allowed[list(spec.banned)] = False
    allowed[model.ids.im_end] = True

    def pick(hidden, at):
        logits = model.apply({"params": params}, hidden, method="logits")
        mask = jnp.asarray(allowed)[None]
        return sample_token(logits, mask, spec.temperature, _stream_keys(keys, stream, at))

    return pick


def append_text(
    model: UnifiedModel, part: str, params: Any, state: SamplingState, tokens: jax.Array
) -> Extended:
    """Appends a given text [B, T] `before` or `after` an image in one forward pass."""
    start = part_slices(model.layout.visible_parts)[part].start
    args = (state.seen(model.layout, start), tokens, state.position)
    hidden, new = model.apply({"params": params}, *args, method=extend.text)
    count = token_count(tokens)
    turn = state.turn.write(new, start)
    return Extended(turn, state.position + count, at_token(hidden, count - 1), tokens)


@functools.partial(jax.jit, static_argnames=("model", "spec"))
def answer(
    model: UnifiedModel, spec: TextSpec, params: Any, prompt: KVCache, position: jax.Array, rows, keys
) -> jax.Array:
    """Decodes text answers [B, T] int32 to prefilled prompts; all padding outside `rows` [B] bool."""
    cache = KVCache.empty(model.config, rows.shape[0], spec.size)
    prefix = jnp.where(rows[:, None], model.ids.im_start, PAD_ID).astype(jnp.int32)
    context, place = [KVCache.empty(model.config, rows.shape[0], 0), prompt], slice(0, spec.size)
    sample = _token_sampler(model, spec, "answer", params, keys)
    return decode(model, params, context, cache, place, position, prefix, sample)[0]


@functools.partial(jax.jit, static_argnames=("model", "spec"))
def sample_image(model: UnifiedModel, spec: flow.FlowSpec, params: Any, state: SamplingState) -> jax.Array:
    """Samples the latents [B, N, V] of the turn's image from noise.

    Later tokens see the decoded image encoded again, not these latents, so that a
    trajectory can be continued from its images on disk.
    """
    velocity = velocity_of(model, params, state, dict.fromkeys([("full",), spec.branches]))
    shape = (model.layout.latents, model.layout.latent_values)
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(_stream_keys(state.keys, "image"))
    return flow.integrate(spec, velocity, noise)


def velocity_of(
    model: UnifiedModel, params: Any, state: SamplingState, sets: Collection[tuple[str, ...]]
) -> flow.Velocity:
    """The velocity function of the turn's image; it takes only the `sets` of guidance branches given here.

    All branches of a set go through the model together, stacked along the batch axis.
    """
    branches = {name: branch(model.layout, state, name) for names in sets for name in names}
    contexts = {
        names: [joined(parts, ROWS) for parts in zip(*(branches[name][0] for name in names), strict=True)]
        for names in sets
    }

    def velocity(names, x, t):
        count, context = len(names), contexts[names]
        position, t = jnp.concatenate([branches[name][1] for name in names]), jnp.broadcast_to(t, x.shape[0])
        args = (context, jnp.concatenate([x] * count), jnp.concatenate([t] * count), position)
        v = model.apply({"params": params}, *args, method=extend.velocity)
        return dict(zip(names, jnp.split(v, count), strict=True))

    return velocity


@functools.partial(jax.jit, static_argnames="model")
def append_image(
    model: UnifiedModel, params: Any, latents: jax.Array, patches: jax.Array | None, state: SamplingState
) -> Extended:
    """Appends the turn's image, encoded by `encode_image`, to its KV cache in the rows `state.rows`."""
    start = part_slices(model.layout.visible_parts)["image"].start
    args = (state.seen(model.layout, start), latents, patches, state.position)
    end, new = model.apply({"params": params}, *args, method=extend.image)
    turn = state.turn.write(new.keep_only(state.rows[:, None]), start)
    return Extended(turn, state.position + model.layout.state_positions * state.rows.astype(jnp.int32), end)


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
    """Decides what follows a closing token with hidden state [B, D], and says how likely each choice was.

    Args:
      temperature: 0 is greedy.
      threshold: `<refine>` is chosen exactly where its probability among what is
        allowed is at least this; None samples it as the other choices.
      stream: one of `RNG_STREAMS`.
      allowed: [B, C] bool, in the order of `Opens`.
      keys: [B] random keys of the turn.

    Returns:
      [B] int32, one of `Opens`.
      [B, C] float32, probabilities at temperature 1 among what is allowed; NaN where nothing is.
    """
    logits = model.apply({"params": params}, hidden, method="logits")[:, jnp.asarray(choice_ids(model.ids))]
    keys, refine = _stream_keys(keys, stream), int(Opens.REFINE)
    probabilities = jax.nn.softmax(jnp.where(allowed, logits, -jnp.inf), axis=-1)
    if threshold is None:
        return sample_token(logits, allowed, temperature, keys), probabilities
    refines = allowed[:, refine] & (probabilities[:, refine] >= threshold)
    others = allowed & (jnp.arange(len(Opens)) != refine)[None]
    choice = jnp.where(refines, refine, sample_token(logits, others, temperature, keys)).astype(jnp.int32)
    return choice, probabilities


@functools.partial(jax.jit, static_argnames="model", donate_argnames="context")
def commit(
    model: UnifiedModel,
    context: Context,
    turn: KVCache,
    rows: jax.Array,
    refines: jax.Array,
) -> tuple[Context, jax.Array]:
    """Appends a turn to the history; returns the context and the mask of an empty turn.

    `context`, which is donated, already has the position after the turn. Only the `rows` [B] bool that had a
    turn change. `turn` and `refines` are those of `SamplingState`.
    """
    context = context.with_turn(model.layout, turn, rows, refines, context.position)
    return context, jnp.zeros_like(turn.mask)
