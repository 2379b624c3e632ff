"""Out and in again: an exported run has the run's parameters, its vocabulary, and all that others
need to use it, whatever the vocabulary and the model.

The same folders are loaded by transformers in test_export_parity.py.
"""

import json
import os
import stat
import time

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer

from reasoning_jax import main, weights
from reasoning_jax.commands.assemble import assemble
from reasoning_jax.model import spec
from reasoning_jax.model.lora import merge
from reasoning_jax.train.state import adapters
from reasoning_jax.vocab import BACKSPACE, PAD, VocabError, WordCodec, make_vocab
from reasoning_jax.weights import tokenizer_out
from reasoning_jax.weights.companions import Companions
from tests.commands.exported import of_weights, saved_run
from tests.small import thinking_run, tiny_run
from tests.weights import folders
from tests.weights.support import assert_same

HOSTILE = (
    "", "7+5=", "ab12", "\n\n", " a  b ", "<backspace>", "x<eos>y", "<pad><bos>", "<|backspace|>",
    "naïve 日本 👩‍👧", "\x00\x1f\u2028\u00a0\x85", "a\tb\r\nc", "\u202eabc",
    "hilpus jompus", "is w1, a yes?!\nw2?", "9" * 40,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_device(quick_to_compile):
    pass


def rj(*words):
    return main.run(["reasoning-jax", *map(str, words)])


def words_file(folder):
    """A JSONL file of words, one of which is called like a special."""
    path = folder / "words.jsonl"
    rows = [{"question": f"is w{i}, a <eos>?", "steps": [f"w{i} ##b"], "answer": "yes"}
            for i in range(40)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tokenizer_file(folder):
    path = folder / "tokenizer.json"
    path.write_text(folders.tokenizer_of_bytes(True))
    return path


# Vocabulary kind (and its options) -> a function from a folder to the config of a run.
KINDS = {
    "char": lambda folder: tiny_run(),
    "char without backspace": lambda folder: tiny_run(
        vocab={"backspace": False}, objective={"name": "mle"}, noise={"rate": 0.0}
    ),
    "byte": lambda folder: tiny_run(
        vocab={"kind": "byte"}, noise={"source": "random"}, model={"tied_embeddings": False}
    ),
    "word": lambda folder: tiny_run(
        vocab={"kind": "word"}, noise={"source": "random"},
        data={"source": "jsonl", "path": str(words_file(folder)), "seq_len": 32,
              "question_suffix": "\n", "answer_prefix": "### "},
        sampling={"max_actions": 8},
    ),
    "word with thoughts": lambda folder: thinking_run(
        vocab={"kind": "word", "backspace": False, "latent": True},
        task={"name": "prosqa", "family": "mirrored", "form": "symbolic", "min_hops": 1,
              "max_hops": 1},
        data={"seq_len": 64, "train_problems": 50, "answer_prefix": " [A] ", "step_suffix": " "},
        latent={"prompt_columns": 60}, train={"steps": 6, "batch_rows": 2},
    ),
    "tokenizer": lambda folder: tiny_run(
        vocab={"kind": "tokenizer", "path": str(tokenizer_file(folder))},
        noise={"source": "random"}, data={"seq_len": 16},
        model={"norm": "layernorm", "position": "learned", "mlp": "gelu", "qkv_bias": True,
               "output_bias": True, "max_positions": 32},
    ),
    "char in the form of Qwen 2": lambda folder: tiny_run(model={"qkv_bias": True}),
    "byte in bfloat16": lambda folder: tiny_run(
        vocab={"kind": "byte", "latent": True}, noise={"source": "random"},
        model={"param_dtype": "bfloat16", "qk_norm": True},
    ),
}  # fmt: skip


# Of these the export of an import is compared with the export, file by file.
TWICE = ("char", "byte in bfloat16", "tokenizer")


def exported(folder, config, *flags):
    """A run and its export: (assembly, the parameters that were saved, the exported folder)."""
    assembly, params = saved_run(folder / "run", config)
    assert rj("export", f"--workdir={folder / 'run'}", f"--out={folder / 'out'}", *flags) == 0
    return assembly, params, folder / "out"


def ids_or_error(encode, text):
    try:
        return list(encode(text))
    except Exception:  # the tokenizers library has no type of its own
        return None


def check_tokenizer(folder, vocab):
    """tokenizer.json has our ids, and our errors, and gives the text back."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    contents = tokenizer_out.special_contents(vocab)
    for name, i in vocab.specials.items():
        assert tokenizer.token_to_id(contents[name]) == i, name
    for name, key in (("<eos>", "eos_token"), (PAD, "pad_token")):
        for file in ("tokenizer_config.json", "special_tokens_map.json"):
            assert json.loads((folder / file).read_text())[key] == contents[name]
    tokenizer.encode_special_tokens = True
    known = 0
    for text in HOSTILE:
        wanted = ids_or_error(vocab.encode, text)
        got = ids_or_error(lambda t: tokenizer.encode(t, add_special_tokens=False).ids, text)
        assert got == wanted, text
        if wanted:
            known += 1
            assert tokenizer.decode(wanted) == vocab.decode(wanted), text
            start = [] if vocab.bos_id is None else [vocab.bos_id]
            assert tokenizer.encode(text).ids == [*start, *wanted]
    assert known


def check_again(folder, config, assembly, params, out, twice=False):
    """The folder is read as the run's own parameters and ids, and exported again it is the same."""
    dtype = config.model.param_dtype
    again = weights.load(out, param_dtype=dtype)
    assert_same(again.params, params)
    options = {"backspace": config.vocab.backspace, "latent": config.vocab.latent}
    settings = {"vocab": {"kind": "weights", **options}, "model": {"param_dtype": dtype}}
    second = of_weights(out, **settings)
    vocab = read_vocab(out, options)
    ours = assembly.vocab
    assert (vocab.specials, vocab.size) == (ours.specials, ours.size)
    assert vocab.text_ids() == ours.text_ids()
    for text in HOSTILE:
        assert ids_or_error(vocab.encode, text) == ids_or_error(ours.encode, text)
    if twice:
        saved_run(folder / "run2", second)
        assert rj("export", f"--workdir={folder / 'run2'}", f"--out={folder / 'out2'}") == 0
        names = sorted(p.name for p in out.iterdir())
        assert sorted(p.name for p in (folder / "out2").iterdir()) == names
        for name in names:
            if name != "README.md":  # which says what the model started from
                assert (out / name).read_bytes() == (folder / "out2" / name).read_bytes(), name


def read_vocab(path, options):
    files, rows = weights.read_tokenizer(path), weights.read_config(path).vocab_size
    return weights.vocab_of_weights(files, rows, str(path), **options)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_vocabulary_goes_out_and_in(kind, tmp_path):
    """Catches: a special that is added a second time, ids that move, a codec that comes back as
    another, a word that is called like a special.
    """
    config = KINDS[kind](tmp_path)
    assembly, params, out = exported(tmp_path, config)
    check_tokenizer(out, assembly.vocab)
    check_again(tmp_path, config, assembly, params["model"], out, twice=kind in TWICE)
    hf = json.loads((out / "config.json").read_text())
    ids = assembly.vocab.specials
    assert (hf["eos_token_id"], hf["pad_token_id"]) == (ids["<eos>"], ids[PAD])
    assert hf["dtype"] == hf["torch_dtype"] == config.model.param_dtype
    suppressed = json.loads((out / "generation_config.json").read_text())["suppress_tokens"]
    assert set(assembly.vocab.unsampled_ids()) <= {*suppressed}
    assert (ids.get(BACKSPACE) in suppressed) == config.vocab.backspace


@pytest.mark.parametrize("name", folders.MODELS)
def test_every_family_goes_out_and_in(name, tmp_path):
    """Catches: an added <pad> that the tokenizer lacks, a template or ends of text that are lost,
    ids that move.
    """
    base = folders.write_folder(name, tmp_path / "base")
    config, run, out = of_weights(base), tmp_path / "run", tmp_path / "out"
    assembly, params = saved_run(run, config)
    base = base.rename(tmp_path / "gone")  # the run holds all that an export needs
    assert rj("export", f"--workdir={run}", f"--out={out}") == 0
    check_tokenizer(out, assembly.vocab)
    check_again(tmp_path, config, assembly, params["model"], out, twice=name == "llama3")

    tokenizer, before = (Tokenizer.from_file(str(f / "tokenizer.json")) for f in (out, base))
    old = before.get_vocab(with_added_tokens=True)
    assert old.items() <= tokenizer.get_vocab(with_added_tokens=True).items()
    named = json.loads((out / "tokenizer_config.json").read_text())
    assert (named["eos_token"], named["bos_token"], named["pad_token"]) == (
        folders.CHAT_END, folders.BEGIN, PAD,
    )  # fmt: skip
    assert (named["chat_template"], named["padding_side"]) == (folders.TEMPLATE, "right")
    assert "unk_token" not in named  # a token without a row, which loading would add
    generation = json.loads((out / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["temperature"]) == ([260, 259], 0.6)
    hf = json.loads((out / "config.json").read_text())
    assert (hf["model_type"], hf["eos_token_id"]) == (folders.MODELS[name][0], [260, 259])
    assert hf["vocab_size"] == assembly.vocab.size == max(264, 262 + folders.MODELS[name][2])


@pytest.mark.slow
def test_a_trained_run_keeps_what_came_with_its_source(tmp_path):
    """By the commands alone, and by both that export."""
    base = folders.write_folder("qwen2", tmp_path / "base")
    file = tmp_path / "ft.py"
    file.write_text(
        "from reasoning_jax import config as rc\n"
        "from tests.commands.exported import of_weights\n\n"
        "def get_config(arg=''):\n"
        "    c = rc.default_config()\n"
        f"    c.update(rc.to_dict(of_weights({str(base)!r}, lora={{'rank': 2}})))\n"
        "    return c\n"
    )
    run, out = tmp_path / "run", tmp_path / "out"
    assert rj("train", f"--config={file}", f"--workdir={run}", "--quiet") == 0
    kept = {p.name for p in (run / "pretrained").iterdir()}
    assert kept == {"config.json", "tokenizer_config.json", "generation_config.json"}
    assert rj("export", f"--workdir={run}", f"--out={out}") == 0
    assert rj("checkpoint", "export", run, f"--out={tmp_path / 'same'}") == 0
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / "same" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"model": {"position": "none"}}, "position='none'; the nearest, llama, has position='ro"),
        ({"model": {"norm": "layernorm"}}, "norm='layernorm'"),
        ({"vocab": {"kind": "pair"}}, 'train with vocab.kind="word"'),
    ],
)
def test_models_of_no_family_are_refused_before_the_work(sections, said, tmp_path, capsys):
    config = tiny_run(**sections) if "model" in sections else thinking_run()
    saved_run(tmp_path / "run", config)
    (step,) = (tmp_path / "run" / "checkpoints").iterdir()
    (step / "manifest.json").write_text("{}")  # a restore would end with another code
    assert rj("export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}") == 2
    err = capsys.readouterr().err
    assert said in err
    assert "the run folder itself can be sampled" in err
    assert not (tmp_path / "out").exists()


