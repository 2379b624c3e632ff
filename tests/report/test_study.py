"""The table of a reproduction: means by hand, arms by what varies, texts that cannot break it."""

import json
import math
import re
import statistics

import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread

from reasoning_jax.report.load import ReportError
from reasoning_jax.report.study import (
    MARKS,
    Cell,
    PaperNumber,
    Study,
    arm_labels,
    gather,
    markdown,
    newest_metrics,
    picture,
    write_study,
)

STUDY = Study(
    title="Of two arms",
    columns=(("exact_match", "exact match"), ("perplexity", "perplexity"), ("absent", "absent")),
    plotted=("exact_match",),
)
RESULTS = (
    ("a", {"exact_match": 0.5, "perplexity": 20.0}),
    ("b", {"exact_match": 0.25, "other": 1.0}),
    ("a", {"exact_match": 0.75, "perplexity": 30.5}),
    ("a", {"exact_match": 0.7}),
)
HOSTILE = (
    "a | b || c", "$x$ and $\\frac{1}{2}$", "back\\slash\\| pipe", "<img src=x> `code` [a](b) *c*",
    "two\nlines", "long " * 60, "", "é⌫😀\u202e\x00", "${",
)  # fmt: skip


def cells(line):
    """The cells of a line of a table, as GitHub reads it."""
    return [c.strip() for c in re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1]]


def rows(page):
    return [cells(line) for line in page.splitlines() if line.startswith("|")]


def test_means_and_deviations_are_over_the_runs_of_an_arm():
    # Catches: the deviation of a population, arms mixed, a mean over the runs that happen to have a
    # measure, arms in the order of their names.
    table = gather(STUDY, [("z", {"exact_match": 1.0}), *RESULTS])
    assert list(table) == ["z", "a", "b"]
    values = (0.5, 0.75, 0.7)
    got = table["a"]["exact_match"]
    assert got.values == values
    assert got.mean == pytest.approx(sum(values) / 3)
    assert got.sd == pytest.approx(statistics.stdev(values))
    assert "perplexity" not in table["a"], "one run has none"
    assert table["b"] == {"exact_match": Cell(0.25, None, (0.25,))}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.5,), "0.500"), ((0.25, 0.75), "0.500 ± 0.354"), ((12.34, 12.34), "12.3 ± 0.0"),
        ((-20.06,), "-20.1"), ((9.9996,), "10.000"), ((0.0, 0.0, 0.0), "0.000 ± 0.000"),
    ],
)  # fmt: skip
def test_a_number_is_written_with_its_spread(values, text):
    assert Cell.of(values).text() == text


def test_an_arm_is_named_by_what_varies_but_for_the_seed():
    # Catches: the seed in a name, what all share in a name, arms that look alike.
    def labels(*points, seeds_key="seed"):
        return arm_labels(points, seeds_key)

    assert labels(
        {"arg": "objective=mle,scale=cpu", "seed": 0},
        {"arg": "objective=bc,noise=0.1,scale=cpu", "seed": 0},
        {"arg": "objective=bc,noise=0.1,scale=cpu", "seed": 1},
    ) == ["mle", "bc, noise=0.1", "bc, noise=0.1"]
    assert labels({"lr": 1, "seed": 0, "x": 2}, {"lr": 3, "seed": 0, "x": 2}) == ["lr=1", "lr=3"]
    assert labels({"seed": 0}, {"seed": 1}) == ["run", "run"]
    assert labels({"arg": "a=1", "seed": 0}, {"arg": "a=1", "seed": 1}) == ["a=1", "a=1"]
    assert (
        labels({"fold": 0, "seed": 3}, {"fold": 1, "seed": 3}, seeds_key="fold") == ["seed=3"] * 2
    )
    assert labels({"arg": ""}, {"arg": "a=1"}) == ["run", "a=1"]


def test_the_page_says_what_was_measured_over_how_many_seeds():
    page = markdown(STUDY, gather(STUDY, RESULTS), ["On a laptop."])
    assert page.startswith("# Of two arms\n\nOn a laptop.\n\n")
    assert "over 1 or 3 seed(s)" in page
    assert rows(page) == [
        ["arm", "exact match", "perplexity", "absent"],
        ["---"] * 4,
        ["a", "0.650 ± 0.132", "", ""],
        ["b", "0.250", "", ""],
    ]
    assert "paper" not in page


