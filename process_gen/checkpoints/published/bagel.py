"""Reads a published BAGEL, first its configs and headers, then its parameters, and writes one.

published = read_published("BAGEL-7B-MoT")
published.model          # ModelConfig
published.params         # source of the arrays in ema.safetensors, or the shards that an index names
published.autoencoder    # that of ae.safetensors
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from process_gen.checkpoints.errors import CheckpointMismatch
from process_gen.checkpoints.published import configs, flux, rules, sources, tables, tensors
from process_gen.common.files import write_json
from process_gen.models.config import ModelConfig, VitConfig
from process_gen.models.positions import grid_places, sincos_table
from process_gen.models.spec import model_spec

MODEL_STEMS = ("ema", "model")


@dataclasses.dataclass(frozen=True)
class Published:
    """A published model: its sizes (`model.vit` is None where the ViT is left out) and its arrays.

    `timestep_shift` is that of its training; `files` are its JSON files as they are, by name.
    """

    model: ModelConfig
    params: sources.Pieces
    autoencoder: sources.Pieces
    timestep_shift: float
    files: Mapping[str, configs.Json]


def model_shapes(config: ModelConfig) -> dict[str, rules.Shape]:
    """Names and shapes of the parameters of `UnifiedModel`; those of the ViT where it has one."""
    return sources.shapes_of(model_spec(config))


def bagel_moves(config: ModelConfig) -> list[rules.Move]:
    """Every published tensor of a model of these sizes; CheckpointMismatch where it has more than BAGEL."""
    return rules.expand(tables.BAGEL, model_shapes(config))


def read_published(
    folder: epath.PathLike, vit: bool = True, autoencoder: epath.PathLike | None = None
) -> Published:
    """Reads the JSON files and tensor headers of a BAGEL, and checks its fixed tables.

    Args:
      folder: with `ema.safetensors` (or shards and an index), `ae.safetensors` and the JSON configs.
      vit: False leaves the ViT and its connector out, whether the checkpoint has them or not.
      autoencoder: a file or folder that is to stand in for `ae.safetensors`, in either naming.

    Raises:
      CheckpointNotFound: no such folder, a file missing in it, or nothing but pickles.
      CheckpointCorrupt: a file that is cut off or garbled, a missing shard, an index that leads elsewhere.
      CheckpointMismatch: sizes that contradict the weights, or something that is not implemented.
    """
    folder = epath.Path(folder)
    found = tensors.find_in(folder, MODEL_STEMS)
    shapes = found.shapes
    if vit:
        _must_have_vit(folder, shapes)
    names = ("llm_config.json", "vit_config.json", "config.json")
    files = {name: configs.read_json(folder / name, name == "llm_config.json" or vit) for name in names}
    told = files["config.json"].get("vae", files["config.json"].get("vae_config"))
    coder, autoencoder_params = flux.read_autoencoder(
        folder if autoencoder is None else autoencoder, told if isinstance(told, dict) else {}
    )
    fields = configs.language_model(
        files["llm_config.json"],
        "language_model.model.layers.0.self_attn.q_proj.bias" in shapes,
        str(folder / "llm_config.json"),
    )
    read = configs.Reader(str(folder / "config.json"), files["config.json"])
    read.only("connector_act", configs.GELU)
    read.only("interpolate_pos", False)
    with configs.sizes_of(str(folder)):
        model = ModelConfig(
            **fields,
            latent_patch=_latent_patch(read, shapes, coder.z_channels),
            max_latent_side=_side(read, "max_latent_size", shapes, "latent_pos_embed.pos_embed"),
            autoencoder="flux",
            flux=coder,
            vit=_vit(read, folder, files["vit_config.json"], shapes) if vit else None,
        )
    _check_tables(model, found)
    ignored = (*tables.BAGEL_TABLES, *(() if vit else tables.BAGEL_VIT))
    params = sources.Pieces(bagel_moves(model), found, model_shapes(model), ignored)
    shift = read.number("timestep_shift", 1.0, float)
    return Published(model, params, autoencoder_params, shift, {name: x for name, x in files.items() if x})


def _must_have_vit(folder: epath.Path, shapes: configs.Shapes) -> None:
    missing = [part for part in tables.BAGEL_VIT if not any(re.fullmatch(part, name) for name in shapes)]
    if tables.BAGEL_VIT[0] in missing:  # without the tower, the connector and its table are of no use
        named = ", ".join(part.replace("\\", "") for part in missing).replace("..*", ".*")
        raise CheckpointMismatch(
            f"{folder} holds no ViT: {named} are missing, so "
            "the model could not look at images. Get a checkpoint that has it, or leave the ViT out on "
            "purpose: vit=False, on the command line --novit, and layout.vit_grid=(0, 0)"
        )


def _latent_patch(read: configs.Reader, shapes: configs.Shapes, channels: int) -> int:
    shape = shapes.get("vae2llm.weight", ())
    seen = math.isqrt(shape[1] // channels) if len(shape) == 2 else 0
    if not seen or seen**2 * channels != shape[1]:
        raise CheckpointMismatch(
            f"vae2llm.weight has shape {list(shape)}: no patches of latents of {channels} channels"
        )
    return read.agrees(
        "latent_patch_size", seen, f"vae2llm.weight takes {shape[1]} values of {channels} channels"
    )


def _side(read: configs.Reader, key: str, shapes: configs.Shapes, table: str) -> int:
    if table not in shapes:
        raise CheckpointMismatch(f"missing: {table}")
    seen = configs.side(shapes[table], table)
    return read.agrees(key, seen, f"{table} has {shapes[table][0]} rows, {seen} x {seen}")


def _vit(read: configs.Reader, folder: epath.Path, fields: configs.Json, shapes: configs.Shapes) -> VitConfig:
    name = str(folder / "vit_config.json")
    vit = configs.vision_tower(fields, shapes, "vit_model.vision_model.", left_out=1, name=name)
    largest = _side(read, "vit_max_num_patch_per_side", shapes, "vit_pos_embed.pos_embed")
    if largest != vit.max_side:
        raise CheckpointMismatch(
            f"vit_pos_embed.pos_embed has {largest} x {largest} places, the ViT's position embedding "
            f"{vit.max_side} x {vit.max_side}; both must be the same"
        )
    return vit


def _check_tables(model: ModelConfig, found: tensors.Tensors) -> None:
    """Checks that the fixed tables hold the sines and cosines that this project computes."""
    for name, wanted in fixed_tables(model).items():
        stored = found.read(name)
        if stored.shape != wanted.shape:
            raise CheckpointMismatch(f"{name} has shape {list(stored.shape)} instead of {list(wanted.shape)}")
        distance = float(np.abs(stored.astype(np.float32) - wanted).max())
        if not distance <= (1e-5 if stored.dtype.itemsize > 2 else 8e-3):
            raise CheckpointMismatch(
                f"{name} is not the fixed table of sines and cosines (it is off by up to {distance:.2g}): "
                "learned positions of published models are not implemented"
            )


def fixed_tables(model: ModelConfig) -> dict[str, np.ndarray]:
    """Published name -> fixed 2-D sine-cosine table of positions, [side * side, width] float32."""
    sides = {"latent": model.max_latent_side} | ({"vit": model.vit.max_side} if model.vit else {})
    return {
        name: sincos_table(model.width, grid_places((sides[part], sides[part])))
        for name, part in tables.BAGEL_TABLES.items()
        if part in sides
    }


# --------------------------------------------------------------------------- in


def import_bagel(
    published: Published, dtype: str | None = "float32"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters of `UnifiedModel` and of `FluxAutoencoder`, as nested dicts of NumPy arrays.

    A `dtype` of None leaves them as they are stored. `process_gen.weights.start.load_onto_devices`
    loads them onto devices instead, each of which reads its own part.
    """
    return tuple(sources.tree(x.in_dtype(dtype)) for x in (published.params, published.autoencoder))