def test_places_and_flags(tmp_path, capsys):
    """--overwrite replaces a model and nothing else; what is no model is left alone."""
    assembly, _ = saved_run(tmp_path / "run", tiny_run())
    out, run = tmp_path / "out", tmp_path / "run"
    go = ["export", f"--workdir={run}", f"--out={out}"]
    assert rj(*go) == 0
    inode = (out / "model.safetensors").stat().st_ino
    (out / "notes").mkdir()
    (out / "notes" / "mine.txt").write_text("x")
    (out / "link").symlink_to("notes")
    (out / "model-00001-of-00002.safetensors").write_bytes(b"stale")
    assert rj(*go) == 2
    assert "or --overwrite to replace" in capsys.readouterr().err
    assert rj(*go, "--overwrite") == 0
    assert (out / "notes" / "mine.txt").read_text() == "x"
    assert os.readlink(out / "link") == "notes"
    assert not (out / "model-00001-of-00002.safetensors").exists()
    assert (out / "model.safetensors").stat().st_ino != inode
    for place, said in (
        (run, "holds no model"), (tmp_path, "holds no model"), (out / "config.json", "is a file"),
    ):  # fmt: skip
        assert rj("export", f"--workdir={run}", f"--out={place}", "--overwrite") == 2
        assert said in capsys.readouterr().err
    assert (run / "checkpoints").is_dir()
    for flag, said in (
        ("--adapters=beside", "lora.rank is 0"), ("--adapters=apart", "must be one of merge, besi"),
    ):  # fmt: skip
        assert rj(*go, "--overwrite", flag) == 2
        assert said in capsys.readouterr().err
    assert rj("checkpoint", "list", run, "--overwrite") == 2
    assert rj("checkpoint", "verify", run, "--adapters=merge") == 2
    assert assembly.vocab.size


