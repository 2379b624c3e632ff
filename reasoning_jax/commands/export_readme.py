"""The README.md of an exported model: what it is, and what `generate` does not know of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from reasoning_jax.config import Config
from reasoning_jax.vocab import BACKSPACE, BOT, EOT, LATENT, Vocab
from reasoning_jax.weights import peft, tokenizer_out, vocabulary


class Facts(NamedTuple):
    """What is told of an export. `missing`: what an older run has not kept of its source.
    `rebuilt`: `AutoTokenizer` would put a pre-tokenizer of its own in place of tokenizer.json's.
    """

    config: Config
    vocab: Vocab
    step: int
    commit: str
    stage: int | None = None
    beside: bool = False
    missing: tuple[str, ...] = ()
    template: bool = False
    rebuilt: bool = False


_HEAD = """---
library_name: transformers
---
# A model trained with reasoning_jax

{table}

```python
from transformers import AutoModelForCausalLM, {tokenizer}

tokenizer = {tokenizer}.from_pretrained(FOLDER)
model = AutoModelForCausalLM.from_pretrained(FOLDER)
ids = tokenizer({prompt}, return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, do_sample=False, max_new_tokens={tokens})[0]))
```

`weights.path="FOLDER"` with `vocab.kind="weights"` gives the folder back to reasoning_jax, with the
same vocabulary ({vocab_file}).{rebuilt}
"""
_REBUILT = """

`AutoTokenizer` of transformers 5 gives models of this family a pre-tokenizer of its own and so
other ids; `PreTrainedTokenizerFast` takes tokenizer.json as it is."""

_BACKSPACE = """
## {literal} (id {backspace}) takes back the last token

The model chooses it like a token, and then the last token is gone: the next one is chosen as if it
had never been written. `generate` cannot do that, so `generation_config.json` keeps it from
choosing {literal} (`suppress_tokens`): it writes the model's text without corrections. With
corrections, greedily:

```python
import torch

BACKSPACE, EOS = {backspace}, {eos}
NEVER = [i for i in model.generation_config.suppress_tokens if i != BACKSPACE]


@torch.no_grad()
def complete(prompt, max_actions={actions}):
    ids = tokenizer(prompt).input_ids
    start = len(ids)
    for _ in range(max_actions - 1):  # the last action is the end
        scores = model(torch.tensor([ids])).logits[0, -1]
        scores[NEVER] = -torch.inf
{floor}        action = int(scores.argmax())
        if action == EOS:
            break
        if action == BACKSPACE:
            {pop}
        else:
            ids.append(action)
    return tokenizer.decode(ids[start:])
```

Ids that hold {literal} tokens, such as a record of everything chosen, collapse to the text that
stands:

```python
def collapse(ids):
    standing = []
    for i in ids:
        if i != BACKSPACE:
            standing.append(i)
        elif standing:
            standing.pop()
    return standing
```
"""
_MASKED = """        if len(ids) == start:
            scores[BACKSPACE] = -torch.inf  # the prompt is never taken back
"""

_THOUGHTS = """
## Latent thoughts

The model was trained to think before it writes (`latent.mode={mode}`): a thought is a position
whose input is not a token but the state of the position before it. `generate` does not make
thoughts, so it writes the text of the model without them; `reasoning-jax sample` makes them.
{markers}
"""
_MARKERS = "{bot} stands before thoughts, {eot} behind them, and {latent} where a thought is."

_TEXT = """
## Text is text

reasoning_jax reads a special token's name in a text as its characters. Hugging Face's tokenizers
read it as the token, unless they are called with `split_special_tokens=True`. {unknown}
"""

_ADAPTERS = """
## Adapters

The weights here are those of the base model. The LoRA adapters are in `{folder}`, in PEFT's format,
and belong on top of them:

```python
from peft import PeftModel

model = PeftModel.from_pretrained(model, FOLDER + "/{folder}")
```

