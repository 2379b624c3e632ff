"""Flags of all commands: which there are, which a command heeds, and what is wrong with a line.

Parses and checks; runs no command. Whatever is wrong is a UsageError in words of our own.
"""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags

from reasoning_jax.config_fields import int_hint, show
from reasoning_jax.config_file import load_config_file
from reasoning_jax.exit_codes import UsageError, exit_code, first_lines

USAGE = "usage: reasoning-jax COMMAND [--config=FILE[:ARG]] [--workdir=DIR] [--config.a.b=value]"
# As config_flags finds them.
_OVERRIDE = re.compile(r"--?(no)?config\.")
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
    "scale": "reproduce: smoke, cpu, gpu or paper.",
    "out": "report: the HTML file; data, export, probe: the folder.",
}
_SWITCHES = {
    "print_config": "Print the resolved config as JSON and stop.",
    "dry_run": "Print shapes, memory and batch tree; allocate nothing.",
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
    _check_overrides(arguments)
    known = _define_flags(arguments)
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
            takes = " ".join(f"--{taken}" for taken in command.takes)
            raise UsageError(f"{name} does not take --{flag}; it takes {takes}")
    if command.words is not None and len(rest) > command.words:
        extra = rest[command.words]
        hint = f"; did you mean --{extra}?" if extra.startswith("config.") else ""
        if name == "sweep" and not hint:
            hint = "; there is one CONFIG, right after the command or as --config=CONFIG"
        raise UsageError(f"unexpected argument {extra!r}{hint}\n{USAGE}")
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


def _check_overrides(arguments: Sequence[str]) -> None:
    """Refuse a bad config file, unknown keys and ill-typed values in words of our own.

    config_flags finds them too, but reports them as tracebacks or without the key.
    """
    file = _value_of(arguments, "config")
    given = [a for a in arguments if _OVERRIDE.match(a)]
    if file is None:
        if given:
            raise UsageError(f"--{given[0].lstrip('-')} needs --config=FILE before it")
        return
    config = load_config_file(file)
    for argument in given:
        flag, equals, text = argument.lstrip("-").partition("=")
        node: Any = config
        names = flag.split(".")[1:]
        for i, name in enumerate(names):
            name = name.split("[")[0]
            if not hasattr(node, "keys") or name not in node:
                known = list(node.keys()) if hasattr(node, "keys") else []
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
                raise UsageError(f"unknown key {'.'.join(names[: i + 1])}; {hint}")
            node = node[name]
        key = ".".join(names)
        if flag.startswith("no") and (equals or not isinstance(node, bool)):
            raise UsageError(f"--{flag} is for true or false; write --config.{key}=VALUE")
        _check_override_type(key, node, text if equals else None)


def _check_override_type(key: str, default: Any, text: str | None) -> None:
    if hasattr(default, "keys"):
        raise UsageError(f"{key} is a section; set one of {', '.join(default.keys())}")
    kind = type(default)
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


def flag_list() -> str:
    """All flags besides --config and --workdir, for the help."""
    names = [f"--{name}" for name in (*_SWITCHES, *_NUMBERS, *_STRINGS) if name != "workdir"]
    return textwrap.fill(
        "flags: " + " ".join(names),
        90,
        subsequent_indent="       ",
        break_on_hyphens=False,
        break_long_words=False,
    )
