"""Which parameters a run trains: the others get no gradient, no moments and no average, and stay as they are.

    part = trained(params, freeze)     # what is trained, as a smaller tree
    params = merged(params, part)      # and back

If nothing is frozen, `trained` returns all of `params`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from absl import logging
from clu import parameter_overview
from flax.traverse_util import flatten_dict, unflatten_dict

from process_gen.common.patterns import chooses


def trained(params: Any, freeze: Sequence[str]) -> Any:
    """The arrays that no pattern of `freeze` chooses, in a nested dict of those alone.

    Args:
      params: nested dict of arrays, real or abstract.
      freeze: patterns (`process_gen.common.patterns`) of names such as `vit/layers/fc1/kernel`.
    """
    return _part(params, freeze, frozen=False) if freeze else params


def frozen(params: Any, freeze: Sequence[str]) -> Any:
    """The arrays that `trained` leaves out."""
    return _part(params, freeze, frozen=True) if freeze else {}


def _part(params: Any, freeze: Sequence[str], frozen: bool) -> Any:
    flat = flatten_dict(params, sep="/")
    return unflatten_dict({k: x for k, x in flat.items() if chooses(freeze, k) == frozen}, sep="/")


def merged(params: Any, part: Any) -> Any:
    """`params` with the arrays of `part` in the place of its own."""
    if not isinstance(params, dict):
        return part
    return {name: merged(x, part[name]) if name in part else x for name, x in params.items()}


def log_overview(params: Any, freeze: Sequence[str]) -> None:
    """Logs tables of the parameters with their shardings, frozen ones separately."""
    parts = {"parameters": params}
    if freeze:
        parts = {"trained parameters": trained(params, freeze), "frozen parameters": frozen(params, freeze)}
    for name, part in parts.items():
        if part:
            parameter_overview.log_parameter_overview(part, include_stats="sharding", msg=name)
    if freeze:
        logging.info("%s", describe(params, freeze))


def describe(params: Any, freeze: Sequence[str]) -> str:
    """How many parameters are trained and how many are frozen, in one line."""
    every, some = (int(parameter_overview.count_parameters(x)) for x in (params, trained(params, freeze)))
    return f"{some:,} of {every:,} parameters are trained ({some / every:.3%}), {every - some:,} are frozen"
