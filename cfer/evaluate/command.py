"""What a recognizer is worth: `cfer evaluate`, and the page about an experiment: `cfer report`.

cfer evaluate EXPERIMENT          # table of its finished runs
cfer evaluate RUN                 # one of them: recall of each class, calibration, attacks
cfer evaluate RUN --bound OTHER   # beside the attacks on a run that was trained to identify people
cfer evaluate RUN --labels        # and beside those on its labels alone
cfer evaluate RUN --photographs people.csv    # are the codes linked to photographs of the people?
cfer evaluate RUN --data SHARDS   # a stored model on a data set
cfer report EXPERIMENT            # report/report.md and report/report.html
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from cfer.errors import InputError
from cfer.outputs import check_output_folder

LABELS = "\nIts labels alone, which bound it from below:\n"

if TYPE_CHECKING:
    from mlflow.entities import Run


def evaluate(
    name: Annotated[Positional[str], arg(metavar="NAME")],
    data: Annotated[str | None, arg(metavar="SHARDS")] = None,
    groups: Annotated[Path | None, arg(metavar="CSV")] = None,
    photographs: Annotated[Path | None, arg(metavar="CSV")] = None,
    bound: Annotated[str | None, arg(metavar="RUN")] = None,
    labels: bool = False,
) -> int:
    """Recognition on held-out subjects, and what an attacker learns from the expression code.

    Args:
        name: An MLflow experiment, or a run's name or id; with --data also a model's URI or folder.
        data: Evaluate the stored model on every labeled clip of a data set that is new to it.
        groups: What is known of the people, to be read from a run's codes: a column `subject`, and
            one for each attribute, such as gender.
        photographs: A picture of each person's face that is in no video, to which the codes may be
            linked: columns `subject` and `path`.
        bound: Another run, to which the same attacks are made: one that was trained to identify
            people says what the input holds.
        labels: Make the same attacks on the labels alone that the run has predicted: what they tell
            of the person, every code tells from which they can be read.
    """
    from cfer import tracking
    from cfer.evaluate import table

    tracking.connect()
    if data:
        print(table.on_data(name, data))
    elif tracking.is_experiment(name):
        print(table.of_experiment(tracking.find_runs(name)))
    else:
        run = tracking.find_run(name)
        print(table.of_run(run))
        _print_attacks(run, groups, photographs, bound, labels)
    return 0


def _print_attacks(
    run: Run,
    groups_file: Path | None,
    photographs_file: Path | None,
    bound: str | None,
    labels: bool,
) -> None:
    from cfer import tracking
    from cfer.evaluate import attacked_run

    groups = None if groups_file is None else attacked_run.read_groups(groups_file)
    photographs = None
    if photographs_file is not None:
        photographs = attacked_run.read_photographs(photographs_file)
    for one in [run] if bound is None else [run, tracking.find_run(bound)]:
        if one is not run:
            print(f"\n{one.info.run_name}, which bounds it:")
        try:
            suites = attacked_run.attack_run(one, groups, photographs, labels and one is run)
        except InputError as error:
            if groups or photographs or bound or labels:
                raise  # they were asked for, not only made beside the figures
            print(f"\nattacks: not made, {error}")
            continue
        for head, suite in zip(("", LABELS), suites, strict=False):
            print(head + "\n" + attacked_run.table(suite))


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
