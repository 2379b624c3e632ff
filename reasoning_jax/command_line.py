"""Flags of all commands: which there are, which a command heeds, and what is wrong with a line.

Parses and checks; runs no command. Whatever is wrong is a UsageError in words of our own.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.metadata
import platform
import re
import textwrap
import typing
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags import tuple_parser

from reasoning_jax.config import Config, keys_of_word_or_int, to_dict
from reasoning_jax.config_fields import SHOWN, flat, int_hint, nearest_key, show
from reasoning_jax.config_file import load_config_file
from reasoning_jax.exit_codes import UsageError, exit_code, first_lines
from reasoning_jax.tasks import TASKS, task_dials

USAGE = (
    "usage: reasoning-jax COMMAND [CONFIG[:ARG] or RUN] [--config=FILE[:ARG]] [--workdir=DIR] "
    "[--config.a.b=value]"
)
# As config_flags finds them.
_OVERRIDE = re.compile(r"--?(no)?config\.")
_FLAG = re.compile(r"--?[^-]")
# Words with commas between them.
_WORDS = re.compile(r"[A-Za-z_][\w./|*-]*(,[A-Za-z_][\w./|*-]*)+")
_SAVED_CONFIG = Path(__file__).parent / "commands" / "saved_config.py"


class Command(NamedTuple):
    """A command: its line of help, the flags that it heeds, and what it does.

    words: how many words `run` takes beside flags; None for any number.
    roles: flags whose values may stand as further bare words, in this order, anywhere on the line.
    also: flags whose values `run` gets as words: --workdir=RUN is another spelling of RUN.
    of_run: without --config, the config is the one that the run in --workdir was started with.
    config_word: makes the value of --config of a bare word.
    """

    what: str
    takes: tuple[str, ...]
    run: Callable[[flags.FlagValues, list[str]], int]
    words: int | None = 0
    roles: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    of_run: bool = False
    config_word: Callable[[str], object] = str


# Each flag of any command: name, kind, what it says in the help. Numbers have a lower bound.
_STRINGS = {
    "workdir": "Folder of the run.",
    "prompt": "sample: the text to continue; probe: a question to draw the tree of.",
    "prompt_file": "sample: a file with one prompt a line.",
    "faults": "train, replay: what goes wrong and when, as kill@save:4 (for tests).",
    "scale": "reproduce: smoke, cpu, gpu or paper.",
    "adapters": "export: merge (LoRA adapters into the weights) or beside (as PEFT has them).",
    "out": "report: the HTML file; evaluate, data, export, probe, replay: the folder.",
}
# Flags that other programs have, and how the same is done here.
_ELSEWHERE = {
    **dict.fromkeys(
        ("resume", "continue", "restart", "resume_from_checkpoint", "auto_resume"),
        "the same line goes on from the newest checkpoint in --workdir",
    ),
    **dict.fromkeys(
        ("epochs", "num_epochs", "max_steps", "num_train_epochs"),
        "the length is --config.train.steps=N",
    ),
    **dict.fromkeys(
        ("gpu", "gpus", "device", "devices", "cpu", "platform"),
        "JAX takes what it finds; JAX_PLATFORMS=cpu before the command chooses",
    ),
    **dict.fromkeys(("output_dir", "outdir", "logdir", "run"), "the run folder is --workdir=DIR"),
}
_SWITCHES = {
    "print_config": "Print the resolved config as JSON and stop.",
    "explain": "Print how the batch divides and where each value is from; start no backend.",
    "dry_run": "Print shapes, memory and batch tree on these devices; allocate nothing.",
    "debug": "Checks for NaN, leaked tracers, reused keys; explains recompilation.",
    "quiet": "No progress lines.",
    "overwrite": "export: replace the model in --out; other files there stay.",
    "json": "sample: a JSON object a completion, a line each.",
    "all": "sweep: every run, one after the other.",
    "list": "sweep, reproduce: print what there is to run, and run nothing.",
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
    name = argv[1]
    arguments, also = _words_as_flags([argv[0], *argv[2:]], command)
    workdir = _value_of(arguments, "workdir")
    if _value_of(arguments, "config") is None and command.of_run and workdir:
        # Before the overrides: --config.a.b applies to the run's own config.
        arguments.insert(1, f"--config={_SAVED_CONFIG}:{workdir}")
    config, leaves = _check_overrides(arguments)
    arguments = _words_as_tuples(arguments, leaves)
    known = _define_flags(arguments, config)
    _check_flags(arguments, known, leaves, command)
    if config is not None and "config" not in command.takes:
        raise _not_taken(name, "config", command)
    # Libraries read their own flags, of which we offer none.
    flags.FLAGS.mark_as_parsed()
    try:
        rest = known(_without(arguments, "config"))[1:]
    except flags.Error as error:
        raise UsageError(f"{first_lines(error)}\n{USAGE}") from None
    except Exception as error:
        if exit_code(error) is not None:
            raise
        raise UsageError(f"the config cannot be read: {first_lines(error)}") from None
    for flag in known:
        if known[flag].present and flag.split(".")[0] not in command.takes:
            raise _not_taken(name, flag, command)
    if command.words is not None and len(rest) > command.words:
        extra = rest[command.words]
        hint = _meant_by_word(extra, arguments, known, leaves) or _given_already(arguments, command)
        raise UsageError(f"unexpected argument {show(extra)}{hint}\n{USAGE}")
    # `config_file` asks for it; as a flag, users could set it.
    known.__dict__["_config_file"] = _value_of(arguments, "config")
    return known, [*rest, *also]


def config_file(known: flags.FlagValues) -> str:
    """FILE[:ARG] of --config, as it was given or made of a bare word."""
    return known.__dict__["_config_file"] or ""


def _words_as_flags(arguments: list[str], command: Command) -> tuple[list[str], list[str]]:
    """The line with bare words that have a role written as flags, and flags that are only words.

    A word that has no role, or contradicts its flag, stays where it is and is refused later.
    """
    also: list[str] = []
    for flag in command.also:
        value = _value_of(arguments, flag)
        if value is not None:
            arguments = _without(arguments, flag)
            also.append(value)
    at = _word_places(arguments)
    words = [arguments[i] for i in at]
    also = [value for value in also if not any(_same_path(value, word) for word in words)]
    if command.words is None:
        return arguments, also
    made: dict[int, str | None] = {}
    for i, role in zip(at[command.words :], command.roles):
        word, given = arguments[i], _value_of(arguments, role)
        if given is not None and not _same_path(given, word):
            if role == "config" and _same_path(given, str(command.config_word(word))):
                made[i] = None
        elif given is not None:
            made[i] = None
        elif word and not _is_override_by_mistake(word, arguments):
            made[i] = f"--{role}={command.config_word(word) if role == 'config' else word}"
    rest = [argument for i, argument in enumerate(arguments) if i not in made]
    return [rest[0], *filter(None, made.values()), *rest[1:]], also


def _words_as_tuples(arguments: list[str], leaves: Mapping[str, Any]) -> list[str]:
    """The line with --config.a.b=x,y of a tuple as "('x','y')", which would be one text, "x,y"."""
    changed, waiting = list(arguments), False
    for i, argument in enumerate(arguments):
        flag, equals, text = argument.partition("=")
        key = flag.lstrip("-").removeprefix("config.")
        if waiting:
            flag, equals, text = "", "", argument
        elif not (_OVERRIDE.match(argument) and isinstance(leaves.get(key), tuple)):
            continue
        waiting = not waiting and not equals
        words = text.split(",")
        if _WORDS.fullmatch(text) and not {"True", "False", "None"} & {*words}:
            changed[i] = f"{flag}{equals}{tuple(words)!r}"
    return changed


def _word_places(arguments: Sequence[str]) -> list[int]:
    """Where bare words stand: what is no flag, and no flag's value."""
    leaves = flat(to_dict(Config()))
    found, i = [], 1
    while i < len(arguments):
        argument = arguments[i]
        if argument == "--":
            return found + list(range(i + 1, len(arguments)))
        if not _FLAG.match(argument):
            found.append(i)
        elif "=" not in argument and not _is_switch(argument.lstrip("-"), leaves):
            i += 1
        i += 1
    return found


