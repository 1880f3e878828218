"""Run ``python -m hmt_ds`` like the command ``hmt-ds``, for shells whose PATH lacks the command."""

from hmt_ds.cli import main

main()
