"""Converts published weights to a run of this project, and runs to published formats.

    python -m process_gen.convert --source=BAGEL-7B-MoT --target=runs/bagel --mesh=fsdp=8
    python -m process_gen.convert --source=runs/bagel --target=out
    python -m process_gen.convert --source=Qwen2.5-7B --vision=siglip2 --autoencoder=flux --target=runs/start
    python -m process_gen.convert --source=ae.safetensors --to=diffusers --target=vae
    python -m process_gen.convert --source=runs/lora --to=adapters --target=adapters
    python -m process_gen.convert --source=runs/quick --to=package --target=mine.safetensors

The kind of the source is detected from its files: a run of this project, a BAGEL,
a Qwen2 language model, a SigLIP 2 tower, a FLUX autoencoder (with its own tensor
names or those of diffusers), or adapters. By default a published model becomes the
folder of a run (`--to=ours`), and a run becomes a BAGEL (`--to=bagel`). `qwen2`,
`siglip2`, `flux` and `diffusers` write one part. `package` writes one file with its
config, like the weights that ship; it holds no autoencoder. Adapters are merged into
the weights, except by `--to=adapters`, which writes them alone in PEFT's format.

Published weights are safetensors, read and written a few megabytes at a time. `--mesh`
chunks the arrays of a run as that mesh shards them; its devices need not be present.
"""

from __future__ import annotations

from process_gen.common.names import check_name
from process_gen.experiment import cli  # before what reads its settings when it is imported

# isort: split
import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import tqdm
from absl import flags
from etils import epath

from process_gen.checkpoints import arrays, export, load
from process_gen.checkpoints.errors import CheckpointError
from process_gen.checkpoints.published import adapters, bagel, flux, parts, stream, tensors
from process_gen.checkpoints.published.sources import tree
from process_gen.checkpoints.shipped import located
from process_gen.distributed import lock, sharding
from process_gen.distributed.mesh import AXES, MeshError, parse_mesh
from process_gen.experiment.builders import ConfigError
from process_gen.models.config import ModelConfig
from process_gen.models.spec import model_spec
from process_gen.weights.origin import Weights, read_weights

TARGETS = {
    "ours": ("params", "autoencoder"),
    "package": ("params",),
    "bagel": ("params", "autoencoder"),
    "adapters": (),
    "qwen2": ("params",),
    "siglip2": ("params",),
    "flux": ("autoencoder",),
    "diffusers": ("autoencoder",),
}
"""Format that can be written -> the sources of `Weights` whose bytes the progress bar counts."""
DTYPES = ("float32", "bfloat16", "float16")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "generation_config.json",
)  # fmt: skip
"""Files beside the weights that are copied unchanged."""
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class ConvertError(ValueError):
    """A conversion that cannot be done; the message is one line for the user."""


def convert(
    weights: Weights,
    target: str,
    to: str = "ours",
    *,
    mesh: Mapping[str, int] | None = None,
    which: str = "ema",
    **options: Any,
) -> None:
    """Converts weights to the format `to` and writes them, each array in the dtype that it is read in.

    Args:
      weights: from `read_weights`.
      target: a folder, or a file for `package`; nothing is overwritten.
      to: one of `TARGETS`.
      mesh: axis sizes; arrays are chunked as such a mesh shards them (`ours`).
      which: `ema` or `params`, noted in the metadata (`package`).
      **options: `largest` (`bagel`, `qwen2`, `siglip2`) and `progress`, as `tensors.write` takes them.

    Raises:
      ConvertError: the source lacks what `to` holds, or cannot become that.
      CheckpointError: it is broken, does not fit, or the target exists.
      Occupied: another process writes to the target.
    """
    check_name(to, TARGETS, "--to", ConvertError)
    if weights.kind == "siglip2" and to != "siglip2":
        raise ConvertError(
            f"{weights.source} is a vision tower and no model: give it as --vision, beside a language model "
            "as --source"
        )
    if weights.kind == to == "ours":
        raise ConvertError(
            f"{weights.source} is a run of this project already: --to={', --to='.join([*TARGETS][1:])}"
        )
    _check(weights, epath.Path(target), to)
    # No lock in an object store, which cannot create exclusively, nor for a package, one file written whole.
    alone = to != "package" and "://" not in target
    with lock.hold(load.absolute(target), "a conversion") if alone else contextlib.nullcontext():
        _write(weights, epath.Path(target), to, mesh, which, **options)


