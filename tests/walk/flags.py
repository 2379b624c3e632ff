"""The walk of flags: for each flag of each command a line that gives it, and what it must do.

A NEW FLAG gets one line in `FLAGS` for each command that takes it: "command --flag": (line, seen).
The line is typed as it stands, with {names} filled in; `seen(done)` says whether the flag has done
its work. Flags that show in one line can share it: each line is run once.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Callable
from pathlib import Path

# The model that stands in the folders {old} and {old_too}.
OLD = b"another model"


class Done(typing.NamedTuple):
    """What a line printed and did. `debugging`: whether JAX's checks were on behind it. `at(name)`
    is a path of the places; `of(line)` what another line of the table did.
    """

    out: str
    err: str
    debugging: bool
    at: Callable[[str], Path]
    of: Callable[[str], Done]


def _configured(done: Done) -> bool:
    return '"d_model": 16' in (done.at("faulty") / "config.json").read_text()


def _skipped(done: Done) -> int:
    text = (done.at("faulty") / "metrics.jsonl").read_text()
    return sum(json.loads(line).get("steps_skipped", 0) for line in text.splitlines())


def _of_another_step(done: Done) -> bool:
    done.of(_EXPORT_TOO)
    return _model(done, "exported") != _model(done, "exported_too")


def _model(done: Done, folder: str) -> bytes:
    return (done.at(folder) / "model.safetensors").read_bytes()


def _runs(done: Done, folder: str) -> list[str]:
    return sorted(path.parent.name for path in done.at(folder).glob("*/config.json"))


def _has(folder: str, *names: str) -> Callable[[Done], bool]:
    return lambda done: all((done.at(folder) / name).exists() for name in names)


def _says(*texts: str) -> Callable[[Done], bool]:
    return lambda done: all(text in done.out for text in texts)


def _debugging(done: Done) -> bool:
    return done.debugging


def _quiet(done: Done) -> bool:
    """Without a word about what the command is doing, of which there are some otherwise."""
    told = "step 1/" in done.out or "parameters" in done.out or " x cpu" in done.err
    return not told and " x cpu" in done.of(_PLAIN).err


def _completions(done: Done) -> bool:
    return len([json.loads(line) for line in done.out.splitlines()]) == 3


_TRAIN = "train --config={config} --workdir={faulty} --faults=nan@loss:2 --quiet"
_DEBUGGED = "train --config={config} --workdir={debugged} --debug"
_PLAIN = "sample --workdir={run} --prompt=1+2= --samples=3"
_EARLIER = "sample --workdir={run} --prompt=1+2= --samples=3 --checkpoint=1 --json --quiet"
_JSON = "sample --workdir={run} --prompt=1+2= --samples=3 --json"
_FILE = "sample --workdir={run} --prompt_file={prompts} --debug"
_PROBE = "probe --workdir={thinking} --problem=1 --problems=3 --checkpoint=1 --out={probed} --quiet"
_TYPED = "probe --workdir={thinking} --problems=3 --prompt={question} --out={typed} --debug"
_EXPORT = "export --workdir={run} --checkpoint=1 --out={exported} --debug"
_OVER = "export --workdir={run} --out={old} --overwrite --adapters=beside"
_OVER_TOO = "checkpoint export {run} --out={old_too} --overwrite --adapters=beside"
_REPLAY = "replay --workdir={run} --step=1 --out={replayed} --faults=nan@loss:1 --debug"
_BUILD = "data build --config={short} --out={tfds} --debug"
_SHORTCUTS = "data shortcuts --config={graphs} --problems=6 --quiet"
_ONE = "sweep {sweep} --workdir={swept} --index=1 --quiet"
_ALL = "sweep --config={sweep} --workdir={swept_all} --all --debug"
_LIST = "sweep {sweep} --workdir={unswept} --list"
_STUDY = "reproduce walk/exp --workdir={studied} --scale=gpu --quiet --debug"
_EVALUATE = "evaluate --workdir={run} --checkpoint=1 --quiet --out={evaluated}"
_MEASURED = "evaluate --workdir={run} --debug"
_EXPORT_TOO = "export --config={config} --workdir={run} --out={exported_too} --quiet"
_REPLAY_TOO = "replay --config={config} --workdir={run} --step=2 --out={replayed_too} --quiet"

FLAGS: dict[str, tuple[str, Callable[[Done], bool]]] = {
    "train --config": (_TRAIN, _configured),
    "train --workdir": (_TRAIN, _has("faulty", "config.json", "metrics.jsonl")),
    "train --quiet": (_TRAIN, _quiet),
    "train --faults": (_TRAIN, lambda d: _skipped(d) == 1),
    "train --print_config": ("train --config={config} --print_config", _says('"d_model": 16')),
    "train --explain": ("train --config={config} --explain", _says("global batch", "config file")),
    "train --dry_run": ("train --config={config} --dry_run", _says("bytes per device")),
    "train --debug": (_DEBUGGED, _debugging),
    "evaluate --config": (
        "evaluate --config={config} --workdir={run} --print_config", _says('"d_model": 16'),
    ),
    "evaluate --workdir": (_EVALUATE, _says("exact_match")),
    "evaluate --checkpoint": (_EVALUATE, _says("step 1, validation")),
    "evaluate --out": (_EVALUATE, _has("evaluated", "eval", "samples")),
    "evaluate --quiet": (_EVALUATE, _quiet),
    "evaluate --debug": (_MEASURED, _debugging),
    "evaluate --print_config": ("evaluate --workdir={run} --print_config", _says('"d_model": 16')),
    "evaluate --explain": ("evaluate --workdir={run} --explain", _says("global batch", "run")),
    "sample --config": (
        "sample --config={config} --workdir={run} --prompt=1+2= --samples=3",
        lambda d: d.out == d.of(_PLAIN).out,
    ),
    "sample --workdir": (_PLAIN, _says("1+2=")),
    "sample --prompt": (_PLAIN, _says("1+2=")),
    "sample --samples": (_PLAIN, lambda d: d.out.count("1+2=") == 3),
    "sample --checkpoint": (_EARLIER, lambda d: d.out != d.of(_JSON).out),
    "sample --quiet": (_EARLIER, _quiet),
    "sample --json": (_JSON, _completions),
    "sample --prompt_file": (_FILE, _says("3+4=", "5+6=")),
    "sample --debug": (_FILE, _debugging),
    "report --out": ("report {run} --out={page}", lambda d: d.at("page").stat().st_size > 1000),
    "data --config": (_BUILD, _says("problems of arithmetic")),
    "data --out": (_BUILD, lambda d: any(d.at("tfds").rglob("dataset_info.json"))),
    "data --debug": (_BUILD, _debugging),
    "data --quiet": (_SHORTCUTS, _quiet),
    "data --problems": (_SHORTCUTS, _says("fitted on 6 questions")),
    "probe --config": (
        "probe --config={thinking_config} --workdir={thinking} --problems=2 --out={configured}",
        _has("configured", "probe.json"),
    ),
    "probe --workdir": (_PROBE, lambda d: _probed(d, "probed")["run"] == d.at("thinking").name),
    "probe --checkpoint": (_PROBE, lambda d: _probed(d, "probed")["step"] == 1),
    "probe --problem": (_PROBE, lambda d: _probed(d, "probed")["tree"]["problem"] == 1),
    "probe --problems": (_PROBE, lambda d: _probed(d, "probed")["problems"] == 3),
    "probe --quiet": (_PROBE, _quiet),
    "probe --out": (_PROBE, _has("probed", "index.html")),
    "probe --prompt": (_TYPED, lambda d: _probed(d, "typed")["tree"]["problem"] is None),
    "probe --debug": (_TYPED, _debugging),
    "export --config": (_EXPORT_TOO, _has("exported_too", "model.safetensors")),
    "export --quiet": (_EXPORT_TOO, _quiet),
    "export --workdir": (_EXPORT, _has("exported", "model.safetensors")),
    "export --out": (_EXPORT, _has("exported", "config.json")),
    "export --checkpoint": (_EXPORT, _of_another_step),
    "export --overwrite": (_OVER, lambda d: _model(d, "old") != OLD),
    "export --adapters": (_OVER, lambda d: any(d.at("old").rglob("adapter_config.json"))),
    "export --debug": (_EXPORT, _debugging),
    "checkpoint --checkpoint": (
        "checkpoint verify {run} --checkpoint=1",
        lambda d: "step 1: intact" in d.out and "step 2" not in d.out,
    ),
    "checkpoint --out": (
        "checkpoint export {run} --out={exported_last}", _has("exported_last", "model.safetensors"),
    ),
    "checkpoint --overwrite": (_OVER_TOO, lambda d: _model(d, "old_too") != OLD),
    "checkpoint --adapters": (
        _OVER_TOO, lambda d: any(d.at("old_too").rglob("adapter_config.json")),
    ),
    "replay --config": (_REPLAY_TOO, _says("step 2", "all finite", "as logged")),
    "replay --quiet": (_REPLAY_TOO, _quiet),
    "replay --workdir": (_REPLAY, _says("step 1")),
    "replay --step": (_REPLAY, _says("step 1")),
    "replay --out": (_REPLAY, _has("replayed", "report.json", "batch.npz")),
    "replay --faults": (_REPLAY, _says("not finite")),
    "replay --debug": (_REPLAY, _debugging),
    "sweep --config": (_ALL, lambda d: _runs(d, "swept_all") == ["seed=0", "seed=1"]),
    "sweep --workdir": (_ONE, _has("swept", "sweep.json")),
    "sweep --index": (_ONE, lambda d: _runs(d, "swept") == ["seed=1"]),
    "sweep --quiet": (_ONE, _quiet),
    "sweep --all": (_ALL, lambda d: _runs(d, "swept_all") == ["seed=0", "seed=1"]),
    "sweep --debug": (_ALL, _debugging),
    "sweep --list": (_LIST, lambda d: "seed=1" in d.out and not d.at("unswept").exists()),
    "reproduce --config": (
        "reproduce --config={experiment} --workdir={studied} --scale=gpu --quiet",
        _says("Walk (gpu)"),
    ),
    "reproduce --list": ("reproduce --list", _says("walk/exp")),
    "reproduce --workdir": (_STUDY, _has("studied", "table.md")),
    "reproduce --scale": (_STUDY, _says("Walk (gpu)")),
    "reproduce --quiet": (_STUDY, _quiet),
    "reproduce --debug": (_STUDY, _debugging),
}  # fmt: skip


def _probed(done: Done, folder: str) -> typing.Any:
    return json.loads((done.at(folder) / "probe.json").read_text())
