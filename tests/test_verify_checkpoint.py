"""`python -m process_gen.verify_checkpoint`: every known answer, the table, the exit codes."""

from __future__ import annotations

import pathlib
import shutil
import types

import jax
import numpy as np
import pytest
import safetensors.numpy

from process_gen import convert, verify_checkpoint
from process_gen.checkpoints.errors import CheckpointMismatch
from process_gen.checkpoints.published.sources import tree
from process_gen.parity.answers import Entry, distance, is_given, training_answers
from process_gen.parity.golden import read_golden
from process_gen.weights.origin import read_weights

FOLDER = pathlib.Path(__file__).parent / "golden" / "bagel_tiny"
ANSWERS = [name for name in read_golden(FOLDER).arrays if not is_given(name)]


def flags(**changes) -> types.SimpleNamespace:
    fields = dict(checkpoint=str(FOLDER), golden=None, tolerance=1e-4, dtype="float32", which="ema", vit=True)
    return types.SimpleNamespace(**fields | changes)


@pytest.fixture(scope="module")
def entries() -> dict[str, Entry]:
    """All errors, computed once."""
    found = verify_checkpoint.known_answers(read_weights(str(FOLDER)), str(FOLDER))
    return {entry.name: entry for entry in found}


@pytest.mark.slow  # three layers, forward and backward, and five samples: minutes of compilation
@pytest.mark.parametrize("name", ANSWERS)
def test_a_known_answer_comes_out_of_our_own_parts(entries, name):
    assert entries[name].error < 1e-4


@pytest.mark.slow  # forward and backward once more
def test_the_scan_over_turns_gives_the_same_answers_as_the_loop_over_layers():
    weights, golden = read_weights(str(FOLDER)), read_golden(FOLDER)
    config = verify_checkpoint.computed_as(weights, "float32")
    with jax.default_matmul_precision("highest"):
        found = training_answers(golden, config, tree(weights.params), order="scan")
    traced = {"train_hidden", "train_position_ids", "train_latents", "train_vae_position_ids"}
    assert set(found) == {name for name in ANSWERS if name.startswith(("train_", "grad/"))} - traced
    assert not [name for name, x in found.items() if not distance(x, golden[name]) < 1e-4]


def test_the_parts_of_a_checkpoint_are_counted():
    text, good = verify_checkpoint.run(flags())
    stored = sum(
        np.prod(x.shape)
        for file in ("ema", "ae")
        for name, x in safetensors.numpy.load_file(FOLDER / f"{file}.safetensors").items()
        if not name.endswith("pos_embed")  # fixed tables, which are no parameters
    )
    assert good and f"{stored:,}" in text
    assert "other" not in text and "every tensor is there" in text


def test_a_converted_checkpoint_is_checked_like_the_published_one(tmp_path):
    """The arrays that known answers are computed with are the same bits, and so is the timestep shift."""
    published = read_weights(FOLDER)
    convert.convert(published, str(tmp_path / "run"))
    ours = read_weights(str(tmp_path / "run"))
    text, good = verify_checkpoint.run(flags(checkpoint=str(tmp_path / "run")))
    assert good and "(ours)" in text and "every tensor is there" in text
    pairs = zip(verify_checkpoint.opened(ours), verify_checkpoint.opened(published), strict=True)
    for mine, theirs in pairs:
        assert mine.spec == theirs.spec
        assert all(np.array_equal(mine.read(name), theirs.read(name)) for name in mine.spec)
    assert ours.metadata["published"] == published.metadata["published"]


def broken(tmp_path: pathlib.Path, change) -> str:
    folder = tmp_path / "broken"
    shutil.copytree(FOLDER, folder)
    tensors = safetensors.numpy.load_file(folder / "ema.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / "ema.safetensors")
    return str(folder)


def test_a_number_that_is_none_is_found(tmp_path):
    def change(tensors):
        tensors["llm2vae.bias"] = np.full_like(tensors["llm2vae.bias"], np.nan)

    text, good = verify_checkpoint.run(flags(checkpoint=broken(tmp_path, change), golden=str(FOLDER)))
    assert not good and "latent_out/bias" in text and "relative error" not in text


def test_a_tensor_that_is_missing_is_named(tmp_path):
    name = "language_model.model.layers.1.self_attn.q_proj_moe_gen.weight"
    with pytest.raises(CheckpointMismatch, match=name):
        verify_checkpoint.run(flags(checkpoint=broken(tmp_path, lambda tensors: tensors.pop(name))))


@pytest.mark.parametrize(("error", "good"), [(9e-5, True), (2e-4, False), (float("nan"), False)])
def test_all_entries_must_be_within_the_tolerance(monkeypatch, error, good):
    found = [Entry("train_loss", (), 1e-7), Entry("flow_image", (3, 4, 4), error)]
    monkeypatch.setattr(verify_checkpoint, "known_answers", lambda *_: found)
    text, well = verify_checkpoint.run(flags(golden=str(FOLDER)))
    assert well is good and f"{1 + good} of 2 entries are within 0.0001" in text
    assert ("TOO FAR" in text) is not good


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(checkpoint=None), "--checkpoint=DIR is required"),
        (dict(dtype="float16"), "--dtype must be float32 or bfloat16"),
        (dict(tolerance=0.0), "--tolerance must be above 0"),
    ],
)
def test_bad_flags_say_what_to_do(changes, message):
    with pytest.raises(ValueError, match=message):
        verify_checkpoint.run(flags(**changes))
