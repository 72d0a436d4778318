"""How many CPUs and GPUs each training worker reserves, so that Ray Data keeps some."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import ray

from cfer.errors import InputError


@dataclass(frozen=True)
class Node:
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Placement:
    """What each worker reserves; `warning` where workers have to share a CPU."""

    cpus: float
    use_gpu: bool
    warning: str = ""


def place_workers(
    nodes: Sequence[Node], workers: int, device: str, cpus_per_worker: float
) -> Placement:
    """Reserve so much that the workers fit, and Ray Data has room.

    Training workers that reserve every CPU leave Ray Data none, and both then wait for ever. So
    one CPU of the cluster (half of it, where there is only one) stays free. A request that the
    cluster can't hold is refused here instead of waiting for nodes that never come.

    Raises:
        InputError: the workers can never be placed.
    """
    gpus = sum(int(node.gpus) for node in nodes)
    total = sum(node.cpus for node in nodes)
    if device == "gpu" and gpus < workers:
        raise InputError(
            f"--device gpu --workers {workers}: the cluster has {gpus} GPUs, and every worker "
            f"needs one; give --workers {gpus or 1}{'' if gpus else ' --device cpu'}"
        )
    use_gpu = device == "gpu" or (device == "auto" and gpus >= workers)

    def places(cpus: float) -> int:
        per_node = (math.floor(node.cpus / cpus + 1e-9) for node in nodes)
        if use_gpu:
            return sum(min(n, int(node.gpus)) for n, node in zip(per_node, nodes, strict=True))
        return sum(per_node)

    room = min(1.0, total / 2)
    if cpus_per_worker:
        if places(cpus_per_worker) < workers or workers * cpus_per_worker > total - room + 1e-9:
            raise InputError(
                f"--cpus-per-worker {cpus_per_worker:g} --workers {workers}: the cluster has "
                f"{total:g} CPUs on {len(nodes)} nodes, and {room:g} must stay free for reading "
                "the data; give fewer workers or less for each, or leave --cpus-per-worker out"
            )
        return Placement(cpus_per_worker, use_gpu)
    # Ray counts CPUs in steps of 0.0001; 0.01 is fine enough and readable.
    cpus = min(1.0, math.floor(100 * (total - room) / workers) / 100)
    while cpus >= 0.01 and places(cpus) < workers:
        cpus = round(cpus - 0.01, 2)
    if cpus < 0.01:
        raise InputError(
            f"--workers {workers}: too many for {total:g} CPUs on {len(nodes)} nodes; give fewer"
        )
    warning = ""
    if not use_gpu and workers > total:
        warning = (
            f"--workers {workers} share {total:g} CPUs: this works, slower than "
            f"--workers {max(1, int(total))}"
        )
    return Placement(cpus, use_gpu, warning)


def cluster_nodes() -> list[Node]:
    return [
        Node(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
        for node in ray.nodes()
        if node["Alive"]
    ]
