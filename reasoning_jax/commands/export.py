"""`export`: a checkpoint as a Hugging Face folder that needs nothing else to be used."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reasoning_jax import screen, weights
from reasoning_jax.commands import runfolder
from reasoning_jax.commands.export_readme import Facts, readme
from reasoning_jax.commands.load import load_assembly, restore
from reasoning_jax.config import Config, ConfigError, check_choice
from reasoning_jax.exit_codes import UsageError
from reasoning_jax.model import spec
from reasoning_jax.model.lora import merge
from reasoning_jax.train.state import adapters as adapters_of
from reasoning_jax.vocab import TokenizerCodec, Vocab
from reasoning_jax.weights import Companions, peft, tokenizer_out, vocabulary
from reasoning_jax.weights.tokenizer_class import built_class, class_note

ADAPTERS = ("merge", "beside")


def export(
    config: Config,
    workdir: Path,
    out: Path,
    step: int | None,
    *,
    overwrite: bool = False,
    adapters: str | None = None,
) -> int:
    """Write weights, tokenizer, settings and a README.md to `out`.

    `adapters`: "merge" adds LoRA adapters to the weights (the default), "beside" writes them in
    PEFT's format to a folder of their own in `out`.

    Raises:
      UsageError, ConfigError: adapters of a run that has none, a folder that cannot be written.
      WeightsError: no Hugging Face family is such a model, or the folder holds something already.
      CheckpointError: no usable checkpoint, or not that step.
    """
    if adapters is not None:
        check_choice("--adapters", adapters, ADAPTERS)
    if adapters == "beside" and not config.lora.rank:
        raise UsageError("--adapters=beside goes with a run that has adapters; lora.rank is 0 here")
    assembly = load_assembly(config, workdir, with_data=False)
    model, vocab = assembly.model, assembly.vocab
    # All that can be refused is, before a checkpoint is read.
    family = weights.family_of(model)
    place = weights.check_place(out, overwrite)
    _check_sources(place, workdir, config)
    kept, missing = _kept(config, workdir, vocab)
    files = tokenizer_out.tokenizer_files(vocab, kept, model.max_positions)
    files[vocabulary.FILE] = vocabulary.vocab_text(vocab)
    rebuilt = _rebuilt(family, files)
    trained = restore(assembly, workdir, step)
    params, lora = trained.params["model"], adapters_of(trained.params, config)
    adapter = None
    if lora is not None and adapters == "beside":
        flat = spec.flatten(lora.params)
        adapter = peft.peft_adapter(model, config.lora, flat, family, str(place))
    elif lora is not None:
        params = merge(params, lora)
    notes = (*kept.notes, *missing, *rebuilt)
    files["README.md"] = readme(
        Facts(config, vocab, trained.step, _commit(workdir), trained.stage, adapter is not None,
              missing, kept.has_template, bool(rebuilt))
    )  # fmt: skip
    try:
        screen.say(f"writing step {trained.step} to {out}")
        weights.export(
            out, model, params, family=family, files=files, adapter=adapter, overwrite=overwrite,
            eos_id=_one_or_all(tokenizer_out.eos_ids(vocab, kept)),
            bos_id=tokenizer_out.bos_id(vocab, kept), pad_id=vocab.pad_id,
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(f"--out={out} cannot be written: {error.strerror}") from None
    for note in notes:
        print(f"note: {note}")
    print(f"exported step {trained.step} to {out}")
    return 0


def _one_or_all(ids: list[int]) -> int | list[int]:
    return ids[0] if len(ids) == 1 else ids


def _check_sources(place: Path, workdir: Path, config: Config) -> None:
    """Refuse to write over the run itself, or over the weights that it started from."""
    for what, path in (("the run", workdir), ("the weights that the run started from",
                                              Path(config.weights.path or workdir))):  # fmt: skip
        if place == Path(os.path.realpath(path)):
            raise ConfigError(f"--out={place} is the folder of {what}; give another")


def _kept(config: Config, workdir: Path, vocab: Vocab) -> tuple[Companions, tuple[str, ...]]:
    """What came with the pretrained weights, and what of it is missing."""
    kept = runfolder.read_pretrained(workdir)
    codec = vocab.codec
    if kept is None and config.weights.path and isinstance(codec, TokenizerCodec):
        # A run of a version that kept nothing. What lies there now is the source, if it has the
        # same tokenizer.
        try:
            source = weights.read_tokenizer(config.weights.path)
            if source.tokenizer_json == codec.tokenizer_json:
                kept = weights.read_companions(config.weights.path)
        except weights.WeightsError:
            kept = None
    if kept is not None:
        return kept, ()
    # A vocabulary of our own never had any: its texts end with an id behind the codec's.
    if not isinstance(codec, TokenizerCodec) or vocab.eos_id >= codec.size:
        return Companions(), ()
    return Companions(), (
        "the run has no folder pretrained, and its source is not there: the chat template and the "
        "generation and tokenizer settings of the original are missing from this export",
    )


def _rebuilt(family: str, files: Mapping[str, str]) -> list[str]:
    """A note where transformers would not take tokenizer.json as it is."""
    tokenizer = json.loads(files["tokenizer.json"])
    settings = json.loads(files["tokenizer_config.json"])
    return class_note(built_class({"model_type": family}, settings, tokenizer), tokenizer)


def _commit(workdir: Path) -> str:
    try:
        values: Any = json.loads((workdir / "env.json").read_text(encoding="utf-8"))
        return str(values["commit"])[:40]
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"
