"""What a feature costs a train step, in time and memory, against a step without any; nothing is asserted.

    python tests/benchmarks/overhead.py --config=configs/scenes.py:quick
    python tests/benchmarks/overhead.py --config=configs/bagel_7b.py:debug --rounds=20 --arms=plain,pixels

Every arm is compiled once. Then they take turns, a step each, so what disturbs the machine disturbs all of
them; a ratio is the median over rounds of an arm's time by that of `plain` in the same round, with its
quartiles. Memory is what the compiler plans for a step: its arguments, results and temporaries, what is
given up for a result counted once. `plain` twice, as `again`, says what the noise is. Random weights and
random batches. Whether `plain` is as fast as that of an earlier version, `tests/benchmarks/versus.py` says.

    reference    `text_kl`: the model as it was when the run began computes all texts once more
    pixels       `spatial_consistency`: images are decoded, with gradient
    encoder      `semantic_consistency`: and a frozen encoder sees them
    lora         adapters of rank 8, and nothing else trained
    own          states of its own in context; a row of its own has what a drawing takes
"""

from __future__ import annotations

from absl import flags

from process_gen.experiment import cli

if __name__ == "__main__":  # bad flags are found before the slow imports
    flags.DEFINE_integer("rounds", 15, "Steps of each arm that are timed.", lower_bound=1)
    flags.DEFINE_list("arms", None, "Some of those above, with commas; all of them by default.")
    cli.read_flags(config="configs/scenes.py:quick")

# isort: split
import dataclasses
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from process_gen.common.names import check_name
from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.distributed import sharding
from process_gen.distributed.mesh import MeshConfig, make_mesh
from process_gen.experiment import builders
from process_gen.reports.table import table
from process_gen.training.own import OwnStates
from process_gen.training.program import TrainProgram
from process_gen.trajectory.batch import Batch

sys.path.append(str(pathlib.Path(__file__).parents[2]))  # the folder that holds `tests`
from tests.data.fake import fake_batch  # noqa: E402

NAMES = ("plain", "again", "reference", "pixels", "encoder", "lora", "own")
ROWS = {
    "reference": dict(loss="text_kl", stage="plan", weight=0.1),
    "pixels": dict(loss="spatial_consistency", stage="sketch", weight=0.1, threshold=255.0),
    "encoder": dict(loss="semantic_consistency", stage="sketch", weight=0.1),
}


def config_of(arm: str, config: ConfigDict) -> ConfigDict:
    """The config with what the arm turns on."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        if arm in ROWS:
            config.losses[arm] = ROWS[arm]
        elif arm == "lora":
            config.model.lora.rank = 8
        elif arm == "own":
            config.train.own.update(dict(share=1.0, every=1))
    return config


@dataclasses.dataclass
class Arm:
    """A compiled step, its state and its batch; times in seconds, memory in bytes."""

    step: Any
    state: Any
    batch: Batch
    compile_seconds: float
    memory: int
    seconds: list[float] = dataclasses.field(default_factory=list)
    drawing: list[float] = dataclasses.field(default_factory=list)
    own: tuple[OwnStates, dict[str, Any]] | None = None

    @classmethod
    def of(cls, name: str, config: ConfigDict) -> Arm:
        """Builds and compiles an arm."""
        config, tokenizer = config_of(name, config), scenes_tokenizer()
        builders.check(config)
        mesh = make_mesh(MeshConfig(**config.mesh.to_dict()))
        model = builders.build_model(config, tokenizer)
        program, rows = TrainProgram.of(config, model, mesh), config.train.batch_size
        state = program.create_state(jax.random.key(0))
        batch, own = fake_batch(model.layout, rows, 0, tokenizer.vocab_size), None
        if name == "own":
            states = OwnStates(config, {model.layout.image_size: program}, range(rows))
            own, batch = (states, batch), states.fed(1, batch)
        started = time.perf_counter()
        step = program.compiled()
        seconds, plan = time.perf_counter() - started, step.memory_analysis()
        sizes = (plan.argument_size_in_bytes, plan.output_size_in_bytes, plan.temp_size_in_bytes)
        memory = sum(sizes) - plan.alias_size_in_bytes
        return cls(step, state, sharding.shard_batch(Batch(**batch), mesh), seconds, memory, own=own)

    def run(self) -> float:
        """A step; the seconds it took."""
        if self.own:
            started = time.perf_counter()
            states, batch = self.own
            states.draw(1, self.state, batch)
            states.measure(1, self.state, batch)
            self.drawing.append(time.perf_counter() - started)
        started = time.perf_counter()
        self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - started


def main(_: Any) -> None:
    """Times the arms in turn and prints a table."""
    values = flags.FLAGS
    for name in (chosen := values.arms or NAMES):
        check_name(name, NAMES, "arm")
    arms = {name: Arm.of(name, values.config) for name in dict.fromkeys(("plain", *chosen))}
    for arm in arms.values():
        arm.run()
    for number in range(values.rounds):
        order = list(arms) if number % 2 else list(arms)[::-1]
        for name in order:
            arms[name].seconds.append(arms[name].run())
    plain, rows = arms["plain"], []
    for name, arm in arms.items():
        rows.append(_row(name, arm.seconds, plain) + (arm.memory / 2**20, arm.memory / plain.memory))
        if arm.own:
            rows.append((*_row("a drawing and its meter", arm.drawing[1:], plain), "", ""))
    headers = ("arm", "ms a step", "by plain", "quartiles", "MiB planned", "by plain")
    print(table(rows, headers, digits=3))
    compiled = ", ".join(f"{name} {arm.compile_seconds:.1f}" for name, arm in arms.items())
    print(f"seconds of compilation: {compiled}")


def _row(name: str, seconds: list[float], plain: Arm) -> tuple[Any, ...]:
    ratios = np.asarray(seconds) / np.asarray(plain.seconds)
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return name, 1000 * float(np.median(seconds)), float(middle), f"{low:.3f} - {high:.3f}"


if __name__ == "__main__":
    cli.run(main, (ValueError,))
