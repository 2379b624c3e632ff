"""Files that the runs of the walk stand on, and what a run is given."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import jax

from reasoning_jax.data import builder
from reasoning_jax.tasks import make_task
from tests.weights.support import GOLDEN, TOKENIZER, edit_json

_CONFIG = """
from reasoning_jax import config as rc
from reasoning_jax.tasks import task_dials


def get_config():
    config = rc.default_config()
    for key, value in {values!r}.items():
        if key == "task":
            config.task = {{**task_dials(value["name"]), **value}}
            continue
        section, _, name = key.rpartition(".")
        setattr(config[section] if section else config, name, value)
    return config
"""


def make(folder: Path) -> dict[str, Any]:
    """{name: path} of everything that a run may need, as `filled` puts it in."""
    texts = folder / "texts"
    texts.mkdir()
    rng = random.Random(0)
    for i in range(12):
        words = rng.choices(("the", "cat", "sat", "on", "a", "mat", "then", "it", "ran"), k=150)
        (texts / f"{i}.txt").write_text(" ".join(words))
    records = [
        {"task": f"{'ab' * (i % 4)}a", "work": ["ab"], "result": "ba" if i % 2 else "b"}
        for i in range(40)
    ]
    # One that no row of the runs can hold.
    records[7]["task"] = "ba" * 200
    for name, part in (("records", records[:30]), ("validation", records[30:])):
        lines = "".join(json.dumps(record) + "\n" for record in part)
        (folder / f"{name}.jsonl").write_text(lines)
    weights = Path(shutil.copytree(GOLDEN / "llama", folder / "weights"))
    edit_json(weights / "config.json", eos_token_id=3, bos_token_id=..., pad_token_id=...)
    (weights / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    built = builder.build(
        make_task("arithmetic", max_digits=1), name="arithmetic", dials={"max_digits": 1},
        out_dir=folder / "built", sizes={"train": 40, "validation": 10, "test": 10}, seed=0,
    )  # fmt: skip
    letters = {c: i for i, c in enumerate("0123456789+=-\u010a\u0120")}
    model = {**TOKENIZER["model"], "vocab": {**letters, "<eos>": len(letters)}, "merges": []}
    eos = {**TOKENIZER["added_tokens"][0], "id": len(letters)}
    tokenizer = {**TOKENIZER, "model": model, "added_tokens": [eos]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return {
        "tmp": folder, "texts": texts, "weights": weights, "built": built,
        "records": folder / "records.jsonl", "validation": folder / "validation.jsonl",
        "tokenizer": folder / "tokenizer.json", "earlier": folder / "earlier",
    }  # fmt: skip


def filled(value: Any, places: dict[str, Any]) -> Any:
    return value.format(**places) if isinstance(value, str) and "{" in value else value


def config_file(places: dict[str, Any], name: str, base: dict[str, Any]) -> Path:
    """A config file that sets the keys of `base`."""
    path = places["tmp"] / f"{name}.py"
    values = {key: filled(value, places) for key, value in base.items()}
    path.write_text(_CONFIG.format(values=values))
    return path


def flag(key: str, value: Any, places: dict[str, Any]) -> str:
    """--config.KEY=VALUE, as it is typed."""
    return f"--config.{key}={filled(value, places)}"


def use_devices(patch: Any, count: int) -> None:
    """For commands there are only the first `count` of the eight devices."""
    devices = jax.devices()[:count]
    patch.setattr(jax, "devices", lambda: devices)
    patch.setattr(jax, "device_count", lambda: count)
