"""The picture of a search tree, thought by thought: a graph in layers, a panel a thought, and in
each node the model's probability of it. Knows no model: it draws numbers.

Layers are distances from the root; what the root does not reach stands beside it, dimmed, in
layers of its own. Edges on a shortest path to the target are strong. A node is a box with its label
and its probability, and the more probable it is, the fuller is its colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch

from reasoning_jax.analysis.graphs import Dag
from reasoning_jax.report.drawing import Theme, drawable, legend, render_grid

_WIDEST = 12.5  # inches of a picture
_LAYER = 0.62  # inches from a layer to the next
_HEIGHT = 0.36  # inches of a box
_LETTER = 0.066  # inches of a letter
_GAP = 0.12  # inches between boxes
_SWEEPS = 8


@dataclass(frozen=True)
class TreePanel:
    """One picture of the tree: its title and each node's probability, NaN for none."""

    title: str
    values: Sequence[float]


def draw_tree(dag: Dag, panels: Sequence[TreePanel]) -> tuple[bytes, bytes]:
    """PNG bytes for light and dark pages."""
    places, (left, right), depth = layout(dag)
    width, height = right - left, _LAYER * depth + _HEIGHT
    columns = max(1, min(len(panels), int(_WIDEST // (width + 0.25))))
    rows = math.ceil(len(panels) / columns)

    def draw(grid: list[Axes], theme: Theme) -> None:
        for axes, panel in zip(grid, panels):
            axes.set(xlim=(left, right), ylim=(-height + _HEIGHT / 2 - 0.06, _HEIGHT / 2 + 0.06))
            axes.set_aspect("equal")
            axes.set_axis_off()
            axes.set_title(
                drawable(panel.title, 60), color=theme.ink, fontsize=9.5, fontweight="bold",
                parse_math=False,
            )  # fmt: skip
            _draw_edges(axes, theme, dag, places)
            for node, place in places.items():
                _draw_node(axes, theme, dag, node, place, panel.values[node])
        patches = [
            ("root", Patch(facecolor="none", edgecolor=theme.ink, linewidth=2)),
            ("target", Patch(facecolor="none", edgecolor=theme.runs[2], linewidth=2)),
            (
                "wrong target",
                Patch(facecolor="none", edgecolor=theme.runs[1], linewidth=2, linestyle="--"),
            ),
            ("probability 1", Patch(facecolor=theme.runs[0])),
        ]
        legend(grid[0], theme, patches, "outside lower center", columns=4)

    size = (max(4.2, columns * (width + 0.2)), rows * (height + 0.55) + 0.4)
    return render_grid(draw, size, rows, columns)


def layout(dag: Dag) -> tuple[dict[int, tuple[float, float]], tuple[float, float], int]:
    """(middle of each node in inches, (left, right) of them all, the number of the lowest layer).

    y is minus the layer; layers begin at 0.
    """
    own = _layers(dag, dag.depth)
    others = _layers(dag, _depth_of_others(dag))
    places: dict[int, tuple[float, float]] = {}
    left, depth = 0.0, 0
    for layers in (own, others):
        if not layers:
            continue
        _order(dag, layers)
        widths = [sum(_box_width(dag, v) + _GAP for v in layer) for layer in layers]
        for level, (layer, of_layer) in enumerate(zip(layers, widths)):
            x = left + (max(widths) - of_layer) / 2
            for node in layer:
                x += _box_width(dag, node) / 2 + _GAP / 2
                places[node] = (x, -_LAYER * level)
                x += _box_width(dag, node) / 2 + _GAP / 2
        left += max(widths) + 0.15
        depth = max(depth, len(layers) - 1)
    return places, (-0.05, left - 0.1), depth


def _depth_of_others(dag: Dag) -> dict[int, int]:
    """Of the nodes that the root does not reach: the most edges that lead to each."""
    found: dict[int, int] = {}
    for node in range(len(dag.symbols)):
        if node not in dag.depth:
            found[node] = max((found[parent] + 1 for parent in dag.parents[node]), default=0)
    return found


def _layers(dag: Dag, depth: dict[int, int]) -> list[list[int]]:
    layers: list[list[int]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for node in sorted(depth):
        layers[depth[node]].append(node)
    return layers


def _order(dag: Dag, layers: list[list[int]]) -> None:
    """Sort each layer by where a node's neighbours stand in it and around it, to cross less."""
    for sweep in range(_SWEEPS):
        place = {v: (i + 0.5) / len(layer) for layer in layers for i, v in enumerate(layer)}
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            near = {
                v: [place[u] for u in (*dag.parents[v], *dag.children[v]) if u in place]
                for v in layer
            }
            layer.sort(key=lambda v: sum(near[v]) / len(near[v]) if near[v] else place[v])
            place.update({v: (i + 0.5) / len(layer) for i, v in enumerate(layer)})


def _label(dag: Dag, node: int) -> str:
    return drawable(dag.symbols[node], 12)


def _box_width(dag: Dag, node: int) -> float:
    return max(0.36, _LETTER * len(_label(dag, node)) + 0.12)


def _draw_node(
    axes: Axes, theme: Theme, dag: Dag, node: int, place: tuple[float, float], value: float
) -> None:
    x, y = place
    marks = {dag.root: theme.ink, dag.target: theme.runs[2], dag.neg_target: theme.runs[1]}
    dim = node not in dag.depth and node != dag.neg_target
    fill = _mix(theme.paper, theme.runs[0], value if math.isfinite(value) else 0.0)
    axes.add_patch(
        FancyBboxPatch(
            (x - _box_width(dag, node) / 2 + 0.03, y - _HEIGHT / 2 + 0.03),
            _box_width(dag, node) - 0.06, _HEIGHT - 0.06, boxstyle="round,pad=0.03",
            facecolor=fill, edgecolor=marks.get(node, theme.faint),
            linewidth=2 if node in marks else 0.8,
            linestyle="--" if node == dag.neg_target else "-", zorder=3,
        )
    )  # fmt: skip
    ink = "#14171a" if _luminance(fill) > 0.45 else "#ffffff"
    if dim and not value > 0.05:
        ink = _mix(fill, ink, 0.55)
    text = probability(value)
    axes.text(
        x, y + (0.075 if text else 0), _label(dag, node), color=ink, fontsize=8, ha="center",
        va="center", zorder=4, parse_math=False,
    )  # fmt: skip
    axes.text(x, y - 0.085, text, color=ink, fontsize=7.5, ha="center", va="center", zorder=4)


def probability(value: float) -> str:
    """ ".33", "1.0"; "" for none, or one that would be ".00"."""
    if not value >= 0.005:
        return ""
    return "1.0" if value >= 0.995 else f"{value:.2f}"[1:]


def _draw_edges(axes: Axes, theme: Theme, dag: Dag, places: dict[int, tuple[float, float]]) -> None:
    quiet = _mix(theme.faint, theme.ink, 0.35)
    for start, end in dag.edges:
        (x, y), (to_x, to_y) = places[start], places[end]
        optimal = (
            dag.on_shortest_path(start)
            and dag.on_shortest_path(end)
            and dag.depth[end] == dag.depth[start] + 1
        )
        down = to_y < y - _HEIGHT
        # An edge within a layer, upwards or over a layer is bent, so that no box hides it.
        bent = 0.0 if down and y - to_y < 1.5 * _LAYER else math.copysign(0.25, to_x - x)
        axes.add_patch(
            FancyArrowPatch(
                (x, y - _HEIGHT / 2 if to_y < y + 0.1 else y + _HEIGHT / 2),
                (to_x, to_y + _HEIGHT / 2 if down else to_y - _HEIGHT / 2),
                connectionstyle=f"arc3,rad={bent}", arrowstyle="-|>", mutation_scale=6,
                shrinkA=0, shrinkB=0, linewidth=1.5 if optimal else 0.8,
                color=theme.ink if optimal else quiet if start in dag.depth else theme.faint,
                zorder=2 if optimal else 1,
            )
        )  # fmt: skip


def _mix(first: str, second: str, share: float) -> str:
    share = min(max(share, 0.0), 1.0)
    red, green, blue = (a + (b - a) * share for a, b in zip(to_rgb(first), to_rgb(second)))
    return to_hex((red, green, blue))


def _luminance(colour: str) -> float:
    red, green, blue = to_rgb(colour)
    return 0.3 * red + 0.59 * green + 0.11 * blue
