"""The name of the folder of ranks' notes, apart from the watchdog, so that reading them imports no torch."""

NOTES = "ranks"  # in a run's folder: a file for each rank, which its watchdog writes for `hmt-ds status`
