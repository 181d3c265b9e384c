"""The interleaved sampler with a random model: form, independence, decisions, stops, no recompilation."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_models import LAYOUT, make_model, random_params

from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.models.cache import KVCache
from process_gen.sampling import Sampler, SamplerConfig, turn
from process_gen.sampling.decisions import Opens
from process_gen.sampling.text import decode
from process_gen.trajectory import markup
from process_gen.trajectory.batch import PAD_ID
from process_gen.trajectory.stages import Mode

PROMPTS = ["a red circle", "two blue stars", "a green square", "a red star", "a yellow circle"]
CONFIG = SamplerConfig(flow_steps=3, temperature=1.0, max_turns=4, seed=4)
# As many turn slots as a trajectory may have: rows that take a second prompt forget the first one's turns.
MODEL = make_model(dataclasses.replace(LAYOUT, turns=4, context="full"))


@functools.cache
def sampler(**changes) -> Sampler:
    return Sampler(MODEL, random_params(), scenes_tokenizer(), dataclasses.replace(CONFIG, **changes), rows=3)


@functools.cache
def drawn():
    return sampler().sample(PROMPTS)


def same(a, b) -> None:
    assert (a.prompt, a.seed, a.stopped, len(a.turns)) == (b.prompt, b.seed, b.stopped, len(b.turns))
    for one, two in zip(a.turns, b.turns, strict=True):
        for name in ("refines", "before", "after", "image_ok"):
            assert getattr(one, name) == getattr(two, name)
        np.testing.assert_allclose(one.image.astype(int), two.image.astype(int), atol=1)


def test_trajectories_have_the_stages_of_the_process():
    assert [one.prompt for one in drawn()] == PROMPTS
    for one in drawn():
        assert 1 <= len(one.turns) <= CONFIG.max_turns
        assert one.stopped == "model" or len(one.turns) == CONFIG.max_turns
        assert one.sampling_steps == len(one.turns) * CONFIG.flow_steps and one.seconds > 0
        assert one.corrections <= LAYOUT.corrections and not one.given
        for turn_, following in zip(one.turns, [*one.turns[1:], None], strict=True):
            assert turn_.image.shape == (16, 16, 3)
            assert turn_.image_ok != (following is not None and following.refines)
            if turn_.refines:
                assert turn_.before.startswith(markup.REFINE)
            elif turn_.before is not None:
                assert turn_.before.startswith(markup.INS)
            if turn_.after is not None:
                assert not markup.SPECIAL_PATTERN.search(turn_.after)
    turns = [turn_ for one in drawn() for turn_ in one.turns]
    for name in ("before", "after"):
        absent = {getattr(turn_, name) is None for turn_ in turns}
        assert absent == {True, False}, f"some turns have a text {name} the image, some do not"
    assert {turn_.refines for turn_ in turns} == {True, False}, "some rows refine, some do not"


def test_what_a_random_model_writes_is_malformed_and_nothing_raises():
    found = [turn_.instruction if turn_.refines else turn_.plan for one in drawn() for turn_ in one.turns]
    assert any(isinstance(text, markup.Malformed) for text in found)
    assert all(one.steps for one in drawn())


def test_a_prompt_does_not_depend_on_its_neighbours():
    alone = [sampler().sample([prompt])[0] for prompt in PROMPTS[::-1]]
    for one, other in zip(alone[::-1], drawn(), strict=True):
        same(one, other)
    copies = sampler().sample([PROMPTS[0]] * 2, seed=[CONFIG.seed, 11])
    same(copies[0], drawn()[0])
    assert not np.array_equal(copies[0].turns[0].image, copies[1].turns[0].image)


def test_lanes_draw_what_one_lane_draws(monkeypatch):
    prompts = [f"{prompt} {i}" for i in range(4) for prompt in PROMPTS]
    drawn = []
    for cores, rows in ((1, 8), (2, 16)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        one = Sampler(MODEL, random_params(), scenes_tokenizer(), CONFIG, rows=rows)
        assert one.lanes == cores
        drawn.append(one.sample(prompts, seed=range(len(prompts))))
    for pair in zip(*drawn, strict=True):
        same(*pair)
    monkeypatch.setattr(Sampler, "_decide", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # of a thread, heard where the trajectories are waited for
        one.sample(prompts)


def compiled() -> dict[str, int]:
    names = (
        "decode_text",
        "sample_image",
        "append_image",
        "decide",
        "prefill",
        "new_context",
        "enter",
        "commit",
        "turn_keys",
    )
    return {name: getattr(turn, name)._cache_size() for name in names}


def test_nothing_is_compiled_twice():
    drawn()
    before = compiled()
    params = jax.tree.map(jnp.copy, random_params())
    again = Sampler(make_model(MODEL.layout), params, scenes_tokenizer(), CONFIG, rows=3)
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
    assert progress.turns == sum(len(one.turns) for one in drawn())


def decided(monkeypatch, *wanted: Opens) -> list[str]:
    """Lets samplers decide for the first of `wanted` that it may; the list fills with what it was asked."""
    asked = []

    def decide(model, temperature, threshold, stream, params, end, allowed, keys):
        asked.append(stream)
        first = [next(w for w in wanted if row[w]) if row.any() else Opens.END for row in np.asarray(allowed)]
        return np.array(first), np.full(allowed.shape, 0.5)

    monkeypatch.setattr(turn, "decide", decide)
    return asked


@pytest.mark.parametrize(
    "wanted, kinds, stopped",
    [
        ("inspect end plan", "D+-", "model"),
        ("inspect plan end", "D+-D+-D+-D+-", "cap"),
        ("plan image end", "D+ D+ D+ D+ ", "cap"),
        ("inspect refine plan", "D+-R+-D+-R+-", "cap"),
        ("refine image", "D  R+ D  R+ ", "cap"),
        ("image", "D  D  D  D  ", "cap"),
        ("end image", "D  ", "model"),
    ],
)
def test_every_decision_is_asked(monkeypatch, wanted, kinds, stopped):
    """D a draft and R a correction, + with a text before the image, - after it."""
    asked = decided(monkeypatch, *(Opens[name.upper()] for name in wanted.split()))
    for one in sampler().sample(PROMPTS[:2]):
        marks = ("DR"[t.refines] + " +"[t.before is not None] + " -"[t.after is not None] for t in one.turns)
        assert "".join(marks) == kinds and one.stopped == stopped
    inspected = kinds.count("-")
    assert asked.count("after_prompt") == 1 and asked.count("after_text") == inspected
    assert asked.count("after_image") == kinds.count("D") + kinds.count("R")


def test_rows_draft_and_correct_side_by_side(monkeypatch):
    one = sampler()

    def decide(model, temperature, threshold, stream, params, end, allowed, keys):
        wanted = [[Opens.PLAN, Opens.IMAGE], [Opens.REFINE, Opens.PLAN], [Opens.END, Opens.IMAGE]]
        pairs = zip(wanted, np.asarray(allowed), strict=True)
        found = [next((w for w in some if row[w]), Opens.END) for some, row in pairs]
        return np.array(found), np.full(allowed.shape, 0.5)

    monkeypatch.setattr(turn, "decide", decide)
    progress = list(one.stream(PROMPTS[:3]))
    found = dict(pair for some in progress for pair in some.finished)
    assert [len(found[i].turns) for i in range(3)] == [4, 4, 1] and len(progress) == 4
    assert [t.refines for t in found[0].turns] == [False] * 4
    assert [t.refines for t in found[1].turns] == [False, True, False, True]


def test_a_trajectory_has_a_budget_of_euler_steps(monkeypatch):
    one = sampler(max_flow_steps=7)
    decided(monkeypatch, Opens.IMAGE)
    for trajectory in one.sample(PROMPTS[:2]):
        assert len(trajectory.turns) == 2 and trajectory.stopped == "cap" and trajectory.sampling_steps == 6


def shares(hidden: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The probabilities of what may be decided, [B, C]."""
    ids = list(turn_choices())
    logits = jax.jit(lambda h: MODEL.apply({"params": random_params()}, h, method="logits"))(hidden)
    return np.asarray(jax.nn.softmax(jnp.where(allowed, logits[:, jnp.array(ids)], -jnp.inf)))


