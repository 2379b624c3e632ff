"""A run that begins with another run: its ids, its parameters, and what does not fit."""

import dataclasses
import fcntl
import json
import re
import shlex
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax import sharding
from reasoning_jax import vocab as V
from reasoning_jax.commands import runfolder, start
from reasoning_jax.commands.assemble import assemble
from reasoning_jax.commands.pretrained import load_pretrained
from reasoning_jax.config import ConfigError, to_dict
from reasoning_jax.model import attention, readout, spec, transformer
from reasoning_jax.model.lora import Lora
from reasoning_jax.train.checkpoint import CheckpointError, Checkpoints
from reasoning_jax.train.state import TrainState, state_specs
from tests.commands.lines import done, run
from tests.small import random_tree, tiny_run

ROOT = Path(__file__).parent.parent.parent
CONFIG = """
from reasoning_jax import config as rc
from reasoning_jax.sweep import sweep
from reasoning_jax.tasks import task_dials


def get_config(arg: str = ""):
    arg = rc.parse_arg(arg, mode="cot", run="")
    config = rc.default_config()
    config.task = {
        "name": "prosqa", **task_dials("prosqa"), "family": "mirrored", "form": "text",
        "min_hops": 1, "max_hops": 1,
    }
    config.vocab.kind, config.vocab.backspace = "word", False
    config.data.seq_len, config.data.train_problems = 64, 50
    config.data.answer_prefix = "### "
    config.data.question_suffix = "\\n"
    config.latent.mode = arg.mode
    if arg.mode == "coconut":
        config.vocab.latent = True
        config.latent.max_latent_stage, config.latent.stage_steps = 1, (1, 1)
    config.start.run = arg.run
    if not arg.run:
        config.model.n_layers, config.model.d_model = 1, 16
        config.model.n_heads = config.model.n_kv_heads = 2
        config.model.head_dim, config.model.d_ff = 8, 16
    config.train.steps, config.train.batch_rows = 2, 8
    config.train.log_every_steps = config.train.checkpoint_every_steps = 1
    config.optimizer.warmup_steps = 0
    config.sampling.max_actions = 16
    config.evaluate.problems = config.evaluate.batch_rows = 8
    config.evaluate.corrupt_tokens = 0
    return config


def get_sweep(arg: str = ""):
    return sweep("seed", (0, 1))
"""


CODECS = {
    "char": V.CharCodec("abc"),
    "byte": V.ByteCodec(),
    "word": V.WordCodec(("a", "b>a", "b")),
    "pair": V.PairCodec(("a", "b")),
}


@pytest.mark.parametrize("kind", CODECS)
def test_new_specials_stand_behind_all_ids_and_none_moves(kind):
    """Catches: a special in a row that is in use, a pair of words that means another pair."""
    before = V.make_vocab(CODECS[kind], backspace=False)
    after, added = start.with_specials(before, backspace=True, latent=True)
    assert added == (V.BACKSPACE, *V.LATENT_SPECIALS)
    assert after.size == before.size + 4
    for text in ("a", "b a", "b>a" if kind in ("word", "pair") else "b"):
        text = text.replace(" ", "") if kind == "char" else text
        ids = [i - (4 if i >= after.size else 0) for i in after.encode(text)]
        assert ids == before.encode(text)
        assert after.decode(after.encode(text)) == text
    assert dict(before.specials).items() <= dict(after.specials).items()
    again, none = start.with_specials(after, backspace=True, latent=True)
    assert (again, none) == (after, ())
    # A pretrained table lends its unused rows, which come first.
    wide = V.with_size(before, before.size + 9)
    lent, _ = start.with_specials(wide, backspace=True, latent=True)
    assert (lent.size, lent.backspace_id) == (wide.size, before.size)


