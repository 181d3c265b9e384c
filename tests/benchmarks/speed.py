"""How fast the train step and the sampler are on this machine; nothing is asserted.

    python tests/benchmarks/speed.py --config=configs/scenes.py:quick
    python tests/benchmarks/speed.py --config=configs/scenes.py:debug --config.train.batch_size=8 --what=train
    python tests/benchmarks/speed.py --config.model.size=scenes_m --profile=/tmp/profile

The share of the peak is taken against the best square matrix product of the
same run. "useful" counts tokens that are not padding, "computed" every slot;
scores that a mask throws away and what the backward pass recomputes count in
neither. Random weights and random batches: only the clock is looked at.
`tests/benchmarks/sweep.py` does the same for many sizes of the batch.
"""

from __future__ import annotations

from absl import flags

from process_gen.experiment import cli

if __name__ == "__main__":  # bad flags are found before the slow imports
    flags.DEFINE_enum("what", "both", ("train", "sample", "both"), "What to measure.")
    flags.DEFINE_integer("repeats", 5, "Train steps that are timed.", lower_bound=1)
    flags.DEFINE_integer("prompts", 0, "Prompts to sample; config.eval.batch_size by default.", lower_bound=0)
    flags.DEFINE_string("profile", None, "Folder for a profiler trace of one train step and one prompt.")
    cli.read_flags(config="configs/scenes.py:quick")

# isort: split
import contextlib
import dataclasses
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.evaluation.tasks.scenes import Scenes
from process_gen.experiment import builders
from process_gen.models import cost
from process_gen.models.unified import UnifiedModel
from process_gen.reports.table import table
from process_gen.sampling import Sampler, SamplerConfig
from process_gen.training import metering
from process_gen.training.amounts import amounts
from process_gen.training.program import build_recipe
from process_gen.training.step import init_state, make_train_step
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.sampled import SampledTrajectory

sys.path.append(str(pathlib.Path(__file__).parents[2]))  # the folder that holds `tests`
from tests.data.fake import fake_batch  # noqa: E402

Row = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class TrainTiming:
    """A timed train step.

    Attributes:
      rows, slots: of the batch, and turn slots of a row.
      compile_seconds: of the step.
      seconds: of every timed step.
      held: what the batch holds (`amounts`, without `batch/`).
      flops: `useful` and `executed` FLOP of a step by part.
      params: the parameters at the end.
    """

    rows: int
    slots: int
    compile_seconds: float
    seconds: tuple[float, ...]
    held: dict[str, float]
    flops: dict[str, dict[str, float]]
    params: Any

    @property
    def best(self) -> float:
        """Seconds of the quickest step; the first still pays for warming up."""
        return min(self.seconds[1:] or self.seconds)

    def tokens(self, of: str) -> float:
        """Tokens a second, `of` the useful ones or of all slots."""
        useful = self.held["und_tokens"] + self.held["gen_tokens"]
        return (useful if of == "useful" else self.held["slots"]) / self.best

    def share(self, of: str, peak: float) -> float:
        """Share of `peak` FLOP/s, `of` the useful or the executed ones."""
        return sum(self.flops[of].values()) / self.best / peak


def time_train(config: ConfigDict, repeats: int, profile: str | None = None) -> TrainTiming:
    """Times the train step of a config."""
    model = builders.build_model(config, scenes_tokenizer())
    recipe = build_recipe(config, model)
    rows, layout = config.train.batch_size, model.layout
    batch = jax.device_put(Batch(**fake_batch(layout, rows, seed=0, vocab=scenes_tokenizer().vocab_size)))
    init = jax.jit(lambda key: nn.unbox(init_state(recipe, Batch.spec(layout, rows), key)))
    state = init(jax.random.key(0))
    started = time.perf_counter()
    step = jax.jit(make_train_step(recipe), donate_argnums=0).lower(state, batch).compile()
    compiled = time.perf_counter() - started

    state, _ = jax.block_until_ready(step(state, batch))
    seconds = []
    for i in range(repeats):
        with _trace(profile if i == 0 else None):
            started = time.perf_counter()
            state, _ = jax.block_until_ready(step(state, batch))
        seconds.append(time.perf_counter() - started)
    held = {name.removeprefix("batch/"): float(value) for name, value in amounts(layout, batch).items()}
    program = cost.Program(recipe.options.order, jax.default_backend())
    return TrainTiming(
        rows=rows,
        slots=layout.turns,
        compile_seconds=compiled,
        seconds=tuple(seconds),
        held=held,
        flops={
            "useful": cost.useful(model.config, layout, held),
            "executed": cost.executed(model.config, layout, held, program),
        },
        params=state.params,
    )


