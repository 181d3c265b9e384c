"""The train step and the sampler of this tree against those of another one; nothing is asserted.

    git worktree add /tmp/other fd4c97d
    python tests/benchmarks/versus.py --other=/tmp/other                       # scenes.py:quick
    python tests/benchmarks/versus.py --other=/tmp/other --what=mid
    python tests/benchmarks/versus.py --other=/tmp/other --what=sampling

Each tree runs in a process of its own, on its own data pipeline, and the two take
turns: one works while the other waits. Useful tokens are those that the tree counts
itself (`amounts`). `quick` is the config of that name, `mid` a model of width 256
and 6 layers on images of 256 latent tokens, at the paper's mix of trajectories, and
`sampling` draws 64 held-out prompts of three and four objects with the shipped weights.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

HERE = pathlib.Path(__file__).resolve().parents[2]


def main() -> None:
    """Runs both trees in turn and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--other", required=True, help="Folder of the other tree.")
    parser.add_argument("--what", choices=("quick", "mid", "sampling"), default="quick")
    parser.add_argument("--rounds", type=int, default=5, help="How often each tree is timed.")
    parser.add_argument("--batches", type=int, default=3, help="Train steps of a round.")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return serve(args)
    with tempfile.TemporaryDirectory() as folder:
        if args.what == "mid":
            write_mix(pathlib.Path(folder))
        trees = {"this": HERE, "other": pathlib.Path(args.other).resolve()}
        workers = {name: Worker(tree, folder, args) for name, tree in trees.items()}
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
        for _ in range(args.rounds):
            for name, worker in workers.items():
                rounds[name].append(worker.ask())
    medians = {
        name: {key: statistics.median(one[key] for one in found) for key in found[0]}
        for name, found in rounds.items()
    }
    print(f"\n{args.what}, medians of {args.rounds} rounds in turn")
    for key, ours in medians["this"].items():
        theirs = medians["other"][key]
        print(f"{key:24s} this {ours:12,.3f}   other {theirs:12,.3f}   this/other {ours / theirs:.2f}")


