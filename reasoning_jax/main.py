"""`reasoning-jax COMMAND CONFIG[:ARG] or RUN, --workdir=DIR --config.a.b=value`: the commands.

Only dispatches: the table below has a row a command. Every error of the user's ends here as at most
six lines on stderr and the exit code of its kind, before a backend starts wherever that is
possible.
"""

from __future__ import annotations

import difflib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from reasoning_jax import command_line, screen
from reasoning_jax.command_line import USAGE, Command
from reasoning_jax.config import Config, ConfigError
from reasoning_jax.config_check import from_dict
from reasoning_jax.config_file import open_config_file, place_of, split
from reasoning_jax.exit_codes import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USAGE,
    UsageError,
    exit_code,
    first_lines,
)
from reasoning_jax.preflight import check_files, check_task


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
    except KeyboardInterrupt as error:
        print(f"stopped: {error}" if str(error) else "stopped by Ctrl-C", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        lines = str(error).strip().split("\n")
        print("error: " + "\n".join(line[:400] for line in lines[:6]), file=sys.stderr)
        return code


def _run(argv: list[str]) -> int:
    if len(argv) < 2 or argv[1] == "help" or {"--help", "-help", "-h"} & {*argv[1:]}:
        print(USAGE)
        for name, row in _COMMANDS.items():
            print(f"  {name:<10} {row.what}")
        print(command_line.flag_list())
        return EXIT_OK if len(argv) >= 2 else EXIT_USAGE
    command = argv[1]
    if command in ("--version", "version", "-V"):
        print(command_line.version())
        return EXIT_OK
    if command not in _COMMANDS:
        near = difflib.get_close_matches(command, _COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(_COMMANDS)}"
        raise UsageError(f"unknown command {command!r}; {hint}\n{USAGE}")
    known, words = command_line.parse(argv, _COMMANDS[command])
    with screen.quiet(known.quiet):
        return _COMMANDS[command].run(known, words)


def commands() -> list[str]:
    """The names of all commands."""
    return list(_COMMANDS)


def _config(known: flags.FlagValues, command: str) -> Config:
    if known.config is None:
        need = "--workdir=DIR of a run" if _COMMANDS[command].of_run else "--config=FILE"
        raise UsageError(f"{command} needs {need}\n{USAGE}")
    overridden = config_flags.get_override_values(known["config"])
    file, _ = split(command_line.config_file(known))
    try:
        config = from_dict(known.config.to_dict())
    except ConfigError as error:
        raise ConfigError(f"{place_of(file, str(error), overridden)}{error}") from None
    except Exception as error:
        raise ConfigError(f"the config cannot be read: {first_lines(error)}") from None
    if "optimizer.warmup_fraction" in overridden and config.optimizer.warmup_steps >= 0:
        raise UsageError(
            "optimizer.warmup_fraction has no effect with optimizer.warmup_steps="
            f"{config.optimizer.warmup_steps}; write --config.optimizer.warmup_steps=-1, too"
        )
    check_task(config)
    if known.debug:
        _switch_on_debugging()
    return config


def _overrides(known: flags.FlagValues) -> list[str]:
    values = config_flags.get_override_values(known["config"])
    return [f"{name}={value!r}" for name, value in sorted(values.items())]


def _workdir(known: flags.FlagValues, command: str) -> Path:
    if not known.workdir:
        raise UsageError(f"{command} needs --workdir=DIR\n{USAGE}")
    return Path(known.workdir)


def _shown(known: flags.FlagValues, command: str, config: Config) -> int | None:
    """The exit code where the config is to be shown and nothing else done; else None."""
    wanted = [name for name in ("print_config", "explain", "dry_run") if known[name].value]
    if len(wanted) > 1:
        raise UsageError(f"{command} takes one of {' and '.join(f'--{name}' for name in wanted)}")
    if known.print_config:
        return _print_config(config)
    if known.explain:
        from reasoning_jax.commands.config import explain

        of_run = command_line.is_saved_config(command_line.config_file(known))
        keys = list(config_flags.get_override_values(known["config"]))
        return explain(config, "run" if of_run else "config file", keys)
    return None


def _print_config(config: Config) -> int:
    import json

    from reasoning_jax.config import to_dict

    print(json.dumps(to_dict(config), indent=1))
    return EXIT_OK


def _train(known: flags.FlagValues, _: list[str]) -> int:
    config = _config(known, "train")
    if (code := _shown(known, "train", config)) is not None:
        return code
    workdir = None if known.dry_run else _workdir(known, "train")
    check_files(config)
    from reasoning_jax.commands import train

    if workdir is None:
        return train.dry_run(config)
    return train.train(
        config, workdir, _overrides(known), known.quiet, known.debug, known.faults or ""
    )


def _evaluate(known: flags.FlagValues, _: list[str]) -> int:
    workdir, config = _workdir(known, "evaluate"), _config(known, "evaluate")
    if (code := _shown(known, "evaluate", config)) is not None:
        return code
    from reasoning_jax.commands import evaluate

    out = Path(known.out) if known.out else None
    return evaluate.evaluate(config, workdir, known.checkpoint, out)


def _sample(known: flags.FlagValues, _: list[str]) -> int:
    if (known.prompt is None) == (known.prompt_file is None):
        raise UsageError("sample needs either --prompt=TEXT or --prompt_file=FILE")
    workdir, config = _workdir(known, "sample"), _config(known, "sample")
    from reasoning_jax.commands import sample

    prompts = [known.prompt] if known.prompt is not None else sample.read_prompts(known.prompt_file)
    return sample.sample(
        config, workdir, prompts, known.samples, known.checkpoint, as_json=known.json
    )


def _report(known: flags.FlagValues, runs: list[str]) -> int:
    if not runs:
        raise UsageError(f"report needs at least one run folder\n{USAGE}")
    from reasoning_jax.commands import report, runfolder

    out = Path(known.out) if known.out else Path(runs[0]) / "report.html"
    if known.out or Path(runs[0]).is_dir():
        hint = "" if known.out else "; give --out=FILE"
        for folder in (out.parent, out.parent / "report"):
            runfolder.check_writable("--out=" if known.out else "", folder, hint)
    try:
        return report.report([Path(r) for r in runs], out)
    except OSError as error:
        raise UsageError(f"--out={out} cannot be written: {error.strerror or error}") from None


def _out(known: flags.FlagValues, default: Path | None = None) -> Path:
    """The folder of --out, or the default; refused before any work where it cannot be written."""
    from reasoning_jax.commands import runfolder

    if known.out or default is None:
        runfolder.check_writable("--out=", Path(known.out))
        return Path(known.out)
    runfolder.check_writable("", default, "; give --out=FOLDER")
    return default


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
    config = _config(known, "data")
    check_files(config)
    return data.build(config, _out(known))


def _config_command(_: flags.FlagValues, words: list[str]) -> int:
    if words[:1] not in (["diff"], ["show"]) or len(words) != {"diff": 3, "show": 2}[words[0]]:
        raise UsageError(
            "config knows two actions: reasoning-jax config diff A B, and config show A; each of A "
            "and B is a config file[:arg], a run folder or a config.json"
        )
    from reasoning_jax.commands import config

    return config.compare(*words[1:]) if words[0] == "diff" else config.show_config(words[1])


def _probe(known: flags.FlagValues, _: list[str]) -> int:
    if known.problem is not None and known.prompt is not None:
        raise UsageError("probe draws the tree of one of --problem=INDEX and --prompt=QUESTION")
    workdir, config = _workdir(known, "probe"), _config(known, "probe")
    from reasoning_jax.commands import probe

    return probe.probe(
        config, workdir, known.checkpoint, problem=known.problem or 0, problems=known.problems,
        prompt=known.prompt, out=_out(known, workdir / "probe"),
    )  # fmt: skip


def _export(known: flags.FlagValues, _: list[str]) -> int:
    if not known.out:
        raise UsageError("export needs --out=DIR")
    workdir, config = _workdir(known, "export"), _config(known, "export")
    from reasoning_jax.commands import export

    return export.export(
        config, workdir, _out(known), known.checkpoint, overwrite=known.overwrite,
        adapters=known.adapters,
    )  # fmt: skip


def _replay(known: flags.FlagValues, _: list[str]) -> int:
    if known.step is None:
        raise UsageError("replay needs --step=N, the step to compute once more")
    workdir, config = _workdir(known, "replay"), _config(known, "replay")
    from reasoning_jax.commands import replay

    out = _out(known, workdir / "replay" / f"step_{known.step:08d}")
    return replay.replay(config, workdir, known.step, out, known.faults or "")


def _checkpoint(known: flags.FlagValues, words: list[str]) -> int:
    action, runs = (words[0] if words else ""), words[1:]
    wanted = {"verify": 1, "list": 1, "diff": 2, "export": 1}.get(action)
    if wanted is None or len(runs) != wanted:
        raise UsageError(
            "checkpoint knows verify RUN [--checkpoint=N], list RUN, diff RUN[@N] RUN[@N], and "
            "export RUN --out=DIR [--checkpoint=N] [--overwrite] [--adapters=merge|beside]"
        )
    takers_of = {"checkpoint": ("verify", "export")}
    takers_of |= dict.fromkeys(("out", "overwrite", "adapters"), ("export",))
    for flag, takers in takers_of.items():
        if action not in takers and known[flag].present:
            raise UsageError(f"checkpoint {action} does not take --{flag}")
    from reasoning_jax.commands import checkpoint

    if action == "verify":
        return checkpoint.verify(Path(runs[0]), known.checkpoint)
    if action == "list":
        return checkpoint.list_steps(Path(runs[0]))
    if action == "diff":
        return checkpoint.diff(*runs)
    if not known.out:
        raise UsageError("checkpoint export needs --out=DIR")
    from reasoning_jax.commands import export, saved_config

    config = from_dict(saved_config.get_config(runs[0]).to_dict())
    return export.export(
        config, Path(runs[0]), _out(known), known.checkpoint, overwrite=known.overwrite,
        adapters=known.adapters,
    )  # fmt: skip


def _sweep(known: flags.FlagValues, _: list[str]) -> int:
    if known.config is None:
        raise UsageError("sweep needs a config: reasoning-jax sweep FILE[:ARG] --workdir=DIR --all")
    workdir = _workdir(known, "sweep")
    from reasoning_jax.commands import sweep

    index = sweep.choose(known.index, known.all, known.list)
    name, arg = split(command_line.config_file(known))
    common = config_flags.get_override_values(known["config"])
    runs = sweep.resolve_file(open_config_file(name), arg, workdir, common)
    if known.list:
        return sweep.list_runs(runs, workdir)
    if known.debug:
        _switch_on_debugging()
    return sweep.run_points(runs, workdir, index=index, common=common, quiet=known.quiet)


def _reproduce(known: flags.FlagValues, _: list[str]) -> int:
    if known.list or known.config is None:
        from reasoning_jax.commands import reproduce

        if known.list:
            return reproduce.list_experiments()
        raise UsageError(
            "reproduce needs an experiment: reasoning-jax reproduce PAPER/EXPERIMENT; there are "
            f"{', '.join(reproduce.experiments()) or 'none here'} (reproduce --list)"
        )
    workdir = _workdir(known, "reproduce")
    from reasoning_jax.commands import reproduce

    file, given = split(command_line.config_file(known))
    if given:
        raise UsageError(f"reproduce takes its scale as --scale=NAME, not as :{given}")
    if known.debug:
        _switch_on_debugging()
    common = config_flags.get_override_values(known["config"])
    call = open_config_file(file)
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


def _experiment(name: str) -> Path:
    from reasoning_jax.commands.reproduce import experiment_file

    return experiment_file(name)


# A row a command.
_COMMANDS = {
    "train": Command(
        "CONFIG[:ARG] --workdir=RUN: train, or go on with, a run",
        ("config", "workdir", "print_config", "explain", "dry_run", "debug", "quiet", "faults"),
        _train,
        roles=("config",),
    ),
    "evaluate": Command(
        "RUN: evaluate a checkpoint",
        ("config", "workdir", "print_config", "explain", "debug", "quiet", "checkpoint", "out"),
        _evaluate,
        roles=("workdir",),
        of_run=True,
    ),
    "sample": Command(
        "RUN: continue --prompt or each line of --prompt_file with a checkpoint",
        (
            "config",
            "workdir",
            "debug",
            "quiet",
            "checkpoint",
            "prompt",
            "prompt_file",
            "samples",
            "json",
        ),
        _sample,
        roles=("workdir",),
        of_run=True,
    ),
    "report": Command(
        "RUN [RUN ...]: one HTML page over run folders",
        ("out",),
        _report,
        words=None,
        also=("workdir",),
    ),
    "data": Command(
        "build CONFIG: write a task's problems to --out; shortcuts CONFIG: ProsQA without search",
        ("config", "debug", "quiet", "out", "problems"),
        _data,
        words=1,
        roles=("config",),
    ),
    "config": Command(
        "diff A B: what tells two configs or runs apart; show A: one of them, explained",
        (),
        _config_command,
        words=3,
        also=("config", "workdir"),
    ),
    "probe": Command(
        "RUN: look into its thoughts: numbers, pictures, a page",
        (
            "config",
            "workdir",
            "debug",
            "quiet",
            "checkpoint",
            "problem",
            "problems",
            "prompt",
            "out",
        ),
        _probe,
        roles=("workdir",),
        of_run=True,
    ),
    "export": Command(
        "RUN: write a checkpoint as a Hugging Face folder to --out",
        ("config", "workdir", "debug", "quiet", "checkpoint", "out", "overwrite", "adapters"),
        _export,
        roles=("workdir",),
        of_run=True,
    ),
    "checkpoint": Command(
        "verify|list RUN, diff RUN[@N] RUN[@N], export RUN --out=DIR: what is saved, and is intact",
        ("checkpoint", "out", "overwrite", "adapters"),
        _checkpoint,
        words=3,
        also=("workdir",),
    ),
    "replay": Command(
        "RUN: compute step --step once more: loss, gradients, its batch",
        ("config", "workdir", "debug", "quiet", "step", "out", "faults"),
        _replay,
        roles=("workdir",),
        of_run=True,
    ),
    "sweep": Command(
        "CONFIG[:ARG]: train the runs of its get_sweep under --workdir",
        ("config", "workdir", "index", "all", "list", "debug", "quiet"),
        _sweep,
        roles=("config",),
    ),
    "reproduce": Command(
        "PAPER/EXPERIMENT: run it at --scale=smoke|cpu|gpu|paper, make its table",
        ("config", "workdir", "scale", "list", "debug", "quiet"),
        _reproduce,
        roles=("config",),
        config_word=_experiment,
    ),
}

if __name__ == "__main__":
    main()
