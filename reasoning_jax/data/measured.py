"""Every record of a source measured before training: does it fit, can it be encoded, is its own
answer judged right.

What was found is kept beside the data, under a hash of the content and of everything that decides
it, so that a restart does not measure again. Something else found there, or damaged, is no finding.
How a row is made and an answer judged is the caller's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from reasoning_jax.data.examples import Example
from reasoning_jax.data.jsonl import SHOWN_FAULTS

# Of the code that measures: what an older one found is not looked at.
_FORMAT = 1
_KEPT = 8
# The cost is estimated on so many records, and told where it is above so many seconds.
_SAMPLE = 200
_TOLD_FROM_S = 2.0
# What is found sooner is not worth a file beside the user's.
_KEPT_FROM_S = 0.5
_REASON_CHARS = 240


class RowFault(ValueError):
    """What is wrong with a record that was read: `reason` in a line, and `advice`; `needs` is how
    many positions it would take, where that is known.
    """

    needs = 0

    def __init__(self, reason: str, advice: str = "") -> None:
        reason = reason.replace("\n", " ")
        cut = "" if len(reason) <= _REASON_CHARS else "..."
        self.reason, self.advice = reason[:_REASON_CHARS] + cut, advice
        super().__init__(self.reason)


@dataclass(frozen=True)
class Row:
    """`positions` that a row needs, `answer` actions of its reference answer (<eos> too), and
    whether noise is expected to make it longer than rows are.
    """

    positions: int
    answer: int
    cut: bool = False


@dataclass
class Measured:
    """`bad` are places in the source; `faults` says of the first ones what is wrong, `advice` what
    to do. `needs`: positions of the longest row, the bad ones too. `answers[group]` counts good
    records by the length of their answers; `cut` those that noise is expected to cut.
    """

    records: int
    bad: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    advice: str = ""
    needs: int = 0
    cut: int = 0
    answers: dict[str, dict[int, int]] = field(default_factory=dict)

    def counts(self, group: str | None = None) -> Counter[int]:
        """Good records by the length of their answers, of one group or of all."""
        total: Counter[int] = Counter()
        for name, counts in self.answers.items():
            if group in (None, name):
                total.update(counts)
        return total


def measure(
    source: Any,
    count: int,
    row: Callable[[int, Example], Row],
    *,
    name: str,
    place: Callable[[int], str],
    group: Callable[[int], str] = lambda _: "",
    told: bool = True,
) -> Measured:
    """Measure the first `count` records. `row` raises RowFault for a bad one.

    Raises:
      DataError: the source cannot be read.
    """
    found = Measured(count)
    begin = time.monotonic()
    for i in range(count):
        if told and i == _SAMPLE:
            rate = _SAMPLE / max(time.monotonic() - begin, 1e-9)
            if (count - i) / rate > _TOLD_FROM_S:
                print(
                    f"measuring {count:,} records of {name}: about {(count - i) / rate:.0f} s "
                    f"({rate:,.0f} a second, an estimate); a restart does not measure again",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
        try:
            measured = row(i, source[i])
        except RowFault as fault:
            found.bad.append(i)
            found.needs = max(found.needs, fault.needs)
            if len(found.faults) < SHOWN_FAULTS:
                found.faults.append(f"  {place(i)}: {fault.reason}")
                found.advice = found.advice or fault.advice
            continue
        found.needs = max(found.needs, measured.positions)
        found.cut += measured.cut
        counts = found.answers.setdefault(group(i), {})
        counts[measured.answer] = counts.get(measured.answer, 0) + 1
    return found


def key_of(decides: Mapping[str, Any]) -> str:
    """The hash under which a finding is kept."""
    text = json.dumps({"format": _FORMAT, **decides}, sort_keys=True, default=str)
    return xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogatepass"))


def read(path: str, key: str, records: int) -> Measured | None:
    """What was found of the data at `path` under this key; None where there is nothing usable."""
    for file in _files(path):
        entry = _entries(file).get(key)
        if isinstance(entry, dict) and entry.get("check") == _check(entry.get("found")):
            found = _measured(entry["found"], records)
            if found is not None:
                return found
    return None


def keep(path: str, key: str, found: Measured, seconds: float) -> None:
    """Keep a finding that took so long beside the data, else in the user's cache folder; where
    neither can be written it is not kept.
    """
    if seconds < _KEPT_FROM_S:
        return
    body = asdict(found)
    for file in _files(path):
        entries = {k: v for k, v in _entries(file).items() if k != key}
        entries = dict(list(entries.items())[-(_KEPT - 1) :])
        entries[key] = {"check": _check(body), "found": body}
        temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(entries) + "\n", encoding="utf-8")
            os.replace(temporary, file)
            return
        except (OSError, ValueError):
            _remove(temporary)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except (OSError, ValueError):
        return


def _files(path: str) -> list[Path]:
    """Where findings of the data at `path` may be, the preferred place first."""
    whole = Path(os.path.realpath(path))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    name = xxhash.xxh3_64_hexdigest(os.fsencode(whole))
    # Hidden: text folders are searched for what is not.
    beside = whole.parent / f".{whole.name}.measured.json"
    return [beside, cache / "reasoning_jax" / f"measured-{name}.json"]


def _entries(file: Path) -> dict[str, Any]:
    try:
        if not file.is_file():
            return {}
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return entries if isinstance(entries, dict) else {}


def _check(body: Any) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(body, sort_keys=True).encode())


def _measured(body: Any, records: int) -> Measured | None:
    """A finding of as many records, or None."""
    try:
        answers = {
            str(group): {int(n): int(count) for n, count in counts.items()}
            for group, counts in body["answers"].items()
        }
        found = Measured(**{**body, "answers": answers})
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    places = all(type(i) is int and 0 <= i < records for i in found.bad)
    return found if found.records == records and places else None
