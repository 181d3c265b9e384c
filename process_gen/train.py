"""Trains a process-driven image generator.

    python -m process_gen.train --config=configs/scenes.py:quick --workdir=runs/quick

Builds the data set if it is not there, resumes from the newest checkpoint of
the workdir, and ends with the benchmark's table, a plot and a page of sampled
trajectories in `workdir/evaluation`. New behaviour enters through losses, data
and the config, not through this loop.
"""

from __future__ import annotations

from process_gen.experiment import cli

if __name__ == "__main__":  # bad flags are found before the slow imports
    cli.define_host_flags()
    cli.read_flags(
        config="configs/scenes.py:quick", workdir="Folder of the run: checkpoints, logs and pictures."
    )

# isort: split
import contextlib
import pathlib
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from process_gen import evaluate
from process_gen.checkpoints import load, manifest
from process_gen.checkpoints.errors import CheckpointError
from process_gen.checkpoints.store import versions
from process_gen.checkpoints.tiers import TieredStore, open_store
from process_gen.common import files
from process_gen.data.buckets import size_of, split_into_buckets
from process_gen.data.errors import BadTrajectory, TooManyBadTrajectories
from process_gen.data.sources import prepare_source
from process_gen.data.tokenizers import Tokenizer
from process_gen.distributed import hosts, offload, sharding, stopping, workdirs
from process_gen.distributed.mesh import MeshConfig, MeshError, make_mesh
from process_gen.evaluation import pipeline
from process_gen.evaluation.results import Cell
from process_gen.evaluation.tasks import make_task
from process_gen.evaluation.tasks.base import TaskError
from process_gen.evaluation.tasks.scenes import Scenes
from process_gen.experiment import builders, vocabulary
from process_gen.models.unified import UnifiedModel
from process_gen.reports import plots
from process_gen.reports.strip import contact_sheet, strip
from process_gen.sampling import Sampler, SamplerConfig
from process_gen.sampling.config import PromptError
from process_gen.sampling.prompts import check_prompts
from process_gen.services.options import ServiceError
from process_gen.training import loading, nonfinite
from process_gen.training.goodput import Goodput
from process_gen.training.nonfinite import NonFiniteLoss
from process_gen.training.own import OwnStates
from process_gen.training.profiling import Profiler
from process_gen.training.program import TrainProgram
from process_gen.training.resume import check_same_run
from process_gen.training.runlog import RunLog
from process_gen.training.step import TrainState
from process_gen.training.trained import log_overview
from process_gen.training.validation import validation_losses
from process_gen.weights import ahead
from process_gen.weights.restore import sampler_placement
from process_gen.weights.start import start_from


def train(config: ConfigDict, workdir: str) -> TrainState:
    """Runs the training that a config describes.

    Checkpoints, logs and pictures go to `workdir`, and a run that is found there is resumed. Returns the last
    state.

    Raises:
      One of `ERRORS`: the config, the data, the workdir or the machines cannot work; or too many steps in a
        row were not finite, after the last good state was saved.
      Stopped: a signal arrived; the state is saved.
    """
    builders.check(config)
    started = time.time()
    hosts.initialize()
    with workdirs.opened(workdir, "a training") as folder:
        return _train(config, workdir, folder, Goodput(folder, started))


