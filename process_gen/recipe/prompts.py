"""Where prompts come from: the world of scenes draws them, services have a file."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from process_gen.data.scenes_builder import default_mixture
from process_gen.recipe.parts import RecipeError
from process_gen.scenes.prompts import sample_request


class ScenePrompts:
    """Endless prompts of the training split; each stream has its own.

    Args:
      level: of the scenes world.
      seed: draws them.
    """

    def __init__(self, level: str, seed: int):
        self.level, self.seed = level, seed
        weights = default_mixture(level)
        self._names, self._shares = list(weights), list(weights.values())

    def numbers(self) -> Iterator[int]:
        return itertools.count()

    def prompt(self, stream: str, number: int) -> str:
        rng = generator(self.seed, stream, number)
        category = self._names[int(rng.choice(len(self._names), p=self._shares))]
        return sample_request(rng, self.level, category).text


class FilePrompts:
    """The lines of a file; every stream has the same ones.

    Raises:
      RecipeError: it cannot be read, or holds no prompt.
    """

    def __init__(self, path: str):
        if not path:
            raise RecipeError("config.prompts=FILE is needed: a prompt in each line")
        try:
            text = pathlib.Path(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"config.prompts: cannot read {path}: {error}") from None
        self.lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not self.lines:
            raise RecipeError(f"config.prompts: {path} holds no prompt: it needs one in each line")

    def numbers(self) -> Iterator[int]:
        return iter(range(len(self.lines)))

    def prompt(self, stream: str, number: int) -> str:
        return self.lines[number]


def prompts_of(config: Any) -> ScenePrompts | FilePrompts:
    """The prompts of a recipe by number, the same ones in every run. Raises RecipeError."""
    if config.world == "scenes":
        return ScenePrompts(config.scenes.level, config.seed)
    return FilePrompts(config.prompts)


def generator(seed: int, stream: str, number: int) -> np.random.Generator:
    """The random generator of one candidate, the same in every run."""
    return np.random.default_rng([seed, *stream.encode(), number])
