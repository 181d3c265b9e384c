"""Evaluates the model during a training and at its end."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from process_gen.checkpoints import load, manifest
from process_gen.data.tokenizers import Tokenizer
from process_gen.distributed import hosts, offload, sharding, stopping, workdirs
from process_gen.evaluation import pipeline
from process_gen.evaluation.results import Cell
from process_gen.evaluation.stages import evaluate
from process_gen.evaluation.tasks import make_task, options_of
from process_gen.evaluation.tasks.base import TaskError
from process_gen.evaluation.tasks.scenes import Scenes
from process_gen.experiment import builders
from process_gen.experiment.placing import sampler_placement
from process_gen.models.unified import UnifiedModel
from process_gen.reports import plots
from process_gen.reports.strip import contact_sheet, strip
from process_gen.sampling import Sampler, SamplerConfig
from process_gen.sampling.config import PromptError
from process_gen.sampling.prompts import check_prompts
from process_gen.services.options import ServiceError
from process_gen.training.runlog import RunLog
from process_gen.training.step import TrainState


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
        self.tasks = options_of(config.eval.task_args, config.eval.tasks)  # options by name
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
        """Runs all stages for the tasks of the config; see `process_gen.evaluation.stages`."""
        arm = sampler.config.mode.value
        cells = [
            pipeline.ask(sampler, task, options, arm, checkpoint=checkpoint, per_group=per_group)
            for task, options in self.tasks.items()
        ]
        config = builders.to_json(self.config)
        return evaluate(cells, folder, config=config, show=lambda _: self.stop.check(), wait=True, **settings)

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
