"""Rules between the keys of `config_objectives` and the rest of a config."""

from __future__ import annotations

import dataclasses

from reasoning_jax.config import Config
from reasoning_jax.config_fields import ConfigError, as_float32, nearest_name, show
from reasoning_jax.config_objectives import THOUGHT_CONTROLS, LatentConfig

# What replay.capacity_rollouts=0 stands for, in batches.
BATCHES_KEPT = 16


def check_sequencematch(config: Config) -> None:
    """Refuse sections `sequencematch` and `replay` that do not fit. Raises ConfigError."""
    match, replay, rows = config.sequencematch, config.replay, config.train.batch_rows
    if config.objective.name != "sequencematch":
        for section, values in (("sequencematch", match), ("replay", replay)):
            default = type(values)()
            for f in dataclasses.fields(values):
                if getattr(values, f.name) != getattr(default, f.name):
                    raise ConfigError(
                        f"{section}.{f.name}={getattr(values, f.name)!r} has no effect on "
                        f'objective.name="{config.objective.name}"; leave it at '
                        f'{getattr(default, f.name)!r}, or set the objective to "sequencematch"'
                    )
        return
    if match.alpha == 0 and match.divergence != "identity":
        raise ConfigError(
            f"sequencematch.alpha=0.0 divides in {match.divergence}; it must be above 0 (0.01 is "
            'the reported value), or the divergence "identity"'
        )
    if -1 < match.kappa_m < 0:
        raise ConfigError(
            f"sequencematch.kappa_m={match.kappa_m} must be >= 0, or -1 for the divergence's own"
        )
    # As the devices see it: 1 - 1e-9 is 1 in float32.
    endless = as_float32(match.gamma) == 1
    gamma = f"sequencematch.gamma={match.gamma}" + (", 1 in float32," if match.gamma < 1 else "")
    if endless and match.horizon == 0:
        raise ConfigError(
            f'{gamma} needs sequencematch.horizon="auto" or >= 1 (1 - gamma, the scale of the '
            "loss, is 0); or give a smaller gamma, such as 0.998"
        )
    if endless and match.terminal == "repeat":
        raise ConfigError(
            f'sequencematch.terminal="repeat" at {gamma.removesuffix(",")} never ends; use "noop" '
            'or "none", or a smaller gamma, such as 0.998'
        )
    if match.clamp and match.divergence not in ("chi2", "chi2_mixture"):
        raise ConfigError(
            f'sequencematch.clamp=True has no effect on divergence="{match.divergence}", whose phi '
            "has no maximum; set it to False, or use chi2 or chi2_mixture"
        )
    if match.domain_guard != "linear" and match.divergence not in ("forward_kl", "js", "hellinger"):
        raise ConfigError(
            f'sequencematch.domain_guard="{match.domain_guard}" has no effect on divergence='
            f'"{match.divergence}", whose phi is defined everywhere; leave it at "linear"'
        )
    if match.floor_backspace != "masked" and not config.vocab.backspace:
        raise ConfigError(
            'sequencematch.floor_backspace="noop" needs a vocabulary with <backspace>; set '
            'vocab.backspace=True, or leave it at "masked"'
        )
    mixture = match.divergence == "chi2_mixture" if match.kappa_m < 0 else match.kappa_m > 0
    given = match.start == "bos" or replay.prefix_tokens > 0
    if match.kappa_on_prompt and not (mixture and given):
        why = "the given actions are before s_0" if mixture else "kappa_m is 0"
        raise ConfigError(
            f"sequencematch.kappa_on_prompt=True has no effect: {why}; set it to False"
        )
    if match.bc_steps >= config.train.steps:
        raise ConfigError(
            f"sequencematch.bc_steps={match.bc_steps} must be below train.steps="
            f"{config.train.steps}; write --config.sequencematch.bc_steps="
            f"{config.train.steps // 2}, "
            'or objective.name="bc" for no SequenceMatch at all'
        )
    capacity = replay.capacity_rollouts
    refresh = replay.refresh_rollouts or rows
    if capacity and capacity < max(rows, refresh):
        wanted = "train.batch_rows" if rows >= refresh else "replay.refresh_rollouts"
        raise ConfigError(
            f"replay.capacity_rollouts={capacity} is smaller than {wanted}={max(rows, refresh)}; "
            f"the nearest legal is {max(rows, refresh)}, 0 takes {BATCHES_KEPT * rows}"
        )
    if not capacity and refresh > BATCHES_KEPT * rows:
        raise ConfigError(
            f"replay.refresh_rollouts={refresh} is more than the buffer holds, {BATCHES_KEPT} x "
            f"train.batch_rows = {BATCHES_KEPT * rows}; set replay.capacity_rollouts, or refresh "
            "less"
        )
    if -1 < replay.noise_rate < 0:
        raise ConfigError(
            f"replay.noise_rate={replay.noise_rate} must be >= 0, or -1 for that of the data, "
            "noise.rate"
        )
    if replay.noise_rate > 0 and not config.noise.rate:
        raise ConfigError(
            f"replay.noise_rate={replay.noise_rate} draws from the noise of the data, which has "
            "noise.rate=0; set both, or leave this one at -1"
        )
    if replay.paired_prompts and config.data.pack_examples:
        raise ConfigError(
            "replay.paired_prompts=True takes an example a row; set data.pack_examples=False"
        )
    if config.objective.p2_rows:
        raise ConfigError(
            f"objective.p2_rows={config.objective.p2_rows} may lose states, and sequencematch "
            "needs them all; set it to 0"
        )


