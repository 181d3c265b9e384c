"""Trains several configs (arms) on the same batches and noise, and compares them over seeds."""

from __future__ import annotations

import base64
import dataclasses
import functools
import html
import itertools
import json
import math
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm.auto as tqdm
from ml_collections import ConfigDict
from scipy import special

from process_gen.distributed import offload
from process_gen.evaluation.statistics import score_interval
from process_gen.evaluation.tasks.scenes import Scenes
from process_gen.experiment import builders
from process_gen.experiment.builders import ConfigError
from process_gen.experiment.placing import sampler_placement
from process_gen.lab.setting import Setting
from process_gen.losses.registry import source_of
from process_gen.reports import plots
from process_gen.reports.table import table
from process_gen.sampling import Sampler, SamplerConfig
from process_gen.training.step import TrainState
from process_gen.training.validation import validation_losses

Points = list[tuple[int, float]]
"""(step, value) pairs."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of a metric between an arm and the first arm at the last step, paired by seed.

    Attributes:
      base, value: means over seeds, of the first arm and of this one.
      mean: mean over seeds of value - base.
      low, high: 95% interval of `mean` by Student's t over seeds; infinite with one seed.
      alike: whether both were measured on the same trajectories.
    """

    arm: str
    metric: str
    base: float
    value: float
    mean: float
    low: float
    high: float
    alike: bool

    @classmethod
    def of(cls, arm: str, metric: str, before: np.ndarray, after: np.ndarray, alike: bool) -> Difference:
        """From the values of the first arm and of this one, [seeds] each."""
        gaps, n = after - before, len(before)
        half = math.inf if n < 2 else special.stdtrit(n - 1, 0.975) * gaps.std(ddof=1) / math.sqrt(n)
        base, value, mean = (float(x.mean()) for x in (before, after, gaps))
        return cls(arm, metric, base, value, mean, mean - half, mean + half, alike)

    @property
    def sure(self) -> bool:
        """Whether the 95% interval excludes 0."""
        return self.low > 0 or self.high < 0

    @property
    def verdict(self) -> str:
        """The result in words: `less`, `more` or `no difference seen`; else why there is none."""
        if not self.alike:
            return "other trajectories"
        if not math.isfinite(self.mean):
            return "not a number"
        if math.isinf(self.low):
            return ""
        return ("less" if self.high < 0 else "more") if self.sure else "no difference seen"


@dataclasses.dataclass
class Comparison:
    """The result of `compare`; a notebook shows curves and table, `print` the table.

    Attributes:
      curves: arm -> metric -> seed -> points. `train/...` are losses of training batches, `held out/...`
        validation losses, `score` that of the scenes benchmark.
      notes: lines to show above the table.
      finished: whether every arm reached its last step with every seed.
      apart: arms whose validation losses are of other trajectories than those of the first arm.
    """

    curves: dict[str, dict[str, dict[int, Points]]]
    notes: list[str]
    finished: bool = False
    apart: frozenset[str] = frozenset()

    def differences(self) -> list[Difference]:
        """Every other arm against the first: validation losses and score, of seeds with equal last steps."""
        first, *others = self.curves
        found = []
        for arm, (metric, base) in itertools.product(others, self.curves[first].items()):
            mine = self.curves[arm].get(metric, {})
            seeds = [seed for seed in base if seed in mine and mine[seed][-1][0] == base[seed][-1][0]]
            if seeds and not metric.startswith("train/"):
                before, after = (np.array([curve[s][-1][1] for s in seeds]) for curve in (base, mine))
                alike = arm not in self.apart or metric == "score"
                found.append(Difference.of(arm, metric, before, after, alike))
        return found

    def __str__(self) -> str:
        first = next(iter(self.curves))
        rows = [
            (
                d.arm, d.metric, d.base, d.value, f"{d.mean:+.4f}",
                "one seed" if math.isinf(d.low) else f"[{d.low:+.4f}, {d.high:+.4f}]",
                d.verdict,
            )
            for d in self.differences()
        ]  # fmt: skip
        headers = ("arm", "at the end", first, "the arm", "difference", "95% over seeds", "")
        return "\n".join([*self.notes, table(rows, headers, digits=4) if rows else "nothing to compare yet"])

    def plot(self) -> bytes:
        """A PNG: a panel for every metric, each arm's mean as a line and its range over seeds as a band."""
        panels: dict[str, dict[str, list[Points]]] = {}
        for arm, metrics in self.curves.items():
            for metric, seeds in metrics.items():
                panels.setdefault(metric, {})[arm] = list(seeds.values())
        return plots.bands(panels)

    def _repr_html_(self) -> str:
        picture = base64.b64encode(self.plot()).decode() if any(self.curves.values()) else ""
        image = f'<img src="data:image/png;base64,{picture}" style="max-width:100%">' if picture else ""
        return f"{image}<pre>{html.escape(str(self))}</pre>"


