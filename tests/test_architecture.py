"""What no module of the package may do: run code that came as text, or start processes (by AST)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "reasoning_jax"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Builtins that turn text into code; not even their names may be used.
FORBIDDEN_NAMES = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "__builtins__",
    "builtins",
    "breakpoint",
}
# Modules that run what they read, or run programs.
FORBIDDEN_MODULES = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "code",
    "codeop", "pty", "runpy", "torch", "sympy", "yaml", "pandas", "builtins", "multiprocessing",
}  # fmt: skip
# Attributes of any object, whatever it is called.
FORBIDDEN_ATTRIBUTES = {
    "system", "popen", "execv", "execve", "execvp", "execl", "execlp", "spawnv", "spawnl", "fork",
    "forkpty", "posix_spawn", "literal_eval_unsafe", "sympify", "parse_expr", "parse_latex",
    "lambdify", "read_pickle", "allow_pickle", "from_pickle", "unsafe_load", "full_load",
    "__globals__", "__builtins__", "__subclasses__",
}  # fmt: skip
# Who may start a process: git for the commit of a run, and the worker around other people's code.
MAY_START_PROCESSES = {"commands/runfolder.py", "tasks/gym.py"}
# Who may run a Python file: a config is one, and the worker guards what reasoning-gym does.
MAY_EXECUTE_FILES = {"main.py": {"exec_module"}}


def offences(source, name=""):
    """What a module's text does of the forbidden, as (line, what)."""
    found = []
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES:
            found.append((line, node.id))
        elif isinstance(node, ast.Attribute):
            if node.attr in FORBIDDEN_ATTRIBUTES:
                found.append((line, node.attr))
            if node.attr == "exec_module" and "exec_module" not in MAY_EXECUTE_FILES.get(name, ()):
                found.append((line, node.attr))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [a.name for a in node.names]
            if isinstance(node, ast.ImportFrom):
                modules = [f"{node.module}.{m}" for m in modules]
            for module in modules:
                root, last = module.split(".")[0], module.split(".")[-1]
                if root in FORBIDDEN_MODULES or last in FORBIDDEN_NAMES | FORBIDDEN_ATTRIBUTES:
                    found.append((line, module))
                if root in ("subprocess", "ctypes") and name not in MAY_START_PROCESSES:
                    found.append((line, module))
        elif isinstance(node, ast.keyword):
            value = getattr(node.value, "value", node.value)
            if node.arg in ("shell", "allow_pickle") and value is not False:
                found.append((line, f"{node.arg}="))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            # getattr with a computed name could reach any of these.
            names = [a.value for a in node.args if isinstance(a, ast.Constant)]
            if node.func.id == "getattr" and {*names} & (FORBIDDEN_NAMES | FORBIDDEN_ATTRIBUTES):
                found.append((line, "getattr"))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_code_from_text(path):
    name = path.relative_to(PACKAGE).as_posix()
    assert offences(path.read_text(encoding="utf-8"), name) == []


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
        "f.__globals__['x']", "breakpoint()",
    ],
)  # fmt: skip
def test_each_forbidden_thing_is_seen(source):
    assert offences(source)


@pytest.mark.parametrize(
    "source",
    [
        "re.compile(p)", "jax.jit(f).lower(x).compile()", "evaluate(x)", "np.load(f)",
        "np.load(f, allow_pickle=False)", "ast.literal_eval(t)", "json.loads(t)", "text = 'eval(x)'",
    ],
)  # fmt: skip
def test_what_only_looks_forbidden_is_not(source):
    assert not offences(source)


def test_the_allowed_processes_take_no_shell_and_a_fixed_program():
    for name in MAY_START_PROCESSES:
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
