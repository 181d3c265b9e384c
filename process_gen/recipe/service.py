"""The parts of the recipe by models behind endpoints: a chat model that sees images, and one that draws."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.random import Generator

from process_gen.evaluation.tasks.chat_task import fill
from process_gen.recipe import questions, strokes
from process_gen.recipe.graphs import Graph, read_graph
from process_gen.recipe.making import draw
from process_gen.recipe.parts import Later, Opinion, Skip
from process_gen.recipe.questions import Question
from process_gen.recipe.strokes import Stroke
from process_gen.services import estimate
from process_gen.services.endpoint import Endpoint, Unread
from process_gen.services.estimate import Estimate
from process_gen.services.options import GaveUp, Refused, Service, read_extra, without_none
from process_gen.trajectory.markup import Plan
from process_gen.trajectory.stages import Turn, draft, refinement

PAPER_STEPS = 3.51
"""The paper's mean number of intermediate images of a trajectory, which estimates use."""

ANY_SIDE = 1024
"""Side in pixels that estimates assume where the endpoint chooses the size of images."""


class Services:
    """All parts (`parts.World`), by a service that answers questions, also about images, and one that draws.

    Options are those of `config.services` (`configs/recipe/paper.py`). Raises ServiceError where an endpoint
    cannot be used as asked.
    """

    author = "model"

    def __init__(
        self,
        chat: Service,
        images: Service,
        *,
        size: str,
        steps: int,
        pair: float,
        answer_tokens: int,
        phrase: bool,
    ):
        self.chat, self.images = Endpoint(chat), Endpoint(images)
        self.name, self.workers = f"{chat.model}+{images.model}", chat.workers
        self._size, self._steps, self._pair, self._phrase = size, steps, pair, phrase
        self._answer_tokens, self._extra = answer_tokens, read_extra(chat.extra)
        drawn = {"size": size, "response_format": "b64_json", **read_extra(images.extra)}
        self._drawn = without_none(drawn)

    def close(self) -> None:
        """Refuses new requests, which ends candidates in progress; answers are kept."""
        self.chat.close()
        self.images.close()

    # ---------------------------------------------------------------- subset 1

    def graph(self, prompt: str) -> Graph:
        def read(answer: str) -> Graph:
            return read_graph(questions.GRAPH.read(answer))

        return self._ask(questions.GRAPH, prompt, {}, read=read)

    def strokes(self, prompt: str, rng: Generator, rewrites: float) -> list[Stroke]:
        found = strokes.schedule(rng, self.graph(prompt), self._steps, rewrites, self._pair)
        return self._phrased(prompt, found) if self._phrase else found

    def paint(self, prompt: str, stroke: Stroke, before: np.ndarray | None, attempt: int) -> np.ndarray:
        text = stroke.plan.description if before is None else stroke.plan.instruction
        return self._paint(prompt, text, before, attempt)

    def check(
        self, prompt: str, stroke: Stroke, before: np.ndarray | None, image: np.ndarray, last: bool
    ) -> Opinion:
        question = questions.LAST_CHECK if last else questions.CHECK
        shown = [image] if before is None else [before, image]
        said = self._ask(question, prompt, dataclasses.asdict(stroke.plan), shown)
        return Opinion(said["ok"], said["reason"])

    # ------------------------------------------------------- subsets 2 and 3

    def plans(self, prompt: str, steps: Sequence[Turn], rng: Generator) -> list[Opinion]:
        opinions: list[Opinion] = []
        for end in range(1, len(steps) + 1):
            told = [dataclasses.asdict(step.plan) for step in steps[:end]]
            said = self._ask(questions.PLANS, prompt, {"steps": told})
            opinions.append(_opinion(said, "consistent"))
            if not opinions[-1].ok:
                break
        return opinions

    def draft(self, prompt: str, plan: Plan, image: np.ndarray, rng: Generator) -> Opinion:
        return _opinion(self._ask(questions.DRAFT, prompt, dataclasses.asdict(plan), [image]), "aligned")

    def complete(self, prompt: str, image: np.ndarray) -> bool:
        return self._ask(questions.COMPLETE, prompt, {}, [image])["ok"]

    def correct(self, prompt: str, opinion: Opinion, image: np.ndarray) -> np.ndarray:
        corrected = self._paint("", opinion.correction, image, 0)
        plan = Plan(opinion.correction, "the same picture with that corrected")
        if not self.check(prompt, Stroke(plan, ("modify",)), image, corrected, False).ok:
            raise Skip("a correction that was not carried out")
        return corrected

    def finish(self, prompt: str, opinion: Opinion, image: np.ndarray, rng: Generator) -> list[Turn]:
        said = self._ask(questions.REST, prompt, {}, [image])
        if not said["missing"]:
            return []
        stroke = Stroke(Plan(said["instruction"], said["description"]), ("add",))
        return draw(self, prompt, [stroke], image)[0]

    # ----------------------------------------------------------------- planted

    def planted(self, prompt: str, rng: Generator, wrong: bool, in_plan: bool) -> list[Turn]:
        graph = self.graph(prompt)
        if not wrong:
            return draw(self, prompt, strokes.schedule(rng, graph, self._steps, 0.0, self._pair))[0]
        planted = strokes.plant(rng, graph, self._steps, self._pair)
        if planted is None:
            raise Skip("no way to plant an error")
        turns, _ = draw(self, prompt, (*planted.before, planted.wrong), ends=False)
        image = turns.pop().image
        plan, words = planted.wrong.plan, planted.analysis  # the image carries out the wrong plan
        if not in_plan:
            plan, words = planted.right.plan, planted.shown
        turns.append(draft(image, plan, words, image_ok=False))
        corrected = self.correct(prompt, Opinion(False, words, planted.correction), image)
        turns.append(refinement(corrected, planted.correction))
        return turns + draw(self, prompt, planted.rest, corrected)[0]

    # --------------------------------------------------------------------- ask

    def _ask(
        self,
        question: Question,
        prompt: str,
        told: dict[str, Any],
        images: Sequence[np.ndarray] = (),
        read: Callable[[str], Any] | None = None,
    ) -> Any:
        """Asks the chat model; prompt and `told` go into the question as JSON. Raises Skip, Later."""
        told = {"prompt": prompt, **told}
        values = {name: json.dumps(value, ensure_ascii=False) for name, value in told.items()}
        text, what = fill(question.template, values), f"{question.name} of {prompt[:60]!r}"
        fields = without_none({**question.fields(self._answer_tokens), **self._extra})
        problems: list[str] = []

        def read_or_note(answer: str) -> Any:
            try:
                return (read or question.read)(answer)
            except ValueError as error:  # which the model is told as well
                problems.append(str(error))
                raise

        try:
            return self.chat.ask(what, question.system, text, images, fields, read_or_note)[0]
        except Unread as error:
            detail = problems[-1] if problems else str(error)
            raise Skip(f"answers to {question.name} that cannot be read", detail) from None
        except GaveUp as error:
            raise _without(self.chat, error) from None

    def _paint(self, prompt: str, text: str, before: np.ndarray | None, attempt: int) -> np.ndarray:
        what = f"image of {prompt[:60]!r}"
        try:
            return self.images.draw(what, text, before, self._drawn, attempt, prompt)
        except GaveUp as error:
            raise _without(self.images, error) from None

    def _phrased(self, prompt: str, path: Sequence[Stroke]) -> list[Stroke]:
        """The same steps in the words of the chat model."""
        told = [dataclasses.asdict(stroke.plan) for stroke in path]

        def read(answer: str) -> list[Plan] | None:
            found = questions.STEPS.read(answer)
            steps = found and found["steps"]
            if not isinstance(steps, list) or len(steps) != len(path):
                return None
            texts = [questions.STEP.read(json.dumps(step)) for step in steps]
            return None if None in texts else [Plan(**text) for text in texts]

        plans = self._ask(questions.STEPS, prompt, {"steps": told}, read=read)
        return [dataclasses.replace(stroke, plan=p) for p, stroke in zip(plans, path, strict=True)]

    # ---------------------------------------------------------------- estimate

    def estimates(self, work: str, samples: int, characters: float) -> dict[str, Estimate]:
        """What some samples will take, by service.

        `work` is `multi_turn`, `conflict` (self-sampled), `alignment` or `symbolic`.
        """
        q, steps = questions, PAPER_STEPS
        planted = {q.GRAPH: 1.0, q.CHECK: steps + 1}
        per_sample, images_each = {  # how often each question is asked, and how many images are drawn
            "multi_turn": ({q.GRAPH: 1.0, q.STEPS: float(self._phrase), q.CHECK: steps}, steps),
            "conflict": ({q.PLANS: steps, q.COMPLETE: 1.0, q.CHECK: 1.0, q.REST: 0.5}, 1.0),
            "alignment": ({q.DRAFT: steps, **planted}, steps + 1),
            "symbolic": (planted, steps + 1),
        }[work]
        asked = {question: round(samples * n) for question, n in per_sample.items()}
        text = sum(
            n * (len(one.system) + len(one.template) + len(json.dumps(one.schema)) + characters)
            for one, n in asked.items()
        )
        side = max((int(part) for part in self._size.split("x") if part.isdecimal()), default=ANY_SIDE)
        looks = sum(n * one.images for one, n in asked.items()) * estimate.image_tokens(side, side)
        answers = sum(n * one.answer_characters for one, n in asked.items()) // estimate.CHARACTERS_PER_TOKEN
        drawn = round(samples * images_each)
        chat, images = self.chat.service, self.images.service
        return {
            chat.model: estimate.estimate(chat, sum(asked.values()), round(text), looks, answers),
            images.model: estimate.estimate(
                images, drawn, round(drawn * characters), 0, 0, drawn, images.price_image
            ),
        }


def _without(endpoint: Endpoint, error: GaveUp) -> Skip:
    """The exception for a candidate whose request failed: Skip if it was refused, else Later."""
    if isinstance(error, Refused):
        return Skip(f"{endpoint.place} refuses a request", str(error))
    return Later(f"{endpoint.place} gave up", str(error))


def _opinion(said: dict[str, Any], flag: str) -> Opinion:
    """An opinion from an answer. Raises Skip for a fault without a correction, or without an analysis."""
    ok, words, correction = said[flag], said["analysis"].strip(), said["correction"].strip()
    if not words or not ok and not correction:
        raise Skip("an answer without its words")
    return Opinion(ok, words, "" if ok else correction)