def compare(
    arms: Mapping[str, ConfigDict],
    steps: int,
    seeds: int | Sequence[int] = 3,
    evaluations: int = 4,
    score: int = 0,
    progress: bool = True,
) -> Comparison:
    """Trains every arm from step 0, without a workdir, with the train step and the data of `train`.

    A seed gives all arms the same initial parameters, batches, noise and timesteps, as far as their configs
    agree. Arms are compared on the losses of the first arm: the others measure them too, with weight 0. Other
    losses are plotted, and not compared. An interrupt ends the call, which returns what was measured until
    then; an error has it as `comparison`.

    Args:
      arms: name -> config; the first is what the others are compared with. `steps` and `seeds` replace
        their `train.steps` and `seed`.
      steps: of each training.
      seeds: how many, or which.
      evaluations: how often validation losses are measured, on fixed noise; the last time at the last step.
      score: prompts of each group of the scenes benchmark to draw at the end, for its score; 0 for none.
      progress: whether to show a progress bar.

    Raises:
      ConfigError: an arm's config cannot work, there are fewer than two arms, or an arm has neither
        validation data nor a score.
    """
    if len(arms) < 2:
        raise ConfigError("compare needs two arms or more, as in {'base': config, 'mine': other}")
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not seeds or steps < 1 or evaluations < 1:
        raise ConfigError("compare needs at least one seed, one step and one evaluation")
    first = next(iter(arms))
    settings, names = {}, {}
    for arm, config in arms.items():
        own, names[arm] = _measuring(config, arms[first], first, steps)
        settings[arm] = Setting.of(own)
        if score and own.data.source != "scenes":
            raise ConfigError(f"{arm}: a score is for config.data.source='scenes': set score=0")
        if not score and settings[arm].held_out() is None:
            raise ConfigError(
                f"{arm} holds nothing out, so nothing could be compared: set config.data.validation to a "
                "share of the data, or score= to a number of prompts where the data are scenes"
            )
    notes, apart = _unlike(arms)
    found = Comparison({arm: {} for arm in arms}, [*_changed(arms), *notes], apart=apart)
    bar = tqdm.tqdm(total=len(arms) * len(seeds) * steps, unit=" steps", disable=not progress)
    try:
        with bar:
            for seed, arm in itertools.product(seeds, arms):
                bar.set_description(f"{arm}, seed {seed}")
                lost = 0
                for step, values in _trained(settings[arm], seed, steps, evaluations, score):
                    bar.update(bool("train/loss" in values))
                    lost += not values.pop("finite", True)
                    _keep(found.curves[arm], values, names[arm], seed, step)
                if lost:
                    found.notes.append(
                        f"{arm}, seed {seed}: {lost} of {steps} steps had no finite gradient and changed "
                        "nothing; lab.try_loss says which loss it is"
                    )
        found.finished = True
    except KeyboardInterrupt:
        found.notes.append("interrupted: what had been measured until then")
    except Exception as error:
        found.notes.append(f"ended by an error ({error}): what had been measured until then")
        error.comparison = found
        error.add_note("What had been measured is kept: import sys; sys.last_value.comparison")
        raise
    return found


def _trained(
    setting: Setting, seed: int, steps: int, evaluations: int, score: int
) -> Iterator[tuple[int, dict[str, float]]]:
    """Trains one arm with one seed; yields (step, metric values by name) as they are measured."""
    state, config = setting.state(seed), setting.config
    held_out = setting.held_out()
    due = {round(steps * (i + 1) / evaluations) for i in range(evaluations)}
    batches, pending, own = setting.batches(seed), None, setting.own_states(seed)
    for step, host in enumerate(itertools.islice(batches, steps), 1):
        if own:
            if own.due(host):
                own.draw(step, state, host)
            host = own.fed(step, host)
        program, batch = setting.placed(host)
        state, metrics = program.step(state, batch)
        if pending:  # metrics are read one step late
            yield _trained_losses(*pending)
        pending = step, metrics
        if step in due and held_out:
            values = validation_losses(state, held_out, setting.programs, config.eval.loss_batches)
            yield step, {f"held out/{n.removeprefix('validation/')}": x for n, x in values.items()}
    batches.close()
    yield _trained_losses(*pending)
    if score:
        yield steps, {"score": _score(setting, state, score, seed)}


def _trained_losses(step: int, metrics: Mapping[str, jax.Array]) -> tuple[int, dict[str, float]]:
    values = jax.device_get(metrics)
    found = {f"train/{n}": float(x) for n, x in values.items() if n == "loss" or n.startswith("loss/")}
    return step, found | {"finite": float(values["finite"])}


