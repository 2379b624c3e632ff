"""`sample`: continue prompts with a trained model; what it took back is shown struck out."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import jax

from reasoning_jax import screen
from reasoning_jax.commands.assemble import (
    Assembly,
    answer_plan,
    first_examples,
    task_of,
)
from reasoning_jax.commands.load import load_assembly, restore
from reasoning_jax.commands.records import Sources
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
# Shown where the model wrote nothing.
EMPTY = "(nothing: it ended at once)"


def sample(
    config: Config,
    workdir: Path,
    prompts: list[str],
    samples: int,
    step: int | None,
    *,
    as_json: bool = False,
) -> int:
    """Print `samples` completions of each prompt, reproducible from the config's seed.

    Several are numbered; with `as_json` each is an object on a line of its own.

    With a curriculum, behind each prompt stand the thoughts of the checkpoint's stage or of
    evaluate.thoughts.
    """
    assembly = load_assembly(config, workdir, with_data=False)
    # What is not legal is refused before a backend starts, which the stage would need.
    for prompt in prompts:
        given_ids(assembly, prompt, None)
    trained = restore(assembly, workdir, step)
    encoded = [given_ids(assembly, prompt, trained.stage) for prompt in prompts]
    longest = max(map(len, encoded), default=0)
    tell_beyond(assembly.model, config.sampling, longest, config.data.seq_len)
    thoughts = assembly.thoughts
    rows = [Prompt(tuple(ids), len(ids) - 1) for ids in encoded]
    with jax.set_mesh(trained.mesh), screen.doing(f"sampling {len(prompts) * samples} texts"):
        completions = complete(
            trained.params["model"], adapters(trained.params, config), assembly.model,
            assembly.vocab, config.sampling, rows, jax.random.key(config.seed),
            config.evaluate.batch_rows, trained.mesh, assembly.ids.floor_masked,
            Thinking(thoughts) if thoughts is not None else None, samples,
        )  # fmt: skip
    # Then no <eos> is ever taught behind it.
    answers_in_one_token = assembly.staged is not None and assembly.staged.alone
    colour = sys.stdout.isatty()
    texts = []
    for i, completion in enumerate(completions):
        cut = completion.truncated and not answers_in_one_token
        given = as_given(assembly, prompts[i // samples], encoded[i // samples])
        if as_json:
            texts.append(_as_json(completion, assembly.vocab, prompts, i, samples, cut))
            continue
        shown = strike_out(completion, assembly.vocab, colour)
        end = " (cut off at the limit)" if cut else "" if shown else f" {EMPTY}"
        texts.append(f"{given}{shown}{end}")
    print("\n".join(texts if as_json else numbered(texts, samples)))
    if not any(completion.text for completion in completions):
        screen.say(_nothing_written(assembly))
    return 0


def numbered(texts: list[str], samples: int) -> list[str]:
    """Several texts with the numbers of their prompt and sample; those of many lines set apart."""
    if len(texts) == 1:
        return texts
    several, apart = len(texts) > samples, any("\n" in text.rstrip("\n") for text in texts)
    lines = []
    for i, text in enumerate(texts):
        prompt, one = i // samples + 1, i % samples + 1
        if not apart:
            number = f"{prompt}" if samples == 1 else f"{prompt}.{one}" if several else f"{one}"
            lines.append(f"{number:<5}{text}")
            continue
        names = [f"prompt {prompt}"] * several + [f"sample {one}"] * (samples > 1)
        lines += [f"--- {', '.join(names)} ---", text, ""]
    return lines[:-1] if apart else lines


def _as_json(
    completion: Completion, vocab: Vocab, prompts: list[str], i: int, samples: int, cut: bool
) -> str:
    """`text` is what stands in the end, `written` all that was, with [-what was taken back-]."""
    return json.dumps(
        {
            "prompt_number": i // samples + 1, "sample": i % samples + 1,
            "prompt": prompts[i // samples], "text": completion.text,
            "written": strike_out(completion, vocab, colour=False), "cut_off": cut,
        },
        ensure_ascii=False,
    )  # fmt: skip


def _nothing_written(assembly: Assembly) -> str:
    """Where no completion has a word: how a question of the run's own data reads."""
    line = "no completion holds anything: the model ended at once"
    data = assembly.config.data
    if data.source != "task":
        return line
    source = Sources(data, task_of(assembly.config)).raw("train")
    question = first_examples(source, 1)[0].question + data.question_suffix
    return f"{line}; a question that it was trained on reads {question!r}"


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
