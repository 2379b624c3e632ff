"""Writes the report: one HTML file without any external resource, and its figures as PNG files.

All that comes from a run is taken as hostile. The template escapes it, the samples are embedded as
inert JSON, `viewer.js` makes text nodes only, and the page's content security policy lets nothing
run or load but the page's own script, style and images.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reasoning_jax.durable import replace_bytes
from reasoning_jax.report.drawing import DARK, LIGHT, run_colours
from reasoning_jax.report.figures import MAX_EXTRA, Plate, draw_figures, extra_scalars
from reasoning_jax.report.load import Evaluation, Run, load_runs
from reasoning_jax.report.tables import (
    config_differences,
    difficulty_tables,
    direction,
    env_table,
    estimate,
    evaluation_table,
    flatten,
    latest,
    number,
    of_text,
    runs_table,
    throughput_table,
)
from reasoning_jax.report.traces import Shown, inert_json, viewer_data

_SUMMARISED = 4  # runs; of more, the summary names the best only
# (metric, what the summary calls it, which of many it names); the first that any run has.
_HEADLINES = (("exact_match", "exact match", max), ("perplexity", "perplexity", min))


def write_report(runs: Sequence[Path], output: Path) -> Path:
    """Write the page of some run folders to `output`, and its figures to `output`/../report/*.png.

    Raises:
      ReportError: a folder is missing or not a run, or one of its files is corrupt.
      OSError: the page cannot be written.
    """
    loaded = load_runs(runs)
    plates = draw_figures(loaded)
    output = Path(output)
    page = render_page(loaded, plates, _probe_pages(loaded, output))
    folder = output.parent / "report"
    folder.mkdir(parents=True, exist_ok=True)
    for plate in plates:
        (folder / f"{plate.slug}.png").write_bytes(plate.light)
        (folder / f"{plate.slug}_dark.png").write_bytes(plate.dark)
    # JSON may hold lone surrogates, which UTF-8 cannot write.
    replace_bytes(output, page.encode(errors="replace"))
    return output


def render_page(
    runs: Sequence[Run], plates: Sequence[Plate], probes: Sequence[tuple[str, str]] = ()
) -> str:
    """The page as text. `probes`: (run, path from the page) of the pages of their thoughts."""
    environment = _environment()
    environment.globals.update(direction=direction)
    script, style = (_asset(environment, name) for name in ("viewer.js", "style.css"))
    style += _run_style(len(runs))
    data, shown = viewer_data(runs)
    return (
        environment.get_template("report.html")
        .render(
            title=_title(runs),
            summary=_summary(runs),
            written=_now(),
            policy=_policy(script, style),
            script=script,
            style=style,
            names=[run.name for run in runs],
            run_table=runs_table(runs),
            groups={
                group: [plate for plate in plates if plate.group == group]
                for group in ("curves", "other", "evaluation", "time")
            },
            evaluated=[_evaluated(run) for run in runs],
            evaluation=evaluation_table(runs),
            difficulties=difficulty_tables(runs),
            probes=probes,
            throughput=throughput_table(runs),
            differences=config_differences([run.config for run in runs]),
            n_keys=len({key for run in runs for key in flatten(run.config)}),
            configs=[json.dumps(run.config, indent=2, ensure_ascii=False) for run in runs],
            overrides=[run.overrides for run in runs],
            env=env_table(runs),
            notes=_notes(runs, shown),
            traces=Markup(inert_json(data)),
            has_traces=any(each.carried for each in shown),
        )
        .lstrip()
    )


def _probe_pages(runs: Sequence[Run], output: Path) -> list[tuple[str, str]]:
    """(run, relative address) of what `probe` wrote into the runs' folders."""
    pages = [(run.name, run.path / "probe" / "index.html") for run in runs]
    return [
        (name, quote(Path(os.path.relpath(page, output.parent)).as_posix()))
        for name, page in pages
        if page.is_file()
    ]


def render_plates(template: str, plates: Sequence[Plate], **values: Any) -> str:
    """A page of figures, without a script, from a template of this package."""
    environment = _environment()
    environment.globals.update(width=_width)
    style = _asset(environment, "style.css")
    return environment.get_template(template).render(
        plates=plates, style=style, policy=_policy("", style), written=_now(), **values
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("reasoning_jax", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(data_uri=_data_uri)
    return environment


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _asset(environment: Environment, name: str) -> Markup:
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


def _run_style(count: int) -> Markup:
    """One class a run, `run-INDEX`, with the colour that the run has in the figures."""
    light, dark = (
        "".join(f".run-{i} {{ --run: {c}; }}\n" for i, c in enumerate(run_colours(theme, count)))
        for theme in (LIGHT, DARK)
    )
    return Markup(f"\n{light}@media (prefers-color-scheme: dark) {{\n{dark}}}\n")


def _policy(script: str, style: str) -> str:
    """Nothing loads from anywhere; only this very script and this very style apply."""

    def pin(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"default-src 'none'; img-src data:; script-src 'sha256-{pin(script)}'; "
        f"style-src 'sha256-{pin(style)}'; base-uri 'none'; form-action 'none'"
    )


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _width(png: bytes) -> float:
    """Of an image, in pixels of the page: its own are half as large."""
    return int.from_bytes(png[16:20], "big") / 2


def _title(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return runs[0].name
    if len(runs) == 2:
        return f"{runs[0].name} and {runs[1].name}"
    return f"{len(runs)} runs compared"


def _summary(runs: Sequence[Run]) -> str:
    """One sentence: how much was run, and the exact match, or perplexity of text, that came out."""
    steps = {max((row.step for row in run.rows), default=0) for run in runs}
    count = "One run" if len(runs) == 1 else f"{len(runs)} runs"
    head = f"{count} of {'up to ' if len(steps) > 1 else ''}{number(max(steps))} steps"
    evaluated = [(run, e) for run in runs if (e := latest(run))]
    headline = next((h for h in _HEADLINES if any(h[0] in e.metrics for _, e in evaluated)), None)
    if headline is None:
        return f"{head}."
    name, title, best = headline
    scored = [(run, e, e.metrics[name]) for run, e in evaluated if name in e.metrics]
    if len(scored) > _SUMMARISED:
        scored, title = [best(scored, key=lambda s: s[2].value)], f"best {title}"
    items = sorted({_items(run, evaluation) for run, evaluation, _ in scored})
    values = ", ".join(
        estimate(value) + (f" ({run.name})" if len(runs) > 1 else "") for run, _, value in scored
    )
    return f"{head}; {title} on {' or '.join(items)}: {values}."


def _items(run: Run, evaluation: Evaluation) -> str:
    """What an evaluation was of, as "512 validation problems"."""
    counted = f"{evaluation.n_problems:,} {evaluation.split}".strip()
    return f"{counted} {'texts' if of_text(run) else 'problems'}"


def _evaluated(run: Run) -> str:
    """What a column of the evaluation table was measured on."""
    evaluation = latest(run)
    if evaluation is None:
        return "not evaluated"
    return f"step {evaluation.step:,}, {_items(run, evaluation)}"


def _notes(runs: Sequence[Run], shown: Sequence[Shown]) -> list[tuple[str, str]]:
    """(run, what a reader should know about its data)."""
    notes: list[tuple[str, str]] = []
    for run, each in zip(runs, shown):
        notes += [(run.name, note) for note in run.notes]
        if each.carried < each.available:
            count = f"{each.carried:,} of {each.available:,} samples"
            notes.append((run.name, f"the trace viewer carries {count}, evenly spread."))
        if not run.evaluations:
            notes.append((run.name, "eval/ holds no evaluation."))
        if not run.samples:
            notes.append((run.name, "samples/ holds no sample."))
    extra = extra_scalars(runs)
    if len(extra) > MAX_EXTRA:
        left = ", ".join(extra[MAX_EXTRA:])
        notes.append(("figures", f"not plotted, beyond the first {MAX_EXTRA}: {left}."))
    return notes
