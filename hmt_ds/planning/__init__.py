"""Estimates of a run's time and memory before it starts: FLOPs, pipeline schedules, clusters."""
