"""The error that a user of the recipe sees."""


class RecipeError(ValueError):
    """A recipe that cannot work as it is written; the message names the key and says what to do."""
