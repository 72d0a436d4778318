"""Joining Ray: the cluster that is there, or one of this machine's own."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from typing import Any

import ray
import ray.data
from ray._private import ray_constants, services

from cfer.errors import signals_kept_from_ray

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
        # Ray's switch for systems on which it makes no clusters: its processes then listen at
        # loopback. There is no option of `init` for that; a loopback address is not taken as it is.
        makes_clusters, popen = ray_constants.ENABLE_RAY_CLUSTER, services.ConsolePopen
        ray_constants.ENABLE_RAY_CLUSTER = not starts_here
        services.ConsolePopen = _PopenWithoutBlock  # type: ignore[assignment,misc]
        try:
            with signals_kept_from_ray():
                ray.init(
                    include_dashboard=for_training,
                    log_to_driver=for_training,
                    logging_level=logging.ERROR,
                )
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = makes_clusters
            services.ConsolePopen = popen  # type: ignore[misc]
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # an InputError stays one
    logging.getLogger("ray.data").setLevel(logging.ERROR)


class _PopenWithoutBlock(services.ConsolePopen):
    """Ray's processes end by SIGTERM, which this one blocks while it starts them."""

    def __init__(self, command: list[str], preexec_fn: Callable[[], None], **options: Any) -> None:
        def prepare() -> None:
            preexec_fn()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

        super().__init__(command, preexec_fn=prepare, **options)


def is_on_loopback() -> bool:
    """Whether the cluster that was joined is this machine alone, and out of reach from others."""
    return ray.util.get_node_ip_address() == LOOPBACK
