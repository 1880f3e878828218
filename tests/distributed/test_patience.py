"""While rank 0 reads the data, the others wait for as long as it takes."""

from ranks import run_ranks


def test_rank_0_may_take_longer_than_an_exchange():
    assert run_ranks("patience.py", None, timeout=60) == "from rank 0"
