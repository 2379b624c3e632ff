"""Flags of all commands: which there are, which a command heeds, and what is wrong with a line.

Parses and checks; runs no command. Whatever is wrong is a UsageError in words of our own.
"""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags import tuple_parser

from reasoning_jax.config import Config, to_dict
from reasoning_jax.config_fields import SHOWN, flat, int_hint, nearest_key, show
from reasoning_jax.config_file import load_config_file
from reasoning_jax.exit_codes import UsageError, exit_code, first_lines

USAGE = "usage: reasoning-jax COMMAND [--config=FILE[:ARG]] [--workdir=DIR] [--config.a.b=value]"
# As config_flags finds them.
_OVERRIDE = re.compile(r"--?(no)?config\.")
_FLAG = re.compile(r"--?[^-]")
_SAVED_CONFIG = Path(__file__).parent / "commands" / "saved_config.py"


class Command(NamedTuple):
    """A command: its line of help, the flags that it heeds, and what it does.

    words: how many words may stand beside flags; None for any number.
    of_run: without --config, the config is the one that the run in --workdir was started with.
    config_word: what makes a --config of the word behind the command, where that is taken.
    """

    what: str
    takes: tuple[str, ...]
    run: Callable[[flags.FlagValues, list[str]], int]
    words: int | None = 0
    of_run: bool = False
    config_word: Callable[[str], object] | None = None


# Each flag of any command: name, kind, what it says in the help. Numbers have a lower bound.
_STRINGS = {
    "workdir": "Folder of the run.",
    "prompt": "sample: the text to continue; probe: a question to draw the tree of.",
    "prompt_file": "sample: a file with one prompt a line.",
    "faults": "train, replay: what goes wrong and when, as kill@save:4 (for tests).",
    "scale": "reproduce: smoke, cpu, gpu or paper.",
    "out": "report: the HTML file; evaluate, data, export, probe, replay: the folder.",
}
_SWITCHES = {
    "print_config": "Print the resolved config as JSON and stop.",
    "explain": "Print how the batch divides and where each value is from; start no backend.",
    "dry_run": "Print shapes, memory and batch tree on these devices; allocate nothing.",
    "debug": "Checks for NaN, leaked tracers, reused keys; explains recompilation.",
    "quiet": "No progress lines.",
    "all": "sweep: every run, one after the other.",
    "list": "sweep: print the runs and train none.",
}
_NUMBERS: dict[str, tuple[int | None, int | None, str]] = {
    "checkpoint": (None, 0, "Step to load; the newest by default."),
    "problem": (None, 0, "probe: the problem of the split to draw the tree of; 0 by default."),
    "problems": (None, 1, "probe, data shortcuts: how many; evaluate.problems by default."),
    "index": (None, None, "sweep: the run to train, from 0."),
    "step": (None, 1, "replay: the step to compute once more."),
    "samples": (1, 1, "sample: completions a prompt."),
}


def parse(argv: list[str], command: Command) -> tuple[flags.FlagValues, list[str]]:
    """The flags of `argv` (program, command, arguments), and the words among them.

    Raises:
      UsageError, ConfigError
    """
    name, arguments = argv[1], [argv[0], *argv[2:]]
    if not any(a.split("=")[0] in ("--config", "-config") for a in argv[2:]):
        workdir = _value_of(argv, "workdir")
        if command.of_run and workdir is not None:
            # Before the overrides: --config.a.b applies to the run's own config.
            arguments.insert(1, f"--config={_SAVED_CONFIG}:{workdir}")
        if command.config_word and argv[2:] and argv[2][:1] not in ("", "-"):
            arguments[1] = f"--config={command.config_word(argv[2])}"
    leaves = _check_overrides(arguments)
    known = _define_flags(arguments)
    _check_flags(arguments, known, leaves, command)
    # Libraries read their own flags, of which we offer none.
    flags.FLAGS.mark_as_parsed()
    try:
        rest = known(arguments)[1:]
    except flags.Error as error:
        raise UsageError(f"{first_lines(error)}\n{USAGE}") from None
    except Exception as error:
        if exit_code(error) is not None:
            raise
        raise UsageError(f"the config cannot be read: {first_lines(error)}") from None
    for flag in known:
        if known[flag].present and flag.split(".")[0] not in command.takes:
            takes = " ".join(f"--{taken}" for taken in command.takes) or "no flags"
            raise UsageError(f"{name} does not take --{flag}; it takes {takes}")
    if command.words is not None and len(rest) > command.words:
        extra = rest[command.words]
        hint = _meant_by_word(extra, arguments, known, leaves)
        if name == "sweep" and not hint:
            hint = "; there is one CONFIG, right after the command or as --config=CONFIG"
        raise UsageError(f"unexpected argument {show(extra)}{hint}\n{USAGE}")
    return known, rest


