"""A folder of text from training to its report, with every objective, at the size of a toy."""

import json
import math
import random
import re
import shutil

import pytest

from reasoning_jax import main
from reasoning_jax.commands import report, runfolder, train
from reasoning_jax.commands.assemble import assemble, text_windows
from reasoning_jax.config import ConfigError
from reasoning_jax.config_check import from_dict
from reasoning_jax.report import write_report
from reasoning_jax.report.load import load_run
from tests.report.runs import write_page
from tests.report.test_report_page import Page
from tests.small import tiny_run

OBJECTIVES = {
    "mle": {"noise": {"rate": 0.0}},
    "unlikelihood": {"noise": {"rate": 0.0}},
    "bc": {"noise": {"rate": 0.2, "source": "ngram"}},
    "sequencematch": {
        "noise": {"rate": 0.2, "source": "random"},
        "sequencematch": {"bc_steps": 1, "anneal_steps": 1, "gamma": 0.9},
        "replay": {"prefix_tokens": 6, "sample_every_steps": 2},
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts")
    rng = random.Random(0)
    words = ("the", "cat", "sät", "on", "a", "mat", "<backspace>", "and", "then", "it", "ran")
    for i in range(12):
        (path / f"{i}.txt").write_text(" ".join(rng.choices(words, k=200)), encoding="utf-8")
    return path


def config_of(folder, name, steps=3, **sections):
    base = {
        "objective": {"name": name},
        "vocab": {"kind": "byte"},
        "data": {"source": "text", "path": str(folder), "seq_len": 24},
        "train": {"steps": steps, "batch_rows": 4, "log_every_steps": 1,
                  "checkpoint_every_steps": 3},
        # A schedule that does not depend on how long the run is.
        "optimizer": {"warmup_steps": 0, "schedule": "constant"},
        "sampling": {"max_actions": 8},
        "evaluate": {"problems": 6, "batch_rows": 4, "prompt_tokens": 5, "saved_samples": 3,
                     "mauve": True},
    }  # fmt: skip
    more = {**OBJECTIVES[name], **sections}
    return tiny_run(**{k: {**base.get(k, {}), **more.get(k, {})} for k in {**base, **more}})


@pytest.fixture(scope="module")
def runs(folder, tmp_path_factory):
    """One finished run of three steps for each objective."""
    import jax

    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        device = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda: device)
        patch.setattr(jax, "device_count", lambda: 1)
        jax.config.update("jax_disable_most_optimizations", True)
        for name in OBJECTIVES:
            assert train.train(config_of(folder, name), out / name, [], quiet=True) == 0
        yield {name: out / name for name in OBJECTIVES}
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_on_text_and_evaluates_it(runs, name):
    # Catches: a part of the chain that only tasks have: judges, prompts, difficulties.
    path = runs[name]
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["split"]) for r in rows] == [
        (1, "train"), (2, "train"), (3, "train"), (3, "validation"),
    ]  # fmt: skip
    assert all(math.isfinite(r["loss"]) for r in rows)
    saved = runfolder.read_json(path / "eval" / "step_00000003.json")
    metrics = saved["metrics"]
    assert {"perplexity", "diversity", "human_diversity", "mauve_defined"} <= set(metrics)
    assert "exact_match" not in metrics
    assert saved["n_problems"] == metrics["perplexity"]["n"] == 6
    # Bytes of an untrained model: about as many choices as there are rows.
    assert 100 < metrics["perplexity"]["value"] < 600
    # The validation loss is that of the same model on text of the same split.
    assert rows[-1]["perplexity"] == metrics["perplexity"]["value"]
    samples = [
        json.loads(line)
        for line in (path / "samples" / "step_00000003.jsonl").read_text().splitlines()
    ]
    assert len(samples) == 3
    for s in samples:
        assert s["correct"] is None
        assert len(s["question"].encode()) == 5
        assert len(s["actions"]) <= 8