def measure_train(
    config: ConfigDict, peak: float, repeats: int, profile: str | None
) -> tuple[list[Row], Any]:
    """Times the train step; returns lines for the table, and the parameters."""
    timing = time_train(config, repeats, profile)
    best, median = timing.best, np.median(timing.seconds)
    parts = {part: flops / best / peak for part, flops in timing.flops["useful"].items() if flops}
    lines = [
        ("train: rows x turn slots", f"{timing.rows} x {timing.slots}"),
        ("train: compilation", f"{timing.compile_seconds:.1f} s"),
        (f"train: step, best of {repeats}", f"{best * 1e3:.0f} ms (median {median * 1e3:.0f})"),
        ("train: tokens/s, useful", f"{timing.tokens('useful'):,.0f}"),
        ("train: tokens/s, computed", f"{timing.tokens('slots'):,.0f}"),
        ("train: turns/s", f"{timing.held['turns'] / best:,.1f}"),
        ("train: share of peak, useful", f"{timing.share('useful', peak):.1%}"),
        *((f"train:   of that, {part}", f"{share:.1%}") for part, share in parts.items()),
        ("train: share of peak, executed", f"{timing.share('executed', peak):.1%}"),
    ]
    return lines, timing.params


def measure_sampler(
    config: ConfigDict, params: Any, peak: float, count: int, profile: str | None
) -> list[Row]:
    """Times sampling of benchmark prompts; the second call, so without compilation."""
    model = builders.build_model(config, scenes_tokenizer())
    if params is None:
        params = nn.unbox(jax.jit(model.init)(jax.random.key(0), _zeros(model)))["params"]
    count = count or config.eval.batch_size
    settings = SamplerConfig.of(config.sampling.to_dict(), mode=config.data.mode)
    sampler = Sampler(model, params, scenes_tokenizer(), settings, rows=min(count, config.eval.batch_size))
    docs = Scenes(level=config.data.get("level", "default"), per_group=-(-count // 8)).docs()
    prompts = [doc.input for doc in docs][:count]
    started = time.perf_counter()
    sampler.sample(prompts, seed=0)
    first = time.perf_counter() - started
    started = time.perf_counter()
    drawn = sampler.sample(prompts, seed=1)
    seconds = time.perf_counter() - started
    if profile:
        with _trace(profile):
            sampler.sample(prompts[:1], seed=0)

    turns = sum(len(one.turns) for one in drawn)
    flops = _sampling_flops(model, drawn)
    return [
        ("sample: prompts, rows", f"{len(prompts)}, {sampler.rows}"),
        ("sample: first call, with compilation", f"{first:.1f} s"),
        ("sample: trajectories/s", f"{len(drawn) / seconds:,.2f}"),
        ("sample: images/s", f"{turns / seconds:,.2f} at {settings.flow_steps} Euler steps"),
        ("sample: share of peak", f"{flops / seconds / peak:.1%}"),
    ]


def _zeros(model: UnifiedModel) -> Batch:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), Batch.spec(model.layout, 1))


def _sampling_flops(model: UnifiedModel, drawn: Sequence[SampledTrajectory]) -> float:
    """FLOP of the tokens that sampling had to go through: texts once, images per Euler step; no scores."""
    tokenizer = scenes_tokenizer()
    texts = [one.prompt for one in drawn]
    for one in drawn:
        texts += [text for turn in one.turns for text in (turn.before, turn.after) if text]
    words = sum(len(tokenizer.encode(text)) + 2 for text in texts)
    images = sum(one.sampling_steps for one in drawn)
    held = {
        "und_tokens": words + 2 * images,
        "head_tokens": words,
        "gen_tokens": images * model.layout.latents,
    }
    return sum(cost.forward(model.config, model.layout, held).values())


def _trace(folder: str | None) -> contextlib.AbstractContextManager:
    return jax.profiler.trace(folder) if folder else contextlib.nullcontext()


def main(argv: Sequence[str]) -> None:
    """Prints the table."""
    del argv
    values = flags.FLAGS
    config = values.config
    builders.check(config)
    peak = metering.measured_peak(config.model.dtype)
    lines: list[Row] = [
        ("device", jax.devices()[0].device_kind),
        ("model", f"{config.model.size}, {config.model.dtype}"),
        ("matrix product, measured", f"{peak / 1e9:,.0f} GFLOP/s"),
    ]
    params = None
    if values.what != "sample":
        found, params = measure_train(config, peak, values.repeats, values.profile)
        lines += found
    if values.what != "train":
        lines += measure_sampler(config, params, peak, values.prompts, values.profile)
    print(table(lines, ("", "measured")))


if __name__ == "__main__":
    cli.run(main, (builders.ConfigError, OSError))
