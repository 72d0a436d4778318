"""How training workers find each other, on one machine and on several."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

import psutil
import ray
import torch
import torch.distributed as dist
from ray.train import get_context
from ray.train.backend import Backend
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchConfig

from cfer.cluster import is_on_loopback


class WorkersLinkThemselves(TorchConfig):
    """Ray Train starts the workers, and they link themselves (`linked`): the links that it would
    make, by PyTorch's TCP store, listen at every address."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _NoLinks


class _NoLinks(Backend):
    # As Ray Train's own backend for PyTorch has it: NCCL asks to see all GPUs of a node.
    share_cuda_visible_devices = True


@contextlib.contextmanager
def linked(device: torch.device) -> Iterator[None]:
    """In a training worker: one process group with all others, while the context lasts."""
    context = get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    if world_size == 1:
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    with _store(rank, world_size, context.get_local_world_size()) as store:
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
        yield
        # Not after a failure, when it might wait for others: Ray ends the processes then.
        dist.destroy_process_group()


@contextlib.contextmanager
def _store(rank: int, world_size: int, local_world_size: int) -> Iterator[dist.Store]:
    """Where the workers meet: in a file, where nothing may listen beyond loopback; else at rank 0,
    on the network that Ray's nodes have in common."""
    if is_on_loopback():
        folder = broadcast_from_rank_zero(
            tempfile.mkdtemp(prefix="cfer-workers-") if rank == 0 else None
        )
        try:
            yield dist.FileStore(f"{folder}/store", world_size)
        finally:
            if rank == 0:
                shutil.rmtree(folder, ignore_errors=True)
        return
    if world_size > local_world_size:
        _use_node_interface()
    own = None
    if rank == 0:
        address = ray.util.get_node_ip_address()
        own = dist.TCPStore(address, 0, world_size, is_master=True, wait_for_workers=False)
    host, port = broadcast_from_rank_zero((own.host, own.port) if own else None)
    yield own or dist.TCPStore(host, port, world_size, is_master=False)


def _use_node_interface() -> None:
    """The interface of the address that this node has in the cluster.

    By default Gloo takes the interface that the host's name resolves to. That is loopback where
    /etc/hosts says so, as Debian's installer writes it, and then no worker reaches other nodes.
    """
    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if address in (each.address for each in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
