"""What users see of a run: progress, metrics, tables, plots."""