def _is_override_by_mistake(word: str, arguments: Sequence[str]) -> bool:
    """Whether a word is a flag that lost its dashes rather than the name of a file or folder."""
    leaves = flat(to_dict(Config()))
    named = _meant_by_word(word, arguments, {*flag_names()}, leaves)
    return bool(named) and not _exists(word)


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def _same_path(a: str, b: str) -> bool:
    return a == b or (bool(a) and bool(b) and Path(a) == Path(b))


def _given_already(arguments: Sequence[str], command: Command) -> str:
    """Why a word has no place: what it could have been is on the line."""
    for role in command.roles:
        value = _value_of(arguments, role)
        if value is not None:
            of_run = role == "config" and is_saved_config(value)
            what = "the run folder" if role == "workdir" or of_run else "the config"
            value = value.removeprefix(f"{_SAVED_CONFIG}:") if of_run else value
            hint = " (a run folder is --workdir=DIR)" if command.roles == ("config",) else ""
            return f": {what} is {show(value)} already{hint}"
    return ""


def _without(arguments: Sequence[str], name: str) -> list[str]:
    """The line without a flag and its value."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in (f"--{name}", f"-{name}"):
            skip = True
        elif not argument.startswith((f"--{name}=", f"-{name}=")):
            kept.append(argument)
    return kept


def _not_taken(name: str, flag: str, command: Command) -> UsageError:
    takes = " ".join(f"--{taken}" for taken in command.takes) or "no flags"
    return UsageError(f"{name} does not take --{flag}; it takes {takes}")


def _define_flags(arguments: Sequence[str], config: Any) -> flags.FlagValues:
    """Fresh flags, so that one process can run several command lines."""
    known = flags.FlagValues()
    if config is None:
        flags.DEFINE_string("config", None, "FILE[:ARG] with get_config(arg).", flag_values=known)
    else:
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=known, lock_config=True,
            sys_argv=_without(arguments, "config"),
        )  # fmt: skip
    for name, what in _STRINGS.items():
        flags.DEFINE_string(name, None, what, flag_values=known)
    for name, what in _SWITCHES.items():
        flags.DEFINE_bool(name, False, what, flag_values=known)
    for name, (default, low, what) in _NUMBERS.items():
        flags.DEFINE_integer(name, default, what, lower_bound=low, flag_values=known)
    return known


def _check_overrides(arguments: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """Refuse a bad config file, unknown keys and ill-typed values in words of our own.

    config_flags finds them too, but reports them as tracebacks or without the key. Returns the
    config of the file (None without one), and the keys that can be set with what it gives them.
    """
    file = _value_of(arguments, "config")
    given = [a for a in arguments if _OVERRIDE.match(a)]
    if file is None:
        if given:
            raise UsageError(
                f"--{show(given[0].lstrip('-'))[1:-1]} needs --config=FILE, or a run folder, too"
            )
        return None, flat(to_dict(Config()))
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
    return config, leaves


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
    key = name.removeprefix("config.")
    if key.startswith("task.") and key not in leaves:
        # Before the config is read: a dial of whichever task.
        dial = key.removeprefix("task.")
        return any(isinstance(task_dials(task).get(dial), bool) for task in TASKS)
    return isinstance(leaves.get(key), bool)


def _meant_by_flag(name: str, leaves: Mapping[str, Any], command: Command) -> str:
    """ "; did you mean --config.train.steps?" of an unknown flag."""
    if (here := _ELSEWHERE.get(name.replace("-", "_"))) and name not in command.takes:
        return f"; {here}"
    near = difflib.get_close_matches(name[:SHOWN], command.takes, n=1, cutoff=0.7)
    meant = near[0] if near else None
    if meant is None and "config" in command.takes:
        key = nearest_key(name, leaves)
        meant = key and f"config.{key}"
    if meant is None:
        return f"; known: {', '.join(f'--{taken}' for taken in command.takes)}"
    return f"; did you mean --{meant}?"


def _meant_by_word(
    word: str, arguments: Sequence[str], known: Container[str], leaves: Mapping[str, Any]
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
        raise UsageError(_section_hint(key, default, text or ""))
    if key in keys_of_word_or_int():
        return
    kind = type(default)
    if kind is tuple and text is not None:
        try:
            tuple_parser.TupleParser().parse(text)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            one = (
                f"; one text with commas or blanks is \"'{text[:SHOWN]}'\"" if text.strip() else ""
            )
            raise UsageError(
                f"{key} must be a tuple, as in --config.{key}=1,2 or \"('a','b')\"{one}; got "
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


def _section_hint(section: str, values: Any, text: str) -> str:
    """For --config.objective=bc: the key of the section that takes such a word."""
    hints = typing.get_type_hints(Config)
    meant = None
    if section in hints:
        chosen = {f.name: f.metadata.get("choices", ()) for f in dataclasses.fields(hints[section])}
        chosen["name"] = tuple(TASKS) if section == "task" else chosen.get("name", ())
        for key, choices in chosen.items():
            near = difflib.get_close_matches(text[:SHOWN].lower(), choices, n=1, cutoff=0.75)
            if near and (meant is None or near[0] == text):
                meant = f"--config.{section}.{key}={near[0]}"
    known = f"set one of {', '.join(values.keys())}"
    if meant is None and "path" in values and ("/" in text or "." in text):
        meant = f"--config.{section}.path={show(text)[1:-1]}"
    return f"{section} is a section; " + (f"did you mean {meant}? Or {known}" if meant else known)


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


def version() -> str:
    """The versions of this package, of JAX and of Python, in a line."""
    names = ("reasoning-jax", "jax")
    found = [f"{name} {_installed(name)}" for name in names]
    return ", ".join([*found, f"Python {platform.python_version()}"])


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def flag_names() -> list[str]:
    """Every flag of any command but --config."""
    return [*_SWITCHES, *_NUMBERS, *_STRINGS]


def flag_list() -> str:
    """All flags besides --config and --workdir, for the help."""
    names = " ".join(f"--{name}" for name in flag_names() if name != "workdir")
    return textwrap.fill(f"flags: {names}", 90, subsequent_indent="       ", break_on_hyphens=False)
