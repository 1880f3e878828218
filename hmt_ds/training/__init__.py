"""The training loop, and what it needs: building, checkpoints, validation, logs, handling of bad steps."""
