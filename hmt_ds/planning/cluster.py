"""GPUs and clusters: speeds from datasheets, and the time of collectives. Imports no torch."""

import math
import re
from dataclasses import dataclass

GIB = 2**30
NODE_GPUS = 8  # of a node, unless the user says otherwise
HOST_GIB = 128  # of host memory for each GPU, unless the user says otherwise


@dataclass(frozen=True)
class Gpu:
    """A GPU type, with the speed and memory of its datasheet.

    Attributes:
        name: name as users write it, such as ``H100``.
        peak: dense bf16 FLOP/s.
        gib: memory in GiB.
        bandwidth: bytes per second between the GPU and its own memory.
        link: bytes per second into a GPU from others of its node: NVLink in one direction, or PCIe.
    """

    name: str
    peak: float
    gib: float
    bandwidth: float
    link: float = 32e9

    @property
    def memory(self) -> float:
        """Bytes of GPU memory that programs can use: the datasheet's number without what CUDA itself takes."""
        return 0.99 * GIB * self.gib


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("H100", 989e12, 80, 3.35e12, 450e9),
        Gpu("H200", 989e12, 141, 4.8e12, 450e9),
        Gpu("GH200", 989e12, 96, 4.0e12, 450e9),
        Gpu("B200", 2250e12, 180, 8.0e12, 900e9),
        Gpu("A100", 312e12, 80, 2.04e12, 300e9),
        Gpu("V100", 125e12, 32, 0.9e12, 150e9),
        Gpu("L40S", 362e12, 48, 0.864e12),
        Gpu("A10", 125e12, 24, 0.6e12),
        Gpu("4090", 165e12, 24, 1.0e12),
    )
}


def gpu_named(device: str) -> Gpu | None:
    """Return a GPU type by its driver's name, such as ``NVIDIA H100 80GB HBM3``; None if the type is not listed.

    Args:
        device: the driver's name.
    """
    known = [gpu for gpu in GPUS.values() if gpu.name in device]
    return max(known, key=lambda one: len(one.name), default=None)  # GH200 also contains H200


@dataclass(frozen=True)
class Cluster:
    """A cluster: nodes of GPUs, with their speed, memory and network.

    Attributes:
        between_nodes: bytes per second into a node, and out of it, shared by its GPUs.
        within_node: bytes per second into a GPU, and out of it. NVLink's 900 GB/s count both directions.
        rate: FLOP/s that a GPU achieves in matrix products.
        memory: bytes of a GPU.
        gpus_per_node: number of GPUs on each node.
        latency_within, latency_between: seconds until a message's first byte arrives, within and between nodes.
    """

    between_nodes: float = 50e9
    within_node: float = 450e9
    rate: float = 600e12
    memory: float = 80e9
    gpus_per_node: int = NODE_GPUS
    latency_within: float = 10e-6
    latency_between: float = 20e-6

    def all_gather_seconds(self, size: float, in_node: int, nodes: int, sharing: int = 1) -> float:
        """Estimate the seconds of an all-gather or a reduce-scatter.

        Each GPU must receive all but its own shard, and each node all but its own, at least once; NCCL's ring
        algorithms need no more.

        Args:
            size: bytes of the gathered tensor.
            in_node: ranks of the process group on each node.
            nodes: number of nodes that the process group spans.
            sharing: process groups that communicate at the same time on a node.
        """
        into_gpu = size * (1 - 1 / (in_node * nodes)) if in_node > 1 else 0.0
        into_node = size * sharing * (1 - 1 / nodes)
        return max(into_gpu / self.within_node, into_node / self.between_nodes)


@dataclass(frozen=True)
class Fleet:
    """The GPUs that a run is estimated for: type, number, nodes and network.

    Attributes:
        gpu: the type of GPU, with its memory as the user wrote it.
        count: number of GPUs.
        nodes: number of nodes, each with the same number of GPUs.
        link: bytes per second into a node.
        host_gib: GiB of host memory of a node; None for what nodes usually have.
    """

    gpu: Gpu
    count: int
    nodes: int
    link: float
    host_gib: float | None = None

    @property
    def host(self) -> float:
        """Bytes of host memory of a node."""
        return GIB * (self.host_gib or HOST_GIB * self.per_node)

    @property
    def per_node(self) -> int:
        """Number of GPUs on each node."""
        return self.count // self.nodes

    @property
    def cluster(self) -> Cluster:
        """The GPUs as a :class:`Cluster`, which estimates the seconds of collectives."""
        return Cluster(self.link, self.gpu.link, self.gpu.peak, self.gpu.memory, self.per_node)

    def __str__(self) -> str:
        nodes = f" on {self.nodes} nodes, {self.link / 1e9:g} GB/s into a node" if self.nodes > 1 else " on 1 node"
        return f"{self.count} x {self.gpu.name} {self.gpu.gib:g} GB{nodes}"


def read_gpus(text: str) -> tuple[int, Gpu]:
    """Parse a number of GPUs and their type, written like ``16xH100-80GB``, ``8xA100-40GB``, ``4xH200`` or ``H100``.

    Args:
        text: the number and the type; 1 GPU if the number is missing.

    Returns:
        The number of GPUs and their type.

    Raises:
        ValueError: if the text has another form, or the type is not listed.
    """
    match = re.fullmatch(r"(?:(\d+) ?x ?)?([A-Za-z0-9]+)(?:-(\d+)(?:GB)?)?", text.strip(), re.IGNORECASE)
    if match is None or match[2].upper() not in GPUS or int(match[1] or 1) < 1:
        raise ValueError(f"must be like 16xH100-80GB, with one of {', '.join(GPUS)}, got {text!r}")
    gpu = GPUS[match[2].upper()]
    gib = float(match[3] or gpu.gib)
    if gib < 1:
        raise ValueError(f"the memory of a GPU must be at least 1 GB, got {text!r}: write it like H100-80GB")
    return int(match[1] or 1), Gpu(gpu.name, gpu.peak, gib, gpu.bandwidth, gpu.link)


def read_link(text: str) -> float:
    """Parse a bandwidth like ``50GB/s`` or ``400Gb/s``, and return it in bytes per second.

    Args:
        text: the bandwidth, in bytes (B) or bits (b) per second.

    Raises:
        ValueError: ``text`` has no such form.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(GB|Gb|Gbit)(?:/s|ps)", text.strip())
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"must be like 50GB/s (bytes) or 400Gb/s (bits), got {text!r}")
    return float(match[1]) * (1e9 if match[2] == "GB" else 1e9 / 8)


def fleet_of(count: int, gpu: Gpu, nodes: int | None, link: float, host_gib: float | None = None) -> Fleet:
    """Return the GPUs of a run, spread evenly over nodes.

    Args:
        count: number of GPUs.
        gpu: type of the GPUs.
        nodes: number of nodes; None for as few as hold the GPUs, with 8 GPUs on each.
        link: bytes per second from the network into a node.
        host_gib: GiB of host memory of a node; None for what nodes usually have.

    Raises:
        ValueError: the GPUs cannot be spread evenly over the nodes.
    """
    nodes = nodes or math.ceil(count / NODE_GPUS)
    if count % nodes:
        raise ValueError(f"{count} GPUs cannot be spread evenly over {nodes} nodes: give another number with --nodes")
    return Fleet(gpu, count, nodes, link, host_gib)
