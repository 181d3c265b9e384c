"""What a run says of itself on its way: a line in the log, scalars for TensorBoard, its first batch."""

from __future__ import annotations

import datetime
import pathlib
from typing import Any

import jax
import numpy as np
from absl import logging
from clu import metric_writers
from ml_collections import ConfigDict

from process_gen.data.tokenizers import Tokenizer
from process_gen.distributed import hosts
from process_gen.models import cost
from process_gen.models.unified import UnifiedModel
from process_gen.reports.strip import sheet
from process_gen.training import metering
from process_gen.training.goodput import Goodput


class RunLog:
    """Metrics and rates of a run.

    Attributes:
      writer: for TensorBoard; it writes nothing on hosts other than the lead.
      curves: (step, loss) by name, for a plot.
      meter: counts steps and times them.
    """

    def __init__(self, config: ConfigDict, model: UnifiedModel, workdir: pathlib.Path, ledger: Goodput):
        self.workdir, self.ledger = workdir, ledger
        self.every, self.steps = config.train.log_every, config.train.steps
        writers = [metric_writers.SummaryWriter(str(workdir))] if hosts.is_lead() else []
        self.writer = metric_writers.MultiWriter(writers)
        self.curves: dict[str, list[tuple[int, float]]] = {}
        peak, origin = metering.peak_flops(model.config.dtype)
        logging.info("peak %.0f GFLOP/s a device (%s)", peak / 1e9, origin)
        program = cost.Program(config.train.unroll, jax.default_backend(), encode=not config.data.latents)
        sizes = (model.config, model.layout, program)
        self.meter = metering.Meter(*sizes, peak, jax.device_count(), self.steps)

    def log(self, step: int, metrics: Any, waited: float) -> dict[str, float]:
        """Fetches a step's metrics, and writes them every so often; `waited` seconds were spent on data."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.ledger.reached(step)
        self.meter.count(values, waited)
        if step % self.every and step != self.steps:
            return values
        values |= self.meter.read(step) | self.ledger.scalars()
        self.writer.write_scalars(step, values)
        for name, value in values.items():
            if name == "loss" or name.startswith("loss/"):
                self.curves.setdefault(name, []).append((step, value))
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

    def first_batch(self, batch: dict[str, np.ndarray], tokenizer: Tokenizer) -> None:
        """The images of the first rows as a picture, with the texts before them: what the model is fed."""
        rows, turns = np.nonzero(batch["present"][:4])
        images = list(batch["image"][rows, turns])
        captions = [tokenizer.decode(ids.tolist()) for ids in batch["before_tokens"][rows, turns]]
        if hosts.is_lead() and any(image.any() for image in images):  # blank: only latents were read
            sheet(images, captions, columns=6).save(self.workdir / "first_batch.png")
