"""Whether a model has positions for a row or a prompt: refused where it has none, told where they
are beyond what the model was made for. Cuts nothing.
"""

from __future__ import annotations

import functools
import sys

from reasoning_jax.config import ConfigError, ModelConfig, SamplingConfig
from reasoning_jax.model.rope import trained_positions


def new_tokens(sampling: SamplingConfig) -> int:
    """The most tokens that a completion adds to a prompt."""
    return min(sampling.max_actions, sampling.max_new_tokens or sampling.max_actions)


def check_room(model: ModelConfig, sampling: SamplingConfig, prompt_tokens: int) -> None:
    """Refuse what would need more positions than a model with learned ones has."""
    more = new_tokens(sampling)
    if model.position == "learned" and prompt_tokens + more > model.max_positions:
        raise ConfigError(
            f"a prompt of {prompt_tokens} tokens and {more} new ones are beyond the "
            f"{model.max_positions} positions of the model; shorten the prompt or lower "
            "--config.sampling.max_new_tokens"
        )


def row_note(model: ModelConfig, seq_len: int) -> tuple[str, ...]:
    """A line for the start of a run whose rows are longer than RoPE was made for."""
    limit = trained_positions(model)
    if model.position != "rope" or limit is None or seq_len <= limit:
        return ()
    return (
        f"data.seq_len={seq_len} is beyond the {limit} positions that the model's RoPE is made "
        "for; it goes on beyond them, but pretrained weights have not seen them",
    )


def tell_beyond(
    model: ModelConfig, sampling: SamplingConfig, prompt_tokens: int, seq_len: int
) -> None:
    """Say on stderr, once, where a prompt and its completion pass the positions that RoPE is made
    for, and the `seq_len` that were trained on.
    """
    limit, more = trained_positions(model), new_tokens(sampling)
    if model.position != "rope" or limit is None:
        return
    limit = max(limit, seq_len)
    if prompt_tokens + more > limit:
        _tell(
            f"note: a prompt of {prompt_tokens} tokens and up to {more} new ones pass the {limit} "
            "positions that the model was made for; what comes after them may be nonsense"
        )


@functools.cache
def _tell(note: str) -> None:
    print(note, file=sys.stderr)
