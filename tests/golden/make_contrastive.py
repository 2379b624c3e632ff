"""Regenerate contrastive.json: what transformers' contrastive search says of the golden models.

    python tests/golden/make_contrastive.py     # needs torch and transformers==4.52.4

Later versions of transformers have no contrastive search (they fetch its code from a hub). The
models are read from the folders beside this file; 4.52 does not know the key `rope_parameters` of
their config.json, so the angle is handed over by hand. It does not look at our own search.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent
NEW_TOKENS = 20
SETTINGS = ((0.6, 8), (0.9, 3))


def read_model(name: str) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = json.loads((GOLDEN / name / "config.json").read_text())
    rope = values.pop("rope_parameters", None)
    if rope:
        values["rope_theta"] = rope["rope_theta"]
    config = AutoConfig.for_model(**values)
    config._attn_implementation = "eager"
    return AutoModelForCausalLM.from_pretrained(
        GOLDEN / name, config=config, torch_dtype=torch.float32
    ).eval()


def main() -> None:
    import numpy as np
    import torch
    import transformers

    rng = np.random.default_rng(0)
    cases = []
    for name in ("gpt2", "llama"):
        model = read_model(name)
        with np.load(GOLDEN / name / "logits.npz") as golden:
            ids, expected = golden["ids"], golden["logits"]
        with torch.no_grad():
            np.testing.assert_allclose(model(torch.tensor(ids)).logits, expected, atol=1e-4)
        prompts = [rng.integers(3, 61, n).tolist() for n in (1, 3, 6, 10)]
        for penalty, candidates in SETTINGS:
            for prompt in prompts:
                out = model.generate(
                    torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)),
                    penalty_alpha=penalty, top_k=candidates, max_new_tokens=NEW_TOKENS,
                    eos_token_id=2, pad_token_id=0, do_sample=False,
                )[0, len(prompt) :].tolist()  # fmt: skip
                cases.append(
                    {"model": name, "prompt": prompt, "penalty": penalty,
                     "candidates": candidates, "tokens": out}
                )  # fmt: skip
    lines = ",\n".join(json.dumps(c) for c in cases)
    version = json.dumps(f"transformers {transformers.__version__}")
    (GOLDEN / "contrastive.json").write_text(f'{{"by": {version}, "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
