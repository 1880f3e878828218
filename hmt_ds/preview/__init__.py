"""Show what the model will read, segment by segment, before a run: `hmt-ds preview RECIPE`."""