def _keep(
    curves: dict[str, dict[int, Points]],
    values: Mapping[str, float],
    names: Mapping[str, str],
    seed: int,
    step: int,
) -> None:
    """Appends the score, and the losses that `names` has, renamed by it; drops all other values."""
    for name, value in values.items():
        head, _, row = name.partition("/loss/")
        if row in names:
            name = f"{head}/{names[row]}"
        elif name != "score":
            continue
        curves.setdefault(name, {}).setdefault(seed, []).append((step, value))


def _measuring(
    config: ConfigDict, base: ConfigDict, first: str, steps: int
) -> tuple[ConfigDict, dict[str, str]]:
    """Adds the loss rows of the first arm to an arm's config, with weight 0 where it does not train them.

    Returns:
      The config, and for each row that is kept, its name in this config -> that of its curve: the name in the
      first arm, or in this one alone.
    """
    rows = {name: fields for name, fields in config.losses.to_dict().items() if fields}
    names: dict[str, str] = {}
    for name, fields in base.losses.to_dict().items():
        if not fields:
            continue
        wanted = {key: value for key, value in fields.items() if key not in ("weight", "pool")}
        own = {key: value for key, value in rows.get(name, {}).items() if key not in ("weight", "pool")}
        place = name if own in ({}, wanted) else re.sub(r"\W+", "_", f"{name}_of_{first}")
        rows.setdefault(place, {**wanted, "weight": 0.0})
        names[place] = name
    names |= {name: name for name in rows if not base.losses.get(name) and name not in names}
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.losses = ConfigDict(rows)
        config.train.steps = steps
    return config.lock(), names


def _score(setting: Setting, state: TrainState, per_group: int, seed: int) -> float:
    """The score of the scenes benchmark, of the averaged parameters: a mean over groups of prompts."""
    config = setting.config
    task, rows = Scenes(level=config.data.level, per_group=per_group), config.eval.batch_size
    settings = SamplerConfig.of(config.sampling.to_dict(), mode=config.data.mode)
    params, places = offload.on_devices(state.average), sampler_placement(setting.mesh, rows)
    sampler = Sampler(
        setting.model, params, setting.tokenizer, settings, rows, frozen=state.autoencoder, **places
    )
    docs, judge = task.docs(), task.judge()
    drawn = sampler.sample([doc.input for doc in docs], seed=seed)
    scores = [judge(doc, one.image).score for doc, one in zip(docs, drawn, strict=True)]
    groups = [doc.group for doc in docs]
    weights = next(iter(task.formulas(list(dict.fromkeys(groups))).values()))
    return score_interval(groups, [doc.doc_id for doc in docs], scores, weights).mean


# ------------------------------------------------------------------------ notes

_LAST: dict[str, tuple[dict[str, Any], dict[str, str]]] = {}
"""The arms of the last call, by name, as `_described`."""


def _changed(arms: Mapping[str, ConfigDict]) -> list[str]:
    """Notes on arms that changed since the last call in this process; every call trains from step 0."""
    notes = []
    for arm, config in arms.items():
        before, now = _LAST.get(arm), _described(config)
        _LAST[arm] = now
        if before is None or before == now:
            continue
        new = [name for name in {**before[1], **now[1]} if before[1].get(name) != now[1].get(name)]
        what = [f"config.losses.{name}" for name in new] or ["the config"]
        notes.append(f"{arm}: {', '.join(what)} changed since the last call; trained afresh")
    return notes


def _described(config: ConfigDict) -> tuple[dict[str, Any], dict[str, str]]:
    """A config without its losses, as JSON values; and by row of losses its JSON and source code."""
    fields = builders.to_json(config)
    losses = fields.pop("losses")
    rows = {
        name: json.dumps(row, sort_keys=True) + source_of(row["loss"]) for name, row in losses.items() if row
    }
    return fields, rows


def _unlike(arms: Mapping[str, ConfigDict]) -> tuple[list[str], frozenset[str]]:
    """Finds arms that have other batches or noise than the first one, or the same config and losses.

    Returns:
      A note for each, and the arms whose validation losses are of other trajectories.
    """
    first, *others = arms
    base, notes, apart = _described(arms[first]), [], set()
    for arm in others:
        mine = _described(arms[arm])
        if mine == base:
            notes.append(f"{arm} has the same config and losses as {first}")
        held, differ = ([x for x in some if _at(mine[0], x) != _at(base[0], x)] for some in (_HELD, _TRAINED))
        if held or differ:
            what = ", ".join(f"config.{name}" for name in [*held, *differ])
            notes.append(f"{arm}: {what} differs from {first}: batches and noise are not the same")
        if held:
            apart.add(arm)
    return notes, frozenset(apart)


_HELD = ("data", "layout", "train.batch_size", "eval.loss_batches")
"""Config keys that decide on which trajectories validation losses are measured."""
_TRAINED = ("flow", "model", "train.accumulate", "train.init", "train.own")
"""Further keys that batches, noise or initial parameters depend on."""


def _at(config: Mapping[str, Any], key: str) -> Any:
    return functools.reduce(operator.getitem, key.split("."), config)
