"""The loss of every stage, of several weights on the same rows, timesteps and noise.

    python tests/benchmarks/stage_losses.py --config=configs/bagel_7b.py:debug \
        --weights=tests/golden/bagel_tiny,runs/tiny,tiny_out

Weights may be a published folder or a run (its moving average). The rows are of the validation split.
"""

from __future__ import annotations

from absl import flags

from process_gen.experiment import cli

if __name__ == "__main__":  # bad flags are found before the slow imports
    flags.DEFINE_list("weights", None, "Folders of weights.", required=True)
    flags.DEFINE_integer("rows", 8, "Rows of data.", lower_bound=1)
    cli.read_flags(config="configs/bagel_7b.py:debug")

# isort: split
from collections.abc import Sequence

import jax
import numpy as np

from process_gen.checkpoints.errors import CheckpointError
from process_gen.data.loader import make_loader
from process_gen.data.sources import open_source, prepare_source
from process_gen.experiment import builders, vocabulary
from process_gen.models.unroll import unroll
from process_gen.reports.table import table
from process_gen.training.program import build_recipe
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.controls import labels
from process_gen.weights.origin import read_weights
from process_gen.weights.start import load_onto_devices


def stage_losses(config, weights: Sequence[str], rows: int) -> dict[str, list[float]]:
    """The weighted loss by stage, one value for each of the weights, and `all` of them together."""
    tokenizer = vocabulary.build_tokenizer(config)
    model = builders.build_model(config, tokenizer)
    recipe, layout = build_recipe(config, model), model.layout
    prepare_source(config.data, layout, tokenizer)
    source = open_source(config.data, layout.image_size, "validation")
    iterator = iter(make_loader(source, tokenizer, layout, rows, shuffle=False, prefetch=0))
    batch, key = Batch(**next(iterator)), jax.random.key(0)

    @jax.jit
    def measured(params, frozen):
        outputs = unroll(model, params, batch, key, recipe.options, frozen)
        sums, counts = recipe.losses.terms(outputs, batch, labels(batch, model.ids), key)
        return recipe.losses.metrics(sums, counts) | {"stage/all": recipe.losses.total(sums, counts)}

    found: dict[str, list[float]] = {}
    for path in weights:
        origin = read_weights(path, vit=bool(layout.vit_tokens))
        values = measured(*load_onto_devices(origin, model))
        for name, value in values.items():
            if name.startswith("stage/"):
                found.setdefault(name.removeprefix("stage/"), []).append(float(np.asarray(value)))
    return found


def main(argv: Sequence[str]) -> None:
    """Prints the table."""
    del argv
    values = flags.FLAGS
    found = stage_losses(values.config, values.weights, values.rows)
    print(
        table([(stage, *row) for stage, row in found.items()], ("weighted loss", *values.weights), digits=4)
    )


if __name__ == "__main__":
    cli.run(main, (builders.ConfigError, CheckpointError, OSError))
