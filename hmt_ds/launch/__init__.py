"""Starting, here and on several machines: are they ready, job scripts for Slurm, how often a job may start again."""
