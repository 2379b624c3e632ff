"""How fast a run trains and how far it is, in wall time.

Throughput of a row is its tokens over the seconds since the row before it, less what is no
training: compiling, evaluation and saving. A step is dispatched long before it is done, so no
number here is made of the time that a call took: the loop waits for the device before a row is
measured. docs/screen.md says what each number counts.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from reasoning_jax.config import Config, ModelConfig
from reasoning_jax.model import spec
from reasoning_jax.train.flops import peak_flops, train_flops_per_token
from reasoning_jax.train.state import state_specs, trained_paths

Clock = Callable[[], float]


class Spans:
    """A union of time spans, added in the order of their ends: what overlaps counts once."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    def add(self, began: float, ended: float) -> None:
        while self._spans and self._spans[-1][1] >= began:
            before = self._spans.pop()
            began, ended = min(began, before[0]), max(ended, before[1])
        self._spans.append((began, ended))

    def seconds(self, since: float, until: float) -> float:
        """Seconds of the union between two moments."""
        total = 0.0
        for began, ended in reversed(self._spans):
            if ended <= since:
                break
            total += max(0.0, min(ended, until) - max(began, since))
        return total


class Pace:
    """Steps, throughput and remaining time of one process's part of a run.

    `now` is a clock; a test may put its own there. Threads of the console read it.
    """

    def __init__(self, start: int, total: int, now: Clock = time.perf_counter):
        self.total, self.step, self._start, self._now = total, start, start, now
        self._compiling, self._away = Spans(), Spans()
        self._began: float | None = None
        self._row = self._last = now()
        # What is done now, and since when; None for steps.
        self.activity: tuple[str, float] | None = None

    def begin(self) -> None:
        """The first step begins: the seconds before it are those of no step."""
        self._began = self._row = self._last = self._now()

    def compiled(self, began: float, ended: float) -> None:
        """A program was traced or compiled between two moments of this clock."""
        self._compiling.add(began, ended)
        self._away.add(began, ended)

    @contextlib.contextmanager
    def away(self, what: str) -> Iterator[None]:
        """For the duration of a block the run does something else than training."""
        began = self._now()
        try:
            with self.doing(what):
                yield
        finally:
            self._away.add(began, self._now())

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """For the duration of a block this is what the screen shows."""
        before, self.activity = self.activity, (what, self._now())
        try:
            yield
        finally:
            self.activity = before

    def traced(self, name: str) -> None:
        """A function has been traced in the midst of training, so that it is compiled next."""
        if self.activity is None:
            self.activity = (f"compiling {name}", self._now())

    def step_done(self, step: int) -> float:
        """A step has ended; returns the seconds of training since the one before it."""
        now = self._now()
        passed = now - self._last - self._away.seconds(self._last, now)
        self.step, self._last, self.activity = step, now, None
        return passed

    def row(self) -> float:
        """The seconds of training since the row before this one; another row begins."""
        now = self._now()
        passed = now - self._row - self._away.seconds(self._row, now)
        self._row = now
        return passed

    def since_activity(self) -> tuple[str, float] | None:
        """What is done now instead of steps, and for how many seconds."""
        now = self.activity
        return None if now is None else (now[0], self._now() - now[1])

    def elapsed(self) -> float:
        """Seconds since the first step of this process began."""
        return 0.0 if self._began is None else self._now() - self._began

    def remaining(self) -> float | None:
        """Seconds until the last step, as the steps of this process took: with evaluations and
        saves among them, without compiling. None before there is a step to go by.
        """
        done = self.step - self._start
        if self._began is None or done < 1:
            return None
        spent = self._last - self._began - self._compiling.seconds(self._began, self._last)
        return max(0.0, spent / done * (self.total - self.step))


class Rate:
    """Throughput from tokens and seconds, in tokens, FLOPs of the model and share of the peak."""

    def __init__(self, config: Config, model: ModelConfig):
        import jax

        specs = state_specs(config, model)
        trained = set(trained_paths(config, specs))
        flat = spec.flatten(specs)
        frozen = sum(
            spec.count_params({"x": s}) for path, s in flat.items()
            if path not in trained and path.startswith("model/") and "embedding" not in path
        )  # fmt: skip
        tied_head = model.tied_embeddings and not any(
            path in trained for path in flat if path.startswith("model/embedding/tokens")
        )
        frozen += model.vocab_size * model.d_model if tied_head else 0
        adapters = spec.count_params(specs["lora"]) if specs["lora"] else 0
        self._flops = train_flops_per_token(model, config.data.seq_len, frozen, adapters)
        device = jax.devices()[0]
        peak = config.train.peak_flops or peak_flops(device.device_kind)
        self._peak = peak * jax.device_count() if peak else None

    def measure(self, tokens: int, seconds: float) -> Mapping[str, float | None]:
        """`tokens_per_s`, `model_flops_per_s` and `mfu` (None where the peak is unknown)."""
        if seconds <= 0 or not tokens:
            return {}
        per_second = tokens / seconds
        flops = per_second * self._flops
        return {
            "tokens_per_s": round(per_second, 1),
            "model_flops_per_s": round(flops, 1),
            "mfu": round(flops / self._peak, 4) if self._peak else None,
        }


def clock_time(seconds: float) -> str:
    """12 s as "0:12", an hour as "1:00:00"."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def progress_text(pace: Pace) -> str:
    """ "step 7 of 20, 1:02 elapsed, about 2:10 left; evaluating, 0:35"."""
    parts = [f"step {pace.step:,} of {pace.total:,}"]
    if pace.elapsed():
        parts.append(f"{clock_time(pace.elapsed())} elapsed")
    left: Any = pace.remaining()
    if left is not None and pace.step < pace.total:
        parts.append(f"about {clock_time(left)} left")
    now = pace.since_activity()
    return ", ".join(parts) + (f"; {now[0]}, {clock_time(now[1])}" if now else "")
