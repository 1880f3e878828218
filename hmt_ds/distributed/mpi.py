"""Find the address for ``init_process_group``, for ranks started by plain ``mpirun``, through MPI (mpi4py)."""

import socket

from hmt_ds.distributed.network import address_towards, bound_port, interface_of


def rendezvous() -> dict[str, str]:
    """Find the address and port for ``init_process_group``: those of the first rank, and this machine's network
    interface.

    All ranks must call it. MPI is finalized at once, so that a rank can exit at any time: later messages go through
    NCCL or gloo.

    Returns:
        Environment variables: ``MASTER_ADDR``, ``MASTER_PORT`` and, if known, ``GLOO_SOCKET_IFNAME``.

    Raises:
        RuntimeError: without mpi4py or an MPI library, or if the first machine cannot resolve the others' host names.
    """
    try:
        import mpi4py

        mpi4py.rc.initialize = mpi4py.rc.finalize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise RuntimeError(
            f"mpi4py, which finds the first machine, cannot be imported ({reason}): pip install mpi4py, or set "
            "MASTER_ADDR to the first machine's address"
        ) from None
    MPI.Init()
    everyone = MPI.COMM_WORLD
    names = everyone.allgather(socket.gethostname())
    here = names[everyone.Get_rank()]
    try:
        address = address_towards(next((name for name in names if name != here), here))
    except OSError:
        address = None
    first, port = everyone.bcast((address, bound_port(0)))
    MPI.Finalize()
    if not first:
        others = ", ".join(sorted(set(names) - {names[0]}))
        raise RuntimeError(
            f"the first machine, {names[0]}, cannot resolve or reach the host names of the others, {others}: "
            "set MASTER_ADDR to the first machine's address"
        )
    place = {"MASTER_ADDR": first, "MASTER_PORT": str(port)}
    interface = interface_of(address) if address else None
    return place | ({"GLOO_SOCKET_IFNAME": interface} if interface else {})
