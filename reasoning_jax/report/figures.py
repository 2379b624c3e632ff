"""Decides what is plotted: which scalars and metrics, in which panels, and draws them.

How a figure looks is in `drawing.py`. Uses Matplotlib's objects only, never `pyplot`, so that
nothing is drawn through global state.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from reasoning_jax.report.drawing import (
    MARKERS,
    SIZE,
    STYLES,
    Theme,
    drawable,
    finish,
    legend,
    log_if_wide,
    plottable,
    render,
    run_colours,
    run_legend,
    running_mean,
    size_with_legend,
)
from reasoning_jax.report.load import Run
from reasoning_jax.report.tables import PHASES, duration, metric_names, number, phase_seconds

_SHARE_LABELLED = 0.07  # parts of the time split smaller than this have no room for text
_SMOOTHED_FROM = 120  # rows; a longer series also gets a running mean
MAX_EXTRA = 24  # panels for scalars that the tables below do not name


@dataclass(frozen=True)
class Panel:
    """A plot of one scalar of metrics.jsonl over steps. `share`: it lies in [0, 1].

    `smooth`: where the series is long, it is noise around a mean that is worth drawing.
    """

    key: str
    title: str
    unit: str
    share: bool = False
    smooth: bool = True


PANELS = (
    Panel("loss", "Loss", "loss"),
    Panel("accuracy", "Accuracy", "fraction of tokens", share=True),
    Panel("grad_norm", "Gradient norm", "global L2 norm"),
    Panel("thought_norm", "Norm of a thought", "multiples of an embedding's"),
    Panel("stage", "Stage of the curriculum", "stage", smooth=False),
    Panel("learning_rate", "Learning rate", "learning rate", smooth=False),
    Panel("time.tokens_per_s", "Throughput", "tokens / s"),
    Panel("time.mfu", "Model FLOPs utilisation", "fraction of peak"),
)
# Not plotted over steps: what only tells how long a row is, and times that the time split shows.
UNPLOTTED = {
    "tokens", "time.elapsed_s", "time.remaining_s", "time.model_flops_per_s",
    *(f"time.{p}_s" for p in PHASES),
}  # fmt: skip


@dataclass(frozen=True)
class EvaluationPanel:
    """A plot of some evaluated metrics over steps: (metric, its name in the legend)."""

    slug: str
    title: str
    unit: str
    metrics: tuple[tuple[str, str], ...]
    share: bool = True


EVALUATION_PANELS = (
    EvaluationPanel(
        "exact_match",
        "Exact match",
        "fraction of problems",
        (("exact_match", "clean prompt"), ("corrupted_exact_match", "corrupted prompt")),
    ),
    EvaluationPanel(
        "backspace",
        "Backspace probability",
        "probability of backspace",
        (
            ("backspace_corrupted", "after a wrong token"),
            ("backspace_clean", "after a right one"),
            ("backspace_model", "in the model's own samples"),
        ),
    ),
)


@dataclass(frozen=True)
class Plate:
    """A drawn figure. `group` says where on the page it belongs."""

    slug: str
    title: str
    group: str
    alt: str
    light: bytes
    dark: bytes


def draw_figures(runs: Sequence[Run]) -> list[Plate]:
    """Every figure that the runs have data for: groups curves, other, evaluation and time."""
    plates = [_curve(runs, panel, "curves") for panel in PANELS if _has(runs, panel.key)]
    extra = extra_scalars(runs)[:MAX_EXTRA]
    plates += [_curve(runs, Panel(key, key, key), "other") for key in extra]
    plates += [_evaluation(runs, panel) for panel in _evaluation_panels(runs)]
    if any(sum(phase_seconds(run).values()) > 0 for run in runs):
        plates.append(_time_split(runs))
    slugs = _unique([plate.slug for plate in plates])
    return [Plate(s, p.title, p.group, p.alt, p.light, p.dark) for s, p in zip(slugs, plates)]


def extra_scalars(runs: Sequence[Run]) -> list[str]:
    """Scalars of metrics.jsonl that have no panel of their own nor an evaluated one, by name."""
    known = {panel.key for panel in PANELS} | UNPLOTTED | set(metric_names(runs))
    names = {name for run in runs for row in run.rows for name in row.values}
    return [name for name in sorted(names - known) if _has(runs, name)]


def _has(runs: Sequence[Run], key: str) -> bool:
    splits = {row.split for run in runs for row in run.rows}
    return any(np.isfinite(run.series(s, key)[1]).any() for run in runs for s in splits)


def _unique(slugs: Sequence[str]) -> list[str]:
    """File names from any text: letters, digits and _; numbered where they would be the same."""
    names: list[str] = []
    for slug in slugs:
        name = re.sub(r"[^a-z0-9]+", "_", slug.lower()).strip("_")[:60] or "figure"
        taken = [name, *(f"{name}_{i}" for i in range(2, len(slugs) + 2))]
        names.append(next(each for each in taken if each not in names))
    return names


def _curve(runs: Sequence[Run], panel: Panel, group: str) -> Plate:
    splits = [
        split
        for split in dict.fromkeys(row.split for run in runs for row in run.rows)
        if any(run.series(split, panel.key)[0].size for run in runs)
    ]
    splits.sort(key=lambda split: split != "train")
    styles = [(s, STYLES[i % len(STYLES)], "o" if i else "") for i, s in enumerate(splits)]
    smoothed = False

    def draw(axes: Axes, theme: Theme) -> None:
        nonlocal smoothed
        for run, colour in zip(runs, run_colours(theme, len(runs))):
            for order, split in enumerate(splits):
                steps, values = run.series(split, panel.key)
                values, style = plottable(values), STYLES[order % len(STYLES)]
                marker = "o" if order or np.isfinite(values).sum() < 2 else ""
                if panel.smooth and len(values) > _SMOOTHED_FROM and not order:
                    smoothed = True
                    axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
                    values = running_mean(values, len(values) // 40)
                axes.plot(
                    steps, values, style, color=colour, linewidth=1.4, marker=marker, markersize=3
                )
        if panel.key == "grad_norm":
            log_if_wide(axes)
        finish(axes, theme, panel.title, panel.unit, share=panel.share)
        run_legend(axes, theme, [run.name for run in runs], styles)

    light, dark = render(draw, size_with_legend(len(runs), len(styles)))
    ends = [
        f"{run.name} {split} ends at {number(run.last(split, panel.key))}"
        for run in runs
        for split in splits
    ]
    note = "; faint: every row, line: running mean" if smoothed else ""
    alt = f"{panel.title} ({panel.unit}) over steps{note}. {'; '.join(ends)}."
    return Plate(panel.key.removeprefix("time."), panel.title, group, alt, light, dark)


def _evaluation_panels(runs: Sequence[Run]) -> list[EvaluationPanel]:
    """The named panels, one for pass@k, and one for each other metric that was evaluated."""
    names = metric_names(runs)
    panels = []
    for panel in EVALUATION_PANELS:
        present = tuple(pair for pair in panel.metrics if pair[0] in names)
        if present:
            fields = (panel.slug, panel.title, panel.unit, present, panel.share)
            panels.append(EvaluationPanel(*fields))
    named = {metric for panel in EVALUATION_PANELS for metric, _ in panel.metrics}
    passes = tuple((name, name) for name in names if re.fullmatch(r"pass@\d+", name))
    if passes:
        panels.append(EvaluationPanel("pass_at_k", "pass@k", "fraction of problems", passes))
    for name in names:
        true = f"human_{name}"
        if true in names:
            title = name.replace("_", " ")
            pairs = ((name, "continuations"), (true, "the true text"))
            panels.append(
                EvaluationPanel(f"eval_{name}", title[:1].upper() + title[1:], title, pairs, False)
            )
            named |= {name, true}
    for name in names:
        if name not in named and (name, name) not in passes:
            title = name.replace("_", " ")
            title, share = title[:1].upper() + title[1:], name == "truncated"
            unit = "fraction of completions" if share else name.replace("_", " ")
            panels.append(EvaluationPanel(f"eval_{name}", title, unit, ((name, name),), share))
    return panels


def _evaluation(runs: Sequence[Run], panel: EvaluationPanel) -> Plate:
    styles = [
        (label, STYLES[i % len(STYLES)], MARKERS[i % len(MARKERS)])
        for i, (_, label) in enumerate(panel.metrics)
    ]

    def draw(axes: Axes, theme: Theme) -> None:
        for run, colour in zip(runs, run_colours(theme, len(runs))):
            for (metric, _), (_, style, marker) in zip(panel.metrics, styles):
                points = [(e.step, m) for e in run.evaluations if (m := e.metrics.get(metric))]
                steps = np.array([step for step, _ in points], float)
                values = plottable(np.array([m.value for _, m in points], float))
                errors = plottable(np.array([m.stderr or 0.0 for _, m in points], float))
                axes.errorbar(
                    steps,
                    values,
                    yerr=np.nan_to_num(errors),
                    color=colour,
                    linestyle=style,
                    marker=marker,
                    markersize=3,
                    linewidth=1.2,
                    elinewidth=0.9,
                )
        finish(axes, theme, panel.title, panel.unit, share=panel.share)
        run_legend(axes, theme, [run.name for run in runs], styles)

    light, dark = render(draw, size_with_legend(len(runs), len(styles)))
    ends = [
        f"{run.name} {label} ends at {number(run.evaluations[-1].metrics[metric].value)}"
        for run in runs
        for metric, label in panel.metrics
        if run.evaluations and metric in run.evaluations[-1].metrics
    ]
    alt = f"{panel.title} ({panel.unit}) over steps, bars: standard error. {'; '.join(ends)}."
    return Plate(panel.slug, panel.title, "evaluation", alt, light, dark)


def _time_split(runs: Sequence[Run]) -> Plate:
    splits = [phase_seconds(run) for run in runs]
    names = [*PHASES.values(), "other"]
    shares = [[s / (sum(split.values()) or 1.0) for s in split.values()] for split in splits]

    def draw(axes: Axes, theme: Theme) -> None:
        for row, parts in enumerate(shares):
            left = 0.0
            for share, (fill, ink) in zip(parts, theme.phases):
                axes.barh(row, share, left=left, height=0.56, color=fill)
                if share > _SHARE_LABELLED:
                    place = {"ha": "center", "va": "center", "fontsize": 9}
                    axes.text(left + share / 2, row, f"{share:.0%}", color=ink, **place)
                left += share
        rows = [
            f"{drawable(run.name, 22)}\n{duration(sum(split.values()))}"
            for run, split in zip(runs, splits)
        ]
        axes.set_yticks(range(len(runs)), rows, parse_math=False)
        axes.set_ylim(len(runs) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0%}"))
        axes.set_xlabel("share of wall-clock time", color=theme.ink, fontsize=9.5)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        patches = [(name, Patch(color=fill)) for name, (fill, _) in zip(names, theme.phases)]
        legend(axes, theme, patches, "outside upper left", columns=3)

    light, dark = render(draw, (SIZE[0], 1.3 + 0.5 * len(runs)))
    said = [
        f"{run.name}: " + ", ".join(f"{name} {share:.0%}" for name, share in zip(names, parts))
        for run, parts in zip(runs, shares)
    ]
    return Plate("time_split", "Time split", "time", f"{'; '.join(said)}.", light, dark)
