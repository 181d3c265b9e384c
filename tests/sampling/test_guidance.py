"""Guidance: what a branch of guidance reads is as if the rest had never been said."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
from sampling_models import LAYOUT, make_model, random_params

from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.models.cache import joined
from process_gen.sampling import Sampler, SamplerConfig
from process_gen.sampling.state import branch

SEEING = dataclasses.replace(LAYOUT, prompt_image=True, instruction=8, vit_grid=(2, 1))
CONFIG = SamplerConfig(flow_steps=3, text_scale=4.0, image_scale=1.5, mode="single_pass", interval=(0.0, 1.0))
PROMPTS = ["a red circle", "two blue stars"]


@functools.cache
def sampler(**changes) -> Sampler:
    config = dataclasses.replace(CONFIG, **changes)
    return Sampler(make_model(SEEING), random_params(SEEING), scenes_tokenizer(), config, rows=2)


def images(seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (2, 16, 16, 3), np.uint8))


def entered(given):
    """The state of two prompts that have been read."""
    drawer = sampler()
    rows = drawer._new_rows(PROMPTS, 0, given)
    state = drawer._enter(None, rows, np.ones(2, bool))
    return drawer, state.with_fields(refines=np.zeros(2, bool), keys=jax.random.split(jax.random.key(0), 2))


def branches(given, plan=None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of two prompts that have been read: keys that a branch sees, summed, and the position of the image."""
    drawer, state = entered(given)
    if plan is not None:
        state, _, _ = drawer._write("before", state, np.ones(2, bool), [{"before": plan}] * 2)
    found = {}
    for name in ("full", "notext", "noimg"):
        caches, position = branch(SEEING, state, name)
        cache = joined(caches)
        found[name] = np.asarray((cache.k * cache.mask[None, :, None, :, None]).sum(3)), np.asarray(position)
    return found


def test_the_branch_without_images_has_never_seen_one():
    with_images = branches(images())
    other_images = branches(images(seed=1))
    for a, b in zip(with_images["noimg"], other_images["noimg"], strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(with_images["full"][0] - other_images["full"][0]).max() > 1e-3
    texts = [len(sampler().tokenizer.encode(p)) + 2 for p in PROMPTS]
    np.testing.assert_array_equal(with_images["noimg"][1], texts)
    np.testing.assert_array_equal(with_images["full"][1], np.add(texts, SEEING.state_positions))


def test_the_branch_without_text_stands_where_the_text_began():
    keys, ids = branches(images())["notext"]
    np.testing.assert_array_equal(ids, [SEEING.state_positions] * 2)
    assert np.abs(keys).max() > 0
    keys, ids = branches(None)["notext"]
    np.testing.assert_array_equal(ids, [0, 0])
    assert np.abs(keys).max() == 0, "nothing is left of a prompt that is one text"


def test_a_plan_is_newer_than_the_prompt():
    ids = sampler().model.ids
    plan = np.array([ids.im_start, ids.ins, 20, ids.im_end, -1, -1, -1], np.int32)
    before, after = branches(images()), branches(images(), plan)
    np.testing.assert_allclose(after["notext"][0], before["full"][0], rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(after["notext"][1], before["full"][1])
    np.testing.assert_array_equal(after["full"][1], before["full"][1] + 4)
    np.testing.assert_array_equal(after["noimg"][1], before["noimg"][1] + 4)


def test_images_of_earlier_turns_are_unknown_to_the_branch_without_images():
    drawer, state = entered(images())
    rows = np.ones(2, bool)
    full, texts = [], []
    for seed in (0, 1):
        drawer, state = entered(images())
        given = [{"image": image} for image in images(seed + 2)]
        state, _, _ = drawer._image(state, rows, given)
        texts_before = np.asarray(state.texts.position)
        state = drawer._commit(state.with_fields(rows=rows))
        np.testing.assert_array_equal(state.texts.position, texts_before)
        for name, found in (("full", full), ("noimg", texts)):
            history = branch(SEEING, state, name)[0][0]
            found.append(np.asarray((history.k * history.mask[None, :, None, :, None]).sum(3)))
    np.testing.assert_array_equal(*texts)
    assert np.abs(texts[0]).max() == 0 and np.abs(full[0] - full[1]).max() > 1e-3


def test_a_later_draft_without_a_plan_stands_where_it_stood():
    """The prompt is then not the last that was said: it is left out, and nothing moves."""
    drawer, state = entered(None)
    state, _, _ = drawer._image(state, np.ones(2, bool), [{"image": image} for image in images()])
    state = drawer._commit(state.with_fields(rows=np.ones(2, bool)))
    (history, prompt, _), position = branch(SEEING, state, "notext")
    assert not prompt.mask.any() and np.asarray(history.mask).any()
    np.testing.assert_array_equal(position, state.position)


def test_an_edited_image_depends_on_its_own_input_only():
    one, two = images()
    both = sampler().sample(PROMPTS, seed=1, images=[one, two])
    alone = sampler().sample(PROMPTS[:1], seed=1, images=[one])
    other = sampler().sample(PROMPTS, seed=1, images=[one, one])
    np.testing.assert_allclose(*(x[0].image.astype(int) for x in (both, alone)), atol=1)
    assert np.abs(both[1].image.astype(int) - other[1].image.astype(int)).max() > 1


def test_an_answer_depends_on_the_image():
    asks = sampler(temperature=0.0, answer_tokens=9)
    first, second = (asks.answer(PROMPTS, images=images(seed)) for seed in (0, 1))
    assert len(first) == 2 and first != second
    assert asks.answer(PROMPTS[:1], images=images()[:1]) == first[:1]
