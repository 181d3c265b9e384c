"""The FLUX autoencoder's files, under the names of FLUX.1 or of diffusers."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any, Literal

from etils import epath

from process_gen.checkpoints.errors import CheckpointMismatch, CheckpointNotFound
from process_gen.checkpoints.published import configs, rules, sources, tables, tensors, writing
from process_gen.models.config import FluxConfig
from process_gen.models.spec import autoencoder_spec

Naming = Literal["flux", "diffusers"]
TABLES = {"flux": tables.flux, "diffusers": tables.diffusers}
STEMS = {"flux": "ae", "diffusers": "diffusion_pytorch_model"}
"""File names of the two, without the suffix."""


@dataclasses.dataclass(frozen=True)
class AutoencoderFiles:
    """An autoencoder: its sizes, its tensors, and after whom they are named."""

    config: FluxConfig
    tensors: tensors.Tensors
    naming: Naming

    def pieces(self, dtype: str | None = sources.DTYPE) -> sources.Pieces:
        """The autoencoder's arrays; see `Pieces`."""
        spec = autoencoder_shapes(self.config)
        return sources.Pieces(moves_of(self.config, self.naming), self.tensors, spec, dtype)


def autoencoder_shapes(config: FluxConfig) -> dict[str, rules.Shape]:
    """Names and shapes of the parameters of `FluxAutoencoder`."""
    return sources.shapes_of(autoencoder_spec(config))


def moves_of(config: FluxConfig, naming: Naming = "flux") -> list[rules.Move]:
    """Every published tensor of an autoencoder, and where it lies in ours."""
    return rules.expand(TABLES[naming](config), autoencoder_shapes(config))


def read_autoencoder(place: epath.PathLike, fields: configs.Json | None = None) -> AutoencoderFiles:
    """Reads the descriptions of an autoencoder.

    Args:
      place: its file, or a folder with `ae.safetensors` or diffusers' `diffusion_pytorch_model.safetensors`.
      fields: what a BAGEL's `config.json` says of it. Beside diffusers' file its own `config.json` counts.

    Raises:
      CheckpointNotFound, CheckpointCorrupt, CheckpointMismatch: see `read_published`.
    """
    place = epath.Path(place)
    found = tensors.find(place, STEMS.values()) if place.is_dir() else tensors.open_file(place)
    if found is None:
        raise CheckpointNotFound(
            f"{place} holds no ae.safetensors: the FLUX autoencoder belongs beside the model"
        )
    shapes = found.shapes
    naming: Naming = "diffusers" if any(n.startswith("encoder.down_blocks.") for n in shapes) else "flux"
    if naming == "diffusers":
        own = configs.read_json(found.place.parent / "config.json", required=False)
        config = diffusers_config(shapes, own if "block_out_channels" in own else {})
    else:
        config = flux_config(shapes, fields or {})
    return AutoencoderFiles(config, found, naming)


def flux_config(shapes: configs.Shapes, fields: configs.Json) -> FluxConfig:
    """Sizes that the tensors show under the names of FLUX.1; `fields` may repeat them and give scale, shift.

    Raises:
      CheckpointMismatch: the tensors are none of that kind, or the file tells of other sizes.
    """
    sizes = _sizes(shapes, "encoder.down.{}.block.{}")
    keys = {"ch": "ch", "res_blocks": "num_res_blocks", "z_channels": "z_channels", "ch_mult": "ch_mult"}
    keys |= {"in_channels": "in_channels", "out_channels": "out_ch"}
    told = {ours: fields[theirs] for ours, theirs in keys.items() if theirs in fields}
    return _checked(sizes, told, fields, "scale_factor")


