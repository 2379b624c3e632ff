"""From a Config to the objects of a run: task, data, vocabulary, model shape. Starts no backend.

Whatever is wrong with them is found here, before any device is touched.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reasoning_jax import vocab as vocabularies
from reasoning_jax.commands import start as starts
from reasoning_jax.commands.records import TRIAL, Sources, measure_data
from reasoning_jax.commands.room import check_room, row_note, tell_beyond
from reasoning_jax.config import (
    COMPUTE_FIELDS,
    Config,
    ConfigError,
    DataConfig,
    ModelConfig,
)
from reasoning_jax.data.batch import Encoder, noise_ids
from reasoning_jax.data.curriculum import MODES, Curriculum, RowPlan, StagedEncoder
from reasoning_jax.data.examples import Example, extract_answer
from reasoning_jax.decoding.sampler import ActionIds
from reasoning_jax.model.latent import Thoughts
from reasoning_jax.tasks import Task, make_task
from reasoning_jax.tasks.answers import same_answer
from reasoning_jax.vocab import LATENT, Vocab

# Tokens of the training data from which n-gram noise is counted.
_NGRAM_TOKENS = 1_000_000


@dataclass(frozen=True)
class Assembly:
    """Everything a command needs that the config implies. `notes` are lines to show at start.
    Without `with_data` there is no source to open.
    """

    config: Config
    task: Task | None
    vocab: Vocab
    model: ModelConfig
    encoder: Encoder
    notes: tuple[str, ...] = ()
    with_data: bool = True
    # Opening a file reads all of it: they are opened and measured once.
    sources: Sources = field(default_factory=Sources, repr=False, compare=False)
    # The run whose parameters this one begins with, where it has not begun yet.
    start: starts.Start | None = None
    # Fingerprints of sources that hold something else than those of the run; see `sources`.
    differing: Mapping[str, str] = field(default_factory=dict)

    @property
    def ids(self) -> ActionIds:
        """The ids that a sampler must know, and whether the floor is masked."""
        return ActionIds.of(self.vocab, self.config.sequencematch.floor_backspace == "masked")

    @property
    def thoughts(self) -> Thoughts | None:
        """What is fed back, where something is."""
        config = self.config.latent
        if config.mode == "off" or MODES[config.mode].slots != "thought":
            return None
        latent_id = self.vocab.specials[LATENT]
        return Thoughts(latent_id, config.thought, config.thought_scale, config.jacobi_iterations)

    @functools.cached_property
    def staged(self) -> StagedEncoder | None:
        """Rows of the curriculum's stages, where there is one. Without data nothing can be said of
        when stages begin.
        """
        if self.config.latent.mode == "off":
            return None
        return self.staged_of(len(self.examples("train")) if self.with_data else 1)

    def staged_of(self, examples: int) -> StagedEncoder:
        """Rows of the curriculum's stages, of so many training examples."""
        config = self.config
        curriculum = Curriculum(config.latent, examples, config.train.batch_rows)
        shuffle = None
        if config.data.reshuffle_edges:
            from reasoning_jax.tasks.prosqa_text import reshuffled

            shuffle = reshuffled
        return StagedEncoder(self.encoder, curriculum, shuffle)

    def examples(self, split: str) -> Any:
        """The source of a split's examples, measured: without the bad ones where they are skipped.

        Raises:
          DataError, TaskError: it cannot be read, or has bad records that are refused.
        """
        return self.sources.examples(self, split)

    def judge(self, source: Any, index: int) -> Any:
        """A function from a completion's text to whether it answers example `index` of `source`."""
        data = self.config.data
        if self.task is not None:
            return functools.partial(
                _verified, self.task, source.problem(index), data.answer_prefix
            )
        example = source[index]
        prefix = data.answer_prefix
        if not prefix and data.with_steps and example.steps and self.config.latent.mode == "off":
            # Nothing but the end of the last step parts the answer from the steps.
            prefix = data.step_suffix
        return functools.partial(_matches, example.answer, prefix)


