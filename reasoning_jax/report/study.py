"""The table and the plot of a reproduction: arms by measures, mean and spread over seeds.

Reads finished run folders; trains and evaluates nothing. Numbers of a paper stand beside ours with
the mark of where they come from, and are never mixed into a mean.
"""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from reasoning_jax.report.drawing import Theme, drawable, legend, render, run_colours
from reasoning_jax.report.load import ReportError, load_run

_LABEL_WIDTH = 34  # characters of a line of an arm's label in the plot

# What a mark beside a paper's number says.
MARKS = {
    "V": "confirmed in a source independent of us",
    "R": "in the authors' public code or data",
    "M": "from memory, unconfirmed: no number to test against",
    "D": "derived or measured by us",
    "P": "our own choice",
}


@dataclass(frozen=True)
class PaperNumber:
    """A number of the paper: which arm, which measure, as printed, and its mark."""

    arm: str
    measure: str
    value: str
    mark: str

    def __post_init__(self) -> None:
        if self.mark not in MARKS:
            raise ReportError(f"a mark must be one of {', '.join(MARKS)}, got {self.mark!r}")


@dataclass(frozen=True)
class Study:
    """What a reproduction reports.

    columns: (name of an evaluated metric, heading). plotted: some of these names. decoders: an arm
    of its own for each way to decode the runs of another arm: label -> (arm, flat overrides).
    seeds_key: the swept key that only repeats an arm.
    """

    title: str
    columns: tuple[tuple[str, str], ...]
    plotted: tuple[str, ...] = ()
    paper: tuple[PaperNumber, ...] = ()
    notes: tuple[str, ...] = ()
    decoders: Mapping[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)
    seeds_key: str = "seed"


def arm_labels(points: Sequence[Mapping[str, Any]], seeds_key: str) -> list[str]:
    """The label of each point's arm: what is not the same in all points, but for the seed."""

    def parts(point: Mapping[str, Any]) -> list[str]:
        found: list[str] = []
        for key, value in point.items():
            if key == "arg":
                # An objective and a mode are known by their names.
                found += [
                    part.removeprefix("objective=").removeprefix("mode=")
                    for part in str(value).split(",")
                ]
            elif key != seeds_key:
                found.append(f"{key}={value}")
        return found

    split = [parts(point) for point in points]
    common = set.intersection(*map(set, split)) if len({*map(tuple, split)}) > 1 else set()
    return [", ".join(p for p in one if p not in common) or "run" for one in split]


def newest_metrics(folder: Path) -> dict[str, float]:
    """The values of a run's newest evaluation. Raises ReportError if there is none."""
    run = load_run(folder, folder.name)
    if not run.evaluations:
        raise ReportError(f"{folder}: eval/ holds no evaluation; the run is not finished")
    return {name: m.value for name, m in run.evaluations[-1].metrics.items()}


@dataclass(frozen=True)
class Cell:
    """Mean and standard deviation over seeds (None with one)."""

    mean: float
    sd: float | None
    values: tuple[float, ...]

    @staticmethod
    def of(values: Sequence[float]) -> Cell:
        mean = sum(values) / len(values)
        if len(values) < 2:
            return Cell(mean, None, tuple(values))
        variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
        return Cell(mean, math.sqrt(variance), tuple(values))

    def text(self) -> str:
        digits = 3 if abs(self.mean) < 10 else 1
        spread = "" if self.sd is None else f" ± {self.sd:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"


def gather(
    study: Study, results: Sequence[tuple[str, Mapping[str, float]]]
) -> dict[str, dict[str, Cell]]:
    """{arm: {metric: cell}} in the order in which arms first come."""
    grouped: dict[str, list[Mapping[str, float]]] = {}
    for arm, metrics in results:
        grouped.setdefault(arm, []).append(metrics)
    table: dict[str, dict[str, Cell]] = {}
    for arm, runs in grouped.items():
        table[arm] = {
            name: Cell.of([run[name] for run in runs])
            for name, _ in study.columns
            if all(name in run for run in runs)
        }
    return table


