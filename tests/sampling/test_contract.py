"""The sampler's pieces, fed with a teacher's turns, give the numbers of the unroll in either order."""

from __future__ import annotations

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_models import LAYOUT, make_model, random_params

from process_gen.models.cache import part_slices
from process_gen.models.config import NO_RANDOM_DROPS, ORDERS
from process_gen.models.content import at_token, token_count
from process_gen.models.inputs import make_inputs
from process_gen.models.unroll import run_turns
from process_gen.sampling import turn
from process_gen.sampling.state import SamplingState
from process_gen.sampling.text import TextSpec, decode
from process_gen.trajectory.batch import PAD_ID, Batch
from tests.data.fake import fake_batch

BRANCHES = ("full", "notext")
ROWS = 6
QUICK = {"xla_backend_optimization_level": 0}
"""Each function runs a few times only: compiling it must not take longer."""


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=QUICK)
def unrolled(model, order, params, batch, inputs, dropped):
    """The outputs of an unroll without the newest text of the turns `dropped` [B, S]."""
    prompts, turns = inputs.prompts, inputs.turns
    before = jnp.where(dropped[..., None], PAD_ID, turns.texts["before"])
    bare = dropped & batch.is_first & (token_count(batch.before_tokens) == 0)
    of_prompt = batch.prompt_index[:, :, None] == jnp.arange(model.layout.trajectories)[None, None]
    text = jnp.where((bare[:, :, None] & of_prompt).any(1)[..., None], PAD_ID, prompts.texts["prompt"])
    prompts = prompts.replace(texts={**prompts.texts, "prompt": text})
    turns = turns.replace(texts={**turns.texts, "before": before})
    return run_turns(model, params, batch, prompts, turns, order)


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def replayed(model, params, state, prompts, is_first, refines, one):
    """A turn with the teacher's `one`; rows where it `is_first` start from `prompts` [B, T]."""
    cache, position, end = turn.prefill(model, params, {"text": prompts})
    context = state.context.with_prompts(is_first, cache, position)
    state = state.with_fields(refines=refines).replace(context=context, position=context.position)
    out = {"prompt_end": end}

    def text(state, part, tokens):
        spec = TextSpec(tokens.shape[1], (), model.config.vocab_size)
        tokens = jnp.where(one.present[:, None], tokens, PAD_ID)
        state = state.with_fields(rows=token_count(tokens) > 0)
        written = turn.decode_text(model, spec, part, params, state, tokens)
        out[f"{part}_tokens"], out[f"{part}_end"] = written.tokens, written.end
        place, (*context, _) = part_slices(model.layout.visible_parts)[part], state.seen(model.layout, 0)
        given = (context, state.turn, place, state.position, tokens[:, :1])
        out[part] = decode(model, params, *given, lambda hidden, at: tokens[:, at])[1]
        at_once = turn.append_text(model, part, params, state, tokens)
        out[f"{part}_read"] = at_once.end
        return state.extended(written)

    state = text(state, "before", one.texts["before"])
    velocity = turn.velocity_of(model, params, state, {BRANCHES})
    out["velocity"] = velocity(BRANCHES, one.latents["noised_0"], one.times["noised_0"])
    state = state.with_fields(rows=one.present)
    seen = turn.append_image(model, params, one.latents["image"], one.vit["image_vit"], state)
    out["image_end"] = seen.end
    state = text(state.extended(seen), "after", one.texts["after"])
    given = (state.turn, one.present, refines, state.position)
    context = state.context.with_turn(model.layout, *given)
    empty = state.turn.replace(mask=jnp.zeros_like(state.turn.mask))
    return state.replace(context=context, turn=empty, position=context.position), out


@functools.partial(jax.jit, static_argnums=0)
def idle(model, params, prompts):
    cache, position, _ = turn.prefill(model, params, {"text": prompts})
    context, empty = turn.new_context(model, cache, position)
    none = jnp.zeros(len(prompts), bool)
    return SamplingState(
        context, empty, position, none, none, jax.random.split(jax.random.key(0), len(prompts))
    )


