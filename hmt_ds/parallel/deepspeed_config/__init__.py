"""DeepSpeed's configuration, filled in from the recipe."""
