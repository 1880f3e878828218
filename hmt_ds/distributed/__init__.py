"""Ranks as processes: process group, collectives, stop signals, watchdog, and access to DeepSpeed's internals."""
