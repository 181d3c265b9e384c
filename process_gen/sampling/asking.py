"""Asks external planners and inspectors (`outside`) about trajectories; stores the answers in the rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from process_gen.models.unified import UnifiedModel
from process_gen.sampling.config import PromptError, SamplerConfig
from process_gen.sampling.decisions import Opens
from process_gen.sampling.outside import Inspection, Outside, Unsaid
from process_gen.sampling.prompts import encode_text
from process_gen.sampling.rows import Row
from process_gen.trajectory import markup
from process_gen.trajectory.markup import Plan
from process_gen.trajectory.stages import Turn

Slots = dict[str, np.ndarray | None]
"""Some slots of a turn, as `prompts.encode_turn` returns them."""


@dataclasses.dataclass(frozen=True, eq=False)
class Asking:
    """Asks for one sampler; the attributes are its own."""

    model: UnifiedModel
    tokenizer: Any
    config: SamplerConfig
    outside: Outside

    def plan(self, rows: Iterable[Row]) -> None:
        """Asks for the next plan of the rows that await one; sets their `opens` and `before`, or `lost`."""
        planner = self.outside.planner
        waiting = [row for row in rows if planner and row.awaits_plan(self.config, self.model.layout)]
        if not waiting:
            return
        said = planner([row.situation(self.config, row.turns, self._check) for row in waiting])
        for row, plan in zip(waiting, said, strict=True):
            if plan is None and not row.turns:
                plan = Unsaid("the planner is done before anything is drawn")
            if problem := self._problem(plan):
                row.lost = problem
            elif plan is None:
                row.opens = Opens.END
            else:
                row.opens, row.before = Opens.PLAN, markup.write_plan(plan)

    def inspect(
        self, rows: Sequence[Row | None], images: np.ndarray, words: Mapping[int, Mapping[str, str]]
    ) -> dict[int, Slots]:
        """Asks about the new images [B, H, W, 3] uint8; sets `inspection` and `lost` of their rows.

        `words` has the text `before` an image, by row. Returns, by row, the slot `after` with the
        inspection, where there is one.
        """
        layout, waiting = self.model.layout, []
        for place, row in enumerate(rows):
            if row is None or (row.given_turn is not None and row.given_turn.after is not None):
                continue
            if Opens.REFINE in row.choices("after_image", self.config, layout) and not row.lost:
                waiting.append(place)
            elif row.given_turn is None:
                row.inspection = Inspection()
        if not waiting:
            return {}
        asked = []
        for place in waiting:
            row = rows[place]
            refines = row.opens == Opens.REFINE
            draft = row.given_turn or Turn(images[place], words[place].get("before"), refines=refines)
            asked.append(row.situation(self.config, [*row.turns, draft], self._check))
        slots = {}
        for place, found in zip(waiting, self.outside.inspector(asked), strict=True):
            rows[place].lost = self._problem(found)
            rows[place].inspection = found = Inspection() if rows[place].lost else found
            if found.text is not None and layout.after:
                slots[place] = {"after": encode_text(self.model, self.tokenizer, found.text, "after")}
        return slots

    def _problem(self, answer: Plan | Inspection | Unsaid | None) -> str:
        """Why an answer cannot be used; empty where it can."""
        if isinstance(answer, Unsaid):
            return answer.reason
        try:
            if answer is not None:
                self._check(answer)
        except PromptError as error:
            return str(error)
        return ""

    def _check(self, answer: Plan | Inspection) -> None:
        texts = {} if isinstance(answer, Plan) else {"after": answer.text}
        try:
            if isinstance(answer, Plan):
                texts["before"] = markup.write_plan(answer)
            elif answer.correction is not None:
                texts["before"] = markup.write_refine(answer.correction)
        except ValueError as error:  # a special token
            raise PromptError(str(error)) from None
        for name, text in texts.items():
            if text is not None and getattr(self.model.layout, name):
                encode_text(self.model, self.tokenizer, text, name)
