"""The TFDS schema of trajectories with raw pixels (`records`), and both ways between it and `Trajectory`.

A record holds the texts and the raw pixels of a trajectory. TFDS writes it
from `features(...)`; `read_record` parses the same bytes without TFDS, some
twenty times faster, which is what training does.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from process_gen.data.errors import BadTrajectory
from process_gen.trajectory.stages import TURN_FIELDS, Trajectory, Turn, turn_fields


def features(image_size: tuple[int, int], *, prompt_image: bool = False) -> tfds.features.FeaturesDict:
    """Returns the TFDS features of trajectories with images of one size.

    `prompt_image` adds the input image of a prompt and the text after it.

    A text that is absent is stored as the empty string with its `has_` flag off, an image as zeros.
    Pixels are stored raw: ArrayRecord compresses each record, and nothing has to
    be decoded on the way back.
    """

    kinds = {
        "flag": lambda: tfds.features.Scalar(dtype=np.bool_),
        "image": lambda: tfds.features.Tensor(shape=(*image_size, 3), dtype=np.uint8, encoding="bytes"),
        "text": tfds.features.Text,
        "weight": lambda: tfds.features.Scalar(dtype=np.float32),
    }
    turn = {field.name: kinds[field.type]() for field in TURN_FIELDS}
    turn |= {f"has_{field.name}": kinds["flag"]() for field in turn_fields("text", "image")}
    prompt = dict.fromkeys(("uid", "prompt", "metadata"), "text")
    if prompt_image:
        prompt |= {"prompt_image": "image", "has_prompt_image": "flag", "instruction": "text"}
    prompt = {name: kinds[kind]() for name, kind in prompt.items()}
    return tfds.features.FeaturesDict({**prompt, "turns": tfds.features.Sequence(turn)})


def to_example(trajectory: Trajectory, *, prompt_image: bool = False) -> dict[str, Any]:
    """Returns a trajectory as an example of `features` with the same `prompt_image`.

    Raises BadTrajectory: the metadata is not JSON, or it has an input image and `prompt_image` is off.
    """
    prompt = {}
    if prompt_image:
        given = trajectory.prompt_image
        prompt["has_prompt_image"] = given is not None
        prompt["prompt_image"] = np.zeros_like(trajectory.image) if given is None else given
        prompt["instruction"] = trajectory.instruction
    elif trajectory.prompt_image is not None or trajectory.instruction:
        raise BadTrajectory(
            f"trajectory {trajectory.uid!r} has an input image, and this data set has no place for one: "
            "make it with prompt_image=True"
        )
    try:
        metadata = json.dumps(dict(trajectory.metadata), sort_keys=True)
    except TypeError as error:
        raise BadTrajectory(f"trajectory {trajectory.uid!r}: its metadata is not JSON: {error}") from None
    return {
        "uid": trajectory.uid,
        "prompt": trajectory.prompt,
        "metadata": metadata,
        **prompt,
        "turns": [_turn_to_example(turn, np.zeros_like(trajectory.image)) for turn in trajectory.turns],
    }


def _turn_to_example(turn: Turn, blank_image: np.ndarray) -> dict[str, Any]:
    values = {field.name: getattr(turn, field.name) for field in TURN_FIELDS}
    has = {f"has_{field.name}": values[field.name] is not None for field in turn_fields("text", "image")}
    blanks = {"text": "", "image": blank_image}
    there = {name: one for name, one in values.items() if one is not None}
    return has | {field.name: blanks.get(field.type) for field in TURN_FIELDS} | there


def read_record(record: bytes, image_size: tuple[int, int]) -> Trajectory:
    """Returns the trajectory that TFDS serialized with `features(image_size)`, input images or not.

    Raises BadTrajectory: the bytes are no such record.
    """

    def read(name: str, kind: str) -> list[Any]:
        """All values of one feature."""
        feature = fields[name]
        if kind == "flag":
            return [bool(value) for value in feature.int64_list.value]
        if kind == "weight":
            return list(feature.float_list.value)
        if kind == "image":
            return [np.frombuffer(x, np.uint8).reshape(*image_size, 3) for x in feature.bytes_list.value]
        return [value.decode() for value in feature.bytes_list.value]

    try:
        fields = tf_example_pb2.Example.FromString(record).features.feature
        uid, prompt, metadata = (read(name, "text")[0] for name in ("uid", "prompt", "metadata"))
        image, instruction = None, ""
        if "has_prompt_image" in fields:
            (instruction,) = read("instruction", "text")
            image = read("prompt_image", "image")[0] if read("has_prompt_image", "flag")[0] else None
        columns = {}
        for field in TURN_FIELDS:
            values = read(f"turns/{field.name}", field.type)
            if f"turns/has_{field.name}" in fields:  # not of flags, weights, and images of old sets
                there = read(f"turns/has_{field.name}", "flag")
                values = [x if has else None for x, has in zip(values, there, strict=True)]
            columns[field.name] = values
        turns = [dict(zip(columns, turn, strict=True)) for turn in zip(*columns.values(), strict=True)]
        turns = tuple(Turn(**turn) for turn in turns)
        return Trajectory(prompt, turns, uid, json.loads(metadata), image, instruction)
    except Exception as error:
        raise BadTrajectory(f"not a trajectory record of images of {image_size}: {error}") from error


class RecordSource:
    """Random access to one split of a TFDS data set with the schema of `features`.

    Attributes:
      own_splits: whether the set has a validation split; without one, a share of it is held out.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str = "train"):
        """Raises ValueError where the set lacks the split, or its schema is not that of trajectories."""
        info = builder.info
        if split not in info.splits:
            raise ValueError(f"{info.full_name} has no split {split!r}; it has {', '.join(info.splits)}")
        self.own_splits = "validation" in info.splits
        self.name = f"{info.full_name}/{split}"
        if "steps" in info.features and "turns" not in info.features:
            raise ValueError(
                f"{info.full_name} holds trajectories of an earlier version, in steps and not in turns: make "
                "it anew with `python -m process_gen.prepare --config=...`, or with what made it"
            )
        try:
            self.image_size = tuple(info.features["turns"]["image"].shape[:2])
        except (KeyError, TypeError, AttributeError):
            raise ValueError(
                f"{info.full_name} holds no trajectories: its features are {info.features}"
            ) from None
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        self._records = builder.as_data_source(split=split, deserialize_method=raw)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Trajectory:
        """Returns one trajectory; raises BadTrajectory for a damaged record (ArrayRecord has checksums)."""
        try:
            record = self._records[index]
        except RuntimeError as error:
            raise BadTrajectory(f"record {index} of {self.name} is damaged: {error}") from error
        return read_record(record, self.image_size)
