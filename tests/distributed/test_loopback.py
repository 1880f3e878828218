"""Ranks of one machine listen where no other machine can reach them."""

import json
import socket

from ranks import free_port
from tiny_recipe import run_words

SCRIPT = """
import json, psutil, torch
from hmt_ds.distributed.process_group import all_reduce_sum, join, leave
join()
total = all_reduce_sum(torch.ones(1)).item()
found = [one.laddr.ip for one in psutil.Process().net_connections() if one.status == "LISTEN"]
print(json.dumps([total, found]), flush=True)
leave()
"""


def test_no_rank_listens_elsewhere(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    for ranks in (1, 2):
        code, printed = run_words(str(script), ranks=ranks)
        assert code == 0, printed
        for line in printed.splitlines():
            total, addresses = json.loads(line)
            assert total == ranks and addresses and set(addresses) == {"127.0.0.1"}


def test_a_taken_port_is_one_line(tmp_path):
    script, port = tmp_path / "script.py", free_port()
    script.write_text("import sys; from hmt_ds.training.rank import run_as_rank; sys.exit(run_as_rank(print))")
    with socket.create_server(("127.0.0.1", port)):
        code, printed = run_words(str(script), ranks=1, MASTER_PORT=str(port))
    assert code == 2, printed
    assert (
        printed.strip() == f"error: port {port} cannot be used (Address already in use): set MASTER_PORT to a free port"
    )
