"""One page about an experiment: the table of its methods, pictures, the command of every row.

    cfer report EXPERIMENT --out FOLDER       # FOLDER/report.md and FOLDER/report.html

A row is a protocol (`cfer train --folds …`): mean ± standard deviation over its folds and seeds.
Differences from a reference row are taken run by run, and tested (`cfer.evaluate.significance`).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup, escape
from mlflow.entities import Run

from cfer import tracking
from cfer.errors import InputError
from cfer.evaluate.attacked_run import LEGEND, TOO_FEW, attack_run, data_of, wide_table
from cfer.evaluate.attacks import EXPLAINED, LINKAGE, VERIFICATION, chance_of, strongest
from cfer.evaluate.figures import Spread, faces_figure, tradeoff_figure
from cfer.evaluate.significance import MethodResults, difference

REFERENCE_METHOD = "cross-entropy"
# Rows of other encodings have that method, too: the plain one is preferred.
REFERENCE_NAMES = (REFERENCE_METHOD, "recommended")
PICTURES_OF_A_RUN = {
    "embedding.png": "Expression codes of one run's held-out clips",
    "curves.png": "One run's curves",
}


@dataclass(frozen=True)
class Section:
    """What both pages show below a heading, in this order.

    Texts and cells may have `code`, *emphasis* and **strong** words, written as in Markdown.

    Attributes:
        table: rows of cells, the head first.
        texts: paragraphs.
        pictures: paragraphs of pictures, each a title and a file beside the page. Those of one
            paragraph are shown side by side.
    """

    title: str
    table: Sequence[Sequence[str]] = ()
    texts: Sequence[str] = ()
    pictures: Sequence[Sequence[tuple[str, Path]]] = ()


def write(experiment: str, out: Path) -> Path:
    """Write the Markdown page with its pictures, and the HTML page, which holds them → the latter.

    Raises:
        InputError: no such experiment, or no finished protocol in it.
    """
    tracking.connect()
    if not tracking.is_experiment(experiment):
        tracking.find_run(experiment)
        raise InputError(f"{experiment}: a run, and no experiment; see `cfer evaluate`")
    runs = tracking.find_runs(experiment)
    rows = read_rows(experiment, runs)
    out.mkdir(parents=True, exist_ok=True)
    named = [row for row in rows if row.name in REFERENCE_NAMES]
    alike = [row for row in rows if row.run.data.params.get("method") == REFERENCE_METHOD]
    reference = [*named, *alike, *rows][0]
    about = _about(reference)
    sections = [
        *_tables(rows, reference),
        *_tradeoff(rows, out),
        *_pictures(rows, reference, runs, out),
    ]
    (out / "report.md").write_text(_markdown(experiment, about, sections))
    environment = jinja2.Environment(autoescape=True)
    environment.filters |= {"marked": _marked, "in_base64": _in_base64}
    page = out / "report.html"
    template = environment.from_string(Path(__file__).with_name(page.name).read_text())
    page.write_text(template.render(title=experiment, about=about, sections=sections) + "\n")
    return page


def _markdown(title: str, about: str, sections: Sequence[Section]) -> str:
    parts = [f"# {title}", about]
    for section in sections:
        parts.append(f"## {section.title}")
        if section.table:
            head, *rows = ("| " + " | ".join(row) + " |" for row in section.table)
            parts.append("\n".join([head, "|---" * len(section.table[0]) + "|", *rows]))
        parts += section.texts
        for pictures in section.pictures:
            parts.append("\n".join(f"![{title}]({file.name})" for title, file in pictures))
    return "\n\n".join(parts) + "\n"


def _marked(text: str) -> Markup:
    """`code`, *emphasis* and **strong** words of a `Section`, in HTML."""
    tags = {"`": "code", "*": "em", "**": "strong"}

    def element(found: re.Match[str]) -> str:
        return f"<{tags[found[1]]}>{found[2]}</{tags[found[1]]}>"

    return Markup(re.sub(r"(`|\*\*|\*)(.+?)\1", element, escape(text)))


def _in_base64(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def read_rows(experiment: str, runs: Sequence[Run]) -> list[MethodResults]:
    """The finished protocols among the runs of an experiment, oldest first.

    Raises:
        InputError: there is none.
    """
    rows = []
    for run in sorted(runs, key=lambda r: r.info.start_time):
        file = tracking.download(run, "runs.json") if tracking.role(run) == "protocol" else None
        if file is not None:
            name = run.info.run_name or run.info.run_id
            rows.append(MethodResults(name, run, json.loads(file.read_text())))
    if not rows:
        raise InputError(
            f"{experiment}: no finished protocol in it; train one with --folds or --seeds"
        )
    return rows


def _about(row: MethodResults) -> str:
    params = row.run.data.params
    data = data_of(row.run)
    codec = ", ".join(
        f"{name.removeprefix('codec_')} {value}"
        for name, value in sorted(params.items())
        if name.startswith("codec_") and value != "None"
    )
    names = list(row.results)
    return (
        f"{len(names)} runs a row ({names[0]} to {names[-1]}), {params['epochs']} epochs; "
        f"figures of the last epoch on held-out subjects, mean ± standard deviation over the runs: "
        "each run counts the same (of `loso`, each person), and in *by clip*, each clip. "
        f"Data set `{Path(data).name}` ({codec}; identity by {params['identity_network']}; digest "
        f"{params['data_digest'][:12]}). cfer {row.run.data.tags.get('cfer_version', '?')}, commit "
        f"{_commit(row.run)}."
    )


def _commit(run: Run) -> str:
    tags = run.data.tags
    changes = " with local changes" if tags.get("git_dirty") == "true" else ""
    return tags.get("git_commit", "unknown")[:12] + changes


def _command(run: Run) -> str:
    return f"`{run.data.tags.get(tracking.COMMAND_TAG, '?')}`"


def _tables(rows: Sequence[MethodResults], reference: MethodResults) -> Iterator[Section]:
    from cfer.evaluate.calibration import NUM_BINS

    def table(columns: dict[str, Callable[[MethodResults], str]]) -> list[list[str]]:
        return [[*columns], *([cell(row) for cell in columns.values()] for row in rows)]

    recognition = {
        "method": lambda row: f"**{row.name}**",
        "accuracy": lambda row: row.cell("held_out/accuracy"),
        "UAR": lambda row: row.cell("held_out/uar"),
        "accuracy by clip": lambda row: f"{row.run.data.metrics['pooled/accuracy']:.3f}",
        "UAR by clip": lambda row: f"{row.run.data.metrics['pooled/uar']:.3f}",
        f"accuracy − {reference.name}": lambda row: _against(row, reference, "held_out/accuracy"),
        "parameters": lambda row: row.mean("cost/parameters", 0),
        "bytes/clip": lambda row: row.mean("cost/bytes_per_clip", 0),
    }
    attacked = {
        "method": lambda row: f"**{row.name}**",
        "linkage, one clip": lambda row: row.cell(_strongest([row], LINKAGE, pooled=False)),
        "linkage, pooled": lambda row: row.cell(_strongest([row], LINKAGE)),
        "by chance": lambda row: _chance(row, LINKAGE),
        "linkage by": lambda row: _attacker(_strongest([row], LINKAGE)),
        f"pooled − {reference.name}": lambda row: _against(
            row, reference, _strongest((row, reference), LINKAGE)
        ),
        "verification, one clip": lambda row: row.cell(
            _strongest([row], VERIFICATION, pooled=False)
        ),
        "verification, pooled": lambda row: row.cell(_strongest([row], VERIFICATION)),
        "verification by chance": lambda row: _chance(row, VERIFICATION),
        "verification by": lambda row: _attacker(_strongest([row], VERIFICATION)),
        f"verification − {reference.name}": lambda row: _against(
            row, reference, _strongest((row, reference), VERIFICATION)
        ),
    }
    calibration = {
        "method": lambda row: f"**{row.name}**",
        "temperature": lambda row: _calibration(row, "temperature"),
        "ECE before": lambda row: _calibration(row, "ece_before"),
        "ECE after": lambda row: _calibration(row, "ece_after"),
        "NLL before": lambda row: _calibration(row, "nll_before"),
        "NLL after": lambda row: _calibration(row, "nll_after"),
        "Brier before": lambda row: _calibration(row, "brier_before"),
        "Brier after": lambda row: _calibration(row, "brier_after"),
        "clips": lambda row: _calibration(row, "clips", 0),
        "people": lambda row: _calibration(row, "people", 0),
    }
    commands = {
        "method": lambda row: row.name,
        "command": lambda row: _command(row.run),
        "commit": lambda row: _commit(row.run),
    }
    yield Section("Recognition", table(recognition), _not_compared(rows, reference))
    yield Section(
        "What an attacker finds out",
        table(attacked),
        [
            "AUC of attacks on held-out people (`docs/privacy.md`). *Linkage*: whose face belongs "
            "to a code. *Verification*: are two codes of one person. *Pooled*: all clips of half "
            "of a person's videos. Each is that of the strongest attacker, the one with the "
            "highest mean over the runs, and *by* says how it attacks, and whether it has learned "
            "from the training people, or from other held-out people, whom no defense has seen. "
            "*By chance*: where everyone's codes are given to somebody else, the strongest "
            "attacker of one run reaches so much; over several runs, less. Differences are those "
            "of the attacker that is the strongest against both rows together. A dash: too few "
            "people were held out. *p*: corrected resampled t-test, run by run, not corrected for "
            "the number of rows; where the runs of a row differ in their seeds alone, it says "
            "nothing of other people."
        ],
    )
    yield Section(
        "Calibration of the probabilities",
        table(calibration),
        [
            "Of the held-out clips of all runs of a row, together. *Temperature*: what the logits "
            "are divided by before the softmax, fitted to these clips; a run's model has the one "
            "that was fitted to its own. *Before*: as trained. *After*: each person's clips by the "
            "temperature of other people's clips, since one looks better than it is on the clips "
            f"that it was fitted to. *ECE*: expected calibration error, {NUM_BINS} bins of equally "
            "many clips. *NLL*: cross-entropy in nats. *Brier*: squared error over all classes, at "
            "most 2. Of all three, less is better."
        ],
    )
    yield Section("Commands", table(commands))


def _strongest(rows: Sequence[MethodResults], kind: str, pooled: bool = True) -> str:
    """That of the highest mean over all of these rows. Of two that are compared: to take the one
    that is the strongest against one of them would make this one look worse than it is."""
    means = [row.means() for row in rows]
    common = set.intersection(*map(set, means))
    together = {name: float(np.mean([mean[name] for mean in means])) for name in common}
    return strongest(together, kind, pooled)


def _chance(row: MethodResults, kind: str) -> str:
    return f"{chance_of(row.means(), kind):.3f}" if _strongest([row], kind) else "–"


def _attacker(figure: str) -> str:
    """Such as "contrastive, training"."""
    words = figure.removesuffix("_auc").removesuffix("_pooled").split("_")[1:]
    return ", ".join(words) or "–"


def _tradeoff(rows: Sequence[MethodResults], out: Path) -> Iterator[Section]:
    """Accuracy against identity, where at least two rows were attacked."""
    points: dict[str, list[tuple[str, Spread, Spread]]] = {}
    for row in rows:
        figure = _strongest([row], LINKAGE)
        if figure:
            params = row.run.data.params
            method = params.get("method", row.name)
            strength = row.name.removeprefix(method).strip()
            found, accuracy = row.spread(figure), row.spread("held_out/accuracy")
            points.setdefault(method, []).append((strength, found, accuracy))
    if sum(map(len, points.values())) > 1:
        file = out / "tradeoff.png"
        chance = float(np.mean([chance_of(row.means(), LINKAGE) for row in rows]))
        tradeoff_figure(points, chance).savefig(file)
        yield Section(
            "Accuracy against identity",
            texts=[
                "Each point is a row, with the standard deviation over its runs; the strengths of "
                "a method are joined. To the left, the strongest attacker finds out less, down to "
                "what that of one run reaches by chance; above, more clips are recognized."
            ],
            pictures=[[("Accuracy against identity", file)]],
        )


def _calibration(row: MethodResults, name: str, digits: int = 3) -> str:
    value = row.run.data.metrics.get(f"calibration/{name}")
    return "–" if value is None else f"{value:,.{digits}f}"


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


def _not_compared(rows: Sequence[MethodResults], reference: MethodResults) -> list[str]:
    """Why rows are not comparable to the reference, a text for each."""
    texts = []
    for row in rows:
        try:
            difference(row, reference, "held_out/accuracy")
        except InputError as error:
            texts.append(f"*Not comparable*: {error}.")
    return texts


def _pictures(
    rows: Sequence[MethodResults], reference: MethodResults, runs: Sequence[Run], out: Path
) -> Iterator[Section]:
    def copied(run: Run, file: str, title: str, name: str) -> list[tuple[str, Path]]:
        """A picture of a run, copied beside the page; empty where the run has none."""
        source = tracking.download(run, file)
        if source is None:
            return []
        copy = out / re.sub(r"[^\w.+-]", "-", f"{name}-{file}")
        copy.write_bytes(source.read_bytes())
        return [(f"{title}: {name}", copy)]

    for run in runs:
        if tracking.role(run) == "sweep":
            name = run.info.run_name or run.info.run_id
            curve = copied(run, "sweep.png", "Figures over the swept option", name)
            yield Section(f"Sweep: {name}", texts=[_command(run)], pictures=[curve])
    for file, title, heading in (
        ("confusion.png", "Confusion", "Confusion matrices, pooled over the runs"),
        ("reliability.png", "Reliability", "Reliability of the probabilities, of all runs' clips"),
    ):
        of_rows = [picture for row in rows for picture in copied(row.run, file, title, row.name)]
        yield Section(heading, pictures=[of_rows])
    for row in _pictured(rows, reference):
        run = tracking.find_run(next(iter(row.results.values()))["mlflow_run_id"])
        yield Section(
            row.name,
            pictures=[
                copied(run, file, title, row.name) for file, title in PICTURES_OF_A_RUN.items()
            ],
        )
        yield _attacks(run, row.name, out)


def _attacks(run: Run, name: str, out: Path) -> Section:
    """The whole suite on one run of a row, with intervals, and the faces that were rebuilt."""
    title = f"Attacks on one run of {name}"
    try:
        (suite,) = attack_run(run)
    except InputError as error:
        return Section(title, texts=[f"Not made: {error}."])
    if not suite.people:
        return Section(title, texts=[TOO_FEW])
    file = out / re.sub(r"[^\w.+-]", "-", f"{name}-faces.png")
    explained = [a.pooled[EXPLAINED].value for a in suite.attacks if EXPLAINED in a.pooled]
    pictures = []
    if suite.rebuilt:
        share = f"{explained[-1]:.2f} of the variance about the mean face"
        faces_figure(suite.rebuilt, f"rebuilt from all codes of a person: {share}").savefig(file)
        pictures = [[(f"Rebuilt faces: {name}", file)]]
    legend = LEGEND.format(pooled=suite.clips_pooled).replace("\n", " ")
    about = f"{suite.people} people, {suite.clips:,} clips; [95 % interval over people] (by chance)"
    return Section(title, wide_table(suite), [f"{about}. {legend}"], pictures)


def _pictured(rows: Sequence[MethodResults], reference: MethodResults) -> list[MethodResults]:
    """The reference, the game, and the best other in accuracy: nobody reads a page of all."""

    def accuracy(row: MethodResults) -> float:
        return float(np.mean([*row.values("held_out/accuracy").values()]))

    games = [
        row
        for row in rows
        if row is not reference
        and row.run.data.params.get("method") == "min-min"
        and float(row.run.data.params.get("lambda", 0)) > 0
    ][:1]
    others = [row for row in rows if row not in (reference, *games)]
    return [reference, *games, *sorted(others, key=accuracy)[-1:]]
