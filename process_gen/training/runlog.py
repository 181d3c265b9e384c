"""Logs a training run: text lines, scalars for TensorBoard, loss curves, a picture of the first batch."""

from __future__ import annotations

import datetime
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from clu import metric_writers
from ml_collections import ConfigDict

from process_gen.common import files
from process_gen.data.tokenizers import Tokenizer
from process_gen.distributed import hosts
from process_gen.models import cost
from process_gen.models.unified import UnifiedModel
from process_gen.reports.strip import sheet
from process_gen.training import metering
from process_gen.training.goodput import Goodput

LOSSES = "losses.jsonl"
"""The losses of every logged step, a line each, over all starts of a run."""


class RunLog:
    """Metrics and rates of a run.

    Attributes:
      writer: for TensorBoard; it writes nothing on hosts other than the lead.
      curves: (step, loss) by name, for a plot; on the lead host with those of earlier starts.
      meter: counts steps and times them.
    """

    def __init__(self, config: ConfigDict, model: UnifiedModel, workdir: pathlib.Path, ledger: Goodput):
        self.workdir, self.ledger = workdir, ledger
        self.every, self.steps = config.train.log_every, config.train.steps
        writers = [metric_writers.SummaryWriter(str(workdir))] if hosts.is_lead() else []
        self.writer = metric_writers.MultiWriter(writers)
        self.curves: dict[str, list[tuple[int, float]]] = {}
        for line in earlier_losses(workdir / LOSSES, ledger.step) if hosts.is_lead() else ():
            self._keep(**line)
        peak, origin = metering.peak_flops(model.config.dtype)
        logging.info("peak %.0f GFLOP/s a device (%s)", peak / 1e9, origin)
        program = cost.Program(config.train.unroll, jax.default_backend(), encode=not config.data.latents)
        sizes = (model.config, model.layout, program)
        self.meter = metering.Meter(*sizes, peak, jax.device_count(), self.steps)

    def log(self, step: int, metrics: Any, waited: float) -> dict[str, float]:
        """Fetches a step's metrics, logs every `log_every`-th; `waited` seconds were spent on data."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.ledger.reached(step)
        self.meter.count(values, waited)
        if step % self.every and step != self.steps:
            return values
        values |= self.meter.read(step) | self.ledger.scalars()
        self.writer.write_scalars(step, values)
        losses = {n: value for n, value in values.items() if n == "loss" or n.startswith("loss/")}
        self._keep(step, losses)
        if hosts.is_lead():
            _append(self.workdir / LOSSES, {"step": step, "losses": losses})
        stages = "  ".join(f"{n.split('/')[1]} {v:.3f}" for n, v in values.items() if n.startswith("stage/"))
        line = f"step {step}/{self.steps}  loss {values['loss']:.4f}  {stages}"
        if "speed/mfu" in values:
            line += (
                f"  |  {values['speed/tokens_per_second']:.0f} useful tokens/s  mfu {values['speed/mfu']:.1%}"
                f"  {values['speed/step_seconds']:.2f} s/step  goodput {values['goodput']:.0%}"
                f"  eta {datetime.timedelta(seconds=round(values['speed/eta_seconds']))}"
            )
        logging.info("%s", line)
        return values

    def _keep(self, step: int, losses: Mapping[str, float]) -> None:
        for name, value in losses.items():
            self.curves.setdefault(name, []).append((step, value))

    def first_batch(self, batch: dict[str, np.ndarray], tokenizer: Tokenizer) -> None:
        """The images of the first rows as a picture, with the texts before them: what the model is fed."""
        rows, turns = np.nonzero(batch["present"][:4])
        images = list(batch["image"][rows, turns])
        captions = [tokenizer.decode(ids.tolist()) for ids in batch["before_tokens"][rows, turns]]
        if hosts.is_lead() and any(image.any() for image in images):  # blank: only latents were read
            sheet(images, captions, columns=6).save(self.workdir / "first_batch.png")


def earlier_losses(path: pathlib.Path, last: int) -> list[dict[str, Any]]:
    """Reads the losses of earlier starts up to step `last`, where the run resumes; removes other lines.

    Broken lines are dropped; a file that fails is logged and raises nothing.
    """
    kept = []
    try:
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                found = files.from_json(line)
                step, losses = int(found["step"]), found["losses"]
                losses = {name: float(value) for name, value in losses.items()}
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
                continue  # cut off, or not written by this program
            if step <= last:
                kept.append({"step": step, "losses": losses})
        files.write_json_lines(path, kept)
    except OSError as error:
        logging.warning("%s cannot be taken up (%s): the loss curves begin anew", path, error)
    return kept


def _append(path: pathlib.Path, line: Mapping[str, Any]) -> None:
    try:
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:  # the run goes on without the line
        logging.warning("%s could not be written (%s)", path, error)
