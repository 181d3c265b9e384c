"""Known answers of random BAGELs of other sizes, by a second and plain program, for rows of other kinds."""

from __future__ import annotations

import jax
import pytest

from process_gen.verify_checkpoint import known_answers
from process_gen.weights.origin import read_weights
from tests.checkpoints.published.conftest import SMALL
from tests.parity import made

SIZES = {
    "llm": SMALL["llm"] | dict(rms_norm_eps=1e-5, rope_theta=5e4),
    "vit": SMALL["vit"] | dict(layer_norm_eps=1e-5),
    "config": SMALL["config"],
}
EDITED = [
    ["clean", "vit", "text:5", "noised"],
    ["text:6", "target:9", "noised", "clean", "vit", "target:4", "text:3", "noised", "clean", "target:3"],
    ["text:3", "target:7"],
    ["vit", "target:6"],
]
"""An image that is edited, steps without a ViT image, texts alone, an image that is described."""
SEEN = [["text:6", "target:9"], ["text:4", "vit", "target:5"]]
"""A row without latents."""
ODD = [
    ["text:4", "noised"],
    ["noised", "noised", "clean", "clean", "vit", "vit", "target:5"],
    ["target:5", "clean", "noised"],
]
"""Targets and images one after the other, a sample that begins with a supervised text."""


@pytest.mark.slow  # forward, backward and five samples, twice over
@pytest.mark.parametrize(
    ("rows", "hw", "vit_hw"),
    [(EDITED, (12, 20), (8, 16)), (SEEN, (12, 20), (8, 16)), (ODD, (20, 8), (16, 4))],
    ids=["edited", "seen", "odd"],
)
def test_known_answers_of_other_sizes_and_rows(tmp_path, rows, hw, vit_hw):
    with jax.numpy_rank_promotion("allow"):  # the reference adds a bias as NumPy would
        folder = str(made.write(tmp_path / "bagel", SIZES, hw, vit_hw, rows, seed=len(rows)))
    entries = known_answers(read_weights(folder), folder)
    assert {entry.name for entry in entries} > {"train_loss", "flow_image", "inf_greedy_tokens"}
    assert not [entry for entry in entries if not entry.error < 1e-4]
