"""DeepSpeed's configuration: keys filled in from the recipe, optimizers and learning-rate schedules by name."""