def test_a_run_does_not_write_over_the_weights_it_started_from(tmp_path, capsys):
    base = folders.write_folder("smollm2", tmp_path / "base")
    saved_run(tmp_path / "run", of_weights(base))
    assert rj("export", f"--workdir={tmp_path / 'run'}", f"--out={base}", "--overwrite") == 2
    assert "the weights that the run started from" in capsys.readouterr().err


def test_files_have_the_permissions_that_the_umask_gives(tmp_path):
    saved_run(tmp_path / "run", tiny_run(lora={"rank": 2}, optimizer={"no_decay": ()}))
    for mask in (0o022, 0o027, 0o077):
        out = tmp_path / str(mask)
        before = os.umask(mask)
        try:
            go = ("export", f"--workdir={tmp_path / 'run'}", f"--out={out}", "--adapters=beside")
            assert rj(*go) == 0
        finally:
            os.umask(before)
        for path in (out, *out.rglob("*")):
            wanted = (0o777 if path.is_dir() else 0o666) & ~mask
            assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_an_interrupted_export_leaves_the_old_one(tmp_path, monkeypatch):
    saved_run(tmp_path / "run", tiny_run())
    go = ["export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}", "--overwrite"]
    assert rj(*go) == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / "mine").write_text("x")
    rename = type(tmp_path).rename

    def interrupted(path, target):
        if path.name == "new":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(type(tmp_path), "rename", interrupted)
    assert rj(*go) != 0
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before | {"mine": b"x"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "run"]