def assemble(
    config: Config,
    saved_vocab: Vocab | None = None,
    *,
    saved_model: ModelConfig | None = None,
    with_data: bool = True,
    splits: Sequence[str] = (),
    saved_horizon: int | None = None,
    workdir: Path | None = None,
) -> Assembly:
    """Build the parts of a run and measure its records (of `splits`; default: all that it needs).

    With `saved_vocab` (of an existing run) no vocabulary is built from data, with `saved_model`
    what the run began from is not read, and with `saved_horizon` it is not measured what
    sequencematch.horizon="auto" is. Without `with_data` the data need not be there: prompts are
    encoded, but there is neither task nor noise. `workdir` is the run's own folder, if any.

    Raises:
      ConfigError, TaskError, DataError, VocabError, WeightsError
      CheckpointError: the run that this one starts from has no usable checkpoint.
    """
    start, vocab, notes = None, saved_vocab, ()
    if config.start.run and vocab is None:
        start = starts.read_start(config, workdir)
        config, vocab, note = starts.fitted(config, start)
        notes = (*start.notes, note)
    elif config.start.run:
        assert vocab is not None
        config = replace(config, vocab=replace(config.vocab, kind=vocab.codec.to_dict()["kind"]))
    config = replace(config, data=replace(config.data, window_chars=window_chars(config)))
    task = task_of(config) if with_data else None
    sources = Sources(config.data, task)
    from reasoning_jax import weights

    model = config.model
    if config.weights.path or config.start.run:
        read = saved_model or (start.model if start else starts.read_model(config))
        model = replace(read, **{name: getattr(config.model, name) for name in COMPUTE_FIELDS})
    if vocab is None:
        vocab, notes = _vocab(config, sources, model)
        if config.weights.path:
            notes += weights.adapter_notes(config.weights.path)
    starts.latent_rows(config, vocab)
    if not config.weights.path and config.model.vocab_size not in (0, vocab.size):
        raise ConfigError(
            f"model.vocab_size={config.model.vocab_size} but the vocabulary has {vocab.size} rows; "
            "leave it 0 to follow the vocabulary"
        )
    if config.model.pair_rows not in (0, vocab.pairs):
        raise ConfigError(
            f"model.pair_rows={config.model.pair_rows} but the vocabulary has pairs of "
            f"{vocab.pairs} words; leave it 0 to follow the vocabulary"
        )
    # Prompts and samples have other lengths than rows: `model.attention` is for training alone.
    model = replace(model, vocab_size=vocab.size, pair_rows=vocab.pairs, attention="auto")
    if model.position == "learned" and config.data.seq_len > model.max_positions:
        raise ConfigError(
            f"data.seq_len={config.data.seq_len} is beyond model.max_positions="
            f"{model.max_positions}"
        )
    notes += row_note(model, config.data.seq_len)
    if config.objective.name == "bc" and vocab.backspace_id is None:
        raise ConfigError('objective.name="bc" needs vocab.backspace=True')
    units = task.noise_units() if task is not None else ()
    noise = config.noise if with_data else replace(config.noise, rate=0.0)
    encoder = Encoder(
        vocab, config.data, noise, noise_ids(vocab, noise, units),
        terminal_row=config.objective.name == "sequencematch",
        cut=config.data.source == "text",
    )  # fmt: skip
    assembly = Assembly(config, task, vocab, model, encoder, notes, with_data, sources, start)
    if with_data:
        assembly = replace(assembly, notes=(*notes, *measure_data(assembly, splits)))
    if noise.rate and noise.source == "ngram":
        assembly = replace(assembly, encoder=replace(encoder, ngrams=_ngrams(assembly)))
    if with_data and not splits:
        _check_stages(assembly)
    if config.objective.name == "sequencematch":
        assembly = _with_horizon(assembly, saved_horizon)
    return assembly


def _with_horizon(assembly: Assembly, saved: int | None) -> Assembly:
    """The assembly with a number in place of sequencematch.horizon="auto", and notes about it."""
    from reasoning_jax.rl import horizon

    config = assembly.config
    automatic = config.sequencematch.horizon == "auto"
    if not assembly.with_data:
        # Nothing is trained without data, so that no loss needs it.
        return replace(assembly, config=horizon.with_horizon(config, saved or 1))
    lengths = horizon.measure(assembly.examples("train"), assembly.encoder, config)
    if automatic:
        config = horizon.with_horizon(config, saved or lengths.horizon)
    notes = horizon.notes(config, lengths, automatic)
    return replace(assembly, config=config, notes=(*assembly.notes, *notes))


def _check_stages(assembly: Assembly) -> None:
    """Refuse problems that learned positions have no room for at any stage, not only the first.

    Raises:
      ConfigError
    """
    if assembly.staged is None or assembly.model.position != "learned":
        return
    e, curriculum = assembly.config.evaluate, assembly.staged.curriculum
    stages: Sequence[int] = range(curriculum.first, curriculum.last + 1)
    if curriculum.mode.removes == "tokens":
        stages = (curriculum.first,)
    # Problems of a task are drawn one by one, and a sample of them is looked at.
    problems = min(e.problems, TRIAL) if assembly.config.data.source == "task" else e.problems
    for stage in stages:
        evaluation_items(assembly, e.split, problems, stage)


