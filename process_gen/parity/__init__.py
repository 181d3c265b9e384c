"""Known answers of published models, computed again with this project's own parts."""
