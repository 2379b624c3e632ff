"""Sweeps: the algebra of points, names, what is refused, and sweeps of tiny runs."""

import dataclasses
import json
import os
import re
import signal
import types
from pathlib import Path

import pytest

from reasoning_jax import main
from reasoning_jax.commands import runfolder
from reasoning_jax.commands import sweep as command
from reasoning_jax.commands import train as train_command
from reasoning_jax.commands.sweep import SweepRun
from reasoning_jax.config import ConfigError, default_config
from reasoning_jax.config_check import from_dict
from reasoning_jax.data.pipeline import SupervisedSource
from reasoning_jax.sweep import (
    NAME_LENGTH,
    SweepError,
    apply_point,
    chain,
    check_points,
    fixed,
    product,
    run_names,
    sweep,
    zip_,
)
from tests.small import tiny_run, with_a_step
from tests.test_main import MAX_LINES, TINY

A, B, C = sweep("a", (1, 2)), sweep("b", (3, 4, 5)), sweep("c", (6, 7))
RATE = "optimizer.learning_rate"


# The algebra.


def test_a_sweep_keeps_the_order_of_its_values():
    assert A == ({"a": 1}, {"a": 2})
    assert sweep("p", ([1, 2], (3,))) == ({"p": (1, 2)}, {"p": (3,)})
    assert sweep("a", range(3)) == sweep("a", (0, 1, 2))


def test_product_combines_all_and_the_last_varies_fastest():
    assert product(A, C) == (
        {"a": 1, "c": 6}, {"a": 1, "c": 7}, {"a": 2, "c": 6}, {"a": 2, "c": 7},
    )  # fmt: skip
    assert len(product(A, B, C)) == 12
    assert product(product(A, B), C) == product(A, product(B, C)) == product(A, B, C)
    assert product() == fixed({}) == ({},)
    assert product(A, fixed({})) == product(A) == A
    assert product(A, chain()) == ()


def test_chain_is_one_after_the_other():
    assert chain(chain(A, B), C) == chain(A, chain(B, C)) == (*A, *B, *C)
    assert chain(A, chain()) == A == chain(A)
    # From the right only: from the left the order of the points is another.
    assert product(chain(A, B), C) == chain(product(A, C), product(B, C))


def test_zip_is_strict():
    assert zip_(A, C) == ({"a": 1, "c": 6}, {"a": 2, "c": 7})
    assert zip_(A) == A
    for shorter in ((A, B), (B, A), (A, ())):
        with pytest.raises(SweepError, match=r"one length, got \[.*product"):
            zip_(*shorter)


def test_a_key_given_twice_must_agree():
    seed = fixed({"a": 1, "z": 0})
    assert product(fixed({"a": 1}), seed) == ({"a": 1, "z": 0},)
    for combine in (product, zip_):
        # 1, True and 1.0 are equal, and three values of a config.
        for other in (2, True, 1.0, (1,)):
            with pytest.raises(SweepError, match="a is given twice, as 1 and"):
                combine(fixed({"a": 1}), fixed({"a": other}))
    assert len(chain(fixed({"a": 1}), fixed({"a": 2}))) == 2


def test_points_are_copies():
    values = {"a": 1}
    point = fixed(values)
    values["a"] = 2
    assert point == ({"a": 1},)
    assert product(A, C)[0] is not A[0]
    product(A, C)[0]["a"] = 9
    assert A == ({"a": 1}, {"a": 2})


class Odd(float):
    """As numpy's float64: a float that no config takes."""


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: sweep("seed", ()), "needs a tuple of values"),
        (lambda: sweep("task.name", "countdown"), "needs a tuple of values, got 'countdown'"),
        (lambda: sweep("seed", 3), "needs a tuple of values, got 3"),
        (lambda: sweep(RATE, (Odd(0.1),)), r"learning_rate .*Odd.*convert it"),
        (lambda: sweep("a", ((1, {}),)), r"a must be .* tuple of these, got {}"),
        (lambda: sweep(3, (1,)), "key must be a string, got 3"),
        (lambda: sweep("arg", (3,)), '"arg" is the string given to get_config, got 3'),
        (lambda: check_points(()), "the sweep is empty"),
        (lambda: check_points({"seed": 1}), "must return a tuple of dicts"),
        (lambda: check_points(None), "must return a tuple of dicts, got None"),
        (lambda: check_points([("seed", 1)]), "a point of a sweep is a dict"),
        (lambda: check_points((*A, *C, *A)), "points 0 and 4 of the sweep are the same"),
        (lambda: check_points(({"a": 1, "b": 2}, {"b": 2, "a": 1})), "points 0 and 1"),
    ],
)
def test_what_is_no_sweep_is_refused(made, said):
    with pytest.raises(SweepError, match=said) as refused:
        made()
    assert len(str(refused.value).split("\n")) <= MAX_LINES


