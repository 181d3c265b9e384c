"""For notebooks: see a batch, try a loss on it, compare trainings; over the trainer's own program and data.

lab.batch(config)                                    every token of a row, what it sees and is taught
lab.try_loss(my_loss, config)                        values, counts and gradients of a loss on a batch
lab.compare({"base": a, "mine": b}, 100, seeds=3)    trains both, and says what differs by more than chance
"""

from process_gen.lab.comparing import Comparison, compare
from process_gen.lab.showing import Shown, batch
from process_gen.lab.trying import Tried, try_loss

__all__ = ["Comparison", "Shown", "Tried", "batch", "compare", "try_loss"]
