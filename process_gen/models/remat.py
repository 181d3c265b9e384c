"""Rematerialization policies: what a stack of layers keeps for its backward pass.

    policy         keeps of a layer, per token of width D             computes again
    none           everything                                         nothing
    dots           results of products with weights: about 2 (4 D     attention, norms, MLP's gate
                   + 3 F) bytes in bfloat16, MLP of width F
    save_attended  its input, queries, keys, values, and what         norms, MLP; the attention's own
                   attention gives: about 8 D bytes                   residuals where its kernel has any
    save_qkv       its input, queries, keys, values: about 6 D        attention, norms, MLP
    full           its input: 2 D bytes                               the layer
    offload        nothing: the input waits in the hosts' memory      the layer, and 2 D bytes a token go
                                                                      out and come back over PCIe

(D bytes where there are as many key heads as query heads; fewer with grouped
queries.) With `train.unroll=scan` each turn is computed again besides, unless the
policy is `none`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

INPUT = "layer_input"
QKV = ("queries", "keys", "values")
ATTENDED = "attended"

_policies = jax.checkpoint_policies

POLICIES: dict[str, Callable[..., Any]] = {
    "dots": _policies.dots_with_no_batch_dims_saveable,
    "save_attended": _policies.save_only_these_names(*QKV, ATTENDED),
    "save_qkv": _policies.save_only_these_names(*QKV),
    "full": _policies.nothing_saveable,
    "offload": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
"""Checkpoint policies by the value of `ModelConfig.remat`; `none` needs no policy."""


def named(name: str, tree: Any) -> Any:
    """Gives arrays a name by which policies save or offload them; their values stay."""
    return jax.tree.map(lambda x: checkpoint_name(x, name), tree)
