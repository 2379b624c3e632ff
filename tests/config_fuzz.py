"""Command lines that must be refused, and ones that must be accepted: a seeded generator.

Keys, types and ranges come from the dataclasses and from the shipped config files, so that a new
key or file is covered as it is added. As a program, `python -m tests.config_fuzz BAD GOOD SEED`, it
runs so many of them in one process and prints what came out as JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import json
import math
import random
import sys
import tempfile
import time
import types
import typing
from collections import Counter
from pathlib import Path

from reasoning_jax import command_line, main
from reasoning_jax import config as C
from reasoning_jax.config_fields import flat
from reasoning_jax.tasks import TASKS, task_dials

CONFIGS = Path(__file__).parent.parent / "configs"
# jsonl.py reads a file of the user's when it is made.
FILES = sorted(path for path in CONFIGS.rglob("*.py") if path.stem != "jsonl")
MAX_LINES, MAX_SECONDS, MAX_CHARACTERS = 6, 2.0, 420


class Case(typing.NamedTuple):
    """A command line, what its refusal must say, and of which kind the mistake is."""

    kind: str
    argv: list[str]
    said: tuple[str, ...]


class Base(typing.NamedTuple):
    """A config file with an argument, its leaves by dotted name, and what its arguments are."""

    path: Path
    arg: str
    leaves: dict[str, typing.Any]
    arguments: dict[str, typing.Any]

    @property
    def config(self) -> str:
        return f"--config={self.path}" + (f":{self.arg}" if self.arg else "")


def typed_leaves(cls=C.Config, prefix=""):
    """{dotted key: (type, rules)} of every leaf outside `task`."""
    hints, found = typing.get_type_hints(cls), {}
    for f in dataclasses.fields(cls):
        kind = hints[f.name]
        if not dataclasses.is_dataclass(kind):
            found[prefix + f.name] = (kind, f.metadata)
        elif f.name != "task":
            found |= typed_leaves(kind, f"{prefix}{f.name}.")
    return found


LEAVES = typed_leaves()
# A file in which any value can be put anywhere, as somebody's own config file might.
BY_HAND = """
import json
import math
import numpy as np
from ml_collections import config_dict
from reasoning_jax import config as rc
VALUES = {
    "true": True, "false": False, "nan": math.nan, "inf": math.inf, "minus inf": -math.inf,
    "none": None, "text": "3", "list": [3], "dict": {"a": 1}, "float": 1.5, "whole float": 3.0,
    "int": 3, "negative": -7, "tuple": (1, "a"), "bytes": b"x", "numpy": np.float32(3),
    "huge": 10**400, "function": len, "set": {1},
}
def get_config(arg="{}"):
    config = rc.default_config().to_dict()
    for key, name in json.loads(arg).items():
        *sections, last = key.split(".")
        node = config
        for section in sections:
            node = node[section]
        node[last] = VALUES[name]
    return config_dict.ConfigDict(config)
