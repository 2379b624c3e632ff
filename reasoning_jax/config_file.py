"""Config files: Python, run by design, and the one place of the package that runs any.

What is wrong in a file is told with its name and line. Nothing here knows what a config holds.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import itertools
import linecache
import re
import traceback
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from reasoning_jax.config_fields import SHOWN, article, int_hint, show
from reasoning_jax.exit_codes import UsageError, exit_code, first_lines

_FUNCTIONS = {
    "get_config": "that returns a ConfigDict",
    "get_sweep": "that returns points, as in docs/sweeps.md",
    "get_study": "that returns a report.study.Study",
}
_MOST_FILES = 1000
# The key at the start of a refusal, as in "train.steps must be ..." and "unknown key train.stpes".
_KEY = re.compile(r"(?:unknown key )?([a-z_0-9]+(?:\.[a-z_0-9]+)+)")
# As ml_collections refuses a value of another type.
_OTHER_TYPE = re.compile(r"Could not override field '(\w+)' .*?\. (.*) is of original type", re.S)


def load_config_file(value: str) -> Any:
    """Run FILE[:ARG]'s `get_config` and return what it gives, a ConfigDict. Raises UsageError."""
    name, argument = split(value)
    return open_config_file(name)("get_config", *([] if argument is None else [argument]))


def split(value: str) -> tuple[str, str | None]:
    """FILE and ARG of FILE[:ARG]; ARG is None without a colon behind the file.

    Both may hold colons. FILE is the longest part that is a file; where none is, what ends in .py.
    """
    ends = [i for i, letter in enumerate(value) if letter == ":"]
    for end in (len(value), *reversed(ends)):
        if _is_file(Path(value[:end])):
            return value[:end], value[end + 1 :] if end < len(value) else None
    end = next((i for i in ends if value[:i].endswith(".py")), None)
    if end is None and not value.endswith(".py"):
        end = next(iter(ends), None)
    return (value, None) if end is None else (value[:end], value[end + 1 :])


def open_config_file(name: str) -> Callable[..., Any]:
    """Run a config file; returns `call(function, *arguments)`. Both raise UsageError."""
    path = Path(name)
    if _is_dir(path) and _is_file(path / "config.json"):
        raise UsageError(
            f"--config={show(name)[1:-1]}: this is a run folder; to go on with it run the line "
            "that it was started with (env.json has it), CONFIG and --workdir=RUN"
        )
    if not _is_file(path):
        raise UsageError(
            f"--config={show(name)[1:-1]}: there is no such file{nearest_file(path, '*.py')}"
        )
    spec = importlib.util.spec_from_file_location("reasoning_jax_config_file", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _in_words(name, spec.loader.exec_module, module)

    def call(function: str, *arguments: str) -> Any:
        if not hasattr(module, function):
            given = "scale" if function == "get_study" else 'arg=""'
            raise UsageError(
                f"{name} defines no {function}; it needs a `def {function}({given}):` "
                f"{_FUNCTIONS[function]}"
            )
        result = _in_words(name, getattr(module, function), *arguments)
        if function == "get_config" and not isinstance(result, config_dict.ConfigDict):
            raise UsageError(
                f"{name}: get_config must return a ConfigDict, got {type(result).__name__}"
            )
        return result

    return call


def place_of(name: str, message: str, overridden: Container[str]) -> str:
    """ "FILE, line N: " where a config file sets the key that a refusal begins with; else "".

    The file is parsed, not run. A key that the command line overrides is not the file's.
    """
    found = _KEY.match(message)
    key = found[1] if found else ""
    if not key or key in overridden:
        return ""
    try:
        tree = ast.parse(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return ""
    lines = [line for path, line in _assigned(tree) if f".{path}".endswith(f".{key}")]
    return f"{name}, line {lines[-1]}: " if lines else ""


def _assigned(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(dotted path without its first name, line) of each attribute or item that is assigned."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            continue
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            parts: list[str] = []
            at: ast.expr = target
            while isinstance(at, ast.Attribute | ast.Subscript):
                if isinstance(at, ast.Attribute):
                    parts.append(at.attr)
                elif isinstance(at.slice, ast.Constant):
                    parts.append(str(at.slice.value))
                at = at.value
            if parts and isinstance(at, ast.Name):
                # `model = config.model; model.d_ff = 3` sets model.d_ff, too.
                whole = [*reversed(parts)]
                yield ".".join(whole), target.lineno
                yield ".".join([at.id, *whole]), target.lineno


def nearest_file(path: Path, pattern: str) -> str:
    """ "; did you mean DIR/NAME?" for what is nearest to a missing file, or to its folder."""
    folder, near = path.parent, None
    if not _is_dir(folder):
        found = _nearest(folder, "*")
        folder = folder.parent / found if found else Path(".")
    if (_is_file(folder / path.name) or _is_dir(folder / path.name)) and folder != path.parent:
        near = path.name
    near = near or _nearest(folder / path.name, pattern)
    return f"; did you mean {folder / near}?" if near else ""


def _nearest(path: Path, pattern: str) -> str | None:
    """The name beside `path` that is nearest to its own."""
    try:
        names = [p.name for p in itertools.islice(path.parent.glob(pattern), _MOST_FILES)]
    except (OSError, ValueError):
        return None
    near = difflib.get_close_matches(path.name[:SHOWN], names, n=1)
    return near[0] if near else None


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, a NUL
        return False


def _in_words(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call into config file `name`; what is wrong there is a UsageError with its line."""
    try:
        return function(*arguments)
    except Exception as error:
        if exit_code(error) is not None:
            raise
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == name]
        where = f", line {lines[-1]}" if lines else ""
        what = f"{type(error).__name__}: {first_lines(error)}"
        if isinstance(error, TypeError) and (found := _OTHER_TYPE.match(str(error))):
            what = _other_type(found[1], found[2], str(error))
        source = linecache.getline(name, lines[-1] or 0).strip() if lines else ""
        raise UsageError(f"{name}{where}: {what}" + (f"\n  {source}" if source else "")) from None


def _other_type(field: str, value: str, message: str) -> str:
    """A value of another type than the field has, in our words."""
    found = re.search(r"casted to type <class '(\w+)'>", message)
    kind = {"int": int, "float": float}.get(found[1] if found else "", str)
    wanted = article(found[1]) if found else "of another type"
    return f"{field} must be {wanted}, got {value[:SHOWN]}{int_hint(kind, value)}"