def test_adapters_beside_their_base(tmp_path, capsys):
    """PEFT's matrices give the merged weights; given back, the folder says what is not read."""
    from safetensors.numpy import load_file

    base = folders.write_folder("gpt2", tmp_path / "base")
    config = of_weights(base, lora={"rank": 2, "alpha": 3.0})
    _, params, out = exported(tmp_path, config, "--adapters=beside")
    plain = load_file(out / "model.safetensors")
    go = ("export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'merged'}")
    assert rj(*go, "--adapters=merge") == 0
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    tensors = load_file(out / "adapter" / "adapter_model.safetensors")
    about = json.loads((out / "adapter" / "adapter_config.json").read_text())
    changed = 0
    for key, value in plain.items():
        place = f"base_model.model.{key.removesuffix('.weight')}"
        update = np.zeros_like(value)
        if f"{place}.lora_A.weight" in tensors:
            a, b = (tensors[f"{place}.lora_{x}.weight"] for x in "AB")
            (target,) = [t for t in about["target_modules"] if place.endswith(f".{t}")]
            r = about["rank_pattern"].get(target, about["r"])
            assert a.shape[0] == b.shape[1] == r
            update = b @ a * (about["alpha_pattern"].get(target, about["lora_alpha"]) / r)
            update = update.T if about["fan_in_fan_out"] else update
            changed += 1
        np.testing.assert_allclose(value + update, merged[key], atol=1e-5, err_msg=key)
    assert changed == len(tensors) // 2 == 2 * len(about["target_modules"])
    assert_same(weights.load(out, vocab_rows=264).params, params["model"])
    notes = assemble(of_weights(out)).notes
    assert any("adapters" in note and "not read" in note for note in notes)


