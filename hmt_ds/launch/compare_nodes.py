"""Compare what the machines of a launch report about themselves, for `hmt-ds launch ... doctor`."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from hmt_ds.distributed.network import Links
from hmt_ds.launch.ask_nodes import Answer
from hmt_ds.launch.doctor import SKEW, Finding

OWN = ("machine", "GPU memory", "network", "disk", "clock")  # what may differ between machines
COLUMNS = ("GPU memory", "network", "disk")
SLOW_LINK = 4  # times slower than the fastest link between two machines

Nodes = dict[str, list[Finding]]


def print_comparison(answers: dict[str, Answer], links: dict[str, Answer]) -> int:
    """Print what the machines have in common, a table of what differs by nature, and a line for each problem.

    Args:
        answers: what each machine's check printed.
        links: what the rank on each machine measured; machines that could not take part are missing.

    Returns:
        The exit code: 0, or 2 if there is a problem.
    """
    nodes = {host: [Finding(*one) for one in answer.values["finding"]] for host, answer in answers.items()}
    measured = measured_by(links)
    for name, text in common(nodes).items():
        print(f"{name:<12} {text}")
    if measured:
        slowest = min(one.all_reduce for one in measured.values())
        print(f"all-reduce   {rate(slowest)} over {len(measured)} nodes ({next(iter(measured.values())).backend})")
    Console(width=160).print(table(nodes, measured))
    for line in found_in(nodes, "note"):
        print(f"note: {line}")
    wrong = [f"{host}: {answer.problem}" for host, answer in answers.items() if answer.problem]
    wrong += [*found_in(nodes, "error"), *differences_in(nodes)]
    wrong += [f"{host}: between the nodes: {answer.problem}" for host, answer in links.items() if answer.problem]
    wrong += [*clocks_off(measured), *slow_links(measured)]
    for line in wrong:
        print(f"error: {line}")
    print("next         " + ("mend the errors above" if wrong else "hmt-ds launch slurm RECIPE, or another launcher"))
    return 2 if wrong else 0


def measured_by(links: dict[str, Answer]) -> dict[str, Links]:
    """Return the clock and bandwidth that the rank on each machine measured; ranks that failed are left out.

    Args:
        links: what the rank on each machine printed, by machine.
    """
    own = {host: answer.values.get(f"rank {number}") for number, (host, answer) in enumerate(links.items())}
    return {host: Links(*values) for host, values in own.items() if values}


def texts_of(nodes: Nodes, name: str) -> dict[str, list[str]]:
    """Group the machines by the text of one of their findings, the most frequent text first; errors are left out.

    Args:
        nodes: the findings of each machine.
        name: name of the finding, such as ``torch``.

    Returns:
        Names of machines, by text.
    """
    texts: dict[str, list[str]] = {}
    for host, found in nodes.items():
        for one in found:
            if one.name == name and one.level != "error":
                texts.setdefault(one.text, []).append(host)
    return dict(sorted(texts.items(), key=lambda pair: -len(pair[1])))


def compared(nodes: Nodes) -> list[str]:
    """Return the names of all findings that should be the same on all machines, in order.

    Args:
        nodes: the findings of each machine.
    """
    names = dict.fromkeys(one.name for found in nodes.values() for one in found)
    return [name for name in names if name not in OWN and texts_of(nodes, name)]


def common(nodes: Nodes) -> dict[str, str]:
    """Return the text of each finding that most machines have, by the finding's name.

    Args:
        nodes: the findings of each machine.
    """
    return {name: next(iter(texts_of(nodes, name))) for name in compared(nodes)}


def differences_in(nodes: Nodes) -> Iterator[str]:
    """Yield a line for each finding and group of machines whose text differs from that of most machines.

    Args:
        nodes: the findings of each machine.
    """
    for name in compared(nodes):
        (most, _), *others = texts_of(nodes, name).items()
        for text, hosts in others:
            ours, theirs = set(most.split(", ")), set(text.split(", "))
            own = ", ".join(part for part in text.split(", ") if part not in ours)
            rest = ", ".join(part for part in most.split(", ") if part not in theirs)
            yield f"{', '.join(hosts)}: {name} differs: {own or 'nothing'}, and {rest or 'nothing'} on the others"


def found_in(nodes: Nodes, level: str) -> Iterator[str]:
    """Yield a line for each kind of finding of one level, with the names of the machines that have it.

    Args:
        nodes: the findings of each machine.
        level: ``ok``, ``note`` or ``error``.
    """
    hosts: dict[str, list[str]] = {}
    for host, found in nodes.items():
        for one in found:
            if one.level == level:
                own = one.text if level == "error" else ""  # the texts of notes are in the table
                line = "; ".join(part for part in (own, one.advice) if part) or one.text
                hosts.setdefault(f"{one.name}: {line}", []).append(host)
    for line, those in hosts.items():
        yield f"{'all nodes' if len(those) == len(nodes) else ', '.join(those)}: {line}"


def clocks_off(measured: dict[str, Links]) -> Iterator[str]:
    """Yield a line for each machine whose clock is more than 2 s away from the median clock.

    Args:
        measured: what the rank on each machine measured.
    """
    for host, offset in clocks(measured).items():
        if abs(offset) > SKEW:
            yield f"{host}: clock {offset:+.1f} s off the other nodes: set up NTP there"


def clocks(measured: dict[str, Links]) -> dict[str, float]:
    """Return each machine's clock minus the median clock of all machines, in seconds.

    Args:
        measured: what the rank on each machine measured.
    """
    middle = sorted(one.clock for one in measured.values())[(len(measured) - 1) // 2] if measured else 0.0
    return {host: one.clock - middle for host, one in measured.items()}


def slow_links(measured: dict[str, Links]) -> Iterator[str]:
    """Yield a line for each machine that exchanges data much slower with its neighbours than the fastest machine does.

    Args:
        measured: what the rank on each machine measured.
    """
    fastest = max((one.neighbours for one in measured.values()), default=0.0)
    hosts = list(measured)
    for number, (host, one) in enumerate(measured.items()):
        if one.neighbours * SLOW_LINK < fastest:
            beside = {hosts[number - 1], hosts[(number + 1) % len(hosts)]}
            yield f"{host}: {rate(one.neighbours)} to {' and '.join(sorted(beside))}, elsewhere up to {rate(fastest)}"


def table(nodes: Nodes, measured: dict[str, Links]) -> Table:
    """Return a table with a row per machine: GPUs, memory, network, disk, clock, and bandwidth to its neighbours.

    Args:
        nodes: the findings of each machine.
        measured: what the rank on each machine measured.
    """
    columns = [name for name in COLUMNS if any(one.name == name for found in nodes.values() for one in found)]
    shown = Table("node", *columns, "clock", "to neighbours", box=None, pad_edge=False)
    for host, found in nodes.items():
        cells = {one.name: one.text for one in found}
        ending = ("", "no answer" if not found else "")
        if host in measured:
            ending = (f"{clocks(measured)[host]:+.3f} s", rate(measured[host].neighbours))
        shown.add_row(host, *(cells.get(name, "") for name in columns), *ending)
    return shown


def rate(value: float) -> str:
    """Format a bandwidth as text.

    Args:
        value: bytes per second.
    """
    return f"{value / 1e9:.2f} GB/s" if value >= 1e7 else f"{value / 1e6:.2f} MB/s"
