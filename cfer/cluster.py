"""Joining Ray: the cluster that is there, or one of this machine's own."""

from __future__ import annotations

import logging

import ray
import ray.data


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
    context.raise_original_map_exception = True  # an InputError stays one
    logging.getLogger("ray.data").setLevel(logging.ERROR)
