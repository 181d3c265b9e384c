"""Reads LoRA adapters as PEFT stores them, merges them into their matrices, and writes them alone.

    adapter_model.safetensors    `base_model.model.<module>.lora_A.weight` [rank, in], `lora_B` [out, rank]
    adapter_config.json          rank, alpha, modules, and where the base model is

A module has the name of a published BAGEL, such as `language_model.model.layers.0.self_attn.q_proj_moe_gen`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from etils import epath

from process_gen.checkpoints.errors import CheckpointMismatch
from process_gen.checkpoints.published import configs, rules, sources, tables, tensors
from process_gen.common.files import write_json
from process_gen.models.adapters import LORA
from process_gen.models.config import LoraConfig, ModelConfig
from process_gen.models.spec import model_spec

STEM, CONFIG = "adapter_model", "adapter_config.json"
_PREFIX = "base_model.model."
_PLAIN = dict(
    bias="none",
    fan_in_fan_out=False,
    use_rslora=False,
    use_dora=False,
    rank_pattern={},
    alpha_pattern={},
    modules_to_save=None,
)
"""Values that other fields of an adapter's config must have, where they are there: plain LoRA."""


class Merged(sources.Joined):
    """A source with its adapters merged: a kernel is read as W + scale * A B, computed in float32."""

    def __init__(self, source: sources.Source, scale: float):
        super().__init__(source)
        self.spec = {name: shape for name, shape in self.spec.items() if not is_adapter(name)}
        self._source, self._scale = source, scale

    def _read(self, name: str, box: sources.Box) -> np.ndarray:
        found = super()._read(name, box)
        first, second = (name.removesuffix("kernel") + end for end in LORA)
        if not name.endswith("/kernel") or first not in self._source.spec:
            return found
        *layer, rows, columns = (*box, *(slice(None),) * (len(self.spec[name]) - len(box)))
        a = self._source.read(first, (*layer, rows)).astype(np.float32)
        b = self._source.read(second, (*layer, slice(None), columns)).astype(np.float32)
        return found.astype(np.float32) + self._scale * (a @ b)


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return name.rpartition("/")[2] in LORA


RULES = tuple(
    rules.Rule(
        f"{_PREFIX}{rule.theirs.removesuffix('.weight')}.{theirs}.weight",
        rule.ours.removesuffix("kernel") + ours,
        rules.LINEAR,
    )
    for rule in tables.BAGEL
    if rule.ours.endswith("/kernel")
    for theirs, ours in zip(("lora_A", "lora_B"), LORA, strict=True)
)
"""Rules for the adapters of every matrix in `tables.BAGEL`, under PEFT's names."""


# -------------------------------------------------------------------------- in


@dataclasses.dataclass(frozen=True)
class Adapters:
    """Adapters alone: rank, alpha and kernels (`lora`), and the path of the weights below them (`base`)."""

    lora: LoraConfig
    base: str
    tensors: tensors.Tensors

    def pieces(self, model: ModelConfig) -> sources.Pieces:
        """The arrays of the adapters for a model of these sizes; CheckpointMismatch where they do not fit."""
        spec = sources.shapes_of(model_spec(dataclasses.replace(model, lora=self.lora)))
        mine = {name: shape for name, shape in spec.items() if is_adapter(name)}
        return sources.Pieces(rules.expand(RULES, mine), self.tensors, mine)


def read_adapters(folder: epath.PathLike) -> Adapters:
    """Reads the config and the tensor headers of adapters; raises as `read_published`."""
    folder = epath.Path(folder)
    fields = configs.read_json(folder / CONFIG)
    found = tensors.find_in(folder, (STEM,), f", beside its {CONFIG}")
    wrong = {key: fields[key] for key, value in _PLAIN.items() if fields.get(key, value) not in (value, None)}
    if fields.get("peft_type") != "LORA" or wrong:
        wrong = wrong or {"peft_type": fields.get("peft_type")}
        raise CheckpointMismatch(
            f"{folder / CONFIG} says {wrong}: adapters other than plain LoRA are not implemented"
        )
    kernels = tuple(  # as the first layer has them
        rule.ours.removesuffix(LORA[0]) + "kernel"
        for rule in RULES
        if rule.ours.endswith(LORA[0]) and rule.theirs.replace("{layer}", "0") in found
    )
    if not kernels:
        raise CheckpointMismatch(
            f"{found.place} has no adapters of matrices of this project, whose tensors are called "
            f"{_PREFIX}language_model.model.layers.0.self_attn.q_proj.lora_A.weight and the like"
        )
    rank, alpha = fields.get("r"), fields.get("lora_alpha")
    try:
        lora = LoraConfig(rank, alpha, kernels)
    except (ValueError, TypeError) as error:
        raise CheckpointMismatch(f"{folder / CONFIG} says r={rank}, lora_alpha={alpha}: {error}") from error
    if not lora.rank:
        raise CheckpointMismatch(f"{folder / CONFIG} says r=0: there are no adapters")
    return Adapters(lora, str(fields.get("base_model_name_or_path") or ""), found)


# ------------------------------------------------------------------------- out


def export_adapters(
    params: Any, lora: LoraConfig, folder: epath.PathLike, *, base: str = "", **options: Any
) -> None:
    """Writes the adapters among `params`, which are not merged there, and no other parameter.

    `base` is the path of the weights that they belong to; for the rest see `export_bagel`.
    """
    source = sources.source_of(params)
    mine = {name: shape for name, shape in source.spec.items() if is_adapter(name)}
    if not mine:
        raise CheckpointMismatch("these parameters have no adapters that could be exported")
    moves = rules.expand(RULES, mine)
    tensors.write(folder, STEM, sources.items(moves, source), **options)
    modules = {move.theirs.removeprefix(_PREFIX).rpartition(".lora_")[0] for move in moves}
    fields = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(modules),
        "inference_mode": True,
        **_PLAIN,
    }
    write_json(epath.Path(folder) / CONFIG, fields, indent=1)
