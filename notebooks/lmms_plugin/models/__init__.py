"""What lmms-eval looks for in a plugin: module -> class."""

AVAILABLE_MODELS = {"process_gen": "ProcessGen"}
