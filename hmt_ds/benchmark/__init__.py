"""Speed and memory of some steps of a recipe."""