def window_chars(config: Config) -> int:
    """Characters of a text window: what is set, or what data.seq_len positions hold.

    A tokenizer's or a word's token is taken to be four characters; a window that is longer after
    all loses its end. 0 where the data are no text.
    """
    if config.data.source != "text" or config.data.window_chars:
        return config.data.window_chars
    each = 1 if config.vocab.kind in ("char", "byte") else 4
    return max(1, each * (config.data.seq_len - 2))


def _ngrams(assembly: Assembly) -> Any:
    """Bigram counts of the training data's first tokens."""
    from reasoning_jax.data.ngram import NgramNoise

    source, encoder = assembly.examples("train"), assembly.encoder

    def sequences() -> Any:
        for i in range(len(source)):
            prompt, response = encoder.split_ids(source[i])
            yield prompt + response

    return NgramNoise.from_sequences(sequences(), encoder.vocab.text_ids(), _NGRAM_TOKENS)


def corruption_ids(vocab: Vocab, task: Task | None) -> list[int]:
    """What corrupted prefixes are made of: the task's units where each is one token, else text."""
    units = task.noise_units() if task is not None else ()
    encoded = [vocab.encode(unit) for unit in units]
    if encoded and all(len(ids) == 1 for ids in encoded):
        return [ids[0] for ids in encoded]
    return vocab.text_ids()


def task_of(config: Config) -> Task | None:
    if config.data.source in ("jsonl", "text"):
        return None
    if config.data.source == "tfds":
        from reasoning_jax.data.builder import TfdsSource

        source = TfdsSource(config.data.path, "train")
        return make_task(source.task_name, **source.dials)
    return make_task(config.task.name, **dict(config.task.dials))


def _vocab(config: Config, sources: Sources, model: ModelConfig) -> tuple[Vocab, tuple[str, ...]]:
    """Build the vocabulary; also says what was done."""
    kind = config.vocab.kind
    options = {"backspace": config.vocab.backspace, "latent": config.vocab.latent}
    notes: tuple[str, ...] = ()
    if kind == "weights":
        from reasoning_jax import weights

        path = config.weights.path
        files = weights.read_tokenizer(path)
        vocab, added = weights.vocab_of_weights(files, model.vocab_size, path, **options)
        return vocab, (*files.notes, added)
    if config.weights.path:
        raise ConfigError(
            f'vocab.kind={kind!r} does not go with weights.path; use vocab.kind="weights"'
        )
    if kind == "tokenizer":
        from reasoning_jax import weights

        tokenizer = weights.read_tokenizer_file(config.vocab.path)
        codec: Any = vocabularies.TokenizerCodec(tokenizer.tokenizer_json or "")
        notes = tokenizer.notes
        if (tokenizer.begin_id, tokenizer.eos_id) != (None, None):
            notes += (
                f"{config.vocab.path}: its own start and end of a text are not used; prompts begin "
                f"with {vocabularies.BOS} and responses end with {vocabularies.EOS}, added here",
            )
    elif kind == "byte":
        codec = vocabularies.ByteCodec()
    elif kind == "char":
        codec = vocabularies.CharCodec(_characters(config, sources))
    elif kind == "word":
        codec = vocabularies.word_codec(_words(config, sources))
    else:
        codec = vocabularies.PairCodec(_words(config, sources))
    vocab = vocabularies.make_vocab(codec, **options)
    return vocab, (*notes, vocabularies.describe(vocab))


def _layout_text(data: DataConfig) -> str:
    return data.question_suffix + data.step_suffix + data.answer_prefix


def _characters(config: Config, sources: Sources) -> str:
    task = sources.task
    found = set(_layout_text(config.data))
    if task is not None:
        found |= set(task.characters())
    else:
        for text in _all_text(sources):
            found |= set(text)
    return "".join(sorted(found))


def _words(config: Config, sources: Sources) -> tuple[str, ...]:
    task = sources.task
    found = {"\n", *_layout_text(config.data).split()}
    if task is not None:
        if not task.words():
            raise ConfigError(
                f'vocab.kind="{config.vocab.kind}": task {task.name} has no fixed set of words; '
                'use "char" or "byte"'
            )
        found |= set(task.words())
    else:
        for text in _all_text(sources):
            found |= set(text.split())
    if config.vocab.kind == "pair":
        pairs = {word for word in found if vocabularies.PAIR in word}
        found = (found - pairs).union(*(word.split(vocabularies.PAIR, 1) for word in pairs))
    return tuple(sorted(found))


def _all_text(sources: Sources) -> Any:
    """The text of every record, whatever its split: a held-out one must be encoded, too."""
    for source in sources.whole():
        for i in range(len(source)):
            example = source[i]
            yield from (example.question, *example.steps, example.answer)