def test_equal_numbers_of_other_types_are_other_points():
    assert len(check_points(({"a": 1}, {"a": 1.0}, {"a": True}))) == 3


# Names.


def test_names_tell_what_varies():
    points = product(
        sweep("objective.name", ("bc", "mle")), sweep("seed", (0, 1)), fixed({"train.steps": 9})
    )
    assert run_names(points) == (
        "objective.name=bc,seed=0", "objective.name=bc,seed=1",
        "objective.name=mle,seed=0", "objective.name=mle,seed=1",
    )  # fmt: skip
    assert run_names(fixed({"seed": 3})) == ("seed=3",)
    assert run_names(({"a": 1}, {"a": 2, "k": None})) == ("a=1", "a=2,k=None")
    assert run_names(({}, {"seed": 3})) == ("run", "seed=3")
    assert run_names(sweep("arg", ("objective=bc", "", "objective=mle,seed=1"))) == (
        "objective=bc", "arg=", "objective=mle,seed=1",
    )  # fmt: skip
    values = (True, 1e-5, 0.5, (1, 4), None, "a b/../c:é", "-x")
    assert [name.removeprefix("k=") for name in run_names(sweep("k", values))] == [
        "true", "1e-05", "0.5", "1+4", "None", "a-b-..-c--", "-x",
    ]  # fmt: skip


HARD = (
    *sweep("k", ("a/b", "a:b", "a-b", "A-B", "", "../..", "é", "x" * 300, "x" * 299 + "y")),
    *({"k": "p", "l": "q"}, {"k": "p,l=q"}, {"k": 1}, {"k": 1.0}, {"k": True}, {"k": (1, 2)}),
    *({"k": "1+2"}, {}, {"arg": ".."}, {"arg": "-rf"}, {"arg": "a,seed=1"}),
    *({"arg": "a", "seed": 1}, {"_k": 0}, {"_k": 1}, {"k": "Q"}, {"k": "q"}),
)  # fmt: skip


def test_names_are_unique_folders_of_any_file_system():
    names = run_names(check_points(HARD))
    assert len({name.casefold() for name in names}) == len(HARD)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_=,.+-]*", name)
        assert len(name) <= NAME_LENGTH
    # Only those that need one have a hash; it is of the point, wherever that stands.
    assert names[HARD.index({"k": "p", "l": "q"})].startswith("k=p,l=q-")
    assert names[HARD.index({"k": (1, 2)})].startswith("k=1+2-")
    assert "_k=0" not in names
    assert "run_k=0" in names
    assert run_names(HARD[::-1]) == names[::-1]
    shuffled = tuple(dict(reversed(point.items())) for point in HARD)
    assert run_names(shuffled) == names


def test_a_hash_does_not_change_with_the_version():
    (name, _) = run_names(sweep("k", ("x" * 200, "y")))
    assert name == "k=" + "x" * 87 + "-" + name[-10:]
    assert name[-10:] == "1f9adda1bb"


def test_a_grown_sweep_keeps_its_names():
    old = sweep("seed", (0, 1))
    kept = run_names(old)
    grown = ({**old[0]}, {**old[1]}, {"seed": 0, RATE: 0.5}, {"seed": 2})
    assert run_names(grown, kept)[:2] == kept
    assert run_names(grown, kept)[2:] == (f"{RATE}=0.5,seed=0", "seed=2")
    # A new point whose name is taken by an old one, made when another key did not vary.
    both = ({"a": 1, "b": 1}, {"a": 2, "b": 1})
    assert run_names(both) == ("a=1", "a=2")
    after = run_names((*both, {"a": 1}), run_names(both))
    assert after[:2] == ("a=1", "a=2")
    assert re.fullmatch("a=1-[0-9a-f]{10}", after[2])


# Points meet configs.


