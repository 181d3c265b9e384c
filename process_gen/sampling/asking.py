"""Asks external planners and inspectors (`outside`) about trajectories; stores the answers in the rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from process_gen.models.unified import UnifiedModel
from process_gen.sampling.config import PromptError, SamplerConfig
from process_gen.sampling.decisions import Opens
from process_gen.sampling.outside import Inspection, Inspector, Planner, Unsaid
from process_gen.sampling.prompts import encode_text
from process_gen.sampling.rows import Row
from process_gen.trajectory import markup
from process_gen.trajectory.markup import Plan
from process_gen.trajectory.stages import Turn

Slots = dict[str, np.ndarray | None]
"""Slots of a turn, as `prompts.encode_turn` returns them."""


class Asking:
    """Asks for one sampler; `model`, `tokenizer` and `config` are its own."""

    def __init__(self, model: UnifiedModel, tokenizer: Any, config: SamplerConfig):
        self.model, self.tokenizer, self.config = model, tokenizer, config

    def plan(self, planner: Planner | None, rows: Iterable[Row]) -> None:
        """Asks for the next plan of the rows that await one; sets their `opens` and `before`, or `lost`."""
        waiting = [row for row in rows if planner and row.awaits_plan(self.config, self.model.layout)]
        if not waiting:
            return
        said = planner([row.situation(self.config, row.turns, self._check) for row in waiting])
        for row, plan in zip(waiting, said, strict=True):
            if plan is None and not row.turns:
                plan = Unsaid("the planner is done before anything is drawn")
            problem = self._problem(plan)
            if problem:
                row.lost = problem
            elif plan is None:
                row.opens = Opens.END
            else:
                row.opens, row.before = Opens.PLAN, markup.write_plan(plan)

    def inspect(
        self,
        inspector: Inspector | None,
        rows: Sequence[Row | None],
        images: np.ndarray,
        words: Mapping[int, Mapping[str, str]],
    ) -> dict[int, Slots]:
        """Asks about new images; sets `inspection` and `lost` of their rows.

        Args:
          inspector: whom to ask.
          rows: all of them.
          images: the new image of each, [B, H, W, 3] uint8.
          words: by row, the text `before` it.

        Returns:
          By row, the slot `after` with the inspection, where there is one.
        """
        if inspector is None:
            return {}
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
            draft = row.given_turn or Turn(
                images[place], words.get(place, {}).get("before"), refines=row.opens == Opens.REFINE
            )
            asked.append(row.situation(self.config, [*row.turns, draft], self._check))
        slots = {}
        for place, found in zip(waiting, inspector(asked), strict=True):
            rows[place].lost = self._problem(found)
            rows[place].inspection = found = Inspection() if rows[place].lost else found
            if found.text is not None and layout.after:
                slots[place] = {"after": encode_text(self.model, self.tokenizer, found.text, "after")}
        return slots

    def words(
        self, texts: Mapping[str, np.ndarray], wrote: Mapping[str, np.ndarray]
    ) -> dict[int, dict[str, str]]:
        """Decodes the texts of a turn to strings, by row and name.

        Args:
          texts: tokens [B, T] by name.
          wrote: [B] bool by name: rows that have the text.
        """
        found: dict[int, dict[str, str]] = {}
        for name, tokens in texts.items():
            for place in np.flatnonzero(wrote[name]):
                found.setdefault(int(place), {})[name] = self.tokenizer.decode(tokens[place].tolist())
        return found

    def slots(self, row: Row) -> Slots | None:
        """The slot of the text before the next image, if a planner or an inspector wrote it; else None."""
        if row.before is None:
            return None
        told = encode_text(self.model, self.tokenizer, row.before, "before")
        return {"before": told, "after": None, "image": None}

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
