"""`--config=FILE:ARG` with whatever a path may hold: separators inside values are no separators."""

import random

import pytest

from reasoning_jax import config_file, main
from reasoning_jax.config import ConfigError, parse_arg

# What a name in a Linux file system may hold, separators of ours among it.
ALPHABET = ",=:,=:@'\" []*?{}%#\\-_.ab1日é$~&;|<>()!^`\t\n"
# Names that our own commands give to folders.
OURS = (
    "lr=0.1,seed=0", "objective=bc,optimizer.learning_rate=0.001,seed=0", "steps=3", "a,b",
    "x,seed", "12:30", "run@5", "a=b", ",", "=", ":", "seed=0,", "'q'", '"q"',
    "weights=x,steps=3", " ", "~",
)  # fmt: skip
CONFIG = """
from reasoning_jax import config as rc


def get_config(arg=""):
    arg = rc.parse_arg(arg, weights="", seed=0, steps=6, fast=False)
    config = rc.default_config()
    config.weights.path, config.seed, config.train.steps = arg.weights, arg.seed, arg.steps
    config.vocab.kind = "weights"
    return config
"""


def names(count, seed):
    rng = random.Random(seed)
    yield from OURS
    for _ in range(count):
        yield "".join(rng.choice(ALPHABET) for _ in range(rng.randint(1, 24)))


def arguments(text):
    return dict(parse_arg(text, weights="", seed=7, steps=6, fast=False))


def taken(text):
    """(arguments, what was said against them), one of them None."""
    try:
        return arguments(text), None
    except ConfigError as error:
        return None, str(error)


def test_any_path_that_is_there_comes_through_an_argument(tmp_path, monkeypatch):
    """Catches: a split at a comma or a sign of equality that is a part of the path."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(names(400, 0)):
        if name in (".", ".."):
            continue
        path = tmp_path / str(i) / name
        path.mkdir(parents=True)
        for text in (str(path), str(path.relative_to(tmp_path))):
            got = arguments(f"weights={text}")
            assert got == {"weights": text, "seed": 7, "steps": 6, "fast": False}
            got = arguments(f"seed=3,weights={text},fast,steps=9")
            assert got == {"weights": text, "seed": 3, "steps": 9, "fast": True}, name


def test_a_path_that_is_not_there_comes_through_unless_it_holds_an_argument():
    for name in names(400, 1):
        got, said = taken(f"steps=5,weights=no/{name}")
        if got is None:
            # Told, and how to write it.
            assert "quotes around" in said or "must be" in said, name
            continue
        held = [n for n in ("seed", "steps", "fast") if f",{n}" in name]
        assert got["weights"] == f"no/{name}" or held
    assert arguments("weights=T/lr=0.1,rate=3")["weights"] == "T/lr=0.1,rate=3"
    # The name of an argument begins it, where no path says otherwise.
    assert arguments("weights=T/lr=0.1,seed=0") == {
        "weights": "T/lr=0.1", "seed": 0, "steps": 6, "fast": False,
    }  # fmt: skip


def test_quotes_settle_what_is_meant():
    quoted = arguments("""weights='T/lr=0.1,seed=0',seed=3""")
    assert (quoted["weights"], quoted["seed"]) == ("T/lr=0.1,seed=0", 3)
    assert arguments('weights="a,seed=1"')["weights"] == "a,seed=1"
    assert arguments("weights='it''s',seed=1")["weights"] == "it''s"
    assert arguments("weights='")["weights"] == "'"


def test_two_paths_that_an_argument_may_mean_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "a,seed=0"):
        (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=r"may be a or a,seed=0.*quotes"):
        arguments("weights=a,seed=0")
    assert arguments("weights='a',seed=0")["weights"] == "a"
    assert arguments("weights='a,seed=0'")["weights"] == "a,seed=0"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sede=1", ["'sede'", "did you mean seed?"]),
        ("weights=x,sede=1", ["'sede'", "did you mean seed?", "quotes"]),
        ("seed=1,2", ["'2'"]),
        ("seed=1,rate=2", ["'rate'"]),
        ("seed", ["seed needs a value"]),
        ("weights", ["weights needs a value"]),
        ("fast=perhaps", ["true or false"]),
    ],
)
def test_what_is_no_argument_is_refused(text, words):
    with pytest.raises(ConfigError) as error:
        arguments(text)
    for word in words:
        assert word in str(error.value)


def test_any_config_file_is_found_with_and_without_an_argument(tmp_path, monkeypatch):
    """Catches: a file whose path is cut at its first colon."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(names(150, 2)):
        if name in (".", ".."):
            continue
        file = tmp_path / str(i) / name / "c.py"
        file.parent.mkdir(parents=True)
        file.write_text(CONFIG)
        for text in (str(file), str(file.relative_to(tmp_path))):
            assert config_file.split(text) == (text, None)
            assert config_file.split(f"{text}:") == (text, "")
            for arg in ("seed=3", "weights=a:b/c.py", "weights=x=1,y:2"):
                assert config_file.split(f"{text}:{arg}") == (text, arg)
    # Of two files the longer one.
    (tmp_path / "a").write_text("")
    (tmp_path / "a:b").write_text("")
    assert config_file.split("a:b") == ("a:b", None)
    assert config_file.split("a:c") == ("a", "c")


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("none.py:seed=3", ("none.py", "seed=3")),
        ("no:ne.py", ("no:ne.py", None)),
        ("no:ne.py:seed=3", ("no:ne.py", "seed=3")),
        ("none.py:weights=x.py", ("none.py", "weights=x.py")),
        ("none:seed=3", ("none", "seed=3")),
        ("", ("", None)),
        ("\0:a", ("\0", "a")),
    ],
)
def test_a_file_that_is_not_there_is_named_by_itself(value, wanted):
    assert config_file.split(value) == wanted


def test_a_command_reads_such_names(tmp_path, monkeypatch, capsys):
    """A config under a name with a colon, its argument a folder of one of our sweeps; run folders
    with such names as bare words.
    """
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cfg 12:30"
    folder.mkdir()
    (folder / "c.py").write_text(CONFIG)
    (tmp_path / "T" / "lr=0.1,seed=0").mkdir(parents=True)
    line = "cfg 12:30/c.py:weights=T/lr=0.1,seed=0,steps=9"
    for argument in ([line], [f"--config={line}"], ["--config", line]):
        assert main.run(["", "train", *argument, "--print_config"]) == 0
        out = capsys.readouterr().out
        assert '"path": "T/lr=0.1,seed=0"' in out
        assert '"steps": 9' in out
    assert main.run(["", "config", "show", line]) == 2
    assert "T/lr=0.1,seed=0" in capsys.readouterr().err
