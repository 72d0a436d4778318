"""Joining Ray: the cluster that is there, or one of this machine's own; its workers' network."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
from typing import Any

import psutil
import ray
import ray.data
import torch.distributed as dist
from ray._private import ray_constants, services
from ray.train.backend import Backend
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from cfer.errors import STOP_SIGNALS

LOOPBACK = "127.0.0.1"


def join_cluster(for_training: bool) -> None:
    """Join the cluster that RAY_ADDRESS names or that runs on this machine; or start one here.

    One that is started here can be reached from this machine alone.

    Ray Train prints its workers' progress through the driver, and its cleaner asks the dashboard.
    Other jobs do without both: a dashboard's processes take longer to start than a small job runs.
    Ray Data keeps quiet: what a job has to say of its progress, it says itself.
    """
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS") or services.find_bootstrap_address(None)
        starts_here = address in (None, "local")
        if starts_here:
            # The links between training workers, of PyTorch.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
            # What Ray notes of every task and of its own doings: nobody reads it here, and it grows
            # with the job (docs/scale.md).
            os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
            os.environ.setdefault("RAY_enable_metrics_collection", "false")
        handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        # Ray's switch for systems on which it makes no clusters: its processes then listen at
        # loopback. There is no option of `init` for that; a loopback address is not taken as it is.
        makes_clusters = ray_constants.ENABLE_RAY_CLUSTER
        ray_constants.ENABLE_RAY_CLUSTER = not starts_here
        try:
            ray.init(
                include_dashboard=for_training,
                log_to_driver=for_training,
                logging_level=logging.ERROR,
            )
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = makes_clusters
        if threading.current_thread() is threading.main_thread():
            # Ray puts one of its own in the place of SIGTERM's, which aborts.
            for number, handler in handlers.items():
                signal.signal(number, handler or signal.SIG_DFL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # an InputError stays one
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def worker_links() -> TorchConfig:
    """How training workers find each other, in the cluster that was joined."""
    is_on_loopback = ray.util.get_node_ip_address() == LOOPBACK
    return _OneMachine() if is_on_loopback else _SeveralNodes()


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
