"""The error that a user of an evaluation sees."""


class TaskError(ValueError):
    """A task that cannot be run as asked: missing data, a broken file, a bad option; fit for a user."""
