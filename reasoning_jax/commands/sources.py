"""Where a run's sources are now, and whether they hold what they held when the run began.

A source is a file or folder that a config names: data, a tokenizer, weights, another run. It is
known by its contents, of which `sources.json` in the run folder keeps fingerprints, and not by its
place. Files whose size, times and inode are those of the last time are not read again for that.

Reads and compares; what is in a source is the business of others. Starts no backend, but to compare
`start.run`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from reasoning_jax.commands import runfolder
from reasoning_jax.config import SOURCES, Config, ConfigError, to_dict
from reasoning_jax.config_fields import flat, show
from reasoning_jax.fingerprint import of_files
from reasoning_jax.preflight import WEIGHTS, check_file
from reasoning_jax.weights import PACKAGES, WeightsError, find_gguf

FILE = "sources.json"
DATA = ("data.path", "data.validation_path")
FEATURES, START, VOCAB, PRETRAINED = (
    "evaluate.feature_weights", "start.run", "vocab.path", "weights.path",
)  # fmt: skip
# What a run begins from. Once there is a checkpoint none of them is read again.
ORIGINS = (PRETRAINED, START, VOCAB)
# Of a folder of weights only such files are read.
_OF_WEIGHTS = (".json", ".jinja", ".safetensors")
# From this size on it is said that a source is read for its fingerprint: some seconds of work.
_LARGE = 1 << 30
# Fingerprints of files at several places or times, of which the newest are kept.
_MOST_STAMPS = 8


@dataclass(frozen=True)
class Use:
    """What a command does with sources: those that it reads, those that may hold other contents
    than the run's, and whether its config is the run's own, whose relative paths begin where the
    run was started.
    """

    reads: tuple[str, ...] = ()
    may_differ: tuple[str, ...] = (FEATURES,)
    of_run: bool = True


TRAIN = Use((*DATA, FEATURES), of_run=False)
REPLAY = Use(DATA)
EVALUATE = Use((*DATA, FEATURES), (*DATA, FEATURES))
SAMPLE = Use()


@dataclass(frozen=True)
class Record:
    """The identity of a source: where it was last and what it held. Of `start.run` the fingerprint
    is that of the parameters of one `step`. `known` are stamps of files that held the same, and
    `places` is how its place was called before.
    """

    path: str
    fingerprint: str
    known: tuple[str, ...] = ()
    step: int | None = None
    places: tuple[str, ...] = ()

    def at(self, place: str, value: str) -> Record:
        """The same source at `place`, which a config calls `value`."""
        called = (*self.places, self.path, os.path.abspath(value))
        others = dict.fromkeys(name for name in called if name != place)
        return dataclasses.replace(self, path=place, places=(*others,)[-_MOST_STAMPS:])


@dataclass(frozen=True)
class Settled:
    """A config whose paths lead to where the sources are, and what to tell of them.

    `differing`: the fingerprint of each source that may hold something else than the run's, and
    does. `records` are those of the sources that were compared.
    """

    config: Config
    notes: tuple[str, ...] = ()
    differing: Mapping[str, str] = field(default_factory=dict)
    records: Mapping[str, Record] = field(default_factory=dict)


def settle(config: Config, workdir: Path, use: Use) -> Settled:
    """Find the sources of a run and compare those that are read, or that are at another place.

    Of a folder without a run nothing is known: the config is returned as it is.

    Raises:
      ConfigError: a source that is needed is gone, or holds other contents than the run's.
    """
    if not runfolder.is_run(workdir):
        return Settled(config)
    saved, now = flat(runfolder.read_config(workdir)), flat(to_dict(config))
    known = read(workdir)
    begins = not runfolder.saved_steps(workdir)
    reads = {*use.reads, *(ORIGINS[:2] if begins else ())}
    notes: list[str] = []
    differing: dict[str, str] = {}
    records: dict[str, Record] = {}
    moved: dict[str, str] = {}
    for key in SOURCES:
        value, before = now[key], saved.get(key) or ""
        if not value or not before:
            if value != before and key in DATA:
                differing[key] = value and _identify(key, config, _require(key, value)).fingerprint
            elif value and key in reads:
                check_file(key, value)
            continue
        record, place = known.get(key), _place(key, value)
        names = (record.path, *record.places) if record is not None else ()
        its_own = value == before or os.path.abspath(value) in names
        if record is not None and its_own and place != record.path:
            here = _place(key, record.path)
            # It has moved since, or is a relative path and the run was started in another folder.
            if here is not None and (place is None or (use.of_run and value == before)):
                place = moved[key] = here
        if place is None:
            if key in reads:
                raise _missing(key, value, workdir, record, begins)
            if not its_own:
                check_file(key, value)
            continue
        if key == START:
            # Without a checkpoint nothing has been made of it, and it is read anew.
            if not begins and value != before and record is not None and place != record.path:
                _compare_start(value, workdir, record)
                records[key] = record.at(place, value)
                notes.append(_same(key, value, record))
            continue
        if key not in reads and value == before and (use.of_run or record is None):
            continue
        if record is None:
            old = _place(key, before)
            if old == place:
                continue
            if old is None and key not in use.may_differ:
                raise _no_record(key, value, before, workdir)
            record = Record(before, "") if old is None else _identify(key, config, old)
        found = _identify(key, config, place, record)
        if found.fingerprint == record.fingerprint:
            records[key] = found.at(place, value)
            if place != record.path and key not in moved:
                notes.append(_same(key, value, record))
        elif key in use.may_differ:
            differing[key] = found.fingerprint
            if key in DATA:
                notes.append(f"{key}={show(value)} holds other data than the run was begun with")
        elif key not in reads and value == before:
            notes.append(
                f"{key}={show(value)} has changed since the run began, which goes on from its "
                "checkpoint and does not read it"
            )
        else:
            raise _other(key, value, workdir, record)
    if records:
        with contextlib.suppress(OSError):  # a folder that cannot be written
            _remember(workdir, known, records)
    config = _with_places(config, moved)
    if use.of_run and config.start.run and START in known and known[START].step is not None:
        # The newest step of that run may be another one by now.
        pinned = dataclasses.replace(config.start, step=known[START].step)
        config = dataclasses.replace(config, start=pinned)
    return Settled(config, tuple(notes), differing, records)


def record(workdir: Path, config: Config, settled: Settled, start: Record | None = None) -> None:
    """Write down what the sources of a run hold that is about to train.

    Raises:
      ConfigError: a source or the folder cannot be read or written.
    """
    known = read(workdir) if runfolder.is_run(workdir) else {}
    begins = not runfolder.saved_steps(workdir)
    now = flat(to_dict(config))
    records: dict[str, Record] = {}
    for key in SOURCES:
        place = _place(key, now[key])
        if key in settled.records:
            records[key] = settled.records[key]
        elif key == START and start is not None:
            records[key] = start
        elif key in ORIGINS and not begins and key in known:
            records[key] = known[key]
        elif now[key] and place is not None and key != START and (begins or key not in ORIGINS):
            records[key] = _identify(key, config, place, known.get(key)).at(place, now[key])
    try:
        _write(workdir, records)
    except OSError as error:
        raise ConfigError(f"--workdir={workdir} cannot be written: {error.strerror}") from None


def read(workdir: Path) -> dict[str, Record]:
    """The records of a run; none where an older version made it. Raises ConfigError."""
    path = workdir / FILE
    if not path.exists():
        return {}
    values = runfolder.read_json(path)
    try:
        return {
            str(key): Record(
                str(entry["path"]), str(entry["fingerprint"]), tuple(map(str, entry["known"])),
                None if entry["step"] is None else int(entry["step"]),
                tuple(map(str, entry["places"])),
            )
            for key, entry in values.items()
        }  # fmt: skip
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ConfigError(
            f"{path} is damaged; move it away, and sources are taken as they are"
        ) from None


def files_of(key: str, source: str, place: Path) -> list[tuple[str, Path]]:
    """(name, path) of the files of a source that are read; `source` is data.source."""
    if not place.is_dir():
        return [("", place)]
    if key in WEIGHTS:
        found = [p for p in place.iterdir() if p.suffix in _OF_WEIGHTS and p.is_file()]
    elif source == "text":
        from reasoning_jax.data.text import text_files

        found = [Path(name) for name in text_files(str(place))]
    else:
        found = [p for p in place.rglob("*") if p.is_file()]
    named = [(p.relative_to(place).as_posix(), p) for p in found]
    return sorted((n, p) for n, p in named if not any(x.startswith(".") for x in n.split("/")))


def _identify(key: str, config: Config, place: str, record: Record | None = None) -> Record:
    """What a place holds now. Files that `record` knows are not read again.

    Raises:
      ConfigError: it cannot be read.
    """
    try:
        files = files_of(key, config.data.source, Path(place))
        stats = [(name, path.stat()) for name, path in files]
        stamp = _stamp(stats)
        if record is not None and stamp in record.known:
            return record
        size = sum(s.st_size for _, s in stats)
        if size >= _LARGE:
            print(f"reading {size / 2**30:,.1f} GiB of {key} to know it by", file=sys.stderr)
        print_ = of_files(files)
    except OSError as error:
        raise ConfigError(f"{key}={show(place)} cannot be read: {error.strerror}") from None
    if record is None or record.fingerprint != print_:
        return Record(place, print_, (stamp,))
    return dataclasses.replace(record, known=(*record.known, stamp)[-_MOST_STAMPS:])


def _stamp(stats: Sequence[tuple[str, os.stat_result]]) -> str:
    total = xxhash.xxh3_128()
    for name, s in stats:
        line = f"{name}\0{s.st_size}\0{s.st_mtime_ns}\0{s.st_ctime_ns}\0{s.st_ino}\n"
        total.update(line.encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def _place(key: str, value: str) -> str | None:
    """The real path of a source, links resolved; None where there is nothing."""
    if not value:
        return None
    if key in WEIGHTS and value in PACKAGES:
        try:
            return os.path.realpath(find_gguf(value))
        except WeightsError:
            return None
    try:
        return os.path.realpath(value) if os.path.exists(value) else None
    except ValueError:  # a NUL
        return None


def _require(key: str, value: str) -> str:
    check_file(key, value)
    place = _place(key, value)
    assert place is not None, "check_file has found it"
    return place


def _with_places(config: Config, places: Mapping[str, str]) -> Config:
    for key, place in places.items():
        section, name = key.split(".")
        values: Any = dataclasses.replace(getattr(config, section), **{name: place})
        config = dataclasses.replace(config, **{section: values})
    return config


def _compare_start(value: str, workdir: Path, record: Record) -> None:
    from reasoning_jax.commands.start import state_hash

    assert record.step is not None
    if state_hash(Path(value), record.step) != record.fingerprint:
        raise _other(START, value, workdir, record)


def _same(key: str, value: str, record: Record) -> str:
    return f"{key}={show(value)} holds what {record.path} held: the same source"


def _missing(
    key: str, value: str, workdir: Path, record: Record | None, begins: bool
) -> ConfigError:
    try:
        check_file(key, value)
        text = f"{key}={show(value)} cannot be found"
    except (ConfigError, WeightsError) as error:
        text = str(error)
    where = f" from {record.path}" if record is not None and record.path != value else " from there"
    why = f"The run in {workdir} was begun{where}"
    if key in ORIGINS and begins:
        why += ", and has no checkpoint yet, from which it could go on without it"
    return ConfigError(f"{text}\n{why}; if it has moved, give its new place: --config.{key}=PATH")


def _other(key: str, value: str, workdir: Path, record: Record) -> ConfigError:
    held = f"{key}={show(value)} holds other contents than {record.path} did"
    if record.path == _place(key, value):
        held = f"{key}={show(value)} no longer holds what it did"
    advice = "What this command needs of it is in the run folder: leave the key out"
    if key in DATA:
        advice = (
            "Other data make another run: use another --workdir (start.run begins it with what "
            "this one has learnt)"
        )
    return ConfigError(f"{held} when the run in {workdir} was begun.\n{advice}")


def _no_record(key: str, value: str, before: str, workdir: Path) -> ConfigError:
    return ConfigError(
        f"{key}={show(value)}: the run in {workdir} was begun with {before}, where there is "
        "nothing now, by a version that kept no fingerprints, so nothing says that this is the "
        "same.\n"
        f"If it is, link the old place to it: ln -s {value} {before}"
    )


def _remember(workdir: Path, known: Mapping[str, Record], new: Mapping[str, Record]) -> None:
    """Keep the stamps of files that were read, so that they are not read again."""
    stamped = {
        key: dataclasses.replace(known[key], known=entry.known)
        for key, entry in new.items()
        if key in known and entry.known != known[key].known
    }
    if stamped:
        _write(workdir, {**known, **stamped})


def _write(workdir: Path, records: Mapping[str, Record]) -> None:
    values = {key: dataclasses.asdict(entry) for key, entry in records.items()}
    runfolder.write_json(workdir / FILE, values)
