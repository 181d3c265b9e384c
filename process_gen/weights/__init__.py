"""Weights of any origin: runs, exports, published files; and what they start or encode."""