"""
# Which of BY_HAND's values a type takes.
TAKEN = {
    int: {"int"}, float: {"int", "float", "whole float", "negative"}, bool: {"true", "false"},
    str: {"text"}, int | str: {"int"}, tuple[str, ...]: set(), tuple[int, ...]: {"list"},
}  # fmt: skip
HAND_VALUES = (
    "true", "false", "nan", "inf", "minus inf", "none", "text", "list", "dict", "float",
    "whole float", "tuple", "bytes", "numpy", "huge", "function", "set",
)  # fmt: skip


def bases() -> list[Base]:
    """Every shipped config file with each of its scales and with other arguments."""
    found = []
    for path in FILES:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        seen = {}
        parse = C.parse_arg

        def parse_arg(arg, _seen=seen, _parse=parse, **defaults):
            _seen.update(defaults)
            return _parse(arg, **defaults)

        C.parse_arg = parse_arg
        try:
            module.get_config()
            args = ["", *(f"scale={s}" for s in getattr(module, "SCALES", ()))]
            args += [f"mode={m}" for m in getattr(module, "MODES", ())]
            if "objective" in seen:
                args += [f"objective={o}" for o in ("bc", "sequencematch")]
            for arg in args:
                found.append(Base(path, arg, flat(module.get_config(arg)), dict(seen)))
        finally:
            C.parse_arg = parse
    return found


def typo(rng: random.Random, name: str, legal) -> str:
    """`name` with a slip of the pen, which makes it none of `legal`."""
    while True:
        at, letter = rng.randrange(len(name)), rng.choice("abcdefghijklmnopqrstuvwxyz_")
        wrong = rng.choice(
            (
                name[:at] + name[at + 1 :],
                name[:at] + letter + name[at:],
                name[:at] + letter + name[at + 1 :],
                name[:at] + name[at : at + 1] + name[at:],
                name[:at] + name[at : at + 2][::-1] + name[at + 2 :],
                name.replace("_", "-"),
                name.upper(),
                name + "s",
            )
        )
        if wrong and wrong not in legal and not wrong.startswith("-") and "=" not in wrong:
            return wrong


def legal_text(rng: random.Random, kind, rules) -> str:
    """A legal value, as text, of a number or a choice; a plausible one of the rest."""
    if rules.get("choices"):
        return rng.choice(rules["choices"])
    if kind is bool:
        return rng.choice(("true", "false", "True", "0"))
    if kind is int:
        low = rules["low"]
        return str(rng.randint(max(low, 1), max(low, 1) + 9))
    if kind is float:
        low = rules["low"] if rules.get("low") is not None else rules.get("above") or 0.0
        return repr(rng.uniform(low, low + 0.5) + 1e-3)
    return "x"


# --- Families of mistakes: each makes a Case of a base.


def key_typo(rng, base):
    key = rng.choice(list(base.leaves))
    parts = key.split(".")
    at = rng.randrange(len(parts))
    inside = {k.split(".")[at] for k in base.leaves if k.split(".")[:at] == parts[:at] and
              len(k.split(".")) > at}  # fmt: skip
    parts[at] = typo(rng, parts[at], inside)
    wrong = ".".join(parts)
    flag = rng.choice((f"--config.{wrong}=1", f"-config.{wrong}=1", f"--noconfig.{wrong}"))
    return [flag], ("unknown key " + ".".join(parts[: at + 1]), ("did you mean", "known: "))


def wrong_type(rng, base):
    key = rng.choice([k for k, (kind, r) in LEAVES.items() if kind is not str])
    kind, _ = LEAVES[key]
    wrong = {
        int: ("many", "1.5", "1e3", "True", "None", "(1,)", "", "3 4", "0.0", "nan", "--3", "1,2"),
        float: ("many", "None", "", "(1.0,)", "1..5", "1,5", "true", "0.1.2", "1e", "1 e5"),
        bool: ("maybe", "2", "None", "", "yes", "on", "-1", "1.0", "nan"),
        tuple[int, ...]: ("a", "(1,", "1.5", "1,b", "('a',)", "True", "None,", "{1:", "[1", "1;2"),
        tuple[str, ...]: ("1", "(1,2)", "('a',", "1.5,", "True", "('a', 1)", "(None,)"),
    }[kind]
    text = rng.choice(wrong)
    return [f"--config.{key}={text}"], (key, ("must be", "needs"), ("got",))


def out_of_range(rng, base):
    key = rng.choice([k for k, (kind, _) in LEAVES.items() if kind in (int, float)])
    kind, r = LEAVES[key]
    choices = []
    for bound, way in ((r.get("low"), -1), (r.get("high"), 1)):
        if bound is not None:
            far = rng.choice((1, 7, 10**6, 10**12))
            choices.append(int(bound) + way * far if kind is int else bound + way * far / 7)
    for bound, way in ((r.get("above"), -1), (r.get("below"), 1)):
        if bound is not None:
            choices += [float(bound), bound + way * rng.random()]
    if kind is int:
        choices += [2**31, -(2**31) - 1, 10**400]
    value = rng.choice(choices)
    rule = (f"{key} must be", ("nearest legal", "above", "below"))
    return [f"--config.{key}={value}"], rule


def not_finite(rng, base):
    key = rng.choice([k for k, (kind, _) in LEAVES.items() if kind is float])
    text = rng.choice(("nan", "inf", "-inf", "NaN", "Infinity", "1e999", "-1e400"))
    return [f"--config.{key}={text}"], (key, ("finite", "must be"))


def wrong_choice(rng, base):
    # Of `horizon`, one word or a number, the refusal has words of its own.
    keys = [k for k, (_, r) in LEAVES.items() if r.get("choices")]
    key = rng.choice([k for k in keys if k != "sequencematch.horizon"])
    choices = LEAVES[key][1]["choices"]
    near = rng.choice(choices)
    value = rng.choice((typo(rng, near, choices), "???", "", near + " "))
    if value in choices:
        value = "none_of_them"
    return [f"--config.{key}={value}"], (f"{key} must be one of", choices, "got", ("?", "known: "))


def wrong_division(rng, base):
    parts = rng.randint(2, 9)
    rows = parts * rng.randint(1, 20) + rng.randint(1, parts - 1)
    both = [f"--config.train.batch_rows={rows}"]
    family = rng.choice(("accumulate", "data", "fsdp", "heads", "tensor", "width"))
    if family == "accumulate":
        return [*both, f"--config.optimizer.accumulate={parts}"], ("accumulate", "nearest legal")
    if family in ("data", "fsdp"):
        argv = [*both, "--config.optimizer.accumulate=1", f"--config.mesh.{family}={parts}"]
        return argv, ("train.batch_rows", "nearest legal train.batch_rows: ")
    if base.leaves["weights.path"]:
        # The architecture is that of the file.
        return ["--config.model.n_heads=3"], ("model.n_heads", "weights.path")
    if family == "heads":
        n = rng.randint(3, 16)
        k = rng.choice([k for k in range(2, 40) if n % k])
        argv = [f"--config.model.n_heads={n}", f"--config.model.n_kv_heads={k}"]
        return argv, (f"n_kv_heads={k}", f"n_heads={n}", "nearest legal: ")
    sizes = ["--config.train.batch_rows=5040", "--config.optimizer.accumulate=1",
             "--config.replay.refresh_rollouts=0", "--config.mesh.data=1"]  # fmt: skip
    if family == "tensor":
        d_ff = parts * 8 + rng.randint(1, parts - 1)
        heads = [f"--config.model.{n}={parts}" for n in ("n_heads", "n_kv_heads")]
        argv = [*sizes, *heads, f"--config.model.d_ff={d_ff}", f"--config.mesh.tensor={parts}"]
        return argv, ("model.d_ff", "nearest legal mesh.tensor: ")
    width = parts * 8 + rng.randint(1, parts - 1)
    argv = [*sizes, f"--config.model.d_model={width}", f"--config.mesh.fsdp={parts}"]
    return argv, ("model.d_model", "mesh.fsdp", "nearest legal: ")


def lost_dashes(rng, base):
    key = rng.choice(list(LEAVES))
    value = legal_text(rng, *LEAVES[key])
    last = key.rpartition(".")[2]
    argv = rng.choice(
        (
            [f"config.{key}={value}"],
            [f"config.{key}", value],
            [f"{key}={value}"],
            [f"--{key}={value}"],
            [f"-{key}", value],
            [f"--{last}={value}"],
            [f"\u2014config.{key}={value}"],
            [f"\u2013\u2013config.{key}={value}"],
            [f"--Config.{key}={value}"],
            [f"--config,{key}={value}"],
            [f"--config {key}={value}"],
            [f"--config/{key}={value}"],
        )
    )
    if f"--{last}" in {f"--{f}" for f in command_line.flag_names()} and argv[0].startswith("-"):
        argv = [f"config.{key}={value}"]
    return argv, (("unexpected argument", "unknown flag"), ("did you mean", "known: "), last[:9])


def missing_file(rng, base):
    kind = rng.choice(("config", "jsonl", "tfds", "text", "tokenizer", "weights", "validation"))
    name = rng.choice(("none", "/none/such", "configs", "a\u00e9", "x" * 300, "../none")) + "_"
    if kind == "config":
        stem = base.path.with_name(typo(rng, base.path.stem, ()) + ".py")
        while stem.exists():
            stem = stem.with_name("x" + stem.name)
        return ["!", f"--config={stem}"], ("there is no such file", str(stem)[:60])
    argv = {
        "jsonl": ["--config.data.source=jsonl", f"--config.data.path={name}"],
        "tfds": ["--config.data.source=tfds", f"--config.data.path={name}"],
        "text": ["--config.data.source=text", f"--config.data.path={name}"],
        "validation": ["--config.data.source=jsonl", f"--config.data.path={base.path}",
                       f"--config.data.validation_path={name}"],
        "tokenizer": ["--config.vocab.kind=tokenizer", f"--config.vocab.path={name}"],
        "weights": [f"--config.weights.path={name}", "--config.vocab.kind=weights"],
    }[kind]  # fmt: skip
    key = {"tokenizer": "vocab.path", "weights": "weights.path", "validation": "validation_path"}
    # From the plain defaults, so that nothing else stands in the way.
    return ["plain", *argv], (key.get(kind, "data.path"), "there is no such")


def unknown_task(rng, base):
    name = rng.choice((typo(rng, rng.choice([*TASKS]), TASKS), "chess", "", "Countdown"))
    return [f"--config.task.name={name}"], ("task", ("Did you mean", "The tasks: ", "no dial"))


def unknown_dial(rng, base):
    dials = [k for k in base.leaves if k.startswith("task.") and k != "task.name"]
    dials = dials or ["task.some_dial"]
    wrong = typo(rng, rng.choice(dials).removeprefix("task."), task_dials(base.leaves["task.name"]))
    return [f"--config.task.{wrong}=1"], (f"unknown key task.{wrong}", ("did you mean", "known"))


def wrong_dial(rng, base):
    dials = {
        k: v for k, v in base.leaves.items()
        if k.startswith("task.") and type(v) in (int, float, bool)
    }  # fmt: skip
    if not dials:
        return unknown_dial(rng, base)
    key = rng.choice(list(dials))
    texts = {int: ("-1", "1.5", "x", "True", "9" * 18), float: ("-1.0", "x", "nan", "1e9"),
             bool: ("maybe", "2", "None")}  # fmt: skip
    text = rng.choice(texts[type(dials[key])])
    return [f"--config.{key}={text}"], (key.removeprefix("task."), ("must", "above", "needs"))


def wrong_argument(rng, base):
    name, default = rng.choice(list(base.arguments.items()))
    kind = type(default)
    choice = rng.randrange(3)
    if choice == 0 or (kind is str and name in ("weights", "source", "edges", "form")):
        wrong = typo(rng, name, base.arguments)
        return ["!", f"--config={base.path}:{wrong}=1"], (repr(wrong), ("did you mean", "known: "))
    if choice == 1 and kind is not bool:
        return ["!", f"--config={base.path}:{name}"], (name, "needs a value")
    text = {int: ("x", "1.5", "", "1e3", "True"), float: ("x", "", "0,5", "1..2"),
            bool: ("maybe", "", "2"), str: ("none_of_them", "", "CPU")}[kind]  # fmt: skip
    value = rng.choice(text)
    return ["!", f"--config={base.path}:{name}={value}"], (
        (name, "sequencematch"), ("must be", "needs", "no such", "is unknown"),
    )  # fmt: skip


def by_hand(rng, base):
    key = rng.choice(list(LEAVES))
    kind, rules = LEAVES[key]
    value = rng.choice([v for v in HAND_VALUES if v not in TAKEN[kind]])
    if rules.get("choices"):
        value = rng.choice(HAND_VALUES)
    return ["hand", key, value], (key, "must be")


def by_hand_section(rng, base):
    section = rng.choice([*{k.partition(".")[0] for k in LEAVES if "." in k}, "task"])
    value = rng.choice([v for v in HAND_VALUES if v != "dict"] if section != "task" else
                       ["none", "text", "list", "float", "true", "function"])  # fmt: skip
    if rng.random() < 0.5:
        wrong = typo(rng, section, {k.partition(".")[0] for k in LEAVES} | {"task"})
        return ["hand", wrong, value], ("unknown key", ("did you mean", "known: "))
    return ["hand", section, value], (section, "must be a section")


def wrong_flag(rng, base):
    name = rng.choice(command_line.flag_names())
    legal = {*command_line.flag_names(), "config"}
    wrong = typo(rng, name, legal | {f"no{n}" for n in legal})
    argv = rng.choice(([f"--{wrong}"], [f"--{wrong}=3"], [f"-{wrong}", "3"], ["--undefok=x", "--x"],
                       ["--flagfile=/etc/passwd"], ["--nodebug=1"], ["--quiet=perhaps"],
                       ["--workdir", "--quiet"], ["--workdir"], ["--config.data.path", "--quiet"],
                       ["--config.seed"], ["--checkpoint=3"], ["--index=1"], ["stray"],
                       ["--", "--config.seed=3"], ["-"],
                       ["--config.seed=3", "--", "x"]))  # fmt: skip
    return argv, ()


def wrong_command(rng, base):
    commands = main.commands()
    wrong = typo(rng, rng.choice(commands), {*commands, "help"})
    return ["command", wrong], (repr(wrong), ("did you mean", "known: "))


FAMILIES = (
    key_typo, wrong_type, out_of_range, not_finite, wrong_choice, wrong_division, lost_dashes,
    missing_file, unknown_task, unknown_dial, wrong_dial, wrong_argument, by_hand,
    by_hand_section, wrong_flag, wrong_command,
)  # fmt: skip


def bad_cases(count: int, seed: int, folder: Path):
    """`count` command lines, each wrong in one way; files of theirs are put into `folder`."""
    rng, some = random.Random(f"bad {seed}"), bases()
    hand, plain = folder / "by_hand.py", folder / "plain.py"
    hand.write_text(BY_HAND)
    plain.write_text("from reasoning_jax.config import default_config as get_config\n")
    for i in range(count):
        family, base = FAMILIES[i % len(FAMILIES)], rng.choice(some)
        extra, said = family(rng, base)
        argv = ["train", base.config, f"--workdir={folder / 'run'}"]
        if base.leaves["data.source"] == "text" and base.path.stem == "text":
            argv.append(f"--config.data.path={CONFIGS}")
        if extra[0] == "!":
            argv[1:2] = extra[1:]
        elif extra[0] == "hand":
            argv = ["train", f"--config={hand}:" + json.dumps({extra[1]: extra[2]})]
        elif extra[0] == "plain":
            argv = ["train", f"--config={plain}", f"--workdir={folder / 'run'}", *extra[1:]]
        elif extra[0] == "command":
            argv[0] = extra[1]
        else:
            argv += extra
        yield Case(family.__name__, argv, said)


def good_cases(count: int, seed: int):
    """(command line, {key: value}): legal changes of shipped configs, and what they must give."""
    rng, some = random.Random(f"good {seed}"), bases()
    for _ in range(count):
        base, argv, wanted = rng.choice(some), [], {}
        for key in rng.sample(list(INDEPENDENT), rng.randint(0, 5)):
            kind, rules = LEAVES[key]
            value = legal(rng, kind, rules)
            wanted[key] = value
            argv += spelt(rng, key, value)
        if base.leaves["data.source"] == "text":
            argv.append(f"--config.data.path={CONFIGS}")
        rng.shuffle(argv := list(grouped(argv)))
        flags = [word for group in argv for word in group]
        where = rng.randint(0, len(argv))
        flags = [w for group in argv[:where] for w in group]
        flags += ["--print_config"] + [w for group in argv[where:] for w in group]
        yield ["train", base.config, *flags], wanted


def grouped(words):
    """Flags with their values behind them."""
    group = []
    for word in words:
        if word.startswith("-") and "onfig." in word and group:
            yield group
            group = []
        group.append(word)
    if group:
        yield group


# Keys that no rule ties to others in a shipped config. A new key is here until it is taken out.
TIED = {
    "model.d_model", "model.n_heads", "model.n_kv_heads", "model.head_dim", "model.d_ff",
    "model.rope_low_frequency", "model.rope_high_frequency", "weights.path", "vocab.kind",
    "weights.backspace_probability", "weights.latent_rows", "vocab.path", "vocab.backspace",
    "vocab.latent", "data.source", "data.path", "data.validation_path", "data.window_chars",
    "data.reshuffle_edges", "data.columns",
    "data.pack_examples", "data.with_steps", "noise.rate", "objective.name", "objective.layout",
    "objective.p2_rows", "objective.unlikelihood_weight", "optimizer.accumulate",
    "optimizer.warmup_steps", "optimizer.freeze", "train.batch_rows", "train.steps", "lora.rank",
    "lora.train_also", "mesh.data", "mesh.fsdp", "mesh.tensor", "sampling.method",
    "sampling.max_actions", "evaluate.pass_at_k", "evaluate.samples_per_problem",
    "evaluate.corrupt_also", "evaluate.corrupt_tokens", "evaluate.thoughts", "data.seq_len",
    "sampling.contrastive_candidates", "sampling.contrastive_penalty", "evaluate.prompt_tokens",
    "optimizer.decay_fraction", "optimizer.final_fraction", "model.attention", "lora.alpha",
    "lora.targets", "optimizer.warmup_fraction", "optimizer.schedule", "optimizer.name",
    "evaluate.thought_controls", "evaluate.mauve", "evaluate.feature_weights",
}  # fmt: skip
_TIED_SECTIONS = ("sequencematch.", "replay.", "latent.")
INDEPENDENT = [
    key for key in LEAVES
    if key not in TIED and not key.startswith(_TIED_SECTIONS)
    and (not key.startswith("model.") or key.removeprefix("model.") in C.COMPUTE_FIELDS)
]  # fmt: skip


def legal(rng, kind, rules):
    if rules.get("choices"):
        return rng.choice(rules["choices"])
    if kind is bool:
        return rng.random() < 0.5
    if kind is int:
        return rng.choice((rules["low"], rules["high"], rng.randint(rules["low"], rules["high"])))
    if kind is float:
        low = rules["low"] if rules.get("low") is not None else rules["above"]
        high = rules["high"] if rules.get("high") is not None else rules.get("below") or low + 9.0
        return rng.uniform(low, high) * 0.999 + (high - low) * 5e-4
    if kind is str:
        return rng.choice(("", "text", "a b", "=", "\u00e9", "-x", "true", "3"))
    if kind == tuple[str, ...]:
        return rng.choice(((), ("a",), ("a", "norm|bias")))
    return rng.choice(((1,), (1, 2)))


def spelt(rng, key, value):
    """One of the ways to write an override."""
    if isinstance(value, bool):
        ways = [[f"--config.{key}={str(value).lower()}"], [f"--config.{key}={int(value)}"],
                [f"--config.{key}={value}"],
                [f"--config.{key}"] if value else [f"--noconfig.{key}"]]  # fmt: skip
    elif isinstance(value, str) and not value.startswith("-"):
        ways = [[f"--config.{key}={value}"], [f"--config.{key}", value], [f"-config.{key}={value}"]]
    else:
        ways = [[f"--config.{key}={value}"]]
        if not isinstance(value, str):
            ways.append([f"-config.{key}", f"{value}"])
    return rng.choice(ways)


# --- Running them.


def run_here(argv: list[str]) -> tuple[object, str, str, float]:
    """(exit code or error, stdout, stderr, seconds) of a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    began = time.perf_counter()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main.run(["reasoning-jax", *argv])
    except BaseException as error:
        code = repr(error)
    return code, out.getvalue(), err.getvalue(), time.perf_counter() - began


