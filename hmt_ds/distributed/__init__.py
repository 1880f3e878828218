"""Ranks as processes: process group, collectives, stop signals, watchdog, and DeepSpeed's internals."""
