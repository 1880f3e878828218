"""DeepSpeed's compiled operators: whether this machine has or can build those that training uses."""

import io
from contextlib import redirect_stderr, redirect_stdout

USED = ("fused_adam", "cpu_adam")  # AdamW on GPUs, and on the host with an offloaded optimizer


def operators() -> dict[str, bool]:
    """Return for each DeepSpeed operator that training uses, by name, whether it is built or can be compiled."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it explains each missing library
        from deepspeed.ops.op_builder.all_ops import ALL_OPS

        return {name: bool(ALL_OPS[name].is_compatible(verbose=False)) for name in USED if name in ALL_OPS}


def deepspeed_version() -> str:
    """Return the version of the installed DeepSpeed."""
    from deepspeed.git_version_info import version

    return str(version)