# -------------------------------------------------------------------------- out


def export_bagel(
    params: Any,
    autoencoder_params: Any,
    model: ModelConfig,
    folder: epath.PathLike,
    *,
    files: Mapping[str, configs.Json] | None = None,
    largest: int | None = None,
    progress: tensors.Progress | None = None,
) -> None:
    """Writes a folder that the published program, and `read_published`, can read.

    Args:
      params, autoencoder_params: trees, or a `sources.Source` each.
      model: their sizes.
      folder: made if need be.
      files: JSON files to write, such as those that came with the weights; by default those of `json_files`.
      largest, progress: see `tensors.write`; the published program reads a single file.

    Raises:
      CheckpointMismatch: the parameters are not those of a BAGEL of these sizes.
      CheckpointError: the folder holds a model already.
    """
    source = sources.source_of(params)
    if not any(name.startswith("vit/") for name in source.spec):
        model = dataclasses.replace(model, vit=None)
    _check_published(model)
    moves = bagel_moves(model)
    sources.check_shapes(source, model_shapes(model), "the model")
    flux.export_autoencoder(autoencoder_params, model.flux, folder, progress=progress)
    kind = source.dtypes["embedding"]
    fixed = [tensors.Item.of(name, table.astype(kind)) for name, table in fixed_tables(model).items()]
    items = sorted(sources.items(moves, source) + fixed, key=lambda item: item.name)
    tensors.write(folder, "ema", items, largest, progress)
    for name, fields in (files or json_files(model)).items():
        write_json(epath.Path(folder) / name, fields, indent=1)


def json_files(model: ModelConfig) -> dict[str, configs.Json]:
    """The JSON files of a BAGEL of these sizes, by file name."""
    language = configs.write_language_model(model)
    files: dict[str, configs.Json] = {
        "llm_config.json": language | {"layer_module": "Qwen2MoTDecoderLayer", "qk_norm": True},
        "config.json": {
            "model_type": "bagel",
            "latent_patch_size": model.latent_patch,
            "max_latent_size": model.max_latent_side,
            "timestep_shift": 1.0,
            "connector_act": configs.GELU,
            "interpolate_pos": False,
            "visual_gen": True,
            "visual_und": model.vit is not None,
            "vae": flux.fields_of(model.flux),
        },
    }
    if model.vit is not None:
        files["config.json"]["vit_max_num_patch_per_side"] = model.vit.max_side
        files["vit_config.json"] = configs.write_vision_tower(model.vit)
    return files


def _check_published(model: ModelConfig) -> None:
    """Raises CheckpointMismatch unless the published program computes the same with the model's weights."""
    wanted = dict(image_rope=0, latent_positions="sincos", prediction="velocity", time_scale=1.0)
    wanted |= dict(qkv_bias=True, autoencoder="flux")
    for field, value in wanted.items():
        if getattr(model, field) != value:
            raise CheckpointMismatch(
                f"model.{field} is {getattr(model, field)!r}, published models have {value!r}: this one "
                "cannot be exported in their layout"
            )
