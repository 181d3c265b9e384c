"""What is given and what is computed, relative errors, and rows of other shapes than the stored one."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest

from process_gen.checkpoints.errors import CheckpointCorrupt, CheckpointMismatch, CheckpointNotFound
from process_gen.checkpoints.published import read_published
from process_gen.parity.answers import distance, is_given
from process_gen.parity.golden import Golden, read_golden
from process_gen.parity.row import samples_of, training_row
from process_gen.trajectory.batch import PAD_ID

FOLDER = pathlib.Path(__file__).parents[1] / "golden" / "bagel_tiny"


@pytest.fixture(scope="module")
def golden() -> Golden:
    return read_golden(FOLDER)


def changed(golden: Golden, **arrays) -> Golden:
    return dataclasses.replace(golden, arrays={**golden.arrays, **arrays})


def test_an_error_is_relative_and_anything_odd_is_infinitely_far():
    stored = np.array([3.0, 4.0])
    assert distance(stored + np.array([0.0, 0.05]), stored) == pytest.approx(0.01)
    assert distance(stored[:1], stored) == float("inf")
    assert distance(np.array([3.0, np.nan]), stored) == float("inf")
    assert distance(np.array([1, 2]), np.array([1, 2])) == 0.0
    assert distance(np.array([1, 2]), np.array([1, 3])) == float("inf")
    assert is_given("train_modes_3") and not is_given("train_hidden")


def test_samples_become_trajectories_of_turns(golden):
    first, second = samples_of(golden)
    assert first.prompt is not None and second.prompt is not None
    assert [sorted(turn) for turn in first.turns] == [["clean", "noised", "text", "vit"], ["noised", "text"]]
    assert [sorted(turn) for turn in second.turns] == [["noised", "text"]]
    row = training_row(golden, read_published(FOLDER).model)
    assert row.layout.turns == 3 and row.layout.trajectories == 2
    assert row.batch.is_first.tolist() == [[True, False, True]]
    assert row.batch.is_last.tolist() == [[False, True, True]] and not row.batch.refines.any()
    exists = {name: x.tolist() for name, x in row.turns.exists.items()}
    assert exists == dict.fromkeys(["image", "image_vit"], [[True, False, False]])
    assert len(row.places) == len(set(row.places)) == int(golden["train_sample_lens"].sum())


def test_a_text_with_targets_is_no_prompt(golden):
    """A sample that starts with a supervised text is a trajectory without a prompt."""
    token = 2
    indexes = np.concatenate([[token], golden["train_ce_indexes"]])
    other = changed(
        golden, train_ce_indexes=indexes, train_ce_labels=np.concatenate([[0], golden["train_ce_labels"]])
    )
    row = training_row(other, read_published(FOLDER).model)
    assert row.layout.turns == 4
    assert (row.batch.prompt_tokens[0, 0] == PAD_ID).all() and (row.batch.prompt_tokens[0, 1] != PAD_ID).any()
    name, at = row.targets[0]
    assert name == "before" and row.labels[name][at] == 0, "0 is a token like any other"


def test_a_label_where_no_loss_reads_is_refused(golden):
    start = int(golden["train_vae_indexes"][0]) - 1  # the token that opens an image
    other = changed(golden, train_ce_indexes=np.array([start]), train_ce_labels=np.array([1]))
    with pytest.raises(CheckpointMismatch, match=f"token {start} of the row has a label"):
        training_row(other, read_published(FOLDER).model)


def test_a_folder_without_answers_is_named(tmp_path, golden):
    with pytest.raises(CheckpointNotFound, match=r"holds no golden.npz"):
        read_golden(tmp_path)
    (tmp_path / "golden.json").write_text("{}")
    (tmp_path / "golden.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(CheckpointCorrupt, match="cannot be read"):
        read_golden(tmp_path)
    with pytest.raises(CheckpointMismatch, match="lacks flow.speed"):
        golden.setting("flow", "speed")
    with pytest.raises(CheckpointMismatch, match="lacks inf_song"):
        golden["inf_song"]
