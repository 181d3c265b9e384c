"""For notebooks: shows a batch, tries a loss on it, compares trainings; with `train`'s own step and data.

lab.batch(config)                                    every token of a row: what it attends to and predicts
lab.try_loss(my_loss, config)                        values, counts and gradients of a loss on a batch
lab.compare({"base": a, "mine": b}, 100, seeds=3)    trains both; tests which differences exceed seed noise
"""

from process_gen.lab.comparing import Comparison, compare
from process_gen.lab.showing import Shown, batch
from process_gen.lab.trying import Tried, try_loss

__all__ = ["Comparison", "Shown", "Tried", "batch", "compare", "try_loss"]
