"""Evaluation of a trained model: held-out losses, comparison of runs, generation."""
