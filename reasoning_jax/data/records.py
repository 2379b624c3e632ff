"""One record of a user's file: from its bytes to question, steps and answer, or what is wrong.

Columns go by the names that are common for them (`QUESTIONS`, `ANSWERS`, `CHATS`), or by those that
`data.columns` gives. A number or truth value is read as the text that stands in the file: 42.0
stays "42.0". `null`, NaN and a missing key are the same. What a guess would change or leave out is
told by `Record.form`, which the source counts.

A conversation of several turns becomes one example: the last turn of the assistant is the answer,
all before it, joined by line ends, the question. No chat template is applied.

Nothing here knows files or splits.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from reasoning_jax.tasks.checks import show

MAX_RECORD_BYTES = 16 << 20
FIELDS = ("question", "steps", "answer")
# The first of these that a record has is taken.
QUESTIONS = ("question", "prompt", "instruction")
ANSWERS = ("answer", "completion", "response", "output")
CHATS = ("messages", "conversations")
# What is put behind an instruction, where it is not empty.
_BEHIND_INSTRUCTION = ("input", "context")
# What `data.columns` may name, and every column that is looked at without it.
NAMED = (*FIELDS, "messages")
READ = (*FIELDS, *QUESTIONS, *ANSWERS, *CHATS, *_BEHIND_INSTRUCTION)
# How GSM8K marks the answer behind its working.
GSM_MARK = "####"
_USER = {"user", "human", "system", "tool", "function", "developer", "context"}
_ASSISTANT = {"assistant", "gpt", "model", "bot", "chatgpt", "ai"}
_MISSPELT_WITHIN = 2
_EXAMPLE = '{"question": "...", "answer": "..."}, with "steps": ["...", ...] if there are any'
NAMES_HINT = "other names are given by --config.data.columns=\"('question=NAME','answer=NAME')\""


class Record(NamedTuple):
    """`form` says what was done to read it; "" for question, steps and answer as they are."""

    question: str
    steps: tuple[str, ...]
    answer: str
    form: str = ""


class Defect(ValueError):
    """What is wrong with one record, to be put after its place."""

    def __init__(self, got: str, wanted: str, field: str = "") -> None:
        super().__init__(f"{field and f', field {field}'}: got {got}, wanted {wanted}")


class _Number(str):
    """A number as it is written."""


class _Constant(str):
    """NaN or an infinity: no JSON, and harmless in a column that nobody reads."""


class _Object(dict[str, Any]):
    """A JSON object that knows which keys it had twice."""

    twice: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Reader:
    """Reads records whose columns are called `columns` (field -> column, "" for none).

    `marker` is data.answer_prefix: an answer whose last line begins with it, or with GSM8K's
    `####`, is parted there into steps and answer, if the record has no steps of its own.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    marker: str = ""

    def json(self, body: bytes) -> Record:
        """A JSON object. Raises Defect."""
        text = decode(body)
        try:
            record = _DECODER.decode(text)
        except (ValueError, RecursionError) as error:
            raise bad_json(error) from None
        if not isinstance(record, dict):
            hint = " (a list goes into a .json file)" if isinstance(record, list) else ""
            raise Defect(_kind(record), f"one JSON object{hint}")
        question, answer, form = self._pair(record)
        steps = self._steps(record)
        if not steps:
            steps, answer, parted = self._parted(answer)
            form = ", ".join(filter(None, (form, parted)))
        return Record(question, steps, answer, form)

    def icot(self, body: bytes) -> Record:
        """A line `question||step step #### answer`. Raises Defect."""
        text = decode(body)
        question, *rest = text.split("||")
        if len(rest) != 1:
            raise Defect(f"{len(rest)} '||' in the line", "one, at its end", "question")
        steps, *answer = rest[0].split("####")
        if len(answer) != 1:
            raise Defect(f"{len(answer)} '####' in the line", "one, before it", "answer")
        return Record(
            _text(question.strip(), "question"),
            tuple(steps.split()),
            _text(answer[0].strip(), "answer"),
        )

    def _pair(self, record: dict[str, Any]) -> tuple[str, str, str]:
        """(question, answer, form)."""
        names = self.columns
        q_name = names.get("question") or _first(record, QUESTIONS)
        a_name = names.get("answer") or _first(record, ANSWERS)
        chat = names.get("messages")
        if not chat and not (q_name and a_name):
            chat = _first(record, CHATS)
        if chat:
            return self._chat(_required(record, chat, "messages"), chat)
        for name, wanted in ((q_name, "question"), (a_name, "answer")):
            if not name:
                _refuse_misspelt(record, wanted)
                _required(record, wanted, wanted)
        assert q_name
        assert a_name
        question = _side(_required(record, q_name, "question"), q_name)
        answer = _side(_required(record, a_name, "answer"), a_name)
        form = ""
        if (q_name, a_name) != ("question", "answer"):
            form = f"{q_name} is the question, {a_name} the answer"
        if q_name == "instruction" and "question" not in names:
            behind = _first(record, _BEHIND_INSTRUCTION)
            more = _value(record, behind) if behind else ""
            if isinstance(more, str) and more.strip():
                question = f"{question}\n{_text(more, behind)}"
                form = f"{q_name} and {behind} are the question, {a_name} the answer"
        return question, answer, form

    def _chat(self, turns: Any, name: str) -> tuple[str, str, str]:
        read = _turns(turns, name)
        last = max((i for i, (role, _) in enumerate(read) if role == "assistant"), default=-1)
        if last < 1:
            roles = ", ".join(role for role, _ in read[:6])
            raise Defect(
                f"turns of {roles or 'nobody'}", "one of the user, then one of the assistant", name
            )
        question = "\n".join(text for _, text in read[:last])
        many = last > 1 or len(read) > 2
        form = f"{name} of several turns" if many else f"{name} of one turn"
        return _text(question, name), _text(read[last][1], name), form

    def _steps(self, record: dict[str, Any]) -> tuple[str, ...]:
        """The steps that are not blank; text is split at its line ends."""
        name = self.columns.get("steps", "steps")
        if not name:
            return ()
        if name not in record:
            if "steps" in self.columns:
                _required(record, name, "steps")
            _refuse_misspelt(record, "steps")
            return ()
        steps = _value(record, name)
        if _missing(steps):
            return ()
        if isinstance(steps, str) and not isinstance(steps, _Constant | _Number):
            steps = steps.splitlines()
        if not isinstance(steps, list):
            raise Defect(
                _got(steps), "a list of strings, or data.columns=('steps=',) for no steps", name
            )
        named = [(f"{name}[{i}]", step) for i, step in enumerate(steps)]
        # The published files of Coconut hold [""] where there are no steps.
        return tuple(_text(step, at) for at, step in named if not _blank(step))

    def _parted(self, answer: str) -> tuple[tuple[str, ...], str, str]:
        """(steps, answer, form): an answer behind its working, in one text."""
        head, _, last = answer.rstrip().rpartition("\n")
        marks = [GSM_MARK]
        if self.marker.strip() and not self.marker[-1].isalnum():
            marks.append(self.marker.rstrip())
        for mark in marks:
            final = last.strip().removeprefix(mark).strip()
            if last.strip().startswith(mark) and final:
                steps = tuple(line.strip() for line in head.splitlines() if line.strip())
                return steps, final, f"answer parted at {mark!r} into steps and answer"
        return (), answer, ""


