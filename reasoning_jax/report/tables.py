"""The page's tables as plain values, and how numbers are written. Knows no HTML.

The bolding rule: of the runs in a row, the best is marked only when it is better than every other
by more than the two standard errors together. A metric without a known direction, or a value
without a standard error, is never marked.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reasoning_jax.report.load import Estimate, Evaluation, Run

# (which way is better: 1 up, -1 down, 0 neither; what it is). Other names have neither.
METRICS = {
    "exact_match": (1, "right answers to clean prompts"),
    "corrupted_exact_match": (1, "right answers to prompts that end in wrong tokens"),
    "pass@k": (1, "problems with a right answer among k samples"),
    "backspace_corrupted": (1, "probability of a backspace after a wrong token"),
    "backspace_clean": (-1, "probability of a backspace after a right token"),
    "backspace_model": (0, "probability of a backspace at the states of the model's own samples"),
    "backspace_model_wrong": (1, "the same, where what stands is no beginning of the answer"),
    "backspaces_per_completion": (0, "how often a completion takes something back"),
    "truncated": (-1, "completions that did not end by themselves"),
    "perplexity": (-1, "of a token of held-out text, in the run's own vocabulary"),
    "perplexity_without_backspace": (-1, "the same without the probability of a backspace"),
    "mauve": (1, "likeness of continuations to the true ones, 0 to 1"),
    "mauve_star": (1, "the same with smoothed histograms"),
    "mauve_defined": (0, "0 where texts were too few or too much alike"),
    "diversity": (0, "of n-grams in continuations, 0 to 1; to be compared with the true text's"),
    "tokens_per_completion": (0, "length of what is left standing"),
}
# The clock's phases, time.NAME_s, and what a reader calls them.
PHASES = {
    "data": "data",
    "step": "step",
    "rollout": "rollouts",
    "evaluate": "evaluation",
    "checkpoint": "checkpoint",
}
# time.* holds seconds: of the row alone, or since the start of the run (see `phase_seconds`).
_TOTALS_SLACK = 1.02
# Where logged, the columns that a runs table shows of metrics.jsonl: title, split, scalar.
_FINAL = (
    ("validation loss", "validation", "loss"),
    ("validation accuracy", "validation", "accuracy"),
    ("train loss", "train", "loss"),
)
# Evaluated metrics that a runs table shows where some run has them.
_SCORES = (("exact match", "exact_match"), ("perplexity", "perplexity"), ("MAUVE", "mauve"))


@dataclass(frozen=True)
class Cell:
    """One cell of a table over runs; `aside` is shown smaller, after `text`."""

    text: str
    mark: bool = False
    aside: str = ""


@dataclass(frozen=True)
class Line:
    """One row: its label, which way is better (0: not known), one cell a run, an explanation."""

    label: str
    direction: int
    cells: tuple[Cell, ...]
    about: str = ""


def of_text(run: Run) -> bool:
    """Whether the run was evaluated on text, where nothing is right or wrong."""
    data = run.config.get("data")
    return isinstance(data, Mapping) and data.get("source") == "text"


def direction(metric: str) -> int:
    """1 where more of the metric is better, -1 where less is, 0 where that is not known."""
    return METRICS.get(_known_as(metric), (0, ""))[0]


def _known_as(metric: str) -> str:
    return re.sub(r"^pass@\d+$", "pass@k", metric)


def natural_key(label: str) -> list[tuple[int, str]]:
    """A sort key by which "digits=2" stands before "digits=10"."""
    parts = re.findall(r"[0-9]+|[^0-9]+", label)
    return [(int(p), "") if p[0] in "0123456789" else (-1, p) for p in (q[:18] for q in parts)]


def number(value: float | None) -> str:
    """Four significant digits; thousands set apart; a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if 1e-3 <= abs(value) < 1e5:
        digits = max(0, 3 - math.floor(math.log10(abs(value))))
        return f"{value:,.{digits}f}"
    return f"{value:.3e}"


