"""The page as a file: whole, self-contained, and inert whatever a run holds."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from reasoning_jax.report import drawing, figures, write_report
from reasoning_jax.report.load import load_run
from reasoning_jax.report.traces import choose_samples, evenly, inert_json
from tests.report.runs import action, sample, write_json, write_lines, write_page, write_run

PAYLOADS = (
    "</script><script>document.documentElement.dataset.hacked=1</script>",
    '<img src=x onerror="document.documentElement.dataset.hacked=2">',
    "\"'><svg onload=document.documentElement.dataset.hacked=3>",
    "<!--<script>{{ 7*7 }}{% raw %}</style></title></textarea>",
    "\u2028\u2029\u202e\ud800\x00\x1b[31m$\\frac{$",
)
BENIGN = ("plain", "words", "of", "no", "harm")


class Page(HTMLParser):
    """Tags with their attributes, texts by the innermost tag, in order of the page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self._open = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        self.texts.append((self._open, data))

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def text(self):
        return "".join(text for tag, text in self.texts if tag not in ("script", "style"))


def parse(path):
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """One report of two runs, for the tests that only read it."""
    folder = tmp_path_factory.mktemp("two")
    changes = {"objective": {"name": "mle"}, "optimizer": {"learning_rate": 0.003}}
    runs = [
        write_run(folder / "mle", seed=1, retracts=0.0, changes=changes),
        write_run(folder / "sequencematch", seed=2),
    ]
    return write_report(runs, folder / "out" / "report.html")


def write_words(path, words):
    """A run in which every text that can be anything is one of `words`."""
    write_run(path, evaluations=0)
    one, two, three, four, five = words
    write_json(path / "config.json", {one: {two: three}, "objective": {"name": four}, five: five})
    write_json(path / "overrides.json", list(words))
    write_json(path / "env.json", {one: two, "commit": three, "device_kind": four, five: [five]})
    rows = [{"step": 1, "split": word, "loss": 1.0, words[0] + "!": 2.0} for word in words]
    rows.append({"step": 1, "split": "train", "loss": 1.0, "time": {"elapsed_s": 1, "step_s": 1}})
    write_lines(path / "metrics.jsonl", rows)
    estimates = {word: {"value": 0.5, "stderr": 0.1, "n": 3} for word in words}
    evaluation = {"step": 1, "split": one, "n_problems": 3, "metrics": estimates}
    evaluation["by_difficulty"] = {two: estimates, five: estimates}
    write_json(path / "eval/step_00000001.json", evaluation)
    names = ("kind", "prompt", "question", "answer", "text", "difficulty")
    drawn = [
        sample(1, [action(word), action(word, "backspace"), action(word)])
        | {name: word for name in names}
        | {"deletable": [word]}
        for word in words
    ]
    write_lines(path / "samples/step_00000001.jsonl", drawn)
    return path


def test_hostile_text_adds_no_element_and_no_attribute(tmp_path):
    # Mutations: autoescape off; `| safe` on any run text; `<` not escaped in the data.
    pages = [
        parse(write_report([write_words(tmp_path / name, words)], tmp_path / f"{name}.html"))
        for name, words in (("plain", BENIGN), ("<img src=x onerror=hack()>", PAYLOADS))
    ]
    benign, hostile = ([(tag, sorted(attrs)) for tag, attrs in page.tags] for page in pages)
    assert hostile == benign
    assert len(pages[1].all("script")) == 2
    assert all(image["src"].startswith("data:image/png;base64,") for image in pages[1].all("img"))
    # The parser gives back escaped text as it was: it is shown, not lost.
    assert PAYLOADS[0] in pages[1].text()
    assert PAYLOADS[1] in pages[1].text()


def test_embedded_data_survives_the_round_trip_and_holds_no_markup():
    # Mutation: drop any of the escaped characters; ensure_ascii=False.
    text = inert_json({"words": PAYLOADS})
    assert json.loads(text)["words"] == list(PAYLOADS)
    assert not re.search("[<>&\u2028\u2029]", text)
    assert text.isascii()
    with pytest.raises(ValueError, match="not JSON compliant"):
        inert_json({"logprob": float("nan")})


