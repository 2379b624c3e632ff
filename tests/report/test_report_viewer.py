"""The viewer in a browser: opens from a file, agrees with Python, runs nothing of a run's."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from reasoning_jax.report import replay
from tests.report.runs import action, sample, write_lines, write_page, write_run
from tests.report.test_report_page import PAYLOADS, Page, write_words

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--virtual-time-budget=8000", "--dump-dom"),
)


def open_page(path: Path, fragment: str = "") -> Page:
    """The page's elements after its scripts have run for eight virtual seconds."""
    profile = path.parent / f"profile_{path.stem}"
    done = subprocess.run(
        [str(BROWSER), *OPTIONS, f"--user-data-dir={profile}", f"{path.as_uri()}{fragment}"],
        capture_output=True,
        timeout=60,
        check=True,
    )
    return Page(done.stdout.decode())


def root(page: Page) -> dict[str, str]:
    return next(attrs for tag, attrs in page.tags if tag == "html")


def random_sample(rng: np.random.Generator) -> dict:
    """Any actions at all: at the edge, after the end, with texts that are several characters."""
    texts = ["7", "12", "\n", " ", "", "é", "𝛼", "</b>", "&lt;"]
    deletable = [str(rng.choice(texts)) for _ in range(rng.integers(4))]
    kinds = rng.choice(["token", "backspace", "eos"], size=rng.integers(25), p=[0.5, 0.46, 0.04])
    actions = [action(str(rng.choice(texts)), str(kind)) for kind in kinds]
    fields = {"deletable": deletable, "prompt": "2+5=" + "".join(deletable)}
    recorded = replay(actions, deletable)[-1] if actions else "".join(deletable)
    return sample(int(rng.integers(3)), actions, text=recorded, **fields)


def test_browser_and_python_replay_every_state_alike(tmp_path):
    # Mutation: any change of semantics in one of the two, such as not latching the end.
    rng = np.random.default_rng(3)
    path = write_run(tmp_path / "run", steps=40, evaluations=0)
    samples = sorted((random_sample(rng) for _ in range(60)), key=lambda s: s["step"])
    for step in range(3):
        drawn = [s for s in samples if s["step"] == step]
        write_lines(path / f"samples/step_{step:08d}.jsonl", drawn)
    page = open_page(write_page([path], tmp_path / "report.html"), "#self-check")
    states = json.loads("".join(text for tag, text in page.texts if tag == "output"))
    assert len(samples) == 60
    assert states == [replay(s["actions"], s["deletable"]) for s in samples]
    assert root(page)["data-samples"] == "60"
    assert root(page)["data-mismatches"] == "0"
    assert root(page)["data-ready"] == "true"
    assert "data-error" not in root(page)


def test_wrongly_recorded_text_is_shown_as_a_warning(tmp_path):
    # Mutation: compare nothing, or hide the warning.
    path = write_run(tmp_path / "run", steps=40, evaluations=0)
    drawn = [sample(1, [action("1"), action("2")]), sample(1, [action("3")], text="4")]
    drawn.append(sample(1, [action("5")], deletable=["x"], prompt="not its end"))
    write_lines(path / "samples/step_00000001.jsonl", drawn)
    page = open_page(write_page([path], tmp_path / "report.html"))
    assert root(page)["data-mismatches"] == "2"
    (warning,) = [attrs for _, attrs in page.tags if attrs.get("id") == "warning"]
    assert "hidden" not in warning
    assert (
        "2 of 3 samples do not replay to their recorded text: run, step 1, sample 2" in page.text()
    )


def test_nothing_of_a_run_becomes_markup_or_runs(tmp_path):
    # Mutation: innerHTML anywhere in viewer.js. The policy is taken off: it is the second defence.
    report = write_page([write_words(tmp_path / "run", PAYLOADS)], tmp_path / "report.html")
    page = open_page(_without_policy(report, SHOW_EVERY_SAMPLE))
    assert "".join(text for tag, text in page.texts if tag == "output") == "5 samples, 0 elements"
    assert root(page)["data-ready"] == "true"
    assert not {"data-hacked", "data-error"} & set(root(page))
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert not page.all("svg")
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert PAYLOADS[1] in page.text()


