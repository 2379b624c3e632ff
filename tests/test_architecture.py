"""What no module may do: run code from text, start processes, load JAX where none is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import reasoning_jax

PACKAGE = Path(reasoning_jax.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
ROOT = Path(__file__).parent.parent
# Beside the package: what its users run and change.
OTHERS = [
    path for folder in ("configs", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]  # fmt: skip

# Builtins that turn text into code; not even their names may be used.
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__", "__builtins__", "builtins"}
# Modules that run what they read, or run programs.
FORBIDDEN_MODULES = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "code",
    "codeop", "pty", "runpy", "torch", "sympy", "yaml", "pandas", "builtins", "multiprocessing",
    "jsonpickle", "imp", "cffi", "numexpr", "asteval", "pexpect", "socket", "socketserver", "ssl",
    "asyncio", "http", "requests", "httpx", "ftplib", "smtplib", "xmlrpc", "webbrowser",
    "huggingface_hub", "concurrent.futures.process",
}  # fmt: skip
# Attributes of any object, whatever it is called.
FORBIDDEN_ATTRIBUTES = {
    "eval", "exec", "exec_module", "system", "popen", "execv", "execve", "execvp", "execl",
    "execlp", "spawnv", "spawnl", "fork", "forkpty", "posix_spawn", "sympify", "parse_expr",
    "parse_latex", "lambdify", "read_pickle", "allow_pickle", "from_pickle", "unsafe_load",
    "full_load", "__globals__", "__builtins__", "__subclasses__", "load_module", "run_path",
    "run_module", "SourceFileLoader", "ExtensionFileLoader", "DEFINE_config_file", "FunctionType",
    "CodeType", "from_string", "startfile", "posix_spawnp", "spawnvp", "spawnve", "execle",
    "create_subprocess_exec", "create_subprocess_shell", "ProcessPoolExecutor", "urlopen",
    "urlretrieve", "format_map",
}  # fmt: skip
FORBIDDEN = FORBIDDEN_NAMES | FORBIDDEN_ATTRIBUTES
PROCESSES = {"subprocess", "ctypes"}
# A config file is Python; git tells the commit of a run; reasoning-gym runs in a worker of its own,
# which forks and has sympy parse one literal so that it is loaded; malloc is told to keep pages.
ALLOWED = {
    "config_file.py": {"exec_module"},
    # A module of the table of tasks, by a name that is in it.
    "tasks/__init__.py": {"import_module(...)"},
    "commands/runfolder.py": {"subprocess"},
    "tasks/gym.py": {"subprocess"},
    "train/heap.py": {"ctypes"},
    "tasks/gym_worker.py": {"fork", "sympy.parsing.sympy_parser.parse_expr"},
}


def offences(source, name=""):
    """What a module's text does of the forbidden, as (line, what)."""
    found = []
    for node in ast.walk(ast.parse(source)):
        found += [(getattr(node, "lineno", 0), what) for what in forbidden_in(node)]
    return [(line, what) for line, what in found if what not in ALLOWED.get(name, ())]


def forbidden_in(node):
    if isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES:
        yield node.id
    if isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_ATTRIBUTES:
        yield node.attr
    if isinstance(node, ast.Import | ast.ImportFrom):
        inside = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        for module in (inside + a.name for a in node.names):
            parts = module.split(".")
            if parts[0] in FORBIDDEN_MODULES or parts[-1] in FORBIDDEN:
                yield module
            if parts[0] in PROCESSES:
                yield parts[0]
    if isinstance(node, ast.keyword) and node.arg in ("shell", "allow_pickle"):
        off = isinstance(node.value, ast.Constant) and node.value.value is False
        yield from () if off else (f"{node.arg}=",)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        literal = all(isinstance(a, ast.Constant) for a in node.args)
        if node.func.id in FORBIDDEN_ATTRIBUTES and not literal:
            yield f"{node.func.id}(...)"
        named = {a.value for a in node.args if isinstance(a, ast.Constant)}
        if node.func.id == "getattr" and named & FORBIDDEN:
            yield "getattr"
    if isinstance(node, ast.Call):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        called = node.func.id if isinstance(node.func, ast.Name) else called
        if called == "import_module" and not isinstance(node.args[0], ast.Constant):
            yield "import_module(...)"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_code_from_text(path):
    name = path.relative_to(PACKAGE).as_posix()
    assert offences(path.read_text(encoding="utf-8"), name) == []


