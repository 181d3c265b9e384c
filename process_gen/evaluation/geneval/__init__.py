"""GenEval: from what was found in an image to a verdict, and its files."""
