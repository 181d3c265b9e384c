"""Published folders for tests: the golden one, and fakes of any size with random weights."""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy

from tests.checkpoints.published import published_names

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "bagel_tiny"
SMALL = dict(
    llm=dict(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, vocab_size=50,
    ),
    vit=dict(
        hidden_size=16, intermediate_size=20, num_hidden_layers=4, num_attention_heads=2, num_channels=3,
        image_size=16, patch_size=4,
    ),
    config=dict(
        latent_patch_size=1, max_latent_size=5, vit_max_num_patch_per_side=4, timestep_shift=2.0,
        vae=dict(
            ch=32, ch_mult=[1, 2, 2], num_res_blocks=2, z_channels=6, in_channels=3, out_ch=3,
            scale_factor=0.5, shift_factor=-0.25,
        ),
    ),
)  # fmt: skip
"""Other sizes than the golden ones: another number of levels, patches of one, three heads over one."""


def table(side: int, width: int) -> np.ndarray:
    """The fixed 2-D table, one place after another."""
    quarter = width // 4
    rates = [10000.0 ** (-i / quarter) for i in range(quarter)]
    rows = []
    for row in range(side):
        for column in range(side):
            parts = [f(place * r) for place in (column, row) for f in (np.sin, np.cos) for r in rates]
            rows.append(parts)
    return np.array(rows, np.float32)


def draw(shapes: published_names.Shapes, seed: int = 0, dtype=np.float32) -> dict[str, np.ndarray]:
    """Random numbers of these names and shapes."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def write_fake(folder: pathlib.Path, sizes: dict = SMALL, dtype=np.float32, draw=draw) -> pathlib.Path:
    """A BAGEL of these sizes, in the published layout."""
    folder.mkdir(parents=True, exist_ok=True)
    llm, vit, config = sizes["llm"], sizes["vit"], sizes["config"]
    weights = draw(published_names.bagel(llm, vit, config, config["vae"]["z_channels"]), 0, dtype)
    width = llm["hidden_size"]
    weights["latent_pos_embed.pos_embed"] = table(config["max_latent_size"], width).astype(dtype)
    weights["vit_pos_embed.pos_embed"] = table(config["vit_max_num_patch_per_side"], width).astype(dtype)
    safetensors.numpy.save_file(weights, folder / "ema.safetensors")
    safetensors.numpy.save_file(
        draw(published_names.flux(config["vae"]), 1, dtype), folder / "ae.safetensors"
    )
    for name, fields in (("llm_config", llm), ("vit_config", vit), ("config", config)):
        (folder / f"{name}.json").write_text(json.dumps(fields))
    return folder


@pytest.fixture
def golden(tmp_path) -> pathlib.Path:
    """A copy of the golden folder to break."""
    return pathlib.Path(shutil.copytree(GOLDEN, tmp_path / "bagel"))


@pytest.fixture
def fake(tmp_path) -> pathlib.Path:
    """A folder of other sizes."""
    return write_fake(tmp_path / "fake")


def rewrite(folder: pathlib.Path, change, name: str = "ema.safetensors") -> None:
    """Puts the tensors that `change` makes of a file's into its place."""
    weights = safetensors.numpy.load_file(folder / name)
    safetensors.numpy.save_file(change(weights), folder / name)


def edit(folder: pathlib.Path, name: str, **fields) -> None:
    """Sets fields of a JSON file."""
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def shard(folder: pathlib.Path, parts: int = 3, stem: str = "ema") -> pathlib.Path:
    """Cuts `<stem>.safetensors` into shards with an index, which is returned."""
    weights = safetensors.numpy.load_file(folder / f"{stem}.safetensors")
    (folder / f"{stem}.safetensors").unlink()
    places = {}
    for i in range(parts):
        name = f"{stem}-{i + 1:05d}-of-{parts:05d}.safetensors"
        mine = {n: weights[n] for n in sorted(weights)[i::parts]}
        safetensors.numpy.save_file(mine, folder / name)
        places |= dict.fromkeys(mine, name)
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index
