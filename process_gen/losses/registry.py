"""The registries of losses, and of the frozen networks that they read.

A loss is a pure module-level function

    @losses.register("my_loss")
    def my_loss(outputs, batch, labels, key, *, stage): -> Term(values, weights)

with values and weights of one shape [B, S, ...] (B rows, S turn slots), unreduced: the
table sums both and divides once by the global weight. Weights come from the batch alone,
never from predictions, so that they can be counted before the forward pass.

Keyword parameters besides `stage` are options: a row of the table may set them. An option called `network`
names a frozen network that the loss reads, besides those that it is registered with.
"""

from __future__ import annotations

import contextlib
import inspect
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from process_gen.common.names import check_name
from process_gen.models.outputs import REFERENCE, LossError
from process_gen.trajectory.stages import Stage


class Term(NamedTuple):
    """Unreduced values of a loss and their weights, arrays of one shape [B, S, ...].

    `metrics` are arrays by name that broadcast to that shape: their means under the same
    weights are logged as `metric/<row>/<name>`, without any gradient.
    """

    values: jax.Array
    weights: jax.Array
    metrics: Mapping[str, jax.Array] = {}


LossFunction = Callable[..., Term]


class Loss(NamedTuple):
    """A registered loss; see `register`.

    `options` are the fields that a row may set besides those that every row has, with their defaults;
    `inspect.Parameter.empty` where a row must set them.
    """

    function: LossFunction
    pixels: bool
    stages: tuple[str, ...]
    networks: tuple[str, ...]
    options: Mapping[str, Any]

    def networks_of(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """The frozen networks that it reads, with that of its option `network`, if it has one."""
        given = {**self.options, **options}
        return (*self.networks, given[NETWORK]) if NETWORK in given else self.networks


class Network(NamedTuple):
    """A frozen network: `init(key)` makes its weights, `apply(weights, ...)` runs it."""

    init: Callable[[jax.Array], Any]
    apply: Callable[..., Any]


NETWORK = "network"
"""The option of a loss whose value is a frozen network that it reads."""

OURS = "process_gen."
"""Prefix of the modules whose losses come with the package."""

STAGES = tuple(stage.value for stage in Stage)

_LOSSES: dict[str, Loss] = {}
_NETWORKS: dict[str, Network] = {}


def register(
    name: str, pixels: bool = True, stages: Sequence[str] = STAGES, networks: Sequence[str] = ()
) -> Callable[[LossFunction], LossFunction]:
    """Adds a loss to the registry under `name`; registering a name again replaces it.

    Args:
      name: what rows of the table call it.
      pixels: whether it reads the pixels of the batch (`batch.image`). Where no loss does, images that were
        encoded ahead of time need not be decoded.
      stages: for which it is defined; a row for another one is refused.
      networks: the frozen networks that it reads, `outputs.network(name)`: `reference`, the model as it was
        when the run began, or what `register_network` has added.

    Raises:
      ValueError: an unknown stage.
      LossError: `name` is no string; or a function from elsewhere is given the name of a loss of the package.
    """
    if not isinstance(name, str):
        raise LossError(
            f'a loss is registered by a name: @losses.register("{getattr(name, "__name__", "my_loss")}")'
        )
    stages, networks = ((x,) if isinstance(x, str) else tuple(x) for x in (stages, networks))
    for stage in stages:
        check_name(stage, STAGES, "stage")

    def add(function: LossFunction) -> LossFunction:
        if _is_ours(name) and not function.__module__.startswith(OURS):
            raise LossError(f"{name!r} is a loss of the package: choose another name")
        _LOSSES[name] = Loss(function, pixels, stages, networks, _options(function))
        return function

    return add


def _options(function: LossFunction) -> dict[str, Any]:
    """The keyword-only parameters of a loss but `stage`, with their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "stage"}


def source_of(name: str) -> str:
    """The source code of the loss called `name`, or its byte code where the source is not available."""
    function = get_loss(name).function
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return repr(getattr(getattr(function, "__code__", None), "co_code", function))


def _is_ours(name: str) -> bool:
    return name in _LOSSES and _LOSSES[name].function.__module__.startswith(OURS)


def get_loss(name: str) -> Loss:
    """The loss called `name`; KeyError with the nearest names otherwise."""
    return _LOSSES[check_name(name, _LOSSES, "loss", KeyError)]


@contextlib.contextmanager
def known(function: LossFunction) -> Iterator[str]:
    """Yields the name that a loss function is registered under.

    Inside the context a function that is not registered is so under its `__name__`. If a loss of that name
    is registered, as an older version of it, the function replaces it and keeps its stages and networks.

    Raises:
      LossError: the function has no name, or that of a loss of the package.
    """
    name = next((name for name, loss in _LOSSES.items() if loss.function is function), "")
    if name:
        yield name
        return
    if not (name := getattr(function, "__name__", "")):
        raise LossError(
            f"a {type(function).__name__} has no name: losses.register('my_loss')(function) first"
        )
    if _is_ours(name):
        raise LossError(f"{name!r} is a loss of the package: give the function another name")
    older = _LOSSES.get(name)
    like = older or Loss(function, True, STAGES, (), {})
    _LOSSES[name] = like._replace(function=function, options=_options(function))
    try:
        yield name
    finally:
        del _LOSSES[name]
        if older:
            _LOSSES[name] = older


def fold_in_name(key: jax.Array, name: str) -> jax.Array:
    """Derives a key from a name, whatever other names there are."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def register_network(name: str, init: Callable[[jax.Array], Any], apply: Callable[..., Any]) -> None:
    """Adds a frozen network under `name`; registering a name again replaces it.

    Its weights live in the state of the training, split over devices as its other arrays, and are saved with
    it. No gradient reaches them; one flows through `apply` to what it is given.

    Args:
      name: what losses call it.
      init: a key to its weights, a tree of arrays. It may read a file. It is called as a run begins, and
        traced before that for their shapes.
      apply: takes the weights and what the loss passes; returns what the loss gets.

    Raises:
      ValueError: `name` is that of the reference.
    """
    if name == REFERENCE:
        raise ValueError(
            f"the network {REFERENCE!r} is the model as it was when the run began: choose another name"
        )
    _NETWORKS[name] = Network(init, apply)


def get_network(name: str) -> Network:
    """The network called `name`; KeyError with the nearest names otherwise."""
    return _NETWORKS[check_name(name, _NETWORKS, "network", KeyError)]


def check_network(name: str) -> None:
    """KeyError with the nearest names where there is no such network."""
    check_name(name, (*_NETWORKS, REFERENCE), "network", KeyError)