def parse_columns(columns: Sequence[str]) -> dict[str, str]:
    """("question=prompt", "answer=text") as a mapping. Raises ValueError with the rule."""
    found: dict[str, str] = {}
    for entry in columns:
        name, equals, column = entry.partition("=")
        name = name.strip()
        if not equals or name not in NAMED:
            raise ValueError(
                f"got {show(entry)}, wanted FIELD=COLUMN with FIELD one of {', '.join(NAMED)}"
            )
        if name in found:
            raise ValueError(f"names {name} twice: {found[name]!r} and {column!r}")
        if not column and name != "steps":
            raise ValueError(f"got {show(entry)}, wanted a column's name behind the sign =")
        found[name] = column
    if "messages" in found and {"question", "answer"} & set(found):
        raise ValueError("names messages, which hold question and answer, and one of these besides")
    return found


def decode(body: bytes) -> str:
    """The text of a record. Raises Defect."""
    if not body:
        raise Defect("an empty line between records", "a record")
    if len(body) > MAX_RECORD_BYTES:
        raise Defect(f"more than {MAX_RECORD_BYTES:,} bytes", "at most that in a record")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Defect(f"invalid UTF-8 at byte {error.start + 1}", "UTF-8 text") from None
    if "\0" in text:
        raise Defect(f"a NUL at character {text.index(chr(0)) + 1}", "text")
    return text


def bad_json(error: Exception) -> Defect:
    """A decoder's error in our words."""
    if isinstance(error, json.JSONDecodeError):
        return Defect(f"bad JSON ({error.msg}, column {error.colno})", "one JSON object")
    return Defect("JSON that is nested too deeply", "one JSON object")


def advice(noun: str) -> str:
    """What a record in JSON must be."""
    return f"Each {noun} must be {_EXAMPLE}"


def _value(record: dict[str, Any], name: str) -> Any:
    """A field's value. Raises Defect for a key that stands there twice."""
    if name in getattr(record, "twice", ()):
        raise Defect("the same key twice", "it once", show(name))
    return record.get(name)


def _first(record: dict[str, Any], names: Sequence[str]) -> str:
    """The first name whose value is there; else one that is there as null; else ""."""
    there = [name for name in names if name in record]
    filled = [name for name in there if not _missing(record[name])]
    return (filled or there or [""])[0]


