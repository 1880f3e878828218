"""Status and reports of runs, from the files in their folders: ``hmt-ds status`` and ``hmt-ds report``."""
