"""Token ids and text: character, byte, word, pair and Hugging Face vocabularies, with specials.

A `Vocab` is a codec (text <-> ordinary ids) and a table of special ids beside it. Text of users is
only ever encoded as ordinary tokens: a literal "<backspace>" in a question is the characters it is
made of, never the action. `<backspace>` is an action: it has an output row and is never an input.

Ids are never shifted and never padded silently: specials are appended behind the highest id that
the codec knows, and `Vocab.size` is exactly the highest id plus one (or the number of rows that a
pretrained table already has). Only pairs of words (`PairCodec`) have ids from `Vocab.size` on: they
are read and never written. This module knows no model.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from reasoning_jax.tokenizer_json import TokenizerError, guarded, parse_tokenizer_json
from reasoning_jax.words import PAIR, PairCodec, VocabError, WordCodec, word_codec

__all__ = [
    "BACKSPACE", "BASE_SPECIALS", "BOS", "BOT", "EOS", "EOT", "LATENT", "LATENT_SPECIALS", "PAD",
    "PAIR", "ByteCodec", "CharCodec", "Codec", "PairCodec", "TokenizerCodec", "Vocab", "VocabError",
    "WordCodec", "describe", "extend_pretrained", "make_vocab", "with_size", "word_codec",
]  # fmt: skip

PAD, BOS, EOS, BACKSPACE = "<pad>", "<bos>", "<eos>", "<backspace>"
BOT, EOT, LATENT = "<bot>", "<eot>", "<latent>"
BASE_SPECIALS = (PAD, BOS, EOS)
LATENT_SPECIALS = (BOT, EOT, LATENT)
# How many ids before an id decide which text it adds.
_PIECE_CONTEXT = 4
_T = TypeVar("_T")


class Codec(Protocol):
    """Ordinary tokens only: ids 0 .. size-1 (a codec may leave holes), no specials."""

    @property
    def size(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def text_ids(self) -> list[int]:
        """The ids that stand for text."""
        ...

    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class CharCodec:
    """One id a character; id = place in `characters`."""

    characters: str
    _ids: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.characters or len(set(self.characters)) != len(self.characters):
            raise VocabError("a character vocabulary needs distinct characters, at least one")
        object.__setattr__(self, "_ids", {c: i for i, c in enumerate(self.characters)})

    @property
    def size(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> list[int]:
        try:
            return [self._ids[c] for c in text]
        except KeyError as missing:
            raise VocabError(
                f"character {missing.args[0]!r} at {text.index(missing.args[0])} is not in the "
                f"vocabulary; it has {''.join(sorted(self.characters))!r}"
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.characters[i] for i in ids)

    def text_ids(self) -> list[int]:
        return list(range(self.size))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "char", "characters": self.characters}


@dataclass(frozen=True)
class ByteCodec:
    """UTF-8 bytes; id = byte. Every text can be encoded; broken sequences decode to U+FFFD."""

    @property
    def size(self) -> int:
        return 256

    def encode(self, text: str) -> list[int]:
        try:
            return list(text.encode())
        except UnicodeEncodeError as error:
            raise VocabError(
                f"character {text[error.start]!r} at {error.start} is a lone surrogate, which has "
                "no UTF-8 form"
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def text_ids(self) -> list[int]:
        return list(range(256))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "byte"}


@dataclass(frozen=True)
class TokenizerCodec:
    """A Hugging Face `tokenizer.json`, through the `tokenizers` library.

    Its special tokens are known by name (`special_ids`) and never come out of `encode`.
    """

    tokenizer_json: str
    _tokenizer: Any = field(init=False, repr=False, compare=False)
    _ids: frozenset[int] = field(init=False, repr=False, compare=False)
    _size: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            tokenizer = parse_tokenizer_json(self.tokenizer_json)
        except (TokenizerError, UnicodeEncodeError, TypeError) as error:
            raise VocabError(f"not a Hugging Face tokenizer.json: {error}") from None
        tokenizer.encode_special_tokens = True
        ids = frozenset(tokenizer.get_vocab(with_added_tokens=True).values())
        if not ids:
            raise VocabError("the tokenizer.json has no tokens")
        object.__setattr__(self, "_tokenizer", tokenizer)
        object.__setattr__(self, "_ids", ids)
        object.__setattr__(self, "_size", max(ids) + 1)

    def __reduce__(self) -> Any:
        # A tokenizer forgets `encode_special_tokens` when it is copied: build it anew.
        return TokenizerCodec, (self.tokenizer_json,)

    @property
    def size(self) -> int:
        return self._size

    def tokens(self) -> dict[int, str]:
        """Every id's token as tokenizer.json writes it, special ones too."""
        return {i: t for t, i in self._tokenizer.get_vocab(with_added_tokens=True).items()}

    def special_ids(self) -> dict[str, int]:
        """The tokenizer's own special tokens by their literal."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: i for i, token in added.items() if token.special}

    def encode(self, text: str) -> list[int]:
        try:
            return guarded(self._tokenizer.encode, text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError):
            raise VocabError("the text has a lone surrogate, which has no UTF-8 form") from None
        except TokenizerError as error:
            raise VocabError(f"the tokenizer cannot encode {text[:40]!r}: {error}") from None

    def decode(self, ids: Sequence[int]) -> str:
        try:
            return guarded(self._tokenizer.decode, list(ids), skip_special_tokens=False)
        except TokenizerError as error:
            raise VocabError(f"the tokenizer cannot decode {len(ids)} ids: {error}") from None

    def text_ids(self) -> list[int]:
        return sorted(self._ids - set(self.special_ids().values()))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "tokenizer", "tokenizer_json": self.tokenizer_json}


@dataclass(frozen=True)
class Vocab:
    """A codec with specials. Build one with `make_vocab` or `extend_pretrained`.

    `size` is the number of rows that embedding and unembedding must have. Above 0, `pairs` is the
    number m of words whose pairs have the ids size to size + m * m - 1, input only. `bos_id` and
    `backspace_id` may be None: then there is no such token, and `<backspace>` may not be used.
    """

    codec: Codec
    specials: Mapping[str, int]
    size: int

    def __post_init__(self) -> None:
        ids = list(self.specials.values())
        if PAD not in self.specials or EOS not in self.specials:
            raise VocabError(f"a vocabulary needs {PAD} and {EOS}; got {dict(self.specials)}")
        # GPT-2's <|endoftext|> is both the start and the end of a text.
        both = self.specials.get(BOS) == self.specials[EOS]
        if len(set(ids)) != len(ids) - both:
            raise VocabError(f"two specials share an id: {dict(self.specials)}")
        if min(ids) < 0 or max(ids) >= self.size:
            wrong = min(ids) if min(ids) < 0 else max(ids)
            raise VocabError(f"special id {wrong} is outside the {self.size} rows")
        if self.codec.size > self.size:
            raise VocabError(f"{self.size} rows do not hold the {self.codec.size} ids of text")

    @property
    def pairs(self) -> int:
        return self.codec.size if isinstance(self.codec, PairCodec) else 0

    @property
    def pad_id(self) -> int:
        return self.specials[PAD]

    @property
    def eos_id(self) -> int:
        return self.specials[EOS]

    @property
    def bos_id(self) -> int | None:
        return self.specials.get(BOS)

    @property
    def backspace_id(self) -> int | None:
        return self.specials.get(BACKSPACE)

    def encode(self, text: str) -> list[int]:
        """Ordinary ids of any text, and those of pairs; never a special. Raises VocabError."""
        ids = self.codec.encode(text)
        written = ids
        if self.pairs:
            written = [i for i in ids if i < self.pairs]
            ids = [i if i < self.pairs else i - self.pairs + self.size for i in ids]
        if not self._text.issuperset(written):
            # An unknown character, or a tokenizer that does not mark its <eos> as special.
            odd = {
                self._names.get(i) or self.codec.decode([i]) for i in written if i not in self._text
            }
            raise VocabError(
                f"the tokenizer has no text for part of {text[:40]!r}, it gives "
                f"{', '.join(sorted(odd))}"
            )
        return ids

    def encode_output(self, text: str) -> list[int]:
        """Ids of text that is to be learned or written. Raises VocabError, also for a pair."""
        ids = self.encode(text)
        if self.pairs and max(ids, default=0) >= self.size:
            pair = self.decode([max(ids)])
            raise VocabError(
                f"the pair {pair!r} can be read and not written, so it may stand in a question and "
                "not in steps or answer; write its two words apart there"
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; specials show as their literals, unknown rows as `<row N>`."""
        out: list[str] = []
        run: list[int] = []

        def flush() -> None:
            if run:
                out.append(self.codec.decode(run))
                run.clear()

        for i in map(int, ids):
            if i in self._text:
                run.append(i)
            elif 0 <= i - self.size < self.pairs**2:
                run.append(i - self.size + self.pairs)
            else:
                flush()
                out.append(self._names.get(i, f"<row {i}>"))
        flush()
        return "".join(out)

    @functools.cached_property
    def _names(self) -> dict[int, str]:
        return {i: name for name, i in self.specials.items()} | {self.eos_id: EOS}

    @functools.cached_property
    def _text(self) -> frozenset[int]:
        return frozenset(self.codec.text_ids()) - self._names.keys()

    def piece(self, before: Sequence[int], i: int) -> str:
        """The text that id `i` adds behind the ids `before`; pieces of a text join to it.

        They do not where an id is a part of a character (bytes): that piece shows as U+FFFD.
        """
        context = list(before[-_PIECE_CONTEXT:])
        text, longer = self.decode(context), self.decode([*context, i])
        return longer[len(text) :] if longer.startswith(text) else self.decode([i])

    def text_ids(self) -> list[int]:
        """Ids that stand for text: what *random* noise draws from."""
        return sorted(self._text)

    def unsampled_ids(self) -> list[int]:
        """Ids that decoding must never produce: pad, bos, latent markers, and rows without text."""
        legal = {*self._text, self.eos_id}
        if self.backspace_id is not None:
            legal.add(self.backspace_id)
        return [i for i in range(self.size) if i not in legal]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` restores it."""
        return {"codec": self.codec.to_dict(), "specials": dict(self.specials), "size": self.size}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Vocab:
        """The inverse of `to_dict`. Raises VocabError on anything else."""
        kinds: dict[str, Callable[[Mapping[str, Any]], Codec]] = {
            "char": lambda codec: CharCodec(_of(str, codec["characters"])),
            "byte": lambda codec: ByteCodec(),
            "word": lambda codec: WordCodec(
                tuple(_of(str, w) for w in codec["words"]), _of(str, codec.get("signs", ""))
            ),
            "pair": lambda codec: PairCodec(tuple(_of(str, w) for w in codec["words"])),
            "tokenizer": lambda codec: TokenizerCodec(_of(str, codec["tokenizer_json"])),
        }
        try:
            kind = values["codec"]["kind"]
            if kind not in kinds:
                raise VocabError(f"unknown vocabulary kind {kind!r}; known: {', '.join(kinds)}")
            specials = {str(name): _of(int, i) for name, i in values["specials"].items()}
            return Vocab(kinds[kind](values["codec"]), specials, _of(int, values["size"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise VocabError(f"not the description of a vocabulary: {error!r}") from None


def make_vocab(codec: Codec, *, backspace: bool = True, latent: bool = False) -> Vocab:
    """A vocabulary of our own: the codec's ids first, then <pad> <bos> <eos> and the options."""
    names = [*BASE_SPECIALS]
    names += [BACKSPACE] if backspace else []
    names += LATENT_SPECIALS if latent else ()
    specials = {name: codec.size + i for i, name in enumerate(names)}
    return Vocab(codec, specials, codec.size + len(names))


def extend_pretrained(
    codec: TokenizerCodec,
    *,
    rows: int,
    eos_id: int,
    bos_id: int | None = None,
    pad_id: int | None = None,
    backspace: bool = True,
    latent: bool = False,
) -> tuple[Vocab, str]:
    """A pretrained vocabulary with our specials behind its last id; returns it and what was done.

    Existing ids keep their meaning; `bos_id` is the id before every prompt, if any. A table with
    more rows than the tokenizer has ids (padding of the original authors) lends its free rows
    first; `Vocab.size` says how many rows are needed. Special tokens of the tokenizer that are
    called <backspace>, <bot>, <eot> or <latent> are these actions and markers: an exported model
    has them.

    Raises:
      VocabError: the table has fewer rows than the tokenizer has ids, or a special's id is not one
        of the tokenizer's.
    """
    if codec.size > rows:
        raise VocabError(
            f"the tokenizer has ids up to {codec.size - 1} but the model has {rows} embedding "
            "rows; the two do not belong together"
        )
    for name, i in ((EOS, eos_id), (BOS, bos_id), (PAD, pad_id)):
        if i is not None and not 0 <= i < codec.size:
            raise VocabError(f"{name} id {i} is outside the tokenizer's {codec.size} ids")
    specials = {EOS: eos_id}
    if bos_id is not None:
        specials[BOS] = bos_id
    if pad_id is not None and pad_id not in specials.values():
        specials[PAD] = pad_id
    chosen = [*([BACKSPACE] if backspace else []), *(LATENT_SPECIALS if latent else ())]
    own = codec.special_ids()
    specials |= {n: own[n] for n in chosen if n in own and own[n] not in specials.values()}
    return with_specials(codec, specials, [PAD, *chosen], codec.size, rows)


def with_specials(
    codec: Codec, specials: Mapping[str, int], wanted: Iterable[str], first: int, rows: int
) -> tuple[Vocab, str]:
    """`specials` and, from id `first` on, those of `wanted` that are not among them, in a table of
    at least `rows` rows; says what was done.
    """
    missing = [name for name in wanted if name not in specials]
    added = {name: first + i for i, name in enumerate(missing)}
    needed = first + len(missing)
    vocab = Vocab(codec, {**specials, **added}, max(rows, needed))
    what = ", ".join(f"{name}={i}" for name, i in added.items()) or "no special"
    return vocab, (
        f"added {what}; tokenizer ids {first}, embedding rows {rows} -> {vocab.size} "
        f"({vocab.size - needed} unused)"
    )


def describe(vocab: Vocab) -> str:
    """One line: kind, size and specials."""
    names = ", ".join(f"{n}={i}" for n, i in sorted(vocab.specials.items(), key=lambda x: x[1]))
    pairs = f" and {vocab.pairs} x {vocab.pairs} pairs" if vocab.pairs else ""
    return f"{vocab.codec.to_dict()['kind']} vocabulary, {vocab.size} rows{pairs}; {names}"


def with_size(vocab: Vocab, size: int) -> Vocab:
    """The same ids over a table of `size` rows. Raises VocabError if some id has no row.

    Those of pairs, which follow the last row, move with it.
    """
    if size < max(vocab.codec.size, *(i + 1 for i in vocab.specials.values())):
        raise VocabError(f"{size} rows do not hold {describe(vocab)}")
    return dataclasses.replace(vocab, size=size)


def _of(kind: type[_T], value: Any) -> _T:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not {kind.__name__}")
    return value
