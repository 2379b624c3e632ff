"""The fixture that the report's tests share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.report.runs import write_run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run folder under the test's own folder: make_run(name, **options of write_run)."""

    def make(name: str = "run", **options: Any) -> Path:
        return write_run(tmp_path / name, **options)

    return make