def opened(workdir, config, step=3, seed=0):
    """A run folder with a checkpoint of random parameters, as `train` leaves it."""
    assembly = assemble(config)
    specs = state_specs(config, assembly.model)
    params = random_tree(specs, np.random.default_rng(seed))
    kind = assembly.model.param_dtype
    params["model"] = jax.tree.map(lambda x: x.astype(kind), params["model"])
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    placed = jax.tree.map(jax.device_put, params, spec.shardings(specs, mesh))
    # Nobody reads the optimizer's.
    state = TrainState(jnp.int32(step), placed, {"count": jnp.int32(step)})
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        assert checkpoints.save(state, {}, {"config": to_dict(config)})
        checkpoints.wait()
        assert not checkpoints.failures()
    runfolder.open_run(workdir, config, [], assembly.vocab, assembly.model)
    return assembly, params


def logits_of(params, model, ids, lora=None):
    positions = jnp.arange(ids.shape[1])[None]
    hidden = transformer.apply(
        params, model, ids, positions=positions, attention=attention.Causal(jnp.ones_like(ids)),
        lora=lora,
    ).hidden  # fmt: skip
    return np.asarray(readout.logits(params, model, hidden))


BEGUN = {
    "char": {},
    "bytes, untied, adapters": {
        "vocab": {"kind": "byte"},
        "model": {"tied_embeddings": False},
        "lora": {"rank": 2},
    },
    "bfloat16": {"model": {"param_dtype": "bfloat16"}},
}


