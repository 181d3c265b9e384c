"""Trains a process-driven image generator.

    python -m process_gen.train --config=configs/scenes.py:quick --workdir=runs/quick

Builds the data set if it is not there, resumes from the newest checkpoint of
the workdir, and ends with the benchmark's table, a plot and a page of sampled
trajectories in `workdir/evaluation`. New behaviour enters through losses, data
and the config, not through this loop.
"""

from __future__ import annotations

from process_gen import cli

if __name__ == "__main__":  # bad flags are found before the slow imports
    cli.read_flags(
        config="configs/scenes.py:quick", workdir="Folder of the run: checkpoints, logs and pictures."
    )

# isort: split
import dataclasses
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from clu import metric_writers, parameter_overview
from ml_collections import ConfigDict

from process_gen import ahead, evaluate, experiment, metering, vocabulary
from process_gen.checkpoints.errors import CheckpointError
from process_gen.checkpoints.store import CheckpointStore
from process_gen.data.encode import BadTrajectory
from process_gen.data.loader import make_loader
from process_gen.data.packing import Policy, TooManyBadTrajectories, allowance
from process_gen.data.sources import prepare_source, with_latents
from process_gen.distributed import hosts, sharding
from process_gen.distributed.mesh import MeshConfig, MeshError, make_mesh
from process_gen.evaluation import benchmark as benchmarks
from process_gen.evaluation.results import Results
from process_gen.reports import images, plots
from process_gen.reports.strip import sheet
from process_gen.sampling import Sampler, SamplerConfig
from process_gen.start import start_from
from process_gen.train_step import Recipe, TrainState, init_state, make_train_step
from process_gen.trajectory.batch import Batch


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient is not a number; the last good state is on disk."""


def train(config: ConfigDict, workdir: str) -> TrainState:
    """Runs the training that a config describes.

    Args:
      config: see `configs/scenes.py`.
      workdir: checkpoints, logs and pictures go here; a run found here is resumed.

    Returns:
      The last state.

    Raises:
      ConfigError, MeshError: the config cannot work.
      BadTrajectory, TooManyBadTrajectories: the data is broken.
      CheckpointError: the workdir holds something that cannot be resumed.
      NonFiniteLoss: after saving the last good state.
    """
    # ------------------------------------------------------- devices and mesh
    experiment.check(config)
    hosts.initialize()
    mesh = make_mesh(MeshConfig(**config.mesh.to_dict()))
    logging.info("mesh %s over %d %s", dict(mesh.shape), jax.device_count(), jax.devices()[0].device_kind)

    # ------------------------------------------------------------------ model
    tokenizer = vocabulary.build_tokenizer(config)
    model = experiment.build_model(config, tokenizer)
    losses = experiment.build_losses(config)
    optimizer, schedule = experiment.build_optimizer(config)
    c = config.train
    recipe = Recipe(
        model,
        losses,
        experiment.build_unroll_options(config),
        optimizer,
        schedule,
        ema=config.optimizer.ema,
        accumulate=c.accumulate,
    )
    sampler_config = SamplerConfig(mode=config.data.mode, **config.sampling.to_dict())

    # ------------------------------------------------------------------- data
    sharding.rows_divide(c.batch_size, mesh)
    rows = experiment.rows_per_host(config)
    with experiment.as_config_error():
        source = prepare_source(config.data, model.layout, tokenizer, report=logging.info)
        source = with_latents(source, config.data, model.layout)
    ahead.check_autoencoder(config)
    loader = make_loader(
        source,
        tokenizer,
        model.layout,
        rows,
        seed=config.seed,
        shard_index=hosts.process_index(),
        shard_count=hosts.process_count(),
        policy=Policy(bad=config.data.on_error, budget=allowance(len(source))),
    )
    logging.info("%s", loader.report())
    iterator = iter(loader)

    # ------------------------------------------------------------------ state
    spec = Batch.spec(model.layout, c.batch_size)
    state, shardings = sharding.create_state(
        lambda key: init_state(recipe, spec, key, sharding.unbox), jax.random.key(config.seed), mesh=mesh
    )
    parameter_overview.log_parameter_overview(state.params, msg="parameters")

    # ------------------------------------------------------------------- step
    step_function = jax.jit(
        make_train_step(recipe),
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )

    # ---------------------------------------------------------------- restore
    metadata = {"config": experiment.to_json(config), **vocabulary.describe(config, tokenizer)}
    store = CheckpointStore(workdir, metadata, save_every=c.checkpoint_every, keep=c.keep)
    with store:
        first = store.latest_step() or 0
        if first:
            vocabulary.check_same(tokenizer, store.metadata(first), str(store.root / str(first)))
            with experiment.as_config_error():  # the iterator refuses the state of other data
                state = store.restore(state, iterator)
            logging.info("resumed from step %d of %s", first, workdir)
        elif origin := c.get("init", ""):
            state = start_from(state, model, origin, tokenizer)
            logging.info("started from the weights of %s", origin)
        run = Run(config, pathlib.Path(workdir), model, tokenizer, sampler_config)
        meter = run.meter(state, first)

        # --------------------------------------------------------------- loop
        pending: tuple[int, Any, float] | None = None
        if first == 0:
            logging.info("compiling the train step")
        for step in range(first + 1, c.steps + 1):
            with run.profile(step - first):
                started = time.perf_counter()
                host_batch = next(iterator)
                waited = time.perf_counter() - started
                batch = sharding.shard_batch(Batch(**host_batch), mesh)
                state, metrics = step_function(state, batch)
            if pending:
                _check(run.log(meter, *pending), store, state, iterator)
            pending = (step, metrics, waited)
            if step == first + 1:
                run.first_batch(host_batch)
                jax.block_until_ready(metrics)
                meter.restart()
            if store.due(step) and step < c.steps:
                store.save(step, state, iterator)
            if run.pictures_due(step):
                run.pictures(step, state)
                meter.restart()
        if pending:
            _check(run.log(meter, *pending), store, state, iterator)
        store.wait()
        if store.latest_step() != c.steps:
            store.save(c.steps, state, iterator)
            store.wait()
    iterator.close()

    # ------------------------------------------------------------------- end
    if hosts.is_lead():
        run.finish(state)
    return state


def _check(metrics: dict[str, float], store: CheckpointStore, state: TrainState, iterator: Any) -> None:
    """Stops a run whose step was not finite; such a step never changed the state."""
    if metrics["finite"]:
        return
    store.wait()
    step = int(state.step)
    if (store.latest_step() or 0) < step:
        store.save(step, state, iterator)
        store.wait()
    parts = {name: value for name, value in metrics.items() if not np.isfinite(value)}
    raise NonFiniteLoss(
        f"not finite: {', '.join(sorted(parts)) or 'the gradient'}. The last good state, step "
        f"{store.latest_step()}, is saved. Lower --config.optimizer.learning_rate or look at the data, "
        "and start the same command again."
    )


class Run:
    """What a run writes besides checkpoints: metrics, pictures, and the report at its end."""

    def __init__(
        self, config: ConfigDict, workdir: pathlib.Path, model, tokenizer, sampler_config: SamplerConfig
    ):
        self.config, self.workdir = config, workdir
        self.model, self.tokenizer, self.sampler_config = model, tokenizer, sampler_config
        self.writer = metric_writers.create_default_writer(
            str(workdir), just_logging=not hosts.is_lead(), asynchronous=False
        )
        if hosts.is_lead():
            self.writer = _Quiet(self.writer)
            vocabulary.keep(tokenizer, workdir)
            (workdir / "config.json").write_text(json.dumps(experiment.to_json(config), indent=1) + "\n")
        self.sampler: Sampler | None = None
        self.curves: dict[str, list[tuple[int, float]]] = {}

    def meter(self, state: TrainState, first: int) -> metering.Meter:
        peak, origin = metering.peak_flops(self.config.model.dtype)
        logging.info("peak %.0f GFLOP/s a device (%s)", peak / 1e9, origin)
        cost = metering.TokenCost.of(state.params)
        return metering.Meter(cost, peak * jax.device_count(), first, self.config.train.steps)

    def profile(self, steps_done: int):
        """A profiler trace of steps 5 to 7, if the config asks for one."""
        return _Profile(self.workdir, self.config.train.profile, steps_done)

    def log(self, meter: metering.Meter, step: int, metrics: Any, waited: float) -> dict[str, float]:
        """Fetches a step's metrics, which are one step old, and writes them every so often."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        meter.count(values, waited)
        if step % self.config.train.log_every and step != self.config.train.steps:
            return values
        values |= meter.read(step)
        self.writer.write_scalars(step, values)
        for name, value in values.items():
            if name == "loss" or name.startswith("loss/"):
                self.curves.setdefault(name, []).append((step, value))
        stages = "  ".join(f"{n.split('/')[1]} {v:.3f}" for n, v in values.items() if n.startswith("stage/"))
        logging.info(
            "step %d/%d  loss %.4f  %s  |  %.0f tokens/s  mfu %.1f%%  %.2f s/step  eta %s",
            step,
            self.config.train.steps,
            values["loss"],
            stages,
            values["speed/tokens_per_second"],
            100 * values["speed/mfu"],
            values["speed/step_seconds"],
            metering.duration(values["speed/eta_seconds"]),
        )
        return values

    def first_batch(self, batch: dict[str, np.ndarray]) -> None:
        """The drafts and corrected images of the first rows as a picture, to see what the model is fed."""
        rows, steps = np.nonzero(batch["present"][:4])
        drafts = [batch["sketch"][r, s] for r, s in zip(rows, steps, strict=True)]
        captions = [
            self.tokenizer.decode(batch["plan_tokens"][r, s].tolist())
            for r, s in zip(rows, steps, strict=True)
        ]
        if hosts.is_lead() and drafts:
            sheet(drafts, captions, columns=6).save(self.workdir / "first_batch.png")

    def make_sampler(self, state: TrainState) -> Sampler:
        """A sampler of the averaged parameters of now; nothing is compiled twice."""
        if self.sampler is None:
            self.sampler = Sampler(
                self.model,
                state.ema,
                self.tokenizer,
                self.sampler_config,
                rows=self.config.eval.batch_size,
                frozen=state.autoencoder,
            )
        return self.sampler.with_params(state.ema)

    def pictures_due(self, step: int) -> bool:
        if self.config.data.source != "scenes":  # whose prompts and judge these are
            return False
        every = (self.config.train.sheet_every, self.config.eval.every)
        return hosts.is_lead() and any(n and step % n == 0 for n in every) and step < self.config.train.steps

    def pictures(self, step: int, state: TrainState) -> None:
        """The benchmark's first prompts of every group: a sheet of final images, and the scores."""
        found = self.judge(state, self.config.eval.per_group, step, warm=False)
        (scores,) = found.modes.values()
        self.writer.write_scalars(step, {f"eval/{name}": value for name, value in scores.scalars()})
        (self.workdir / "sheets").mkdir(exist_ok=True)
        for name, picture in scores.pictures():
            self.writer.write_images(step, {name: picture[None]})
            images.picture(picture).save(self.workdir / "sheets" / f"{step:07d}_{name.replace('/', '_')}.png")
        self.writer.flush()
        logging.info(
            "step %d  score %.3f on %d prompts a group", step, scores.score.mean, self.config.eval.per_group
        )

    def judge(self, state: TrainState, per_group: int, step: int, warm: bool = True) -> Results:
        """Scores parameters on the held-out benchmark; `warm` keeps compilation out of the timings."""
        task = benchmarks.make_benchmark(self.config.data.level, per_group=per_group)
        checkpoint = {"source": str(self.workdir), "which": "ema", "step": step}
        return evaluate.evaluate(
            self.make_sampler(state),
            task,
            (self.sampler_config.mode,),
            checkpoint=checkpoint,
            config=experiment.to_json(self.config),
            warm=warm,
        )

    def finish(self, state: TrainState) -> None:
        """The table, the plot, the page and the loss curves at the end of a run."""
        if self.curves:
            plots.curves(self.curves, self.workdir / "losses.png", title=str(self.workdir))
        if self.config.data.source == "scenes" and self.config.eval.final_per_group:
            found = self.judge(state, self.config.eval.final_per_group, self.config.train.steps)
            print("\n" + evaluate.tables_of(found.modes) + "\n", flush=True)
            for path in evaluate.write_results(found, self.workdir / "evaluation"):
                print(f"wrote {path}", flush=True)
        self.writer.flush()
        self.writer.close()


