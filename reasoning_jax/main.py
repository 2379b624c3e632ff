"""`reasoning-jax COMMAND --config=FILE[:ARG] --workdir=DIR --config.a.b=value`: flags and dispatch.

Only parses, checks and dispatches. Every error of the user's ends here as at most six lines on
stderr and the exit code of its kind, before a backend starts wherever that is possible.
"""

from __future__ import annotations

import difflib
import importlib.util
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from reasoning_jax.config import Config, ConfigError
from reasoning_jax.config_check import from_dict
from reasoning_jax.config_fields import int_hint, show

EXIT_OK, EXIT_USAGE, EXIT_CHECKPOINT = 0, 2, 4

_COMMANDS = {
    "train": "train (or continue) the run in --workdir",
    "evaluate": "evaluate a checkpoint of the run in --workdir",
    "sample": "continue --prompt or each line of --prompt_file with a checkpoint",
    "report": "RUN [RUN ...]: one HTML page over run folders",
    "data": "build: write a task's problems under --out; shortcuts: ProsQA answered without search",
    "probe": "look into the thoughts of the run in --workdir: numbers, pictures, a page",
    "export": "write a checkpoint as a Hugging Face folder to --out",
    "sweep": "CONFIG[:ARG]: train the runs of its get_sweep under --workdir",
    "reproduce": "PAPER/EXPERIMENT: run it at --scale=smoke|cpu|gpu|paper, make its table",
}
_USAGE = "usage: reasoning-jax COMMAND [--config=FILE[:ARG]] [--workdir=DIR] [--config.a.b=value]"
# What each command heeds; any other flag is a mistake and is refused.
_TAKES = {
    "train": ("config", "workdir", "print_config", "dry_run", "debug", "quiet"),
    "evaluate": ("config", "workdir", "print_config", "debug", "checkpoint"),
    "sample": ("config", "workdir", "debug", "checkpoint", "prompt", "prompt_file", "samples"),
    "report": ("out",),
    "data": ("config", "debug", "out", "problems"),
    "probe": (
        "config",
        "workdir",
        "debug",
        "checkpoint",
        "problem",
        "problems",
        "prompt",
        "out",
    ),
    "export": ("config", "workdir", "debug", "checkpoint", "out"),
    "sweep": ("config", "workdir", "index", "all", "list", "debug", "quiet"),
    "reproduce": ("config", "workdir", "scale", "debug", "quiet"),
}
_WITH_RUN = ("evaluate", "sample", "probe", "export")
_CONFIG_FILE_FUNCTIONS = {
    "get_config": "that returns a ConfigDict",
    "get_sweep": "that returns points, as in docs/sweeps.md",
    "get_study": "that returns a report.study.Study",
}
# As config_flags finds them.
_OVERRIDE = re.compile(r"--?(no)?config\.")
_SAVED_CONFIG = Path(__file__).parent / "commands" / "saved_config.py"


