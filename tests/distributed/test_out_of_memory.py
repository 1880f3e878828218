"""An out-of-memory error ends all ranks with a line that says which setting to change. A deliberate bug raises it."""

from pathlib import Path

from tiny_recipe import finish, make_materials, processes_of, start, write_recipe

BREAKS = str(Path(__file__).with_name("breaks"))


def test_one_line_and_everybody_ends(tmp_path):
    make_materials(tmp_path)
    output = tmp_path / "full"
    with start(write_recipe(tmp_path), output, PYTHONPATH=BREAKS, HMT_DS_BREAK="out_of_memory") as process:
        code, printed = finish(process)
        assert not processes_of(output)
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    (full,) = [line for line in errors if line.startswith("error: rank 1: CUDA out of memory. Tried to allocate 4.10")]
    for knob in ("training.batch_size", "compute.recompute segment+layer", "compute.reduction segment", "offloading"):
        assert knob in full
    # the other one may live long enough to say whom it has lost
    assert code != 0 and all(
        line.startswith("error: rank 0 lost contact with another rank: ") for line in errors if line != full
    )
    assert "OutOfMemoryError" not in printed, printed
