"""The training loop and its parts: building the model, checkpoints, validation, logs, handling of non-finite steps."""
