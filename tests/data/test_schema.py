import dataclasses

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer

from process_gen.data.errors import BadTrajectory
from process_gen.data.schema import features, read_record, to_example
from process_gen.trajectory.stages import TURN_FIELDS, Trajectory, Turn
from tests.data.conftest import assert_same_trajectory, random_trajectory


def serialize(trajectory, image_size):
    spec = features(image_size)
    serializer = example_serializer.ExampleSerializer(spec.get_serialized_info())
    return serializer.serialize_example(spec.encode_example(to_example(trajectory)))


@pytest.mark.parametrize("seed", range(8))
def test_a_trajectory_comes_back_exactly(seed):
    trajectory = random_trajectory(seed, image_size=(6, 10), twice=0.5)
    assert_same_trajectory(read_record(serialize(trajectory, (6, 10)), (6, 10)), trajectory)


def test_absent_and_empty_texts_stay_apart():
    image = np.zeros((4, 4, 3), np.uint8)
    turns = (Turn(image, after=""), Turn(image), Turn(image, ""), Turn(image, "<ins>garbled", refines=True))
    trajectory = Trajectory("", turns, metadata={"a": [1, {"b": None}]})
    assert_same_trajectory(read_record(serialize(trajectory, (4, 4)), (4, 4)), trajectory)


def test_the_reader_sees_what_tfds_sees():
    trajectory = random_trajectory(5, steps=3)
    record = serialize(trajectory, (8, 8))
    example = features((8, 8)).deserialize_example_np(record)
    ours, theirs = read_record(record, (8, 8)), example["turns"]
    assert example["prompt"].decode() == ours.prompt
    assert set(theirs) == {field.name for field in TURN_FIELDS} | {"has_before", "has_after", "has_image"}
    np.testing.assert_array_equal(np.stack(theirs["image"]), np.stack([t.image for t in ours.turns]))
    for name in ("before", "after"):
        assert [text.decode() for text in theirs[name]] == [getattr(t, name) or "" for t in ours.turns]
        assert list(theirs[f"has_{name}"]) == [getattr(t, name) is not None for t in ours.turns]
    for name in ("refines", "image_ok", "before_weight", "image_weight", "after_weight"):
        assert list(theirs[name]) == [getattr(t, name) for t in ours.turns]


def test_what_is_no_record_says_so():
    record = serialize(random_trajectory(5), (8, 8))
    for bytes_, size in ((record, (4, 4)), (record[: len(record) // 2], (8, 8)), (b"", (8, 8))):
        with pytest.raises(BadTrajectory, match="not a trajectory record"):
            read_record(bytes_, size)


def test_metadata_must_be_json():
    with pytest.raises(BadTrajectory, match="'toy-1': its metadata is not JSON"):
        to_example(dataclasses.replace(random_trajectory(1), metadata={"x": object()}))


def test_the_features_are_plain_tfds_features():
    assert isinstance(features((8, 8)), tfds.features.FeaturesDict)
    assert features((8, 8))["turns"]["image"].shape == (8, 8, 3)


@pytest.mark.parametrize("shown", [True, False])
def test_input_images_come_back_where_the_data_set_has_a_place_for_them(shown):
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    added = {"prompt_image": image, "instruction": "make it red"} if shown else {}
    trajectory = dataclasses.replace(random_trajectory(2), **added)
    spec = features((8, 8), prompt_image=True)
    serializer = example_serializer.ExampleSerializer(spec.get_serialized_info())
    example = to_example(trajectory, prompt_image=True)
    found = read_record(serializer.serialize_example(spec.encode_example(example)), (8, 8))
    assert found.instruction == trajectory.instruction and found.prompt == trajectory.prompt
    if shown:
        np.testing.assert_array_equal(found.prompt_image, image)
        with pytest.raises(BadTrajectory, match="has an input image, and this data set has no place"):
            to_example(trajectory)
    else:
        assert found.prompt_image is None


def test_a_correction_of_words_alone_comes_back():
    trajectory = random_trajectory(2)
    turns = (*trajectory.turns, Turn(None, "<refine>redder</refine>", refines=True))
    trajectory = dataclasses.replace(trajectory, turns=turns)
    assert_same_trajectory(read_record(serialize(trajectory, (8, 8)), (8, 8)), trajectory)
