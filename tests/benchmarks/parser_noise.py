"""How often rendered scenes are read back exactly under noise, and how long that takes.

python tests/benchmarks/parser_noise.py --level=free64 --count=100
"""

from __future__ import annotations

import argparse
import collections
import time

import numpy as np

from process_gen.scenes.graph import Scene, scene_from_json
from process_gen.scenes.levels import LEVELS
from process_gen.scenes.parse import parse
from process_gen.scenes.prompts import sample_request
from process_gen.scenes.render import render
from process_gen.scenes.requests import categories
from process_gen.scenes.teacher import baseline
from process_gen.trajectory.stages import Mode

SIGMAS = (0.0, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2)


def shown(scene: Scene) -> collections.Counter:
    """What is drawn where, whatever the order: equal ones look equal to the judge."""
    return collections.Counter((o.shape, o.colour, o.cell, o.size) for o in scene.objects)


def sample_scenes(level: str, count: int, rng: np.random.Generator) -> list[Scene]:
    """Final scenes of held-out requests of every category in turn."""
    names, found = categories(level), []
    for index in range(count):
        request = sample_request(rng, level, names[index % len(names)], "heldout")
        trajectory = baseline(request, rng, Mode.SINGLE_PASS)
        found.append(scene_from_json(trajectory.metadata["scenes"][0], level))
    return found


def read_back(scenes: list[Scene], level: str, sigma: float, rng: np.random.Generator) -> tuple[float, float]:
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
    parsed = [parse(image, level) for image in noisy]
    elapsed = time.perf_counter() - start
    exact = np.mean([shown(a) == shown(b) for a, b in zip(scenes, parsed, strict=True)])
    return float(exact), elapsed / len(scenes) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--level", default="default", choices=list(LEVELS))
    parser.add_argument("--count", type=int, default=500, help="scenes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    scenes = sample_scenes(args.level, args.count, rng)
    for sigma in SIGMAS:
        share, milliseconds = read_back(scenes, args.level, sigma, rng)
        print(f"sigma {sigma:.3f}  read back {share:7.2%}  {milliseconds:.3f} ms an image")


if __name__ == "__main__":
    main()
