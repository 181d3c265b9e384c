"""How much noise the parser survives, and what it costs."""

from __future__ import annotations

import time

import numpy as np

from process_gen.scenes.graph import Scene, scene_from_json
from process_gen.scenes.levels import Level, get_level
from process_gen.scenes.parse import parse_batch
from process_gen.scenes.prompts import sample_request
from process_gen.scenes.render import render
from process_gen.scenes.requests import categories
from process_gen.scenes.teacher import baseline
from process_gen.trajectory.stages import Mode

SIGMAS = (0.0, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2)


def sample_scenes(level: str | Level, count: int, rng: np.random.Generator) -> list[Scene]:
    """Final scenes of held-out requests of every category in turn."""
    level = get_level(level)
    names = categories(level)
    found = []
    for index in range(count):
        request = sample_request(rng, level, names[index % len(names)], "heldout")
        trajectory = baseline(request, rng, level, Mode.SINGLE_PASS, "heldout")
        found.append(scene_from_json(trajectory.metadata["scenes"][0], level))
    return found


def read_back(
    scenes: list[Scene], level: str | Level, sigma: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Renders scenes, adds Gaussian noise and parses them.

    Args:
      sigma: deviation of the noise, on the [0, 1] scale of the image.

    Returns:
      The share that is read back exactly (shapes, colours, cells, sizes, nothing
      more and nothing less), and the milliseconds that parsing one took.
    """
    images = np.stack([render(scene, level) for scene in scenes])
    noisy = np.rint(images + rng.normal(0, sigma * 255, images.shape)).clip(0, 255).astype(np.uint8)
    start = time.perf_counter()
    parsed = parse_batch(noisy, level)
    elapsed = time.perf_counter() - start
    exact = np.mean([a.key() == b.key() for a, b in zip(scenes, parsed, strict=True)])
    return float(exact), elapsed / len(scenes) * 1e3


def noise_curve(
    level: str | Level, count: int = 500, seed: int = 0, sigmas: tuple[float, ...] = SIGMAS
) -> list[tuple[float, float, float]]:
    """(sigma, share read back exactly, milliseconds an image) for each sigma."""
    rng = np.random.default_rng(seed)
    scenes = sample_scenes(level, count, rng)
    return [(sigma, *read_back(scenes, level, sigma, rng)) for sigma in sigmas]
