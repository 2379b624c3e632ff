"""`probe`: what the thoughts of a run hold, on ProsQA's graphs: numbers, pictures and a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from reasoning_jax import screen
from reasoning_jax.analysis import latent_probe as lp
from reasoning_jax.analysis import summary
from reasoning_jax.commands import runfolder
from reasoning_jax.commands.assemble import Assembly
from reasoning_jax.commands.load import Trained, load_assembly, restore
from reasoning_jax.config import Config, ConfigError
from reasoning_jax.data.examples import example_of
from reasoning_jax.report.load import load_run
from reasoning_jax.report.probe import write_probe
from reasoning_jax.tasks.base import TaskError
from reasoning_jax.tasks.prosqa import read_question
from reasoning_jax.train.state import adapters

# Folded into the seed's key; see commands/train.py for the others.
KEY_PROBE = 5
# Problems of which the thoughts are decoded, and tokens of each.
_DECODED = 8
_TOP_TOKENS = 5
_CURVES = (1, 2)


def probe(
    config: Config,
    workdir: Path,
    step: int | None,
    *,
    problem: int = 0,
    problems: int | None = None,
    prompt: str | None = None,
    out: Path | None = None,
) -> int:
    """Write probe.json, pictures and index.html into `out` (default: the run's folder probe/).

    All analyses are on the first `problems` (default: evaluate.problems) of the evaluated split;
    the tree is drawn of number `problem` of that split, or of the question `prompt`.

    Raises:
      ConfigError: a run without thoughts or not on ProsQA's questions, or a prompt that is none.
    """
    assembly = load_assembly(config, workdir)
    if assembly.thoughts is None or not config.latent.c_thought:
        raise ConfigError(
            f"probe needs a run with thoughts; {workdir} has latent.mode={config.latent.mode!r}, "
            f"latent.c_thought={config.latent.c_thought}"
        )
    # What may be damaged is read before the work.
    norms = _norms(workdir)
    cases = _cases(assembly, problems or config.evaluate.problems)
    shown = _shown(assembly, cases, problem, prompt)
    trained = restore(assembly, workdir, step)
    with jax.set_mesh(trained.mesh), screen.doing(f"reading thoughts on {len(cases)} problems"):
        subject = _subject(trained)
        _check_room(subject, [shown, *cases])
        result = {
            "run": workdir.resolve().name,
            "step": trained.step,
            "stage": trained.stage,
            "split": config.evaluate.split,
            "problems": len(cases),
            "form": shown.question.form,
            "target": config.latent.target,
            **analyse(subject, shown, cases, config),
        }
    result["tree"]["problem"] = problem if prompt is None else None
    result["thought_norm"] = norms
    folder = workdir / "probe" if out is None else out
    try:
        runfolder.write_json(folder / "probe.json", result)
        page = write_probe(result, folder)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}") from None
    print("\n".join(lines(result)))
    print(f"probe: {page}")
    return 0


def _cases(assembly: Assembly, count: int) -> list[lp.Case]:
    source = assembly.examples(assembly.config.evaluate.split)
    try:
        return [lp.read_case(source[i]) for i in range(min(count, len(source)))]
    except TaskError as error:
        raise ConfigError(
            f"probe reads ProsQA's graphs, and this run's questions are none: {error}"
        ) from None


def _shown(
    assembly: Assembly, cases: Sequence[lp.Case], problem: int, prompt: str | None
) -> lp.Case:
    """The problem of which the tree is drawn. Raises ConfigError."""
    if prompt is None:
        source = assembly.examples(assembly.config.evaluate.split)
        if not 0 <= problem < len(source):
            raise ConfigError(f"--problem={problem}: the split has problems 0 to {len(source) - 1}")
        return lp.read_case(source[problem])
    try:
        case = lp.read_case(example_of(read_question(prompt), 0))
    except TaskError as error:
        raise ConfigError(f"--prompt: {error}") from None
    wanted = cases[0].question.form
    if case.question.form != wanted:
        raise ConfigError(
            f"--prompt is of the form {case.question.form!r}, the run's questions are {wanted!r}, "
            f"such as {cases[0].example.question[:120]!r}"
        )
    assembly.encoder.prompt_ids(prompt)
    return case


def _subject(trained: Trained) -> lp.Subject:
    assembly = trained.assembly
    assert assembly.staged is not None
    assert assembly.thoughts is not None
    return lp.Subject(
        trained.params["model"], adapters(trained.params, assembly.config), assembly.model,
        assembly.staged, assembly.thoughts, trained.mesh, assembly.config.evaluate.batch_rows,
    )  # fmt: skip


def _check_room(subject: lp.Subject, cases: Sequence[lp.Case]) -> None:
    config = subject.staged.encoder.data
    longest = max(len(lp.context(subject, case, subject.most, True)) for case in cases)
    if subject.config.position == "learned" and longest > subject.config.max_positions:
        raise ConfigError(
            f"a question with its thoughts needs {longest} positions, the model has "
            f"{subject.config.max_positions} (data.seq_len={config.seq_len})"
        )


def analyse(
    subject: lp.Subject, shown: lp.Case, cases: Sequence[lp.Case], config: Config
) -> dict[str, Any]:
    """Every measure of `analysis` on `cases`, and the tree of `shown`."""
    key = jax.random.fold_in(jax.random.key(config.seed), KEY_PROBE)
    most = subject.most
    # One batch for both, so that each number of thoughts is compiled once.
    every = [*cases, *([shown] if shown not in cases else [])]
    n, at = len(cases), every.index(shown)
    values = {k: lp.step_values(subject, every, k, key) for k in range(most)}
    traced = lp.read_thoughts(subject, every, most)
    # Where the rest is written out, an answer is asked for only when nothing is left to write.
    answering = range(most + 1) if subject.staged.alone else (most,)
    answered = {k: lp.answer_values(subject, every, k, key) for k in answering}
    return {
        "tree": tree(shown, {k: of_k[at] for k, of_k in values.items()}, answered[most][at])
        | {"decoded": lp.decoded(subject, traced.states[at], _TOP_TOKENS)},
        "k_sweep": sweep(subject, cases, answered, config, key),
        **next_concepts(cases, {k: of_k[:n] for k, of_k in values.items()}),
        **inside(subject, cases, traced),
    }


def tree(case: lp.Case, values: Mapping[int, np.ndarray], answer: np.ndarray) -> dict[str, Any]:
    """A problem's graph and each node's probability after every number of thoughts that leaves
    steps to go, and as the answer after all.
    """
    dag = case.dag
    panels = [
        {"thoughts": k, "what": "next concept", "values": _plain(value)}
        for k, value in values.items()
        if k < dag.hops
    ]
    last = {"thoughts": max(values) + 1, "what": "answer", "values": _plain(answer)}
    return {
        "question": case.example.question,
        "answer": case.answer,
        "symbols": list(dag.symbols),
        "edges": [list(edge) for edge in dag.edges],
        "root": dag.root,
        "target": dag.target,
        "neg_target": dag.neg_target,
        "panels": [*panels, last],
    }


def sweep(
    subject: lp.Subject,
    cases: Sequence[lp.Case],
    answered: Mapping[int, Sequence[np.ndarray]],
    config: Config,
    key: jax.Array,
) -> list[dict[str, Any]]:
    """For every number of thoughts what comes of them; "choice": whether the right one of the two
    is the more probable answer, where it is asked for.
    """
    sampling = replace(config.sampling, method="sample")
    rows = []
    for k in range(subject.most + 1):
        outcomes = lp.answers(subject, cases, k, sampling, key)
        row = {
            "thoughts": k,
            "accuracy": summary.measure([o.right for o in outcomes]),
            "categories": summary.category_shares([o.category for o in outcomes]),
        }
        if k in answered:
            pairs = zip(answered[k], (case.dag for case in cases))
            chosen = [value[dag.target] > value[dag.neg_target] for value, dag in pairs]
            row["choice"] = summary.measure(chosen)
        rows.append(row)
    return rows


def next_concepts(
    cases: Sequence[lp.Case], values: Mapping[int, Sequence[np.ndarray]]
) -> dict[str, Any]:
    """Where the next concept's probability is, by thoughts, over problems, and by height."""
    dags = [case.dag for case in cases]
    depths = {k: [lp.candidate_depth(case, k) for case in cases] for k in values}

    def over(function: Callable[..., Any], k: int) -> Any:
        return {"thoughts": k, **function(dags, values[k], depths[k])}

    # The value of every candidate behind at least one thought, whatever k.
    behind = [k for k in values if k]
    pooled = (
        dags * len(behind),
        [value for k in behind for value in values[k]],
        [depth for k in behind for depth in depths[k]],
    )
    return {
        "next_concept": [over(summary.next_concepts, k) for k in values],
        "parallelism": [over(summary.parallelism, k) for k in _CURVES if k in values],
        "height": {kind: summary.by_height(*pooled, kind) for kind in ("longest", "shortest")},
    }


def inside(subject: lp.Subject, cases: Sequence[lp.Case], traced: lp.Traced) -> dict[str, Any]:
    """Attention, inner products and tokens of the thoughts."""
    dags = [case.dag for case in cases]
    steps = range(1, subject.most + 1)
    layers = lp.traced_layers(subject.config)
    attention = [
        {
            "step": i,
            "layer": number + 1,
            "groups": summary.by_group(
                [dag.edge_groups(i) for dag in dags],
                [
                    lp.edge_attention(subject, case, weights, i, place)
                    for case, weights in zip(cases, traced.attention)
                ],
            ),
        }
        for place, number in enumerate(layers)
        for i in steps
    ]
    products = [
        {
            "step": i,
            "groups": summary.by_group(
                [dag.node_groups(i) for dag in dags],
                [lp.node_products(subject, c, x, i) for c, x in zip(cases, traced.inputs)],
            ),
        }
        for i in steps
    ]
    return {
        "attention": attention,
        "inner_products": products,
        "decoded": [
            {"question": case.example.question, "thoughts": lp.decoded(subject, x, _TOP_TOKENS)}
            for case, x in zip(cases[:_DECODED], traced.states)
        ],
    }


def _norms(workdir: Path) -> dict[str, list[float]]:
    """The thoughts' norm over that of embeddings, as training logged it."""
    steps, values = load_run(workdir, workdir.name).series("train", "thought_norm")
    known = np.isfinite(values)
    return {"steps": steps[known].tolist(), "values": values[known].tolist()}


def _plain(values: np.ndarray) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]


def lines(result: dict[str, Any]) -> list[str]:
    """What the terminal shows: accuracy and the mass on the frontier, by thoughts."""
    said = [f"step {result['step']}, {result['problems']} {result['split']} problems"]
    masses = {row["thoughts"]: row.get("frontier_mass") for row in result["next_concept"]}
    for row in result["k_sweep"]:
        k, accuracy = row["thoughts"], row["accuracy"]
        error = "" if accuracy["stderr"] is None else f" ± {100 * accuracy['stderr']:.1f}"
        line = (
            f"  {k} thought{' ' if k == 1 else 's'}  right {100 * accuracy['value']:5.1f}{error} %"
        )
        if mass := masses.get(k):
            line += f"   next concept on the frontier {100 * mass['value']:.1f} %"
        said.append(line)
    return said
