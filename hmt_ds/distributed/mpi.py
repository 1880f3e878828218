"""Where the ranks of a plain ``mpirun`` meet: MPI itself is asked, by mpi4py."""

import socket

from hmt_ds.distributed.network import address_towards, bound_port, interface_of


def meeting_place() -> dict[str, str]:
    """The first rank's address and a free port there, and the interface towards the others. All ranks call it together.

    MPI is left at once, so that a rank may end as it likes: what ranks say later goes through NCCL or gloo.

    Raises:
        RuntimeError: without mpi4py or an MPI library, or where the first machine finds no way to the others.
    """
    try:
        import mpi4py

        mpi4py.rc.initialize = mpi4py.rc.finalize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(f"set it, or install mpi4py, which asks MPI ({str(error).splitlines()[0]})") from None
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
        raise RuntimeError(f"set it: {names[0]} finds no way to the other machines by their names")
    place = {"MASTER_ADDR": first, "MASTER_PORT": str(port)}
    interface = interface_of(address) if address else None
    return place | ({"GLOO_SOCKET_IFNAME": interface} if interface else {})
