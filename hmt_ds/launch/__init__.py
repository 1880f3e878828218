"""Start ranks on this machine and on several: machine checks, Slurm job scripts, a limit on restarts."""
