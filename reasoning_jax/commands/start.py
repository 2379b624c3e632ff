"""What a run begins with: another run (`start.run`), described by its folder, or weights.

The ids of that run stay as they are; specials that only the new run needs get ids behind them.
Whatever does not fit is refused in words. Starts no backend, but for `state_hash`; parameters are
read by `commands.pretrained`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from reasoning_jax.commands import runfolder
from reasoning_jax.config import ARCHITECTURE_FIELDS, Config, ConfigError, ModelConfig
from reasoning_jax.config_check import from_dict, validate
from reasoning_jax.config_fields import show
from reasoning_jax.vocab import (
    BACKSPACE,
    LATENT_SPECIALS,
    TokenizerCodec,
    Vocab,
    VocabError,
)

# How vocab.kind calls a codec that came with weights.
_KINDS = {"tokenizer": ("tokenizer", "weights")}


@dataclass(frozen=True)
class Start:
    """A step of a run, and what its parameters are of: `config` is how that run was trained,
    `vocab` and `model` are its own, without rows for what the new run adds.
    """

    run: Path
    step: int
    config: Config
    vocab: Vocab
    model: ModelConfig
    notes: tuple[str, ...] = ()


def read_start(config: Config, workdir: Path | None = None) -> Start:
    """The run that `config.start` names, after a look whether its step is intact.

    `workdir` is the new run's own folder.

    Raises:
      ConfigError: it is no run, it is the new run itself, or it is being trained and no step is
        named.
      VocabError: its vocabulary cannot be read.
      CheckpointError: it has no intact checkpoint, or not that step.
    """
    run = Path(config.start.run)
    if workdir is not None and workdir.exists() and run.exists() and run.samefile(workdir):
        raise ConfigError(
            f"start.run={show(config.start.run)} is the folder of the new run itself; give it "
            "another --workdir"
        )
    first, vocab, model, notes = _described(config)
    if config.start.step < 0 and (owner := runfolder.trainer(run)) is not None:
        raise ConfigError(
            f"start.run={show(config.start.run)} is being trained by {owner}, so its newest step "
            "is not its last; wait for its end, or name a step: --config.start.step=N"
        )
    return Start(run, _intact_step(config), first, vocab, model, notes)


def read_model(config: Config) -> ModelConfig:
    """The architecture that `start.run` or `weights.path` says. Imports no JAX.

    Raises:
      ConfigError, WeightsError: it cannot be read.
    """
    if config.start.run:
        return _described(config)[2]
    from reasoning_jax import weights

    return weights.read_config(config.weights.path)


def latent_rows(config: Config, vocab: Vocab) -> dict[int, int | None]:
    """The id whose row each marker of latent thought starts with; None is the mean of all.

    Raises:
      ConfigError: `weights.latent_rows` is not one token of this vocabulary.
    """
    markers = [vocab.specials[name] for name in LATENT_SPECIALS if name in vocab.specials]
    text = config.weights.latent_rows
    if text == "mean":
        return dict.fromkeys(markers)
    try:
        ids = vocab.encode(text)
    except VocabError as error:
        raise ConfigError(f"weights.latent_rows: {error}") from None
    if len(ids) != 1:
        pieces = ", ".join(repr(vocab.decode([i])) for i in ids[:4]) + ", ..." * (len(ids) > 4)
        raise ConfigError(
            f"weights.latent_rows={show(text)} must be one token of this tokenizer, "
            f'got {len(ids)} ({pieces}); take a text that is one, or "mean"'
        )
    return dict.fromkeys(markers, ids[0])


def _described(config: Config) -> tuple[Config, Vocab, ModelConfig, tuple[str, ...]]:
    """What a run's folder says of it: config, vocabulary, architecture, and what to tell."""
    run, key = Path(config.start.run), f"start.run={show(config.start.run)}"
    try:
        first = from_dict(runfolder.read_config(run))
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None
    vocab = runfolder.read_vocab(run)
    model = runfolder.read_model(run)
    if model is not None:
        return first, vocab, model, ()
    if not first.weights.path:
        return (
            first,
            vocab,
            dataclasses.replace(first.model, vocab_size=vocab.size, pair_rows=vocab.pairs),
            (),
        )
    from reasoning_jax import weights

    model = dataclasses.replace(weights.read_config(first.weights.path), vocab_size=vocab.size)
    return first, vocab, model, (runfolder.shape_note(run, first.weights.path),)