def turn_choices() -> tuple[int, ...]:
    ids = MODEL.ids
    return ids.im_start, ids.refine, ids.ins, ids.vision_start, ids.end_of_text


def test_a_threshold_decides_what_is_corrected(rng):
    hidden = rng.standard_normal((64, MODEL.config.width)).astype(np.float32)
    allowed = np.ones((64, 5), bool)
    allowed[::2, Opens.INSPECT] = False
    allowed[:8, Opens.REFINE] = False
    keys, share = jax.random.split(jax.random.key(0), 64), shares(hidden, allowed)
    others = np.where(np.arange(5) == Opens.REFINE, 0, share).argmax(1)
    for threshold in (0.0, 0.1, 0.4, 1.0):
        settings = (0.0, threshold, "after_image", random_params())
        found, likely = turn.decide(MODEL, *settings, hidden, allowed, keys)
        np.testing.assert_allclose(likely, share, rtol=1e-4, atol=1e-6)
        refines = allowed[:, Opens.REFINE] & (share[:, Opens.REFINE] >= threshold)
        np.testing.assert_array_equal(found, np.where(refines, Opens.REFINE, others))
    plain, _ = turn.decide(MODEL, 0.0, None, "after_image", random_params(), hidden, allowed, keys)
    np.testing.assert_array_equal(plain, share.argmax(1))