def _verified(task: Task, problem: Any, prefix: str, text: str) -> bool:
    return task.verify(problem, extract_answer(text, prefix)).correct


def _matches(answer: str, prefix: str, text: str) -> bool:
    return same_answer(answer, extract_answer(text, prefix))


def evaluation_items(
    assembly: Assembly, split: str, count: int, stage: int | None = None
) -> list[Any]:
    """The first `count` examples of a split as items of `evaluate.accuracy`; of a curriculum, as
    its stage (default: the last) or evaluate.thoughts says.

    Raises:
      ConfigError: learned positions leave no room for a prompt and its completion.
    """
    from reasoning_jax.evaluate.accuracy import EvaluationItem

    source = assembly.examples(split)
    encoder = assembly.encoder
    items: list[Any] = []
    most = 0
    for i in range(min(count, len(source))):
        example = source[i]
        options, before_answer = (), ()
        if assembly.staged is not None:
            plan = answer_plan(assembly, stage, len(example.steps))
            prompt_ids, _ = assembly.staged.context(example, plan)
            response_ids, _, _ = assembly.staged.target(example, plan)
            if assembly.staged.alone:
                response_ids = [*response_ids, encoder.vocab.eos_id]
            else:
                before_answer = tuple(encoder.vocab.encode(assembly.config.data.answer_prefix))
            encoded = [encoder.vocab.encode(option) for option in example.options]
            if all(len(ids) == 1 for ids in encoded):
                options = tuple(ids[0] for ids in encoded)
        else:
            prompt, response = encoder.render(example)
            prompt_ids, response_ids = encoder.prompt_ids(prompt), encoder.response_ids(response)
        e = assembly.config.evaluate
        wrong = max(e.corrupt_tokens, *e.corrupt_also, 0)
        # The longest corrupted prompt: all of the response but <eos>, and the wrong tokens.
        longest = len(prompt_ids) + (len(response_ids) - 1 + wrong if wrong else 0)
        check_room(assembly.model, assembly.config.sampling, longest)
        most = max(most, longest)
        items.append(
            EvaluationItem(
                tuple(prompt_ids),
                tuple(response_ids),
                example.difficulty,
                _answered(assembly, assembly.judge(source, i)),
                options,
                before_answer,
            )
        )
    tell_beyond(assembly.model, assembly.config.sampling, most, assembly.config.data.seq_len)
    return items


def answer_plan(assembly: Assembly, stage: int | None, n_steps: int) -> RowPlan:
    """The plan of a prompt for evaluation: of a stage, or of evaluate.thoughts where it is set."""
    assert assembly.staged is not None
    curriculum, thoughts = assembly.staged.curriculum, assembly.config.evaluate.thoughts
    if thoughts >= 0:
        return curriculum.answering(curriculum.forced(thoughts, n_steps))
    stage = curriculum.last if stage is None else stage
    return curriculum.answering(curriculum.plan(stage, n_steps))


def _answered(assembly: Assembly, judge: Any) -> Any:
    """The judge of a completion; where answer_prefix is given with the prompt, it is put back."""
    if assembly.staged is None or not assembly.staged.alone:
        return judge
    prefix = assembly.config.data.answer_prefix
    return lambda text: judge(prefix + text)


def text_windows(assembly: Assembly, split: str, count: int) -> list[list[int]]:
    """The first `count` windows of a split of text as ids, evenly spread, cut to data.seq_len.

    Raises:
      ConfigError: no window is longer than what is given of it, or learned positions end before
        a continuation would.
    """
    source, encoder = assembly.examples(split), assembly.encoder
    config = assembly.config
    count = min(count, len(source))
    places = [i * len(source) // count for i in range(count)]
    ids = (encoder.split_ids(source[i]) for i in places)
    windows = [(prompt + response)[: config.data.seq_len] for prompt, response in ids]
    given = max(1, config.evaluate.prompt_tokens + (encoder.vocab.bos_id is not None))
    if max(map(len, windows)) <= given:
        raise ConfigError(
            f"evaluate.prompt_tokens={config.evaluate.prompt_tokens} leaves nothing to continue of "
            f"windows of {max(map(len, windows))} tokens; lower it"
        )
    check_room(assembly.model, config.sampling, given)
    tell_beyond(assembly.model, config.sampling, given, config.data.seq_len)
    return windows


def clean_encoder(encoder: Encoder) -> Encoder:
    """The same layout without noise, for validation loss."""
    return replace(encoder, noise=replace(encoder.noise, rate=0.0))


def first_examples(source: Any, count: int) -> Sequence[Example]:
    return [source[i] for i in range(min(count, len(source)))]
