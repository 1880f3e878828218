"""A rank may take longer than a collective's timeout to read data, and an error of one rank ends all of them."""

import socket
from pathlib import Path

from ranks import PROJECT, run_ranks
from tiny_recipe import make_materials, train, write_recipe


def test_a_rank_may_take_longer_than_an_exchange():
    assert run_ranks("patience.py", None, timeout=90) == ["from rank 0"] * 2


def test_data_that_one_machine_does_not_have(tmp_path):
    make_materials(tmp_path)
    path = f"{Path(__file__).with_name('breaks')}:{PROJECT}"
    code, printed = train(write_recipe(tmp_path), tmp_path / "run", PYTHONPATH=path, HMT_DS_BREAK="rank_1_without_data")
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert code == 2 and errors == [f"error: {socket.gethostname()}: data.train: no.txt is not there"], printed