def test_what_no_row_asks_for_is_not_run(monkeypatch):
    """Images straight from the prompt: nothing is written, nothing is decided."""
    for name in ("decode_text", "decide"):
        monkeypatch.setattr(turn, name, None)
    (one,) = sampler(mode=Mode.SINGLE_PASS).sample(PROMPTS[:1])
    assert len(one.turns) == 1 and one.stopped == "model"


@pytest.mark.parametrize("mode, text_scale", [(Mode.PLAN_ONLY, 1.0), (Mode.SINGLE_PASS, 2.0)])
def test_baselines_draw_one_image(mode, text_scale):
    for one in sampler(mode=mode, text_scale=text_scale).sample(PROMPTS[:2]):
        (only,) = one.turns
        assert one.mode is mode and one.stopped == "model" and one.sampling_steps == CONFIG.flow_steps
        assert (only.before is None) == (mode is Mode.SINGLE_PASS)
        assert only.after is None and not only.refines


def test_a_text_ends_where_it_closes_or_where_its_slot_ends():
    ids, word, pad = MODEL.ids, 0, PAD_ID  # 0 is a word like any other
    lengths = jnp.array([2, 9, 4, 4])  # where each row closes its text; the second never does in time
    rows = jnp.array([True, True, True, False])

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def write(params):
        nothing, cache = (KVCache.empty(MODEL.config, 4, keys) for keys in (0, 9))
        prefix = jnp.where(rows[:, None], ids.im_start, PAD_ID).astype(jnp.int32)
        given = ([nothing], cache, slice(2, 8), jnp.zeros(4, jnp.int32), prefix)
        return decode(MODEL, params, *given, lambda _, at: jnp.where(at >= lengths, ids.im_end, word))

    tokens, _, cache = write(random_params())
    start, end = ids.im_start, ids.im_end
    want = [
        [start, word, end, pad, pad, pad],
        [start, *[word] * 4, end],
        [start, *[word] * 3, end, pad],
        [pad] * 6,
    ]
    np.testing.assert_array_equal(tokens, want)
    np.testing.assert_array_equal(cache.mask[:, 2:8], np.array(want) != pad)
    assert not cache.mask[:, :2].any() and not cache.mask[:, 8:].any()