# The keys of the latent section that a mode reads; the others must be at their defaults.
_STAGED = (
    "epochs_per_stage", "stage_steps", "start_stage", "uniform_prob", "advance", "mastery",
    "mastery_every_steps", "reset_optimizer",
)  # fmt: skip
_ALWAYS = ("mode", "prompt_columns")
_SLOTS = ("c_thought", "markers", "max_latent_stage", "pad_latent_to_max", "target", "draw")
_FED_BACK = ("thought", "thought_scale", "jacobi_iterations")
_LATENT_KEYS = {
    "off": (),
    "coconut": (*_ALWAYS, *_STAGED, *_SLOTS, *_FED_BACK),
    "no_curriculum": (*_ALWAYS, *_SLOTS[:-1], *_FED_BACK),
    "no_thought": (*_ALWAYS, *_STAGED, "max_latent_stage", "target", "draw"),
    "pause_as_thought": (*_ALWAYS, *_STAGED, *_SLOTS),
    "pause": (*_ALWAYS, *_SLOTS[:-1]),
    "cot": _ALWAYS,
    "no_cot": (*_ALWAYS, "target"),
    "icot": (
        *_ALWAYS, "icot_tokens_per_epoch", "icot_offset_decay", "icot_remove_all_from",
        "start_stage", "reset_optimizer",
    ),
}  # fmt: skip
# Modes that have columns for thoughts, and of these the ones in which thoughts are fed back.
LATENT_MODES = ("coconut", "no_curriculum", "pause_as_thought", "pause")
_THINKING = ("coconut", "no_curriculum")