def test_a_mesh_exports_what_one_device_does(tmp_path, monkeypatch):
    """Adapters on parameters that are split over devices."""
    monkeypatch.undo()  # all eight devices
    base = folders.write_folder("gpt2", tmp_path / "base")
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    lora = {"rank": 2, "targets": ("layers/attention/query", "layers/mlp/up")}
    config = of_weights(base, lora=lora, mesh=mesh)
    _, params, out = exported(tmp_path, config)
    merged = jax.device_get(merge(params["model"], adapters(params, config)))
    for path, value in spec.flatten(weights.load(out).params).items():
        np.testing.assert_allclose(value, spec.flatten(merged)[path], atol=1e-6, err_msg=path)


def test_other_wishes_for_specials_of_an_export(tmp_path):
    """What is known is found again, what is missing comes behind, what is unwanted keeps its row;
    also where only tokenizer.json says so, as after another tool has saved the model.
    """
    assembly, _, out = exported(tmp_path, tiny_run())
    ours = assembly.vocab
    vocab = read_vocab(out, {"backspace": True, "latent": True})
    assert vocab.specials.items() > ours.specials.items()
    assert [vocab.specials[n] for n in ("<bot>", "<eot>", "<latent>")] == [
        ours.size + i for i in range(3)
    ]
    vocab = read_vocab(out, {"backspace": False, "latent": False})
    assert (vocab.size, vocab.backspace_id) == (ours.size, None)
    assert ours.backspace_id in vocab.unsampled_ids()
    os.remove(out / "reasoning_jax_vocab.json")
    vocab = read_vocab(out, {"backspace": True, "latent": False})
    assert (dict(vocab.specials), vocab.size) == (dict(ours.specials), ours.size)
    assert vocab.encode("7+5=") == ours.encode("7+5=")
    with pytest.raises(VocabError):
        vocab.encode("x")


def test_a_vocabulary_file_of_a_stranger_is_checked(tmp_path):
    _, _, out = exported(tmp_path, tiny_run())
    path = out / "reasoning_jax_vocab.json"
    good = json.loads(path.read_text())
    characters = good["codec"]["characters"]
    for changes, said in (
        ({"format": 2}, "got format 2, wanted 1"),
        ({"codec": {"kind": "tokenizer"}, "specials": {"<pad>": 90, "<eos>": 91}, "size": 99},
         "describes other tokens"),
        ({"codec": {"kind": "char", "characters": characters[::-1]}}, "describes other tokens"),
        ({"codec": {"kind": "pair", "words": ["a"]}}, "describes other tokens"),
        ({"codec": {"kind": "lisp"}}, "unknown vocabulary kind"),
        ({"codec": {"kind": "char", "characters": "\ud800"}, "specials": {"<pad>": 1, "<eos>": 2},
          "size": 3}, "reasoning_jax_vocab.json"),
        ({"specials": {"<pad>": 0, "<eos>": 10**12}}, "outside"),
        ({"size": "many"}, "not the description"),
    ):  # fmt: skip
        path.write_text(json.dumps({**good, **changes}))
        with pytest.raises(weights.WeightsError, match=said):
            weights.read_tokenizer(out)
    path.write_text("{")
    with pytest.raises(weights.WeightsError, match="not JSON"):
        weights.read_tokenizer(out)


def test_a_run_without_kept_settings_says_what_is_missing(tmp_path, capsys):
    """Runs of older versions; their source is taken where its tokenizer is the run's."""
    base = folders.write_folder("llama2", tmp_path / "base")
    config = of_weights(base)
    saved_run(tmp_path / "run", config)
    for path in (tmp_path / "run" / "pretrained").iterdir():
        path.unlink()
    (tmp_path / "run" / "pretrained").rmdir()
    go = ("export", f"--workdir={tmp_path / 'run'}", "--overwrite", f"--out={tmp_path / 'out'}")
    assert rj(*go) == 0
    assert "missing" not in capsys.readouterr().out
    assert folders.TEMPLATE in json.loads(
        (tmp_path / "out" / "tokenizer_config.json").read_text()
    ).get("chat_template")
    (base / "tokenizer.json").write_text(folders.tokenizer_of_bytes(False))
    assert rj(*go) == 0
    assert "note: the run has no folder pretrained" in capsys.readouterr().out
    assert "## Missing" in (tmp_path / "out" / "README.md").read_text()


