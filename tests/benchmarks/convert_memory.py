"""Peak memory of a conversion, next to the size of the checkpoint and of its largest file.

    python tests/benchmarks/convert_memory.py --gigabytes=4 --shard=1GB --folder=/tmp

Writes a synthetic BAGEL in shards (bfloat16, the layers of a narrower model), converts it into a run and back
in processes of their own, and prints the peak resident memory of each. Exit code 0 where both stay below the
largest file plus 2 GiB. Everything is removed at the end; the disk needs about three times the size, with
`--dtype=float32` five times.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import jax.numpy as jnp
import numpy as np

from process_gen.checkpoints.published import bagel, tensors
from process_gen.checkpoints.published.flux import moves_of
from process_gen.convert import parse_bytes
from process_gen.models.config import FluxConfig, ModelConfig, VitConfig

ROOT = pathlib.Path(__file__).parents[2]
ALLOWED = 2 << 30
DTYPE = jnp.dtype(jnp.bfloat16)
_MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
sys.exit(code)
"""


def model_of(size: int) -> ModelConfig:
    """A narrower BAGEL with as many layers as make about `size` bytes."""

    def config(layers: int) -> ModelConfig:
        return ModelConfig(
            vocab_size=32000,
            width=2048,
            layers=layers,
            mlp=8192,
            heads=16,
            kv_heads=4,
            head_dim=128,
            autoencoder="flux",
            flux=FluxConfig(ch=32),
            vit=VitConfig(width=256, layers=2, mlp=512, heads=4, patch=14, max_side=70),
        )

    one, two = (sum(int(np.prod(s)) for s in bagel.model_shapes(config(n)).values()) for n in (1, 2))
    layers = round((size / DTYPE.itemsize - one) / (two - one)) + 1
    return config(max(1, layers))


def synthetic(moves: list, rng: np.random.Generator) -> list[tensors.Item]:
    """Tensors of these names and shapes, of numbers that do not compress and cost little to make."""
    numbers = rng.standard_normal(1 << 22).astype(DTYPE)

    def blocks(move):
        left = int(np.prod(move.shape))
        while left:
            yield numbers[: min(left, numbers.size)]
            left -= min(left, numbers.size)

    return [tensors.Item(m.theirs, DTYPE, m.shape, lambda m=m: blocks(m)) for m in moves]


def build(folder: pathlib.Path, model: ModelConfig, shard: int) -> int:
    """Writes the checkpoint; returns bytes of its largest file."""
    rng = np.random.default_rng(0)
    items = synthetic(bagel.bagel_moves(model), rng)
    items += [tensors.Item.of(name, x.astype(DTYPE)) for name, x in bagel.fixed_tables(model).items()]
    tensors.write(folder, "ema", items, shard)
    tensors.write(folder, "ae", synthetic(moves_of(model.flux), rng))
    for name, fields in bagel.json_files(model).items():
        (folder / name).write_text(json.dumps(fields))
    return max(path.stat().st_size for path in folder.iterdir())


def measure(*arguments: str) -> tuple[int, float]:
    """Peak bytes and seconds of `python -m process_gen.convert`."""
    start = time.time()
    command = [sys.executable, "-c", _MEASURE, sys.executable, "-m", "process_gen.convert", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1]), time.time() - start


def main() -> int:
    """Builds, converts both ways, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the checkpoint")
    parser.add_argument("--shard", default="1GB", help="size of its files")
    parser.add_argument("--folder", default=None, help="where to write for a while")
    parser.add_argument("--dtype", default="bfloat16", help="of the run's arrays")
    parser.add_argument("--mesh", default="fsdp=8", help="that the run's arrays are cut for")
    given = parser.parse_args()
    model = model_of(int(given.gigabytes * 1e9))
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        place = pathlib.Path(name)
        largest = build(place / "published", model, parse_bytes(given.shard))
        size = sum(path.stat().st_size for path in (place / "published").iterdir())
        print(f"{model.layers} layers: {size / 1e9:.2f} GB, largest file {largest / 1e9:.2f} GB", flush=True)
        ways = (
            ("in", f"--source={place / 'published'}", f"--target={place / 'run'}", f"--mesh={given.mesh}"),
            ("out", f"--source={place / 'run'}", f"--target={place / 'out'}", "--to=bagel"),
        )
        over = False
        for way, *arguments in ways:
            peak, seconds = measure(*arguments, f"--dtype={given.dtype}")
            over |= peak > largest + ALLOWED
            allowed = f"largest file + 2 GiB is {(largest + ALLOWED) / 2**30:.2f} GiB"
            print(f"{way:4} peak {peak / 2**30:.2f} GiB, {allowed}; {seconds:.0f} s", flush=True)
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
