"""Start ranks on one machine or several: machine checks, Slurm job scripts, a limit on restarts, `hmt-ds doctor`."""
