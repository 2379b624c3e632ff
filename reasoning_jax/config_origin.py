"""Rules for what a run begins with: pretrained weights, another run, or neither."""

from __future__ import annotations

from reasoning_jax.config import (
    ARCHITECTURE_FIELDS,
    Config,
    ConfigError,
    ModelConfig,
    StartConfig,
    WeightsConfig,
)
from reasoning_jax.config_fields import show


def check_origin(config: Config) -> None:
    """Refuse keys of `weights`, `start` and `model` that do not go together. Raises ConfigError."""
    if config.weights.path and config.start.run:
        raise ConfigError(
            f"weights.path={show(config.weights.path)} and start.run={show(config.start.run)} both "
            "say which parameters the run begins with; remove one of the two"
        )
    if config.start.step != StartConfig.step and not config.start.run:
        raise ConfigError(
            f"start.step={config.start.step} has no effect without start.run; give the folder of a "
            f"run, or leave it at {StartConfig.step}"
        )
    if config.weights.path:
        for name in ARCHITECTURE_FIELDS:
            if getattr(config.model, name) != getattr(ModelConfig(), name):
                raise ConfigError(
                    f"model.{name} is read from weights.path={show(config.weights.path)} and "
                    f"cannot be set to {getattr(config.model, name)!r}; remove one of the two"
                )
    elif not config.start.run:  # Else values that are not that run's are found by commands.start.
        for name in ("backspace_probability", "latent_rows"):
            value = getattr(config.weights, name)
            if value != getattr(WeightsConfig(), name):
                raise ConfigError(
                    f"weights.{name}={show(value)} has no effect without weights.path or "
                    "start.run; give one, or leave it out"
                )
        if config.vocab.kind == "weights":
            raise ConfigError('vocab.kind="weights" needs weights.path; got an empty path')
    if config.weights.latent_rows != WeightsConfig().latent_rows and not config.vocab.latent:
        raise ConfigError(
            f"weights.latent_rows={show(config.weights.latent_rows)} has no effect without "
            "vocab.latent=True; set it, or leave latent_rows out"
        )