def applied(point):
    config = default_config()
    config.task = {"name": "arithmetic", "max_digits": 2, "pool": None}
    config.lock()
    apply_point(config, point)
    return config


def test_a_point_sets_its_keys_and_no_other():
    point = {
        RATE: 1, "train.steps": 7, "vocab.backspace": False, "objective.name": "mle",
        "evaluate.pass_at_k": [1, 2], "task.max_digits": 3, "task.pool": "x", "arg": "seed=4",
        "optimizer.no_decay": (),
    }  # fmt: skip
    config = applied(point).to_dict()
    want = default_config().to_dict()
    want["task"] = {"name": "arithmetic", "max_digits": 3, "pool": "x"}
    want["optimizer"] |= {"learning_rate": 1.0, "no_decay": ()}
    want["train"]["steps"], want["vocab"]["backspace"] = 7, False
    want["objective"]["name"], want["evaluate"]["pass_at_k"] = "mle", (1, 2)
    assert config == want
    assert type(config["optimizer"]["learning_rate"]) is float


@pytest.mark.parametrize(
    ("point", "said"),
    [
        ({"train.stepz": 3}, "unknown key train.stepz; did you mean steps"),
        ({"trian.steps": 3}, "unknown key trian; did you mean train"),
        ({"task.max_digit": 3}, "unknown key task.max_digit; did you mean max_digits"),
        ({"seed.x": 3}, "unknown key seed.x; seed is a value"),
        ({"": 3}, "unknown key"),
        ({"train": 3}, "train is a section; set one of .*steps"),
        ({"seed": 1.0}, r"seed must be an int, got 1.0 \(float; .* is 0\); write 1"),
        ({"seed": True}, "seed must be an int, got True"),
        ({"seed": "1"}, "seed must be an int, got '1'"),
        ({"seed": None}, "seed must be an int, got None"),
        ({RATE: "0.1"}, "learning_rate must be a float, got '0.1'"),
        ({RATE: True}, "learning_rate must be a float, got True"),
        ({"vocab.backspace": 1}, "vocab.backspace must be true or false, got 1"),
        ({"objective.name": 1}, "objective.name must be a string, got 1"),
        ({"evaluate.pass_at_k": 1}, "pass_at_k must be a tuple, got 1"),
        ({"task.max_digits": "3"}, "task.max_digits must be an int"),
    ],
)
def test_points_obey_the_rules_of_overrides(point, said):
    with pytest.raises(SweepError, match=said):
        applied(point)


def tiny(arg=None):
    module = types.ModuleType("tiny")
    exec(TINY, module.__dict__)
    return module.get_config(arg or "")


def test_every_point_is_resolved_and_the_common_overrides_come_after(tmp_path):
    points = product(sweep("arg", ("objective=mle,seed=7", "objective=bc")), sweep(RATE, (1, 0.5)))
    runs = command.resolve(tiny, points, tmp_path, {"train.steps": 9, "noise.source": "random"})
    assert [run.name for run in runs] == list(run_names(points))
    assert [dict(run.overrides) for run in runs] == list(points)
    for run, (objective, noise, seed, rate) in zip(
        runs,
        [("mle", 0.0, 7, 1.0), ("mle", 0.0, 7, 0.5), ("bc", 0.1, 0, 1.0), ("bc", 0.1, 0, 0.5)],
        strict=True,
    ):
        want = tiny().to_dict()
        want["seed"], want["objective"]["name"], want["train"]["steps"] = seed, objective, 9
        want["noise"] |= {"rate": noise, "source": "random"}
        want["optimizer"]["learning_rate"] = rate
        assert run.config == from_dict(want)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("points", "common", "said"),
    [
        (sweep("seed", (0, -1)), {}, r"point 1 \(seed=-1\): seed must be >= 0"),
        (sweep("seed", (0, "x")), {}, r"point 1 \(seed=x\): seed must be an int, got 'x'"),
        (sweep("arg", ("", "sede=1")), {}, r"point 1 \(sede=1\): .*did you mean seed"),
        (sweep("train.steps", (3, 1)), {"optimizer.warmup_steps": 2}, r"point 1 .*warmup_steps"),
        (sweep("seed", (0, 1)), {"seed": 3}, "seed is swept, so --config.seed would undo"),
        (chain(A, sweep("seed", (0, 1))), {"seed": 3}, "seed is swept"),
        (sweep("arg", ("", "objective=bc,seed=0")), {}, r"points 0 and 1 .* make the same config"),
        ((), {}, "the sweep is empty"),
    ],
)  # fmt: skip
def test_one_bad_point_refuses_the_sweep(points, common, said, tmp_path):
    with pytest.raises(SweepError, match=said):
        command.resolve(tiny, points, tmp_path, common)


