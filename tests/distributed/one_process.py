"""Trains a tiny model as `python -m process_gen.train` does, on fake devices: `one_process.py CONFIG_JSON`.

The JSON has `workdir`, `devices` (of this process), `steps` and `overrides` of the config. Process 0 writes
the losses of all steps to `losses.json` in the workdir. Several processes are told apart by the environment.
"""

from __future__ import annotations

import json
import pathlib
import sys

import jax

asked = json.loads(sys.argv[1])
jax.config.update("jax_num_cpu_devices", asked["devices"])

from configs.scenes import get_config  # noqa: E402
from process_gen import train  # noqa: E402
from process_gen.distributed import hosts  # noqa: E402


def tiny(workdir: str, steps: int, overrides: dict):
    """Full context and flow images at sizes that eight devices divide, in float32.

    AdamW, with an epsilon far above the rounding of the gradients: it divides by their size, so with the
    usual 1e-8 entries whose gradient is nothing but rounding would move as far as all others.
    """
    config = get_config("debug").unlock()
    config.update_from_flattened_dict(
        {
            "model.kv_heads": 2,
            "layout.context": "full",
            "layout.turns": 4,
            "layout.trajectories": 2,
            "layout.copies": 1,
            "sampling.max_turns": 2,
            "data.data_dir": str(pathlib.Path(workdir).parent / "data"),
            "optimizer.name": "adamw",
            "optimizer.learning_rate": 1e-3,
            "optimizer.eps": 1e-3,
            "train.batch_size": 8,
            "train.steps": steps,
            "train.checkpoint_every": steps,
            "eval.final_per_group": 0,
            **overrides,
        }
    )
    return config


def main():
    config = tiny(asked["workdir"], asked["steps"], asked["overrides"])
    losses, log = [], train.RunLog.log

    def kept(self, step, metrics, waited):
        values = log(self, step, metrics, waited)
        losses.append(values["loss"])
        return values

    held_out, measure = [], train.validation_losses

    def scored(*given):
        values = measure(*given)
        held_out.append(values["validation/loss"])
        return values

    train.RunLog.log, train.validation_losses = kept, scored
    train.train(config, asked["workdir"])
    if hosts.is_lead():
        (pathlib.Path(asked["workdir"]) / "losses.json").write_text(json.dumps(losses))
        (pathlib.Path(asked["workdir"]) / "held_out.json").write_text(json.dumps(held_out))


main()