def test_nothing_is_loaded_from_elsewhere(report):
    # Mutation: a font, script or image by address; the dark figures by file name.
    page = parse(report)
    addresses = [
        value
        for _, attrs in page.tags
        for name, value in attrs.items()
        if name in ("src", "srcset", "href", "action", "poster", "data", "background")
    ]
    assert len(addresses) > 20
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttp|import\(", _code(page))


def _code(page):
    code = [text for tag, text in page.texts if tag in ("script", "style")]
    return "".join(text for text in code if not text.startswith('{"runs"'))


def test_only_the_page_s_own_code_is_allowed_to_run(report):
    # Mutations: 'unsafe-inline'; a hash of something else.
    page = parse(report)
    policy = next(
        meta["content"] for meta in page.all("meta") if "http-equiv" in meta and meta["content"]
    )
    for tag, start in (("script", "// Plays"), ("style", "/* One")):
        (text,) = [text for name, text in page.texts if name == tag and text.startswith(start)]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_sections_figures_and_values_are_there(report):
    page = parse(report)
    sections = [section["id"] for section in page.all("section")]
    wanted = "runs evaluation traces curves time configuration environment"
    assert sections == wanted.split()
    text = page.text()
    assert "mle and sequencematch" in text
    assert "objective.name" in text
    assert "optimizer.learning_rate" in text
    assert "2 of 23 keys differ" in text
    assert "objective.name=mle" in text
    assert "NVIDIA H200" in text
    assert "backspaces_per_completion" in text
    assert all(image["alt"] for image in page.all("img"))
    inputs = page.all("select") + page.all("input") + page.all("button")
    assert len(inputs) == 11


def test_inline_figures_are_the_files(report):
    # Mutation: write other bytes, or leave a figure out.
    page = parse(report)
    inline = [image["src"] for image in page.all("img")]
    inline += [source["srcset"] for source in page.all("source")]
    files = [path.read_bytes() for path in sorted((report.parent / "report").glob("*.png"))]
    decoded = [base64.b64decode(uri.split(",")[1]) for uri in inline]
    assert sorted(decoded) == sorted(files)
    names = {path.stem for path in (report.parent / "report").glob("*.png")}
    assert {"loss", "accuracy", "grad_norm", "learning_rate", "tokens_per_s"} <= names
    assert {"exact_match", "backspace", "pass_at_k", "time_split", "noise_kept"} <= names


def test_damage_and_thinning_are_said_in_the_notes(make_run, tmp_path):
    path = make_run(evaluations=1, samples=30)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 22')
    text = parse(write_page([path], tmp_path / "report.html")).text()
    assert "metrics.jsonl: the last line" in text
    assert "the trace viewer carries 24 of 30 samples" in text


def test_bare_run_still_makes_a_page(make_run, tmp_path):
    # Mutation: assume a row, an evaluation or a sample.
    path = make_run(evaluations=0)
    (path / "metrics.jsonl").write_text("")
    text = parse(write_report([path], tmp_path / "report.html")).text()
    assert "No samples were recorded." in text
    assert "No evaluation was recorded." in text
    assert "metrics.jsonl holds no complete line yet." in text


def test_scalars_that_no_axis_can_hold_do_not_stop_the_page(make_run, tmp_path):
    # Mutation: plot whatever is finite.
    path = make_run(evaluations=0)
    values = ("1e308", "-1e308", "NaN", "Infinity", "1" + "0" * 400, "0")
    lines = [f'{{"step": {i}, "split": "train", "loss": {v}}}\n' for i, v in enumerate(values)]
    (path / "metrics.jsonl").write_text("".join(lines))
    assert write_report([path], tmp_path / "report.html").exists()


def test_many_runs_have_as_many_colours(make_run, tmp_path):
    # Mutation: repeat a short palette.
    runs = [make_run(f"run{i}", steps=40, every=20, evaluations=0) for i in range(9)]
    text = write_page(runs, tmp_path / "report.html").read_text()
    colours = re.findall(r"\.run-\d+ \{ --run: (#\w+); \}", text)
    assert len(colours) == 18
    assert len(set(colours[:9])) == len(set(colours[9:])) == 9


def test_thinning_keeps_the_ends_and_the_budget(make_run):
    # Mutations: take the first samples; forget the last step; ignore the budget.
    run = load_run(make_run(steps=300, every=100, evaluations=20, samples=30), "run")
    shown = choose_samples(run, max_actions=10**9)
    steps = [step for step, _ in shown.steps]
    assert len(steps) == 12
    assert (steps[0], steps[-1]) == (15, 300)
    assert all(len(samples) == 24 for _, samples in shown.steps)
    assert (shown.carried, shown.available) == (288, 600)
    tight = choose_samples(run, max_actions=2000)
    assert sum(len(s.actions) for _, samples in tight.steps for s in samples) <= 2000
    assert all(samples for _, samples in tight.steps)
    assert evenly(range(5), 2) == [0, 4]
    assert all(len(set(evenly(range(n), k))) == k for n in range(1, 40) for k in range(1, n + 1))


def test_every_scalar_is_plotted_once(make_run):
    # Mutations: drop unknown scalars; plot evaluated metrics again where validation logs them.
    path = make_run(evaluations=1)
    rows = [{"step": s, "split": "train", "loss": 1.0, "exact_match": 0.5, "z": s} for s in (1, 2)]
    write_lines(path / "metrics.jsonl", rows)
    assert figures.extra_scalars([load_run(path, "run")]) == ["z"]


def test_running_mean_keeps_a_line_and_leaves_gaps_out():
    # Mutations: count gaps as zero; divide by the width at the ends.
    line = np.full(50, 3.0)
    line[[4, 5, 20]] = np.nan
    mean = figures.running_mean(line, 8)
    np.testing.assert_allclose(mean[np.isfinite(line)], 3.0)
    assert np.isnan(mean[[4, 5, 20]]).all()


def test_report_needs_no_jax_and_no_global_figure_state():
    code = (
        "import sys, reasoning_jax.report\n"
        "assert not {'jax', 'matplotlib.pyplot', 'flax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_single_step_is_marked_once():
    # Mutation: ticks at fractions of a step, written as the same number five times.
    figure = Figure()
    axes = figure.add_subplot()
    axes.plot([3], [0.5], "o")
    drawing.finish(axes, drawing.LIGHT, "title", "unit", share=False)
    low, high = axes.get_xlim()
    assert [t for t in axes.get_xticks() if low <= t <= high] == [3]