class UsageError(ConfigError):
    """The command line is wrong."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character shows its escape.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(list(sys.argv if argv is None else argv)))


def run(argv: list[str]) -> int:
    """Run a command line (argv[0] is the program). Returns the exit code."""
    try:
        return _run(argv)
    except BrokenPipeError:
        # The reader of our output has gone; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        lines = str(error).strip().split("\n")
        print("error: " + "\n".join(line[:400] for line in lines[:6]), file=sys.stderr)
        return code


def _run(argv: list[str]) -> int:
    if len(argv) < 2 or argv[1] == "help" or {"--help", "-help", "-h"} & {*argv[1:]}:
        print(_USAGE)
        for name, what in _COMMANDS.items():
            print(f"  {name:<10} {what}")
        print("flags: --print_config --dry_run --debug --quiet --checkpoint --prompt --prompt_file")
        print("       --samples --problem --problems --out --index --all --list --scale")
        return EXIT_OK if len(argv) >= 2 else EXIT_USAGE
    command = argv[1]
    if command not in _COMMANDS:
        near = difflib.get_close_matches(command, _COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(_COMMANDS)}"
        raise UsageError(f"unknown command {command!r}; {hint}\n{_USAGE}")
    handler: Callable[[flags.FlagValues, list[str]], int] = {
        "train": _train,
        "evaluate": _evaluate,
        "sample": _sample,
        "report": _report,
        "data": _data,
        "probe": _probe,
        "export": _export,
        "sweep": _sweep,
        "reproduce": _reproduce,
    }[command]
    return handler(*_parse_flags(argv, command))


def _define_flags(arguments: Sequence[str]) -> flags.FlagValues:
    """Fresh flags, so that one process can run several command lines."""
    known = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "Python file with get_config(arg).",
        flag_values=known, lock_config=True, sys_argv=list(arguments),
    )  # fmt: skip
    for name, what in (
        ("workdir", "Folder of the run."),
        ("prompt", "sample: the text to continue; probe: a question to draw the tree of."),
        ("prompt_file", "sample: a file with one prompt a line."),
        ("scale", "reproduce: smoke, cpu, gpu or paper."),
        ("out", "report: the HTML file; data, export, probe: the folder."),
    ):
        flags.DEFINE_string(name, None, what, flag_values=known)
    for name, what in (
        ("print_config", "Print the resolved config as JSON and stop."),
        ("dry_run", "Print shapes, memory and batch tree; allocate nothing."),
        ("debug", "Checks for NaN, leaked tracers, reused keys; explains recompilation."),
        ("quiet", "No progress lines."),
        ("all", "sweep: every run, one after the other."),
        ("list", "sweep: print the runs and train none."),
    ):
        flags.DEFINE_bool(name, False, what, flag_values=known)
    flags.DEFINE_integer(
        "checkpoint", None, "Step to load; the newest by default.",
        lower_bound=0, flag_values=known,
    )  # fmt: skip
    flags.DEFINE_integer(
        "problem", None, "probe: the problem of the split to draw the tree of; 0 by default.",
        lower_bound=0, flag_values=known,
    )  # fmt: skip
    flags.DEFINE_integer(
        "problems", None, "probe, data shortcuts: how many; evaluate.problems by default.",
        lower_bound=1, flag_values=known,
    )  # fmt: skip
    flags.DEFINE_integer("index", None, "sweep: the run to train, from 0.", flag_values=known)
    flags.DEFINE_integer(
        "samples", 1, "sample: completions a prompt.", lower_bound=1, flag_values=known
    )
    return known


def _parse_flags(argv: list[str], command: str) -> tuple[flags.FlagValues, list[str]]:
    """The flags, and what is left besides the command."""
    has_config = any(a.split("=")[0] in ("--config", "-config") for a in argv[2:])
    arguments = [argv[0], *argv[2:]]
    if command in _WITH_RUN and not has_config:
        workdir = _value_of(argv, "workdir")
        if workdir is not None:
            # Before the overrides: --config.a.b applies to the run's own config.
            arguments.insert(1, f"--config={_SAVED_CONFIG}:{workdir}")
    if command == "sweep" and not has_config and argv[2:] and argv[2][:1] not in ("", "-"):
        arguments[1] = f"--config={argv[2]}"
    if command == "reproduce" and not has_config and argv[2:] and argv[2][:1] not in ("", "-"):
        from reasoning_jax.commands.reproduce import experiment_file

        arguments[1] = f"--config={experiment_file(argv[2])}"
    _check_overrides(arguments)
    known = _define_flags(arguments)
    # Libraries read their own flags, of which we offer none.
    flags.FLAGS.mark_as_parsed()
    try:
        rest = known(arguments)[1:]
    except flags.Error as error:
        raise UsageError(f"{_first_lines(error)}\n{_USAGE}") from None
    except Exception as error:
        if _exit_code(error) is not None:
            raise
        raise UsageError(f"the config cannot be read: {_first_lines(error)}") from None
    for name in known:
        if known[name].present and name.split(".")[0] not in _TAKES[command]:
            takes = " ".join(f"--{flag}" for flag in _TAKES[command])
            raise UsageError(f"{command} does not take --{name}; it takes {takes}")
    allowed = {"report": None, "data": 1}.get(command, 0)
    if allowed is not None and len(rest) > allowed:
        extra = rest[allowed]
        hint = f"; did you mean --{extra}?" if extra.startswith("config.") else ""
        if command == "sweep" and not hint:
            hint = "; there is one CONFIG, right after the command or as --config=CONFIG"
        raise UsageError(f"unexpected argument {extra!r}{hint}\n{_USAGE}")
    return known, rest


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
    config = _load_config_file(file)
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


def _load_config_file(value: str) -> Any:
    """Run a config file's `get_config` and return what it gives. Raises UsageError."""
    name, colon, argument = value.partition(":")
    return _open_config_file(name)("get_config", *([argument] if colon else []))


