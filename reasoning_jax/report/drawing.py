"""The look of the figures: colours, axes, legends, and PNG bytes. Knows no metric by name.

A colour is a run in every figure, from the palette of Okabe and Ito (2008) or, where there are more
runs than it has colours, from viridis in the order of the runs: colour-blind readers can tell both
apart. Labels come from run folders, so that none is read as mathematics.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

SIZE = (4.8, 3.0)  # inches; a column of the page at 100 px an inch
STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P")
_DPI = 200
_PLOTTABLE = 1e30  # beyond this, axis arithmetic overflows
_LOG_FROM = 1.5  # orders of magnitude
_LEGEND_RUNS = 12


@dataclass(frozen=True)
class Theme:
    """Colours of one page scheme.

    `runs` are for a few runs, `ramp` is the part of viridis that shows on this paper, `phases` are
    the fill and the ink of the time split's parts.
    """

    paper: str
    ink: str
    faint: str
    runs: tuple[str, ...]
    phases: tuple[tuple[str, str], ...]
    ramp: tuple[float, float]


LIGHT = Theme(
    paper="#ffffff",
    ink="#22262b",
    faint="#d9dce0",
    runs=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b6169"),
    phases=(
        ("#56b4e9", "#14171a"),
        ("#0072b2", "#ffffff"),
        ("#009e73", "#ffffff"),
        ("#e69f00", "#14171a"),
        ("#cc79a7", "#14171a"),
        ("#c3c8ce", "#14171a"),
    ),
    ramp=(0.0, 0.88),
)
DARK = Theme(
    paper="#14171a",
    ink="#dfe3e7",
    faint="#343a40",
    runs=("#56b4e9", "#e8762c", "#1fb58a", "#cc79a7", "#e69f00", "#f0e442", "#a9b0b8"),
    phases=(
        ("#56b4e9", "#14171a"),
        ("#2a8fd0", "#14171a"),
        ("#2bb38a", "#14171a"),
        ("#e69f00", "#14171a"),
        ("#cc79a7", "#14171a"),
        ("#7b858f", "#14171a"),
    ),
    ramp=(0.25, 1.0),
)


def run_colours(theme: Theme, count: int) -> list[str]:
    """One colour for each of `count` runs."""
    if count <= len(theme.runs):
        return list(theme.runs[:count])
    return [to_hex(colormaps["viridis"](place)) for place in np.linspace(*theme.ramp, count)]


def drawable(name: str, width: int = 30) -> str:
    """A name that fonts can draw, shortened in its middle."""
    name = "".join(c if c.isprintable() and ord(c) < 0x250 else "?" for c in name)
    return name if len(name) <= width else f"{name[: width // 2 - 1]}…{name[-width // 2 :]}"


def render(draw: Callable[[Axes, Theme], None], size: tuple[float, float]) -> tuple[bytes, bytes]:
    """PNG bytes for light and dark pages of a figure with one pair of axes."""
    return render_grid(lambda axes, theme: draw(axes[0], theme), size, 1, 1)


def render_grid(
    draw: Callable[[list[Axes], Theme], None], size: tuple[float, float], rows: int, columns: int
) -> tuple[bytes, bytes]:
    """The same with several, given row by row. Those that nothing is drawn on are left out."""
    images = []
    for theme in (LIGHT, DARK):
        figure = Figure(figsize=size, dpi=_DPI, facecolor=theme.paper, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        grid = [figure.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
        for axes in grid:
            axes.set_facecolor(theme.paper)
            axes.spines[["top", "right"]].set_visible(False)
            axes.spines[["left", "bottom"]].set_color(theme.faint)
            axes.tick_params(which="both", color=theme.faint, labelcolor=theme.ink, labelsize=9)
            axes.tick_params(length=3)
        draw(grid, theme)
        for axes in grid:
            if not (axes.lines or axes.patches or axes.collections or axes.texts):
                axes.set_visible(False)
        buffer = io.BytesIO()
        canvas.print_png(buffer, metadata={"Software": None})
        images.append(buffer.getvalue())
    return images[0], images[1]


def finish(axes: Axes, theme: Theme, title: str, unit: str, *, share: bool) -> None:
    """Axes over steps: title at the left, quiet grid, thousands set apart on the step axis."""
    for text, place in ((title, axes.set_title), (unit, axes.set_ylabel)):
        place(drawable(text, 60), color=theme.ink, fontsize=9.5, parse_math=False)
    axes.title.set(fontsize=11, fontweight="bold", horizontalalignment="left", x=0.0)
    axes.set_xlabel("step", color=theme.ink, fontsize=9.5)
    axes.grid(axis="y", color=theme.faint, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.yaxis.get_offset_text().set(color=theme.ink, fontsize=9)
    low, high = axes.get_ylim()
    if share:
        top = 1.03 if high > 0.7 else high
        axes.set_ylim(low if low > 0.5 else -0.03 * top, top)
    elif axes.get_yscale() == "linear" and high > 1e4:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))


def run_legend(
    axes: Axes, theme: Theme, runs: Sequence[str], styles: Sequence[tuple[str, str, str]]
) -> None:
    """Colours for the runs; where there are several, styles too, each (label, line, marker)."""
    entries: list[tuple[str, Artist]] = [
        (name, Line2D([], [], color=colour, linewidth=2))
        for name, colour in zip(runs[:_LEGEND_RUNS], run_colours(theme, len(runs)))
    ]
    if len(runs) > _LEGEND_RUNS:
        entries.append((f"and {len(runs) - _LEGEND_RUNS} more", Line2D([], [], linestyle="none")))
    if len(styles) > 1:
        for name, style, marker in styles:
            line = Line2D([], [], color=theme.ink, marker=marker, markersize=3.5, linewidth=1.2)
            line.set(linestyle=style)
            entries.append((name, line))
    legend(axes, theme, entries, "outside lower left", columns=2)


def size_with_legend(runs: int, styles: int) -> tuple[float, float]:
    """SIZE for up to four entries in `run_legend`, taller by each further row of two."""
    entries = min(runs, _LEGEND_RUNS + 1) + (styles if styles > 1 else 0)
    return SIZE[0], SIZE[1] + 0.17 * max(0, (entries + 1) // 2 - 2)


def legend(
    axes: Axes, theme: Theme, entries: Sequence[tuple[str, Artist]], place: str, columns: int
) -> None:
    """A legend outside the axes, read row by row of (label, handle)."""
    handles = [handle for _, handle in entries]
    box = cast(Figure, axes.figure).legend(
        handles,
        [drawable(name) for name, _ in entries],
        loc=cast(Any, place),
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        labelcolor=theme.ink,
        handlelength=2.4 if isinstance(handles[0], Line2D) else 1.0,
        borderaxespad=0.2,
    )
    for text in box.get_texts():
        text.set_parse_math(False)


def plottable(values: np.ndarray) -> np.ndarray:
    return np.where(np.abs(values) < _PLOTTABLE, values, np.nan)


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of up to `width` values around each, gaps left out, shorter at the ends."""
    known = np.isfinite(values)
    sums = np.convolve(np.where(known, values, 0.0), np.ones(width), mode="same")
    counts = np.convolve(known, np.ones(width), mode="same")
    return np.where(known, sums / np.maximum(counts, 1.0), np.nan)


def log_if_wide(axes: Axes) -> None:
    """Make the value axis logarithmic where all values are positive and span much."""
    if _decades(axes) > _LOG_FROM:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _decades(axes: Axes) -> float:
    """Orders of magnitude that the plotted values span; 0 unless all are above zero."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    values = values[np.isfinite(values)]
    if not values.size or values.min() <= 0:
        return 0.0
    return math.log10(values.max() / values.min())