def _check(weights: Weights, target: epath.Path, to: str) -> None:
    """Refuses weights that lack what `to` holds, before anything is made."""

    def need(part: Any, name: str) -> None:
        if part is None:
            raise ConvertError(f"{weights.source} holds no {name}")

    if to in ("package", "bagel", "qwen2", "siglip2"):
        need(weights.params, "model")
    if to in ("flux", "diffusers"):
        need(weights.autoencoder, "autoencoder")
    elif to == "bagel":
        need(weights.autoencoder, "autoencoder (--autoencoder=PATH gives one)")
    elif to == "siglip2":
        need(weights.model.vit, "ViT")
    elif to == "adapters":
        need(weights.adapted, "adapters (it was trained with a config.model.lora.rank of 0)")
        if besides := weights.adapted.besides:
            raise ConvertError(
                f"{weights.source} has trained {arrays.shorten(sorted(besides))} besides its adapters, which "
                "would be lost: --to=bagel has all of it, merged"
            )
    elif to == "package":
        if weights.kind != "ours":
            raise ConvertError(f"{weights.source} is no run, and a package is made of one: --to=ours first")
        if weights.autoencoder is not None:
            raise ConvertError(f"{weights.source} has an autoencoder, and a package holds none: --to=bagel")
        if target.exists():
            raise ConvertError(f"{target} is there already: choose another --target, or move it away")
        if target.suffix != tensors.SUFFIX:
            raise ConvertError(f"--target={target}: a package is one file, name it NAME{tensors.SUFFIX}")


def _write(
    weights: Weights,
    target: epath.Path,
    to: str,
    mesh: Mapping[str, int] | None,
    which: str,
    **options: Any,
) -> None:
    params, coder, model, adapted = weights.params, weights.autoencoder, weights.model, weights.adapted
    match to:
        case "ours":
            items: dict[str, Any] = {}
            if params is not None:
                items["ema"] = params, shards(model, params.spec, mesh)
            if coder is not None:
                items["autoencoder"] = coder, {}
            stream.write_step(target, items, weights.metadata, options.get("progress"))
        case "package":
            export.save_weights(target, tree(params), {**weights.metadata, "which": which})
        case "bagel":
            files = weights.metadata.get("published", {}).get("files")
            bagel.export_bagel(params, coder, model, target, files=files, **options)
        case "adapters":
            named = located(adapted.base) != adapted.base  # shipped weights, which have no path of their own
            base = adapted.base if named or not adapted.base else str(load.absolute(adapted.base))
            adapters.export_adapters(adapted.params, adapted.lora, target, base=base, **options)
        case "qwen2":
            parts.export_qwen2(params, model, target, **options)
        case "siglip2":
            parts.export_siglip2(params, model.vit, target, **options)
        case "flux" | "diffusers":
            flux.export_autoencoder(coder, weights.flux, target, to, **options)
    beside = {
        "ours": target / "tokenizer",
        "package": target.parent / "tokenizer",
        "bagel": target,
        "qwen2": target,
    }
    for name in TOKENIZER_FILES if to in beside else ():
        if (weights.tokenizer / name).is_file():
            beside[to].mkdir(parents=True, exist_ok=True)
            (weights.tokenizer / name).copy(beside[to] / name, overwrite=True)


def shards(
    model: ModelConfig, spec: Mapping[str, tuple[int, ...]], mesh: Mapping[str, int] | None
) -> dict[str, tuple[int, ...]]:
    """The shape of one shard of every parameter on a mesh of these axis sizes; needs no devices."""
    if not mesh:
        return {}
    sizes = tuple(mesh.get(axis, 1) for axis in AXES)
    abstract = jax.sharding.AbstractMesh(sizes, AXES)
    found = arrays.flatten(sharding.state_shardings({"params": model_spec(model)}, abstract)["params"])
    return {name: found[name].shard_shape(shape) for name, shape in spec.items()}


# -------------------------------------------------------------------- command


def mesh_sizes(text: str) -> dict[str, int]:
    """Parses axis sizes such as `fsdp=8,tensor=2`; unnamed axes have size 1, an empty text gives {}."""
    mesh = parse_mesh(text, data=1)
    sizes = {axis: getattr(mesh, axis) for axis in AXES}
    if -1 in sizes.values():
        raise ConvertError(f"--mesh={text}: there are no devices that -1 could take, give every size")
    return sizes if text else {}


