"""Synthetic run folders: what `train` writes, from a seeded generator, of any length."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from reasoning_jax.report import replay
from reasoning_jax.report.load import load_runs
from reasoning_jax.report.page import render_page

CONFIG: dict[str, Any] = {
    "seed": 0,
    "model": {"d_model": 128, "n_layers": 4, "n_heads": 4, "mlp": "swiglu", "qk_norm": False},
    "vocab": {"kind": "char", "backspace": True},
    "task": {"name": "arithmetic", "digits": 3, "operations": ["+", "-"]},
    "noise": {"rate": 0.1, "run_length": 2, "source": "task"},
    "objective": {"name": "bc", "layout": "p1", "gamma": 0.99},
    "optimizer": {"name": "adamw", "learning_rate": 0.001, "warmup_steps": 100},
    "train": {"steps": 2000, "batch_rows": 64, "log_every_steps": 10},
}
ENV = {
    "python": "3.11.9",
    "jax": "0.10.2",
    "device_kind": "NVIDIA H200",
    "device_count": 1,
    "commit": "4f0c1be29ad0e71c",
    "hostname": "node-17",
    "started_at": "2026-11-20T09:14:03Z",
    "command": ["reasoning-jax", "train", "--config=configs/quickstart.py"],
}


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path: Path, values: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def action(text: str, kind: str = "token", logprob: float = -0.1, forced: bool = False) -> dict:
    return {"text": text, "kind": kind, "logprob": logprob, "forced": forced}


def sample(step: int, actions: list[dict], **fields: Any) -> dict[str, Any]:
    """A sample whose recorded text is what its actions replay to."""
    states = replay(actions, fields.get("deletable", ()))
    default = {
        "step": step,
        "kind": "corrupted" if fields.get("deletable") else "clean",
        "prompt": "7+5=" + "".join(fields.get("deletable", ())),
        "question": "7+5=",
        "answer": "12",
        "text": states[-1] if states else "",
        "correct": False,
        "difficulty": "digits=1",
        "actions": actions,
    }
    return {**default, **fields}


def draw_sample(rng: np.random.Generator, step: int, skill: float, retracts: float) -> dict:
    """Adds two numbers a line at a time, erring now and then, and taking errors back."""
    digits = int(rng.integers(1, 5))
    a, b = (int(rng.integers(10 ** (digits - 1), 10**digits)) for _ in range(2))
    target = "".join(f"{i}: {x}\n" for i, x in enumerate(str(a + b)[::-1])) + f"= {a + b}"
    corrupted = bool(rng.integers(2))
    stack = [target[0], str(rng.integers(10))] if corrupted else []
    wanted = list(target)
    deletable, actions = list(stack), []
    while len(actions) < 60:
        right = len(stack) <= len(wanted) and stack == wanted[: len(stack)]
        if not right and rng.random() < retracts:
            actions.append(action("", "backspace", math.log(0.55 + 0.44 * rng.random())))
            stack.pop()
        elif len(stack) >= len(wanted):
            actions.append(action("", "eos", -0.02))
            break
        else:
            good = rng.random() < skill
            text = wanted[len(stack)] if good else str(rng.integers(10))
            low, high = (0.75, 0.999) if good else (0.05, 0.5)
            actions.append(action(text, "token", math.log(rng.uniform(low, high))))
            stack.append(text)
    fields = {"question": f"{a}+{b}=", "answer": target, "correct": stack == wanted}
    prompt = fields["question"] + "".join(deletable)
    return sample(
        step, actions, prompt=prompt, deletable=deletable, difficulty=f"digits={digits}", **fields
    )


def estimate(rng: np.random.Generator, mean: float, n: int) -> dict[str, Any]:
    mean = float(np.clip(mean, 0.001, 0.999))
    value = rng.binomial(n, mean) / n
    return {"value": value, "stderr": math.sqrt(value * (1 - value) / n), "n": n}


def metrics_at(rng: np.random.Generator, t: float, n: int, skill: float, retracts: float) -> dict:
    solved = skill / (1 + math.exp(-9 * (t - 0.35)))
    return {
        "exact_match": estimate(rng, solved, n),
        "corrupted_exact_match": estimate(rng, solved * (0.06 + 0.9 * retracts), n),
        "pass@1": estimate(rng, solved, n),
        "pass@4": estimate(rng, 1 - (1 - solved) ** 2.2, n),
        "backspace_corrupted": estimate(rng, retracts / (1 + math.exp(-12 * (t - 0.2))), n),
        "backspace_clean": estimate(rng, retracts * (0.16 * math.exp(-5 * t) + 0.01), n),
        "backspaces_per_completion": {
            "value": retracts * 3 * math.exp(-2 * t) + 0.02 * rng.random(),
            "stderr": 0.05,
            "n": n,
        },
        "truncated": estimate(rng, 0.3 * math.exp(-6 * t) + 0.004, n),
    }


def metric_rows(
    rng: np.random.Generator, steps: int, every: int, floor: float, step_s: float
) -> Iterator[dict[str, Any]]:
    elapsed = 8.0
    for step in range(every, steps + 1, every):
        t, noise = step / steps, float(rng.normal())
        loss = floor + 2.6 * math.exp(-6 * t)
        spent = {"data_s": 0.02 * every * step_s, "step_s": 0.8 * every * step_s}
        spent |= {"evaluate_s": 0.1 * every * step_s, "checkpoint_s": 0.03 * every * step_s}
        elapsed += every * step_s
        rate = 64 * 64 / step_s * (1 + 0.03 * noise)
        time = {"elapsed_s": elapsed, **spent, "tokens_per_s": rate, "mfu": 0.31 + 0.01 * noise}
        yield {
            "step": step,
            "split": "train",
            "loss": loss * (1 + 0.05 * noise),
            "accuracy": 0.985 - 0.2 * (loss - floor) + 0.004 * noise,
            "grad_norm": 0.4 * math.exp(0.35 * noise) + 6 * math.exp(-12 * t),
            "learning_rate": 1e-3 * min(step / 100, 0.5 + 0.5 * math.cos(math.pi * t)),
            "tokens": every * 64 * 64,
            "noise_kept": 0.9 + 0.01 * noise,
            "time": time,
        }
        if step % (every * max(1, steps // every // 30)) == 0:
            validation = {"loss": loss * 1.03 + 0.01, "accuracy": 0.98 - 0.2 * (loss - floor)}
            yield {"step": step, "split": "validation", **validation}


def write_run(
    path: Path,
    *,
    seed: int = 0,
    steps: int = 200,
    every: int = 20,
    evaluations: int = 2,
    samples: int = 4,
    retracts: float = 0.95,
    changes: dict[str, Any] | None = None,
) -> Path:
    """A run folder; `changes` maps section names of the config to entries laid over them."""
    rng = np.random.default_rng(seed)
    sections = {name: {**CONFIG[name], **new} for name, new in (changes or {}).items()}
    write_json(path / "config.json", {**CONFIG, **sections})
    changed = [f"{s}.{k}={v}" for s, new in (changes or {}).items() for k, v in new.items()]
    write_json(path / "overrides.json", changed)
    write_json(path / "env.json", ENV)
    rows = metric_rows(rng, steps, every, 0.12 + 0.05 * (1 - retracts), 0.11 + 0.02 * retracts)
    write_lines(path / "metrics.jsonl", list(rows))
    for index in range(1, evaluations + 1):
        step = steps * index // evaluations
        t, skill = index / evaluations, 0.82 + 0.12 * retracts
        groups = {f"digits={d}": 1.04 * skill * (1 - 0.06 * (d - 1)) for d in (1, 2, 3, 4, 10)}
        evaluation = {
            "step": step,
            "split": "validation",
            "n_problems": 512,
            "metrics": metrics_at(rng, t, 512, skill, retracts),
            "by_difficulty": {k: metrics_at(rng, t, 128, v, retracts) for k, v in groups.items()},
        }
        write_json(path / f"eval/step_{step:08d}.json", evaluation)
        drawn = [draw_sample(rng, step, 0.55 + 0.38 * t, retracts) for _ in range(samples)]
        write_lines(path / f"samples/step_{step:08d}.jsonl", drawn)
    return path


def write_page(runs: list[Path], output: Path) -> Path:
    """A report without its figures, for tests that are not about them."""
    output.write_bytes(render_page(load_runs(runs), []).encode(errors="replace"))
    return output
