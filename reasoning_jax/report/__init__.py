"""Run folders to one self-contained HTML page and its figures. Imports no JAX, needs no network."""

from reasoning_jax.report.load import ReportError
from reasoning_jax.report.page import write_report
from reasoning_jax.report.replay import replay

__all__ = ["ReportError", "replay", "write_report"]
