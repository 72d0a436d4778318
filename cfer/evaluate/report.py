"""One page about an experiment: the table of its methods, pictures, the command of every row.

    cfer report EXPERIMENT --out FOLDER       # FOLDER/report.md and FOLDER/report.html

A row is a protocol (`python -m cfer.train --folds …`): mean ± standard deviation over its folds and
seeds. Differences are taken run by run from a reference row, and tested with the corrected
resampled t-test (Nadeau & Bengio, "Inference for the Generalization Error", Machine Learning 2003),
since the runs share clips: an uncorrected test would find differences that are not there. Runs are
paired where both rows held out the same people; rows that did not are not compared.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mlflow.entities import Run

from cfer import tracking
from cfer.errors import InputError
from cfer.evaluate.significance import MethodResults, difference

REFERENCE_METHOD = "cross-entropy"


# Rows of other encodings have that method, too: the plain one is preferred.
REFERENCE_NAMES = (REFERENCE_METHOD, "recommended")


PICTURES_OF_A_RUN = {
    "embedding.png": "Expression codes of one run's held-out clips",
    "curves.png": "One run's curves",
}


def _against(row: MethodResults, reference: MethodResults, metric: str) -> str:
    try:
        found = None if row is reference else difference(row, reference, metric)
    except InputError:
        return "not comparable"
    if found is None:
        return "–"
    change, p, _ = found
    change = round(change, 3) + 0.0  # no "−0.000"
    return f"{change:+.3f}".replace("-", "−") + f" (p {'< 0.001' if p < 0.001 else f'= {p:.3f}'})"


def _not_compared(table: Sequence[MethodResults], reference: MethodResults) -> list[str]:
    """Why rows are not comparable to the reference, a line for each."""
    lines = []
    for row in table:
        try:
            difference(row, reference, "held_out/accuracy")
        except InputError as error:
            lines.append(f"- *Not comparable*: {error}.")
    return [*lines, ""] if lines else []


def read_rows(experiment: str) -> list[MethodResults]:
    """The finished protocols of an experiment, oldest first.

    Raises:
        InputError: no such experiment, or none in it.
    """
    tracking.connect()
    if not tracking.is_experiment(experiment):
        tracking.find_run(experiment)
        raise InputError(
            f"{experiment}: a run, and no experiment; see python -m cfer.evaluate.command"
        )
    rows = []
    for run in sorted(tracking.find_runs(experiment), key=lambda r: r.info.start_time):
        if _role(run) != "protocol":
            continue
        file = tracking.download(run, "runs.json")
        if file is None:
            continue
        runs = json.loads(file.read_text())
        rows.append(
            MethodResults(
                run.info.run_name or run.info.run_id,
                run,
                {name: results["figures"] for name, results in runs.items()},
                {name: results.get("held_out", []) for name, results in runs.items()},
                {
                    name: np.sum(results["confusion"]) / results["num_train"]
                    for name, results in runs.items()
                    if results.get("num_train")
                },
                {name: results["mlflow_run_id"] for name, results in runs.items()},
            )
        )
    if not rows:
        raise InputError(
            f"{experiment}: no finished protocol in it; train one with --folds or --seeds"
        )
    return rows


def write(experiment: str, out: Path) -> Path:
    """Write the Markdown page with its pictures, and the HTML page, which holds them → the latter.

    Raises:
        InputError: see `read_rows`.
    """
    import markdown

    rows = read_rows(experiment)
    out.mkdir(parents=True, exist_ok=True)
    text = _page(experiment, rows, out)
    (out / "report.md").write_text(text)
    body = markdown.markdown(text, extensions=["tables", "fenced_code"])
    page = out / "report.html"
    page.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(experiment)}"
        f"</title><style>{_STYLE}</style><main>{_with_pictures(body, out)}</main></html>\n"
    )
    return page


def _page(experiment: str, rows: Sequence[MethodResults], out: Path) -> str:
    named = [row for row in rows if row.name in REFERENCE_NAMES]
    alike = [row for row in rows if row.run.data.params.get("method") == REFERENCE_METHOD]
    reference = [*named, *alike, *rows][0]
    lines = [f"# {experiment}", "", _about(reference), ""]
    lines += ["## Recognition", "", *_recognition_table(rows, reference), ""]
    lines += _not_compared(rows, reference)
    lines += ["## Identity in the code", "", *_identity_table(rows, reference), ""]
    lines += [*_legend(reference), "## Commands", "", *_commands(rows), ""]
    for run in tracking.find_runs(experiment):
        if _role(run) == "sweep":
            name = run.info.run_name or run.info.run_id
            lines += [
                f"## Sweep: {name}",
                "",
                f"`{run.data.tags.get(tracking.COMMAND_TAG, '?')}`",
                "",
            ]
            lines += [_picture(run, "sweep.png", "Figures over the swept option", name, out), ""]
    lines += ["## Confusion matrices, pooled over the runs", ""]
    lines += [_picture(row.run, "confusion.png", "Confusion", row.name, out) for row in rows]
    lines += [""]
    for row in _pictured(rows, reference):
        lines += [f"## {row.name}", ""]
        run = tracking.find_run(row.run_ids[next(iter(row.run_ids))])
        for file, title in PICTURES_OF_A_RUN.items():
            lines += [_picture(run, file, title, row.name, out), ""]
    return "\n".join(lines) + "\n"


def _role(run: Run) -> str:
    return str(run.data.tags.get("cfer.role"))


def _about(row: MethodResults) -> str:
    params, tags = row.run.data.params, row.run.data.tags
    inputs = row.run.inputs.dataset_inputs if row.run.inputs else []
    data = json.loads(inputs[0].dataset.source).get("uri", "") if inputs else ""
    codec = ", ".join(
        f"{name.removeprefix('codec_')} {value}"
        for name, value in sorted(params.items())
        if name.startswith("codec_") and value != "None"
    )
    names = list(row.figures)
    return (
        f"{len(names)} runs a row ({names[0]} to {names[-1]}), {params['epochs']} epochs; "
        f"figures of the last epoch on held-out subjects, mean ± standard deviation over the runs: "
        "each run counts the same (of `loso`, each person), and in *by clip*, each clip. "
        f"Data set `{Path(data).name}` ({codec}; identity by {params['identity_network']}; digest "
        f"{params['data_digest'][:12]}). cfer {tags.get('cfer_version', '?')}, commit "
        f"{tags.get('git_commit', 'unknown')[:12]}"
        f"{' with local changes' if tags.get('git_dirty') == 'true' else ''}."
    )


def _recognition_table(table: Sequence[MethodResults], reference: MethodResults) -> list[str]:
    head = ["method", "accuracy", "UAR", "accuracy by clip", "UAR by clip"]
    head += [f"accuracy − {reference.name}", "parameters", "bytes/clip"]
    body = [
        [
            f"**{row.name}**",
            row.cell("held_out/accuracy"),
            row.cell("held_out/uar"),
            *(f"{row.run.data.metrics[f'pooled/{name}']:.3f}" for name in ("accuracy", "uar")),
            _against(row, reference, "held_out/accuracy"),
            row.mean("cost/parameters", 0),
            row.mean("cost/bytes_per_clip", 0),
        ]
        for row in table
    ]
    return _table(head, body)


def _identity_table(table: Sequence[MethodResults], reference: MethodResults) -> list[str]:
    head = [
        "method",
        "AUC, held-out",
        f"AUC − {reference.name}",
        "AUC, training",
        "probe, held-out",
        "probe, training",
        "1-NN, held-out",
        "R² z_R → z_I",
        "vCLUB",
    ]
    body = [
        [
            f"**{row.name}**",
            row.cell("leakage/auc_held_out"),
            _against(row, reference, "leakage/auc_held_out"),
            row.cell("leakage/auc_train"),
            row.cell("leakage/linear_held_out"),
            row.cell("leakage/linear_train"),
            row.cell("leakage/knn_held_out"),
            row.mean("leakage/r2", 3),
            row.mean("leakage/vclub", 3),
        ]
        for row in table
    ]
    return _table(head, body)


def _legend(reference: MethodResults) -> list[str]:
    return [
        '*Identity in the code z_R*: AUC of two clips\' codes for "same subject", across classes '
        "(0.5 is chance); the strict probe is a linear classifier that names the subject, trained "
        "on some classes and tested on others (chance, the share of who has most clips: "
        f"{reference.mean('leakage/chance_held_out', 3)} on held-out subjects, "
        f"{reference.mean('leakage/chance_train', 3)} on training subjects); "
        "1-NN has the same chance; R² of a ridge regression to the face recognizer's embedding "
        "(0 or less: nothing); vCLUB in nats per dimension, by an estimator fitted anew. Lower is "
        "less identity. *Bytes*: of the packets that a clip's input gives to the decoder. "
        "*p*: corrected resampled t-test, run by run, not corrected for the number of rows; where "
        "the runs of a row differ in their seeds alone, it says nothing of other people.",
        "",
    ]


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
        *("| " + " | ".join(cells) + " |" for cells in body),
    ]


def _commands(table: Sequence[MethodResults]) -> list[str]:
    lines = ["| method | command | commit |", "|---|---|---|"]
    for row in table:
        tags = row.run.data.tags
        commit = tags.get("git_commit", "unknown")[:12]
        commit += " with changes" if tags.get("git_dirty") == "true" else ""
        lines.append(f"| {row.name} | `{tags.get(tracking.COMMAND_TAG, '?')}` | {commit} |")
    return lines


def _pictured(rows: Sequence[MethodResults], reference: MethodResults) -> list[MethodResults]:
    """The reference, the game, and the best other in accuracy: a page of all is not read."""

    def accuracy(row: MethodResults) -> float:
        return float(np.mean([f["held_out/accuracy"] for f in row.figures.values()]))

    games = [row for row in rows if row.run.data.params.get("method") == "min-min"][:1]
    others = [row for row in rows if row not in (reference, *games)]
    return [reference, *games, *sorted(others, key=accuracy)[-1:]]


def _picture(run: Run, file: str, title: str, name: str, out: Path) -> str:
    """A picture of a run, copied beside the page, in Markdown; nothing where the run has none."""
    source = tracking.download(run, file)
    if source is None:
        return ""
    copy = re.sub(r"[^\w.+-]", "-", f"{name}-{file}")
    (out / copy).write_bytes(source.read_bytes())
    return f"![{title}: {name}]({copy})"


def _with_pictures(body: str, out: Path) -> str:
    """The pictures in the page itself, so that it is one file."""

    def embedded(match: re.Match[str]) -> str:
        data = base64.b64encode((out / html.unescape(match[1])).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    return (
        re.sub(r'src="([^":]+\.png)"', embedded, body)
        .replace("<table>", '<div class="wide"><table>')
        .replace("</table>", "</table></div>")
    )


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; }
main { max-width: 84rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid #ddd; text-align: left;
         white-space: nowrap; }
th { background: #f4f4f4; } tr:hover td { background: #fafaf2; }
img { max-width: 100%; border: 1px solid #eee; }
p img:not(:only-child) { width: 24%; min-width: 18rem; }
code { background: #f4f4f4; font-size: 0.85em; white-space: pre-wrap; }
"""
