"""Checks that the config of a resumed run is compatible with its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from absl import logging

from process_gen.experiment.builders import ConfigError

FREE = (
    "eval", "flow", "losses", "mesh", "name", "optimizer", "sampling", "train",
    "data.data_dir", "data.latents", "data.on_error", "data.path", "data.threads", "data.tokenizer",
    "model.attention", "model.dtype", "model.logit_chunk", "model.remat", "model.scan_unroll",
)  # fmt: skip
"""Keys that may change when a run is resumed: how it is trained, computed and judged, where its files are.
The tokenizer, the latents and the data have fingerprints of their own, which are compared elsewhere."""

FIXED = ("train.batch_size", "optimizer.name", "optimizer.moment_dtype", "optimizer.freeze")
"""Keys of those groups that may not: the order of the data and the optimizer's state depend on them."""


ENTRIES = ("losses", "optimizer.groups")
"""Groups of those whose entries, and what they set, come and go."""


def check_same_run(
    stored: Mapping[str, Any], config: dict[str, Any], versions: Mapping[str, str], source: str
) -> None:
    """Compares a checkpoint with the run that resumes from it, and logs differences that are allowed.

    `train.init` of `config` becomes that of the checkpoint, since a run begins from its weights only once.

    Args:
      stored: metadata of the checkpoint: `config` and `versions`.
      config, versions: the run's, as plain JSON values.
      source: names the checkpoint.

    Raises:
      ConfigError: the model, its layout or its data differ; the message names key and values.
    """
    began = stored.get("config", {}).get("train", {}).get("init", config["train"]["init"])
    if began != config["train"]["init"]:
        logging.warning(
            "config.train.init=%r is ignored: %s began from %r; other weights need another --workdir",
            config["train"]["init"], source, began,
        )  # fmt: skip
        config["train"]["init"] = began
    changed = differences(stored.get("config", {}), config)
    for key, before, now in changed:
        if _under(key, FIXED) or not _under(key, FREE):
            raise ConfigError(
                f"config.{key} is {now!r}, and {source} was trained with {before!r}: set --config.{key}="
                f"{before!r} to go on with it, or start another run in another --workdir"
            )
    for key, *values in changed:
        before, now = ("not set" if value is None else repr(value) for value in values)
        logging.info("config.%s was %s until here and is %s from now on", key, before, now)
    for name, before in stored.get("versions", {}).items():
        if versions.get(name) != before:
            logging.warning(
                "%s is %s, %s was saved with %s: numbers may differ", name, versions.get(name), source, before
            )


def differences(before: dict[str, Any], now: dict[str, Any], group: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted keys whose values differ, with both values; `group` is the name of what is compared.

    Keys that one side lacks are left out, because configs gain keys between versions. In `ENTRIES` they count
    as None.
    """
    changed = []
    for key in sorted(before.keys() | now.keys() if _under(group, ENTRIES) else before.keys() & now.keys()):
        name, old, new = f"{group}.{key}".strip("."), before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changed += differences(old, new, name)
        elif old != new:
            changed.append((name, old, new))
    return changed


def _under(key: str, groups: tuple[str, ...]) -> bool:
    return any(key == group or key.startswith(f"{group}.") for group in groups)
