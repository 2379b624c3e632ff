"""Regenerate coconut.npz: what the public reference of Coconut makes of a small GPT-2.

    python tests/golden/make_coconut.py FOLDER

FOLDER holds weights.safetensors (transformers' names) and vectors.npz, which were written with
facebookresearch/coconut at commit 27273cb (torch 2.13, transformers 4.46.2, float32, no dropout).
Of these the fixture keeps the weights; of a batch with six thoughts a row (`six/`) the inputs,
loss, thoughts, gradients, and logits where a thought stands or a label is predicted; of one without
a thought (`none/`) the inputs, loss, and every eighth of those logits. Nothing is computed here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent
CASES = {"six": "A_six_latents_bs4", "none": "D_stage0_markers_only"}
INPUTS = ("input_ids", "attention_mask", "labels", "position_ids")
EVERY = {"six": 1, "none": 8}


def main(folder: Path) -> None:
    from safetensors import safe_open

    kept: dict[str, np.ndarray] = {}
    with safe_open(folder / "weights.safetensors", "np") as weights:
        kept["config"] = np.array(weights.metadata()["config"])
        for name in weights.keys():  # noqa: SIM118  (not a dict)
            kept[f"weight/{name}"] = weights.get_tensor(name)
    with np.load(folder / "vectors.npz") as vectors:
        for case, theirs in CASES.items():
            names = [name.partition("/")[2] for name in vectors.files if name.startswith(theirs)]
            for name in names:
                if name.startswith("grad:"):
                    kept[f"{case}/gradient/{name[5:]}"] = vectors[f"{theirs}/{name}"]
            for name in INPUTS:
                kept[f"{case}/{name}"] = vectors[f"{theirs}/{name}"].astype(np.int16)
            for name in ("loss", "grad_norm", "latent_embeds", "latent_pos"):
                kept[f"{case}/{name}"] = vectors[f"{theirs}/{name}"]
            wanted = np.zeros(vectors[f"{theirs}/labels"].shape, bool)
            # The label of a column is predicted in the column before it.
            wanted[:, :-1] = vectors[f"{theirs}/labels"][:, 1:] >= 0
            wanted[tuple(vectors[f"{theirs}/latent_pos"].T)] = True
            places = np.argwhere(wanted)[:: EVERY[case]].astype(np.int16)
            kept[f"{case}/places"] = places
            kept[f"{case}/logits"] = vectors[f"{theirs}/logits"][places[:, 0], places[:, 1]]
    np.savez_compressed(GOLDEN / "coconut.npz", **kept)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
