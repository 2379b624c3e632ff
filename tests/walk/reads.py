"""Which keys of a config the package reads, with the values that it finds there."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from pathlib import Path

import reasoning_jax
from reasoning_jax.config import Config

_PACKAGE = str(Path(reasoning_jax.__file__).parent)
# Modules that check, compare, show or copy values and do nothing by them.
_NO_USERS = {
    "config.py", "config_check.py", "config_check_objectives.py", "config_unread.py",
    "preflight.py", "runfolder.py", "command_line.py", "main.py",
}  # fmt: skip
# Where a section is copied field by field: (module, section).
_COPIES = {("assemble.py", "model")}
# (function, section) of these modules that do act on what they read.
_DOERS = {("check_devices", "mesh"), ("warmup_steps", "optimizer")}


def sections() -> dict[str, type]:
    """The dataclass of each section of `Config`, that of the root under ""."""
    hints = typing.get_type_hints(Config)
    found = {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}
    return {"": Config, **found}


def keys() -> list[str]:
    """Every key of `Config` by dotted name; of a task's dials only the task's name."""
    found = []
    for section, kind in sections().items():
        for f in dataclasses.fields(kind):
            key = f"{section}.{f.name}".lstrip(".")
            if key not in sections() and key != "task.dials":
                found.append(key)
    return found


class Reads:
    """Notes each read of a key by code of the package, from `watch` until the patch is undone."""

    def __init__(self) -> None:
        self.seen: dict[str, set[typing.Any]] = {}
        self._users: dict[tuple[types.CodeType, str], bool] = {}

    def watch(self, patch: typing.Any) -> None:
        for section, kind in sections().items():
            names = {f.name: f"{section}.{f.name}".lstrip(".") for f in dataclasses.fields(kind)}
            patch.setattr(kind, "__getattribute__", self._noting(section, names))

    def _noting(self, section: str, names: dict[str, str]) -> typing.Any:
        def getattribute(config: typing.Any, name: str) -> typing.Any:
            value = object.__getattribute__(config, name)
            if name in names and self._uses(sys._getframe(1).f_code, section):
                self.seen.setdefault(names[name], set()).add(value)
            return value

        return getattribute

    def _uses(self, code: types.CodeType, section: str) -> bool:
        known = (code, section)
        if known not in self._users:
            file, module = code.co_filename, Path(code.co_filename).name
            self._users[known] = file.startswith(_PACKAGE) and (
                (code.co_name, section) in _DOERS
                or (module not in _NO_USERS and (module, section) not in _COPIES)
            )
        return self._users[known]
