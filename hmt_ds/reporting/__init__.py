"""Output for users: progress, log, metrics, history, tables for the terminal, plots."""
