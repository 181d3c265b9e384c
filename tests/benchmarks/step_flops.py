"""Training FLOP of a step: what arms of as much training are made equal in.

    python tests/benchmarks/step_flops.py --config=configs/scenes.py:hung_plan_only

Counted for what is really there, forward and backward pass, as the MFU of a run is (`models.cost.useful`), in
batches as the loader packs them. The data set is built if it is not there. Nothing is trained.
"""

from __future__ import annotations

from process_gen.experiment import cli

if __name__ == "__main__":  # bad flags are found before the slow imports
    cli.read_flags(config="configs/scenes.py:quick")

# isort: split
import functools
import itertools
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags

from process_gen.lab.setting import Setting
from process_gen.models import cost
from process_gen.reports.table import table
from process_gen.training.amounts import amounts
from process_gen.trajectory.batch import Batch

BATCHES = 200


def main(argv: Sequence[str]) -> int:
    """Packs, counts, prints."""
    del argv
    config = flags.FLAGS.config
    setting = Setting.of(config)
    model, layout = setting.model, setting.model.layout
    count = jax.jit(functools.partial(amounts, layout))
    found = []
    for batch in itertools.islice(setting.batches(config.seed), BATCHES):
        held = {name.removeprefix("batch/"): float(x) for name, x in count(Batch(**batch)).items()}
        found.append(sum(cost.useful(model.config, layout, held, not config.data.latents).values()) / 1e9)
    mean, error = np.mean(found), np.std(found) / np.sqrt(BATCHES)
    print(table([(config.data.mode, f"{mean:.1f}", f"{error:.1f}")], ("mode", "GFLOP a step", "+-")))
    return 0


if __name__ == "__main__":
    cli.run(main, (ValueError, OSError))
