"""What a person sees of a run: progress, metrics, tables, plots."""

from hmt_ds.reporting.metrics import MetricsLog, Monitors, read_metrics
from hmt_ds.reporting.plots import plot_loss, plot_perplexity
from hmt_ds.reporting.progress import Progress, print_problems
from hmt_ds.reporting.tables import perplexity_table, print_recipe

__all__ = [
    "MetricsLog",
    "Monitors",
    "Progress",
    "perplexity_table",
    "plot_loss",
    "plot_perplexity",
    "print_problems",
    "print_recipe",
    "read_metrics",
]
