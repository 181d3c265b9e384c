"""Prompts with an input image: one pass over all parts is reading them one after the other."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.models.cache import KVCache, joined, part_slices
from process_gen.models.config import UnrollOptions
from process_gen.models.content import ChunkInputs, at_token, prompt_inputs, token_count
from process_gen.models.inputs import make_inputs
from process_gen.sampling import extend
from process_gen.trajectory.batch import PAD_ID
from tests.models.tiny import VIT, make_batch, make_model

CHANGES = dict(prompt_image=True, instruction=5, vit_grid=VIT)
QUICK = {"xla_backend_optimization_level": 0}


@functools.cache
def prompts() -> ChunkInputs:
    """Four rows: all parts; no image; an image and the instruction alone; an image without its ViT tokens."""
    rng = np.random.default_rng(0)
    first = [3, 9, 0, 4, PAD_ID, PAD_ID]
    text = np.array([first, [3, 8, 4, *[PAD_ID] * 3], [PAD_ID] * 6, first], np.int32)
    after = [3, 12, 4, PAD_ID, PAD_ID]
    instruction = np.array([after, [PAD_ID] * 5, [3, 0, 13, 4, PAD_ID], [PAD_ID] * 5], np.int32)
    return prompt_inputs(
        jnp.asarray(text),
        jnp.asarray(rng.standard_normal((4, 4, 48)), jnp.float32),
        jnp.asarray(rng.standard_normal((4, VIT[0] * VIT[1], 27)), jnp.float32),
        jnp.asarray(instruction),
        jnp.array([True, False, True, True]),
        {"prompt_image_vit": jnp.array([True, True, True, False])},
    )


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def at_once(model, params, inputs):
    context, end = model.apply({"params": params}, inputs, method="prefill")
    return context.prompt, context.position, end


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def one_by_one(model, params, inputs):
    """The parts of each prompt through the pieces that sampling uses."""

    def apply(method, before, *args):
        return model.apply({"params": params}, [nothing, *before], *args, method=method)

    nothing, there = KVCache.empty(model.config, 4, 0), inputs.exists["prompt_image"]
    image, patches = inputs.latents["prompt_image"], inputs.vit["prompt_image_vit"]
    first, last = inputs.texts["prompt"], inputs.texts["instruction"]
    position = jnp.zeros(4, jnp.int32)
    hidden, text = apply(extend.text, (), first, position)
    end, position = at_token(hidden, token_count(first) - 1), position + token_count(first)
    state_end, image = apply(extend.image, [text], image, patches, position)
    end = jnp.where(there[:, None], state_end, end)
    position = position + model.layout.state_positions * there
    image = image.keep_only(there[:, None])
    hidden, after = apply(extend.text, [text, image], last, position)
    count = token_count(last)
    end = jnp.where((count > 0)[:, None], at_token(hidden, count - 1), end)
    return joined([text, image, after]), position + count, end


def test_a_prompt_with_an_image_is_read_at_once_or_part_by_part():
    model, params = make_model(**CHANGES)
    with jax.default_matmul_precision("highest"):
        (cache, positions, end), (parts, same_positions, same_end) = (
            read(model, params, prompts()) for read in (at_once, one_by_one)
        )
    where = part_slices(model.layout.prompt_parts)
    state = where["prompt_image"]
    # The pieces know no image without its ViT tokens: of that row, the text before it is the same.
    whole = slice(0, 3)
    np.testing.assert_array_equal(cache.mask[whole], parts.mask[whole])
    np.testing.assert_array_equal(positions, same_positions)
    np.testing.assert_allclose(end[whole], same_end[whole], rtol=1e-5, atol=1e-5)
    seen = np.asarray(cache.mask)[None, :, None, :, None]
    for ours, theirs in ((cache.k, parts.k), (cache.v, parts.v)):
        np.testing.assert_allclose((ours * seen)[:, whole], (theirs * seen)[:, whole], rtol=1e-5, atol=2e-5)
        np.testing.assert_allclose(ours[:, 3, :, :4], theirs[:, 3, :, :4], rtol=1e-5, atol=2e-5)
    assert not cache.mask[1, state].any() and cache.mask[0, state].all()
    assert cache.mask[3, state].sum() == model.layout.latents + 2
    np.testing.assert_array_equal(positions, [4 + 2 + 3, 3, 0 + 2 + 4, 4 + 2])


def test_a_prompt_ends_where_its_last_part_that_is_there_ends():
    """The hidden state of an image without ViT tokens is that of the token that closes its latents."""
    model, params = make_model(**CHANGES)
    inputs = prompts()
    ends = at_once(model, params, inputs)[2]
    bare = inputs.replace(keep=dict.fromkeys(("prompt_image", "prompt_image_vit"), jnp.zeros(4, bool)))
    without_image = at_once(model, params, bare)[2]
    other = inputs.replace(vit=jax.tree.map(lambda x: x + 1.0, inputs.vit))
    np.testing.assert_array_equal(at_once(model, params, other)[2][3], ends[3])
    negated = inputs.replace(latents=jax.tree.map(jnp.negative, inputs.latents))
    assert np.abs(at_once(model, params, negated)[2][3] - ends[3]).max() > 1e-3
    assert np.abs(without_image[3] - ends[3]).max() > 1e-3
    text = inputs.replace(exists=dict.fromkeys(inputs.exists, jnp.zeros(4, bool)))
    np.testing.assert_allclose(at_once(model, params, text)[2][3], without_image[3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("images", "latents", "vit"), [(0.0, 0.0, 0.0), (0.0, 0.3, 0.3), (0.3, 0.0, 1.0)])
def test_images_their_latents_and_their_vit_tokens_are_left_out_as_often_as_asked(images, latents, vit):
    model, _ = make_model(**CHANGES)
    options = UnrollOptions(drop_text=0.0, drop_images=images, drop_latents=latents, drop_vit=vit)
    batch = make_batch(64, **CHANGES)
    inputs = make_inputs(model, batch, jax.random.key(2), options)
    for of, image in ((inputs.turns, "image"), (inputs.prompts, "prompt_image")):
        for name, share in ((image, latents), (f"{image}_vit", vit)):
            left_out = float((~of.keep[name]).mean())
            assert abs(left_out - (1 - (1 - images) * (1 - share))) < 0.1, name
    if not latents and vit == 1.0:
        # A trajectory loses all of its images, that of its prompt too, or none.
        of_turns = np.take_along_axis(
            np.asarray(inputs.prompts.keep["prompt_image"]), batch.prompt_index, axis=1
        )
        np.testing.assert_array_equal(inputs.turns.keep["image"], of_turns)


def test_what_is_left_out_predicts_nothing():
    model, _ = make_model(**CHANGES)
    batch = make_batch(64, **CHANGES)
    options = UnrollOptions(drop_text=0.5, drop_images=0.3, drop_latents=0.3, drop_vit=0.3)
    inputs = make_inputs(model, batch, jax.random.key(2), options)
    masked, keep = inputs.flows["masked"], inputs.turns.keep
    unseen = ~(keep["image"] | keep["image_vit"])
    had, has = ((x != PAD_ID).any(-1) for x in (batch.before_tokens, inputs.turns.texts["before"]))
    # Nobody judges an image that was not shown, or whose plan was not.
    np.testing.assert_array_equal(masked["image_end"], unseen | (had & ~has))
    np.testing.assert_array_equal(masked["after"], unseen | (had & ~has))
    assert (masked["before"] & had).any() and (~masked["before"] & had).any()
    np.testing.assert_array_equal(has, had & ~masked["before"])
    # A first turn without a plan has the prompt's last text as its newest one.
    first = np.asarray(batch.is_first & batch.present & ~had)
    rows, slots = np.nonzero(first)
    prompts = np.asarray(batch.prompt_index)[rows, slots]
    bare = np.zeros(batch.prompt_tokens.shape[:2], bool)
    bare[rows, prompts] = np.asarray(masked["before"])[rows, slots]
    np.testing.assert_array_equal(masked["prompt_end"], bare)
    instructed = np.asarray((batch.instruction_tokens != PAD_ID).any(-1))
    assert (bare & instructed).any() and (bare & ~instructed).any()
    lost = [
        ~np.asarray((now != PAD_ID).any(-1)) & np.asarray((old != PAD_ID).any(-1))
        for now, old in (
            (inputs.prompts.texts["prompt"], batch.prompt_tokens),
            (inputs.prompts.texts["instruction"], batch.instruction_tokens),
        )
    ]
    np.testing.assert_array_equal(lost[0], bare & ~instructed)
    np.testing.assert_array_equal(lost[1], bare & instructed)
