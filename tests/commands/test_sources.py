"""A run goes on without what it was made of, and knows a source by its contents, wherever it is."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models

from reasoning_jax.commands import runfolder, sources, sweep
from reasoning_jax.config import Config, ConfigError, to_dict
from reasoning_jax.config_check import from_dict
from tests.commands.lines import done, run

GOLDEN = Path(__file__).parent.parent / "golden" / "llama"
# Characters of arithmetic as one token each; the model has 61 rows.
CHARACTERS = "0123456789+-*=() \n#"
CONFIG = """
from reasoning_jax import config as rc
from reasoning_jax.tasks import task_dials


def get_config(arg: str = ""):
    arg = rc.parse_arg(arg, weights="", tokenizer="", data="", rank=0)
    config = rc.default_config()
    config.task = {"name": "arithmetic", **task_dials("arithmetic"), "max_digits": 1}
    if arg.weights:
        config.weights.path, config.vocab.kind = arg.weights, "weights"
        config.optimizer.no_decay = ()
    else:
        config.model.d_model, config.model.n_layers, config.model.d_ff = 16, 1, 16
        config.model.n_heads = config.model.n_kv_heads = 2
        config.model.head_dim = 8
    if arg.tokenizer:
        config.vocab.kind, config.vocab.path = "tokenizer", arg.tokenizer
    if arg.data:
        config.data.source, config.data.path, config.vocab.kind = "jsonl", arg.data, "byte"
    config.lora.rank = arg.rank
    config.data.seq_len, config.data.train_problems = 24, 50
    config.train.steps, config.train.batch_rows = 2, 8
    config.train.log_every_steps = config.train.checkpoint_every_steps = 1
    config.optimizer.warmup_steps = 0
    config.sampling.max_actions = config.evaluate.problems = config.evaluate.batch_rows = 4
    config.evaluate.corrupt_tokens = 0
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A config, weights with a tokenizer, and data; one device and code that is not optimised."""
    import jax

    folder = tmp_path_factory.mktemp("sources")
    (folder / "tiny.py").write_text(CONFIG)
    shutil.copytree(GOLDEN, folder / "weights")
    names = {"<unk>": 0, "<s>": 1, "</s>": 2, **{c: i + 3 for i, c in enumerate(CHARACTERS)}}
    tokenizer = tokenizers.Tokenizer(models.BPE(names, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    (folder / "weights" / "tokenizer.json").write_text(tokenizer.to_str())
    rows = [{"question": f"{i}+1=", "steps": [], "answer": str(i + 1)} for i in range(90)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        device = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda: device)
        patch.setattr(jax, "device_count", lambda: 1)
        jax.config.update("jax_disable_most_optimizations", True)
        yield folder
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("rank", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_fine_tuned_run_is_whole_without_its_weights(folder, tmp_path, rank):
    """Catches: the architecture or the vocabulary read from where the weights were; parameters
    loaded only to be replaced by those of the checkpoint.
    """
    weights = shutil.copytree(folder / "weights", tmp_path / "weights")
    config = f"--config={folder}/tiny.py:weights={weights},rank={rank}"
    workdir = f"--workdir={tmp_path}/run"
    done("train", config, workdir, "--quiet")
    weights.rename(tmp_path / "moved [1]")
    done("sample", workdir, "--prompt=1+1=")
    done("train", config, workdir, "--config.train.steps=3", "--quiet")
    if rank:
        return
    done("evaluate", workdir)
    done("replay", workdir, "--step=2")
    assert "n_heads" not in done("config", "show", tmp_path / "run")
    out = done("train", config, workdir, f"--config.weights.path={tmp_path}/moved [1]")
    assert "the same source" in out
    assert "at step 3 of" in out
    done("export", workdir, f"--out={tmp_path}/out")
    done("checkpoint", "export", tmp_path / "run", f"--out={tmp_path}/again")
    # The new place is written down, so that it is now the run's own.
    assert json.loads((tmp_path / "run/config.json").read_text())["weights"]["path"].endswith("[1]")
    # What is not that run's is refused by everybody, and so is what is not there.
    other = shutil.copytree(tmp_path / "moved [1]", tmp_path / "other")
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + "\n")
    for command in (["train", config, "--config.train.steps=5"], ["sample", "--prompt=1"]):
        code, out = run(*command, workdir, f"--config.weights.path={other}")
        assert (code, "weights.path" in out, "other contents" in out) == (2, True, True), out
        code, out = run(*command, workdir, "--config.weights.path=/none")
        assert (code, "there is no such" in out) == (2, True), out
    # A file that is not read is no part of it.
    (other / "tokenizer.json").write_text((folder / "weights" / "tokenizer.json").read_text())
    (other / "README.md").write_text("changed")
    done("sample", workdir, f"--config.weights.path={other}", "--prompt=1")


def test_a_run_of_an_older_version_reads_its_weights_and_says_so(folder, tmp_path):
    weights = shutil.copytree(folder / "weights", tmp_path / "weights")
    workdir = f"--workdir={tmp_path}/run"
    config = f"--config={folder}/tiny.py:weights={weights}"
    done("train", config, workdir, "--config.train.steps=1", "--quiet")
    (tmp_path / "run" / "model.json").unlink()
    (tmp_path / "run" / "sources.json").unlink()
    assert "wrote no model.json" in done("sample", workdir, "--prompt=1+1=")
    weights.rename(tmp_path / "moved")
    code, out = run("sample", workdir, f"--config.weights.path={tmp_path}/moved", "--prompt=1")
    assert (code, "kept no fingerprints" in out, "ln -s" in out) == (2, True, True), out
    weights.symlink_to(tmp_path / "moved")
    done("sample", workdir, "--prompt=1+1=")
    # From now on the folder is enough.
    done("train", config, workdir, "--config.train.steps=2", "--quiet")
    weights.unlink()
    assert "wrote no" not in done("sample", workdir, "--prompt=1+1=")


def test_moved_data_go_on_and_other_data_do_not(folder, tmp_path, monkeypatch):
    """Catches: the path taken for the data, in train, evaluate and the name of an evaluation."""
    data = Path(shutil.copy(folder / "data.jsonl", tmp_path / "data.jsonl"))
    config, workdir = f"--config={folder}/tiny.py:data={data}", f"--workdir={tmp_path}/run"
    done("train", config, workdir, "--quiet")
    moved = tmp_path / "else" / "moved.jsonl"
    moved.parent.mkdir()
    data.rename(moved)
    code, out = run("train", config, workdir, "--config.train.steps=3")
    assert code == 2
    # A long path is cut.
    assert str(data)[:60] in out
    assert "--config.data.path=PATH" in out
    code, out = run("evaluate", workdir)
    assert (code, "--config.data.path=PATH" in out) == (2, True)
    done("sample", workdir, "--prompt=1+1=")
    done("export", workdir, f"--out={tmp_path}/out")
    monkeypatch.chdir(moved.parent)
    out = done("evaluate", workdir, "--config.data.path=moved.jsonl")
    assert "the same source" in out
    assert not (tmp_path / "run" / "eval" / "other").exists()
    done("train", config, workdir, "--config.data.path=moved.jsonl", "--config.train.steps=3")
    # And so without a word of it from then on: the run knows both places.
    done("train", config, workdir, "--config.train.steps=3")
    # A relative path of the run's own config leads to where it led.
    monkeypatch.chdir(tmp_path)
    done("evaluate", workdir)
    with moved.open("a") as file:
        file.write('{"question": "1+1=", "answer": "3"}\n')
    code, out = run("train", config, workdir, f"--config.data.path={moved}")
    assert (code, "no longer holds what it did" in out) == (2, True), out
    assert len(out.splitlines()) <= 6
    # A trained model may be measured on other data; that is another measure.
    own = (tmp_path / "run" / "eval" / "step_00000003.json").read_text()
    assert "holds other data" in done("evaluate", workdir)
    assert (tmp_path / "run" / "eval" / "step_00000003.json").read_text() == own
    assert len([*(tmp_path / "run" / "eval" / "other").iterdir()]) == 1


# --- From here on nothing is trained: a folder is described, and its sources are settled.


def described(workdir, steps=True, **sections):
    """A run folder of a config, as `train` opens it, with a checkpoint where `steps`."""
    values = json.loads(json.dumps(to_dict(Config())))
    for section, changes in sections.items():
        values[section] |= changes
    config = from_dict(values)
    workdir.mkdir()
    sources.record(workdir, config, sources.Settled(config))
    runfolder.write_json(workdir / "config.json", to_dict(config))
    if steps:
        (workdir / "checkpoints" / "5").mkdir(parents=True)
    return config


def at(config, key, path):
    section, name = key.split(".")
    values = to_dict(config)
    values[section][name] = str(path)
    return from_dict(values)


def write(path, text="one"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def text_folder(path, text="one"):
    write(path / "a.txt", text)
    write(path / "sub" / "b.txt", "two")
    return path


KINDS = {
    "jsonl": ("data.path", write, {"data": {"source": "jsonl"}}),
    "validation": ("data.validation_path", write, {"data": {"source": "jsonl", "path": "x"}}),
    "text": ("data.path", text_folder, {"data": {"source": "text"}}),
    "tfds": ("data.path", text_folder, {"data": {"source": "tfds"}}),
    "tokenizer": ("vocab.path", write, {"vocab": {"kind": "tokenizer"}}),
    "weights": (
        "weights.path",
        lambda path, text="one": write(path / "config.json", text).parent,
        {"weights": {}},
    ),
    "gguf": ("weights.path", write, {"weights": {}}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_contents_elsewhere_are_the_same_source(kind, tmp_path, monkeypatch):
    """A copy, a move, a link and a relative path are; a change of one byte is not."""
    key, make, sections = KINDS[kind]
    section, name = key.split(".")
    write(tmp_path / "x")
    monkeypatch.chdir(tmp_path)
    place = make(tmp_path / "old")
    sections = {**sections, section: {**sections.get(section, {}), name: str(place)}}
    config = described(tmp_path / "run", **sections)
    settle = lambda path, use=sources.TRAIN: sources.settle(  # noqa: E731
        at(config, key, path), tmp_path / "run", use
    )
    assert settle(place).notes == ()
    (tmp_path / "link").symlink_to(place)
    for path in (place, "old", "./old", tmp_path / "link", "run/../old"):
        assert settle(path).notes == (), path
    copy = make(tmp_path / "a copy [1]")
    assert "the same source" in settle(copy).notes[0]
    other = make(tmp_path / "other", "onE")
    with pytest.raises(ConfigError, match="other contents"):
        settle(other)
    with pytest.raises(ConfigError, match="there is no such"):
        settle("gone")
    # What was there has changed: data are read again, what it began from is not.
    make(place, "oNe")
    if section == "data":
        with pytest.raises(ConfigError, match="no longer holds what it did"):
            settle(place)
        assert sources.settle(config, tmp_path / "run", sources.EVALUATE).differing.keys() == {key}
    else:
        assert "has changed since the run began" in settle(place).notes[0]
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    if section == "data":
        with pytest.raises(ConfigError, match=f"--config.{key}=PATH"):
            settle(place)
    else:
        assert settle(place).notes == ()
    assert sources.settle(config, tmp_path / "run", sources.SAMPLE).notes == ()


def test_files_that_nobody_reads_are_no_part_of_a_source(tmp_path):
    folder = text_folder(tmp_path / "texts")
    config = described(tmp_path / "run", data={"source": "text", "path": str(folder)})
    write(folder / "notes.md")
    write(folder / ".cache" / "c.txt")
    assert sources.settle(config, tmp_path / "run", sources.TRAIN).notes == ()
    write(folder / "c.txt")
    with pytest.raises(ConfigError, match="no longer holds"):
        sources.settle(config, tmp_path / "run", sources.TRAIN)


def test_a_run_that_saved_nothing_still_needs_what_it_begins_from(tmp_path):
    place = write(tmp_path / "w.gguf")
    config = described(tmp_path / "run", steps=False, weights={"path": str(place)})
    # It has logged a step, and was killed before a save.
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n')
    place.rename(tmp_path / "moved.gguf")
    with pytest.raises(ConfigError, match=r"no checkpoint yet[\s\S]*--config.weights.path=PATH"):
        sources.settle(config, tmp_path / "run", sources.TRAIN)
    moved = at(config, "weights.path", tmp_path / "moved.gguf")
    assert "the same source" in sources.settle(moved, tmp_path / "run", sources.TRAIN).notes[0]
    write(tmp_path / "moved.gguf", "two")
    with pytest.raises(ConfigError, match="other contents"):
        sources.settle(moved, tmp_path / "run", sources.TRAIN)


def test_what_has_not_changed_is_not_read_again(tmp_path, monkeypatch, capsys):
    """Catches: gigabytes hashed at every start, and a change that keeps size and time of a file."""
    place = write(tmp_path / "data.jsonl")
    config = described(tmp_path / "run", data={"source": "jsonl", "path": str(place)})
    read = []
    monkeypatch.setattr(sources, "of_files", lambda files: read.append(files) or "xxh3_128:x")
    settle = lambda path: sources.settle(  # noqa: E731
        at(config, "data.path", path), tmp_path / "run", sources.EVALUATE
    )
    assert settle(place).differing == {}
    assert read == []
    monkeypatch.undo()
    copy = Path(shutil.copy(place, tmp_path / "copy.jsonl"))
    assert settle(copy).differing == {}
    monkeypatch.setattr(sources, "of_files", lambda files: read.append(files) or "xxh3_128:x")
    assert settle(copy).differing == settle(place).differing == {}
    assert read == []
    stat = place.stat()
    place.write_text("two")
    os.utime(place, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert settle(place).differing == {"data.path": "xxh3_128:x"}
    assert read
    monkeypatch.setattr(sources, "_LARGE", 3)
    assert settle(place).differing
    assert "GiB of data.path" in capsys.readouterr().err


def test_a_sweep_whose_data_have_moved_is_the_same_sweep(tmp_path):
    """Catches: the place of data taken for what makes a sweep another one; other data mixed in."""
    place = write(tmp_path / "data.jsonl")
    config = described(tmp_path / "a", data={"source": "jsonl", "path": str(place)})
    runs = [sweep.SweepRun("a", config), sweep.SweepRun("b", dataclasses.replace(config, seed=1))]
    sweep._write(runs, tmp_path)
    place.rename(tmp_path / "moved.jsonl")

    def again(path):
        moved = [run._replace(config=at(run.config, "data.path", path)) for run in runs]
        sweep.check_sweep(moved, tmp_path)

    again(tmp_path / "moved.jsonl")
    with pytest.raises(ConfigError, match="other contents"):
        again(write(tmp_path / "other.jsonl", "two"))
    with pytest.raises(ConfigError, match="has changed"):
        sweep.check_sweep([runs[0], runs[1]._replace(config=config)], tmp_path)


def test_damaged_records_are_told(tmp_path):
    place = write(tmp_path / "data.jsonl")
    config = described(tmp_path / "run", data={"source": "jsonl", "path": str(place)})
    for text in ("{", "[]", '{"data.path": 3}', '{"data.path": {"path": "x"}}'):
        (tmp_path / "run" / "sources.json").write_text(text)
        with pytest.raises(ConfigError, match=r"sources\.json"):
            sources.settle(config, tmp_path / "run", sources.TRAIN)
    for text in ("{", "[]", '{"d_model": "x"}', '{"d_modl": 3}', '{"d_model": 0}'):
        (tmp_path / "run" / "model.json").write_text(text)
        with pytest.raises(ConfigError, match=r"model\.json"):
            runfolder.read_model(tmp_path / "run")
