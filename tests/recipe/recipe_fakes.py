"""Services on this machine that draw and chat as they are told, and what a model might have drawn."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import email
import email.policy
import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from process_gen.scenes import get_level, parse, read_request, render, teach
from process_gen.scenes.graph import Scene
from process_gen.trajectory.sampled import SampledTrajectory
from process_gen.trajectory.stages import Trajectory, Turn
from tests.evaluation.chat_fakes import Reply, completion, serving

LEVEL = get_level("default")
GRAPH = {
    "objects": [
        {"name": "dog", "attributes": ["brown"], "alternative": "white"},
        {"name": "sofa", "attributes": ["old"], "alternative": ""},
        {"name": "lamp", "attributes": [], "alternative": ""},
    ],
    "relations": [{"subject": "dog", "relation": "on", "target": "sofa"}],
    "extras": ["book"],
}


@dataclasses.dataclass
class Asked:
    """A request: `kind` is the name of a question, `generate` or `edit`; `fields` are the rest of it."""

    kind: str
    prompt: str
    fields: dict[str, Any]
    key: str


def answer(asked: Asked) -> Any:
    """What a good artist says: an object for a question, or an image, which is never the same."""
    if asked.kind in ("generate", "edit"):
        return np.full((8, 8, 3), np.random.default_rng().integers(0, 256, 3), np.uint8)
    if asked.kind == "steps":
        return {"steps": json.loads(asked.prompt.rpartition("as JSON: ")[2])}
    return {
        "scene_graph": GRAPH,
        "step_check": {"ok": True, "reason": "it shows the step"},
        "plan_check": {"consistent": True, "analysis": "it agrees", "correction": ""},
        "draft_check": {"aligned": True, "analysis": "it shows that", "correction": ""},
        "prompt_check": {"ok": True, "reason": "all is there"},
        "last_step": {"missing": False, "instruction": "", "description": ""},
    }[asked.kind]


class Served:
    """Attributes: `url` for clients, and the `requests` that came."""

    def __init__(self, say: Callable[[int, Asked], Any]):
        self.requests: list[Asked] = []
        self.say, self.url, self.lock = say, "", threading.Lock()

    def reply(self, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        asked = _read(path, headers["Content-Type"], body, headers["Authorization"])
        with self.lock:
            number = len(self.requests)
            self.requests.append(asked)
        said = self.say(number, asked)
        if isinstance(said, float):
            time.sleep(said)
            said = answer(asked)
        if isinstance(said, tuple):
            status, headers, body = said
            return status, headers, json.dumps(body).encode()
        if isinstance(said, np.ndarray):
            buffer = io.BytesIO()
            Image.fromarray(said).save(buffer, "PNG")
            data = [{"b64_json": base64.b64encode(buffer.getvalue()).decode()}]
            return 200, {}, json.dumps({"created": 0, "data": data}).encode()
        text = said if isinstance(said, str) else json.dumps(said)
        return 200, {}, completion(text, "m")


def _read(path: str, kind: str, body: bytes, key: str) -> Asked:
    if path.endswith("/images/edits"):
        head = f"Content-Type: {kind}\r\n\r\n".encode()
        parts = email.message_from_bytes(head + body, policy=email.policy.HTTP).iter_parts()
        fields = {part.get_param("name", header="content-disposition"): part.get_content() for part in parts}
        return Asked("edit", fields.pop("prompt").strip(), fields, key)
    fields = json.loads(body)
    if path.endswith("/images/generations"):
        return Asked("generate", fields.pop("prompt"), fields, key)
    text = fields["messages"][1]["content"][0]["text"]
    return Asked(fields["response_format"]["json_schema"]["name"], text, fields, key)


@contextlib.contextmanager
def services(say: Callable[[int, Asked], Any] = lambda number, asked: answer(asked)) -> Iterator[Served]:
    """Serves chats and images; `say` gets a request's number from 0 and what it asks for.

    It returns an object or a text, an image, seconds of silence, or status, headers and body.
    """
    served = Served(say)
    with serving(served.reply) as served.url:
        yield served


# ------------------------------------------------------------------- of a model


def taught(prompt: str, seed: int, level: str = "default", **odds: float) -> Trajectory:
    none = dict.fromkeys(("wrong", "misplan", "slip", "detour"), 0.0)
    return teach(read_request(prompt, level), np.random.default_rng(seed), **{**none, **odds})


def drawn(prompt: str, seed: int, level: str = "default", **odds: float) -> SampledTrajectory:
    """What a model might draw that has seen no inspection: the teacher's drafts, mistakes and all."""
    kept: list[Turn] = []
    for turn in taught(prompt, seed, level, **odds).turns:
        if turn.refines:
            break  # what follows would be drawn on the corrected image
        kept.append(Turn(turn.image, turn.before))
    return SampledTrajectory(prompt, tuple(kept), f"{seed:04d}", seed=seed)


def shows(image: np.ndarray) -> list[tuple[str, str, str]]:
    """The things on a canvas: shape, colour, cell."""
    return sorted((t.shape, t.colour, t.cell) for t in parse(image, LEVEL).objects)


def without(image: np.ndarray, number: int) -> np.ndarray:
    """The canvas without one of its things."""
    things = list(parse(image, LEVEL).objects)
    del things[number]
    return render(Scene(tuple(things)), LEVEL)