def markdown(study: Study, table: Mapping[str, Mapping[str, Cell]], about: Sequence[str]) -> str:
    """The page: our table, the paper's numbers with their marks, and notes."""
    seeds = sorted({len(cell.values) for row in table.values() for cell in row.values()})
    lines = [f"# {study.title}", "", *about, ""]
    lines += [f"Mean ± standard deviation over {' or '.join(map(str, seeds))} seed(s).", ""]
    lines.append("| arm | " + " | ".join(_escaped(h) for _, h in study.columns) + " |")
    lines.append("| --- " * (len(study.columns) + 1) + "|")
    for arm, row in table.items():
        cells = [row[name].text() if name in row else "" for name, _ in study.columns]
        lines.append(f"| {_escaped(arm)} | " + " | ".join(cells) + " |")
    if study.paper:
        lines += ["", "The paper's numbers (its own models and data; marks below):", ""]
        lines += ["| arm | measure | value | mark |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {_escaped(p.arm)} | {_escaped(p.measure)} | {_escaped(p.value)} | {p.mark} |"
            for p in study.paper
        ]
        used = sorted({p.mark for p in study.paper})
        lines += ["", "; ".join(f"{mark}: {MARKS[mark]}" for mark in used) + "."]
    if study.notes:
        lines += ["", *(f"* {note}" for note in study.notes)]
    return "\n".join(lines) + "\n"


def picture(study: Study, table: Mapping[str, Mapping[str, Cell]]) -> tuple[bytes, bytes]:
    """Bars of the plotted metrics by arm, each seed a dot: PNG for light and dark pages."""
    names = [name for name in study.plotted if any(name in row for row in table.values())]
    headings = dict(study.columns)
    labels = [_lines(arm) for arm in table]
    # Inches by arm: for its bars, and for the lines of its label.
    heights = [max(0.17 * len(names) + 0.12, 0.15 * len(lines) + 0.1) for lines in labels]

    def draw(axes: Axes, theme: Theme) -> None:
        colours = run_colours(theme, max(len(names), 1))
        height = 0.8 / max(len(names), 1)
        for k, (name, colour) in enumerate(zip(names, colours)):
            for i, row in enumerate(table.values()):
                if name not in row or not math.isfinite(row[name].mean):
                    continue
                y = i + (k - (len(names) - 1) / 2) * height
                axes.barh(y, row[name].mean, height=height * 0.86, color=colour, alpha=0.75)
                values = row[name].values
                axes.plot(values, [y] * len(values), ".", color=theme.ink, markersize=3)
        axes.set_yticks(range(len(labels)), ["\n".join(x) for x in labels], parse_math=False)
        axes.tick_params(axis="y", length=0, labelsize=8)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.grid(axis="x", color=theme.faint, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_title(
            drawable(study.title, 60), color=theme.ink, fontsize=11, fontweight="bold",
            loc="left", parse_math=False,
        )  # fmt: skip
        if names:
            patches = [Patch(color=colour, alpha=0.75) for colour in colours]
            entries = [(headings.get(n, n), patch) for n, patch in zip(names, patches)]
            legend(axes, theme, entries, "outside lower center", columns=min(3, len(names)))

    return render(draw, (7.5, 1.0 + len(labels) * max(heights, default=0.3)))


def _lines(arm: str) -> list[str]:
    """An arm's label in at most three lines, so that arms that differ somewhere look different."""
    lines = textwrap.wrap(drawable(arm, _LABEL_WIDTH * 3 - 12), _LABEL_WIDTH)
    return lines[:3] or [""]


def write_study(
    study: Study,
    results: Sequence[tuple[str, Mapping[str, float]]],
    about: Sequence[str],
    folder: Path,
) -> Path:
    """Write table.md, table.json and the plot into `folder`; returns the table's path."""
    table = gather(study, results)
    light, dark = picture(study, table)
    (folder / "table.png").write_bytes(light)
    (folder / "table_dark.png").write_bytes(dark)
    values = {
        arm: {n: {"mean": c.mean, "sd": c.sd, "values": c.values} for n, c in row.items()}
        for arm, row in table.items()
    }
    out = {"title": study.title, "about": list(about), "arms": values}
    (folder / "table.json").write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
    path = folder / "table.md"
    path.write_text(markdown(study, table, about), encoding="utf-8")
    return path


def _escaped(text: str) -> str:
    """Text as a cell of a table: nothing in it ends the cell, or is mathematics or markup."""
    return re.sub(r"([\\|$<>*`\[\]])", r"\\\1", " ".join(text.split()))