def test_broken_settings_of_a_source_are_left_out_and_told(tmp_path):
    base = folders.write_folder("llama2", tmp_path / "base")
    (base / "generation_config.json").write_text("[1")
    (base / "special_tokens_map.json").write_text(json.dumps({"cls_token": "\ud800"}))
    (base / "chat_template.jinja").symlink_to("/etc/hostname")
    found = weights.read_companions(base)
    assert len(found.notes) == 3
    assert (found.generation_config, found.special_tokens_map, found.chat_template) == (
        {},
        {},
        None,
    )
    (base / "generation_config.json").write_text(" " * (2 << 20))
    assert any("at most" in note for note in weights.read_companions(base).notes)


def test_settings_of_a_stranger_do_not_reach_beyond_the_tokens(tmp_path):
    """Catches: code and files of another place that are taken over, tokens without a row."""
    base = folders.write_folder("gpt2", tmp_path / "base")
    path = base / "tokenizer_config.json"
    values = json.loads(path.read_text())
    values |= {
        "auto_map": {"AutoTokenizer": ["evil.py", None]}, "tokenizer_file": "/etc/passwd",
        "mask_token": {"content": "<nowhere>"}, "add_bos_token": False,
        "additional_special_tokens": [{"content": folders.TEXT_END}, "<nowhere>"],
        "added_tokens_decoder": {"259": {"content": folders.TEXT_END, "special": True},
                                 "900": {"content": "<nowhere>", "special": True}},
    }  # fmt: skip
    path.write_text(json.dumps(values))
    _, _, out = exported(tmp_path, of_weights(base))
    named = json.loads((out / "tokenizer_config.json").read_text())
    assert not {"auto_map", "tokenizer_file", "mask_token", "unk_token"} & named.keys()
    assert named["additional_special_tokens"] == [{"content": folders.TEXT_END}, BACKSPACE]
    tokens = {i: t["content"] for i, t in named["added_tokens_decoder"].items()}
    assert tokens == {
        "259": folders.TEXT_END,
        "260": folders.CHAT_END,
        "262": PAD,
        "263": BACKSPACE,
    }


def test_a_tokenizer_with_holes_keeps_its_ids(tmp_path):
    """The library numbers added tokens by the count of the others."""
    values = json.loads(folders.tokenizer_of_bytes(False))
    values["model"]["vocab"]["zz"] = 300
    values["added_tokens"] = []
    path = tmp_path / "holes.json"
    path.write_text(json.dumps(values))
    config = tiny_run(
        vocab={"kind": "tokenizer", "path": str(path)}, noise={"rate": 0.0},
        objective={"name": "mle"},
    )  # fmt: skip
    assembly, params, out = exported(tmp_path, config)
    assert assembly.vocab.pad_id == 301
    check_tokenizer(out, assembly.vocab)
    check_again(tmp_path, config, assembly, params["model"], out)


def test_large_vocabularies_take_time_in_proportion():
    """Catches: a scan of all words for each of them. (200,000 words take about 2 s.)"""
    sizes, times = (20_000, 80_000), []
    for size in sizes:
        vocab = make_vocab(WordCodec(("\n", *(f"w{i}" for i in range(size)))), latent=True)
        begin = time.process_time()
        files = tokenizer_out.tokenizer_files(vocab, Companions(), 128)
        times.append(time.process_time() - begin)
        assert len(json.loads(files["tokenizer.json"])["model"]["vocab"]) == size + 1
    assert times[1] < 10 * times[0] + 0.2


def test_the_readme_of_an_export_speaks_of_what_is_there(tmp_path):
    _, _, out = exported(tmp_path, KINDS["word with thoughts"](tmp_path))
    text = (out / "README.md").read_text()
    assert "## Latent thoughts" in text
    assert "takes back the last token" not in text
    assert "A word that the vocabulary does not have is an error in both." in text