class _Quiet(metric_writers.MultiWriter):
    """Writes scalars to files; the loop has its own line for the log."""

    def __init__(self, writer: metric_writers.MetricWriter):
        inner = getattr(writer, "_writers", (writer,))
        super().__init__([w for w in inner if not isinstance(w, metric_writers.LoggingWriter)])


@dataclasses.dataclass
class _Profile:
    """Traces steps 5 to 7 into `workdir/profile`."""

    workdir: pathlib.Path
    wanted: bool
    step: int

    def __enter__(self):
        if self.wanted and self.step == 5:
            jax.profiler.start_trace(str(self.workdir / "profile"))

    def __exit__(self, *_):
        if self.wanted and self.step == 8:
            jax.profiler.stop_trace()
            logging.info("profile written to %s", self.workdir / "profile")


ERRORS = (
    experiment.ConfigError,
    MeshError,
    BadTrajectory,
    TooManyBadTrajectories,
    CheckpointError,
    NonFiniteLoss,
    OSError,
)
"""What a user can get wrong, or a machine; each says so in one line."""


def main(argv: Sequence[str]) -> None:
    """Trains with the flags of the command line."""
    del argv
    train(flags.FLAGS.config, flags.FLAGS.workdir)


if __name__ == "__main__":
    cli.run(main, ERRORS)