def estimate(value: Estimate | None) -> str:
    """Value ± standard error, both to the second digit of the error."""
    if value is None or not math.isfinite(value.value):
        return "–"
    if value.stderr is None:
        return number(value.value)
    digits = 3 if value.stderr == 0 else 1 - math.floor(math.log10(value.stderr))
    digits = min(max(digits, 0), 6)
    return (
        f"{value.value:,.{digits}f}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{value.stderr:,.{digits}f}"
    )


def duration(seconds: float) -> str:
    """Seconds as the two largest units of d, h, min, s."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = round(seconds / 60), seconds / 3600
    if minutes < 60:
        whole = round(seconds)
        return f"{whole // 60} min {whole % 60:02d} s"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{round(hours) // 24:,} d {round(hours) % 24} h"


def best(metric: str, values: Sequence[Estimate | None]) -> int | None:
    """Index of the run to mark, or None (the bolding rule above)."""
    sign = direction(metric)
    known = [(i, v) for i, v in enumerate(values) if v is not None and math.isfinite(v.value)]
    if sign == 0 or len(known) < 2:
        return None
    winner, first = max(known, key=lambda pair: sign * pair[1].value)
    for index, other in known:
        if index == winner:
            continue
        if first.stderr is None or other.stderr is None:
            return None
        if sign * (first.value - other.value) <= first.stderr + other.stderr:
            return None
    return winner


def _cells(metric: str, values: Sequence[Estimate | None]) -> tuple[Cell, ...]:
    winner = best(metric, values)
    asides = [f"n = {v.n:,}" if v is not None and v.n is not None else "" for v in values]
    return tuple(
        Cell(estimate(value), index == winner, aside)
        for index, (value, aside) in enumerate(zip(values, asides))
    )


def metric_names(runs: Sequence[Run]) -> list[str]:
    """Every evaluated metric: those of METRICS in their order, then the others by name."""
    names = {name for run in runs for evaluation in run.evaluations for name in evaluation.metrics}
    order = list(METRICS)

    def key(name: str) -> tuple[Any, ...]:
        known = _known_as(name)
        return (order.index(known) if known in order else len(order), natural_key(name))

    return sorted(names, key=key)


def latest(run: Run) -> Evaluation | None:
    """The evaluation of the largest step."""
    return run.evaluations[-1] if run.evaluations else None


def evaluation_table(runs: Sequence[Run]) -> list[Line]:
    """One line a metric, of each run's latest evaluation."""
    evaluations = [latest(run) for run in runs]
    lines = []
    for name in metric_names(runs):
        values = [e.metrics.get(name) if e else None for e in evaluations]
        if any(value is not None for value in values):
            about = METRICS.get(_known_as(name), (0, ""))[1]
            lines.append(Line(name, direction(name), _cells(name, values), about))
    return lines


def difficulty_tables(runs: Sequence[Run]) -> list[tuple[str, list[Line]]]:
    """For each metric one line a difficulty, of each run's latest evaluation."""
    groups = [e.by_difficulty if (e := latest(run)) else {} for run in runs]
    labels = sorted({label for group in groups for label in group}, key=natural_key)
    names = metric_names(runs)
    grouped = {n for group in groups for metrics in group.values() for n in metrics}
    tables = []
    for name in [*names, *sorted(grouped.difference(names))]:
        rows = [(label, [g.get(label, {}).get(name) for g in groups]) for label in labels]
        lines = [Line(label, 0, _cells(name, values)) for label, values in rows if any(values)]
        if lines:
            tables.append((name, lines))
    return tables


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted names to JSON text. A list is one value, and so is an empty section."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = json.dumps(value, ensure_ascii=False)
    return flat


