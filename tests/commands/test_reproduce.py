"""`reproduce`: runs, decoders and table of an experiment; each made once, all checked before."""

import json
import statistics

import pytest

from reasoning_jax import main
from reasoning_jax.commands import evaluate as evaluate_command
from reasoning_jax.commands import load, reproduce, train
from reasoning_jax.commands.reproduce import experiment_file
from reasoning_jax.config import ConfigError

EXPERIMENT = """
from reasoning_jax import config as rc
from reasoning_jax.report.study import PaperNumber, Study
from reasoning_jax.sweep import chain, product, sweep
from reasoning_jax.tasks import task_dials


def get_config(arg: str = ""):
    arg = rc.parse_arg(arg, objective="bc", scale="cpu", seed=0)
    config = rc.default_config()
    config.task = {"name": "arithmetic", **task_dials("arithmetic"), "max_digits": 1}
    config.objective.name = arg.objective
    config.noise.rate = 0.2 if arg.objective == "bc" else 0.0
    config.data.seq_len = 8
    config.data.train_problems = 50
    config.model.d_model = config.model.d_ff = 16
    config.model.n_layers = 1
    config.model.n_heads = config.model.n_kv_heads = 2
    config.model.head_dim = 8
    config.optimizer.warmup_steps = 0
    config.train.steps = {"cpu": 2, "gpu": 3}[arg.scale]
    config.train.batch_rows = 8
    config.sampling.max_actions = 4
    config.evaluate.problems = 8
    config.evaluate.corrupt_tokens = 0
    return config


def get_sweep(arg: str = ""):
    arg = rc.parse_arg(arg, scale="cpu")
    arms = [f"objective={name},scale={arg.scale}" for name in ("bc", "mle")]
    return product(sweep("arg", arms), sweep("seed", (0, 1)))
"""
STUDY = """

def get_study(scale: str) -> Study:
    return Study(
        title=f"Tiny ({scale})",
        columns=(("exact_match", "exact match"), ("truncated", "cut off")),
        plotted=("exact_match",),
        paper=(PaperNumber("BC", "exact match", "0.5", "M"),),
        decoders={"BC, gr$$dy | %s": ("bc", {"sampling.temperature": 0.0})},
    )
""" % ("long " * 80)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with configs/tiny/exp.py in it, from which commands are run."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "configs" / "tiny" / "exp.py"
    path.parent.mkdir(parents=True)
    path.write_text(EXPERIMENT + STUDY)
    return path


def run(capsys, *argv):
    code = main.run(["reasoning-jax", "reproduce", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def counted(monkeypatch):
    """How often something was trained, and how often evaluated by itself."""
    counts = {"trained": 0, "decoded": 0}
    train_, load_ = train.train, load.load_trained

    def trained(*args, **kwargs):
        counts["trained"] += 1
        return train_(*args, **kwargs)

    def decoded(*args, **kwargs):
        counts["decoded"] += 1
        return load_(*args, **kwargs)

    monkeypatch.setattr(train, "train", trained)
    monkeypatch.setattr(load, "load_trained", decoded)
    return counts


def test_experiments_are_found_by_name(here):
    # Catches: files of the checkout alone, or of the folder alone; a path for a name.
    assert experiment_file("tiny/exp").resolve() == here
    if (reproduce._CHECKOUT / "configs").is_dir():  # not where a wheel is installed
        assert experiment_file("sequencematch/text").is_file()
    with pytest.raises(ConfigError, match="no experiment 'tiny/exq'; did you mean tiny/exp"):
        experiment_file("tiny/exq")
    for name in ("exp", "", "../configs/tiny/exp", "tiny/exp.py", "x" * 5000):
        with pytest.raises(ConfigError, match="there is no experiment") as refused:
            experiment_file(name)
        assert len(str(refused.value)) < 400


def test_a_reproduction_from_end_to_end(here, capsys, counted, quick_to_compile):
    """Four runs, two decodings, a table; again: nothing is made anew.

    Catches: decoders of other arms, results of a decoder under another's name, training or decoding
    again, numbers that are not those of the run folders.
    """
    workdir = here.parent.parent.parent / "out"
    flags = ("tiny/exp", f"--workdir={workdir}", "--quiet")
    code, out, err = run(capsys, *flags)
    assert code == 0, err
    assert counted == {"trained": 4, "decoded": 2}
    assert {"table.md", "table.json", "table.png", "table_dark.png"} <= {
        p.name for p in workdir.iterdir()
    }
    page = (workdir / "table.md").read_text(encoding="utf-8")
    assert page in out
    assert page.startswith("# Tiny (cpu)\n")
    assert "4 runs" in page
    assert "over 2 seed(s)" in page
    assert "| BC | exact match | 0.5 | M |" in page
    arms = json.loads((workdir / "table.json").read_text())["arms"]
    assert [arm[:14] for arm in arms] == ["bc", "mle", "BC, gr$$dy | l"]
    for name in ("bc", "mle"):
        saved = [
            json.loads(path.read_text())["metrics"]["truncated"]["value"]
            for path in sorted(workdir.glob(f"*objective={name}*/eval/step_00000002.json"))
        ]
        assert len(saved) == 2
        cell = arms[name]["truncated"]
        assert cell["values"] == saved
        assert cell["mean"] == pytest.approx(statistics.mean(saved))
        assert cell["sd"] == pytest.approx(statistics.stdev(saved))

    greedy = sorted(workdir.glob("decoded/*/*.json"))
    assert len(greedy) == 2
    assert arms[list(arms)[2]]["truncated"]["values"] == [
        json.loads(path.read_text())["metrics"]["truncated"] for path in greedy
    ]
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if "table" not in p.name}
    code, out, err = run(capsys, *flags)
    assert (code, counted) == (0, {"trained": 4, "decoded": 2}), err
    assert "finished already" in out
    assert (workdir / "table.md").read_text(encoding="utf-8") == page
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if "table" not in p.name} == before

    # Another way to decode is another result, whatever its label.
    here.write_text(here.read_text().replace('temperature": 0.0', 'temperature": 0.5'))
    code, out, err = run(capsys, *flags)
    assert (code, counted) == (0, {"trained": 4, "decoded": 4}), err
    # The decoded numbers are those that `evaluate` gives with the same settings.
    name = greedy[0].stem
    seen = []
    printed = evaluate_command.write_evaluation
    evaluate_command.write_evaluation = lambda *args: seen.append(args[3])
    try:
        argv = ["", "evaluate", f"--workdir={workdir / name}", "--config.sampling.temperature=0.5"]
        assert main.run(argv) == 0
    finally:
        evaluate_command.write_evaluation = printed
    (result,) = seen
    assert json.loads(greedy[0].read_text())["metrics"] == {
        n: m.to_dict()["value"] for n, m in result.metrics.items()
    }


