"""Joining Ray: the cluster that is there, or one of this machine's own."""

from __future__ import annotations

import logging
import os

import ray


def join_cluster(show_worker_output: bool) -> None:
    """Join the cluster that RAY_ADDRESS names or that runs on this machine; or start one here.

    A cluster of our own has no dashboard: its dozen processes take longer to start than a small job
    to run. Start one with `ray start --head` where a dashboard is wanted.
    """
    if not ray.is_initialized():
        # Ray's C++ core writes warnings of its own workings to the terminal, past any logger.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        ray.init(
            include_dashboard=False,
            log_to_driver=show_worker_output,
            logging_level=logging.ERROR,
        )