def _train(config: ConfigDict, workdir: str, folder: pathlib.Path, ledger: Goodput) -> TrainState:
    """Does `train`, with `workdir` locked against other runs; all but checkpoints goes to `folder`."""
    # ------------------------------------------------------- devices and mesh
    mesh = make_mesh(MeshConfig(**config.mesh.to_dict()))
    logging.info("mesh %s over %d %s", dict(mesh.shape), jax.device_count(), jax.devices()[0].device_kind)

    # ------------------------------------------------------------------ model
    tokenizer = vocabulary.build_tokenizer(config)
    model = builders.build_model(config, tokenizer)
    layouts = builders.build_layouts(config)
    programs = {size: TrainProgram.of(config, model.clone(layout=layouts[size]), mesh) for size in layouts}
    program = programs[model.layout.image_size]

    # ------------------------------------------------------------------- data
    c = config.train
    rows = sharding.local_rows(c.batch_size, mesh)
    with hosts.lead_first("the data is prepared"), builders.as_config_error():
        source = prepare_source(config.data, model.layout, tokenizer, report=logging.info)
        buckets = split_into_buckets(source, list(layouts))
        loader = loading.load(config, buckets, layouts, tokenizer, rows)
        held_out = None
        if config.eval.losses_every:
            held_out = loading.held_out(config, source, layouts, tokenizer, rows)
    ahead.check_autoencoder(config, {layouts[size]: bucket for size, bucket in buckets.items()})
    logging.info("%s", loader.report())
    iterator = iter(loader)
    loading.check_alike(iterator, held_out is not None)

    # ------------------------------------------------------------------ state
    state = program.create_state(jax.random.key(config.seed))
    log_overview(state.params, program.recipe.freeze)

    # ---------------------------------------------------------------- restore
    metadata = {"config": builders.to_json(config), **vocabulary.describe(config, tokenizer)}
    store = open_store(c.to_dict(), workdir, metadata, state, folder)
    with contextlib.closing(iterator), store, ledger, stopping.deferred() as stop:
        with ledger.spending("restore"):
            first = store.newest_whole_step() or 0
        if first > c.steps:
            raise builders.ConfigError(
                f"{workdir} has come to step {first}: set --config.train.steps to at least that, or start "
                "another run in another --workdir"
            )
        if first:
            stored, place = store.source.metadata(first), str(store.source.root / str(first))
            vocabulary.check_same(tokenizer, stored, place)
            check_same_run(stored, metadata["config"], versions(), place)
            # The iterator raises for a state that belongs to other data.
            with ledger.spending("restore"), builders.as_config_error():
                state = store.source.restore(state, iterator, first)
            logging.info("resumed from step %d of %s", first, store.source.root)
            if first == c.steps:
                logging.warning(
                    "%s has all of its %d steps: nothing is trained. Another --workdir trains afresh, more "
                    "--config.train.steps go on", workdir, first,
                )  # fmt: skip
        elif origin := c.init:
            state = program.with_reference(start_from(state, model, origin, tokenizer))
            logging.info("started from the weights of %s", origin)
        ledger.resumed(first)
        if hosts.is_lead():
            vocabulary.keep(tokenizer, folder)
            files.write_json(folder / "config.json", metadata["config"], indent=1)
        run = RunLog(config, model, folder, ledger)
        evaluation = Evaluation(config, workdir, folder, model, tokenizer, mesh, run, stop)
        profiler = Profiler(workdir, folder, c.profile, c.log_every)
        guard = nonfinite.NonFiniteGuard(folder, c.max_nonfinite)
        own = OwnStates(config, programs, rows) if c.own.share else None
        hosts.barrier("the first step")

        # --------------------------------------------------------------- loop
        pending: tuple[int, Any, float] | None = None
        last_batch = None

        def validate(step: int) -> None:
            losses = validation_losses(state, held_out, programs, config.eval.loss_batches)
            run.writer.write_scalars(step, losses)

        def log_pending() -> None:
            """Logs the pending step (metrics are read one step late); too many bad steps end the run."""
            if pending and guard.record(pending[0], values := run.log(*pending), last_batch):
                _save_and_raise(values, store, state, iterator)

        ledger.enter("compile")
        steps = {size: programs[size].step for size in buckets}
        if len(steps) > 1:  # all now: one that does not fit must not end the run later
            for size in steps:
                logging.info("compiling the train step for images of %d x %d", *size)
                steps[size] = programs[size].compiled()
        elif first == 0:
            logging.info("compiling the train step")
        if own and first < c.steps:
            own.compile()
        if held_out and first < c.steps:  # a first point of the curve, and whether it fits
            validate(first)
        for step in range(first + 1, c.steps + 1):
            profiler.before(step - first)
            started = time.perf_counter()
            host_batch = next(iterator)
            waited = time.perf_counter() - started
            if pending and pending[1]["loss"].is_ready():
                ledger.idle(waited)  # devices were done and waited too
            own_losses: dict[str, float] = {}
            if own:
                if own.due(host_batch):
                    jax.block_until_ready(state)  # or the step before would count as drawing
                    with ledger.spending("drawing"), run.meter.left_out():
                        own.draw(step, state, host_batch)
                        own_losses = own.measure(step, state, host_batch)
                host_batch = own.fed(step, host_batch)
            size = size_of(host_batch["image"])
            state, metrics = steps[size](state, programs[size].placed(host_batch))
            log_pending()
            if own_losses:
                run.writer.write_scalars(step, own_losses)
            pending, last_batch = (step, metrics, waited), host_batch
            if step == first + 1:
                run.first_batch(host_batch, tokenizer)
                jax.block_until_ready(metrics)
                run.meter.restart()
                ledger.enter("steps")
            store.poll()
            if held_out and (step % config.eval.losses_every == 0 or step == c.steps):
                log_pending()  # this step, before its validation losses
                pending = None
                with ledger.spending("evaluation"):
                    validate(step)
                run.meter.restart()
            score = None
            if evaluation.due(step):
                with ledger.spending("evaluation"):
                    score = evaluation.pictures(step, state)
                run.meter.restart()
            stopped = stop.at(step)
            if step < c.steps and (store.due(step) or stopped):
                with ledger.spending("save"):
                    store.save(step, state, iterator, score, lasting=bool(stopped))
                ledger.saved(step)
            if stopped and step < c.steps:
                with ledger.spending("save"):
                    store.wait()
                if pending:  # else it was logged with the validation losses
                    guard.record(step, run.log(*pending), last_batch)
                raise stopping.Stopped(f"step {step} is saved; the same command goes on from there")
        log_pending()
        profiler.stop()
        with ledger.spending("save"):
            _save_last(store, state, iterator)
        ledger.saved(c.steps)

    # ------------------------------------------------------------------- end
    with ledger.spending("evaluation"):
        evaluation.finish(state)
    ledger.write(done=True)
    if hosts.is_lead():
        print("\n".join([ledger.table(), "", run.meter.table() if run.meter.mean() else "", ""]), flush=True)
    return state