def fault_of(case: Case, code, out: str, err: str, seconds: float) -> str | None:
    """What is wrong with the answer to a bad command line; None if nothing is."""
    lines = err.strip().split("\n")
    if code != 2:
        return f"exit code {code}"
    if out or not err.startswith("error: ") or "Traceback" in err:
        return "not one error on stderr"
    if len(lines) > MAX_LINES or max(map(len, lines)) > MAX_CHARACTERS:
        return f"{len(lines)} lines of up to {max(map(len, lines))} characters"
    if seconds > MAX_SECONDS:
        return f"{seconds:.2f} s"
    for words in case.said:
        if not any(word in err for word in ((words,) if isinstance(words, str) else words)):
            return f"does not say {words!r}"
    return None


def backend_started() -> bool:
    if "jax" not in sys.modules:
        return False
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()


def survey(bad: int, good: int, seed: int) -> dict[str, object]:
    """Run so many of each; what came out."""
    faults, kinds, spent = [], Counter(), []
    # What should have been refused goes no further.
    sys.modules["reasoning_jax.commands.train"] = reached = types.ModuleType("train")
    reached.train = reached.dry_run = lambda *_: "accepted"
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name)
        for case in bad_cases(bad, seed, folder):
            answer = run_here(case.argv)
            spent.append(answer[3])
            fault = fault_of(case, *answer)
            if fault is None and backend_started():
                fault = "a backend was started"
            kinds[case.kind] += fault is None
            if fault:
                faults.append([case.kind, fault, case.argv, answer[2][:500]])
        left = sorted(p.name for p in folder.iterdir() if p.name not in ("by_hand.py", "plain.py"))
        accepted = 0
        for argv, wanted in good_cases(good, seed):
            code, out, err, _ = run_here(argv)
            got = flat(json.loads(out)) if code == 0 else {}
            want = {k: list(v) if isinstance(v, tuple) else v for k, v in wanted.items()}
            off = {k: (got.get(k), v) for k, v in want.items() if not _same(got.get(k), v)}
            if code != 0 or off:
                faults.append(["good", f"exit code {code}, {off}", argv, err[:500]])
            accepted += code == 0 and not off
    spent.sort()
    return {
        "refused": sum(kinds.values()), "of_bad": bad, "kinds": dict(kinds),
        "accepted": accepted, "of_good": good, "left_behind": left, "faults": faults,
        "slowest_s": max(spent, default=0.0),
        "jax_imported": "jax" in sys.modules, "backend_started": backend_started(),
    }  # fmt: skip


def _same(got, want) -> bool:
    if isinstance(want, float) and isinstance(got, float):
        return math.isclose(got, want, rel_tol=1e-12)
    return got == want and type(got) is type(want)


if __name__ == "__main__":
    print(json.dumps(survey(*map(int, sys.argv[1:4]))))
