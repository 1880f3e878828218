"""Evaluation of a trained model: held-out losses, retrieval from memory, comparison of runs."""
