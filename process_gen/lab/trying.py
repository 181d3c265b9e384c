"""Evaluates one loss on one batch: values and weights by token, and gradient norms by part of the model."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from process_gen.distributed import offload
from process_gen.lab.setting import Setting
from process_gen.losses import registry
from process_gen.losses.table import mean_of
from process_gen.models.outputs import LossError, Outputs
from process_gen.reports import table as tables
from process_gen.training import scoring
from process_gen.training.norms import by_part
from process_gen.training.step import TrainState
from process_gen.trajectory.controls import labels

ROW = "tried"


@dataclasses.dataclass(frozen=True)
class Tried:
    """The result of a loss on a batch; `print` shows a summary.

    Attributes:
      row: its row of the loss table, as in `config.losses`.
      values, weights: [B, S, ...] as the loss returned them, float32.
      mean: their weighted mean, which a training logs.
      count: the sum of the weights.
      metrics: weighted means of the loss's `Term.metrics`.
      gradients: norm of the gradient of `mean` by part of the model, so without the weight of the row;
        `grad_norm` is the global norm.
      problems: a message for each problem found.
    """

    row: Mapping[str, Any]
    values: np.ndarray
    weights: np.ndarray
    mean: float
    count: float
    metrics: Mapping[str, float]
    gradients: Mapping[str, float]
    problems: tuple[str, ...]

    def __str__(self) -> str:
        weighed = self.values[self.weights > 0]
        spread = np.quantile(weighed, (0, 0.5, 1)) if weighed.size else np.full(3, np.nan)
        shape = " x ".join(map(str, self.values.shape))
        rows = [
            ("mean", self.mean),
            ("sum of weights", self.count),
            (f"tokens of weight above 0, of {shape}", int((self.weights > 0).sum())),
            *zip(("least", "median", "most"), map(float, spread), strict=True),
            *((f"metric {name}", value) for name, value in self.metrics.items()),
            *(
                (name.replace("grad_norm", "gradient").replace("/", " of "), x)
                for name, x in self.gradients.items()
            ),
        ]
        text = tables.table(rows, (f"{self.row['loss']} of {self.row['stage']}", "value"), digits=5)
        return "\n".join([*self.problems, text, self._by_turn()])

    def _by_turn(self) -> str:
        """A table of weighted means by row of the batch and turn slot."""
        axes = tuple(range(2, self.values.ndim))
        total = np.where(self.weights > 0, self.values, 0) * self.weights
        sums, counts = total.sum(axes), self.weights.sum(axes)
        rows = [
            (f"row {i}", *("" if not n else f"{x / n:.4f}" for x, n in zip(sums[i], counts[i], strict=True)))
            for i in range(len(sums))
        ]
        return tables.table(rows, ("mean", *(f"turn {i}" for i in range(sums.shape[1]))))

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def try_loss(
    loss: str | Callable[..., Any] | Mapping[str, Any] | ConfigDict,
    config: ConfigDict,
    stage: str | None = None,
    state: TrainState | None = None,
    number: int = 0,
) -> Tried:
    """Evaluates a loss on a batch of a training with `config`, without conditioning dropout or context noise.

    Args:
      loss: a loss function, the name of a registered one, or a row as in `config.losses`. A function that is
        not registered is registered during the call, under its own name.
      config: of a training; its own losses are ignored.
      stage: of the loss, where `loss` is no row; by default `sketch`, or the loss's first stage where it has
        no `sketch`.
      state: whose parameters are used, as `train` returns it; None takes those a training begins with.
      number: index of the batch.

    Raises:
      LossError: a row and a stage are given, the weights depend on the model's predictions or are not finite,
        or it cannot be computed.
      ConfigError: the config or the row cannot work.
    """
    if callable(loss):
        with registry.known(loss) as name:
            return try_loss(name, config, stage, state, number)
    row = row_of(loss, stage)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.losses = ConfigDict({ROW: row})
    setting = Setting.of(config)
    begins = state is None
    state = setting.state(config.seed) if begins else setting.with_networks(state)
    host = setting.batch(config.seed, number)
    program, batch = setting.placed(dict(vars(host)))
    recipe, key = program.undisturbed, jax.random.key(config.seed)
    own, table = jax.random.fold_in(key, scoring.LOSSES), recipe.losses

    def found(params, given, batch):
        outputs, taught = scoring.seen(recipe, params, given, batch, key), labels(batch, recipe.model.ids)
        sums, counts = table.terms(outputs, batch, taught, own)
        ((_, term),) = table.each(outputs, batch, taught, own)
        mean = mean_of(sums[ROW], counts[ROW])
        return mean, (term.values, term.weights, table.metrics(sums, counts, given.step))

    def weights(given, batch):
        blank = scoring.seen(recipe, None, given, batch, key)
        taught = labels(batch, recipe.model.ids)
        kinds = (blank, *(_imagined(blank, jax.random.key(seed)) for seed in (1, 2)))
        return [term.weights for outputs in kinds for _, term in table.each(outputs, batch, taught, own)]

    _check_weights(*program.jit(weights)(state.given, batch))
    graded = program.jit(jax.value_and_grad(found, has_aux=True))
    params = offload.on_devices(state.params)
    (mean, (values, weighed, metrics)), gradient = graded(params, state.given, batch)
    norms = {"grad_norm": optax.global_norm(gradient), **by_part("grad_norm", gradient)}
    values, weighed = (np.asarray(x, np.float32) for x in (values, weighed))
    problems = _problems(values, weighed, norms["grad_norm"])
    if begins and norms["grad_norm"] > 0 and not norms.get("grad_norm/gen", 1):
        problems.append(
            "NOT BEYOND THE HEAD: a training begins with a latent head of 0, which no gradient passes; "
            "give state= of a training to see the others"
        )
    return Tried(
        row,
        values,
        weighed,
        float(mean),
        float(weighed.sum()),
        {n.split("/", 2)[2]: float(x) for n, x in metrics.items() if n.startswith("metric/")},
        {name: float(x) for name, x in norms.items()},
        tuple(problems),
    )


def row_of(loss: str | Mapping[str, Any] | ConfigDict, stage: str | None) -> dict[str, Any]:
    """The row of the loss table that `loss` is, or names, for `stage`; see `try_loss`."""
    if isinstance(loss, Mapping | ConfigDict):
        if stage is not None:
            raise LossError(f"stage={stage!r}: a row has a stage of its own, {loss.get('stage')!r}")
        return dict(loss)
    stages = registry.get_loss(loss).stages
    first = "sketch" if "sketch" in stages else stages[0]
    return dict(loss=loss, stage=stage or first, weight=1.0)


def _imagined(outputs: Outputs, key: jax.Array) -> Outputs:
    """`outputs` with every prediction replaced by random numbers."""

    def like(x: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, x.size), x.shape)

    others = {
        name: _imagined(x, jax.random.fold_in(key, 1)) if isinstance(x, Outputs) else x
        for name, x in outputs.networks.items()
    }
    return dataclasses.replace(
        outputs,
        networks=others,
        hidden=jax.tree.map(like, dict(outputs.hidden)),
        velocity=like(outputs.velocity),
        logits=lambda hidden: jax.random.normal(key, outputs.logits(hidden).shape),
        nll=lambda hidden, labels: jax.random.exponential(key, labels.shape),
    )


def _check_weights(blank: jax.Array, *others: jax.Array) -> None:
    if not np.isfinite(blank).all():
        raise LossError(
            "weights are not finite: the loss is divided by their sum anyway, so they need not add up to 1; "
            "guard a division by what may be 0"
        )
    if any(np.any(np.asarray(blank) != np.asarray(other)) for other in others):
        raise LossError(
            "the weights of the loss depend on what the model predicts, and are counted before that: make "
            "them of the batch, the targets and t alone, and multiply the values by what hangs on predictions"
        )


def _problems(values: np.ndarray, weights: np.ndarray, norm: jax.Array) -> list[str]:
    """Messages about values, weights or gradients that are not usable."""
    problems = []
    wrong = np.argwhere(~np.isfinite(values) & (weights > 0))
    if len(wrong):
        problems.append(
            f"NOT A NUMBER: {len(wrong)} of {(weights > 0).sum()} values that weigh, the first at "
            f"{wrong[0].tolist()}: guard what goes into a logarithm, a root or a division (jnp.maximum)"
        )
    elif not np.isfinite(norm):
        problems.append(
            "NO FINITE GRADIENT: a root, logarithm or division at 0, maybe where the weight is 0: guard what "
            "goes in with jnp.where, not what comes out"
        )
    if (weights < 0).any():
        problems.append(
            "NEGATIVE WEIGHTS count for nothing in the sum: make them 0 or more, and give values the sign"
        )
    if not (weights > 0).any():
        problems.append("NOTHING IS COUNTED: no token of this batch has a weight above 0")
    return problems
