"""Losses per stage of every step: a registry, and the table that turns losses on and sums them."""

from process_gen.losses.consistency import changed, unchanged
from process_gen.losses.registry import Term, get_loss, register, register_network
from process_gen.losses.stock import of_stage, text_weights
from process_gen.losses.table import LossTable
from process_gen.models.outputs import REFERENCE, LossError

__all__ = [
    "REFERENCE",
    "LossError",
    "LossTable",
    "Term",
    "changed",
    "get_loss",
    "of_stage",
    "register",
    "register_network",
    "text_weights",
    "unchanged",
]