def parse_bytes(text: str) -> int:
    """`5GB`, `500MiB` or a number of bytes; ConvertError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]i?B)?\s*", text, re.IGNORECASE)
    size = int(float(match[1]) * _UNITS[(match[2] or "").upper()]) if match else 0
    if size < 1:
        raise ConvertError(f"--largest={text}: give bytes, such as 5GB or 500MiB")
    return size


def define_flags() -> None:
    flags.DEFINE_string("source", None, "Folder or file to read.")
    flags.DEFINE_string("target", None, "Folder, or file of a package, to write.")
    flags.DEFINE_string("to", None, f"Of {', '.join(TARGETS)}; a run out of published weights by default.")
    flags.DEFINE_string("vision", None, "SigLIP 2, for a model started from a Qwen2.")
    flags.DEFINE_string("autoencoder", None, "FLUX autoencoder, where the source has none or another one.")
    flags.DEFINE_bool("vit", True, "Whether the model has a ViT; --novit leaves it out.")
    flags.DEFINE_string("which", "ema", "Weights of a run: ema or params.")
    flags.DEFINE_string("dtype", None, f"Of the arrays written, of {', '.join(DTYPES)}.")
    flags.DEFINE_string("mesh", "", "Sizes of a mesh to cut the arrays for, such as fsdp=8,tensor=2.")
    flags.DEFINE_string("largest", None, "Bytes per published file, such as 5GB; one file by default.")
    flags.DEFINE_string("base", None, "Weights that adapters belong to, where they have moved.")
    flags.DEFINE_integer(
        "seed", 0, "Seed of the randomly initialized weights of a model that starts from a Qwen2."
    )


_USED = {
    "vision": (None, "source", ("qwen2",)),
    "seed": (0, "source", ("qwen2",)),
    "which": ("ema", "source", ("ours", "adapters")),
    "vit": (True, "source", ("bagel", "adapters")),
    "autoencoder": (None, "source", ("ours", "bagel", "adapters", "qwen2")),
    "base": (None, "source", ("adapters",)),
    "mesh": ("", "target", ("ours",)),
    "largest": (None, "target", ("bagel", "qwen2", "siglip2")),
}
"""Flag -> its default, and the kinds of source or target that it applies to."""


def _check_used(values: Any, source: str, target: str) -> None:
    """Raises ConvertError for a flag that is set and does not apply to this source or target."""
    for name, (default, what, kinds) in _USED.items():
        kind = source if what == "source" else target
        if getattr(values, name) != default and kind not in kinds:
            raise ConvertError(
                f"--{name} is for a {what} of the kind {' or '.join(kinds)}, this one is {kind}: leave it out"
            )


def run(values: Any) -> str:
    """Does what the command does; returns what it prints at the end, or raises one of `ERRORS`."""
    for name in ("source", "target"):
        if not getattr(values, name):
            raise ConvertError(f"--{name}=PATH is required")
    if values.dtype not in (None, *DTYPES):
        raise ConvertError(f"--dtype={values.dtype}: must be one of {', '.join(DTYPES)}")
    mesh, largest = mesh_sizes(values.mesh), parse_bytes(values.largest) if values.largest else None
    read = {name: getattr(values, name) for name in ("vit", "vision", "autoencoder", "which", "seed", "base")}
    weights = read_weights(values.source, **read)
    to = values.to or ("bagel" if weights.kind == "ours" else "ours")
    _check_used(values, weights.kind, to)
    weights = weights.in_dtype(values.dtype or ("float32" if to == "ours" else None))
    sources = (getattr(weights, name) for name in TARGETS.get(to, ()))
    total = sum(source.nbytes for source in sources if source is not None)
    with tqdm.tqdm(total=total, unit="B", unit_scale=True, desc=to) as bar:
        options = dict(mesh=mesh, which=values.which, largest=largest, progress=bar.update)
        convert(weights, values.target, to, **options)
        bar.total = bar.n  # published files also hold fixed tables
    return f"{weights.source} ({weights.kind}) -> {values.target} ({to})"


ERRORS = (ConvertError, CheckpointError, ConfigError, MeshError, OSError)


def main(argv: Sequence[str]) -> None:
    del argv
    print(run(flags.FLAGS))


if __name__ == "__main__":
    define_flags()
    cli.run(main, ERRORS)
