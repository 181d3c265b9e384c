"""How often `lab.compare` finds a planted difference, and how often it sees one where there is none.

    python tests/benchmarks/compare_rates.py --repetitions=20 --steps=30 --seeds=3

Three arms are trained on the same batches and noise. `base` learns the sketches from targets of which some
have the wrong sign, `better` from right ones, and `equal` as `base` does with other signs drawn: nothing is
better or worse of it. All seeds are trained in one call, so that each arm is compiled once; every repetition
is a comparison over seeds of its own.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp

from process_gen import lab, losses
from process_gen.evaluation.statistics import wilson
from process_gen.experiment import cli
from process_gen.lab import comparing
from process_gen.reports.table import table


@losses.register("planted", stages=("sketch", "refine"))
def planted(outputs, batch, labels, key, *, stage, flipped=0.0):
    """|v_hat - v|^2 where a share of the targets is flipped."""
    sign = jnp.where(jax.random.bernoulli(key, flipped, outputs.target.shape[:-1]), -1.0, 1.0)
    values = jnp.square(outputs.velocity - sign[..., None] * outputs.target).mean(-1)
    weights = batch.image_weight * (outputs.has_target & losses.of_stage(batch, stage))
    return losses.Term(values, jnp.broadcast_to(weights[:, :, None, None], values.shape))


def arms(flipped: float) -> dict:
    """The three configs; all of them measure `sketch_flow`, which none trains on."""
    found = {}
    for name, row, share in (
        ("base", "sketch_planted", flipped),
        ("better", "sketch_planted", 0.0),
        ("equal", "sketch_others", flipped),  # the name of a row draws its numbers
    ):
        config = cli.load_config("configs/scenes.py:debug")
        with config.unlocked():
            weight = config.losses.sketch_flow.weight
            config.losses.sketch_flow.weight = 0.0
            config.losses[row] = dict(loss="planted", stage="sketch", weight=weight, flipped=share)
        found[name] = config.lock()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--flipped", type=float, default=0.3, help="share of targets with the wrong sign")
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error("--seeds must be at least 2: one has no spread")
    count = args.repetitions * args.seeds
    found = lab.compare(arms(args.flipped), args.steps, count, evaluations=1)
    if not found.finished:
        print("interrupted: the rates are of the repetitions that were done")
    done = min(len(points) for metrics in found.curves.values() for points in metrics.values())
    seen: dict[tuple[str, str], list[comparing.Difference]] = {}
    for first in range(0, done - args.seeds + 1, args.seeds):
        seeds = range(first, first + args.seeds)
        curves = {
            arm: {metric: {seed: points[seed] for seed in seeds} for metric, points in metrics.items()}
            for arm, metrics in found.curves.items()
        }
        for one in comparing.Comparison(curves, []).differences():
            seen.setdefault((one.arm, one.metric), []).append(one)
    rows = []
    for (arm, metric), ones in seen.items():
        counts = [sum(one.verdict == verdict for one in ones) for verdict in ("less", "more")]
        share, mean = sum(counts) / len(ones), sum(one.mean for one in ones) / len(ones)
        interval = wilson(share, len(ones))
        rows.append((arm, metric, mean, *counts, len(ones), str(interval)))
    print(table(rows, ("arm", "held out", "difference", "less", "more", "of", "called different"), digits=4))


if __name__ == "__main__":
    main()
