"""Learning rates of both optimizers, and a longer run of the default: 7 trainings of `scenes.py:quick`.

    python -m process_gen.sweep --config=configs/sweeps/learning_rate.py --workdir=sweeps/learning_rate

Each cell but the longer run takes as long as the README's first command; an interrupted one resumes.
"""

COMMAND = ("process_gen.train", "--config=configs/scenes.py:quick")


def get_hyper(hyper):
    """The settings of all cells."""
    rates = [1e-3, 4e-3, 8e-3]
    return hyper.chainit(
        [
            hyper.zipit(
                [
                    hyper.sweep("config.optimizer.learning_rate", rates),
                    hyper.sweep("config.optimizer.muon_learning_rate", [10 * rate for rate in rates]),
                ]
            ),
            hyper.product(
                [
                    hyper.fixed("config.optimizer.name", "adamw"),
                    hyper.sweep("config.optimizer.learning_rate", rates),
                ]
            ),
            hyper.fixed("config.train.steps", 1200),
        ]
    )
