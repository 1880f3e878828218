"""Run a benchmark on this rank. Started as ``--module hmt_ds.bench RECIPE [options] [--section.key value ...]``."""

from hmt_ds.distributed.quick_imports import quick_imports

with quick_imports():
    from hmt_ds.benchmark.run import bench
    from hmt_ds.distributed.process_group import end_process
    from hmt_ds.training.rank import run_as_rank


def main() -> int:
    """Run the benchmark of this process's command line as one rank; return the exit code."""
    return run_as_rank(bench)


if __name__ == "__main__":
    end_process(main())
