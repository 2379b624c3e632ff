"""`sample`: continue prompts with a trained model; what it took back is shown struck out."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import jax

from reasoning_jax.commands.assemble import check_room
from reasoning_jax.commands.load import load_assembly, restore
from reasoning_jax.config import Config, ConfigError
from reasoning_jax.evaluate.accuracy import Completion, Prompt, complete
from reasoning_jax.train.state import adapters
from reasoning_jax.vocab import Vocab

_STRIKE, _PLAIN = "\x1b[9;31m", "\x1b[0m"
# Prompts are read whole; a file beyond this is not one of prompts.
_MAX_BYTES = 64 << 20


def sample(
    config: Config, workdir: Path, prompts: list[str], samples: int, step: int | None
) -> int:
    """Print `samples` completions of each prompt, reproducible from the config's seed."""
    assembly = load_assembly(config, workdir, with_data=False)
    suffix = config.data.question_suffix
    encoded = [assembly.encoder.prompt_ids(p + suffix) for p in prompts]
    check_room(assembly.model, config.sampling, max(map(len, encoded)))
    trained = restore(assembly, workdir, step)
    rows = [Prompt(tuple(ids), len(ids) - 1) for ids in encoded for _ in range(samples)]
    with jax.set_mesh(trained.mesh):
        completions = complete(
            trained.params["model"], adapters(trained.params, config), assembly.model,
            assembly.vocab, config.sampling, rows, jax.random.key(config.seed),
            config.evaluate.batch_rows, trained.mesh, assembly.ids.floor_masked,
        )  # fmt: skip
    colour = sys.stdout.isatty()
    for i, completion in enumerate(completions):
        shown = strike_out(completion, assembly.vocab, colour)
        end = " (cut off at the limit)" if completion.truncated else ""
        print(f"{printable(prompts[i // samples] + suffix)}{shown}{end}")
    return 0


def strike_out(completion: Completion, vocab: Vocab, colour: bool) -> str:
    """Everything written, in order, with what was deleted later struck out.

    Struck text is red with a line through it in colour, [-like this-] otherwise.
    """
    written: list[int] = []
    struck: list[bool] = []
    standing: list[int] = []
    for action in completion.actions:
        if action == vocab.backspace_id:
            if standing:
                struck[standing.pop()] = True
        elif action != vocab.eos_id:
            standing.append(len(written))
            written.append(action)
            struck.append(False)
    before, after = (_STRIKE, _PLAIN) if colour else ("[-", "-]")
    parts = []
    begin, text = 0, ""
    for gone, group in itertools.groupby(struck):
        end = begin + len(list(group))
        # A token's text depends on its neighbours: the space between words, the bytes of a letter.
        whole = vocab.decode(written[:end])
        piece = whole[len(text) :] if whole.startswith(text) else vocab.decode(written[begin:end])
        parts.append(f"{before}{printable(piece)}{after}" if gone else printable(piece))
        begin, text = end, whole
    return "".join(parts)


def printable(text: str) -> str:
    """Text without terminal control characters (shown as escapes); line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def read_prompts(path: str) -> list[str]:
    """The non-empty lines of a UTF-8 file. Raises ConfigError."""
    file = Path(path)
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"--prompt_file={path} is larger than {_MAX_BYTES >> 20} MiB")
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise ConfigError(f"--prompt_file={path} cannot be read: {error}") from None
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise ConfigError(f"--prompt_file={path} has no prompts; write one a line")
    return prompts
