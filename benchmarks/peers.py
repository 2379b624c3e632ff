"""Installs the peers of benchmarks/speed.py, each into an environment of its own.

    python -m benchmarks.peers [--into=.venv-bench] [--python=python3] [--python312=python3.12]
        [--only=transformers,tunix]

What is installed stands in requirements-PEER.txt beside this file, every version pinned. A peer
that is there already, by the same requirements, is left as it is. One that cannot be installed does
not end this: why is kept in INTO/PEER.failed, and the table says it. Only the standard library is
needed.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# {peer: (which interpreter, what else pip is told)}
PEERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "transformers": ("python", ()),
    "tunix": ("python", ()),
    # It wants Python 3.12, and lists its dependencies under extras for GPUs and TPUs only.
    "maxtext": ("python312", ("--no-deps",)),
}
REASON_LINES = 3


def requirements(peer: str) -> Path:
    return HERE / f"requirements-{peer}.txt"


def python_of(into: Path, peer: str) -> Path:
    return into / peer / "bin" / "python"


def mark(peer: str) -> str:
    """What the ready-file of an environment holds: that of other requirements differs."""
    return hashlib.sha256(requirements(peer).read_bytes()).hexdigest()


def missing(into: Path, peer: str) -> str:
    """Why a peer cannot run, or "" if it can."""
    if python_of(into, peer).exists():
        return ""
    failed = into / f"{peer}.failed"
    if failed.exists():
        return "not installed: " + " ".join(failed.read_text(encoding="utf-8").split())
    return "not installed: `make bench` does it"


def install(peer: str, python: str, more: tuple[str, ...], into: Path) -> str:
    """Make the peer's environment. Returns why that failed, or "" if it did not."""
    ready, failed, folder = into / peer / "ready", into / f"{peer}.failed", into / peer
    if ready.exists() and ready.read_text(encoding="utf-8") == mark(peer):
        return ""
    into.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    commands = (
        [python, "-m", "venv", str(folder)],
        [str(python_of(into, peer)), "-m", "pip", "install", "--quiet", *more,
         "-r", str(requirements(peer))],
    )  # fmt: skip
    reason = ""
    for command in commands:
        reason = failure(command)
        if reason:
            break
    if reason:
        shutil.rmtree(folder, ignore_errors=True)  # half of it would be taken for all
        failed.write_text(reason + "\n", encoding="utf-8")
    else:
        failed.unlink(missing_ok=True)
        ready.write_text(mark(peer), encoding="utf-8")
    return reason


def failure(command: list[str]) -> str:
    """Run it; the last lines that it printed if it failed, else ""."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    if done.returncode == 0:
        return ""
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    # pip's own errors say more than what it warns of.
    errors = [line for line in said if line.startswith("ERROR")] or said
    if len(errors) > REASON_LINES:  # how it begins, and how it ends
        errors = [errors[0], *errors[1 - REASON_LINES :]]
    return "\n".join(errors) or f"{command[0]} ended with {done.returncode}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--into", type=Path, default=Path(".venv-bench"))
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--python312", default="python3.12", help="for peers that need 3.12")
    parser.add_argument("--only", default=",".join(PEERS))
    args = parser.parse_args()
    for peer in args.only.split(","):
        which, more = PEERS[peer]
        reason = install(peer, getattr(args, which), more, args.into)
        print(f"{peer}: {'not installed: ' + reason if reason else 'installed'}", flush=True)


if __name__ == "__main__":
    main()