@pytest.mark.parametrize("name", BEGUN)
def test_the_new_run_computes_what_the_first_one_did(name, tmp_path):
    """On any mesh, with adapters merged, and more rows in the vocabulary.

    Catches: adapters left out or scaled otherwise, rows in another order, another type than stored.
    """
    sections = {k: dict(v) for k, v in BEGUN[name].items()}
    sections["vocab"] = {**sections.get("vocab", {}), "backspace": False}
    small = {"d_model": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "head_dim": 8, "d_ff": 16}
    sections["model"] = {**small, **sections.get("model", {})}
    first_config = tiny_run(**sections, objective={"name": "mle"}, noise={"rate": 0.0})
    first, params = opened(tmp_path / "first", first_config)
    config = tiny_run(
        start={"run": str(tmp_path / "first")}, vocab={"latent": True},
        weights={"backspace_probability": 0.0, "latent_rows": "+"},
    )  # fmt: skip
    config = dataclasses.replace(config, model=type(config.model)())
    second = assemble(config)
    assert second.start.step == 3
    assert second.vocab.size == first.vocab.size + 4
    ids = jnp.asarray([first.vocab.encode("1+1=2")])
    lora = None
    if first_config.lora.rank:
        lora = Lora(params["lora"], first_config.lora.alpha / first_config.lora.rank)
    before = logits_of(params["model"], first.model, ids, lora)
    mesh = sharding.make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        begun = load_pretrained(second, mesh)
        wanted = spec.shardings(transformer.param_specs(second.model), mesh)
        assert all(jax.tree.leaves(jax.tree.map(lambda x, s: x.sharding == s, begun, wanted)))
    plain = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), begun)
    assert {x.dtype for x in jax.tree.leaves(plain)} == {np.dtype("float32")}
    after = logits_of(plain, second.model, ids)
    tolerance = 1e-4 if lora else 1e-5
    np.testing.assert_allclose(
        after[..., : first.vocab.size], before, rtol=tolerance, atol=tolerance
    )
    # A new row is the mean of the others, or what it was to be.
    rows = plain["embedding"]["tokens"]
    new = rows[first.vocab.size :]
    np.testing.assert_allclose(new[0], rows[: first.vocab.size].mean(0), atol=1e-3)
    plus = first.vocab.encode("+")[0]
    np.testing.assert_array_equal(new[1:], rows[plus][None].repeat(3, 0))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run in characters without <backspace>, adapters and all, with steps 3 and 5."""
    folder = tmp_path_factory.mktemp("start")
    config = tiny_run(
        vocab={"backspace": False}, objective={"name": "mle"}, noise={"rate": 0.0},
        lora={"rank": 2}, optimizer={"no_decay": (), "warmup_steps": 0},
    )  # fmt: skip
    opened(folder / "run", config, 3)
    opened(folder / "run", config, 5, seed=1)
    return folder


def starting(folder, **sections):
    """A config that starts from the run in `folder`, whose architecture is not given."""
    config = tiny_run(start={"run": str(folder / "run"), **sections.pop("start", {})}, **sections)
    return dataclasses.replace(config, model=type(config.model)(**sections.get("model", {})))


REFUSED = {
    "model": ({"model": {"d_model": 64}}, "model.d_model=64", "is 16"),
    "vocabulary": ({"vocab": {"kind": "byte"}}, 'vocab.kind="byte"', '"char"'),
    "weights": ({"vocab": {"kind": "weights"}}, 'vocab.kind="weights"', '"char"'),
    "step": ({"start": {"step": 4}}, "start.step=4", "there are 3, 5"),
    "rows": ({"model": {"vocab_size": 9}}, "model.vocab_size=9", "leave it 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_in_words(name, first):
    changes, *words = REFUSED[name]
    with pytest.raises((ConfigError, CheckpointError)) as error:
        assemble(starting(first, **changes))
    for word in words:
        assert word in str(error.value), str(error.value)
    assert len(str(error.value).splitlines()) <= 6


def test_values_that_are_those_of_the_run_may_be_said_again(first):
    own = to_dict(tiny_run())["model"]
    said = {k: own[k] for k in ("d_model", "n_layers", "d_ff")}
    assembly = assemble(starting(first, model=said, vocab={"kind": "char"}))
    assert assembly.model.d_model == own["d_model"]
    assert assembly.start.step == 5
    # How it is computed is not the first run's business.
    other = assemble(starting(first, model={"compute_dtype": "bfloat16", "remat": "full"}))
    assert (other.model.compute_dtype, other.model.remat) == ("bfloat16", "full")


def test_a_backspace_cannot_be_taken_away(tmp_path):
    opened(tmp_path / "run", tiny_run())
    with pytest.raises(ConfigError, match=r"vocab\.backspace=False"):
        assemble(starting(tmp_path, vocab={"backspace": False}, objective={"name": "mle"},
                          noise={"rate": 0.0}))  # fmt: skip


def test_a_run_that_cannot_be_started_from(first, tmp_path):
    """Catches: parameters drawn anew where a checkpoint was wanted; a step that is not the last."""
    for make, kind, words in (
        (lambda run: shutil.rmtree(run / "checkpoints"), CheckpointError, "no complete checkpoint"),
        (lambda run: (run / "config.json").unlink(), ConfigError, "is .* a run folder"),
        (lambda run: (run / "model.json").write_text("{"), ConfigError, "model.json"),
        (lambda run: (run / "vocab.json").write_text("{}"), V.VocabError, "vocab.json"),
    ):
        run_ = shutil.copytree(first / "run", tmp_path / "copy" / "run")
        make(run_)
        with pytest.raises(kind, match=words):
            assemble(starting(tmp_path / "copy"))
        shutil.rmtree(run_)
    with pytest.raises(ConfigError, match="new run itself"):
        assemble(starting(first), workdir=first / "run")
    with (first / "run" / "lock").open("w") as lock:
        lock.write("process 7 on here\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="being trained by process 7 on here"):
            assemble(starting(first))
        assert assemble(starting(first, start={"step": 3})).start.step == 3
    assert assemble(starting(first)).start.step == 5
    # Damage: the newest intact step, or the one that is named and no other.
    run_ = shutil.copytree(first / "run", tmp_path / "damaged" / "run")
    file = max(
        (run_ / "checkpoints/5/params").rglob("*"), key=lambda p: p.stat().st_size * p.is_file()
    )
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert assemble(starting(tmp_path / "damaged")).start.step == 3
    with pytest.raises(CheckpointError, match=r"checkpoint 5[\s\S]*intact: 3"):
        assemble(starting(tmp_path / "damaged", start={"step": 5}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, unoptimised):
    folder = tmp_path_factory.mktemp("coconut")
    (folder / "tiny.py").write_text(CONFIG)
    return folder


MESH = ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")


def test_coconut_begins_with_a_cot_run_which_may_then_go_away(folder):
    """The published recipe, on eight devices with a split vocabulary; and what reads the run.

    Catches: step 0 not saved, the first run wanted again, thoughts without rows.
    """
    config = f"--config={folder}/tiny.py"
    done("train", config, f"--workdir={folder}/cot", *MESH, "--quiet")
    new = f"{config}:mode=coconut,run={folder}/cot"
    workdir = f"--workdir={folder}/coconut"
    assert "on 1 device(s)" in done("train", new, "--explain")
    assert "<latent>=" in done("train", new, "--dry_run")
    out = done("train", new, workdir, *MESH, "--config.train.steps=1")
    assert "begins with step 2 of" in out
    with (
        Checkpoints(folder / "cot" / "checkpoints") as a,
        Checkpoints(folder / "coconut" / "checkpoints") as b,
    ):
        assert b.steps() == [0, 1]
        x, y = a.read_all(2)["params"]["model"], b.read_all(0)["params"]["model"]
    rows = len(x["embedding"]["tokens"])
    np.testing.assert_array_equal(x["embedding"]["tokens"], y["embedding"]["tokens"][:rows])
    assert len(y["embedding"]["tokens"]) == rows + 3
    record = json.loads((folder / "coconut" / "sources.json").read_text())["start.run"]
    assert (record["path"], record["step"]) == (str(folder / "cot"), 2)
    # At another place it is the same run; another run is another.
    (folder / "cot").rename(folder / "moved")
    moved = new.replace("/cot", "/moved")
    assert "the same source" in done("train", moved, workdir, *MESH, "--config.train.steps=1")
    code, out = run("train", new.replace("/cot", "/coconut"), workdir, *MESH)
    assert code in (2, 4), out
    (folder / "moved").rename(folder / "cot")
    shutil.rmtree(folder / "cot")
    assert "resumed from step 1" in done("train", new, workdir, *MESH)
    done("evaluate", workdir)
    done("sample", workdir, "--prompt=Every lempus")
    done("config", "show", folder / "coconut")
    done("export", workdir, f"--out={folder}/out")


def test_a_run_may_start_from_one_that_started_from_another(first, tmp_path):
    """Catches: the vocabulary or the architecture of the config taken for those of the run."""
    middle, _ = opened(tmp_path / "run", starting(first, vocab={"latent": True}))
    last = assemble(starting(tmp_path, vocab={"latent": True}))
    assert (last.vocab, last.model) == (middle.vocab, middle.model)
    assert last.vocab.size == assemble(starting(first)).vocab.size + 3
    with pytest.raises(ConfigError, match='of kind "char"'):
        assemble(starting(tmp_path, vocab={"kind": "word"}))


# The commands of the page, cut down; what they do is not.
_SHRUNK = {
    "train": [
        "--config.train.steps=4", "--config.optimizer.warmup_steps=1",
        "--config.train.evaluate_every_steps=0", "--config.train.batch_rows=8",
        "--config.evaluate.problems=4", "--config.evaluate.batch_rows=4",
    ],
    "evaluate": ["--config.evaluate.problems=4"],
}  # fmt: skip


@pytest.mark.slow
def test_the_commands_of_the_page_run_in_their_order(tmp_path, monkeypatch, quick_to_compile):
    page = (ROOT / "docs" / "starting.md").read_text(encoding="utf-8")
    commands = re.findall(r"^(?:rj|mv) .+$", page, flags=re.MULTILINE)
    assert len(commands) == 7
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"{i}+1=", "answer": f"{i + 1}"} for i in range(90)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for command in commands:
        command = command.replace("=configs/", f"={ROOT}/configs/")
        command = command.replace("bc_steps=200", "bc_steps=2")
        words = shlex.split(command)
        if words[0] == "mv":
            Path(words[1]).rename(words[2])
        else:
            print(done(*words[1:], *_SHRUNK[words[1]]))
    record = json.loads(Path("runs/match/sources.json").read_text())["start.run"]
    assert record["path"] == str(tmp_path / "runs" / "sft")
    # What the second run had to add has the probability that it was to begin with.
    with Checkpoints(tmp_path / "runs/match/checkpoints") as checkpoints:
        assert 0 in checkpoints.steps()
