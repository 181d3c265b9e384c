"""How often the intervals of `evaluation.statistics` hold the truth; nominal are 95%.

    python tests/benchmarks/coverage.py --rounds=4000

Prompts differ in how hard they are (a beta distribution of the given correlation between images of one
prompt); a score is the mean over groups of equal weight, each of its own difficulty.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

from process_gen.evaluation.statistics import difference, score_interval
from process_gen.reports.table import table


def draw(rng: np.random.Generator, share: float, alike: float, prompts: int, images: int) -> np.ndarray:
    """[prompts, images] of 0 and 1: images of a prompt are correlated by `alike`."""
    if alike == 0:
        return (rng.random((prompts, images)) < share).astype(float)
    size = (1 - alike) / alike
    hard = rng.beta(share * size, (1 - share) * size, (prompts, 1))
    return (rng.random((prompts, images)) < hard).astype(float)


def coverage(
    share: float, alike: float, prompts: int, images: int, groups: int, rounds: int, seed: int = 0
) -> tuple[float, float]:
    """The share of rounds whose interval holds the truth: of a score, and of the difference of two arms."""
    rng, held, paired = np.random.default_rng(seed), 0, 0
    shares = np.clip(share + np.linspace(-0.1, 0.1, groups), 0.02, 0.98) if groups > 1 else [share]
    names = np.repeat([f"g{g}" for g in range(groups)], prompts * images)
    clusters = np.repeat([f"p{n}" for n in range(groups * prompts)], images)
    weights = {f"g{g}": 1 / groups for g in range(groups)}
    for _ in range(rounds):
        first, second = (
            np.concatenate([draw(rng, s, alike, prompts, images).ravel() for s in shares]) for _ in range(2)
        )
        one = score_interval(names, clusters, first, weights)
        held += one.low <= np.mean(shares) <= one.high
        gap = difference(names, clusters, first - second, weights)
        paired += gap.low <= 0 <= gap.high
    return held / rounds, paired / rounds


CASES = tuple(
    (share, alike, prompts, images, groups)
    for share in (0.05, 0.1, 0.3, 0.5, 0.9)
    for prompts, images, alike, groups in (
        (10, 1, 0.0, 1), (20, 1, 0.0, 1), (40, 1, 0.0, 1), (20, 4, 0.7, 1), (40, 4, 0.7, 1), (100, 4, 0.5, 1),
        (300, 1, 0.0, 1),
        (20, 1, 0.0, 6), (40, 4, 0.3, 6), (80, 4, 0.7, 6),
    )
)  # fmt: skip


def rows(rounds: int) -> Iterator[tuple]:
    """Each case, and how often its intervals hold the truth."""
    for case in CASES:
        yield *case, *coverage(*case, rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2_000)
    found = list(rows(parser.parse_args().rounds))
    print(table(found, ["score", "alike", "prompts", "images", "groups", "score held", "difference held"]))
