"""Keys that nothing reads where another key has a certain value: set there, they are refused.

A table, and the check that goes through it. Rules with words of their own are in `config_check`
and `config_check_objectives`.
"""

from __future__ import annotations

from typing import Any

from reasoning_jax.config import Config
from reasoning_jax.config_fields import ConfigError, show

_RECORDS = ("task", "jsonl", "tfds")
# (keys, another key, its values with which the keys are not read).
UNREAD: tuple[tuple[tuple[str, ...], str, tuple[Any, ...]], ...] = (
    (
        ("sampling.temperature", "sampling.top_k", "sampling.top_p", "sampling.min_p"),
        "sampling.method", ("contrastive",),
    ),
    (
        ("sampling.contrastive_candidates", "sampling.contrastive_penalty"),
        "sampling.method", ("sample",),
    ),
    (("optimizer.b1",), "optimizer.name", ("adafactor",)),
    (("optimizer.b2",), "optimizer.name", ("adafactor", "sgd")),
    (("optimizer.eps",), "optimizer.name", ("adafactor", "sgd", "lion")),
    (("optimizer.decay_fraction",), "optimizer.schedule", ("cosine", "constant", "linear")),
    (("optimizer.final_fraction",), "optimizer.schedule", ("constant",)),
    (("evaluate.prompt_tokens", "evaluate.mauve"), "data.source", _RECORDS),
    (
        ("evaluate.samples_per_problem", "evaluate.pass_at_k", "evaluate.corrupt_also"),
        "data.source", ("text",),
    ),
)  # fmt: skip


def check_read(config: Config) -> None:
    """Refuse a key away from its default that has no effect beside another. Raises ConfigError."""
    usual = Config()
    for keys, other, values in UNREAD:
        found = _at(config, other)
        for key in keys if found in values else ():
            value, default = _at(config, key), _at(usual, key)
            if value != default:
                raise ConfigError(
                    f"{key}={show(value)} has no effect with {other}={show(found)}; leave it at "
                    f"{show(default)}, or set another {other}"
                )


def _at(config: Config, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)