def _open_config_file(name: str) -> Callable[..., Any]:
    """Run a config file; returns `call(function, *arguments)`. Both raise UsageError."""
    path = Path(name)
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path(".")
        files = [p.name for p in folder.glob("*.py")]
        near = difflib.get_close_matches(path.name, files, n=1, cutoff=0.4)
        hint = f"; did you mean {folder / near[0]}?" if near else ""
        raise UsageError(f"--config={name}: there is no such file{hint}")
    spec = importlib.util.spec_from_file_location("reasoning_jax_config_file", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _in_words(name, spec.loader.exec_module, module)

    def call(function: str, *arguments: str) -> Any:
        if not hasattr(module, function):
            given = "scale" if function == "get_study" else 'arg=""'
            raise UsageError(
                f"{name} defines no {function}; it needs a `def {function}({given}):` "
                f"{_CONFIG_FILE_FUNCTIONS[function]}"
            )
        result = _in_words(name, getattr(module, function), *arguments)
        if function == "get_config" and not hasattr(result, "to_dict"):
            raise UsageError(
                f"{name}: get_config must return a ConfigDict, got {type(result).__name__}"
            )
        return result

    return call


def _in_words(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call into config file `name`; what is wrong there is a UsageError with its line."""
    try:
        return function(*arguments)
    except Exception as error:
        if _exit_code(error) is not None:
            raise
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == name]
        where = f", line {lines[-1]}" if lines else ""
        raise UsageError(f"{name}{where}: {type(error).__name__}: {_first_lines(error)}") from None


def _value_of(argv: Sequence[str], name: str) -> str | None:
    """The value of a flag before flags are parsed; the last one counts."""
    value = None
    for i, argument in enumerate(argv):
        if argument in (f"--{name}", f"-{name}"):
            value = argv[i + 1] if i + 1 < len(argv) else None
        elif argument.startswith((f"--{name}=", f"-{name}=")):
            value = argument.partition("=")[2]
    return value


def _first_lines(error: BaseException, count: int = 3) -> str:
    return "\n".join(str(error).strip().split("\n")[:count])


def _config(known: flags.FlagValues, command: str) -> Config:
    if known.config is None:
        need = "--workdir=DIR of a run" if command in _WITH_RUN else "--config=FILE"
        raise UsageError(f"{command} needs {need}\n{_USAGE}")
    try:
        config = from_dict(known.config.to_dict())
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"the config cannot be read: {_first_lines(error)}") from None
    if known.debug:
        _switch_on_debugging()
    return config


def _overrides(known: flags.FlagValues) -> list[str]:
    values = config_flags.get_override_values(known["config"])
    return [f"{name}={value!r}" for name, value in sorted(values.items())]


def _workdir(known: flags.FlagValues, command: str) -> Path:
    if not known.workdir:
        raise UsageError(f"{command} needs --workdir=DIR\n{_USAGE}")
    return Path(known.workdir)


def _print_config(config: Config) -> int:
    import json

    from reasoning_jax.config import to_dict

    print(json.dumps(to_dict(config), indent=1))
    return EXIT_OK


def _train(known: flags.FlagValues, _: list[str]) -> int:
    config = _config(known, "train")
    if known.print_config:
        return _print_config(config)
    workdir = None if known.dry_run else _workdir(known, "train")
    from reasoning_jax.commands import train

    if workdir is None:
        return train.dry_run(config)
    return train.train(config, workdir, _overrides(known), known.quiet, known.debug)


def _evaluate(known: flags.FlagValues, _: list[str]) -> int:
    workdir, config = _workdir(known, "evaluate"), _config(known, "evaluate")
    if known.print_config:
        return _print_config(config)
    from reasoning_jax.commands import evaluate

    return evaluate.evaluate(config, workdir, known.checkpoint)


def _sample(known: flags.FlagValues, _: list[str]) -> int:
    if (known.prompt is None) == (known.prompt_file is None):
        raise UsageError("sample needs either --prompt=TEXT or --prompt_file=FILE")
    workdir, config = _workdir(known, "sample"), _config(known, "sample")
    from reasoning_jax.commands import sample

    prompts = [known.prompt] if known.prompt is not None else sample.read_prompts(known.prompt_file)
    return sample.sample(config, workdir, prompts, known.samples, known.checkpoint)


def _report(known: flags.FlagValues, runs: list[str]) -> int:
    if not runs:
        raise UsageError(f"report needs at least one run folder\n{_USAGE}")
    from reasoning_jax.commands import report

    out = Path(known.out) if known.out else Path(runs[0]) / "report.html"
    try:
        return report.report([Path(r) for r in runs], out)
    except OSError as error:
        raise UsageError(f"--out={out} cannot be written: {error.strerror}") from None


def _data(known: flags.FlagValues, words: list[str]) -> int:
    if words not in (["build"], ["shortcuts"]):
        raise UsageError(
            "data knows two actions: reasoning-jax data build --config=FILE --out=DIR, and "
            "data shortcuts --config=FILE"
        )
    heeded, other = ("out", "problems") if words == ["build"] else ("problems", "out")
    if known[other].present:
        raise UsageError(f"data {words[0]} does not take --{other}; it takes --{heeded}")
    from reasoning_jax.commands import data

    if words == ["shortcuts"]:
        config = _config(known, "data")
        return data.shortcuts(config, known.problems or config.evaluate.problems)
    if not known.out:
        raise UsageError("data build needs --out=DIR")
    return data.build(_config(known, "data"), Path(known.out))


def _probe(known: flags.FlagValues, _: list[str]) -> int:
    if known.problem is not None and known.prompt is not None:
        raise UsageError("probe draws the tree of one of --problem=INDEX and --prompt=QUESTION")
    workdir, config = _workdir(known, "probe"), _config(known, "probe")
    from reasoning_jax.commands import probe

    return probe.probe(
        config, workdir, known.checkpoint, problem=known.problem or 0, problems=known.problems,
        prompt=known.prompt, out=Path(known.out) if known.out else None,
    )  # fmt: skip


def _export(known: flags.FlagValues, _: list[str]) -> int:
    if not known.out:
        raise UsageError("export needs --out=DIR")
    workdir, config = _workdir(known, "export"), _config(known, "export")
    from reasoning_jax.commands import export

    return export.export(config, workdir, Path(known.out), known.checkpoint)


def _sweep(known: flags.FlagValues, _: list[str]) -> int:
    if known.config is None:
        raise UsageError("sweep needs a config: reasoning-jax sweep FILE[:ARG] --workdir=DIR --all")
    workdir = _workdir(known, "sweep")
    from reasoning_jax.commands import sweep

    index = sweep.choose(known.index, known.all, known.list)
    name, colon, arg = config_flags.get_config_filename(known["config"]).partition(":")
    common = config_flags.get_override_values(known["config"])
    call = _open_config_file(name)
    runs = sweep.resolve_file(call, arg if colon else None, workdir, common)
    if known.list:
        return sweep.list_runs(runs, workdir)
    if known.debug:
        _switch_on_debugging()
    return sweep.run_points(runs, workdir, index=index, common=common, quiet=known.quiet)


def _reproduce(known: flags.FlagValues, _: list[str]) -> int:
    if known.config is None:
        raise UsageError("reproduce needs an experiment: reasoning-jax reproduce PAPER/EXPERIMENT")
    workdir = _workdir(known, "reproduce")
    from reasoning_jax.commands import reproduce

    file, given = config_flags.get_config_filename(known["config"]).partition(":")[::2]
    if given:
        raise UsageError(f"reproduce takes its scale as --scale=NAME, not as :{given}")
    if known.debug:
        _switch_on_debugging()
    common = config_flags.get_override_values(known["config"])
    call = _open_config_file(file)
    return reproduce.reproduce(call, known.scale or "cpu", workdir, common, known.quiet)


def _switch_on_debugging() -> None:
    """The checks of JAX that catch mistakes early and cost time.

    Not among them are strict rank and dtype promotion: the model broadcasts norms and biases.
    """
    import jax

    jax.config.update("jax_debug_nans", True)
    jax.config.update("jax_check_tracer_leaks", True)
    jax.config.update("jax_debug_key_reuse", True)
    jax.config.update("jax_explain_cache_misses", True)


def _exit_code(error: BaseException) -> int | None:
    """The exit code of an error that is the user's to mend; None for a defect of ours.

    Modules that are not loaded cannot have raised: their errors are looked up, not imported.
    """
    if isinstance(error, ConfigError):
        return EXIT_USAGE
    for module, name, code in (
        ("reasoning_jax.train.checkpoint", "CheckpointError", EXIT_CHECKPOINT),
        ("reasoning_jax.tasks.base", "TaskError", EXIT_USAGE),
        ("reasoning_jax.data.examples", "DataError", EXIT_USAGE),
        ("reasoning_jax.vocab", "VocabError", EXIT_USAGE),
        ("reasoning_jax.weights", "WeightsError", EXIT_USAGE),
        ("reasoning_jax.report", "ReportError", EXIT_USAGE),
    ):
        kind: Any = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(error, kind):
            return code
    return None


if __name__ == "__main__":
    main()
