"""How a trajectory lies on disk: the one schema of every stored data set.

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

from process_gen.data.encode import BadTrajectory
from process_gen.trajectory.stages import Plan, Refinement, Step, Trajectory


def features(image_size: tuple[int, int], *, prompt_image: bool = False) -> tfds.features.FeaturesDict:
    """Returns the TFDS features of trajectories with images of one size.

    Input images of prompts, and the texts after them, have a place only where
    `prompt_image` asks for it: other data sets stay as they are.

    A text that is absent is stored as the empty string with its `has_` flag off,
    an image that is absent as zeros. Pixels are stored raw: ArrayRecord
    compresses each record, and nothing has to be decoded on the way back.
    """

    def flag():
        return tfds.features.Scalar(dtype=np.bool_)

    def image():
        return tfds.features.Tensor(shape=(*image_size, 3), dtype=np.uint8, encoding="bytes")

    step = {
        "instruction": tfds.features.Text(),
        "description": tfds.features.Text(),
        "has_plan": flag(),
        "inspect": tfds.features.Text(),
        "has_inspect": flag(),
        "refine": tfds.features.Text(),
        "has_refine": flag(),
        "sketch": image(),
        "refined": image(),
        "sketch_ok": flag(),
        "plan_ok": flag(),
    }
    prompt = {name: tfds.features.Text() for name in ("uid", "prompt", "metadata")}
    if prompt_image:
        prompt |= {"prompt_image": image(), "has_prompt_image": flag(), "instruction": tfds.features.Text()}
    return tfds.features.FeaturesDict({**prompt, "steps": tfds.features.Sequence(step)})


def to_example(trajectory: Trajectory, *, prompt_image: bool = False) -> dict[str, Any]:
    """Returns a trajectory as an example of `features` with the same `prompt_image`.

    Raises:
      BadTrajectory: the metadata is not JSON, or it has an input image and `prompt_image` is off.
    """
    prompt = {}
    if prompt_image:
        given = trajectory.prompt_image
        prompt["has_prompt_image"] = given is not None
        prompt["prompt_image"] = np.zeros_like(trajectory.steps[0].sketch) if given is None else given
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
        "steps": [_step_to_example(step) for step in trajectory.steps],
    }


def _step_to_example(step: Step) -> dict[str, Any]:
    plan, refine = step.plan, step.refine
    return {
        "instruction": plan.instruction if plan else "",
        "description": plan.description if plan else "",
        "has_plan": plan is not None,
        "inspect": step.inspect or "",
        "has_inspect": step.inspect is not None,
        "refine": refine.instruction if refine else "",
        "has_refine": refine is not None,
        "sketch": np.asarray(step.sketch),
        "refined": np.asarray(refine.image) if refine else np.zeros_like(step.sketch),
        "sketch_ok": step.sketch_ok,
        "plan_ok": step.plan_ok,
    }


def read_record(record: bytes, image_size: tuple[int, int]) -> Trajectory:
    """Returns the trajectory that TFDS serialized with `features(image_size)`, input images or not.

    Raises:
      BadTrajectory: the bytes are no such record.
    """
    try:
        fields = tf_example_pb2.Example.FromString(record).features.feature
        uid, prompt, metadata = (_texts(fields, name)[0] for name in ("uid", "prompt", "metadata"))
        image, instruction = _read_input(fields, image_size)
        steps = _read_steps(fields, image_size)
        return Trajectory(prompt, steps, uid, json.loads(metadata), image, instruction)
    except Exception as error:
        raise BadTrajectory(f"not a trajectory record of images of {image_size}: {error}") from error


def _read_input(fields, image_size: tuple[int, int]) -> tuple[np.ndarray | None, str]:
    """The input image of a prompt and the text after it, of records that have a place for them."""
    if "has_prompt_image" not in fields:
        return None, ""
    (instruction,) = _texts(fields, "instruction")
    if not fields["has_prompt_image"].int64_list.value[0]:
        return None, instruction
    (stored,) = fields["prompt_image"].bytes_list.value
    return np.frombuffer(stored, np.uint8).reshape(*image_size, 3), instruction


def _read_steps(fields, image_size: tuple[int, int]) -> tuple[Step, ...]:
    def texts(name):
        return _texts(fields, f"steps/{name}")

    def flags(name):
        return [bool(value) for value in fields[f"steps/{name}"].int64_list.value]

    def images(name):
        stored = fields[f"steps/{name}"].bytes_list.value
        return [np.frombuffer(value, np.uint8).reshape(*image_size, 3) for value in stored]

    columns = zip(
        texts("instruction"),
        texts("description"),
        flags("has_plan"),
        texts("inspect"),
        flags("has_inspect"),
        texts("refine"),
        flags("has_refine"),
        images("sketch"),
        images("refined"),
        flags("sketch_ok"),
        flags("plan_ok"),
        strict=True,
    )
    return tuple(
        Step(
            sketch=sketch,
            plan=Plan(instruction, description) if has_plan else None,
            inspect=inspect if has_inspect else None,
            refine=Refinement(refine, refined) if has_refine else None,
            sketch_ok=sketch_ok,
            plan_ok=plan_ok,
        )
        for (
            instruction,
            description,
            has_plan,
            inspect,
            has_inspect,
            refine,
            has_refine,
            sketch,
            refined,
            sketch_ok,
            plan_ok,
        ) in columns
    )


def _texts(fields, name: str) -> list[str]:
    return [value.decode() for value in fields[name].bytes_list.value]
