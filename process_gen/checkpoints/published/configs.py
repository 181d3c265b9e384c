"""Translates the JSON files beside published weights to sizes of this project, and back.

What a file does not say is taken from the shapes of the tensors, or is what the published program assumes;
what this project does not implement is refused by name.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from process_gen.checkpoints.errors import CheckpointCorrupt, CheckpointMismatch, CheckpointNotFound
from process_gen.common import files
from process_gen.common.ranges import is_number
from process_gen.models.config import ModelConfig, VitConfig

Json = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]
GELU = "gelu_pytorch_tanh"
LANGUAGE = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "mlp": "intermediate_size",
    "heads": "num_attention_heads",
}
"""Keys of a Qwen2 config, by field of `ModelConfig`."""
SHORT = "last_layer_left_out"
"""Marks the config of a tower that was exported alone: its last layer is left out already."""


@contextlib.contextmanager
def sizes_of(name: str) -> Iterator[None]:
    """Turns a ValueError in the block (impossible sizes) into a CheckpointMismatch that names the file."""
    try:
        yield
    except ValueError as error:
        raise CheckpointMismatch(f"{name}: {error}") from None


def read_json(path: epath.PathLike, required: bool = True) -> Json:
    """An object of a JSON file; empty where the file is missing and need not be there."""
    path = epath.Path(path)
    if not path.is_file():
        if required:
            raise CheckpointNotFound(f"{path} is missing: it belongs beside the weights")
        return {}
    try:
        value = files.read_json(path)
        if not isinstance(value, dict):
            raise ValueError(f"a {type(value).__name__} instead of an object")
    except ValueError as error:
        raise CheckpointCorrupt(f"{path} is no JSON object ({error}); get a fresh copy") from error
    return value


class Reader:
    """Checks fields of one JSON file; raises a CheckpointMismatch that names the file and the field."""

    def __init__(self, name: str, fields: Json):
        self.name, self.fields = name, fields

    def number(self, key: str, default: float | None = None, kind: type = int) -> Any:
        """A positive number, converted to `kind`; `default` where the field is missing."""
        value = self.fields.get(key, default)
        if not is_number(value) or value <= 0 or kind(value) != value:
            raise CheckpointMismatch(f"{self.name}: {key} must be a positive {kind.__name__}, got {value!r}")
        return kind(value)

    def only(self, key: str, *allowed: Any) -> None:
        """Checks that a field, if it is there, has one of the allowed values."""
        if key in self.fields and self.fields[key] not in allowed:
            raise CheckpointMismatch(
                f"{self.name}: {key} is {self.fields[key]!r}; implemented: {', '.join(map(repr, allowed))}"
            )

    def agrees(self, key: str, seen: int, what: str) -> int:
        """A positive integer that must equal `seen`, as the tensors show it; `seen` where it is missing."""
        value = self.number(key, seen)
        if value != seen:
            raise CheckpointMismatch(
                f"{self.name}: {key} is {value}, but {what}: the weights need {key} = {seen}"
            )
        return value


def language_model(fields: Json, biases: bool, name: str = "llm_config.json") -> dict[str, Any]:
    """The fields of `ModelConfig` that a Qwen2 config gives; `biases`: whether q, k and v have biases."""
    read = Reader(name, fields)
    read.only("hidden_act", "silu")
    read.only("layer_module", "Qwen2MoTDecoderLayer", "Qwen2DecoderLayer")
    read.only("use_sliding_window", False, None)
    read.only("rope_scaling", None)
    sizes = {ours: read.number(theirs) for ours, theirs in LANGUAGE.items()}
    heads, width = sizes["heads"], sizes["width"]
    rope = Reader(f"{name}, rope_parameters", {**fields, **(fields.get("rope_parameters") or {})})
    rope.only("rope_type", "default")
    return dict(
        **sizes,
        kv_heads=read.number("num_key_value_heads", heads),
        head_dim=read.number("head_dim", width // heads) if fields.get("head_dim") else width // heads,
        qkv_bias=biases,
        rope_theta=rope.number("rope_theta", 10000.0, float),
        norm_eps=read.number("rms_norm_eps", 1e-6, float),
    )


def vision_tower(
    fields: Json, shapes: Shapes, prefix: str, left_out: int, name: str = "vit_config.json"
) -> VitConfig:
    """The sizes of a vision tower, without its last layer, which BAGEL does not use.

    `fields` is its config, which counts all layers, and `name` the file, for messages. The tensors, whose
    names have the prefix, lack `left_out` of the layers: 1 in a BAGEL, 0 in a tower alone.
    """
    read = Reader(name, fields)
    read.only("hidden_act", GELU)
    read.only("rope", False)
    read.only("num_channels", 3)
    try:
        table = shapes[f"{prefix}embeddings.position_embedding.weight"]
        embedding = shapes[f"{prefix}embeddings.patch_embedding.weight"]
        mlp = shapes[f"{prefix}encoder.layers.0.mlp.fc1.weight"][0]
        patch = embedding[2] if len(embedding) == 4 else math.isqrt(embedding[1] // 3)
        width = embedding[0]
    except (KeyError, IndexError) as error:
        raise CheckpointMismatch(f"the ViT cannot be read: {error} is missing or no matrix") from error
    grid = side(table, "the ViT's position embedding")
    if read.number("image_size", grid * patch) // patch != grid:
        read.agrees("image_size", grid * patch, f"the ViT's position embedding has {grid} x {grid} places")
    layers = count(shapes, rf"{re.escape(prefix)}encoder\.layers\.(\d+)\..*")
    told = read.number("num_hidden_layers", layers + left_out)
    if layers != told - left_out:
        raise CheckpointMismatch(
            f"{name}: num_hidden_layers is {told}, so the weights should hold {told - left_out} ViT layers"
            f"{' (the published model leaves out the last)' if left_out else ''}; they hold {layers}"
        )
    with sizes_of(name):
        return VitConfig(
            width=read.agrees("hidden_size", width, f"the patch embedding makes {width} values"),
            layers=told if fields.get(SHORT) is True else told - 1,
            mlp=read.agrees("intermediate_size", mlp, f"mlp.fc1 makes {mlp} values"),
            heads=read.number("num_attention_heads", 12),
            patch=read.agrees("patch_size", patch, f"the patch embedding takes {list(embedding)[1:]} values"),
            max_side=grid,
            norm_eps=read.number("layer_norm_eps", 1e-6, float),
        )


def side(shape: tuple[int, ...], what: str) -> int:
    """The side of a position table [side * side, width]; CheckpointMismatch where it is no square."""
    found = math.isqrt(shape[0]) if shape else 0
    if not found or found**2 != shape[0]:
        raise CheckpointMismatch(f"{what} has shape {list(shape)}: not the places of a square grid")
    return found


def count(shapes: Shapes, pattern: str) -> int:
    """Number of layers or levels: the largest number in the group of the pattern, plus one; 0 for none."""
    found = (re.fullmatch(pattern, name) for name in shapes)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def write_language_model(model: ModelConfig) -> Json:
    """The Qwen2 config of a model."""
    fields = {theirs: getattr(model, ours) for ours, theirs in LANGUAGE.items()}
    if model.head_dim * model.heads != model.width:
        fields["head_dim"] = model.head_dim
    return fields | {
        "model_type": "qwen2",
        "hidden_act": "silu",
        "num_key_value_heads": model.kv_heads,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    }


def write_vision_tower(vit: VitConfig) -> Json:
    """`vit_config.json`, which counts the layer that is left out."""
    return {
        "model_type": "siglip_vision_model",
        "hidden_act": GELU,
        "hidden_size": vit.width,
        "intermediate_size": vit.mlp,
        "num_hidden_layers": vit.layers + 1,
        "num_attention_heads": vit.heads,
        "num_channels": 3,
        "patch_size": vit.patch,
        "image_size": vit.patch * vit.max_side,
        "layer_norm_eps": vit.norm_eps,
    }
