"""Joining Ray: a cluster that is running, or one that is started for this machine alone."""

from __future__ import annotations

import logging
import os
import socket
import time
from urllib.parse import urlsplit

import ray
import ray.data

from cfer.errors import InputError, signals_kept_from_ray

LOOPBACK = "127.0.0.1"
MOST_SECONDS_TO_JOIN = 30
# Environment variables, set where a Ray may be started here.
_LOCAL_SETTINGS = {
    # PyTorch's links between training workers.
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    # Ray's records of every task and its metrics: nobody reads them here, and they grow with the
    # job (docs/scale.md).
    "RAY_task_events_report_interval_ms": "0",
    "RAY_enable_metrics_collection": "false",
}


def join_cluster(for_training: bool) -> None:
    """Join the cluster that RAY_ADDRESS names or that runs on this machine; or start one here.

    One that is started here can be reached from this machine alone (see `cfer/__init__.py`).

    Ray Train prints its workers' progress through the driver, and its cleaner asks the dashboard.
    Other jobs do without both: a dashboard's processes take longer to start than a small job runs.
    Ray Data prints nothing: each job reports its own progress.

    Raises:
        InputError: nothing answers at RAY_ADDRESS.
    """
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", "")
        if address in ("", "local"):
            for name, value in _LOCAL_SETTINGS.items():
                os.environ.setdefault(name, value)
        elif address != "auto":
            _check_address(address)
        try:
            with signals_kept_from_ray():
                ray.init(
                    include_dashboard=for_training,
                    log_to_driver=for_training,
                    logging_level=logging.ERROR,
                )
        except ConnectionError as error:
            raise InputError(
                f"Ray: {str(error).splitlines()[0]}; correct RAY_ADDRESS, or set it to local for a "
                "Ray of this machine alone"
            ) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # an InputError stays one
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _check_address(address: str) -> None:
    """Ray itself would wait for ever for a cluster that has ended."""
    deadline = time.monotonic() + MOST_SECONDS_TO_JOIN
    while True:
        try:
            parts = urlsplit(address if "://" in address else f"//{address}")
            port = parts.port or (10001 if parts.scheme else 6379)  # Ray's own
            socket.create_connection((parts.hostname, port), timeout=5).close()
            return
        except (OSError, ValueError) as error:
            # A cluster that has just been started may not listen yet.
            if isinstance(error, OSError) and time.monotonic() < deadline:
                time.sleep(0.5)
                continue
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"RAY_ADDRESS={address}: no Ray cluster answers there ({reason}); correct or unset "
                "it, or start the cluster"
            ) from error


def is_on_loopback() -> bool:
    """Whether the cluster that was joined is this machine alone, and out of reach from others."""
    return ray.util.get_node_ip_address() == LOOPBACK