@pytest.mark.parametrize("path", OTHERS, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_code_from_text_beside_the_package(path):
    source = path.read_text(encoding="utf-8")
    found = {what for _, what in offences(source)}
    if path.parts[-2] == "benchmarks":
        # It starts its peer, and a peer may be of torch, in whose words a model's mode is "eval".
        found = {
            what for what in found if what.split(".")[0] not in ("subprocess", "torch", "eval")
        }
        names = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
        found |= names & FORBIDDEN_NAMES
    # The published code that a benchmark is held against is run as it is.
    peers = {"coconut_peer.py": {"exec_module"}}
    assert found == peers.get(path.name, set())


@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_allowed_is_used(name):
    """An exception that is not needed any more goes."""
    source = (PACKAGE / name).read_text(encoding="utf-8")
    assert {what for _, what in offences(source)} == ALLOWED[name]


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)", "list(map(eval, texts))", "exec(text)", "compile(text, '', 'eval')",
        "__import__(name)", "import pickle", "from pickle import loads", "import dill as json",
        "import torch", "from torch import load", "import yaml", "from sympy import sympify",
        "x.sympify(t)", "sympy.parsing.parse_expr(t)", "os.system(c)", "from os import system",
        "os.popen(c)", "import subprocess", "from subprocess import run", "import multiprocessing",
        "np.load(f, allow_pickle=True)", "np.load(f, allow_pickle=flag)", "run(c, shell=True)",
        "getattr(os, 'system')(c)", "import builtins", "spec.loader.exec_module(m)",
        "f.__globals__['x']", "parse_expr(t)", "ctypes.CDLL(x)\nimport ctypes",
        "from builtins import eval as f", "import cloudpickle", "import marshal", "import shelve",
        "x.load(open(f))\nimport joblib", "np.lib.format.read_array(f, allow_pickle=1)",
        "importlib.import_module(name)", "import_module(f'{a}.b')", "from runpy import run_path",
        "importlib.machinery.SourceFileLoader(a, b).load_module()", "types.FunctionType(c, g)",
        "subprocess.run(c, shell=True)\nimport subprocess", "os.execvp(c, a)", "os.spawnv(0, c, a)",
        "os.posix_spawn(c, a, e)", "getattr(obj, '__subclasses__')()", "jinja.from_string(t)",
        "import socket", "urllib.request.urlopen(u)", "import asyncio", "from http import client",
        "from concurrent.futures import ProcessPoolExecutor", "import huggingface_hub",
        "config_flags.DEFINE_config_file('x')", "template.format_map(values)", "import imp",
    ],
)  # fmt: skip
def test_each_forbidden_thing_is_seen(source):
    assert offences(source)


@pytest.mark.parametrize(
    "source",
    [
        "re.compile(p)", "jax.jit(f).lower(x).compile()", "evaluate(x)", "np.load(f)",
        "np.load(f, allow_pickle=False)", "ast.literal_eval(t)", "json.loads(t)",
        "text = 'eval(x)'", "importlib.import_module('jax')", "from urllib.parse import quote",
        "flax.serialization.from_bytes(t, b)", "table[name](x)", "getattr(config, 'seed')",
    ],
)  # fmt: skip
def test_what_only_looks_forbidden_is_not(source):
    assert not offences(source)


def test_the_allowed_processes_take_no_shell_and_a_fixed_program():
    for name in (name for name, what in ALLOWED.items() if "subprocess" in what):
        tree = ast.parse((PACKAGE / name).read_text(encoding="utf-8"))
        calls = [
            node for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name) and node.func.value.id == "subprocess"
        ]  # fmt: skip
        assert calls, name
        for call in calls:
            command = call.args[0]
            assert isinstance(command, ast.List), f"{name}:{call.lineno}"
            program = ast.unparse(command.elts[0])
            assert program in ("'git'", "sys.executable"), f"{name}:{call.lineno}"


# From the ground up; a module may import from its own floor and those below.
FLOORS = (
    (
        "config_fields", "tokenizer_json", "backspace", "durable", "fingerprint", "screen", "words",
    ),
    ("vocab", "devices"),
    ("config_objectives", "config_argument", "exit_codes", "paths"), ("config",),
    ("config_check_objectives", "config_unread", "sharding", "sweep"),
    ("config_check", "config_file"),
    ("tasks",), ("model",), ("objectives",), ("weights",), ("preflight",), ("decoding",), ("data",),
    ("evaluate",), ("rl",), ("train",), ("analysis",), ("report",), ("commands",),
    ("command_line",), ("main",),
)  # fmt: skip


def imported_from_us(tree):
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            own = node.module == "reasoning_jax"
            names = [f"{node.module}.{a.name}" for a in node.names] if own else [node.module]
        for name in names:
            if name.startswith("reasoning_jax."):
                yield name.split(".")[1]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_floors_below(path):
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    unit = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if unit == "__init__":
        return
    above = {
        name for name in imported_from_us(ast.parse(path.read_text(encoding="utf-8")))
        if floor[name] > floor[unit]
    }  # fmt: skip
    assert not above


def test_what_checks_configs_and_text_loads_no_jax():
    modules = (
        "main", "command_line", "preflight", "config", "config_check", "vocab", "tasks", "report",
        "weights", "data.examples", "data.jsonl", "data.text", "data.ngram", "commands.runfolder",
        "commands.saved_config", "commands.sweep", "commands.reproduce", "report.study",
        "report.probe", "sweep",
    )  # fmt: skip
    lines = [f"import reasoning_jax.{m}" for m in modules]
    lines.append("import sys; sys.exit('jax' in sys.modules)")
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, timeout=120)
