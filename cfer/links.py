"""How training workers find each other, on one machine and on several."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any

import psutil
import ray
import torch.distributed as dist
from ray.train.backend import Backend
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from cfer.cluster import is_on_loopback


def worker_links() -> TorchConfig:
    """How training workers find each other, in the cluster that was joined."""
    return _OneMachine() if is_on_loopback() else _SeveralNodes()


class _OneMachine(TorchConfig):
    """Where nothing may listen beyond loopback they meet in a file, since PyTorch's store for it,
    of TCP, listens at every address."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _FileBackend


class _FileBackend(_TorchBackend):
    """See `_OneMachine`."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        self._folder = tempfile.mkdtemp(prefix="cfer-workers-")
        on_gpus = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        meeting = (f"{self._folder}/store", "nccl" if on_gpus else "gloo", len(worker_group))
        ray.get(
            [
                worker_group.execute_single_async(rank, _meet, *meeting, rank)
                for rank in range(len(worker_group))
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        try:
            super().on_shutdown(worker_group, backend_config)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)


def _meet(file: str, backend: str, world_size: int, rank: int) -> None:
    dist.init_process_group(backend, init_method=f"file://{file}", world_size=world_size, rank=rank)


class _SeveralNodes(TorchConfig):
    """On the network that Ray's nodes have in common.

    Left alone, Gloo takes the interface that the host's name resolves to. That is the loopback one
    wherever /etc/hosts says so (Debian's own installer writes it that way), and then no worker
    reaches those of other nodes.
    """

    @property
    def backend_cls(self) -> type[Backend]:
        return _NodeNetworkBackend


class _NodeNetworkBackend(_TorchBackend):
    """See `_SeveralNodes`."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        if len(set(worker_group.execute(ray.util.get_node_ip_address))) > 1:
            worker_group.execute(_use_node_interface)
        super().on_start(worker_group, backend_config)


def _use_node_interface() -> None:
    """In a worker: the interface of the address that its node has in the cluster."""
    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if address in (each.address for each in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
