"""Joining Ray: the cluster that is there, or one of this machine's own; and its nodes' network."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import psutil
import ray
import ray.data
from ray.train.backend import Backend
from ray.train.torch import TorchConfig


def join_cluster(for_training: bool) -> None:
    """Join the cluster that RAY_ADDRESS names or that runs on this machine; or start one here.

    Ray Train prints its workers' progress through the driver, and its cleaner asks the dashboard.
    Other jobs do without both: a dashboard's processes take longer to start than a small job runs.
    Ray Data keeps quiet: what a job has to say of its progress, it says itself.
    """
    if not ray.is_initialized():
        ray.init(
            include_dashboard=for_training,
            log_to_driver=for_training,
            logging_level=logging.ERROR,
        )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


@dataclass
class NodeNetwork(TorchConfig):
    """Gloo on the network that Ray's nodes have in common.

    Left alone, Gloo takes the interface that the host's name resolves to. That is the loopback one
    wherever /etc/hosts says so (Debian's own installer writes it that way), and then no worker
    reaches those of other nodes.
    """

    @property
    def backend_cls(self) -> type[Backend]:
        return _NodeNetworkBackend


class _NodeNetworkBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        if len(set(worker_group.execute(ray.util.get_node_ip_address))) > 1:
            worker_group.execute(_use_node_interface)
        super().on_start(worker_group, backend_config)


def _use_node_interface() -> None:
    """In a worker: the interface of the address that its node has in the cluster."""
    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if address in (each.address for each in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
