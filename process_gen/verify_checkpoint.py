"""Checks the tensors of a checkpoint, and what the model computes from them.

    python -m process_gen.verify_checkpoint --checkpoint=BAGEL-7B-MoT
    python -m process_gen.verify_checkpoint --checkpoint=DIR --golden=DIR --tolerance=1e-4

Every tensor must exist, have the shape that the model's sizes ask for, and hold
finite numbers; the parameters are counted per part. `--golden` names a folder with
`golden.npz` and `golden.json`, the published program's outputs for these weights:
each is computed again, in float32 unless `--dtype` says otherwise, and its relative
error is printed.

Exit code: 0 if all is well, 1 if a number is not finite or an error exceeds the
tolerance, 2 if the weights do not fit together.
"""

from __future__ import annotations

from process_gen.experiment import cli  # before what reads its settings when it is imported

# isort: split
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from process_gen.checkpoints.errors import CheckpointError, CheckpointMismatch
from process_gen.checkpoints.published.bagel import model_shapes
from process_gen.checkpoints.published.flux import autoencoder_shapes
from process_gen.checkpoints.published.sources import Source, check_shapes, tree
from process_gen.models.config import ModelConfig
from process_gen.parity.answers import Entry, compare
from process_gen.parity.golden import read_golden
from process_gen.reports.table import table
from process_gen.weights.origin import Weights, read_weights

PARTS = {
    "text embedding": ("embedding",),
    "text head": ("head",),
    "text expert": ("backbone/layers/und", "backbone/norms_und"),
    "image expert": ("backbone/layers/gen", "backbone/norms_gen"),
    "latents and time": ("latent_in", "latent_out", "latent_positions", "time_in", "time_out"),
    "ViT": ("vit",),
    "connector": ("connector",),
    "autoencoder, encoder": ("encoder",),
    "autoencoder, decoder": ("decoder",),
}
"""Part of a model -> prefixes of the names of its parameters."""


def part_of(name: str) -> str:
    for part, starts in PARTS.items():
        if any(f"{name}/".startswith(f"{start}/") for start in starts):
            return part
    return "other"


def is_finite(source: Source, name: str) -> bool:
    """Whether an array holds finite numbers only; stacked layers are read one at a time."""
    layers = source.spec[name][0] if "layers" in name.split("/") else 0
    boxes = [(slice(layer, layer + 1),) for layer in range(layers)] or [()]
    return all(np.isfinite(source.read(name, box).astype(np.float32)).all() for box in boxes)


def opened(weights: Weights) -> list[Source]:
    """The sources of a model and of its autoencoder; CheckpointMismatch where names or shapes are wrong."""
    model, coder = weights.params, weights.autoencoder
    if model is not None:
        sizes = computed_as(weights, weights.model.dtype)
        check_shapes(model, model_shapes(sizes), f"the model in {weights.source}")
    if coder is not None:
        check_shapes(coder, autoencoder_shapes(weights.flux), f"the autoencoder in {weights.source}")
    return [source for source in (model, coder) if source is not None]


def known_answers(weights: Weights, golden: str, dtype: str = "float32") -> list[Entry]:
    """The entries of a golden folder with their relative errors."""
    answers = read_golden(golden)
    if weights.params is None or weights.autoencoder is None:
        raise CheckpointMismatch(
            f"{weights.source} holds no model with an autoencoder to compute answers with"
        )
    params, frozen = (tree(source) for source in opened(weights.in_dtype("float32")))
    shift = weights.metadata.get("published", {}).get("timestep_shift", 1.0)
    return compare(answers, computed_as(weights, dtype), params, frozen, shift)


def computed_as(weights: Weights, dtype: str) -> ModelConfig:
    """The model's config with another compute dtype, without remat, and without a ViT that is not there."""
    vit = weights.model.vit if any(name.startswith("vit/") for name in weights.params.spec) else None
    return dataclasses.replace(weights.model, dtype=dtype, vit=vit, remat="none")


def describe(sources: Sequence[Source]) -> str:
    """The parts of some weights as a table."""
    rows = []
    for part in (*PARTS, "other"):
        mine = [(source, name) for source in sources for name in source.spec if part_of(name) == part]
        parameters = sum(math.prod(source.spec[name]) for source, name in mine)
        dtypes = {np.dtype(source.dtypes[name]).name for source, name in mine}
        if mine:
            rows.append((part, len(mine), parameters, ", ".join(sorted(dtypes))))
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows), ""))
    return table(rows, ("part", "arrays", "parameters", "stored as"))


# -------------------------------------------------------------------- command


def define_flags() -> None:
    flags.DEFINE_string("checkpoint", None, "Folder of published weights, or of a run.")
    flags.DEFINE_string("golden", None, "Folder with known answers for these weights.")
    flags.DEFINE_float("tolerance", 1e-4, "Largest relative error of an entry.")
    flags.DEFINE_string("dtype", "float32", "Of the computation: float32 or bfloat16.")
    flags.DEFINE_string("which", "ema", "Weights of a run: ema or params.")
    flags.DEFINE_bool("vit", True, "Whether the model is to have a ViT; --novit leaves it out.")


def run(values: Any) -> tuple[str, bool]:
    """Does what the command does; returns what it prints, and whether all is well."""
    if not values.checkpoint:
        raise ValueError("--checkpoint=DIR is required")
    if values.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"--dtype must be float32 or bfloat16, got {values.dtype}")
    if not values.tolerance > 0:
        raise ValueError(f"--tolerance must be above 0, got {values.tolerance}")
    weights = read_weights(values.checkpoint, vit=values.vit, which=values.which)
    sources = opened(weights)
    odd = [name for source in sources for name in source.spec if not is_finite(source, name)]
    lines = [f"{weights.source} ({weights.kind})", "", describe(sources), ""]
    if odd:
        lines += [f"{len(odd)} hold something else than finite numbers: {', '.join(odd[:5])}", ""]
        return "\n".join(lines), False
    lines += ["every tensor is there, has its shape, and holds finite numbers", ""]
    if not values.golden:
        return "\n".join(lines), True
    rows, good = [], 0
    for name, shape, error in known_answers(weights, values.golden, values.dtype):
        good += error <= values.tolerance
        verdict = "ok" if error <= values.tolerance else "TOO FAR"
        rows.append((name, "x".join(map(str, shape)) or "1", f"{error:.1e}", verdict))
    within = f"{good} of {len(rows)} entries are within {values.tolerance:g}, computed in {values.dtype}"
    lines += [table(rows, ("entry", "shape", "relative error", "")), "", within]
    return "\n".join(lines), good == len(rows)


def main(argv: Sequence[str]) -> int:
    """Prints the report; returns 1 if a check failed, else 0."""
    del argv
    text, good = run(flags.FLAGS)
    print(text)
    return 0 if good else 1


if __name__ == "__main__":
    define_flags()
    cli.run(main, (CheckpointError, ValueError, OSError))