def _required(record: dict[str, Any], name: str, wanted: str) -> Any:
    if name not in record:
        called = wanted if name == wanted else f"{wanted} (column {show(name)})"
        keys = ", ".join(map(str, record))
        raise Defect(f"none (keys: {show(keys)})", "a non-empty string", called)
    return _value(record, name)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, _Constant) and value == "NaN")


def _blank(value: Any) -> bool:
    return _missing(value) or (isinstance(value, str) and not value.strip())


def _side(value: Any, name: str) -> str:
    """A question or an answer: text, or turns of one side of a conversation."""
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        return _text("\n".join(text for _, text in _turns(value, name)), name)
    return _text(value, name)


def _turns(turns: Any, name: str) -> list[tuple[str, str]]:
    """(role, text) of each turn, {role, content} or {from, value}; role "user" or "assistant"."""
    if not isinstance(turns, list):
        raise Defect(_got(turns), 'a list of {"role": ..., "content": ...}', name)
    read = []
    for i, turn in enumerate(turns):
        at = f"{name}[{i}]"
        if not isinstance(turn, dict):
            raise Defect(_got(turn), 'an object {"role": ..., "content": ...}', at)
        role = _value(turn, "role" if "role" in turn else "from")
        known = str(role).strip().casefold()
        if known not in _USER | _ASSISTANT:
            raise Defect(f"role {show(role)}", "user, assistant, system or tool", at)
        content = _value(turn, "content" if "content" in turn else "value")
        if isinstance(content, list):
            content = _parts(content, at)
        if _blank(content):
            # A system turn without words; an assistant that only calls a tool says nothing.
            continue
        read.append(("assistant" if known in _ASSISTANT else "user", _text(content, at)))
    return read


def _parts(parts: list[Any], at: str) -> str:
    texts = []
    for part in parts:
        if not isinstance(part, dict) or "text" not in part:
            raise Defect(f"a part that is no text, {show(part)}", "text alone", at)
        texts.append(_text(part["text"], at))
    return "\n".join(texts)


def _text(value: Any, name: str) -> str:
    """`value` if it is text that can be encoded and is not blank, or a number or truth value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str) or isinstance(value, _Constant) or not value.strip():
        raise Defect(_got(value), "a non-empty string", name)
    if "\0" in value:
        raise Defect("a string with a NUL", "text", name)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise Defect("a string with half a surrogate pair", "text", name) from None
    return str(value)


def _kind(value: Any) -> str:
    if isinstance(value, str):
        if isinstance(value, _Number | _Constant):
            return "a number" if isinstance(value, _Number) else "what is no JSON"
        return "a string" if value.strip() else "an empty string"
    kinds = {dict: "an object", list: "a list", bool: "a truth value"}
    return next((words for kind, words in kinds.items() if isinstance(value, kind)), "null")


def _got(value: Any) -> str:
    kind = _kind(value)
    if value is None:
        return kind
    bare = isinstance(value, _Number | _Constant) and len(value) < 40
    return f"{kind}, {str(value) if bare else show(value)}"


def _refuse_misspelt(record: dict[str, Any], wanted: str) -> None:
    """Raise Defect if a key looks like `wanted`, which is missing, misspelt.

    Steps need not be there: their look-alike is refused only if it holds what steps would be.
    """
    for key, value in record.items():
        if _misspelt(key, wanted) and (wanted != "steps" or _like_steps(value)):
            raise Defect(
                "an unknown key",
                f"{wanted!r}, or data.columns=('{wanted}={key if key.isidentifier() else 'KEY'}',)"
                + (" (or 'steps=' if it is something else)" if wanted == "steps" else ""),
                show(key),
            )


def _like_steps(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(v) is str for v in value)


@functools.lru_cache(maxsize=4096)
def _misspelt(key: str, field: str) -> bool:
    """Whether this key is within two edits of a field, and none that has a meaning of its own."""
    return key not in READ and _edit_distance(key.casefold(), field) <= _MISSPELT_WITHIN


def _edit_distance(a: str, b: str) -> int:
    """Insertions, deletions and substitutions between `a` and `b`; only near ones are counted."""
    if abs(len(a) - len(b)) > _MISSPELT_WITHIN:
        return _MISSPELT_WITHIN + 1
    row = list(range(len(b) + 1))
    for i, character in enumerate(a, 1):
        last, row = row, [i]
        for j, other in enumerate(b, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (character != other)))
    return row[-1]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = _Object(pairs)
    if len(record) < len(pairs):
        seen: set[str] = set()
        record.twice = frozenset(key for key, _ in pairs if key in seen or seen.add(key))
    return record


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_Number, parse_float=_Number, parse_constant=_Constant
)
