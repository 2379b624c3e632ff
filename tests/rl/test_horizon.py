"""The weight of SequenceMatch beside bc; the horizon at which an action weighs as much in both."""

import json

import jax
import numpy as np
import pytest

from reasoning_jax import sharding
from reasoning_jax.commands import runfolder
from reasoning_jax.commands.assemble import assemble
from reasoning_jax.commands.train import make_source
from reasoning_jax.config import ConfigError, SequenceMatchConfig
from reasoning_jax.objectives.sequencematch import Settings, discounted, loss_scale
from reasoning_jax.rl import horizon
from reasoning_jax.train import losses
from tests.small import matching_run


def measured(**match):
    sections = {"noise": {"rate": 0.0}} if match.pop("clean", False) else {"noise": {"rate": 0.5}}
    config = matching_run(sequencematch={"horizon": "auto", **match}, **sections)
    return assemble(config), config


@pytest.mark.parametrize("start", ["bos", "prompt"])
def test_auto_is_the_mean_response_in_actions(start):
    """Tokens and <eos>, without the prompt; noise and what takes it back besides.

    Catches: prompts that are counted, <eos> that is not, a number that is not whole.
    """
    assembly, config = measured(start=start, clean=True)
    source, encoder = assembly.examples("train"), assembly.encoder
    n = min(horizon.MEASURED, len(source))
    pairs = [encoder.split_ids(source[i]) for i in range(n)]
    mean = np.mean([len(response) + 1 for _, response in pairs])
    prompts = np.mean([len(prompt) - 1 for prompt, _ in pairs])
    lengths = horizon.measure(source, encoder, config)
    assert lengths.response == pytest.approx(mean)
    assert lengths.trajectory == pytest.approx(mean + (prompts if start == "bos" else 0))
    assert assembly.config.sequencematch.horizon == round(mean)
    assert f"is {round(mean)}: {mean:.1f} actions a response" in assembly.notes[1]
    noised, _ = measured(start=start)
    assert noised.config.sequencematch.horizon > round(mean)
    # Without data nothing is trained, and what is saved stands.
    alone = assemble(config, assembly.vocab, with_data=False, saved_horizon=7)
    assert alone.config.sequencematch.horizon == 7
    assert assemble(config, saved_horizon=9).config.sequencematch.horizon == 9


def test_a_number_is_not_measured_away():
    assembly, _ = measured(horizon=3)
    assert assembly.config.sequencematch.horizon == 3


@pytest.mark.parametrize(("gamma", "n"), [(0.998, 4), (0.9, 7), (1.0, 5), (1 - 1e-9, 5)])
def test_at_the_horizon_a_trajectory_weighs_one(gamma, n):
    settings = Settings(gamma=gamma)
    assert loss_scale(gamma, n) * discounted(settings.gamma, n) == pytest.approx(1)
    assert discounted(settings.gamma, n) == pytest.approx(sum(gamma**i for i in range(n)))
    # A horizon of any size is summed at once.
    assert loss_scale(gamma, 2**31 - 1) > 0


def test_a_small_share_is_told():
    """At gamma .998 and no horizon four actions weigh .008 of what they weigh in bc."""
    config = matching_run(sequencematch={"gamma": 0.998, "horizon": 0, "beta_end": 0.2})
    share = 0.8 * (1 - 0.998**4) / (0.2 + 0.8 * (1 - 0.998**4))
    assert horizon.share_at_end(config, 4) == pytest.approx(share)
    lengths = horizon.Lengths(4.0, 4.0, 10)
    (note,) = horizon.notes(config, lengths, False)
    for words in ("3.1% of the loss, not 80%", "horizon=0", "4.0 actions", "horizon=auto"):
        assert words in note
    fixed = horizon.with_horizon(config, 4)
    assert horizon.share_at_end(fixed, 4) == pytest.approx(0.8)
    assert horizon.notes(fixed, lengths, False) == ()


def test_a_loss_without_data_needs_a_number():
    assembly, _ = measured()
    with pytest.raises(ConfigError, match="measured on training data"):
        losses.make_loss(
            assembly.model, assembly.config.objective, assembly.ids, SequenceMatchConfig()
        )


def test_alpha_and_gamma_are_what_float32_holds():
    assert Settings(gamma=1 - 1e-9).gamma == 1
    assert Settings(gamma=1 - 1e-7).gamma < 1
    with pytest.raises(ValueError, match="never ends"):
        Settings(gamma=1 - 1e-9, terminal="repeat")
    for alpha in (1e-40, 1e-31, 1e7, 1e30):
        with pytest.raises(ValueError, match="alpha must be from"):
            Settings(alpha=alpha)


def test_what_was_measured_is_in_the_run_folder(tmp_path):
    assembly, config = measured()
    assert runfolder.read_horizon(tmp_path) is None
    runfolder.write_horizon(tmp_path, assembly.config)
    found = runfolder.read_horizon(tmp_path)
    assert found == assembly.config.sequencematch.horizon > 1
    # The first number stays.
    runfolder.write_horizon(tmp_path, horizon.with_horizon(config, 99))
    assert runfolder.read_horizon(tmp_path) == found
    for text in ("[]", "{}", '{"sequencematch.horizon": 0}', '{"sequencematch.horizon": 2.5}'):
        (tmp_path / "measured.json").write_text(text)
        with pytest.raises(ConfigError, match=r"measured\.json: wanted sequencematch\.horizon"):
            runfolder.read_horizon(tmp_path)


def test_old_runs_of_other_objectives_take_the_new_defaults():
    """Catches: a run of an earlier version that cannot be read or continued any more."""
    old = {"objective": {"name": "bc"}, "sequencematch": {"horizon": 0, "gamma": 0.9},
           "replay": {"noise_rate": 0.0}}  # fmt: skip
    assert runfolder.with_new_defaults(json.loads(json.dumps(old))) == {
        "objective": {"name": "bc"}, "sequencematch": {"gamma": 0.9}, "replay": {},
    }  # fmt: skip
    old["objective"]["name"] = "sequencematch"
    assert runfolder.with_new_defaults(json.loads(json.dumps(old))) == old


@pytest.mark.parametrize(("given", "rate"), [(-1.0, 0.3), (0.0, 0.0), (0.1, 0.1)])
def test_rollouts_err_as_the_data_do(given, rate):
    # Catches: rollouts in a clean environment beside data in a noisy one.
    config = matching_run(noise={"rate": 0.3}, replay={"noise_rate": given})
    assert rate_of_rollouts(config) == rate


def rate_of_rollouts(config):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        source = make_source(assemble(config), mesh)
    return source._noise.rate
