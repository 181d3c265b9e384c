"""What chat models are asked to do, as data: a system message, a template, a JSON schema.

The wording is ours; the paper does not print its prompts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from process_gen.common import files
from process_gen.recipe.graphs import SCHEMA, TEXT, object_of
from process_gen.trajectory.markup import check_plain

FLAG = {"type": "boolean"}
_TYPES = {"string": str, "boolean": bool}


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """Something to ask: a system message, a template with `{name}`s to fill in, and the schema of the answer.

    For the estimate of costs: the characters of a typical answer, and the images that are sent along.
    """

    name: str
    system: str
    template: str
    schema: Mapping[str, Any]
    answer_characters: int = 300
    images: int = 0

    def fields(self, max_tokens: int) -> dict[str, Any]:
        """Fields of the request; a server that supports it restricts its answer to the schema."""
        named = {"name": self.name, "schema": dict(self.schema), "strict": True}
        return {
            "response_format": {"type": "json_schema", "json_schema": named},
            "temperature": 0.0,
            "max_tokens": max_tokens,
        }

    def read(self, answer: str) -> dict[str, Any] | None:
        """The object in an answer; None where it does not fit the schema, or its texts fit no record."""
        try:
            found = files.from_json(_without_fence(answer))
            for name, kind in self.schema["properties"].items():
                value = found[name]
                if not isinstance(value, _TYPES.get(kind["type"], object)):
                    return None
                if isinstance(value, str):
                    check_plain(value, name)
        except (ValueError, LookupError, TypeError):
            return None
        return found


def _without_fence(answer: str) -> str:
    text = answer.strip()
    if text.startswith("```") and text.endswith("```"):
        text = text.strip("`").removeprefix("json")
    return text


_ARTIST = "You prepare training data for a model that draws a picture in steps. Answer with JSON only."

GRAPH = Question(
    "scene_graph",
    _ARTIST,
    "Read this prompt of a picture: {prompt}\n"
    "List its objects as nodes, each with a unique short name (number them if several are alike, as 'first "
    "dog') and its attributes (colour, material, size, pose). Give for each object an alternative: another "
    "value for its first attribute that would suit the picture as well, or an empty text. List the "
    "relations between objects (left of, right of, above, below, in front of, behind, on, under, inside, "
    "around, or another short phrase); none may contradict another. List up to two extras: objects that the "
    "prompt does not ask for and that could stand in the picture for a while.",
    SCHEMA,
    900,
)

STEP = Question("step", "", "", object_of(instruction=TEXT, description=TEXT))
"""One of the steps in an answer to `STEPS`."""

STEPS = Question(
    "steps",
    _ARTIST,
    "A picture of this prompt is drawn in steps: {prompt}\n"
    "Each step has an instruction (what it changes) and a description (the whole picture afterwards). "
    "Rewrite both of every step in natural English, keep every object, attribute and relation as it stands "
    "there, add nothing, and keep the number of steps. The steps, as JSON: {steps}",
    object_of(steps={"type": "array", "items": STEP.schema}),
    1200,
)

CHECK = Question(
    "step_check",
    "You check steps of a picture that is drawn in steps. Answer with JSON only.",
    "The last image is the picture after this step; the image before it, if there is one, is the picture "
    "before. Prompt of the whole picture: {prompt}\n"
    "Instruction of the step: {instruction}\n"
    "The picture should show afterwards: {description}\n"
    "Say whether the last image carries out the instruction, shows the description, and changes "
    "nothing else; and in one sentence why.",
    object_of(ok=FLAG, reason=TEXT),
    images=2,
)

LAST_CHECK = dataclasses.replace(
    CHECK,
    template=CHECK.template.replace(
        "Say whether", "It is the last step, so the image should show the whole prompt. Say whether"
    ),
)

PLANS = Question(
    "plan_check",
    "You compare the texts of a picture that is drawn in steps with its prompt. Answer with JSON only.",
    "Prompt: {prompt}\n"
    "Steps so far, as JSON: {steps}\n"
    "Judge the last step only. What is not drawn yet is no error; what contradicts the prompt is (a wrong "
    "object, attribute, number or relation). If it is consistent, say in one sentence why and leave the "
    "correction empty. Else analyse in one sentence what contradicts the prompt, and give as correction one "
    "instruction that edits the picture so that it no longer does.",
    object_of(consistent=FLAG, analysis=TEXT, correction=TEXT),
)

DRAFT = Question(
    "draft_check",
    "You compare a draft of a picture with the instruction that it carries out. Answer with JSON only.",
    "Prompt of the whole picture: {prompt}\n"
    "Instruction: {instruction}\n"
    "The picture should show: {description}\n"
    "Look at the image. If it shows that, say in one sentence what confirms it and leave the correction "
    "empty. Else analyse in one sentence what is wrong, and give as correction one instruction that edits "
    "the image so that it is right.",
    object_of(aligned=FLAG, analysis=TEXT, correction=TEXT),
    images=1,
)

COMPLETE = Question(
    "prompt_check",
    "You compare a picture with its prompt. Answer with JSON only.",
    "Prompt: {prompt}\n"
    "Say whether the image shows all of it and nothing that contradicts it; in one sentence why.",
    object_of(ok=FLAG, reason=TEXT),
    images=1,
)

REST = Question(
    "last_step",
    _ARTIST,
    "Prompt: {prompt}\n"
    "The image shows what is drawn so far. If it shows all of the prompt, say that nothing is missing and "
    "leave the texts empty. Else give the instruction of one last step that adds everything that is "
    "missing, and the description of the whole picture afterwards.",
    object_of(missing=FLAG, instruction=TEXT, description=TEXT),
    images=1,
)
