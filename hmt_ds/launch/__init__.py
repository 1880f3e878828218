"""Start ranks here and on several machines: machine checks, Slurm job scripts, a limit on restarts."""
