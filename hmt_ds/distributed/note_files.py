"""The name of the folder in which watchdogs note how each rank is; a file without torch, for `hmt-ds status`."""

NOTES = "ranks"  # in a run's folder: a file for each rank, which its watchdog writes for `hmt-ds status`
