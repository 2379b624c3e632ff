"""The pictures and the page of a probe: what `commands/probe.py` measured, as plain values.

Measures nothing. Tokens and symbols come from data and are taken as hostile, as on the report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from reasoning_jax.analysis.graphs import CATEGORIES, GROUPS, Dag
from reasoning_jax.report.drawing import (
    MARKERS,
    STYLES,
    Theme,
    finish,
    legend,
    render,
    render_grid,
    run_colours,
)
from reasoning_jax.report.figures import Plate
from reasoning_jax.report.page import render_plates
from reasoning_jax.report.tables import number
from reasoning_jax.report.tree import TreePanel, draw_tree

_PANEL = (3.9, 2.9)  # inches

# What the page says above each picture.
_ABOUT = {
    "tree": "Each node's probability as the next concept after so many thoughts, and at last as "
    "the answer. Not normalised over the nodes; strong edges are on a shortest path.",
    "k_sweep": "Greedy completions after a forced number of thoughts; bars are one standard "
    "error. Where only an answer is written, it is a correct or an incorrect label.",
    "next_concept": "The frontier: the nodes that a search in breadth would take up next.",
    "parallelism": "For each problem with more than one candidate the probability of the best one, "
    "two and three together, sorted; curves far apart mean that several are held at once.",
    "height": "Candidates after at least one thought; correct nodes reach the target. Bars are "
    "one standard error over nodes.",
    "attention": "By where an edge starts: not reachable from the root; reached later; reachable "
    "so far; on the frontier; on a shortest path too. Groups from reachable on are nested.",
    "inner_products": "By node: not reachable from the root; reached by a later thought; "
    "reachable by this one; exactly as far; on a shortest path too. Groups from reachable on are "
    "nested.",
    "thought_norm": "Mean norm of what is fed back over that of token embeddings, in training.",
}


def write_probe(result: Mapping[str, Any], folder: Path) -> Path:
    """Write index.html and each picture for light and dark pages; returns the page's path."""
    plates = draw_plates(result)
    folder.mkdir(parents=True, exist_ok=True)
    for plate in plates:
        (folder / f"{plate.slug}.png").write_bytes(plate.light)
        (folder / f"{plate.slug}_dark.png").write_bytes(plate.dark)
    page = folder / "index.html"
    title = f"Thoughts of {result['run']}"
    text = render_plates("probe.html", plates, title=title, result=result, about=_ABOUT)
    page.write_bytes(text.encode(errors="replace"))
    return page


def draw_plates(result: Mapping[str, Any]) -> list[Plate]:
    """Every picture that there are numbers for."""
    plates = [_tree(result["tree"]), _k_sweep(result["k_sweep"])]
    if any("frontier_mass" in row for row in result["next_concept"]):
        plates.append(_next_concept(result["next_concept"]))
    curves = [row for row in result["parallelism"] if row["curves"][0]]
    if curves:
        plates.append(_parallelism(curves))
    if any(result["height"].values()):
        plates.append(_height(result["height"]))
    plates.append(_attention(result["attention"]))
    plates.append(_inner_products(result["inner_products"]))
    if result["thought_norm"]["steps"]:
        plates.append(_thought_norm(result["thought_norm"]))
    return plates


def _plate(slug: str, title: str, alt: str, images: tuple[bytes, bytes]) -> Plate:
    return Plate(slug, title, "probe", alt, *images)


def _tree(tree: Mapping[str, Any]) -> Plate:
    dag = Dag(
        tuple(tree["symbols"]), tuple((a, b) for a, b in tree["edges"]), tree["root"],
        tree["target"], tree["neg_target"],
    )  # fmt: skip
    panels, said = [], []
    for panel in tree["panels"]:
        k = panel["thoughts"]
        values = [math.nan if v is None else v for v in panel["values"]]
        panels.append(TreePanel(f"{thoughts(k)}: {panel['what']}", values))
        best = int(np.nanargmax(values))
        said.append(f"{thoughts(k)}, {panel['what']}: {dag.symbols[best]} {values[best]:.2f}")
    alt = "The graph, with the model's probability of each node as the next concept and at last as "
    alt += f"the answer. Most probable: {'; '.join(said)}."
    return _plate("tree", "Search tree, thought by thought", alt, draw_tree(dag, panels))


def thoughts(k: int) -> str:
    return "no thoughts" if k == 0 else f"{k} thought{'s' if k > 1 else ''}"


