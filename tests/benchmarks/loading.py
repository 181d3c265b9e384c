"""Trajectories a second from disk to packed rows: JPEG files, Parquet, tar shards and latents, by threads.

    python -m tests.benchmarks.loading --size=512 --trajectories=96 --threads=0,2
    python -m tests.benchmarks.loading --step_seconds=1.2 --batch=4      # and the share of a train step

Images are random shapes on noise of three turns a trajectory, saved as JPEG of quality 90. Each way reads the
same trajectories in the same random order, one after the other, `--times` times; the median counts.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import tempfile
import time

import numpy as np
from PIL import Image, ImageDraw

from process_gen.data.formats import writers
from process_gen.data.formats.opening import open_stored
from process_gen.data.latents import LatentsInfo, LatentsSource, LatentsWriter, images_of
from process_gen.data.loader import make_loader
from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.reports.table import table
from process_gen.trajectory.layout import Layout

TURNS = 3


def write_set(folder: pathlib.Path, count: int, size: int, rng: np.random.Generator) -> None:
    """A folder of trajectories with JPEG images a third larger than those that are read."""
    folder.mkdir(parents=True)
    side, lines = size * 4 // 3, []
    for number in range(count):
        turns = []
        for turn in range(TURNS):
            noise = rng.integers(90, 166, (side // 8, side // 8, 3), np.uint8)
            image = Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)
            corners = np.sort(rng.integers(0, side, (2, 2)), axis=0).ravel().tolist()
            ImageDraw.Draw(image).ellipse(corners, tuple(rng.integers(0, 256, 3).tolist()))
            image.save(folder / f"{number}_{turn}.jpg", quality=90)
            words = {"instruction": "add a red circle", "description": "a red circle at a2"}
            turns.append({**words, "image": f"{number}_{turn}.jpg", "inspect": "the circle is red"})
        lines.append(json.dumps({"prompt": "a red circle and a blue square", "turns": turns}))
    (folder / "trajectories.jsonl").write_text("\n".join(lines))


def with_latents(source, folder: pathlib.Path, layout: Layout) -> LatentsSource:
    """The source with latents of zeros, images undecoded."""
    blank = np.zeros((layout.latents, layout.latent_values), np.float32)
    with LatentsWriter(folder, LatentsInfo.of(source, layout, "none")) as writer:
        for index in range(len(source)):
            one, files_sum = source[index], source.without_pixels(index)[1]
            writer.write(one, np.stack([blank] * len(images_of(one))), files_sum)
    return LatentsSource(source, folder, layout, pixels=False)


def seconds(source, layout: Layout, batch: int, threads: int) -> float:
    """Of one epoch."""
    loader = make_loader(source, scenes_tokenizer(), layout, batch, epochs=1, prefetch=0, threads=threads)
    iterator, start = iter(loader), time.perf_counter()
    for _ in iterator:
        pass
    spent = time.perf_counter() - start
    iterator.close()
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--trajectories", type=int, default=96)
    parser.add_argument("--threads", default="0,2")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--batch", type=int, default=2, help="rows")
    parser.add_argument("--step_seconds", type=float, default=0.0, help="of a train step, to compare with")
    args = parser.parse_args()
    patch = 16
    grid = (args.size // patch,) * 2
    layout = Layout(
        image_size=(args.size,) * 2,
        latent_grid=grid,
        latent_values=64,
        turns=6,
        trajectories=2,
        context="step",
    )
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        write_set(root / "folder", args.trajectories, args.size, np.random.default_rng(0))
        folder = open_stored(root / "folder", layout.image_size)
        writers.write_parquet(root / "parquet", writers.objects(folder))
        writers.write_webdataset(root / "shards", writers.objects(folder))
        sources = {
            "JPEG files": folder,
            "Parquet": open_stored(root / "parquet", layout.image_size),
            "tar shards": open_stored(root / "shards", layout.image_size),
            "latents": with_latents(folder, root / "latents", layout),
        }
        ways = [(name, threads) for name in sources for threads in map(int, args.threads.split(","))]
        spent = {way: [] for way in ways}
        for _ in range(args.times):
            for name, threads in ways:  # in turn, so that what else the machine does meets all alike
                spent[name, threads].append(seconds(sources[name], layout, args.batch, threads))
    rows = []
    for (name, threads), times in spent.items():
        rate = args.trajectories / statistics.median(times)
        share = ""
        if args.step_seconds:
            needed = args.batch * layout.turns / TURNS / rate
            share = f"{needed / args.step_seconds:.0%}"
        rows.append((name, threads, round(rate, 1), round(TURNS * rate, 1), share))
    print(table(rows, ("read from", "threads", "trajectories/s", "images/s", "of a step"), digits=1))


if __name__ == "__main__":
    main()
