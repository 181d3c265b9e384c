"""Losses per stage of every step: a registry, the stock losses, and the table that sums them."""

from process_gen.losses.registry import Term, get_loss, register
from process_gen.losses.stock import of_stage
from process_gen.losses.table import LossTable

__all__ = ["LossTable", "Term", "get_loss", "of_stage", "register"]
