"""Processes: joining, exchanging small values, stopping, watching."""