class Worker:
    """A process that works when it is asked to."""

    def __init__(self, tree: pathlib.Path, folder: str, args: argparse.Namespace):
        command = [sys.executable, __file__, "--worker", f"--other={folder}", f"--what={args.what}"]
        self._process = subprocess.Popen(
            [*command, f"--batches={args.batches}"],
            env=os.environ | {"PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def ask(self) -> dict[str, float]:
        """One round."""
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
            print(line, end="", flush=True)
        raise RuntimeError("a tree failed; its message is above")


def serve(args: argparse.Namespace) -> None:
    """A worker: prepares, then answers every line with what it measured."""
    # An editable installation of one tree would lend the other one the modules that it lacks.
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
    measure = sampling() if args.what == "sampling" else training(args)
    measure()
    print("{}", flush=True)
    for _ in sys.stdin:
        print(json.dumps(measure()), flush=True)


OLDER = {"experiment.builders": "experiment", "training.step": "train_step"}
"""What modules were called before they had rooms; others stood on the top floor under their own names."""


def of_tree(name: str) -> Any:
    """A module of the tree that this process imports, which may be older than the rooms of this one."""
    try:
        return importlib.import_module(f"process_gen.{name}")
    except ModuleNotFoundError:
        return importlib.import_module(f"process_gen.{OLDER.get(name, name.split('.')[-1])}")


# -------------------------------------------------------------------- training


def training(args: argparse.Namespace) -> Callable[[], dict[str, float]]:
    """Train steps on batches of the tree's own loader."""
    import flax.linen as nn
    import jax

    from process_gen.data.buckets import split_into_buckets
    from process_gen.data.sources import prepare_source
    from process_gen.trajectory.batch import Batch

    builders, vocabulary = of_tree("experiment.builders"), of_tree("experiment.vocabulary")
    amounts, program, steps = (of_tree(f"training.{name}") for name in ("amounts", "program", "step"))
    config = mid_config(args.other) if args.what == "mid" else quick_config(args.other)
    tokenizer = vocabulary.build_tokenizer(config)
    model = builders.build_model(config, tokenizer)
    layouts = builders.build_layouts(config)
    source = prepare_source(config.data, model.layout, tokenizer, report=lambda _: None)
    buckets, rows = split_into_buckets(source, list(layouts)), range(config.train.batch_size)
    try:
        loader = of_tree("training.loading").load(config, buckets, layouts, tokenizer, rows)
    except ModuleNotFoundError:  # it stood in the training loop
        loader = of_tree("train")._load(config, len(source), buckets, layouts, tokenizer, rows)
    print(loader.report(), flush=True)
    recipe = program.build_recipe(config, model)
    batches = (Batch(**batch) for batch in iter(loader))
    spec = Batch.spec(model.layout, len(rows))
    more = {"unbox": nn.unbox} if "unbox" in inspect.signature(steps.init_state).parameters else {}
    init = jax.jit(lambda key: nn.unbox(steps.init_state(recipe, spec, key, **more)))
    state = jax.block_until_ready(init(jax.random.key(0)))
    started = time.perf_counter()
    step = jax.jit(steps.make_train_step(recipe), donate_argnums=0).lower(state, next(batches)).compile()
    print(f"compiled in {time.perf_counter() - started:.0f} s", flush=True)
    count = jax.jit(functools.partial(amounts.amounts, model.layout))

    def measure() -> dict[str, float]:
        nonlocal state
        chosen = [next(batches) for _ in range(args.batches)]
        held = jax.device_get([count(batch) for batch in chosen])
        started = time.perf_counter()
        for batch in chosen:
            state, _ = step(state, batch)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - started
        useful = sum(float(h["batch/und_tokens"] + h["batch/gen_tokens"]) for h in held)
        ended = sum(float(h["batch/trajectories"]) for h in held)
        return {
            "seconds a step": seconds / len(chosen),
            "useful tokens/s": useful / seconds,
            "trajectories/s": ended / seconds,
            "useful tokens a step": useful / len(chosen),
        }

    return measure


def read_config(name: str) -> Any:
    """A config of the tree that this process imports, open to changes."""
    import process_gen

    root = pathlib.Path(process_gen.__file__).parents[1]
    values: dict[str, Any] = {"__name__": "config"}
    exec(compile((root / "configs/scenes.py").read_text(), name, "exec"), values)
    return values["get_config"](name).unlock()


def quick_config(folder: str) -> Any:
    """`scenes.py:quick` on fewer trajectories, which take less time to draw."""
    config = read_config("quick")
    config.data.update(dict(data_dir=folder, examples=2_000))
    return config


def mid_config(folder: str) -> Any:
    """Width 256, 6 layers, 256 latent tokens an image, rows of about 7,000 tokens."""
    config = read_config("quick")
    config.model.update(dict(width=256, layers=6, mlp=704, heads=4, kv_heads=4))
    turns = hasattr(config.layout, "turns")
    texts = dict(before=100, after=100) if turns else dict(plan=100, inspect=100, refine=100)
    slots = dict(turns=9, copies=1) if turns else dict(steps=5, sketch_copies=1, refined_copies=1)
    config.layout.update(dict(image_size=(128, 128), prompt=100, context="full", trajectories=4))
    config.layout.update(texts | slots)
    config.data.update(dict(source="folder", path=folder))
    config.train.batch_size = 1
    return config


def write_mix(folder: pathlib.Path, trajectories: int = 300) -> None:
    """A folder of trajectories at the paper's mix, as lines of steps, which both trees read."""
    import numpy as np
    from PIL import Image

    from process_gen.data import mix
    from process_gen.data.tokenizers import scenes_tokenizer
    from process_gen.trajectory.layout import Layout

    rng, tokenizer = np.random.default_rng(0), scenes_tokenizer()
    layout = Layout(
        image_size=(128, 128), latent_grid=(16, 16), latent_values=192, prompt=100, before=100, after=100
    )

    def words(drawn: str, spared: int = 0) -> str:
        """About as many tokens as a text of the mix has; `spared` are left to the markup."""
        wanted, text = len(mix.Letters().encode(drawn)) - spared, "red"
        while len(tokenizer.encode(f"{text} red")) <= wanted:
            text += " red"
        return text

    lines = []
    for part in mix.draw(layout, trajectories):
        steps: list[dict[str, str]] = []
        for turn in part.turns:
            name = f"{len(lines)}_{len(steps)}_{int(turn.refines)}.png"
            Image.fromarray(rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)).save(folder / name)
            if turn.refines:
                steps[-1] |= {"refine": words(turn.before, 2), "refined": name}
                continue
            half = words(turn.before, 10).split()
            middle = len(half) // 2
            plan = {"instruction": " ".join(half[:middle]), "description": " ".join(half[middle:])}
            steps.append(plan | {"sketch": name})
            if turn.after is not None:
                steps[-1]["inspect"] = words(turn.after, 2)
        lines.append(json.dumps({"prompt": words(part.prompt), "steps": steps}))
    (folder / "trajectories.jsonl").write_text("\n".join(lines) + "\n")


# -------------------------------------------------------------------- sampling


def sampling(prompts: int = 64) -> Callable[[], dict[str, float]]:
    """The shipped weights draw prompts that ask for long trajectories."""
    import numpy as np

    from process_gen.scenes.prompts import sample_request

    sampler, restored = of_tree("weights.restore").load_sampler(None, rows=32)
    rng, groups = np.random.default_rng(0), ("three_objects", "four_objects")
    asked = (sample_request(rng, restored.level_name, groups[i % 2], "heldout") for i in range(prompts))
    texts, seeds = [request.text for request in asked], iter(range(1_000))

    def measure() -> dict[str, float]:
        started = time.perf_counter()
        drawn = sampler.sample(texts, seed=next(seeds))
        seconds = time.perf_counter() - started
        turns = [turn for one in drawn for turn in (one.turns if hasattr(one, "turns") else one.steps)]
        images = len(turns) + sum(getattr(turn, "refined", None) is not None for turn in turns)
        return {
            "trajectories/s": len(drawn) / seconds,
            "images/s": images / seconds,
            "images of a trajectory": images / len(drawn),
        }

    return measure


if __name__ == "__main__":
    main()
