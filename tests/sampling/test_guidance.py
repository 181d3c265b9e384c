"""Contexts of their own: what a branch of guidance reads is as if the rest had never been said."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
from sampling_models import LAYOUT, make_model, random_params

from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.sampling import Sampler, SamplerConfig, stages

SEEING = dataclasses.replace(LAYOUT, prompt_image=True, instruction=8, vit_grid=(2, 1))
CONFIG = SamplerConfig(
    flow_steps=3, text_scale=4.0, image_scale=1.5, contexts="own", mode="single_pass", interval=(0.0, 1.0)
)
PROMPTS = ["a red circle", "two blue stars"]


@functools.cache
def sampler(**changes) -> Sampler:
    config = dataclasses.replace(CONFIG, **changes)
    return Sampler(make_model(SEEING), random_params(SEEING), scenes_tokenizer(), config, rows=2)


def images(seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (2, 16, 16, 3), np.uint8))


def branches(given) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of two prompts that have been read: keys that a branch sees, summed, and the id of the image."""
    drawer = sampler()
    rows = drawer._rows_of(PROMPTS, 0, given)
    contexts = drawer._enter(None, rows, np.ones(2, bool))
    work = drawer._work(contexts, np.ones(2, bool), jax.random.split(jax.random.key(0), 2))
    found = {}
    for name in ("full", "notext", "noimg"):
        memory, ids = stages.branch_memory(SEEING, "sketch", work, name, own=True)
        seen = memory.visible[None, :, None, :, None]
        found[name] = np.asarray((memory.k * seen).sum(3)), np.asarray(ids)
    return found


def test_the_branch_without_images_has_never_seen_one():
    with_images = branches(images())
    other_images = branches(images(seed=1))
    for a, b in zip(with_images["noimg"], other_images["noimg"], strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(with_images["full"][0] - other_images["full"][0]).max() > 1e-3
    texts = [len(sampler().tokenizer.encode(p)) + 2 for p in PROMPTS]
    np.testing.assert_array_equal(with_images["noimg"][1], texts)
    np.testing.assert_array_equal(with_images["full"][1], np.add(texts, SEEING.state_ids))


def test_the_branch_without_text_stands_where_the_text_began():
    keys, ids = branches(images())["notext"]
    np.testing.assert_array_equal(ids, [SEEING.state_ids] * 2)
    assert np.abs(keys).max() > 0
    keys, ids = branches(None)["notext"]
    np.testing.assert_array_equal(ids, [0, 0])
    assert np.abs(keys).max() == 0, "nothing is left of a prompt that is one text"


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