def _define_flags(arguments: Sequence[str]) -> flags.FlagValues:
    """Fresh flags, so that one process can run several command lines."""
    known = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "Python file with get_config(arg).",
        flag_values=known, lock_config=True, sys_argv=list(arguments),
    )  # fmt: skip
    for name, what in _STRINGS.items():
        flags.DEFINE_string(name, None, what, flag_values=known)
    for name, what in _SWITCHES.items():
        flags.DEFINE_bool(name, False, what, flag_values=known)
    for name, (default, low, what) in _NUMBERS.items():
        flags.DEFINE_integer(name, default, what, lower_bound=low, flag_values=known)
    return known


def _check_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Refuse a bad config file, unknown keys and ill-typed values in words of our own.

    config_flags finds them too, but reports them as tracebacks or without the key. Returns
    the keys that can be set with what the file gives them.
    """
    file = _value_of(arguments, "config")
    given = [a for a in arguments if _OVERRIDE.match(a)]
    if file is None:
        if given:
            raise UsageError(f"--{show(given[0].lstrip('-'))[1:-1]} needs --config=FILE before it")
        return flat(to_dict(Config()))
    config = load_config_file(file)
    leaves = flat(config)
    for argument in given:
        flag, equals, text = argument.lstrip("-").partition("=")
        node: Any = config
        names = flag.split(".")[1:]
        for i, name in enumerate(names):
            if not hasattr(node, "keys") or name not in node:
                raise _unknown_key(names, i, node, leaves)
            node = node[name]
        key = ".".join(names)
        if flag.startswith("no") and (equals or not isinstance(node, bool)):
            raise UsageError(f"--{flag} is for true or false; write --config.{key}=VALUE")
        _check_override_type(key, node, text if equals else None)
    return leaves


def _unknown_key(names: list[str], at: int, node: Any, leaves: Mapping[str, Any]) -> UsageError:
    """The refusal of a dotted name whose part `at` is not in `node`."""
    name, wrong = names[at], show(".".join(names[: at + 1]))[1:-1]
    if not hasattr(node, "keys"):
        inside = ".".join(names[:at])
        return UsageError(f"unknown key {wrong}; {inside} is a value, set it by --config.{inside}=")
    siblings = list(node.keys())
    near = difflib.get_close_matches(name[:SHOWN], siblings, n=1, cutoff=0.75)
    if not near and (key := nearest_key(".".join(names), leaves)):
        near = [f"--config.{key}"]
    near = near or difflib.get_close_matches(name[:SHOWN], siblings, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(siblings)}"
    return UsageError(f"unknown key {wrong}; {hint}")


def _check_flags(
    arguments: Sequence[str], known: flags.FlagValues, leaves: Mapping[str, Any], command: Command
) -> None:
    """Refuse flags that there are not, and a flag that would be swallowed as another's value."""
    previous = ""
    for argument in arguments[1:]:
        if argument == "--":
            return
        name, equals, _ = argument.lstrip("-").partition("=")
        is_flag = argument.startswith("-") and (name in known or bool(_OVERRIDE.match(argument)))
        if previous and is_flag:
            raise UsageError(f"--{previous} needs a value; got the flag {show(argument)} behind it")
        if previous or not _FLAG.match(argument):
            previous = ""
            continue
        if not is_flag and not (name.startswith("no") and name[2:] in _SWITCHES):
            raise UsageError(
                f"unknown flag --{show(name)[1:-1]}{_meant_by_flag(name, leaves, command)}\n{USAGE}"
            )
        takes_value = not equals and not _is_switch(name, leaves)
        previous = name if takes_value else ""


