"""Command lines run in the process of a test."""

import contextlib
import io

from reasoning_jax import main


def run(*argv):
    """(exit code, all that was printed)."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main.run(["reasoning-jax", *map(str, argv)])
    return code, out.getvalue()


def done(*argv):
    """All that was printed by a command that must succeed."""
    code, out = run(*argv)
    assert code == 0, out
    return out
