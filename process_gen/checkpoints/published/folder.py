"""A folder of published weights, read as far as its descriptions: sizes, names and shapes, and no data.

published = read_published("BAGEL-7B-MoT")
published.model          # ModelConfig
published.tensors        # ema.safetensors, or the shards that an index names
published.autoencoder    # ae.safetensors
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from etils import epath

from process_gen.checkpoints.errors import CheckpointMismatch, CheckpointNotFound
from process_gen.checkpoints.published import configs, rules, tables, tensors
from process_gen.checkpoints.published.flux import AutoencoderFiles, read_autoencoder
from process_gen.models.config import ModelConfig, VitConfig
from process_gen.models.positions import grid_places, sincos_table

MODEL_STEMS = ("ema", "model")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)
"""What stands beside the weights and is copied as it is."""


@dataclasses.dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
      folder: where it lies.
      model: its sizes, without a ViT where it is to be left out.
      tensors: the model's, by published name.
      autoencoder: its sizes, tensors and naming.
      timestep_shift: of its training.
      files: its JSON files as they are, by name.
    """

    folder: epath.Path
    model: ModelConfig
    tensors: tensors.Tensors
    autoencoder: AutoencoderFiles
    timestep_shift: float
    files: Mapping[str, configs.Json]

    @property
    def has_vit(self) -> bool:
        return self.model.vit is not None


def read_published(
    folder: epath.PathLike, vit: bool = True, autoencoder: epath.PathLike | None = None
) -> Published:
    """Reads the descriptions of a BAGEL.

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
    if not folder.is_dir():
        raise CheckpointNotFound(f"no such folder of published weights: {folder}")
    found = tensors.find(folder, MODEL_STEMS)
    if found is None:
        raise CheckpointNotFound(
            f"{folder} holds no ema.safetensors (or model.safetensors), alone or in shards"
        )
    shapes = {name: entry.shape for name, entry in found.items()}
    if vit:
        _must_have_vit(folder, shapes)
    names = ("llm_config.json", "vit_config.json", "config.json")
    files = {name: configs.read_json(folder / name, name == "llm_config.json" or vit) for name in names}
    coder = read_autoencoder(
        folder if autoencoder is None else autoencoder, _autoencoder_fields(files["config.json"])
    )
    fields = configs.language_model(
        files["llm_config.json"],
        "language_model.model.layers.0.self_attn.q_proj.bias" in shapes,
        str(folder / "llm_config.json"),
    )
    read = configs.Reader(str(folder / "config.json"), files["config.json"])
    read.only("connector_act", "gelu_pytorch_tanh")
    read.only("interpolate_pos", False)
    model = ModelConfig(
        **fields,
        latent_patch=_latent_patch(read, shapes, coder.config.z_channels),
        max_latent_side=_side(read, "max_latent_size", shapes, "latent_pos_embed.pos_embed"),
        autoencoder="flux",
        flux=coder.config,
        vit=_vit(read, folder, files["vit_config.json"], shapes) if vit else None,
    )
    published = Published(
        folder,
        model,
        found,
        coder,
        read.number("timestep_shift", 1.0, float),
        {k: v for k, v in files.items() if v},
    )
    _check_tables(published)
    return published


def _autoencoder_fields(fields: configs.Json) -> configs.Json:
    found = fields.get("vae", fields.get("vae_config"))
    return found if isinstance(found, dict) else {}


def _must_have_vit(folder: epath.Path, shapes: configs.Shapes) -> None:
    missing = [part for part in tables.BAGEL_VIT if not any(rules.matches(name, (part,)) for name in shapes)]
    tower, *_ = tables.BAGEL_VIT
    if tower in missing:  # the others are of no use without it
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


def _check_tables(published: Published) -> None:
    """The fixed tables must be the sines and cosines that this project computes."""
    sides = {"latent": published.model.max_latent_side}
    if published.has_vit:
        sides["vit"] = published.model.vit.max_side
    for name, part in tables.BAGEL_TABLES.items():
        if part not in sides:
            continue
        stored = published.tensors.read(name)
        wanted = position_table(published.model.width, sides[part])
        if stored.shape != wanted.shape:
            raise CheckpointMismatch(f"{name} has shape {list(stored.shape)} instead of {list(wanted.shape)}")
        distance = float(np.abs(stored.astype(np.float32) - wanted).max())
        if not distance <= (1e-5 if stored.dtype.itemsize > 2 else 8e-3):
            raise CheckpointMismatch(
                f"{name} is not the fixed table of sines and cosines (it is off by up to {distance:.2g}): "
                "learned positions of published models are not implemented"
            )


def position_table(width: int, side: int) -> np.ndarray:
    """The whole fixed 2-D table, [side * side, width] float32."""
    return sincos_table(width, side, grid_places((side, side)))
