"""Trajectories a second of the sampler on this machine; nothing is asserted.

    python tests/benchmarks/sampling.py                                  # the shipped weights, 48 prompts
    python tests/benchmarks/sampling.py --prompts=200 --batch_size=50 --mode=plan_only
    python tests/benchmarks/sampling.py --text_scale=2 --image_scale=1.5 --dtype=bfloat16

Prompts are those of the held-out benchmark. The first run compiles and is not
counted. "rows at work" is the share of the rows that held a trajectory in a round of
turns; a run ends with fewer and fewer of them.
"""

from __future__ import annotations

from absl import flags

from process_gen.experiment import cli  # before what reads its settings when it is imported

# isort: split
import time

from process_gen.evaluation.tasks.scenes import Scenes
from process_gen.reports.table import table
from process_gen.sampling import Sampler
from process_gen.weights import restore

flags.DEFINE_string("workdir", None, "Run folder or weights file; the shipped weights by default.")
flags.DEFINE_integer("prompts", 48, "How many are drawn.", lower_bound=1)
flags.DEFINE_integer("batch_size", 24, "Trajectories drawn side by side.", lower_bound=1)
flags.DEFINE_integer("repeats", 2, "Runs that are timed; the best one counts.", lower_bound=1)
flags.DEFINE_string("mode", None, "Of trajectories; what the model was trained for by default.")
flags.DEFINE_string("dtype", None, "Of the computation; the run's by default.")
flags.DEFINE_integer("flow_steps", None, "Euler steps per image; the run's by default.")
flags.DEFINE_float("text_scale", None, "Guidance by the newest text; the run's by default.")
flags.DEFINE_float("image_scale", None, "Guidance by the images; the run's by default.")

SETTINGS = ("mode", "flow_steps", "text_scale", "image_scale")


def timed(sampler: Sampler, prompts: list[str], seed: int) -> dict[str, float]:
    """One run: its seconds, and what was drawn."""
    rounds, finished, started = 0, [], time.perf_counter()
    for progress in sampler.stream(prompts, seed):
        rounds += 1
        finished += [one for _, one in progress.finished]
    seconds, turns = time.perf_counter() - started, [t for one in finished for t in one.turns]
    return {
        "seconds": seconds,
        "trajectories/s": len(finished) / seconds,
        "images/s": len(turns) / seconds,
        "turns of a trajectory": len(turns) / len(finished),
        "corrections": sum(t.refines for t in turns),
        "rows at work": len(turns) / (rounds * sampler.rows),
    }


def main(argv: list[str]) -> None:
    del argv
    values = flags.FLAGS
    settings = {name: getattr(values, name) for name in SETTINGS if getattr(values, name) is not None}
    sampler, restored = restore.load_sampler(
        values.workdir, rows=values.batch_size, dtype=values.dtype, **settings
    )
    docs = Scenes(level=restored.level_name, per_group=-(-values.prompts // 8)).docs()
    prompts = [doc.input for doc in docs][: values.prompts]
    started = time.perf_counter()
    sampler.sample(prompts[: values.batch_size], seed=0)
    first = time.perf_counter() - started
    runs = [timed(sampler, prompts, seed) for seed in range(1, values.repeats + 1)]
    best = min(runs, key=lambda run: run["seconds"])
    rows = [
        ("prompts, rows", f"{len(prompts)}, {sampler.rows}"),
        ("first run, with compilation", f"{first:.1f} s"),
    ]
    rows += [(name, f"{value:.2f}") for name, value in best.items()]
    print(table(rows, ("sampling", f"{sampler.config.flow_steps} Euler steps an image")))


if __name__ == "__main__":
    cli.run(main, restore.ERRORS)