def _is_switch(name: str, leaves: Mapping[str, Any]) -> bool:
    """Whether a flag stands alone: true or false, or the denial of one."""
    if name.partition(".")[0] == "noconfig" or name in _SWITCHES or name[2:] in _SWITCHES:
        return True
    return isinstance(leaves.get(name.removeprefix("config.")), bool)


def _meant_by_flag(name: str, leaves: Mapping[str, Any], command: Command) -> str:
    """ "; did you mean --config.train.steps?" of an unknown flag."""
    near = difflib.get_close_matches(name[:SHOWN], command.takes, n=1, cutoff=0.7)
    meant = near[0] if near else None
    if meant is None and "config" in command.takes:
        key = nearest_key(name, leaves)
        meant = key and f"config.{key}"
    if meant is None:
        return f"; known: {', '.join(f'--{taken}' for taken in command.takes)}"
    return f"; did you mean --{meant}?"


def _meant_by_word(
    word: str, arguments: Sequence[str], known: flags.FlagValues, leaves: Mapping[str, Any]
) -> str:
    """What a word that stands alone was meant to be, where that can be told."""
    bare, equals, value = word.lstrip("-\u2013\u2014").partition("=")
    name = bare.removeprefix("config.")
    meant = nearest_key(name, leaves) if equals or name != bare or name in leaves else None
    if meant and not equals:
        at = list(arguments).index(word) + 1
        equals, value = "=", "".join(arguments[at : at + 1]) or "VALUE"
    if meant:
        return f"; did you mean --config.{meant}={show(value)[1:-1]}?"
    if bare in known:
        return f"; did you mean --{bare}{equals}{show(value)[1:-1]}?"
    before = arguments[arguments.index(word) - 1] if word in arguments else ""
    if (
        before.startswith("-")
        and "=" not in before
        and isinstance(leaves.get(before.lstrip("-").removeprefix("config.")), bool)
    ):
        return f"; a value goes behind a sign: --{before.lstrip('-')}={show(word)[1:-1]}"
    return ""


def _check_override_type(key: str, default: Any, text: str | None) -> None:
    if hasattr(default, "keys"):
        raise UsageError(f"{key} is a section; set one of {', '.join(default.keys())}")
    kind = type(default)
    if kind is tuple and text is not None:
        try:
            tuple_parser.TupleParser().parse(text)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            raise UsageError(
                f"{key} must be a tuple, as in --config.{key}=1,2 or \"('a','b')\"; got "
                f"{show(text)} (its value in the file is {show(default)})"
            ) from None
    if kind not in (bool, int, float) or text is None:
        return
    if kind is bool:
        if text.lower() not in ("true", "t", "1", "false", "f", "0"):
            raise UsageError(f"{key} must be true or false, got {show(text)}")
        return
    try:
        kind(text)
    except ValueError:
        raise UsageError(
            f"{key} must be {'an int' if kind is int else 'a number'}, got {show(text)} "
            f"(its value in the file is {default!r}){int_hint(kind, text)}"
        ) from None


def _value_of(argv: Sequence[str], name: str) -> str | None:
    """The value of a flag before flags are parsed; the last one counts."""
    value = None
    for i, argument in enumerate(argv):
        if argument in (f"--{name}", f"-{name}"):
            value = argv[i + 1] if i + 1 < len(argv) else None
        elif argument.startswith((f"--{name}=", f"-{name}=")):
            value = argument.partition("=")[2]
    return value


def is_saved_config(file: str) -> bool:
    """Whether a --config is the config that a run was started with."""
    return file.startswith(f"{_SAVED_CONFIG}:")


def flag_names() -> list[str]:
    """Every flag of any command but --config."""
    return [*_SWITCHES, *_NUMBERS, *_STRINGS]


def flag_list() -> str:
    """All flags besides --config and --workdir, for the help."""
    names = " ".join(f"--{name}" for name in flag_names() if name != "workdir")
    return textwrap.fill(f"flags: {names}", 90, subsequent_indent="       ", break_on_hyphens=False)
