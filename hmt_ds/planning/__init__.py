"""Estimates of a layout's time and memory, before it runs."""