def test_evaluate_gives_the_numbers_of_the_run_and_sample_goes_on(runs, tmp_path, capsys):
    # Catches: an evaluation that depends on more than the seed; a prompt of the user's that needs
    # the texts to be there.
    path = shutil.copytree(runs["sequencematch"], tmp_path / "run")
    before = runfolder.read_json(path / "eval" / "step_00000003.json")
    assert main.run(["", "evaluate", f"--workdir={path}"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"perplexity +\d+\.\d+ ± \d+\.\d+  \(n=6\)", out)
    assert "exact_match" not in out
    assert runfolder.read_json(path / "eval" / "step_00000003.json") == before
    assert main.run(["", "evaluate", f"--workdir={path}", "--config.sampling.method=contrastive",
                     "--config.evaluate.split=test", "--config.evaluate.mauve=False",
                     "--config.evaluate.saved_samples=0"]) == 0  # fmt: skip
    assert "test split" in capsys.readouterr().out
    config = runfolder.read_json(path / "config.json")
    for data in (config["data"]["path"], "/gone"):
        config["data"]["path"] = data
        (path / "config.json").write_text(json.dumps(config))
        assert main.run(["", "sample", f"--workdir={path}", "--prompt=the cät"]) == 0
        assert capsys.readouterr().out.startswith("the cät")


def test_a_run_goes_on_where_it_was(folder, runs, tmp_path):
    """Three steps and two more are five.

    Catches: windows shuffled anew, noise or rollouts that depend on when the process began.
    """
    config = config_of(folder, "sequencematch", steps=5)
    assert train.train(config, tmp_path / "whole", [], quiet=True) == 0
    shutil.copytree(runs["sequencematch"], tmp_path / "parts")
    assert train.train(config, tmp_path / "parts", [], quiet=True) == 0

    def rows(name):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        found = [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]
        return [r for r in found if r["step"] > 3]

    assert [r["step"] for r in rows("whole")] == [4, 5, 5]
    assert rows("parts") == rows("whole")


def test_the_report_of_text_claims_no_rightness(runs, tmp_path):
    # Catches: a page that fails without exact match, an empty column, a verdict on a continuation.
    two = [runs["mle"], runs["sequencematch"]]
    page = Page(write_page(two, tmp_path / "two.html").read_text("utf-8"))
    text = page.text()
    assert "exact match" not in text
    assert "6 validation texts" in text
    assert "validation problems" not in text
    assert re.search(r"2 runs of 3 steps; perplexity on 6 validation texts: [\d,.]+", text)
    assert {"perplexity", "MAUVE"} & {t.strip() for tag, t in page.texts if tag == "th"}
    data = json.loads(next(t for tag, t in page.texts if tag == "script" and t.startswith("{")))
    samples = [s for run in data["runs"] for step in run["steps"] for s in step["samples"]]
    assert len(samples) == 6
    assert {s["correct"] for s in samples} == {None}
    page = Page(write_report(two[:1], tmp_path / "one.html").read_text("utf-8"))
    alt = [image["alt"] for image in page.all("img")]
    (diversity,) = [a for a in alt if a.startswith("Diversity")]
    assert "continuations ends at" in diversity
    assert "the true text ends at" in diversity
    assert not [a for a in alt if a.startswith("Human")]
    assert all(s.correct is None for s in load_run(runs["mle"], "mle").samples)
    line = report.summary(runs["mle"], runs["mle"] / "eval" / "step_00000003.json")
    assert re.match(r"mle, step 3: perplexity \d[\d.e+]*,( MAUVE \S+,)? diversity \d", line)


def test_windows_are_spread_over_the_split(folder):
    """And begin with <bos>, in data.seq_len positions at most.

    Catches: the first windows, which are all of one document; a cut that parts the wrong end.
    """
    assembly = assemble(config_of(folder, "mle"))
    source, vocab = assembly.examples("validation"), assembly.vocab
    assert len(source) > 8
    windows = text_windows(assembly, "validation", 4)
    for i, window in enumerate(windows):
        ids = [vocab.bos_id, *vocab.encode(source[i * len(source) // 4].answer)]
        assert window == ids[:24]
    assert len(text_windows(assembly, "validation", 10_000)) == len(source)
    nothing_left = config_of(folder, "mle", evaluate={"prompt_tokens": 23})
    with pytest.raises(ConfigError, match="leaves nothing to continue of windows"):
        text_windows(assemble(nothing_left), "validation", 4)


def test_the_same_config_reads_back(folder, runs):
    saved = from_dict(runfolder.read_json(runs["bc"] / "config.json"))
    assert saved == config_of(folder, "bc")
