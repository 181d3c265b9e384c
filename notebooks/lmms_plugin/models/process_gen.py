"""A text-to-image model for lmms-eval: its answers are JSON of `text` and `images`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.api.registry import register_model

from process_gen.evaluation.draws import Draw, draw
from process_gen.evaluation.tasks.base import Doc
from process_gen.experiment import cli
from process_gen.reports.listing import Listing
from process_gen.trajectory.markup import Plan
from process_gen.weights.restore import load_sampler


@register_model("process_gen")
class ProcessGen(lmms):
    """Draws prompts.

    Args:
      workdir: a run, a file of weights, or published weights; the shipped weights by default.
      config: FILE.py:VARIANT, for weights that carry no config.
      which: weights of a run, `ema` or `params`.
      output_dir: where images go; what is drawn there is not drawn again.
      batch_size: trajectories side by side.
      seed: of the sampler.
      settings: of the sampler, as `flow_steps=10`.
    """

    def __init__(
        self,
        workdir: str | None = None,
        config: str | None = None,
        which: str = "ema",
        output_dir: str = "logs/process_gen",
        batch_size: int | str = 16,
        seed: int | str = 0,
        **settings: Any,
    ):
        super().__init__()
        given = None if config is None else cli.load_config(config)
        self.sampler, restored = load_sampler(workdir, which, int(batch_size), config=given, **settings)
        self.seed, self.output_dir = int(seed), output_dir
        self._known = {
            "weights": restored.source,
            "digest": restored.digest,
            "which": which,
            "seed": self.seed,
        }

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers for all requests, in their order.

        The first argument of a request is the prompt. Editing tasks, whose prompts have images, are refused.
        """
        wanted = [self._wanted(request.args) for request in requests]
        settings = self._known | vars(self.sampler.config) | {"mode": self.sampler.config.mode.value}
        listing = Listing(self.output_dir, settings, strips=False)
        draw(self.sampler, list({one.uid: one for one in wanted}.values()), listing, warm=False)
        drawn = {record.uid: record for record in listing.records()}
        return [self._answer(listing, drawn[one.uid]) for one in wanted]

    def _wanted(self, args: Sequence[Any]) -> Draw:
        prompt, _, visual, doc_id, task, *_ = args
        if visual is not None and any(image is not None for image in _listed(visual, self, task, args)):
            raise NotImplementedError(f"{task}: prompts with images are not served by this wrapper")
        return Draw(Doc(f"{task} {doc_id}", prompt, task), self.seed, 0, prompt)

    def _answer(self, listing: Listing, record: Any) -> str:
        said = listing.sampled(record, side=1).steps[-1].plan
        text = said.description if isinstance(said, Plan) else ""
        return json.dumps({"text": text, "images": [str(listing.folder / record.turns[-1].image)]})

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("process_gen draws images; tasks that compare likelihoods do not apply")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("process_gen draws one trajectory per prompt")


def _listed(visual: Any, model: Any, task: str, args: Sequence[Any]) -> Sequence[Any]:
    """The images of a request, through lmms-eval's own documents."""
    documents = getattr(model, "task_dict", None)
    if documents is None:
        return ()
    return visual(documents[task][args[5]][args[3]]) or ()
