"""DeepSpeed's configuration, filled from the recipe."""
