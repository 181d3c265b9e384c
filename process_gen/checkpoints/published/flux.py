"""The FLUX autoencoder's files, under the names of FLUX.1 or of diffusers."""

from __future__ import annotations

import re
from typing import Any

from etils import epath

from process_gen.checkpoints.errors import CheckpointMismatch
from process_gen.checkpoints.published import configs, rules, sources, tables, tensors
from process_gen.common.files import write_json
from process_gen.common.ranges import is_number
from process_gen.models.config import FluxConfig
from process_gen.models.spec import autoencoder_spec

STEMS = {"flux": "ae", "diffusers": "diffusion_pytorch_model"}
"""Naming scheme of the tensors -> name of the file, without its suffix."""
SIZES = {
    "flux": {
        "ch": "ch",
        "ch_mult": "ch_mult",
        "res_blocks": "num_res_blocks",
        "z_channels": "z_channels",
        "in_channels": "in_channels",
        "out_channels": "out_ch",
        "scale": "scale_factor",
        "shift": "shift_factor",
    },
    "diffusers": {
        "res_blocks": "layers_per_block",
        "z_channels": "latent_channels",
        "in_channels": "in_channels",
        "out_channels": "out_channels",
        "scale": "scaling_factor",
        "shift": "shift_factor",
    },
}
"""Keys of the JSON config, by field of `FluxConfig`."""
FIXED = {"act_fn": "silu", "norm_num_groups": 32, "mid_block_add_attention": True}
"""Fields of diffusers' config of which nothing else is implemented."""


def autoencoder_shapes(config: FluxConfig) -> dict[str, rules.Shape]:
    """Names and shapes of the parameters of `FluxAutoencoder`."""
    return sources.shapes_of(autoencoder_spec(config))


def moves_of(config: FluxConfig, naming: str = "flux") -> list[rules.Move]:
    """Every published tensor of an autoencoder, by name, and where it lies in ours."""
    moves, last = [], len(config.ch_mult) - 1
    for ours, shape in autoencoder_shapes(config).items():
        theirs, turn = ours, {4: rules.CONV, 2: rules.POINTWISE, 1: rules.AS_IS}[len(shape)]
        for pattern, name in (*tables.FLUX, *(tables.DIFFUSERS if naming == "diffusers" else ())):
            theirs = re.sub(pattern, name, theirs)
        # diffusers counts the decoder's levels from the lowest resolution; its attention has linear layers.
        theirs = re.sub(r"(?<=up_blocks\.)\d+", lambda level: str(last - int(level[0])), theirs)
        if "attentions" in theirs and len(shape) == 2:
            turn = rules.LINEAR
        moves.append(rules.Move(theirs, turn.shape(shape), ours, None, turn))
    return sorted(moves, key=lambda move: move.theirs)


def read_autoencoder(
    place: epath.PathLike, fields: configs.Json | None = None
) -> tuple[FluxConfig, sources.Pieces]:
    """Reads the config and the tensor headers of an autoencoder: its sizes, and a source of its arrays.

    Args:
      place: its file, or a folder with `ae.safetensors` or diffusers' `diffusion_pytorch_model.safetensors`.
      fields: what a BAGEL's `config.json` says of it. For diffusers' names the `config.json` beside the file
        counts instead.

    Raises as `read_published`.
    """
    place = epath.Path(place)
    hint = ": the FLUX autoencoder belongs beside the model, or is named (--autoencoder=PATH)"
    found = tensors.find_in(place, STEMS.values(), hint) if place.is_dir() else tensors.open_file(place)
    naming, told = "flux", fields or {}
    if any(name.startswith("encoder.down_blocks.") for name in found):
        own = configs.read_json(found.place.parent / "config.json", required=False)
        naming, told = "diffusers", own if "block_out_channels" in own else {}
    config = config_of(found.shapes, told, naming)
    return config, sources.Pieces(moves_of(config, naming), found, autoencoder_shapes(config))


def config_of(shapes: configs.Shapes, fields: configs.Json, naming: str = "flux") -> FluxConfig:
    """Sizes that the tensors show; `fields` may repeat them, and give scale and shift."""
    read = configs.Reader("config.json", fields)
    for key, value in FIXED.items():
        read.only(key, value)
    sizes = _sizes(shapes, "down_blocks", "resnets") if naming == "diffusers" else _sizes(shapes)
    told = {ours: fields[theirs] for ours, theirs in SIZES[naming].items() if theirs in fields}
    if "block_out_channels" in fields:
        told["ch_mult"] = [width // sizes["ch"] for width in fields["block_out_channels"]]
    for key, size in sizes.items():
        value = told.get(key, size)
        if (tuple(value) if isinstance(value, list) else value) != size:
            raise CheckpointMismatch(
                f"config.json: the autoencoder's {key} is {value}, the weights have {size}"
            )
    known, shift = FluxConfig(), told.get("shift")
    if shift is not None and not is_number(shift):
        raise CheckpointMismatch(f"config.json: shift_factor must be a number, got {shift!r}")
    scale = read.number(SIZES[naming]["scale"], known.scale, float)
    with configs.sizes_of("config.json"):
        return FluxConfig(**sizes, scale=scale, shift=known.shift if shift is None else float(shift))


def _sizes(shapes: configs.Shapes, group: str = "down", block: str = "block") -> dict[str, Any]:
    try:
        ch, in_channels = shapes["encoder.conv_in.weight"][:2]
        levels = configs.count(shapes, rf"encoder\.{group}\.(\d+)\..*")
        widths = [shapes[f"encoder.{group}.{level}.{block}.0.conv1.weight"][0] for level in range(levels)]
        if not levels or any(width % ch for width in widths):
            raise ValueError(f"levels of {widths} channels")
        return dict(
            ch=ch,
            ch_mult=tuple(width // ch for width in widths),
            res_blocks=configs.count(shapes, rf"encoder\.{group}\.0\.{block}\.(\d+)\..*"),
            z_channels=shapes["decoder.conv_in.weight"][1],
            in_channels=in_channels,
            out_channels=shapes["decoder.conv_out.weight"][0],
        )
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointMismatch(
            f"no FLUX autoencoder: its sizes cannot be seen in the tensors ({error})"
        ) from error


def fields_of(config: FluxConfig, naming: str = "flux") -> configs.Json:
    """What JSON says of an autoencoder: a part of BAGEL's `config.json`, or the whole of diffusers'."""
    fields = {theirs: getattr(config, ours) for ours, theirs in SIZES[naming].items()}
    if naming == "flux":
        return fields | {"ch_mult": list(config.ch_mult), "downsample": config.factor}
    levels = len(config.ch_mult)
    return fields | {
        **FIXED,
        "_class_name": "AutoencoderKL",
        "block_out_channels": [config.ch * mult for mult in config.ch_mult],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }


def export_autoencoder(
    params: Any, config: FluxConfig, folder: epath.PathLike, naming: str = "flux", **options: Any
) -> None:
    """Writes `ae.safetensors`, or diffusers' `diffusion_pytorch_model.safetensors` and `config.json`.

    The arguments are those of `export_bagel`, and `naming`, a key of `STEMS`.
    """
    source = sources.source_of(params)
    sources.check_shapes(source, autoencoder_shapes(config), "the autoencoder")
    tensors.write(folder, STEMS[naming], sources.items(moves_of(config, naming), source), **options)
    if naming == "diffusers":
        write_json(epath.Path(folder) / "config.json", fields_of(config, naming), indent=1)