def config_differences(configs: Sequence[Mapping[str, Any]]) -> list[Line]:
    """One line for each key whose values differ; marked where they differ from the first run's."""
    flats = [flatten(config) for config in configs]
    lines = []
    for key in dict.fromkeys(name for flat in flats for name in flat):
        values = [flat.get(key) for flat in flats]
        if len(set(values)) > 1:
            cells = (Cell("absent" if v is None else v, v != values[0]) for v in values)
            lines.append(Line(key, 0, tuple(cells)))
    return lines


def env_table(runs: Sequence[Run]) -> list[Line]:
    """One line for each entry of any env.json."""
    keys = dict.fromkeys(key for run in runs for key in run.env)
    return [Line(k, 0, tuple(Cell(_text(run.env.get(k))) for run in runs)) for k in keys]


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return shlex.join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def elapsed_seconds(run: Run) -> float:
    """Length of the run; a resumed run's clock may start anew, and then its parts are summed."""
    values = run.series("train", "time.elapsed_s")[1]
    values = values[values >= 0]
    if not values.size:
        return math.nan
    restarts = values[:-1][values[1:] < values[:-1]]
    return float(values[-1] + restarts.sum())


def phase_seconds(run: Run) -> dict[str, float]:
    """Seconds spent in each of PHASES, and in "other" what is left of the run's time.

    time.NAME_s may be the row's own seconds or the total so far. Phases do not overlap, so that
    their own seconds cannot sum to more than the whole run; where they do, they are totals.
    """
    elapsed = elapsed_seconds(run)
    series = {p: run.series("train", f"time.{p}_s")[1].clip(min=0) for p in PHASES}
    series = {p: values[values < math.inf] for p, values in series.items()}
    seconds = {p: float(values.sum()) for p, values in series.items()}
    if sum(seconds.values()) > _TOTALS_SLACK * elapsed:
        seconds = {p: float(values.max(initial=0.0)) for p, values in series.items()}
    left = elapsed - sum(seconds.values())
    return {**seconds, "other": max(left, 0.0) if math.isfinite(left) else 0.0}


def throughput_table(runs: Sequence[Run]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(titles, one row a run): run time, tokens, median tokens a second, median utilisation.

    Each row of metrics.jsonl counts the tokens since the row before it.
    """
    rows = []
    for run in runs:
        tokens = run.series("train", "tokens")[1]
        rates = [run.series("train", f"time.{k}")[1] for k in ("tokens_per_s", "mfu")]
        rate, mfu = (sorted(values[values < math.inf].tolist()) for values in rates)
        rows.append(
            (
                duration(elapsed_seconds(run)),
                number(tokens[tokens < math.inf].sum()),
                number(float(f"{rate[len(rate) // 2]:.3g}")) if rate else "–",
                f"{mfu[len(mfu) // 2]:.1%}" if mfu else "–",
            )
        )
    return ("time", "tokens", "tokens/s, median", "model FLOPs utilisation, median"), rows


def runs_table(runs: Sequence[Run]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(titles, one row a run): what was run, where, and what came out."""
    final = [f for f in _FINAL if any(run.series(*f[1:])[0].size for run in runs)]
    named = {m for run in runs if (e := latest(run)) for m in e.metrics}
    scores = [s for s in _SCORES if s[1] in named]
    outcome = (*(title for title, _ in scores), *(title for title, _, _ in final))
    titles = ("objective", *outcome, "steps", "time", "device", "commit")
    rows = []
    for run in runs:
        objective = run.config.get("objective")
        steps = max((row.step for row in run.rows), default=None)
        device, count = (_text(run.env.get(key)) for key in ("device_kind", "device_count"))
        evaluation = latest(run)
        rows.append(
            (
                _text(objective.get("name") if isinstance(objective, Mapping) else objective),
                *(estimate(evaluation.metrics.get(m) if evaluation else None) for _, m in scores),
                *(number(run.last(*f[1:])) for f in final),
                number(steps),
                duration(elapsed_seconds(run)),
                f"{count} × {device}" if count not in ("–", "1") else device,
                _text(run.env.get("commit"))[:8],
            )
        )
    return titles, rows
