"""`train`: start or continue a run in a folder; also what `--dry_run` prints."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from reasoning_jax import devices, screen, sharding
from reasoning_jax.commands import runfolder
from reasoning_jax.commands.assemble import (
    Assembly,
    assemble,
    clean_encoder,
    corruption_ids,
    evaluation_items,
    first_examples,
    text_windows,
)
from reasoning_jax.commands.estimate import expected_time
from reasoning_jax.commands.pretrained import feature_model, load_pretrained
from reasoning_jax.config import Config, ObjectiveConfig, to_dict
from reasoning_jax.config_check import batch_tree, check_devices
from reasoning_jax.data.batch import Batch
from reasoning_jax.data.pipeline import BatchSource, Stream, SupervisedSource, fixed_batches
from reasoning_jax.data.staged import CurriculumSource, staged_batches
from reasoning_jax.decoding.sampler import Thinking
from reasoning_jax.durable import replace_text
from reasoning_jax.evaluate.accuracy import Evaluation, EvaluationItem, evaluate_items
from reasoning_jax.evaluate.generation import evaluate_text
from reasoning_jax.model import attention, spec
from reasoning_jax.rl.matched import MatchedSource
from reasoning_jax.train import faults as fault_plans
from reasoning_jax.train import loop, losses
from reasoning_jax.train import state as states
from reasoning_jax.train.compilation import keep_compiled
from reasoning_jax.train.heap import keep_freed_memory
from reasoning_jax.train.program import Program, fresh_state, make_program, plan_memory
from reasoning_jax.vocab import LATENT
from reasoning_jax.weights import read_companions

# Folded into the seed's key; one number a purpose.
KEY_EVALUATE = 2
# layout="auto" considers P2 from this length of rows on: below, it costs more than it saves.
AUTO_P2_ROWS = 128


def train(
    config: Config,
    workdir: Path,
    overrides: Sequence[str],
    quiet: bool = False,
    debug: bool = False,
    faults: str = "",
) -> int:
    """Train to the end, or until preempted. Returns the exit code. `debug` checks identities;
    `faults` is a plan of them (`train/faults.py`).
    """
    plan = fault_plans.parse(faults, workdir)
    runfolder.check_same_run(workdir, config)
    with screen.doing("reading the data and the vocabulary"):
        begun = (workdir / "config.json").exists() and runfolder.has_begun(workdir)
        assembly = assemble(
            config,
            runfolder.read_vocab(workdir) if begun else None,
            saved_horizon=runfolder.read_horizon(workdir) if begun else None,
        )
    program = make_program(assembly.config, assembly.model, assembly.ids, assembly.thoughts, plan)

    # Its source may go away: what a run does not need and an export does is kept from the start.
    kept = None
    if config.weights.path and not runfolder.has_begun(workdir):
        kept = read_companions(config.weights.path)

    def begin() -> None:
        runfolder.open_run(workdir, config, overrides, assembly.vocab)
        if config.sequencematch.horizon == "auto" and config.objective.name == "sequencematch":
            runfolder.write_horizon(workdir, assembly.config)
        runfolder.write_environment(workdir)
        if kept is not None:
            runfolder.keep_pretrained(workdir, kept)

    with runfolder.opened(workdir):
        found = devices.start()
        mesh_shape = check_machine(assembly)
        if not quiet:
            for note in (*assembly.notes, *(kept.notes if kept is not None else ())):
                print(note)
            print(f"{spec.count_params(program.specs):,} parameters, on {found}")
            if line := devices.remark():
                print(line)
            print(batch_tree(config, mesh_shape), flush=True)
            if (expected := expected_time(assembly)) is not None:
                print(expected, flush=True)
            if assembly.staged is not None:
                print("\n".join(assembly.staged.curriculum.schedule()), flush=True)
        with make_run(assembly, program, workdir, plan, debug=debug) as run:
            # All that may refuse the run comes first: a folder that is a run's can only go on.
            return loop.train(dataclasses.replace(run, begin=begin), quiet)


@contextlib.contextmanager
def make_run(
    assembly: Assembly,
    program: Program,
    workdir: Path,
    plan: fault_plans.FaultPlan,
    *,
    debug: bool = False,
    evaluated: bool = True,
) -> Iterator[loop.Run]:
    """All that the loop drives, at step 0, with its mesh in context. Without `evaluated` it cannot
    evaluate, and needs no data for that.
    """
    config = assembly.config
    keep_compiled()
    mesh_shape = check_machine(assembly)
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    mesh = sharding.make_mesh(*mesh_shape)
    with jax.set_mesh(mesh):
        what = "loading the weights" if config.weights.path else "making the parameters"
        with screen.doing(what):
            state = fresh_state(program, mesh, load_pretrained(assembly, mesh))
        with screen.doing("opening the data"):
            source = make_source(assembly, mesh)
            evaluate = _not_evaluated
            if evaluated:
                evaluate = make_evaluate(assembly, mesh, workdir, source)
        yield loop.Run(
            config, assembly.model, workdir, state, source, program.step, program.gradients,
            evaluate, {"config": to_dict(config)}, debug,
            states.make_reset_optimizer(program.tx, program.trained), plan,
        )  # fmt: skip


def _not_evaluated(state: states.TrainState) -> dict[str, float]:
    raise AssertionError("this run was made without evaluation")


def make_source(assembly: Assembly, mesh: jax.sharding.Mesh) -> BatchSource:
    """The training data of a run: with rollouts (SequenceMatch), or in stages (Coconut)."""
    config = assembly.config
    examples, T = assembly.examples("train"), config.data.seq_len
    if assembly.staged is not None:
        measure = None
        if config.latent.advance == "mastery":
            measure = make_mastery(assembly, mesh)
        return CurriculumSource(
            examples, assembly.staged, seed=config.seed, mesh=mesh, measure=measure
        )
    layout = config.objective.layout
    supervised = SupervisedSource(
        examples,
        assembly.encoder,
        batch_rows=config.train.batch_rows,
        seed=config.seed,
        mesh=mesh,
        pack_examples=config.data.pack_examples,
        count_token_rows=layout == "p2" or (layout == "auto" and T >= AUTO_P2_ROWS),
    )
    if config.objective.name != "sequencematch":
        return supervised
    stream = Stream(examples, assembly.encoder, config.seed)
    return MatchedSource(
        supervised, stream, config, assembly.model, assembly.ids, mesh,
        lambda params: states.adapters(params, config),
    )  # fmt: skip


def make_mastery(
    assembly: Assembly, mesh: jax.sharding.Mesh
) -> Callable[[states.TrainState, int], float]:
    """How well a state meets the target of a stage on validation rows: the probability of the
    frontier or, where the target is the rest of the text, the share of rows with all of it right.
    """
    config = assembly.config
    of_stage = functools.cache(functools.partial(evaluated_rows, assembly, mesh, "validation"))
    loss = jax.jit(staged_loss(assembly))

    def measure(state: states.TrainState, stage: int) -> float:
        adapters = states.adapters(state.params, config)
        found = loop.validation_loss(loss, state, of_stage(stage), adapters)
        return found.get("frontier_mass", found["accuracy_rows"])

    return measure


def staged_loss(assembly: Assembly) -> losses.Loss:
    config = assembly.config
    return losses.make_loss(
        assembly.model, config.objective, assembly.ids, thoughts=assembly.thoughts
    )


def evaluated_rows(
    assembly: Assembly, mesh: jax.sharding.Mesh, split: str, stage: int | None
) -> list[Batch]:
    """As many examples as are evaluated as clean rows (of a stage), in batches on the devices."""
    e = assembly.config.evaluate
    examples = first_examples(assembly.examples(split), e.problems)
    rows = min(e.batch_rows, len(examples))
    rows += -rows % sharding.batch_parts(mesh)
    if assembly.staged is not None:
        assert stage is not None
        return staged_batches(examples, assembly.staged, stage, rows, mesh)
    encoder = clean_encoder(assembly.encoder)
    return [
        Batch(**{n: sharding.place_rows(x, mesh) for n, x in b.items()})
        for b in fixed_batches(examples, encoder, rows, assembly.config.seed)
    ]


def check_machine(assembly: Assembly) -> tuple[int, int, int]:
    """The mesh shape on this machine's devices.

    Raises:
      ConfigError: they do not divide what the config says, or cannot attend as it says.
    """
    config = assembly.config
    attention.check(dataclasses.replace(assembly.model, attention=config.model.attention))
    return check_devices(config, assembly.model, jax.device_count())


def dry_run(config: Config) -> int:
    """Print shapes, parameters, memory per device and the batch tree; allocate nothing."""
    with screen.doing("reading the data and the vocabulary"):
        assembly = assemble(config)
    program = make_program(assembly.config, assembly.model, assembly.ids, assembly.thoughts)
    devices.start()
    mesh_shape = check_machine(assembly)
    mesh = sharding.make_mesh(*mesh_shape)
    with jax.set_mesh(mesh):
        for note in assembly.notes:
            print(note)
        print(batch_tree(config, mesh_shape))
        print(parameter_table(program, mesh))
        batch = None
        if assembly.staged is not None:
            # Rows of the last stage: with the most thoughts.
            rows = config.train.batch_rows
            examples = first_examples(assembly.examples("train"), rows)
            last = assembly.staged.curriculum.last
            (batch,) = staged_batches(examples, assembly.staged, last, rows, mesh)
        with screen.doing("compiling the training step"):
            memory = plan_memory(program, mesh, batch)
    print("bytes per device")
    for name, size in {**memory, "total": sum(memory.values())}.items():
        print(f"  {name:<24} {size:>16,}  {size / 2**20:10.1f} MiB")
    return 0


def parameter_table(program: Program, mesh: jax.sharding.Mesh) -> str:
    """One line a parameter: path, shape, sharding, whether it is trained."""
    lines = []
    for path, s in spec.flatten(program.specs).items():
        split = sharding.param_spec(s.axes, s.shape, mesh)
        mark = "" if path in program.trained else "  frozen"
        lines.append(f"  {path:<44} {s.shape!s:<24} {tuple(split)}{mark}")
    trained = {p: s for p, s in spec.flatten(program.specs).items() if p in program.trained}
    total, some = spec.count_params(program.specs), spec.count_params(trained)
    return "\n".join([f"{total:,} parameters, {some:,} trained", *lines])


def make_evaluate(
    assembly: Assembly,
    mesh: jax.sharding.Mesh,
    workdir: Path,
    source: BatchSource,
) -> Callable[[states.TrainState], dict[str, float]]:
    """Evaluation of a state on the configured split: clean loss, and what `make_measure` measures;
    of a curriculum, on rows and prompts of the source's present stage.

    Writes `eval/step_N.json` and `samples/step_N.jsonl`; returns the scalars.
    """
    config = assembly.config
    split = config.evaluate.split
    rows = functools.cache(functools.partial(evaluated_rows, assembly, mesh, split))
    measure = functools.cache(functools.partial(make_measure, assembly, mesh))
    if assembly.staged is None:
        loss = losses.make_loss(assembly.model, ObjectiveConfig("mle"), assembly.ids)
    else:
        loss = staged_loss(assembly)
    loss = jax.jit(loss)
    # What does not fit or is not there is found before training.
    present = source.meta().get("stage")
    rows(present)
    measure(present)

    def evaluate(state: states.TrainState) -> dict[str, float]:
        stage = source.meta().get("stage")
        adapters = states.adapters(state.params, config)
        scalars = loop.validation_loss(loss, state, rows(stage), adapters)
        result = measure(stage)(state.params)
        write_evaluation(workdir, int(state.step), split, result)
        return {**scalars, **{n: m.to_dict()["value"] for n, m in result.metrics.items()}}

    return evaluate


def make_measure(
    assembly: Assembly, mesh: jax.sharding.Mesh, stage: int | None = None
) -> Callable[[spec.Params], Evaluation]:
    """All measures for given parameters: of problems (of a curriculum, as the stage poses them), or
    of text. Depends on the seed alone.

    Raises:
      ConfigError, DataError: what is evaluated on does not fit or is not there.
    """
    config, e = assembly.config, assembly.config.evaluate
    if config.data.source != "text":
        items = evaluation_items(assembly, e.split, e.problems, stage)
        return lambda params: run_evaluation(assembly, mesh, params, items)
    windows = text_windows(assembly, e.split, e.problems)
    load_features = feature_model(assembly, mesh) if e.mauve else None

    def measure(params: spec.Params) -> Evaluation:
        adapters = states.adapters(params, config)
        features = load_features(params) if load_features else None
        return evaluate_text(
            params["model"], adapters, assembly.model, assembly.vocab, config.sampling, windows,
            prompt_tokens=e.prompt_tokens, batch_rows=e.batch_rows, saved_samples=e.saved_samples,
            key=jax.random.fold_in(jax.random.key(config.seed), KEY_EVALUATE), mesh=mesh,
            floor_masked=assembly.ids.floor_masked, features=features,
        )  # fmt: skip

    return measure


def run_evaluation(
    assembly: Assembly,
    mesh: jax.sharding.Mesh,
    params: spec.Params,
    items: Sequence[EvaluationItem],
) -> Evaluation:
    """All measures of `evaluate.accuracy` for given parameters. Depends on the seed alone."""
    config = assembly.config
    e = config.evaluate
    return evaluate_items(
        params["model"], states.adapters(params, config), assembly.model, assembly.vocab,
        config.sampling, items,
        samples_per_problem=e.samples_per_problem, ks=e.pass_at_k,
        corrupt_tokens=e.corrupt_tokens,
        corrupt_ids=corruption_ids(assembly.vocab, assembly.task),
        batch_rows=e.batch_rows, saved_samples=e.saved_samples,
        key=jax.random.fold_in(jax.random.key(config.seed), KEY_EVALUATE), seed=config.seed,
        mesh=mesh, floor_masked=assembly.ids.floor_masked, corrupt_also=e.corrupt_also,
        thinking=Thinking(assembly.thoughts) if assembly.thoughts is not None else None,
        controls=e.thought_controls,
        latent_id=assembly.vocab.specials.get(LATENT, -1) if assembly.staged else None,
    )  # fmt: skip


def write_evaluation(
    workdir: Path, step: int, split: str, result: Evaluation, other: str = ""
) -> None:
    """The files of one evaluation, as the report reads them; with `other`, one that differs from
    the run's own is kept beside it by that name.
    """
    values = result.to_dict()
    n = max(m["n"] for m in values["metrics"].values())
    if other:
        folder = workdir / "eval" / "other"
        values = {"step": step, "split": split, "n_problems": n, **values}
        runfolder.write_json(folder / f"step_{step:08d}_{other}.json", values)
        return
    runfolder.write_json(
        workdir / "eval" / f"step_{step:08d}.json",
        {"step": step, "split": split, "n_problems": n, **values},
    )
    folder = workdir / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": step, **sample}) + "\n" for sample in result.samples]
    replace_text(folder / f"step_{step:08d}.jsonl", "".join(lines))
