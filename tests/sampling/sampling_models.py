"""A small model with random weights, shared by the tests of this room."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable

import flax.linen as nn
import jax
import numpy as np

from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.models.config import SIZES
from process_gen.models.unified import UnifiedModel
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.controls import ControlIds
from process_gen.trajectory.layout import Layout
from tests.data.fake import fake_batch

LAYOUT = Layout(
    image_size=(16, 16),
    latent_grid=(2, 2),
    prompt=10,
    before=7,
    after=5,
    turns=5,
    trajectories=2,
    context="last",
)


def make_model(layout: Layout = LAYOUT) -> UnifiedModel:
    """The `debug` size with the tokens of the scenes language."""
    tokenizer = scenes_tokenizer()
    config = dataclasses.replace(SIZES["debug"], vocab_size=tokenizer.vocab_size + 7)
    return UnifiedModel(config, layout, ControlIds.of(tokenizer))


@functools.cache
def random_params(layout: Layout = LAYOUT):
    """Random weights, also where training starts with zeros."""
    batch, model = Batch(**fake_batch(layout, 1)), make_model(layout)
    abstract = nn.meta.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), batch))["params"])
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return (mean + 0.2 * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract)


class SpelledTokenizer:
    """The scenes tokenizer, but that every id has a text of its own: `#17`. What a random model writes
    comes back as the same ids."""

    def __init__(self):
        self._words = scenes_tokenizer()
        marks = {text: self._words.encode(text)[0] for text in ("<ins>", "</ins>", "<des>", "</des>")}
        self._marks = marks | {text: self._words.encode(text)[0] for text in ("<refine>", "</refine>")}

    def __getattr__(self, name: str):
        return getattr(self._words, name)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in re.split(r"(#\d+|</?(?:ins|des|refine)>)", text):
            if part in self._marks:
                ids.append(self._marks[part])
            elif part.startswith("#"):
                ids.append(int(part[1:]))
            else:
                ids += self._words.encode(part) if part else []
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        named = {i: text for text, i in self._marks.items()}
        return "".join(named.get(i, f"#{i}") for i in ids if i >= 0 and i not in self._words.reserved)
