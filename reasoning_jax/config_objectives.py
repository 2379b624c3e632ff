"""Config sections of what is learnt: the objective, SequenceMatch with its rollouts, thoughts."""

from __future__ import annotations

from dataclasses import dataclass

from reasoning_jax.config_fields import COLDEST, HUGE, TINY, choice, number, word_or_int

# What can take the place of thoughts in an evaluation.
THOUGHT_CONTROLS = ("zeros", "noise", "other_row")


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised. "mle": clean data. "bc": MLE on backspace-augmented data. "sequencematch":
    bc, then its mixture with SequenceMatch (section `sequencematch`). "unlikelihood": mle, and
    `unlikelihood_weight` times the token-level unlikelihood of what the row already holds.

    `layout` "p1" is time-aligned (a row per action), "p2" deduplicated (a row per token) with at
    most `p2_rows` rows (0: as many as a batch needs, in eighths of data.seq_len). "auto" takes p2
    for batches in which that is fewer rows, where rows are long enough to pay for it.
    """

    name: str = choice("mle", "bc", "sequencematch", "unlikelihood")
    layout: str = choice("auto", "p1", "p2")
    p2_rows: int = number(0, 0)
    unlikelihood_weight: float = number(1.0, 0.0, HUGE)


@dataclass(frozen=True)
class SequenceMatchConfig:
    """The SequenceMatch objective (arXiv 2306.05426) and its schedule.

    divergence: between the occupancies of data and model. "chi2_mixture" (the recommended one) is
      "chi2" with `kappa_m` = alpha / 4.
    alpha: weight of the causal entropy; enters as phi(alpha x) / alpha.
    gamma: discount per action; one that float32 rounds to 1 is taken for 1.
    kappa_m: coefficient of the squared model reward; -1 takes the divergence's own (alpha / 4 for
      chi2_mixture, else 0). `kappa_on_prompt` applies it to given prompt actions too.
    terminal: what is done for ever after <eos>: nothing ("noop"), <eos> again ("repeat"), or the
      trajectory just ends with value 0 ("none").
    value_weight_data: weight of the value term on data; the rest falls on model samples.
    value_form: "collapsed" takes the value terms as V(s_0), "explicit" as the sums they are.
    clamp: hold chi2's phi at its maximum beyond its vertex, 2 / alpha.
    domain_guard: where phi is defined for x > lo only, below lo + 0.001: go on as its tangent
      ("linear") or as a constant ("clamp").
    start: where time and discounting begin. At <bos> the reward also falls on the prompts of the
      data, which bc leaves alone; without a <bos> or at the end of the "prompt" the two sides
      start in different states, for which value_weight_data = 1 (or paired prompts) is better.
    floor_backspace: at the prompt's end there is no such action ("masked"), or one without effect
      ("noop").
    horizon: the loss is J / (1 + gamma + ... + gamma^(horizon-1)), or J times (1 - gamma) if 0.
      "auto" is the mean number of actions of the responses of the first 256 training examples, with
      noise, backspaces and <eos>: then an action weighs as much in this loss as in bc's, which is a
      mean over such actions. At 0, short responses weigh little: 1 - gamma^N of bc's weight.
    bc_steps, anneal_steps, beta_end: beta is 1 for bc_steps, then falls linearly to beta_end.
    passes: data and model rows go through the model together ("one"), or one after the other with
      their activations recomputed ("two"): half the memory, and faster on CPUs, where it is "auto".
    """

    divergence: str = choice(
        "chi2_mixture", "chi2", "identity", "reverse_kl", "forward_kl", "js", "hellinger"
    )
    alpha: float = number(0.01, 0.0, HUGE, least=TINY)
    gamma: float = number(0.998, high=1.0, above=0.0)
    kappa_m: float = number(-1.0, -1.0, HUGE)
    kappa_on_prompt: bool = False
    terminal: str = choice("noop", "repeat", "none")
    value_weight_data: float = number(0.5, 0.0, 1.0)
    value_form: str = choice("collapsed", "explicit")
    clamp: bool = False
    domain_guard: str = choice("linear", "clamp")
    start: str = choice("bos", "prompt")
    floor_backspace: str = choice("masked", "noop")
    horizon: int | str = word_or_int("auto", 0)
    bc_steps: int = number(1000, 0)
    anneal_steps: int = number(2000, 0)
    beta_end: float = number(0.2, 0.0, 1.0)
    passes: str = choice("auto", "one", "two")


@dataclass(frozen=True)
class ReplayConfig:
    """Rollouts of the model, kept in a first-in-first-out buffer.

    capacity_rollouts: 0 keeps 16 batches. Every `sample_every_steps`, `refresh_rollouts` (0: one
    batch) are sampled with the current parameters, train.batch_rows at a time, at `temperature`,
    until data.seq_len rows are full. Filters of `sampling` do not apply: the values in the loss are
    over all actions, so each of them must have a chance. `noise_rate`: how often a chosen token is
    replaced by a noise token, as in noised data; -1 is noise.rate, so that data and rollouts are of
    one environment. `prefix_tokens`: up to that many tokens of the true response are given after
    the prompt. `paired_prompts`: the data of a step are those of the same prompts as its rollouts.
    """

    capacity_rollouts: int = number(0, 0)
    sample_every_steps: int = number(8, 1)
    refresh_rollouts: int = number(0, 0)
    temperature: float = number(1.0, COLDEST, 100.0)
    noise_rate: float = number(-1.0, -1.0, 1.0)
    prefix_tokens: int = number(0, 0)
    paired_prompts: bool = False


@dataclass(frozen=True)
class LatentConfig:
    """Coconut (arXiv 2412.06769), its curriculum, its baselines and controls; "off" is none of
    them.

    mode: "coconut"; "no_curriculum" (rows of the last stage from the start); "no_thought" (the
      curriculum without thoughts); "pause_as_thought" (a learned token in the thoughts' place);
      "pause" (that, and no curriculum: question, pauses, answer); "cot" (all steps in text);
      "no_cot" (none); "icot" (steps removed token by token, Deng et al. 2024).
    c_thought: thoughts for each step that they replace.
    max_latent_stage: stage s replaces the first s steps; stages beyond this replace all of them.
    pad_latent_to_max: beyond it, thoughts for max_latent_stage steps even where a row has fewer.
    epochs_per_stage: an epoch is all training examples once. stage_steps, if given, says instead
      how many training steps each stage from start_stage on takes; the last one goes on.
    advance: by "schedule", or by "mastery": when the stage's validation frontier_mass (accuracy,
      where the target is the "rest") reaches `mastery`, looked at every `mastery_every_steps`, but
      not later than the schedule.
    uniform_prob: the share of rows whose stage is drawn from 0 to their number of steps.
    reset_optimizer: at the start of every "stage" (the paper's text) or "epoch" (its code), or
      "never".
    markers: <bot> before and <eot> behind the thoughts.
    target: the "rest" of the text, or the "next_step" alone: of stage s the step s + 1, drawn from
      those on a "shortest" path or from the whole "frontier" (`draw`), and beyond the last step
      the answer behind answer_prefix, which is given.
    thought: what is fed back: the state after the "final_norm", or the "residual" before it.
    thought_scale: "embedding" scales every thought to the root mean square of the embeddings.
    jacobi_iterations: 0 is the chain of thoughts; T > 0 updates all of them in parallel T times.
    icot_tokens_per_epoch, icot_offset_decay, icot_remove_all_from: that many tokens are removed an
      epoch, and o more of a row with P(o) proportional to exp(-decay o); all, once the schedule is
      at the last number.
    prompt_columns: the columns that a batch has for prompts; 0 fits them to each batch.
    """

    mode: str = choice(
        "off", "coconut", "no_curriculum", "no_thought", "pause_as_thought", "pause", "cot",
        "no_cot", "icot",
    )  # fmt: skip
    c_thought: int = number(1, 0, 64)
    epochs_per_stage: int = number(5, 1)
    stage_steps: tuple[int, ...] = ()
    start_stage: int = number(0, 0)
    max_latent_stage: int = number(6, 0, 64)
    pad_latent_to_max: bool = True
    uniform_prob: float = number(0.0, 0.0, 1.0)
    reset_optimizer: str = choice("stage", "epoch", "never")
    advance: str = choice("schedule", "mastery")
    mastery: float = number(0.95, 0.0, 1.0)
    mastery_every_steps: int = number(100, 1)
    markers: bool = True
    target: str = choice("rest", "next_step")
    draw: str = choice("shortest", "frontier")
    thought: str = choice("final_norm", "residual")
    thought_scale: str = choice("none", "embedding")
    jacobi_iterations: int = number(0, 0, 64)
    icot_tokens_per_epoch: float = number(8.0, TINY, HUGE)
    icot_offset_decay: float = number(4.0, 1e-6, HUGE)
    icot_remove_all_from: int = number(39, 1)
    prompt_columns: int = number(0, 0)
