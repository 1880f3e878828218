"""``python -m hmt_ds``: the same as the command ``hmt-ds``, where its folder is not in PATH."""

from hmt_ds.cli import main

main()