def test_a_preempted_reproduction_makes_no_table(here, capsys, monkeypatch):
    # Catches: a table of what is there so far, and exit code 0.
    monkeypatch.setattr(train, "train", lambda *args, **kwargs: 42)
    code, _, _ = run(capsys, "tiny/exp", "--workdir=out", "--quiet")
    assert code == 42
    assert not list(here.parent.parent.parent.glob("out/table*"))


REFUSED = {
    "scale": (STUDY, ["--scale=tpu"], "--scale must be one of smoke, cpu, gpu, paper, got 'tpu'"),
    "no get_study": ("", [], "defines no get_study; it needs a `def get_study(scale):`"),
    "another study": ("\n\ndef get_study(scale):\n    return {'title': 1}\n", [],
                      "get_study must return a Study, got dict"),
    "decoder of no arm": (STUDY.replace('("bc", {', '("bd", {'), [],
                          "unknown arm 'bd'; did you mean bc?"),
    "key of another section": (STUDY.replace("sampling.temperature", "train.steps"), [],
                               "train.steps is no key of sampling or evaluate"),
    "misspelt key": (STUDY.replace("sampling.temperature", "sampling.temprature"), [],
                     "sampling.temprature is no key of sampling or evaluate"),
    "value out of range": (STUDY.replace('temperature": 0.0', 'temperature": -1.0'), [],
                           "sampling.temperature must be >= 0"),
    "mark": (STUDY.replace('"M"', '"X"'), [], "a mark must be one of V, R, M, D, P, got 'X'"),
    "get_study that fails": ("\n\ndef get_study(scale):\n    return 1 / 0\n", [],
                             "ZeroDivisionError"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_mistakes_are_refused_in_words_before_anything_is_trained(here, capsys, counted, name):
    # Catches: a traceback (a missing get_study was a KeyError); a decoder that is checked after
    # hours of training.
    study, flags, words = REFUSED[name]
    here.write_text(EXPERIMENT + study)
    code, out, err = run(capsys, "tiny/exp", "--workdir=out", *flags)
    assert (code, out) == (2, "")
    assert words in err
    assert err.startswith("error: ")
    assert len(err.strip().split("\n")) <= 6
    assert counted["trained"] == 0
    assert not (here.parent.parent.parent / "out").exists()


def test_a_decoder_may_not_have_the_name_of_an_arm(here, capsys):
    # Catches: its numbers averaged with those of the arm.
    label = STUDY.split('decoders={"')[1].split('":')[0]
    here.write_text(EXPERIMENT + STUDY.replace(label, "mle"))
    code, _, err = run(capsys, "tiny/exp", "--workdir=out")
    assert code == 2
    assert "has the name of an arm" in err


def test_what_the_command_line_lacks_is_said(here, capsys):
    # Catches: a scale that is taken from the name of the file, or lost.
    for argv, words in (
        ((), "reproduce needs an experiment: reasoning-jax reproduce PAPER/EXPERIMENT"),
        (("tiny/exp",), "reproduce needs --workdir=DIR"),
        (("tiny/exp:scale=gpu", "--workdir=out"), "there is no experiment 'tiny/exp:scale=gpu'"),
        (
            ("--config=configs/tiny/exp.py:scale=gpu", "--workdir=out"),
            "reproduce takes its scale as --scale=NAME",
        ),
        (("tiny/exp", "--workdir=out", "--index=1"), "reproduce does not take --index"),
    ):
        code, out, err = run(capsys, *argv)
        assert (code, out) == (2, ""), argv
        assert words in err


def test_the_scale_and_overrides_reach_every_run(here, capsys, monkeypatch):
    # Catches: a scale that only get_study hears of; overrides of the first run alone.
    seen = []
    monkeypatch.setattr(train, "train", lambda config, *rest: seen.append(config) or 42)
    run(capsys, "tiny/exp", "--scale=gpu", "--workdir=out", "--config.train.batch_rows=16")
    assert [c.train.steps for c in seen] == [3]
    monkeypatch.setattr(
        reproduce, "run_points", lambda runs, *a, **k: seen.extend(r.config for r in runs) or 42
    )
    run(capsys, "tiny/exp", "--scale=gpu", "--workdir=out", "--config.train.batch_rows=16")
    assert {(c.train.steps, c.train.batch_rows) for c in seen} == {(3, 16)}
    assert [(c.objective.name, c.seed) for c in seen[1:]] == [
        ("bc", 0), ("bc", 1), ("mle", 0), ("mle", 1),
    ]  # fmt: skip
