"""The small files beside pretrained weights that a fine-tuned model should be given out with.

They are the author's settings: the tokenizer's, the chat template, how to generate. A run keeps
them from its start on, since its source may go away. Text of strangers: of bounded size, JSON
objects where that is meant, and never run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reasoning_jax.tokenizer_json import TokenizerError, guarded, parse_tokenizer_json
from reasoning_jax.weights.files import MAX_BYTES, WeightsError, inside, read_json, read_text

# File -> how large it may be (a key of MAX_BYTES).
_JSON = {
    "config.json": "config",
    "tokenizer_config.json": "tokenizer_config",
    "special_tokens_map.json": "tokenizer_config",
    "generation_config.json": "config",
}
_TEMPLATE = "chat_template.jinja"
NAMES = (*_JSON, _TEMPLATE)


@dataclass(frozen=True)
class Companions:
    """Parsed files of a source; empty where a file is not there. `notes`: which are not usable."""

    config: Mapping[str, Any] = field(default_factory=dict)
    tokenizer_config: Mapping[str, Any] = field(default_factory=dict)
    special_tokens_map: Mapping[str, Any] = field(default_factory=dict)
    generation_config: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def has_template(self) -> bool:
        return self.chat_template is not None or "chat_template" in self.tokenizer_config

    def texts(self) -> dict[str, str]:
        """Name -> text of the files that are there, to be written as `read_companions` reads."""
        files = {
            name: json.dumps(dict(values), indent=1) + "\n"
            for name in _JSON
            if (values := getattr(self, name.removesuffix(".json")))
        }
        if self.chat_template is not None:
            files[_TEMPLATE] = self.chat_template
        return files


def read_companions(folder: Path) -> Companions:
    """What is there of these files. One that is broken is left out and told in `notes`."""
    found: dict[str, Any] = {}
    notes = []
    for name in NAMES:
        try:
            path = inside(folder, name)
        except WeightsError:
            # Not there, or a link that leads out of the folder.
            if (folder / name).is_symlink():
                notes.append(f"{folder / name} leads out of its folder and is left out")
            continue
        try:
            if name == _TEMPLATE:
                found["chat_template"] = read_text(path, MAX_BYTES["tokenizer_config"])
            else:
                values = read_json(path, MAX_BYTES[_JSON[name]])
                # What Python reads and UTF-8 cannot hold: half a character.
                json.dumps(values, ensure_ascii=False).encode()
                found[name.removesuffix(".json")] = values
        except WeightsError as error:
            notes.append(f"{error}; it is left out")
        except UnicodeEncodeError:
            notes.append(f"{folder / name}: text without a UTF-8 form; it is left out")
    return Companions(**found, notes=tuple(notes))


def companions_of_tokens(
    tokenizer_json: str | None, ids: Mapping[str, int | None], chat_template: str | None
) -> Companions:
    """Those of a source that names its special ids and template itself, such as a GGUF file."""
    named: dict[str, Any] = {}
    if tokenizer_json is not None:
        try:
            tokenizer = parse_tokenizer_json(tokenizer_json)
            for kind, i in ids.items():
                token = None if i is None else guarded(tokenizer.id_to_token, i)
                if token is not None:
                    named[f"{kind}_token"] = token
        except (TokenizerError, UnicodeEncodeError, TypeError):
            named = {}
    listed = {f"{kind}_token_id": i for kind, i in ids.items() if i is not None}
    return Companions(config=listed, tokenizer_config=named, chat_template=chat_template)