reasoning_jax reads the base weights only; export with `--adapters=merge` to give the model back.
"""


def readme(facts: Facts) -> str:
    """The text of README.md; the same for the same step of the same run."""
    config, vocab = facts.config, facts.vocab
    literal = tokenizer_out.special_contents(vocab)
    suffix = config.data.question_suffix
    prompt = '"YOUR QUESTION"' + (f" + {_quoted(suffix)}" if suffix else "")
    tokens = config.sampling.max_new_tokens or config.sampling.max_actions
    parts = [
        _HEAD.format(
            table=_table(facts),
            prompt=prompt,
            tokens=tokens,
            vocab_file=vocabulary.FILE,
            tokenizer="PreTrainedTokenizerFast" if facts.rebuilt else "AutoTokenizer",
            rebuilt=_REBUILT if facts.rebuilt else "",
        )
    ]
    if vocab.backspace_id is not None:
        masked = config.sequencematch.floor_backspace == "masked"
        parts.append(
            _BACKSPACE.format(
                literal=f"`{literal[BACKSPACE]}`",
                backspace=vocab.backspace_id,
                eos=vocab.eos_id,
                actions=config.sampling.max_actions,
                floor=_MASKED if masked else "",
                pop="ids.pop()" if masked else "del ids[max(start, len(ids) - 1) :]",
            )
        )
    if config.latent.mode != "off":
        markers = ""
        if LATENT in literal:
            names = {"bot": literal[BOT], "eot": literal[EOT], "latent": literal[LATENT]}
            markers = _MARKERS.format(**{k: f"`{v}`" for k, v in names.items()})
        parts.append(_THOUGHTS.format(mode=_quoted(config.latent.mode), markers=markers))
    kind = vocab.codec.to_dict()["kind"]
    unknown = ""
    if kind in ("char", "word"):
        what = "character" if kind == "char" else "word"
        unknown = f"A {what} that the vocabulary does not have is an error in both."
    parts.append(_TEXT.format(unknown=unknown))
    if facts.beside:
        parts.append(_ADAPTERS.format(folder=peft.FOLDER))
    if facts.missing:
        parts.append("\n## Missing\n\n" + "".join(f"* {note}\n" for note in facts.missing))
    return "".join(parts)


def _table(facts: Facts) -> str:
    config, vocab = facts.config, facts.vocab
    data = config.task.name if config.data.source == "task" else config.data.source
    rows = {
        "step": f"{facts.step} of {config.train.steps}",
        "commit of reasoning_jax": facts.commit,
        "data": data,
        "objective": config.objective.name,
        "noise": f"rate {config.noise.rate:g}, {config.noise.source}"
        if config.noise.rate
        else "none",
        "vocabulary": f"{vocab.codec.to_dict()['kind']}, {vocab.size} rows",
        "special tokens": ", ".join(
            f"`{content}` {vocab.specials[name]}"
            for name, content in tokenizer_out.special_contents(vocab).items()
        ),
        "a prompt": f"the question + {_quoted(config.data.question_suffix)}",
        "an answer": f"steps, each + {_quoted(config.data.step_suffix)}, then "
        f"{_quoted(config.data.answer_prefix)} + the answer",
        "chat template": "that of the original model" if facts.template else "none",
    }
    if config.data.source == "text":
        for name in ("a prompt", "an answer"):
            del rows[name]
    if config.weights.path:
        # The name alone: where it lies says something of its owner and nothing of the model.
        rows["started from"] = _quoted(Path(config.weights.path).name)
    if config.lora.rank:
        how = "beside the base weights" if facts.beside else "merged into the weights"
        rows["adapters"] = f"rank {config.lora.rank}, {how}"
    if facts.stage is not None:
        rows["stage of the curriculum"] = str(facts.stage)
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _cell(text: str) -> str:
    """Text for a cell of a table: on one line, without its separator."""
    return " ".join(text.replace("|", "\\|").split())