def _intact_step(config: Config) -> int:
    """The step that is named, or the newest one whose parameters are as they were saved."""
    from reasoning_jax.train import manifest
    from reasoning_jax.train.checkpoint import CheckpointError

    folder, wanted = Path(config.start.run) / "checkpoints", config.start.step
    key, steps = f"start.run={show(config.start.run)}", runfolder.saved_steps(folder.parent)
    if not steps:
        raise CheckpointError(f"{key} has no complete checkpoint to start from, in {folder}")
    if wanted >= 0 and wanted not in steps:
        raise CheckpointError(
            f"start.step={wanted} is not in {folder}; there are {', '.join(map(str, steps))}"
        )
    chosen = steps[::-1] if wanted < 0 else [wanted]
    lines: list[str] = []
    # Those of versions without manifests cannot be checked, and come last.
    for step in sorted(chosen, key=lambda n: manifest.exists(folder / str(n)), reverse=True):
        findings = manifest.check(folder / str(step), step, ("params", "meta"))
        if not findings or not manifest.exists(folder / str(step)):
            return step
        lines.append(f"checkpoint {step} in {folder}: {findings[0]}")
    intact = [n for n in steps if n not in chosen and not manifest.check(folder / str(n), n)]
    hint = [f"intact: {', '.join(map(str, intact))}"] if intact else []
    raise CheckpointError("\n".join([f"{key} has no intact checkpoint", *lines[:3], *hint]))


def state_hash(run: Path, step: int) -> str:
    """The hash of the parameters that a step of a run holds. Raises CheckpointError."""
    from reasoning_jax.train.checkpoint import Checkpoints

    with Checkpoints(run / "checkpoints") as checkpoints:
        return str(dict(checkpoints.read_meta(step).get("state_hash", {})).get("params", ""))


def fitted(config: Config, start: Start) -> tuple[Config, Vocab, str]:
    """`config` with the kind of the run's vocabulary, that vocabulary with all specials that the
    new run needs, and a line that says so.

    Raises:
      ConfigError: a value of `model` or `vocab` that is not that run's, or keys that do not go with
        its vocabulary.
    """
    _check_model(config, start)
    kind = _check_vocab(config, start)
    # The rules between the kind of vocabulary and everything else.
    resolved = dataclasses.replace(
        config, vocab=dataclasses.replace(config.vocab, kind=kind, path="")
    )
    validate(resolved)
    vocab, added = with_specials(
        start.vocab, backspace=config.vocab.backspace, latent=config.vocab.latent
    )
    more = f"; added {', '.join(f'{n}={vocab.specials[n]}' for n in added)}" if added else ""
    line = (
        f"begins with step {start.step} of {start.run}: its {kind} vocabulary of "
        f"{start.vocab.size} rows{more}"
    )
    return resolved, vocab, line


def with_specials(vocab: Vocab, *, backspace: bool, latent: bool) -> tuple[Vocab, tuple[str, ...]]:
    """`vocab` with ids for the specials that it lacks, behind its last one; also their names.

    No id changes. Rows that no id uses, as pretrained tables have them, are taken first.
    """
    wanted = (BACKSPACE,) * backspace + LATENT_SPECIALS * latent
    added = tuple(name for name in wanted if name not in vocab.specials)
    first = max(vocab.codec.size, *(i + 1 for i in vocab.specials.values()))
    specials = {**vocab.specials, **{name: first + i for i, name in enumerate(added)}}
    size = max(vocab.size, first + len(added))
    return Vocab(vocab.codec, specials, size), added


def _check_model(config: Config, start: Start) -> None:
    usual = ModelConfig()
    for name in ARCHITECTURE_FIELDS:
        value, own = getattr(config.model, name), getattr(start.model, name)
        # That of the vocabulary with its new rows is compared when these are known.
        if name != "vocab_size" and value not in (getattr(usual, name), own):
            raise ConfigError(
                f"model.{name}={value!r} is not that of start.run={show(str(start.run))}, whose "
                f"model.{name} is {own!r}; leave it out, or begin without start.run"
            )


def _check_vocab(config: Config, start: Start) -> str:
    """How vocab.kind calls the run's vocabulary, after a comparison with what is set."""
    asked, key = config.vocab, f"start.run={show(str(start.run))}"
    codec = start.vocab.codec
    kind = str(codec.to_dict()["kind"])
    names = _KINDS.get(kind, (kind,))
    if asked.kind not in (type(asked)().kind, *names):
        raise ConfigError(
            f'vocab.kind="{asked.kind}" is not that of {key}, whose vocabulary is of kind '
            f'"{kind}"; leave it out, or begin without start.run'
        )
    if asked.path:
        from reasoning_jax import weights

        text = weights.read_tokenizer_file(asked.path).tokenizer_json
        if text is None or codec != TokenizerCodec(text):
            raise ConfigError(
                f"vocab.path={show(asked.path)} is another tokenizer than that of {key}; leave "
                "vocab.path out to take the run's"
            )
    if not asked.backspace and start.vocab.backspace_id is not None:
        raise ConfigError(
            f"vocab.backspace=False, but the vocabulary of {key} has {BACKSPACE}, and its ids "
            "stay; leave vocab.backspace=True"
        )
    return kind
