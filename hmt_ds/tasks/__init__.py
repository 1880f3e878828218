"""Question-answering tasks on generated long documents, and their scores: `hmt-ds evaluate SOURCE --tasks ...`."""
