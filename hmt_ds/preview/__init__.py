"""What the model reads, segment by segment, before a run: `hmt-ds preview RECIPE`."""
