"""Benchmarks of a recipe: speed and memory of some optimizer steps (`hmt-ds bench`)."""
