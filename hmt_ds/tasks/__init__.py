"""Tasks on long documents that are generated on the spot, and their scores: `hmt-ds evaluate SOURCE --tasks ...`."""
