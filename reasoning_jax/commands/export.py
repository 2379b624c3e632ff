"""`export`: a checkpoint as a Hugging Face folder, adapters merged in."""

from __future__ import annotations

from pathlib import Path

from reasoning_jax import weights
from reasoning_jax.commands import sources
from reasoning_jax.commands.load import load_assembly, restore
from reasoning_jax.config import Config, ConfigError
from reasoning_jax.model.lora import merge
from reasoning_jax.train.state import adapters
from reasoning_jax.vocab import TokenizerCodec


def export(config: Config, workdir: Path, out: Path, step: int | None) -> int:
    """Write config.json, safetensors and, where there is one, tokenizer.json to `out`."""
    trained = restore(load_assembly(config, workdir, sources.SAMPLE), workdir, step)
    params = trained.params["model"]
    lora = adapters(trained.params, config)
    if lora is not None:
        params = merge(params, lora)
    vocab = trained.assembly.vocab
    codec = vocab.codec
    model = trained.assembly.model
    try:
        weights.export(
            out, model, params, family=weights.family_of(model),
            tokenizer_json=codec.tokenizer_json if isinstance(codec, TokenizerCodec) else None,
            eos_id=vocab.eos_id, bos_id=vocab.bos_id, pad_id=vocab.pad_id,
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(f"--out={out} cannot be written: {error.strerror}") from None
    print(f"exported step {trained.step} to {out}")
    return 0
