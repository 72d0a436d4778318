"""What a recognizer is worth: `cfer evaluate`, and the page about an experiment: `cfer report`.

cfer evaluate EXPERIMENT          # table of its finished runs
cfer evaluate RUN                 # one of them: recall of each class, calibration, leakage
cfer evaluate RUN --data SHARDS   # a stored model on a data set
cfer report EXPERIMENT            # report/report.md and report/report.html
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from cfer.outputs import check_output_folder


def evaluate(
    name: Annotated[Positional[str], arg(metavar="NAME")],
    data: Annotated[str | None, arg(metavar="SHARDS")] = None,
) -> int:
    """Recognition on held-out subjects, and how much identity the expression code has.

    Args:
        name: An MLflow experiment, or a run's name or id; with --data also a model's URI or folder.
        data: Evaluate the stored model on every labeled clip of a data set that is new to it.
    """
    from cfer import tracking
    from cfer.evaluate import table

    tracking.connect()
    if data:
        print(table.on_data(name, data))
    elif tracking.is_experiment(name):
        print(table.of_experiment(tracking.find_runs(name)))
    else:
        print(table.of_run(tracking.find_run(name)))
    return 0


def report(
    experiment: Annotated[Positional[str], arg(metavar="EXPERIMENT")],
    out: Path = Path("report"),
) -> int:
    """Write report.md and report.html: the table of methods, what the differences are worth, plots.

    Args:
        experiment: Its name in the MLflow store, as --experiment of `cfer train`.
        out: The folder to write.
    """
    check_output_folder(out)
    from cfer.evaluate.report import write

    print(write(experiment, out))
    return 0
