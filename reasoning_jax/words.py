"""Vocabularies of words: one id a word, its sentence signs apart; and pairs of words as one input.

Text is words between blanks and line ends. It knows no specials, no model and no other vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# What joins the two words of a pair.
PAIR = ">"
# What may stand at the end of a word without being a part of it.
SIGNS = ".?!,;:"


class VocabError(ValueError):
    """Text that a vocabulary cannot encode, or a vocabulary that cannot be built."""


@dataclass(frozen=True)
class WordCodec:
    """One id a word, and one for each of `signs` at a word's end; a line end is a word of its own.

    With signs ".?", `hilpus`, `hilpus.` and `hilpus?` share the id of the word, and the signs
    follow it. A sign between blanks is a word like others. Without signs (as in vocabularies of
    earlier versions) these are three words.

    Decoding joins words by one space, puts signs right behind the word before, and no space around
    a line end: text that is written that way comes back exactly.
    """

    words: tuple[str, ...]
    signs: str = ""
    _ids: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.words or len(set(self.words)) != len(self.words):
            raise VocabError("a word vocabulary needs distinct words, at least one")
        if len(set(self.signs)) != len(self.signs) or any(sign.isspace() for sign in self.signs):
            raise VocabError(
                f"signs={self.signs!r}: wanted distinct characters, none of them blank"
            )
        for word in self.words:
            if word != "\n" and (not word or word.split() != [word]):
                raise VocabError(f"{word!r} is not a word: it has whitespace or is empty")
            if word.rstrip(self.signs) not in ("", word):
                raise VocabError(f"the word {word!r} ends in a sign, which is a token of its own")
        object.__setattr__(self, "_ids", {w: i for i, w in enumerate(self.words)})

    @property
    def size(self) -> int:
        return len(self.words) + len(self.signs)

    def encode(self, text: str) -> list[int]:
        out: list[int] = []
        for piece in pieces(text):
            word, signs = parted(piece, self.signs)
            if word not in self._ids:
                raise VocabError(
                    f"word {word!r} is not among the {len(self.words)} words of the vocabulary"
                    f"{self._hint(word)}"
                )
            out.append(self._ids[word])
            out += [len(self.words) + self.signs.index(sign) for sign in signs]
        return out

    def decode(self, ids: Sequence[int]) -> str:
        m, parts = len(self.words), []
        for i in ids:
            if i >= m and parts:
                parts[-1] += self.signs[i - m]
            else:
                parts.append(self.words[i] if i < m else self.signs[i - m])
        return _joined(parts)

    def text_ids(self) -> list[int]:
        return list(range(self.size))

    def to_dict(self) -> dict[str, Any]:
        signs = {"signs": self.signs} if self.signs else {}
        return {"kind": "word", "words": list(self.words), **signs}

    def _hint(self, word: str) -> str:
        first, joint, second = word.partition(PAIR)
        if joint and first in self._ids and second in self._ids:
            return ', but its two halves are; vocab.kind="pair" encodes it'
        return ""


@dataclass(frozen=True)
class PairCodec:
    """Words as in `WordCodec`, and every pair `a>b` of two of them as one composite id.

    For m words, pair (i, j) is `rows + i * m + j`, where `rows` is what lies in front of the pairs:
    m here, `Vocab.size` in a vocabulary, whose specials stand between the words and the pairs. No
    table has m * m rows: a model that reads a pair adds row i of its tokens' table and row j of a
    second one (`ModelConfig.pair_rows`). So pairs are input only. They are in no `size`, are no
    text ids, and can neither be predicted nor sampled.
    """

    words: tuple[str, ...]
    _single: WordCodec = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_single", WordCodec(self.words))
        for word in self.words:
            if PAIR in word:
                raise VocabError(
                    f"the word {word!r} of a pair vocabulary has a {PAIR!r}, which joins two words "
                    "to a pair; leave it out"
                )

    @property
    def size(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        ids, m = self._single._ids, self.size
        out: list[int] = []
        for piece in pieces(text):
            first, _, second = piece.partition(PAIR)
            if first in ids and second in ids:
                out.append(m + ids[first] * m + ids[second])
            else:
                # One word, or an error that names it.
                out += self._single.encode(piece)
        return out

    def decode(self, ids: Sequence[int]) -> str:
        return _joined(self._word(i) for i in ids)

    def _word(self, i: int) -> str:
        m = self.size
        if i < m:
            return self.words[i]
        first, second = divmod(i - m, m)
        return f"{self.words[first]}{PAIR}{self.words[second]}"

    def text_ids(self) -> list[int]:
        return list(range(self.size))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "pair", "words": list(self.words)}


def word_codec(words: Iterable[str]) -> WordCodec:
    """The codec of these words as text has them, with those of SIGNS that stand at their ends."""
    words = set(words)
    behind = {sign for word in words for sign in parted(word, SIGNS)[1]}
    signs = "".join(sign for sign in SIGNS if sign in behind)
    return WordCodec(tuple(sorted({parted(word, signs)[0] for word in words})), signs)


def parted(piece: str, signs: str) -> tuple[str, str]:
    """A piece of text between blanks as (word, the signs at its end). Signs alone are a word."""
    word = piece.rstrip(signs) if signs else piece
    return (word, piece[len(word) :]) if word else (piece, "")


def pieces(text: str) -> list[str]:
    """What stands between the blanks of a text; a line end is a piece."""
    return [w for line in text.split("\n") for w in (*line.split(), "\n")][:-1]


def _joined(words: Iterable[str]) -> str:
    """The inverse of `pieces` for text with single spaces and none around line ends."""
    return " ".join(words).replace(" \n", "\n").replace("\n ", "\n")
