"""`sample`: continue prompts with a trained model; what it took back is shown struck out."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import jax

from reasoning_jax.commands import sources
from reasoning_jax.commands.assemble import Assembly, answer_plan
from reasoning_jax.commands.load import load_assembly, restore
from reasoning_jax.commands.room import check_room, tell_beyond
from reasoning_jax.config import Config, ConfigError
from reasoning_jax.data.examples import Example
from reasoning_jax.decoding.sampler import Thinking
from reasoning_jax.evaluate.completions import Completion, Prompt, complete
from reasoning_jax.train.state import adapters
from reasoning_jax.vocab import LATENT, Vocab

_STRIKE, _PLAIN = "\x1b[9;31m", "\x1b[0m"
# Prompts are read whole; a file beyond this is not one of prompts.
_MAX_BYTES = 64 << 20
_MANY_STEPS = 1 << 20


def sample(
    config: Config, workdir: Path, prompts: list[str], samples: int, step: int | None
) -> int:
    """Print `samples` completions of each prompt, reproducible from the config's seed.

    With a curriculum, behind each prompt stand the thoughts of the checkpoint's stage or of
    evaluate.thoughts.
    """
    assembly = load_assembly(config, workdir, sources.SAMPLE)
    # What is not legal is refused before a backend starts, which the stage would need.
    for prompt in prompts:
        given_ids(assembly, prompt, None)
    trained = restore(assembly, workdir, step)
    encoded = [given_ids(assembly, prompt, trained.stage) for prompt in prompts]
    longest = max(map(len, encoded), default=0)
    tell_beyond(assembly.model, config.sampling, longest, config.data.seq_len)
    thoughts = assembly.thoughts
    rows = [Prompt(tuple(ids), len(ids) - 1) for ids in encoded]
    with jax.set_mesh(trained.mesh):
        completions = complete(
            trained.params["model"], adapters(trained.params, config), assembly.model,
            assembly.vocab, config.sampling, rows, jax.random.key(config.seed),
            config.evaluate.batch_rows, trained.mesh, assembly.ids.floor_masked,
            Thinking(thoughts) if thoughts is not None else None, samples,
        )  # fmt: skip
    # Then no <eos> is ever taught behind it.
    answers_in_one_token = assembly.staged is not None and assembly.staged.alone
    colour = sys.stdout.isatty()
    for i, completion in enumerate(completions):
        shown = strike_out(completion, assembly.vocab, colour)
        cut = completion.truncated and not answers_in_one_token
        end = " (cut off at the limit)" if cut else ""
        print(f"{as_given(assembly, prompts[i // samples], encoded[i // samples])}{shown}{end}")
    return 0


def given_ids(assembly: Assembly, prompt: str, stage: int | None) -> list[int]:
    """The ids of a prompt and of what stands behind it at a stage (default: the last).

    Raises:
      VocabError, ConfigError: a prompt that cannot be written or has no room.
    """
    staged = assembly.staged
    if staged is None:
        ids = assembly.encoder.prompt_ids(prompt + assembly.config.data.question_suffix)
    else:
        # How many steps there would be is not known: more than any stage removes.
        plan = answer_plan(assembly, stage, _MANY_STEPS)
        ids, _ = staged.context(Example(prompt, (), ""), plan)
    check_room(assembly.model, assembly.config.sampling, len(ids))
    return ids


def as_given(assembly: Assembly, prompt: str, ids: list[int]) -> str:
    """A prompt as the terminal shows it, with its slots counted and what is given behind them."""
    text = printable(prompt + assembly.config.data.question_suffix)
    slots = ids.count(assembly.vocab.specials.get(LATENT, -1))
    if slots:
        assert assembly.staged is not None
        what = assembly.staged.curriculum.mode.slots
        text += f" <{slots} {what}{'s' if slots > 1 else ''}>"
    if assembly.staged is not None and assembly.staged.alone:
        text += assembly.config.data.answer_prefix
    return text


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