def close(got, want, rows):
    got, want = np.asarray(got)[rows], np.asarray(want)[rows]
    scale = max(1.0, np.abs(want).max(initial=0.0))  # velocities near t = 0 are large
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.slow  # it compiles the sampler's pieces and both unrolls
@pytest.mark.parametrize("context, vit_grid", [("full", (2, 1)), ("step", (2, 1)), ("last", (0, 0))])
def test_the_pieces_give_the_numbers_of_the_unroll(context, vit_grid):
    layout = dataclasses.replace(LAYOUT, context=context, vit_grid=vit_grid, corrections=2)
    model, params = make_model(layout), random_params(layout)
    fields = fake_batch(layout, ROWS, seed=3)
    fields["before_tokens"][:2][~fields["refines"][:2]] = PAD_ID  # drafts without a plan, early and late
    batch = jax.tree.map(jnp.asarray, Batch(**fields))
    shape, key = batch.present.shape, jax.random.key(5)
    with jax.default_matmul_precision("highest"):
        inputs = jax.jit(lambda: make_inputs(model, batch, key, NO_RANDOM_DROPS))()
        # Of each turn alone the newest text is dropped: later ones still see what it said.
        without = [
            unrolled(model, "layers", params, batch, inputs, jnp.zeros(shape, bool).at[:, s].set(True))
            for s in range(layout.turns)
        ]
        wants = {
            order: jax.device_get(unrolled(model, order, params, batch, inputs, jnp.zeros(shape, bool)))
            for order in ORDERS
        }
        batch, inputs = jax.device_get((batch, inputs))
        state = idle(model, params, batch.prompt_tokens[:, 0])
        for s in range(layout.turns):
            of_turn = operator.itemgetter((slice(None), s))
            one = jax.tree.map(of_turn, inputs.turns)
            prompts = batch.prompt_tokens[np.arange(ROWS), batch.prompt_index[:, s]]
            first, refines = batch.is_first[:, s], batch.refines[:, s]
            state, got = replayed(model, params, state, prompts, first, refines, one)
            for prompt_end, outputs in wants.values():
                want, there = jax.tree.map(of_turn, outputs), one.present
                close(got["prompt_end"], prompt_end[np.arange(ROWS), batch.prompt_index[:, s]], there)
                for part in ("before", "after"):
                    tokens = np.where(there[:, None], one.texts[part], PAD_ID)
                    np.testing.assert_array_equal(got[f"{part}_tokens"], tokens)
                    close(got[part], want[part], tokens != PAD_ID)
                    counts = (tokens != PAD_ID).sum(1)
                    ends = want[part][np.arange(ROWS), counts - 1]
                    close(got[f"{part}_end"], ends, counts > 0)
                    close(got[f"{part}_read"], ends, counts > 0)
                close(got["image_end"], want["image_end"], there)
                close(got["velocity"]["full"], want["velocity"][:, 0], there)
            # A later draft without a plan still has the prompt's text in training: nothing is dropped there.
            rows = there & (batch.is_first[:, s] | (one.texts["before"] != PAD_ID).any(1))
            close(got["velocity"]["notext"], without[s][1]["velocity"][:, s, 0], rows)
    present, refines = batch.present, batch.refines & batch.present
    assert 0 < refines.sum() < present.sum(), "some rows refine, some do not"
    assert any(0 < column.sum() < ROWS for column in refines.T), "in the same turn"
    assert batch.is_first[:, 1:].any(), "some rows hold a second trajectory"
    assert not (batch.before_tokens != PAD_ID).any(-1)[present].all(), "some draw straight from the prompt"


def test_a_closing_token_is_read_where_the_text_ends():
    hidden = jnp.arange(2 * 4 * 3, dtype=jnp.float32).reshape(2, 4, 3)
    np.testing.assert_array_equal(at_token(hidden, jnp.array([3, 1])), hidden[np.arange(2), [3, 1]])