def test_the_papers_numbers_stand_apart_with_their_marks():
    # Catches: a paper's number in a mean; a mark that is not explained, or one that is not used.
    paper = (PaperNumber("BC | random", "MAUVE", "0.85 ± 0.03", "V"),
             PaperNumber("a", "exact_match", "0.99", "M"))  # fmt: skip
    study = Study(STUDY.title, STUDY.columns, paper=paper, notes=("Beware.",))
    table = gather(study, RESULTS)
    page = markdown(study, table, [])
    ours, theirs = page.split("The paper's numbers")
    assert "0.99" not in ours
    assert [r[-4:] for r in rows(theirs)[2:]] == [
        ["BC \\| random", "MAUVE", "0.85 ± 0.03", "V"], ["a", "exact_match", "0.99", "M"],
    ]  # fmt: skip
    assert f"M: {MARKS['M']}; V: {MARKS['V']}." in theirs
    assert MARKS["D"] not in page
    assert page.endswith("* Beware.\n")
    with pytest.raises(ReportError, match="a mark must be one of V, R, M, D, P, got 'X'"):
        PaperNumber("a", "b", "c", "X")


def test_no_name_breaks_the_table_or_the_plot(tmp_path):
    """Bars and dollars in arms, headings and the title; a name of 300 characters.

    Catches: a cell that ends early, text taken for mathematics, markup on the page.
    """
    columns = tuple((f"m{i}", name) for i, name in enumerate(HOSTILE))
    study = Study(HOSTILE[1], columns, plotted=tuple(f"m{i}" for i in range(len(HOSTILE))))
    results = [(arm, {name: 0.1 * i for name, _ in columns}) for i, arm in enumerate(HOSTILE)]
    path = write_study(study, results, ["x"], tmp_path)
    found = rows(path.read_text(encoding="utf-8"))
    assert len(found) == len(HOSTILE) + 2
    assert {len(row) for row in found} == {len(HOSTILE) + 1}
    for text in [row[0] for row in found[2:]] + found[0][1:]:
        assert not re.search(r"(?<!\\)(?:\\\\)*[$<>*`|]", text)
    for name in ("table.png", "table_dark.png"):
        assert imread(tmp_path / name).shape[2] >= 3
    assert list(json.loads((tmp_path / "table.json").read_text())["arms"]) == list(HOSTILE)


def test_the_plot_shows_every_seed_and_names_what_it_shows(monkeypatch):
    """Two arms that differ in the middle of a long name stay different, the bars are the means.

    Catches: a measure that the first arm lacks left out of the legend, labels cut to the same text,
    a NaN that takes the plot with it.
    """
    bars, dots, ticks = [], [], []
    barh, plot, set_yticks = Axes.barh, Axes.plot, Axes.set_yticks

    def see(into, original):
        def wrapped(self, *args, **kwargs):
            into.append(args)
            return original(self, *args, **kwargs)

        return wrapped

    monkeypatch.setattr(Axes, "barh", see(bars, barh))
    monkeypatch.setattr(Axes, "plot", see(dots, plot))
    monkeypatch.setattr(Axes, "set_yticks", see(ticks, set_yticks))
    legends = []
    monkeypatch.setattr(
        "reasoning_jax.report.study.legend", lambda axes, theme, entries, *a, **k: legends.append(
            [name for name, _ in entries]
        )
    )  # fmt: skip
    long = "objective=sequencematch, alpha={}, noise=0.02, source=task, longer=1.8"
    results = [
        (long.format(0.1), {"m": 0.5}), (long.format(0.01), {"m": 0.25, "n": 2.0}),
        (long.format(0.01), {"m": 0.75, "n": 4.0}), ("nan", {"m": math.nan, "n": math.inf}),
    ]  # fmt: skip
    study = Study("t", (("m", "M"), ("n", "N"), ("o", "O")), plotted=("m", "n", "o"))
    light, dark = picture(study, gather(study, results))
    assert light != dark
    half = len(bars) // 2
    assert [b[1] for b in bars[:half]] == [0.5, 0.5, 3.0]
    assert [list(d[0]) for d in dots[: len(dots) // 2]] == [[0.5], [0.25, 0.75], [2.0, 4.0]]
    assert legends == [["M", "N"]] * 2
    labels = ticks[0][1]
    assert len({*labels}) == 3
    assert labels[1].replace("\n", " ") == long.format(0.01)
    assert max(len(line) for label in labels for line in label.split("\n")) < 40


def test_a_run_that_was_not_evaluated_is_refused_in_words(make_run):
    path = make_run(evaluations=0)
    with pytest.raises(ReportError, match="holds no evaluation; the run is not finished"):
        newest_metrics(path)
    path = make_run("other", evaluations=2)
    saved = json.loads((path / "eval/step_00000200.json").read_text())["metrics"]
    assert newest_metrics(path) == {name: m["value"] for name, m in saved.items()}
