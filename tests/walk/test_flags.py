"""Every flag of every command does its work. (The table is in `flags.py`.)"""

import contextlib
import io
import shlex

import jax
import pytest

from reasoning_jax import main
from reasoning_jax.tasks import make_task
from tests.walk import places as places_lib
from tests.walk.flags import FLAGS, OLD, Done
from tests.walk.keys import ARITHMETIC, PROSQA

_DEBUGGING = (
    "jax_debug_nans", "jax_check_tracer_leaks", "jax_debug_key_reuse", "jax_explain_cache_misses",
)  # fmt: skip
_STUDY = """

def get_sweep(arg=""):
    return ({{"arg": "gpu" if "gpu" in arg else "cpu", "seed": 1}},)


def get_study(scale):
    from reasoning_jax.report.study import Study

    return Study(title=f"Walk ({{scale}})", columns=(("exact_match", "exact match"),),
                 plotted=("exact_match",), paper=())
"""
_SWEEP = """

def get_sweep(arg=""):
    return ({"seed": 0}, {"seed": 1})
"""


@pytest.fixture(scope="module", params=[1, pytest.param(8, marks=pytest.mark.slow)])
def walked(request, tmp_path_factory, unoptimised):
    """A function from a line of the table to what it did, each run once; on one device or eight."""
    folder = tmp_path_factory.mktemp("flags")
    places = {"tmp": folder}
    more = {"optimizer.learning_rate": 0.5, "train.checkpoint_every_steps": 1}
    for name, base in (
        ("config", {**ARITHMETIC, **more, "lora.rank": 2, "sampling.temperature": 0.02}),
        ("thinking_config", {**PROSQA, **more, "latent.mode": "coconut", "latent.target":
                             "next_step", "latent.max_latent_stage": 1, "latent.stage_steps":
                             (1, 1), "latent.markers": False}),
        ("short", {**ARITHMETIC, "data.train_problems": 5}),
        ("graphs", {**PROSQA, "evaluate.problems": 50}),
    ):  # fmt: skip
        places[name] = places_lib.config_file(places, name, base)
    text = places["config"].read_text()
    (folder / "configs" / "walk").mkdir(parents=True)
    for name, path, added in (
        ("sweep", folder / "sweep.py", _SWEEP),
        ("experiment", folder / "configs" / "walk" / "exp.py", _STUDY.format()),
    ):
        path.write_text(text.replace("def get_config():", 'def get_config(arg=""):') + added)
        places[name] = path
    places["prompts"] = folder / "prompts.txt"
    places["prompts"].write_text("3+4=\n5+6=\n")
    for name in ("old", "old_too"):
        places[name] = folder / name
        places[name].mkdir()
        (places[name] / "config.json").write_text('{"model_type": "llama"}')
        (places[name] / "model.safetensors").write_bytes(OLD)
    dials = {k: v for k, v in PROSQA["task"].items() if k != "name"}
    posed = make_task(PROSQA["task"]["name"], **dials).problem(1, "validation").question
    places["question"] = shlex.quote(posed)
    done = {}

    def at(name):
        return places.setdefault(name, folder / name)

    class Named(dict):
        def __missing__(self, name):
            return at(name)

    def of(line):
        if line not in done:
            out, err = io.StringIO(), io.StringIO()
            before = {name: getattr(jax.config, name) for name in _DEBUGGING}
            try:
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                    code = main.run(["", *shlex.split(line.format_map(Named(places)))])
                debugging = jax.config.jax_debug_nans
            finally:
                for name, value in before.items():
                    jax.config.update(name, value)
            assert code == 0, f"{line}\n{err.getvalue()}"
            done[line] = Done(out.getvalue(), err.getvalue(), debugging, at, of)
        return done[line]

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        places_lib.use_devices(patch, request.param)
        for run, config in (("run", "config"), ("thinking", "thinking_config")):
            of(f"train --config={{{config}}} --workdir={{{run}}}")
        yield of


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_does_its_work(flag, walked):
    line, seen = FLAGS[flag]
    assert flag.split()[1] in line
    done = walked(line)
    assert seen(done), f"{line}\n{done.out}"


def test_every_flag_has_an_entry():
    known = {f"{name} --{flag}" for name, row in main._COMMANDS.items() for flag in row.takes}
    missing, gone = known - FLAGS.keys(), FLAGS.keys() - known
    assert not missing, (
        f"no test gives {', '.join(sorted(missing))}: add a line for each to FLAGS in "
        "tests/walk/flags.py, (a command line with the flag, how it is seen that it did its work)"
    )
    assert not gone, f"FLAGS in tests/walk/flags.py names flags that do not exist: {sorted(gone)}"
