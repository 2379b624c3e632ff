"""Whether a record's own answer would be judged right, also as the vocabulary writes it.

A vocabulary of words writes single blanks, and some tokenizers change case or accents: an answer
that loses something there could never be given. This module reads no files.
"""

from __future__ import annotations

from typing import Any

from reasoning_jax.config import ConfigError
from reasoning_jax.data.batch import Encoder
from reasoning_jax.data.examples import Example


def check_reference(encoder: Encoder, judge: Any, example: Example) -> None:
    """Refuse a record whose reference response `judge` does not take.

    Raises:
      ConfigError: it is not judged right, as text or as the vocabulary writes it.
      VocabError: it cannot be encoded.
    """
    _, response = encoder.render(example)
    if not judge(response):
        raise ConfigError(
            f"the reference response {response[:60]!r} of {example.question[:60]!r} is not judged "
            f"right with data.answer_prefix={encoder.data.answer_prefix!r};\n"
            "set data.answer_prefix to what separates steps from the answer (such as '### '), "
            "or data.with_steps=False"
        )
    written = encoder.vocab.decode(encoder.vocab.encode_output(response))
    if written != response and not judge(written):
        raise ConfigError(
            f"the vocabulary writes the reference response {_shown(response)} as "
            f"{_shown(written)}, which is not judged right, so that no model could answer it;\n"
            'write single blanks in the file, or use vocab.kind="char" or "byte"'
        )


def _shown(text: str) -> str:
    """The beginning of a text with its blanks to be seen: a message may join several to one."""
    return repr(text[:60]).replace(" ", "\u2423")