def _values(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(values, standard errors) of a measure, NaN where it is missing or of nothing."""
    found = [row.get(name) or {"n": 0} for row in rows]
    values = [m["value"] if m["n"] else math.nan for m in found]
    errors = [m["stderr"] or 0.0 if m["n"] else math.nan for m in found]
    return np.array(values, float), np.array(errors, float)


def _style(axes: Axes, theme: Theme, title: str, x: str, y: str) -> None:
    """As `drawing.finish`, over another axis than steps."""
    finish(axes, theme, title, y, share=False)
    axes.set_xlabel(x, color=theme.ink, fontsize=9.5)


def line(theme: Theme, **style: Any) -> Line2D:
    """A line as a legend shows it."""
    look: dict[str, Any] = {"color": theme.ink, "linewidth": 1.5, "markersize": 4, **style}
    return Line2D([], [], **look)


def _k_sweep(rows: Sequence[Mapping[str, Any]]) -> Plate:
    ks = [row["thoughts"] for row in rows]
    shares = {
        name: np.array([row["categories"][name]["value"] for row in rows]) for name in CATEGORIES
    }
    accuracy, errors = _values(rows, "accuracy")

    def colours(theme: Theme) -> list[str]:
        blue, red, green, pink, _, light, grey = theme.runs
        return [green, light, blue, grey, pink, red]

    def draw(axes: Axes, theme: Theme) -> None:
        below = np.zeros(len(ks))
        entries: list[Any] = []
        for name, colour in zip(CATEGORIES, colours(theme)):
            if shares[name].any():
                axes.bar(ks, shares[name], 0.62, bottom=below, color=colour, alpha=0.8)
                entries.append((name, Patch(color=colour, alpha=0.8)))
            below += shares[name]
        axes.errorbar(
            ks, accuracy, yerr=errors, color=theme.ink, marker="o", markersize=4, linewidth=1.5,
            capsize=3,
        )  # fmt: skip
        entries.append(("right answer", line(theme, marker="o")))
        _style(axes, theme, "What is written after k thoughts", "thoughts", "share of problems")
        axes.set_ylim(0, 1.04)
        axes.set_xticks(ks)
        # Patches first: a legend takes its measures from the first of them.
        legend(axes, theme, entries, "outside lower center", columns=3)

    said = ", ".join(f"{thoughts(k)} {value:.3f}" for k, value in zip(ks, accuracy))
    alt = f"Stacked shares of process categories by number of thoughts. Right answers: {said}."
    return _plate("k_sweep", "k sweep", alt, render(draw, (5.2, 3.7)))


_MASSES = (
    ("frontier_mass", "on the frontier"),
    ("optimal_mass", "on shortest paths"),
    ("best_is_correct", "best one reaches the target"),
)


def _next_concept(rows: Sequence[Mapping[str, Any]]) -> Plate:
    rows = [row for row in rows if "frontier_mass" in row]
    ks = [row["thoughts"] for row in rows]

    def draw(axes: Axes, theme: Theme) -> None:
        entries: list[Any] = []
        for i, ((name, label), colour) in enumerate(zip(_MASSES, run_colours(theme, 3))):
            value, error = _values(rows, name)
            style: dict[str, Any] = dict(color=colour, linestyle=STYLES[i], marker=MARKERS[i])
            axes.errorbar(ks, value, yerr=error, markersize=4, linewidth=1.5, capsize=3, **style)
            entries.append((label, line(theme, **style)))
        title = "The next concept's probability"
        _style(axes, theme, title, "thoughts", "probability, or share")
        axes.set_ylim(0, 1.04)
        axes.set_xticks(ks)
        legend(axes, theme, entries, "outside lower left", columns=2)

    ends = [f"{label} {number(float(_values(rows, name)[0][-1]))}" for name, label in _MASSES]
    alt = f"By thoughts, how much probability is where. After {ks[-1]}: {', '.join(ends)}."
    return _plate("next_concept", "Next concept", alt, render(draw, (5.2, 3.4)))


def _parallelism(rows: Sequence[Mapping[str, Any]]) -> Plate:
    def draw(grid: list[Axes], theme: Theme) -> None:
        colours = run_colours(theme, 3)
        for axes, row in zip(grid, rows):
            for curve, colour, style in zip(row["curves"], colours, STYLES):
                places = (np.arange(len(curve)) + 0.5) / len(curve) * 100
                axes.plot(places, curve, style, color=colour, linewidth=1.6)
            title = f"Candidates after {thoughts(row['thoughts'])}"
            _style(axes, theme, title, "percentile of problems", "cumulative probability")
            axes.set_ylim(0, 1.04)
        entries = [
            (f"best {k}", line(theme, color=colour, linestyle=style))
            for k, colour, style in zip((1, 2, 3), colours, STYLES)
        ]
        legend(grid[0], theme, entries, "outside lower center", columns=3)

    said = "; ".join(
        f"{thoughts(row['thoughts'])}: " + ", ".join(f"{m['value']:.3f}" for m in row["means"])
        for row in rows
    )
    alt = f"Cumulative probability of the best 1, 2 and 3 candidates over problems. Means: {said}."
    size = (_PANEL[0] * len(rows), _PANEL[1] + 0.25)
    return _plate("parallelism", "Parallelism", alt, render_grid(draw, size, 1, len(rows)))


def _height(height: Mapping[str, Sequence[Mapping[str, Any]]]) -> Plate:
    kinds = [kind for kind, rows in height.items() if rows]

    def draw(grid: list[Axes], theme: Theme) -> None:
        looks = (("correct", theme.runs[2], "-", "o"), ("incorrect", theme.runs[1], "--", "s"))
        for axes, kind in zip(grid, kinds):
            rows = height[kind]
            for name, colour, style, marker in looks:
                value, error = _values(rows, name)
                axes.errorbar(
                    [row["height"] for row in rows], value, yerr=np.nan_to_num(error),
                    color=colour, linestyle=style, marker=marker, markersize=4, linewidth=1.5,
                    capsize=3,
                )  # fmt: skip
            _style(axes, theme, f"By {kind} distance to a leaf", "height", "probability")
            axes.set_ylim(0, 1.04)
            axes.set_xticks([row["height"] for row in rows])
        entries = [
            (f"{name} nodes", line(theme, color=colour, linestyle=style, marker=marker))
            for name, colour, style, marker in looks
        ]
        legend(grid[0], theme, entries, "outside lower center", columns=2)

    said = "; ".join(
        f"{kind} {row['height']}: {number(row['correct']['value'])} and "
        f"{number(row['incorrect']['value'])}"
        for kind in kinds
        for row in height[kind]
    )
    alt = f"Probability of candidates by height, correct and incorrect nodes. {said}."
    size = (_PANEL[0] * len(kinds), _PANEL[1] + 0.25)
    return _plate("height", "Value and height", alt, render_grid(draw, size, 1, len(kinds)))


def _bars(axes: Axes, theme: Theme, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """A group of bars a step, one a group of nodes or edges; returns the legend's entries."""
    shown = [g for g in GROUPS if any(row["groups"][g]["n"] for row in rows)]
    # One colour a group, in the order of GROUPS.
    runs = theme.runs
    colours: dict[str, str] = dict(zip(GROUPS, (runs[3], runs[6], runs[0], runs[4], runs[2])))
    width = 0.8 / len(shown)
    for i, name in enumerate(shown):
        value, error = _values([row["groups"] for row in rows], name)
        places = [row["step"] + (i - (len(shown) - 1) / 2) * width for row in rows]
        axes.bar(places, np.nan_to_num(value), width * 0.9, color=colours[name])
        axes.errorbar(
            places, value, yerr=error, fmt="none", ecolor=theme.ink, elinewidth=0.9, capsize=1.5
        )
    axes.axhline(0, color=theme.faint, linewidth=0.8)
    return [(name, Patch(color=colours[name])) for name in shown]


def _groups_said(rows: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(
        f"thought {row['step']}: "
        + ", ".join(f"{g} {number(m['value'])}" for g, m in row["groups"].items() if m["n"])
        for row in rows
    )


def _attention(rows: Sequence[Mapping[str, Any]]) -> Plate:
    layers = sorted({row["layer"] for row in rows})

    def draw(grid: list[Axes], theme: Theme) -> None:
        for axes, layer in zip(grid, layers):
            some = [row for row in rows if row["layer"] == layer]
            entries = _bars(axes, theme, some)
            title = f"Attention to an edge, layer {layer}"
            _style(axes, theme, title, "thought that it makes", "weight, summed over heads")
            axes.set_xticks([row["step"] for row in some])
            if layer == layers[0]:
                legend(axes, theme, entries, "outside lower center", columns=5)

    said = " ".join(
        f"Layer {layer}: {_groups_said([row for row in rows if row['layer'] == layer])}."
        for layer in layers
    )
    size = (_PANEL[0] * len(layers), _PANEL[1] + 0.25)
    alt = f"Mean attention of a thought's column to an edge, by group. {said}"
    return _plate("attention", "Attention", alt, render_grid(draw, size, 1, len(layers)))


def _inner_products(rows: Sequence[Mapping[str, Any]]) -> Plate:
    def draw(axes: Axes, theme: Theme) -> None:
        entries = _bars(axes, theme, rows)
        _style(axes, theme, "Thought · node embedding", "thought", "inner product")
        axes.set_xticks([row["step"] for row in rows])
        legend(axes, theme, entries, "outside lower center", columns=3)

    alt = f"Mean inner product of a thought with a node's embedding. {_groups_said(rows)}."
    return _plate("inner_products", "Inner products", alt, render(draw, (5.2, 3.6)))


def _thought_norm(series: Mapping[str, Sequence[float]]) -> Plate:
    def draw(axes: Axes, theme: Theme) -> None:
        axes.plot(series["steps"], series["values"], color=theme.runs[0], linewidth=1.5)
        finish(axes, theme, "Norm of a thought", "multiples of an embedding's", share=False)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(6))

    first, last = (number(series["values"][i]) for i in (0, -1))
    alt = f"Norm of thoughts over that of embeddings in training: from {first} to {last}."
    return _plate("thought_norm", "Thought norm", alt, render(draw, (5.2, 3.1)))
