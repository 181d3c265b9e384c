"""The interleaved sampler with a random model: form, independence, stops, no recompilation."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_models import LAYOUT, make_model, random_params

from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.models.context import Memory
from process_gen.sampling import Sampler, SamplerConfig, stages
from process_gen.sampling.text import TextSpec, decode
from process_gen.trajectory import markup
from process_gen.trajectory.batch import PAD_ID
from process_gen.trajectory.stages import Mode

PROMPTS = ["a red circle", "two blue stars", "a green square", "a red star", "a yellow circle"]
CONFIG = SamplerConfig(flow_steps=3, temperature=1.0, max_steps=2, seed=4)
# As many step slots as a trajectory may have: rows that take a second prompt write over the oldest.
MODEL = make_model(dataclasses.replace(LAYOUT, steps=2, context="full"))


@functools.cache
def sampler(**changes) -> Sampler:
    return Sampler(MODEL, random_params(), scenes_tokenizer(), dataclasses.replace(CONFIG, **changes), rows=3)


@functools.cache
def drawn():
    return sampler().sample(PROMPTS)


def same(a, b) -> None:
    assert (a.prompt, a.seed, a.stopped, len(a.steps)) == (b.prompt, b.seed, b.stopped, len(b.steps))
    for one, two in zip(a.steps, b.steps, strict=True):
        for name in ("plan_text", "inspect_text", "refine_text"):
            assert getattr(one, name) == getattr(two, name)
        for name in ("sketch", "refined"):
            pair = getattr(one, name), getattr(two, name)
            assert (pair[0] is None) == (pair[1] is None)
            if pair[0] is not None:
                np.testing.assert_allclose(*(x.astype(int) for x in pair), atol=1)


def test_trajectories_have_the_stages_of_the_process():
    assert [one.prompt for one in drawn()] == PROMPTS
    for one in drawn():
        assert 1 <= len(one.steps) <= CONFIG.max_steps
        assert one.stopped == "model" or len(one.steps) == CONFIG.max_steps
        images = sum(1 + (step.refined is not None) for step in one.steps)
        assert one.sampling_steps == images * CONFIG.flow_steps and one.seconds > 0
        for step in one.steps:
            assert step.plan_text.startswith(markup.INS) and step.sketch.shape == (16, 16, 3)
            assert not markup.SPECIAL_PATTERN.search(step.inspect_text)
            assert (step.refine_text is None) == (step.refined is None)
            if step.refine_text is not None:
                assert step.refine_text.startswith(markup.REFINE)
    steps = [step for one in drawn() for step in one.steps]
    assert {step.refined is None for step in steps} == {True, False}, "some rows refine, some do not"


def test_what_a_random_model_writes_is_malformed_and_nothing_raises():
    plans = [step.plan for one in drawn() for step in one.steps]
    assert any(isinstance(plan, markup.Malformed) for plan in plans)
    assert all(one.to_trajectory().steps for one in drawn())


def test_a_prompt_does_not_depend_on_its_neighbours():
    alone = [sampler().sample([prompt])[0] for prompt in PROMPTS[::-1]]
    for one, other in zip(alone[::-1], drawn(), strict=True):
        same(one, other)
    copies = sampler().sample([PROMPTS[0]] * 2, seed=[CONFIG.seed, 11])
    same(copies[0], drawn()[0])
    assert not np.array_equal(copies[0].steps[0].sketch, copies[1].steps[0].sketch)


def compiled() -> dict[str, int]:
    names = ("write", "draw", "decide", "begin", "blank", "enter", "commit", "row_keys", "step_keys")
    return {name: getattr(stages, name)._cache_size() for name in names}


def test_nothing_is_compiled_twice():
    drawn()
    before = compiled()
    again = Sampler(make_model(MODEL.layout), random_params(), scenes_tokenizer(), CONFIG, rows=3)
    again = again.with_params(random_params())
    with jax.transfer_guard("disallow"):
        other = again.sample(PROMPTS[:2])
    same(other[1], drawn()[1])
    assert compiled() == before


def test_progress_tells_what_ended():
    seen, progress = [], None
    for progress in sampler().stream(PROMPTS):
        seen += [index for index, _ in progress.finished]
        assert progress.done == len(seen) and progress.total == len(PROMPTS)
    assert sorted(seen) == list(range(len(PROMPTS)))
    assert progress.steps == sum(len(one.steps) for one in drawn())


@pytest.mark.parametrize(
    "opens, steps, refined, stopped",
    [("end_of_text", 1, False, "model"), ("ins", 2, False, "cap"), ("refine", 2, True, "cap")],
)
def test_decisions_refine_continue_and_stop(monkeypatch, opens, steps, refined, stopped):
    def decide(draw, choices, end, work):
        wanted = getattr(MODEL.ids, opens)
        return np.full(3, wanted if wanted in choices else MODEL.ids.ins)

    monkeypatch.setattr(sampler(), "_decide", decide)
    for one in sampler().sample(PROMPTS[:2]):
        assert len(one.steps) == steps and one.stopped == stopped
        assert all((step.refined is not None) == refined for step in one.steps)


@pytest.mark.parametrize("mode, text_scale", [(Mode.PLAN_ONLY, 1.0), (Mode.SINGLE_PASS, 2.0)])
def test_baselines_draw_one_image(mode, text_scale):
    for one in sampler(mode=mode, text_scale=text_scale).sample(PROMPTS[:2]):
        (step,) = one.steps
        assert one.mode is mode and one.stopped == "model" and one.sampling_steps == CONFIG.flow_steps
        assert (step.plan_text is None) == (mode is Mode.SINGLE_PASS)
        assert step.sketch is not None and step.inspect_text is None and step.refined is None


def test_a_text_ends_where_it_closes_or_where_its_slot_ends():
    ids, word, pad = MODEL.ids, 0, PAD_ID  # 0 is a word like any other
    lengths = jnp.array([2, 9, 4, 4])  # where each row closes its text; the second never does in time
    rows = jnp.array([True, True, True, False])

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def write(params):
        spec = TextSpec(6, (ids.im_start,), (), MODEL.config.vocab_size)
        memory = Memory.empty(MODEL.config, 4, 0)
        next_id = jnp.zeros(4, jnp.int32)
        return decode(
            MODEL,
            params,
            memory,
            next_id,
            rows,
            spec,
            lambda _, at: jnp.where(at >= lengths, ids.im_end, word),
        )

    text = write(random_params())
    start, end = ids.im_start, ids.im_end
    want = [
        [start, word, end, pad, pad, pad],
        [start, *[word] * 4, end],
        [start, *[word] * 3, end, pad],
        [pad] * 6,
    ]
    np.testing.assert_array_equal(text.tokens, want)
    np.testing.assert_array_equal(text.memory.visible, np.array(want) != pad)
