"""Losses per stage of every step: a registry, and the table that turns losses on and sums them."""

from process_gen.losses import consistency  # noqa: F401  (fills the registry)
from process_gen.losses.registry import Term, get_loss, register
from process_gen.losses.table import LossTable, of_stage

__all__ = ["LossTable", "Term", "get_loss", "of_stage", "register"]
