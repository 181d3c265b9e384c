"""Prompts with an input image: one pass over all parts is reading them one after the other."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.models.context import Memory, joined, prompt_slots
from process_gen.models.step_io import PromptInputs
from process_gen.models.unified import at_token, token_count
from process_gen.models.unroll import UnrollOptions, step_inputs
from process_gen.trajectory.batch import PAD_ID
from tests.models.tiny import VIT, make_batch, make_model

CHANGES = dict(prompt_image=True, instruction=5, vit_grid=VIT)
QUICK = {"xla_backend_optimization_level": 0}


@functools.cache
def prompts() -> PromptInputs:
    """Three rows: all parts; no image; an image and the instruction alone."""
    rng = np.random.default_rng(0)
    text = np.array([[3, 9, 0, 4, PAD_ID, PAD_ID], [3, 8, 4, *[PAD_ID] * 3], [PAD_ID] * 6], np.int32)
    instruction = np.array([[3, 12, 4, PAD_ID, PAD_ID], [PAD_ID] * 5, [3, 0, 13, 4, PAD_ID]], np.int32)
    there = jnp.array([True, False, True])
    return PromptInputs(
        jnp.asarray(text),
        jnp.asarray(rng.standard_normal((3, 4, 48)), jnp.float32),
        jnp.asarray(rng.standard_normal((3, VIT[0] * VIT[1], 27)), jnp.float32),
        jnp.asarray(instruction),
        {"prompt_image": there, "prompt_image_vit": there},
    )


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def at_once(model, params, inputs):
    context, end = model.apply({"params": params}, inputs, method="begin")
    return context.prompt, context.next_id, end


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def one_by_one(model, params, inputs):
    """The parts of each prompt through the pieces that sampling uses."""

    def apply(method, *args):
        return model.apply({"params": params}, *args, method=method)

    next_id, there = jnp.zeros(3, jnp.int32), inputs.there["prompt_image"]
    hidden, text = apply("read_text", Memory.empty(model.config, 3, 0), inputs.text, next_id)
    end, next_id = at_token(hidden, token_count(inputs.text) - 1), next_id + token_count(inputs.text)
    state_end, image = apply("read_image", text, inputs.image, next_id, inputs.view)
    end = jnp.where(there[:, None], state_end, end)
    next_id = next_id + model.layout.state_ids * there
    image = image.only(there)
    hidden, after = apply("read_text", joined([text, image]), inputs.instruction, next_id)
    count = token_count(inputs.instruction)
    end = jnp.where((count > 0)[:, None], at_token(hidden, count - 1), end)
    return joined([text, image, after]), next_id + count, end


def test_a_prompt_with_an_image_is_read_at_once_or_part_by_part():
    model, params = make_model(**CHANGES)
    with jax.default_matmul_precision("highest"):
        (memory, ids, end), (parts, same_ids, same_end) = (
            read(model, params, prompts()) for read in (at_once, one_by_one)
        )
    np.testing.assert_array_equal(memory.visible, parts.visible)
    np.testing.assert_array_equal(ids, same_ids)
    np.testing.assert_allclose(end, same_end, rtol=1e-5, atol=1e-5)
    seen = np.asarray(memory.visible)[None, :, None, :, None]
    for ours, theirs in ((memory.k, parts.k), (memory.v, parts.v)):
        np.testing.assert_allclose(ours * seen, theirs * seen, rtol=1e-5, atol=2e-5)
    where = prompt_slots(model.layout)
    assert not memory.visible[1, where["prompt_image"]].any() and memory.visible[0].any()
    np.testing.assert_array_equal(ids, [4 + 2 + 3, 3, 0 + 2 + 4])


@pytest.mark.parametrize(("latents", "views"), [(0.0, 0.0), (0.3, 0.3), (0.0, 1.0)])
def test_what_is_left_out_of_the_context_is_never_a_whole_image(latents, views):
    model, _ = make_model(vit_grid=VIT)
    options = UnrollOptions(drop_latents=latents, drop_views=views)
    inputs, _ = step_inputs(model, make_batch(16, vit_grid=VIT), jax.random.key(2), options)
    if not latents and not views:
        assert inputs.there == {}
        return
    for name in ("sketch", "refined"):
        kept, seen = inputs.there[name], inputs.there[f"{name}_vit"]
        assert (kept | seen).all()
        for flags, share in ((kept, latents), (seen, views)):
            assert abs(float((~flags).mean()) - share) < 0.2


def test_shares_that_would_leave_out_everything_are_refused():
    with pytest.raises(ValueError, match="drop_latents and flow.drop_views"):
        UnrollOptions(drop_latents=0.6, drop_views=0.6)