def test_the_sweep_of_the_documentation(tmp_path):
    text = (Path(__file__).parent.parent / "docs" / "sweeps.md").read_text()
    written = types.ModuleType("written")
    exec(re.search("```python\n(.*?)```", text, flags=re.DOTALL)[1], written.__dict__)
    runs = command.resolve(tiny, written.get_sweep(), tmp_path)
    assert f"`{runs[0].name}`" in text
    assert f"--array=0-{len(runs) - 1}\n" in text


# Files and runs.


def runs_of(*seeds, **sections):
    config = tiny_run(**{"train": {"steps": 2, "log_every_steps": 1}, **sections})
    return [SweepRun(f"seed={s}", dataclasses.replace(config, seed=s), {"seed": s}) for s in seeds]


@pytest.fixture
def trained(monkeypatch):
    """What would be trained, in order; codes to return may be put into `codes`."""
    calls = types.SimpleNamespace(runs=[], codes={})

    def train(config, workdir, overrides, quiet=False):
        calls.runs.append((config.seed, workdir.name, list(overrides), quiet))
        return calls.codes.get(config.seed, 0)

    monkeypatch.setattr(train_command, "train", train)
    return calls


def test_each_run_gets_its_folder_and_notes(tmp_path, trained):
    runs = runs_of(0, 1, 2)
    common = {"train.steps": 2}
    assert command.run_points(runs, tmp_path, common=common, quiet=True) == 0
    assert trained.runs == [
        (s, f"seed={s}", [f"seed={s}", "train.steps=2"], True) for s in (0, 1, 2)
    ]
    assert command.run_points(runs, tmp_path, index=1) == 0
    assert trained.runs[3:] == [(1, "seed=1", ["seed=1"], False)]
    saved = runfolder.read_json(tmp_path / "sweep.json")["runs"]
    assert [(r["name"], r["overrides"]) for r in saved] == [
        (f"seed={s}", {"seed": s}) for s in (0, 1, 2)
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["sweep.json"]


@pytest.mark.parametrize("code", [42, 4])
def test_a_code_that_is_not_0_stops_the_sweep_at_once(tmp_path, trained, code):
    trained.codes[1] = code
    assert command.run_points(runs_of(0, 1, 2), tmp_path) == code
    assert [seed for seed, *_ in trained.runs] == [0, 1]


def test_a_failing_run_is_named(tmp_path, monkeypatch, capsys):
    def train(*_):
        raise ConfigError("too long")

    monkeypatch.setattr(train_command, "train", train)
    with pytest.raises(ConfigError, match="too long"):
        command.run_points(runs_of(3, 4), tmp_path)
    assert capsys.readouterr().err == "run 0 (seed=3) failed\n"


@pytest.mark.parametrize("index", [-1, 2])
def test_an_index_outside_is_refused_with_the_range(tmp_path, trained, index):
    with pytest.raises(SweepError, match=f"index {index} .* 0 to 1"):
        command.run_points(runs_of(0, 1), tmp_path, index=index)
    assert (trained.runs, list(tmp_path.iterdir())) == ([], [])


@pytest.mark.parametrize(
    "name", ["", "..", ".x", "a/b", "/a", "-a", "a b", "a\n", "sweep.json", "é"]
)
def test_names_that_are_no_folders_are_refused(tmp_path, trained, name):
    runs = [SweepRun("fine", tiny_run()), SweepRun(name, tiny_run(seed=1))]
    with pytest.raises(SweepError, match="run 1 cannot have"):
        command.run_points(runs, tmp_path)
    assert trained.runs == []


def test_runs_without_names_of_their_own_are_refused(tmp_path):
    with pytest.raises(SweepError, match="runs 0 and 1 have one name: A"):
        command.check_sweep([SweepRun("a", tiny_run()), SweepRun("A", tiny_run(seed=1))], tmp_path)
    with pytest.raises(SweepError, match="no runs"):
        command.check_sweep([], tmp_path)


def test_an_index_keeps_its_meaning(tmp_path, trained):
    # Nothing was trained, so that it is still no sweep.
    assert command.run_points(runs_of(3), tmp_path) == 0
    assert command.run_points(runs_of(0, 1), tmp_path) == 0
    with_a_step(tmp_path / "seed=1")
    before = (tmp_path / "sweep.json").read_bytes()
    longer = runs_of(0, 1, train={"steps": 4, "log_every_steps": 2})
    refused = {
        "another order": (runs_of(1, 0), "another sweep: run 0 was seed=0"),
        "one before": (runs_of(2, 0, 1), "another sweep: run 0 was seed=0"),
        "shorter": (runs_of(0), "of 2 runs, now there are 1"),
        "another file": (runs_of(0, 1, noise={"rate": 0.3}), "the config of run 0 .* has changed"),
        "other batches": (
            runs_of(0, 1, train={"steps": 2, "batch_rows": 16}), "the config of run 0",
        ),
        "other names": ([r._replace(name=f"x{r.name}") for r in runs_of(0, 1)], "run 0 was seed=0"),
        "other points": ([r._replace(overrides={}) for r in runs_of(0, 1)], "run 0 was seed=0"),
    }  # fmt: skip
    count = len(trained.runs)
    for runs, said in refused.values():
        for act in (command.run_points, command.list_runs):
            with pytest.raises(SweepError, match=said):
                act(runs, tmp_path)
    assert len(trained.runs) == count
    assert (tmp_path / "sweep.json").read_bytes() == before
    # What a run may be continued with, and more runs at the end.
    assert command.run_points(longer, tmp_path) == 0
    assert (tmp_path / "sweep.json").read_bytes() == before
    assert command.run_points(runs_of(0, 1, 2), tmp_path, index=2) == 0
    assert len(runfolder.read_json(tmp_path / "sweep.json")["runs"]) == 3


def test_names_in_the_folder_are_kept_when_the_sweep_grows(tmp_path, trained):
    old = command.resolve(tiny, sweep("seed", (0, 1)), tmp_path)
    assert command.run_points(old, tmp_path) == 0
    with_a_step(tmp_path / "seed=0")
    points = chain(sweep("seed", (0, 1)), fixed({"seed": 1, RATE: 0.5}))
    grown = command.resolve(tiny, points, tmp_path)
    assert [r.name for r in grown] == ["seed=0", "seed=1", f"{RATE}=0.5,seed=1"]
    points = chain(points, sweep("noise.rate", (0.2, 0.3)))
    assert command.run_points(command.resolve(tiny, points, tmp_path), tmp_path, index=3) == 0
    assert trained.runs[-1][1] == "noise.rate=0.2"
    fewer = command.resolve(tiny, sweep("seed", (0, 1)), tmp_path)
    with pytest.raises(SweepError, match="of 5 runs, now there are 2"):
        command.check_sweep(fewer, tmp_path)


@pytest.mark.parametrize("text", ["[]", "{}", '{"runs": [3]}', '{"runs": [{"name": "a"}]}', "{"])
def test_a_damaged_sweep_file_is_named(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(ConfigError, match=r"sweep\.json"):
        command.check_sweep(runs_of(0), tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path, trained):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        command.run_points(runs_of(0), tmp_path / "file")
    assert trained.runs == []


def test_another_run_in_a_folder_is_found_before_any_starts(tmp_path, trained):
    runs = runs_of(0, 1)
    runfolder.write_json(tmp_path / "seed=1" / "config.json", {"seed": 5})
    with_a_step(tmp_path / "seed=1")
    with pytest.raises(ConfigError, match="another config"):
        command.run_points(runs, tmp_path)
    assert trained.runs == []
    assert command.run_points(runs, tmp_path, index=0) == 0


def test_a_run_is_finished_when_its_last_step_is_saved_and_evaluated(tmp_path):
    (run,) = runs_of(0)
    saved, metrics = tmp_path / "seed=0" / "checkpoints", tmp_path / "seed=0" / "metrics.jsonl"
    saved.mkdir(parents=True)
    row = {"step": 2, "split": "validation", "loss": 1.0}
    for name, rows, done in (
        ("1", [row], False),
        ("3.orbax-checkpoint-tmp", [row], False),
        ("2", [row], True),
        ("10", [{**row, "step": 10}], True),
        ("2", [], False),
        ("2", [{**row, "split": "train"}, {**row, "step": 1}], False),
        ("2", [{"step": 2, "split": "validation", "failed": "MemoryError: none left"}], False),
    ):
        (saved / name).mkdir()
        metrics.write_text("".join(json.dumps(r) + "\n" for r in rows))
        assert command.finished(tmp_path, run) is done, (name, rows)
        (saved / name).rmdir()
    assert not command.finished(tmp_path, run)


# Real runs.


def metrics(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "time"} for row in rows]


def kill_at(monkeypatch, owner, name, call):
    """SIGTERM to ourselves at one call of a method or function."""
    original, calls = getattr(owner, name), []

    def and_kill(*args):
        calls.append(args)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(owner, name, and_kill)


SWEEP = (
    TINY
    + """

from reasoning_jax.sweep import product, sweep


def get_sweep(arg=""):
    seeds = rc.parse_arg(arg, objective="bc", seed=0).seed
    return product(sweep("arg", ("objective=mle", "objective=bc")), sweep("seed", (seeds,)))
"""
)


def test_a_sweep_is_stopped_continued_and_left_alone(
    tmp_path, monkeypatch, capsys, quick_to_compile
):
    file, out = tmp_path / "x.py", tmp_path / "out"
    file.write_text(SWEEP)
    argv = ["reasoning-jax", "sweep", str(file), f"--workdir={out}", "--config.train.steps=3"]
    names = [f"objective={objective}" for objective in ("mle", "bc")]

    def states():
        capsys.readouterr()
        assert main.run([*argv, "--list"]) == 0
        return [line.split()[2] for line in capsys.readouterr().out.splitlines()]

    assert states() == ["-", "-"]
    assert not out.exists()
    with monkeypatch.context() as patch:
        kill_at(patch, SupervisedSource, "next", 2)
        assert main.run([*argv, "--all", "--quiet"]) == 42
    assert [p.name for p in sorted(out.iterdir())] == [names[0], "sweep.json"]
    assert states() == ["started", "-"]
    # The second comes by Slurm, and is stopped in its last step: an evaluation is left.
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    with monkeypatch.context() as patch:
        kill_at(patch, SupervisedSource, "next", 3)
        assert main.run(argv) == 42
    assert states() == ["started", "started"]
    assert main.run(argv) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"index 1 from SLURM_ARRAY_TASK_ID\nrun 1 of 2: {names[1]}\n")
    assert states() == ["started", "finished"]
    assert main.run([*argv, "--all"]) == 0
    said = capsys.readouterr().out
    assert "resumed from step 2" in said
    assert f"run 1 of 2: {names[1]} is finished" in said
    assert states() == ["finished", "finished"]
    when = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert main.run([*argv, "--all"]) == 0
    assert capsys.readouterr().out == f"nothing to do: finished already, in {out}\n"
    assert when == {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    overrides = runfolder.read_json(out / names[0] / "overrides.json")
    assert overrides == ["arg='objective=mle'", "seed=0", "train.steps=3"]
    # As `train` would have done it, never stopped.
    for name in names:
        alone = ["", "train", f"--config={file}:{name}", f"--workdir={tmp_path / name}", "--quiet"]
        assert main.run([*alone, "--config.train.steps=3"]) == 0
        assert metrics(tmp_path / name) == metrics(out / name)
    # More steps: none is finished any more.
    argv[-1] = "--config.train.steps=4"
    assert states() == ["started", "started"]


def test_a_signal_in_the_last_step_of_a_run_starts_no_other(
    tmp_path, monkeypatch, quick_to_compile
):
    runs, handler = runs_of(0, 1), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        kill_at(patch, SupervisedSource, "next", 2)
        assert command.run_points(runs, tmp_path, quiet=True) == 42
    assert (tmp_path / "seed=0" / "checkpoints" / "2").is_dir()
    assert not (tmp_path / "seed=1").exists()
    # While the second is put together: it saves its first step and stops. The first is evaluated.
    with monkeypatch.context() as patch:
        kill_at(patch, train_command, "assemble", 2)
        assert command.run_points(runs, tmp_path, quiet=True) == 42
    assert (tmp_path / "seed=1" / "checkpoints" / "1").is_dir()
    assert signal.getsignal(signal.SIGTERM) == handler