def test_a_continued_text_has_no_verdict(tmp_path):
    # Mutations: null shown as wrong; counted among the wrong ones.
    path = write_run(tmp_path / "run", steps=40, evaluations=0)
    drawn = [sample(1, [action("a")], correct=None), sample(1, [action("b")], correct=False)]
    write_lines(path / "samples/step_00000001.jsonl", drawn)
    page = open_page(_without_policy(write_page([path], tmp_path / "report.html"), VERDICTS))
    seen = json.loads("".join(text for tag, text in page.texts if tag == "output"))
    assert seen == [
        ["1 · clean · digits=1", "", "Given text", "True continuation"],
        ["2 · ✗ wrong · clean · digits=1", "✗ wrong", "Question", "Reference answer"],
        1, 0,
    ]  # fmt: skip


VERDICTS = """
const byId = (id) => document.getElementById(id);
const seen = [];
for (const value of ["0", "1"]) {
  byId("sample").value = value;
  byId("sample").dispatchEvent(new Event("change"));
  seen.push([byId("sample").selectedOptions[0].textContent,
    ...["verdict", "asked", "wanted"].map((id) => byId(id).textContent)]);
}
for (const value of ["3", "2"]) {
  byId("filter").value = value;
  byId("filter").dispatchEvent(new Event("change"));
  seen.push(byId("sample").options.length);
}
byId("self-check").textContent = JSON.stringify(seen);
"""

SHOW_EVERY_SAMPLE = """
const select = document.getElementById("sample");
let found = 0;
for (const option of select.options) {
  select.value = option.value;
  select.dispatchEvent(new Event("change"));
  found += document.querySelectorAll("#viewer :is(img, svg, script, style, a)").length;
}
document.getElementById("self-check").textContent =
  `${select.options.length} samples, ${found} elements`;
"""

DRIVER = """
const seen = [];
const byId = (id) => document.getElementById(id);
const look = () => seen.push([byId("text").textContent,
  document.querySelectorAll("#strip .struck").length, byId("position").value]);
const key = (name, target) =>
  target.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
look();
byId("first").click(); look();
byId("forward").click(); look();
key("ArrowRight", document.body); look();
key("ArrowRight", byId("viewer")); look();
key("ArrowLeft", document.body); look();
key("ArrowRight", byId("run")); look();
byId("position").value = "5"; byId("position").dispatchEvent(new Event("input")); look();
document.querySelectorAll("#strip .chip")[3].click(); look();
byId("filter").value = "3"; byId("filter").dispatchEvent(new Event("change"));
seen.push(byId("sample").options.length);
byId("filter").value = "0"; byId("filter").dispatchEvent(new Event("change"));
byId("speed").value = "2"; byId("speed").dispatchEvent(new Event("change"));
byId("play").click(); look(); seen.push(byId("play").textContent);
setTimeout(() => { look(); byId("self-check").textContent = JSON.stringify(seen); }, 6000);
"""


def _without_policy(report: Path, script: str = "") -> Path:
    page = re.sub(r"<meta http-equiv[^>]*>", "", report.read_text())
    copy = report.with_name("copy.html")
    copy.write_text(page.replace("</body>", f"<script>{script}</script></body>"))
    return copy


def test_controls_move_through_the_sequence(tmp_path):
    # Mutations: start elsewhere; a button or key that moves wrongly; keys taken from a select.
    path = write_run(tmp_path / "run", steps=40, evaluations=0)
    actions = [action("1"), action("", "backspace"), action("", "backspace"), action("8")]
    actions += [action("9"), action("", "eos")]
    drawn = [
        sample(1, actions, deletable=["x"], correct=True),
        sample(1, [action("0")], correct=False),
    ]
    write_lines(path / "samples/step_00000001.jsonl", drawn)
    report = write_page([path], tmp_path / "report.html")
    page = open_page(_without_policy(report, DRIVER))
    seen = json.loads("".join(text for tag, text in page.texts if tag == "output"))
    assert "data-error" not in root(page)
    assert seen == [
        ["7+5=89", 2, "6"],
        ["7+5=x", 0, "0"],
        ["7+5=x1", 0, "1"],
        ["7+5=x1", 1, "2"],  # the taken back text stands struck out at the cursor
        ["7+5=x", 2, "3"],
        ["7+5=x1", 1, "2"],
        ["7+5=x1", 1, "2"],
        ["7+5=89", 2, "5"],
        ["7+5=x", 2, "3"],
        1,  # the other sample, when only wrong ones are asked for
        ["7+5=x", 0, "0"],
        "Pause",
        ["7+5=89", 2, "6"],
    ]
