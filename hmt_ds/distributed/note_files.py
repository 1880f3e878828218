"""The name of the folder in which watchdogs write the state of each rank. Imports no torch, for `hmt-ds status`."""

NOTES = "ranks"  # in a run's folder: a file for each rank, which its watchdog writes for `hmt-ds status`
