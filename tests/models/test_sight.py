"""Who sees whom, by gradients: 0 for what may not be seen, and for nothing else.

With one layer a token depends on what it sees, and not on what those see in turn.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.models.config import ORDERS
from process_gen.models.content import prompt_inputs, turn_inputs
from process_gen.models.unroll import run_turns
from process_gen.trajectory.batch import PAD_ID
from tests.models.tiny import IDS, VIT, make_batch, make_model

TURNS, PROMPTS = 8, 2
REFINES = (0, 0, 1, 1, 0, 0, 0, 1)
"""The third turn corrects the second one, and is corrected; the last two are a trajectory of their own."""
FIRST = (1, 0, 0, 0, 0, 0, 1, 0)

SEEN = {
    "full": """
        .   .   .   .   .   .   .   .
        bia .   .   .   .   .   .   .
        bia bia .   .   .   .   .   .
        bia bia bia .   .   .   .   .
        bia bia bia bia .   .   .   .
        bia bia bia bia bia .   .   .
        .   .   .   .   .   .   .   .
        .   .   .   .   .   .   bia .""",
    "step": """
        .   .   .   .   .   .   .   .
        bi  .   .   .   .   .   .   .
        bi  bia .   .   .   .   .   .
        bi  bia bia .   .   .   .   .
        .   b   b   bi  .   .   .   .
        .   .   .   .   bi  .   .   .
        .   .   .   .   .   .   .   .
        .   .   .   .   .   .   bia .""",
    "last": """
        .   .   .   .   .   .   .   .
        i   .   .   .   .   .   .   .
        i   bia .   .   .   .   .   .
        i   bia bia .   .   .   .   .
        .   .   .   i   .   .   .   .
        .   .   .   .   i   .   .   .
        .   .   .   .   .   .   .   .
        .   .   .   .   .   .   bia .""",
}
"""What turns (rows) see of earlier ones (columns): b and a, the texts before and after, and i, the image."""
OWN = {"before": "b", "velocity": "bn", "image_end": "bi", "after": "bia"}
"""What the parts of a turn see of their own one; n is the noised image."""
LETTERS = {"before": "b", "noised_0": "n", "image": "i", "image_vit": "i", "after": "a"}
WORDS = {"before": 8, "after": 16, "prompt": 24}
"""The first of as many words that stand in one text each."""


@functools.cache
def row():
    """One row in which every text has a word that no other one has."""

    def texts(first: int, count: int, size: int):
        words = [[IDS.im_start, first + i, IDS.im_end] + [PAD_ID] * (size - 3) for i in range(count)]
        return jnp.asarray([words], jnp.int32)

    rng, changes = np.random.default_rng(0), dict(turns=TURNS, copies=1, vit_grid=VIT)
    batch = make_batch(1, **changes)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal((1, TURNS, *shape)), jnp.float32)

    turns = turn_inputs(
        jnp.ones((1, TURNS), bool),
        texts(WORDS["before"], TURNS, 7),
        texts(WORDS["after"], TURNS, 5),
        normal(4, 48),
        normal(1, 4, 48),
        jnp.full((1, TURNS, 1), 0.5),
        normal(VIT[0] * VIT[1], 27),
        keep={name: jnp.ones((1, TURNS), bool) for name in ("image", "image_vit")},
    )
    first = jnp.asarray([FIRST], bool)
    refines = jnp.asarray([REFINES], bool)
    batch = batch.replace(is_first=first, refines=refines, prompt_index=jnp.cumsum(first, axis=1) - 1)
    return changes, batch, prompt_inputs(texts(WORDS["prompt"], PROMPTS, 6)), turns


@functools.cache
def gradients(context: str, order: str):
    """A jitted function of what is kept: by what asks and what is asked about, [asking turns, turns] bool."""
    changes, batch, prompts, turns = row()
    model, params = make_model(layers=1, context=context, **changes)
    sources = {"latents": turns.latents, "vit": turns.vit}

    def asked(embedding, sources, keep):
        fed = turns.replace(**sources, keep=keep)
        found = run_turns(model, params | {"embedding": embedding}, batch, prompts, fed, order)[1]
        return jnp.stack([jnp.sin(found[name][0]).reshape(TURNS, -1).sum(1) for name in OWN])

    @jax.jit
    def which(keep):
        values, pull = jax.vjp(lambda *x: asked(*x, keep), params["embedding"], sources)
        one_by_one = jnp.eye(values.size).reshape(-1, *values.shape)
        of_words, of_sources = jax.lax.map(pull, one_by_one)
        words = (of_words != 0).any(-1)
        seen = {name: words[:, first : first + TURNS] for name, first in WORDS.items()}
        for name, x in (of_sources["latents"] | of_sources["vit"]).items():
            seen[name] = (x[:, 0] != 0).reshape(len(x), TURNS, -1).any(-1)
        seen["prompt"] = seen["prompt"][:, :PROMPTS]
        return {asks: {n: x[i * TURNS :][:TURNS] for n, x in seen.items()} for i, asks in enumerate(OWN)}

    return which


def wanted(context: str, asks: str) -> dict[str, np.ndarray]:
    table = np.array([line.split() for line in SEEN[context].strip().splitlines()])
    own = np.eye(TURNS, dtype=bool)
    found = {}
    for name, letter in LETTERS.items():
        found[name] = np.vectorize(lambda cell, letter=letter: letter in cell)(table)
        found[name] |= own & (letter in OWN[asks])
    draws = np.cumsum(FIRST) - 1
    return found | {"prompt": draws[:, None] == np.arange(PROMPTS)[None]}


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("context", SEEN)
def test_turns_see_what_the_policy_says_and_nothing_else(context, order):
    keep = row()[3].keep
    found = gradients(context, order)(keep)
    for asks in OWN:
        for name, seen in wanted(context, asks).items():
            np.testing.assert_array_equal(found[asks][name], seen, f"{asks} of {name}")
    # An image that is left out, and one without its latents or its ViT tokens.
    keep = {name: x.at[0, 1].set(False) for name, x in keep.items()}
    keep = {"image": keep["image"].at[0, 3].set(False), "image_vit": keep["image_vit"].at[0, 4].set(False)}
    found = gradients(context, order)(keep)
    for asks in ("before", "velocity", "after"):
        for name, seen in wanted(context, asks).items():
            if name in keep:
                seen = seen & np.asarray(keep[name])
            np.testing.assert_array_equal(found[asks][name], seen, f"{asks} of {name}")