def _save_last(store: TieredStore, state: TrainState, iterator: Any) -> None:
    """Waits for the save in progress, then saves the state unless its step is the newest one saved."""
    store.wait()
    if hosts.broadcast_from_lead(store.latest_step() or 0) != int(state.step):
        store.save(int(state.step), state, iterator)
        store.wait()


def _save_and_raise(metrics: dict[str, float], store: TieredStore, state: TrainState, iterator: Any) -> None:
    """Saves the state and raises NonFiniteLoss; non-finite steps have not changed the parameters.

    The saved data iterator is past the bad batch, so the same command does not meet it again.
    """
    _save_last(store, state, iterator)
    raise NonFiniteLoss(
        f"{nonfinite.names_of(metrics)}. The last good state is saved as step {store.latest_step()}; the "
        f"batch is in {nonfinite.FOLDER}/. Lower --config.optimizer.learning_rate or look at the data, and "
        "start the same command again: it goes on behind that batch."
    )


class Evaluation:
    """Evaluates the tasks and the prompts of `config.eval`, during a run and at its end.

    Raises:
      TaskError, PromptError: an invalid task or prompt; before anything is trained.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: str,
        folder: pathlib.Path,
        model: UnifiedModel,
        tokenizer: Tokenizer,
        mesh: Mesh,
        run: RunLog,
        stop: stopping.Stop,
    ):
        self.config, self.run, self.stop = config, run, stop
        self.workdir, self.folder = load.absolute(workdir), folder
        self.mesh = None if jax.process_count() > 1 else mesh  # of several hosts, the lead samples alone
        self.model, self.tokenizer = model, tokenizer
        self.tasks = evaluate.options_of(config.eval.task_args, config.eval.tasks)  # options by name
        if config.data.source == "scenes" and "scenes" in self.tasks:
            self.tasks["scenes"].setdefault("level", config.data.level)
            most = max(config.eval.per_group, config.eval.final_per_group, Scenes.per_group)
            self.tasks["scenes"].setdefault("per_group", str(most))
        elif "level" not in self.tasks.get("scenes", {"level": ""}):
            del self.tasks["scenes"]
            logging.info("no scenes benchmark: the data are no scenes, and eval.task_args names no level")
        tasks = [make_task(task, options) for task, options in self.tasks.items()]
        for task in tasks:
            task.judge()
        prompts = [doc.input for task in tasks for doc in task.docs()]
        check_prompts(model, tokenizer, (*config.eval.prompts, *prompts))

    def make_sampler(self, state: TrainState) -> Sampler | None:
        """A sampler of the averaged parameters on the lead host; None on other hosts, which call this too.

        With several hosts, the lead gets the parameters whole and samples on a device of its own.
        """
        params, frozen = offload.on_devices(state.average), state.autoencoder
        if jax.process_count() > 1:
            params, frozen = sharding.on_lead((params, frozen)) or (None, None)
        if not hosts.is_lead():
            return None
        c, rows = self.config, self.config.eval.batch_size
        settings = SamplerConfig.of(c.sampling.to_dict(), mode=c.data.mode)
        places = sampler_placement(self.mesh, rows)
        return Sampler(self.model, params, self.tokenizer, settings, rows, frozen=frozen, **places)

    def due(self, step: int) -> bool:
        """Whether there is something to draw after this step."""
        every = self.config.eval.every
        wanted = self.tasks or self.config.eval.prompts
        return bool(wanted and every) and step % every == 0 and step < self.config.train.steps

    def pictures(self, step: int, state: TrainState) -> float | None:
        """Draws the config's prompts and the first prompts of every task's groups; logs pictures and scores.

        Returns:
          The score of the first task, the same on every host; None where there is none or it was stopped.
        """
        sampler, score = self.make_sampler(state), None
        with hosts.lead_alone("pictures"), stopping.until_told():
            if sampler is not None:
                try:
                    score = self._pictures(step, sampler)
                except (TaskError, ServiceError, PromptError, OSError) as error:  # the run goes on
                    logging.error("step %d was not evaluated: %s", step, error)
        return hosts.broadcast_from_lead(score)

    def _pictures(self, step: int, sampler: Sampler) -> float | None:
        folder = self.folder / "evaluation" / f"step_{step:07d}"
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier run of this step, whose weights differ
        self._draw_prompts(step, sampler)
        if not self.tasks:
            return None
        source = self.workdir / load.FOLDER / str(step)  # which may not be saved
        checkpoint = self._describe_checkpoint(source, "")
        per_group = self.config.eval.per_group
        _, _, cells = self.judge(sampler, folder, checkpoint, per_group, pictures=0, warm=False)
        for cell in cells:
            for name, value in cell.scalars():
                self.run.writer.write_scalars(step, {f"eval/{name}": value})
            if shown := pipeline.pictured_in(folder, cell, 12):
                picture = contact_sheet(shown)
                name = f"{cell.task}_{cell.arm}_trajectories"
                self.run.writer.write_images(step, {name: np.asarray(picture)[None]})
                self._save_sheet(picture, step, name)
        self.run.writer.flush()
        if not cells or not cells[0].scores:
            return None
        (name, score), *_ = cells[0].scores.items()
        logging.info("step %d  %s %s %s, %d prompts a group", step, cells[0].task, name, score, per_group)
        return score.mean

    def _draw_prompts(self, step: int, sampler: Sampler) -> None:
        """Draws the prompts of the config, and logs a strip for each."""
        prompts = list(self.config.eval.prompts)
        for number, trajectory in enumerate(sampler.sample(prompts) if prompts else ()):
            picture = strip(trajectory)
            self.run.writer.write_images(
                step, {f"prompts/{number}": np.asarray(picture.convert("RGB"))[None]}
            )
            self._save_sheet(picture, step, f"prompt_{number}")

    def _save_sheet(self, picture: Image.Image, step: int, name: str) -> None:
        (self.folder / "sheets").mkdir(exist_ok=True)
        picture.save(self.folder / "sheets" / f"{step:07d}_{name}.png")

    def _describe_checkpoint(self, source: Any, digest: str) -> dict[str, str]:
        dtype = self.model.config.dtype
        return {"source": str(source), "which": "ema", "digest": digest, "dtype": dtype}

    def judge(
        self,
        sampler: Sampler,
        folder: pathlib.Path,
        checkpoint: Mapping[str, Any],
        per_group: int,
        **settings: Any,
    ) -> tuple[str, list[pathlib.Path], list[Cell]]:
        """Runs all stages for the tasks of the config; see `evaluate.evaluate`."""
        arm = sampler.config.mode.value
        cells = [
            pipeline.ask(sampler, task, options, arm, checkpoint=checkpoint, per_group=per_group)
            for task, options in self.tasks.items()
        ]
        config = builders.to_json(self.config)
        return evaluate.evaluate(
            cells, folder, config=config, show=lambda _: self.stop.check(), wait=True, **settings
        )

    def finish(self, state: TrainState) -> None:
        """Plots the losses, draws the prompts, evaluates the tasks; raises Stopped if that is interrupted."""
        c, done = self.config, 0.0
        judged = self.tasks and c.eval.final_per_group
        sampler = self.make_sampler(state) if judged or c.eval.prompts else None
        with hosts.lead_alone("the evaluation", timeout=7 * 24 * 3600), stopping.until_told():
            if self.run.curves and hosts.is_lead():
                title = workdirs.shown(self.folder, self.folder, self.workdir)
                plots.curves(self.run.curves, self.folder / "losses.png", title=title)
            if sampler is not None:
                self._draw_prompts(c.train.steps, sampler)
            if sampler is not None and judged:
                last = load.latest_step_dir(self.workdir)
                checkpoint = self._describe_checkpoint(last, manifest.fingerprint(last))
                place, per_group = self.folder / "evaluation", c.eval.final_per_group
                text, written, _ = self.judge(sampler, place, checkpoint, per_group)
                print("\n" + text + "\n", flush=True)
                for path in written:
                    print(f"wrote {workdirs.shown(path, self.folder, self.workdir)}", flush=True)
            done = 1.0
        self.run.writer.flush()
        self.run.writer.close()
        if not hosts.broadcast_from_lead(done):
            raise stopping.Stopped("every step is saved; the same command does the evaluation again")


ERRORS = (
    *(builders.ConfigError, MeshError, hosts.HostMissing, hosts.HostSettingsError, BadTrajectory),
    *(TooManyBadTrajectories, CheckpointError, NonFiniteLoss, TaskError, ServiceError, PromptError, OSError),
)
"""Errors of the user's input or of a machine; each message is one line."""


def main(argv: Sequence[str]) -> None:
    del argv
    values = flags.FLAGS
    hosts.name_processes(values.coordinator, values.num_processes, values.process_id)
    train(values.config, values.workdir)


if __name__ == "__main__":
    cli.run(main, ERRORS)