def diffusers_config(shapes: configs.Shapes, fields: configs.Json) -> FluxConfig:
    """The same under the names of diffusers, with its `config.json`."""
    read = configs.Reader("config.json", fields)
    read.only("act_fn", "silu")
    read.only("norm_num_groups", 32)
    read.only("mid_block_add_attention", True)
    sizes = _sizes(shapes, "encoder.down_blocks.{}.resnets.{}")
    keys = {"res_blocks": "layers_per_block", "z_channels": "latent_channels"}
    keys |= {"in_channels": "in_channels", "out_channels": "out_channels"}
    told = {ours: fields[theirs] for ours, theirs in keys.items() if theirs in fields}
    if "block_out_channels" in fields:
        told["ch_mult"] = [width // sizes["ch"] for width in fields["block_out_channels"]]
    return _checked(sizes, told, fields, "scaling_factor")


def export_autoencoder(
    params: Any,
    config: FluxConfig,
    folder: epath.PathLike,
    naming: Naming = "flux",
    dtype: str | None = None,
    **options: Any,
) -> None:
    """Writes `ae.safetensors`, or diffusers' `diffusion_pytorch_model.safetensors` and `config.json`.

    Args:
      params: a tree or a `sources.Source`.
      config: its sizes.
      folder: made if need be.
      naming: after whom the tensors are named.
      dtype: of the tensors; None leaves them as they are.
      **options: `largest` and `progress` of `writing.write`.

    Raises:
      CheckpointMismatch: the parameters are not of these sizes.
      CheckpointError: the folder holds an autoencoder already.
    """
    source = sources.source_of(params)
    sources.check_shapes(source, autoencoder_shapes(config), "the autoencoder")
    items = sources.items(moves_of(config, naming), source, dtype)
    writing.write(folder, STEMS[naming], items, **options)
    if naming == "diffusers":
        text = json.dumps(_diffusers_fields(config), indent=1)
        (epath.Path(folder) / "config.json").write_text(text)


def _diffusers_fields(config: FluxConfig) -> configs.Json:
    """`config.json` of diffusers' `AutoencoderKL`."""
    levels = len(config.ch_mult)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [config.ch * mult for mult in config.ch_mult],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "latent_channels": config.z_channels,
        "layers_per_block": config.res_blocks,
        "mid_block_add_attention": True,
        "norm_num_groups": 32,
        "scaling_factor": config.scale,
        "shift_factor": config.shift,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }


def _sizes(shapes: configs.Shapes, block: str) -> dict[str, Any]:
    group = block.split(".")[1]
    numbered = re.escape(block).replace(r"\{\}", "{}")
    try:
        ch, in_channels = shapes["encoder.conv_in.weight"][:2]
        levels = configs.count(shapes, rf"encoder\.{group}\.(\d+)\..*")
        widths = [shapes[block.format(level, 0) + ".conv1.weight"][0] for level in range(levels)]
        if not levels or any(width % ch for width in widths):
            raise ValueError(f"levels of {widths} channels")
        return dict(
            ch=ch,
            ch_mult=tuple(width // ch for width in widths),
            res_blocks=configs.count(shapes, numbered.format(0, r"(\d+)") + r"\..*"),
            z_channels=shapes["decoder.conv_in.weight"][1],
            in_channels=in_channels,
            out_channels=shapes["decoder.conv_out.weight"][0],
        )
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointMismatch(
            f"no FLUX autoencoder: its sizes cannot be seen in the tensors ({error})"
        ) from error


def _checked(sizes: dict[str, Any], told: configs.Json, fields: configs.Json, scale: str) -> FluxConfig:
    name = "config.json"
    for key, value in told.items():
        value = tuple(value) if isinstance(value, list) else value
        if value != sizes[key]:
            raise CheckpointMismatch(
                f"{name}: the autoencoder's {key} is {value}, the weights have {sizes[key]}"
            )
    known, shift = FluxConfig(), fields.get("shift_factor")
    if shift is not None and (not isinstance(shift, (int, float)) or not math.isfinite(shift)):
        raise CheckpointMismatch(f"{name}: shift_factor must be a number, got {shift!r}")
    factor = configs.Reader(name, fields).number(scale, known.scale, float)
    try:
        return FluxConfig(**sizes, scale=factor, shift=known.shift if shift is None else float(shift))
    except ValueError as error:
        raise CheckpointMismatch(f"{name}: {error}") from error
