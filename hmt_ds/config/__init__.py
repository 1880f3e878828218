"""The recipe: its keys, and reading it."""
