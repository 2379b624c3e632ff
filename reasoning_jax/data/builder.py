"""Tasks as TFDS data sets on disk (array_record, no TensorFlow), and such data sets as a source.

`build` writes OUT_DIR/NAME/VERSION: the shards of each split in the order of the seeds, what TFDS
knows about them, and `task.json` with task, dials, first seed, sizes, the number of distinct
questions, and the size or hash of each file. The folder gets its name in one rename when all that
is there, so that a folder with that name is complete. Other TFDS programs can read it.

It is a `ShardBasedBuilder` rather than a `GeneratorBasedBuilder`: the latter's shuffler needs
TensorFlow for a split above 1 GB, and an order that is that of the seeds needs no shuffler.

Nothing here shuffles, tokenizes, or mends a damaged file. TFDS takes seconds to import and is
imported inside functions.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import re
import shutil
import weakref
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reasoning_jax import paths
from reasoning_jax.data.examples import DataError, Example, example_of, record_index
from reasoning_jax.durable import open_locked
from reasoning_jax.tasks.base import SPLITS, Problem, Task
from reasoning_jax.tasks.checks import did_you_mean, show

TASK_FILE = "task.json"
VERSION = "1.0.0"
SHARD_RECORDS = 65_536
_FORMAT = 1
_PROGRESS_EVERY = 1000
# What two data sets must share to be the same one; `sample` is a hash of their first problems.
_SETTINGS = ("format", "task", "dials", "seed", "sizes", "sample")
_SAMPLE_PROBLEMS = 8
# (split, records written, records in all)
Progress = Callable[[str, int, int], None]


def build(
    task: Task,
    *,
    name: str,
    dials: Mapping[str, Any],
    out_dir: str | os.PathLike[str],
    sizes: Mapping[str, int],
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Write the problems of the seeds `seed` to `seed + size - 1` of each split; gives the folder.

    Different seeds may give the same problem; they are kept, and the number of distinct questions
    is recorded. A data set that is already there is used as it is if its settings are these. A
    second process that builds the same waits for the first.

    Raises:
      DataError: a name, size or dial that cannot be stored; a different data set is already there;
        a question appears in two splits.
      TaskError: what the task refuses.
    """
    _check_arguments(name, sizes, seed)
    root = Path(out_dir)
    folder = root / name / VERSION
    sizes = {split: sizes[split] for split in SPLITS if split in sizes}
    settings = {
        "format": _FORMAT,
        "task": name,
        "dials": _as_json(dict(dials), f"{name}: dials"),
        "seed": seed,
        "sizes": sizes,
        "sample": _sample(task, sizes, seed),
    }
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / f".{name}.lock", made):
        if folder.exists():
            _check_same(folder, settings)
            return folder
        # Under the lock, a partial folder is what a killed build left.
        partial = root / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            with paths.plain(root) as place:
                written = _write(task, settings, place / partial.name, progress)
                folder.parent.mkdir(exist_ok=True)
                os.rename(written, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


class TfdsSource:
    """The examples of one split of a data set that `build` wrote, in the order of the seeds.

    The sizes of the shards are checked when it is opened, their contents when they are read.

    Raises:
      DataError: not such a data set, unknown split, a missing, short or damaged file.
    """

    def __init__(self, path: str | os.PathLike[str], split: str) -> None:
        self.path = os.fspath(path)
        self.split = split
        folder = Path(path)
        about = _read_about(folder)
        if split not in about["sizes"]:
            known = tuple(about["sizes"])
            raise DataError(
                f"{path}: no split {show(split)}.{did_you_mean(split, known)} "
                f"Its splits: {', '.join(known)}"
            )
        _check_files(folder, about)
        self.task_name: str = about["task"]
        self.dials: dict[str, Any] = {k: _as_tuple(v) for k, v in about["dials"].items()}
        self.distinct_questions: int = about["distinct_questions"][split]
        self.first_seed: int = about["seed"]
        self._size: int = about["sizes"][split]
        self._sample: str = about["sample"]
        self._shards: list[str] = about["shards_of"][split]
        self._shard_records: int = about["shard_records"]

        import tensorflow_datasets as tfds

        # Files are opened when they are read: the name must last as long as the source.
        opened = contextlib.ExitStack()
        place = opened.enter_context(paths.plain(folder))
        weakref.finalize(self, opened.close)
        # Any: TFDS has no type for what `as_data_source` gives for one split.
        folder: Any = tfds.builder_from_directory(str(place))
        self._data: Any = folder.as_data_source(split)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Example:
        index = record_index(index, self._size)
        return example_of(self.problem(index), index)

    def problem(self, index: int) -> Problem:
        """The problem as it was stored; tuples in its data have become lists."""
        index = record_index(index, self._size)
        shard, record = divmod(index, self._shard_records)
        where = f"{self.path}/{self._shards[shard]}, record {record}"
        try:
            stored = self._data[index]
            problem = Problem(
                task=self.task_name,
                seed=int(stored["seed"]),
                split=self.split,
                question=stored["question"].decode(),
                answer=stored["answer"].decode(),
                steps=tuple(step.decode() for step in stored["steps"]),
                difficulty=stored["difficulty"].decode(),
                data=json.loads(stored["data"]),
            )
        # array_record raises several types, all of which mean that the record is damaged.
        except Exception as error:
            reason = str(error).partition("\n")[0].partition(";")[0][:160]
            raise DataError(f"{where}: damaged ({reason}); build the data set again") from error
        if problem.seed != self.first_seed + index:
            raise DataError(
                f"{where}: got the problem of seed {problem.seed}, wanted that of seed "
                f"{self.first_seed + index}; build the data set again"
            )
        return problem

    def place(self, index: int) -> str:
        """Where a record stands."""
        return f"{self.path}, {self.split}, record {index + 1}"

    @property
    def fingerprint(self) -> str:
        """What the data set knows of its problems."""
        return f"{self.split} {self._sample}"

    def __repr__(self) -> str:
        return f"TfdsSource({self.path!r}, {self.split!r}, sample={self._sample})"

    def __reduce__(self) -> tuple[Any, ...]:
        return TfdsSource, (self.path, self.split)


def _check_arguments(name: str, sizes: Mapping[str, int], seed: int) -> None:
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise DataError(f"name must be of a-z, 0-9 and _ and begin with a letter, got {show(name)}")
    if not sizes:
        raise DataError(f"{name}: got no sizes, wanted some of {', '.join(SPLITS)}")
    for split, size in sizes.items():
        if split not in SPLITS:
            raise DataError(
                f"{name}: no split {show(split)}.{did_you_mean(split, SPLITS)} "
                f"The splits: {', '.join(SPLITS)}"
            )
        if type(size) is not int or size < 1:
            raise DataError(
                f"{name}: size of {split} must be an integer >= 1, got {show(size)}; leave the "
                "split out to have none"
            )
    if type(seed) is not int or seed < 0:
        raise DataError(f"{name}: seed must be an integer >= 0, got {show(seed)}")


def _as_json(value: Any, what: str) -> Any:
    """`value` as it will be read back. Raises DataError if JSON cannot hold it."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} must be JSON values, got {show(value)} ({error})") from None


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(v) for v in value) if isinstance(value, list) else value


def _sample(task: Task, sizes: Mapping[str, int], seed: int) -> str:
    """A hash of the first problems, by which a change of the task's code is seen."""
    digest = hashlib.blake2b(digest_size=8)
    for split, size in sizes.items():
        for s in range(seed, seed + min(size, _SAMPLE_PROBLEMS)):
            p = task.problem(s, split)
            digest.update(repr((p.question, p.steps, p.answer, p.difficulty)).encode())
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(path: Path, made: Sequence[Path]) -> Iterator[None]:
    """Hold the lock on `path`, which nothing is left of; nor of the folders that were made for what
    was then refused.
    """
    with open_locked(path, wait=True):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                for folder in made:
                    folder.rmdir()


def _check_same(folder: Path, settings: Mapping[str, Any]) -> None:
    about = _read_about(folder)
    for key in _SETTINGS:
        if about[key] != settings[key]:
            differs = f"{key} is {show(about[key])} there and {show(settings[key])} here"
            if key == "sample":
                differs = f"version {about['package_version']} made other problems of these seeds"
            raise DataError(
                f"{folder} already holds another data set: {differs}; give another out_dir, or "
                "remove the folder"
            )
    _check_files(folder, about)


def _write(task: Task, settings: Mapping[str, Any], root: Path, progress: Progress | None) -> Path:
    """Write the whole data set under `root`; gives its folder there."""
    sizes, first_seed = settings["sizes"], settings["seed"]
    hashes = {split: array("Q") for split in sizes}

    def generate(split: str, start: int, stop: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(start, stop):
            problem = task.problem(first_seed + index, split)
            digest = hashlib.blake2b(problem.question.encode(), digest_size=8).digest()
            hashes[split].append(int.from_bytes(digest, "big"))
            yield index, _features(problem)
            if progress and ((index + 1) % _PROGRESS_EVERY == 0 or index + 1 == sizes[split]):
                progress(split, index + 1, sizes[split])

    builder = _builder_class()(settings, generate, root)
    builder.download_and_prepare()
    folder = Path(builder.data_dir)
    distinct = {split: np.unique(np.asarray(h)) for split, h in hashes.items()}
    _check_disjoint(settings["task"], distinct)
    shards_of = {
        split: sorted(path.name for path in folder.glob(f"{settings['task']}-{split}.*"))
        for split in sizes
    }
    _check_record_counts(folder, shards_of, sizes)
    shards = [name for names in shards_of.values() for name in names]
    about = {
        **settings,
        "package_version": importlib.metadata.version("reasoning-jax"),
        "distinct_questions": {split: len(found) for split, found in distinct.items()},
        "shard_records": SHARD_RECORDS,
        "shards_of": shards_of,
        "shard_bytes": {name: (folder / name).stat().st_size for name in shards},
        "metadata_hashes": {path.name: _hash_file(path) for path in sorted(folder.glob("*.json"))},
    }
    about["hash"] = _hash(about)
    (folder / TASK_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return folder


@functools.cache
def _builder_class() -> Any:
    """The TFDS builder, `(settings, generate, root)`; one class a process, as TFDS keeps them all.

    `generate(split, start, stop)` iterates over (index, features).
    """
    import tensorflow_datasets

    tfds: Any = tensorflow_datasets
    with tfds.core.registered.skip_registration():

        class TaskBuilder(tfds.core.ShardBasedBuilder):
            """A task's problems."""

            VERSION = tfds.core.Version(VERSION)

            def __init__(self, settings: Mapping[str, Any], generate: Any, root: Path) -> None:
                self.name = settings["task"]
                self._settings = settings
                self._generate = generate
                super().__init__(data_dir=str(root), file_format="array_record")

            def _info(self) -> Any:
                text = tfds.features.Text
                return tfds.core.DatasetInfo(
                    builder=self,
                    description=f"{self.name} with {self._settings['dials']}",
                    features=tfds.features.FeaturesDict(
                        {
                            "question": text(),
                            "steps": tfds.features.Sequence(text()),
                            "answer": text(),
                            "difficulty": text(),
                            "seed": np.int64,
                            "data": text(),
                        }
                    ),
                    disable_shuffling=True,
                )

            def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Any]]:
                del dl_manager
                return {
                    split: [
                        functools.partial(
                            self._generate, split, start, min(start + SHARD_RECORDS, size)
                        )
                        for start in range(0, size, SHARD_RECORDS)
                    ]
                    for split, size in self._settings["sizes"].items()
                }

            # TFDS prints here that it downloads, which it does not.
            def _log_download_bytes(self) -> None: ...

            def _log_download_done(self) -> None: ...

    return TaskBuilder


def _features(problem: Problem) -> dict[str, Any]:
    what = f"{problem.task}: data of seed {problem.seed}, {problem.split},"
    return {
        "question": problem.question,
        "steps": list(problem.steps),
        "answer": problem.answer,
        "difficulty": problem.difficulty,
        "seed": problem.seed,
        "data": json.dumps(_as_json(dict(problem.data), what), ensure_ascii=False),
    }


def _check_disjoint(name: str, distinct: Mapping[str, np.ndarray]) -> None:
    splits = list(distinct)
    for i, first in enumerate(splits):
        for second in splits[i + 1 :]:
            shared = np.intersect1d(distinct[first], distinct[second], assume_unique=True)
            if len(shared):
                raise DataError(
                    f"{name}: {len(shared):,} questions are both in {first} and in {second}, "
                    "wanted none; the task's split must depend on all of the question"
                )


def _check_record_counts(
    folder: Path, shards_of: Mapping[str, list[str]], sizes: Mapping[str, int]
) -> None:
    """Raise DataError unless the shards hold what was written (a full disk may cut them)."""
    from array_record.python.array_record_module import ArrayRecordReader

    for split, names in shards_of.items():
        found = 0
        for name in names:
            reader = ArrayRecordReader(str(folder / name))
            found += reader.num_records()
            reader.close()
        if found != sizes[split] or len(names) != math.ceil(sizes[split] / SHARD_RECORDS):
            raise DataError(
                f"{folder}: got {found:,} {split} records in {len(names)} shards, wanted "
                f"{sizes[split]:,}; is the disk full?"
            )


def _read_about(folder: Path) -> dict[str, Any]:
    """`task.json` of a complete data set."""
    try:
        about = json.loads((folder / TASK_FILE).read_text(encoding="utf-8"))
        told = about.pop("hash")
        intact = told == _hash(about)
    except (FileNotFoundError, NotADirectoryError):
        near = [path.parent for path in sorted(folder.glob(f"*/{TASK_FILE}"))]
        near += [path.parent for path in sorted(folder.glob(f"*/*/{TASK_FILE}"))]
        hint = f"; did you mean {near[0]}?" if near else ""
        raise DataError(
            f"{folder}: no data set of a task ({TASK_FILE} is not there){hint}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        intact, about = False, {}
    if not intact:
        raise DataError(f"{folder / TASK_FILE}: damaged; build the data set again")
    if about["format"] != _FORMAT:
        raise DataError(
            f"{folder}: got format {about['format']}, wanted {_FORMAT}; build the data set again"
        )
    return about


def _check_files(folder: Path, about: Mapping[str, Any]) -> None:
    """Raise DataError unless all files are there: shards of their size, metadata of its hash."""
    for name, size in about["shard_bytes"].items():
        path = folder / name
        got = path.stat().st_size if path.is_file() else None
        if got != size:
            found = "no file" if got is None else f"{got:,} bytes"
            raise DataError(f"{path}: got {found}, wanted {size:,} bytes; build the data set again")
    for name, wanted in about["metadata_hashes"].items():
        path = folder / name
        if not path.is_file() or _hash_file(path) != wanted:
            state = "damaged" if path.is_file() else "missing"
            raise DataError(f"{path}: {state}; build the data set again")


def _hash(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _hash_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
