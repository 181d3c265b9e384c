"""The sampler's pieces, fed with a teacher's tokens and images, give the numbers of the scanned unroll."""

from __future__ import annotations

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_models import LAYOUT, make_model, random_params

from process_gen.data.fake import fake_batch
from process_gen.models.unified import at_token, token_count
from process_gen.models.unroll import NO_RANDOM_DROPS, scan_steps, step_inputs
from process_gen.sampling import stages
from process_gen.sampling.text import TextSpec, decode
from process_gen.trajectory.batch import PAD_ID, Batch

BRANCHES = ("full", "notext", "noimg")
ROWS = 6
QUICK = {"xla_backend_optimization_level": 0}
"""Each function runs a few times only: compiling it must not take longer."""


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def unrolled(model, params, batch, key, hide):
    inputs, _ = step_inputs(model, batch, key, NO_RANDOM_DROPS)
    inputs = inputs.replace(
        hide_text=jnp.broadcast_to(hide == 1, batch.present.shape),
        hide_images=jnp.broadcast_to(hide == 2, batch.present.shape),
    )
    _, outputs, context = scan_steps(model, params, batch, inputs)
    return inputs, outputs, context.history.visible, context.next_id


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def replayed_step(model, params, context, prompts, reset, one):
    """One step with the teacher's `one`; rows that `reset` start from `prompts` [B, T]."""
    memory, next_id, _ = stages.begin(model, params, stages.Prompts(prompts))
    context = stages.enter(context, memory, next_id, reset)
    work = stages.Work(context, {}, context.next_id, one.present, None)
    out = {}

    def seen():
        return stages.pieces(model.layout, context, work.parts)

    def text(work, name, tokens):
        spec = TextSpec(tokens.shape[1], (model.ids.im_start,), (), model.config.vocab_size)
        rows = one.present & (token_count(tokens) > 0)
        memory = stages.joined(list(seen().values()))
        written = decode(model, params, memory, work.next_id, rows, spec, lambda hidden, at: tokens[:, at])
        out[name] = written.hidden
        out[f"{name}_tokens"] = written.tokens
        parts = {**work.parts, name: written.memory}
        return work.replace(parts=parts, next_id=work.next_id + token_count(written.tokens))

    def image(work, name, rows, noised, t, latents, view):
        velocity = stages.velocity_of(model, params, name, work, {BRANCHES})
        out[f"{name}_velocity"] = velocity(BRANCHES, noised[:, 0], t[:, 0])
        work = work.replace(rows=rows)
        seen = stages.look(model, params, latents, view, work)
        out[f"{name}_end"] = seen.end
        return work.adding(name, seen)

    work = text(work, "plan", one.plan)
    work = image(work, "sketch", one.present, one.sketch_noised, one.sketch_t, one.sketch, one.sketch_view)
    work = text(work, "inspect", one.inspect)
    work = text(work, "refine", one.refine)
    refines = one.present & (token_count(one.refine) > 0)
    work = image(work, "refined", refines, one.refined_noised, one.refined_t, one.refined, one.refined_view)
    return stages.commit(model, params, work, one.present)[0], out


def close(got, want, rows):
    got, want = np.asarray(got)[rows], np.asarray(want)[rows]
    scale = max(1.0, np.abs(want).max(initial=0.0))  # velocities near t = 0 are large
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("vit_grid", [(0, 0), (2, 1)], ids=["latents", "vit"])
@pytest.mark.parametrize("context", ["full", "step", "last"])
def test_the_pieces_give_the_numbers_of_the_unroll(context, vit_grid):
    layout = dataclasses.replace(LAYOUT, context=context, vit_grid=vit_grid)
    model, params = make_model(layout), random_params(layout)
    batch = Batch(**fake_batch(model.layout, ROWS, seed=3))
    key, refined = jax.random.key(5), (batch.refine_tokens != PAD_ID).any(-1)
    with jax.default_matmul_precision("highest"):
        outputs = {}
        for hide, branch in enumerate(BRANCHES):
            result = jax.device_get(unrolled(model, params, batch, key, hide))
            inputs, outputs[branch], visible, last_id = result
        state = jax.jit(lambda: model.apply({"params": params}, ROWS, method="empty_context"))()
        for s in range(model.layout.steps):
            of_step = operator.itemgetter((slice(None), s))
            one, want = jax.tree.map(of_step, inputs), jax.tree.map(of_step, outputs["full"])
            prompts = batch.prompt_tokens[np.arange(ROWS), batch.prompt_index[:, s]]
            state, got = replayed_step(model, params, state, prompts, batch.reset[:, s], one)
            for name in ("plan", "inspect", "refine"):
                tokens = np.where(one.present[:, None], getattr(one, name), PAD_ID)
                np.testing.assert_array_equal(got[f"{name}_tokens"], tokens)
                close(got[name], getattr(want, name), tokens != PAD_ID)
            drawn = {"sketch": one.present, "refined": one.present & refined[:, s]}
            for name, rows in drawn.items():
                close(got[f"{name}_end"], getattr(want, f"{name}_end"), rows)
                for branch in BRANCHES:
                    velocity = getattr(outputs[branch], f"{name}_velocity")[:, s, 0]
                    close(got[f"{name}_velocity"][branch], velocity, rows)
    np.testing.assert_array_equal(state.history.visible, visible)
    np.testing.assert_array_equal(state.next_id, last_id)
    assert 0 < (refined & batch.present).sum() < batch.present.sum(), "some rows refine, some do not"
    assert batch.reset[:, 1:].any(), "some rows hold a second trajectory"
    assert not (batch.plan_tokens != PAD_ID).any(-1)[batch.present].all(), (
        "some rows draw straight from the prompt"
    )


def test_a_closing_token_is_read_where_the_text_ends():
    hidden = jnp.arange(2 * 4 * 3, dtype=jnp.float32).reshape(2, 4, 3)
    np.testing.assert_array_equal(at_token(hidden, jnp.array([3, 1])), hidden[np.arange(2), [3, 1]])
