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
import time
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags, logging
from ml_collections import ConfigDict

from process_gen.checkpoints import load
from process_gen.checkpoints.errors import CheckpointError
from process_gen.checkpoints.store import versions
from process_gen.checkpoints.tiers import TieredStore, open_store
from process_gen.common import files
from process_gen.data.buckets import size_of, split_into_buckets
from process_gen.data.errors import BadTrajectory, TooManyBadTrajectories
from process_gen.data.sources import prepare_source
from process_gen.distributed import hosts, sharding, stopping, workdirs
from process_gen.distributed.mesh import MeshConfig, MeshError, make_mesh
from process_gen.evaluation.tasks.base import TaskError
from process_gen.experiment import builders, vocabulary
from process_gen.sampling.config import PromptError
from process_gen.services.options import ServiceError
from process_gen.training import loading, nonfinite
from process_gen.training.evaluating import Evaluation
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
from process_gen.weights.start import start_from, weights_for


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

    c = config.train
    steps_there = len(load.steps(load.absolute(workdir) / load.FOLDER))
    origin = None
    if c.init and not hosts.broadcast_from_lead(steps_there):  # a run that is resumed has weights of its own
        origin = weights_for(model, c.init, tokenizer)  # raises before the data are prepared

    # ------------------------------------------------------------------- data
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
        elif origin is not None:
            state = program.with_reference(start_from(state, model, origin, tokenizer))
            logging.info("started from the weights of %s", c.init)
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