def check_latent(config: Config) -> None:
    """Refuse a section `latent` that does not fit, or is not read. Raises ConfigError."""
    latent, default = config.latent, LatentConfig()
    mode, data = latent.mode, config.data
    for f in dataclasses.fields(latent):
        value, usual = getattr(latent, f.name), getattr(default, f.name)
        if value != usual and f.name not in _LATENT_KEYS[mode]:
            raise ConfigError(
                f'latent.{f.name}={value!r} has no effect on latent.mode="{mode}"; leave it at '
                f"{usual!r}, or set another mode"
            )
    e = config.evaluate
    for key, value, usual in (
        ("thoughts", e.thoughts, -1),
        ("thought_controls", e.thought_controls, ()),
    ):
        wanted = LATENT_MODES if key == "thoughts" else _THINKING
        if value != usual and mode not in wanted:
            raise ConfigError(
                f'evaluate.{key}={value!r} needs thoughts, latent.mode="{mode}" has none; leave it '
                f"at {usual!r}, or set latent.mode to {' or '.join(wanted)}"
            )
    for control in e.thought_controls:
        if control not in THOUGHT_CONTROLS:
            raise ConfigError(
                f"evaluate.thought_controls={e.thought_controls}: each must be one of "
                f"{', '.join(THOUGHT_CONTROLS)}; got {show(control)}"
                f"{nearest_name(control, THOUGHT_CONTROLS)}"
            )
    if data.reshuffle_edges and mode == "off":
        raise ConfigError(
            'data.reshuffle_edges=True goes with a latent.mode; got latent.mode="off"; for plain '
            'text use latent.mode="cot"'
        )
    if mode == "off":
        return
    if config.objective.name != "mle":
        raise ConfigError(
            f'latent.mode="{mode}" is trained with objective.name="mle"; got '
            f'"{config.objective.name}"'
        )
    if data.pack_examples:
        raise ConfigError(
            f'latent.mode="{mode}" takes an example a row; set data.pack_examples=False'
        )
    if data.source == "text" or not data.with_steps:
        raise ConfigError(
            f'latent.mode="{mode}" needs questions with steps; got data.source={data.source!r}, '
            f'data.with_steps={data.with_steps}; for no steps at all use latent.mode="no_cot"'
        )
    if mode in LATENT_MODES:
        if latent.c_thought == 0:
            raise ConfigError(
                f'latent.c_thought=0 leaves latent.mode="{mode}" without a thought; use 1 or more, '
                'or latent.mode="no_thought"'
            )
        if not config.vocab.latent:
            raise ConfigError(
                f'latent.mode="{mode}" needs <bot>, <eot> and <latent> in the vocabulary; set '
                "vocab.latent=True"
            )
        if latent.max_latent_stage == 0:
            raise ConfigError(
                f'latent.max_latent_stage=0 leaves latent.mode="{mode}" without a thought; use 1 '
                "or more"
            )
        if config.sampling.method != "sample":
            raise ConfigError(
                f'latent.mode="{mode}" decodes with sampling.method="sample"; got '
                f"{config.sampling.method!r}"
            )
    for i, steps in enumerate(latent.stage_steps):
        if steps < 1:
            raise ConfigError(f"latent.stage_steps[{i}] must be >= 1, got {steps}")
    stages = latent.max_latent_stage + 2 - latent.start_stage
    if mode != "icot" and len(latent.stage_steps) > stages:
        raise ConfigError(
            f"latent.stage_steps has {len(latent.stage_steps)} stages, there are {stages} from "
            f"latent.start_stage={latent.start_stage} to max_latent_stage + 1 = "
            f"{latent.max_latent_stage + 1}"
        )
    last = latent.icot_remove_all_from if mode == "icot" else latent.max_latent_stage + 1
    if latent.start_stage > last:
        raise ConfigError(
            f"latent.start_stage={latent.start_stage} is beyond the last stage; the nearest legal "
            f"is {last}"
        )
    if latent.stage_steps and latent.epochs_per_stage != default.epochs_per_stage:
        raise ConfigError(
            f"latent.epochs_per_stage={latent.epochs_per_stage} has no effect with "
            f"latent.stage_steps={latent.stage_steps}; give one of the two"
        )
    if latent.target == "next_step" and config.sampling.max_actions > 2:
        raise ConfigError(
            f'latent.target="next_step" teaches one token and no <eos> behind it; set '
            f"sampling.max_actions to 2, got {config.sampling.max_actions}"
        )
    if latent.draw != "shortest" and latent.target != "next_step":
        raise ConfigError(
            f'latent.draw="{latent.draw}" has no effect on latent.target="{latent.target}"; set it '
            'to "next_step"'
        )
    if latent.advance != "mastery":
        for key in ("mastery", "mastery_every_steps"):
            if getattr(latent, key) != getattr(default, key):
                raise ConfigError(
                    f"latent.{key}={getattr(latent, key)} has no effect with "
                    f'latent.advance="{latent.advance}"; set it to "mastery"'
                )
    if latent.prompt_columns >= data.seq_len:
        raise ConfigError(
            f"latent.prompt_columns={latent.prompt_columns} leaves nothing of data.seq_len="
            f"{data.seq_len}; the nearest legal is {data.seq_len - 1}"
        )
