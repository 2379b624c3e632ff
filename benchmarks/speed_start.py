"""How long a user waits, for benchmarks/speed.py: for a first step, and for an import.

    python -m benchmarks.speed_start

Each run is a process that is started and, when it has shown what is waited for, ended. What it
compiled is kept in a folder of this worker's own, so that its first run finds nothing, and the
others all; nothing of the user's is used or written. Imports no JAX itself.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import worker

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.py"
POLL_S = 0.005
PATIENCE_S = 600.0


def environment(cache: Path) -> dict[str, str]:
    """Programs are kept in `cache`, whatever the user has set."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
    kept.pop("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", None)
    return kept | {"XDG_CACHE_HOME": str(cache)}


def train(workdir: Path, cache: Path, steps: int) -> subprocess.Popen[bytes]:
    command = [
        sys.executable, "-m", "reasoning_jax.main", "train", f"--config={QUICKSTART}",
        f"--workdir={workdir}", "--config.train.log_every_steps=1", "--quiet",
        f"--config.train.steps={steps}", "--config.optimizer.warmup_steps=1",
    ]  # fmt: skip
    return subprocess.Popen(
        command, env=environment(cache), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def train_steps(workdir: Path) -> list[int]:
    """Of the rows of metrics that training has written so far."""
    file = workdir / "metrics.jsonl"
    if not file.exists():
        return []
    # The last line may be half written.
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    rows = [json.loads(line) for line in lines]
    return [row["step"] for row in rows if row["split"] == "train"]


class Start:
    """From starting `reasoning-jax train` with the quickstart's config to the row of metrics of its
    first step: of a new run, or (`resume`) of one that goes on behind a checkpoint. The
    quickstart's evaluation at step 0 is in a new run's time. `kept`: programs compiled by an
    earlier run are found. A run is ended as soon as it has written that row.
    """

    def __init__(self, *, resume: bool, kept: bool):
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name)
        self.resume, self.kept, self.runs = resume, kept, 0
        if resume:
            # A run whose length was two steps, and has now become longer.
            process = train(self.root / "begun", self.root / "cache", 2)
            _, said = process.communicate()
            assert process.returncode == 0, said.decode()

    def __call__(self) -> int:
        self.runs += 1
        workdir = self.root / f"run{self.runs}"
        cache = self.root / ("cache" if self.kept else f"cache{self.runs}")
        awaited = 1
        if self.resume:
            shutil.copytree(self.root / "begun", workdir)
            awaited = 3
        process = train(workdir, cache, 1000)
        deadline = time.monotonic() + PATIENCE_S
        while awaited not in train_steps(workdir):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                _, said = process.communicate()
                raise RuntimeError(f"no step {awaited}: {said.decode()[-500:]}")
            time.sleep(POLL_S)
        process.kill()
        process.communicate()
        return 1


class Import:
    """A Python process that imports the package and ends, or that imports nothing."""

    def __init__(self, *, module: str):
        text = f"import sys{', ' + module if module else ''}; print('jaxlib' in sys.modules)"
        self.command = [sys.executable, "-c", text]

    def __call__(self) -> int:
        done = subprocess.run(self.command, capture_output=True, text=True, check=True)
        # No JAX, and so no backend of it.
        assert done.stdout == "False\n", done.stdout
        return 1


def main() -> None:
    worker.serve({"start": Start, "import": Import}, {"python": sys.version})


if __name__ == "__main__":
    main()
