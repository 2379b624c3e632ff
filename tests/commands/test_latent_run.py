"""A run with thoughts, from training on: what evaluate and sample make of its stage, and refuse."""

import contextlib
import io
import json

import pytest

from reasoning_jax import main
from reasoning_jax.tasks.prosqa import ProsQA

CONFIG = """
from reasoning_jax import config as rc
from reasoning_jax.tasks import task_dials


def get_config(arg: str = ""):
    arg = rc.parse_arg(arg, target="next_step", mode="coconut")
    config = rc.default_config()
    fused = arg.target == "next_step"
    config.task = {
        "name": "prosqa", **task_dials("prosqa"), "family": "mirrored",
        "form": "fused" if fused else "text", "min_hops": 2, "max_hops": 2,
    }
    config.vocab.kind = "pair" if fused else "word"
    config.vocab.backspace, config.vocab.latent = False, True
    config.data.seq_len = 96
    config.data.train_problems = 1000
    config.data.answer_prefix = " [A] " if fused else "### "
    config.data.question_suffix = config.data.step_suffix = " " if fused else "\\n"
    config.latent.mode, config.latent.target = arg.mode, arg.target
    if arg.mode == "coconut":
        config.latent.max_latent_stage = 2
        config.latent.stage_steps = (2, 2)
        config.latent.markers = not fused
    config.model.n_layers, config.model.d_model = 2, 16
    config.model.n_heads = config.model.n_kv_heads = 2
    config.model.head_dim, config.model.d_ff = 8, 16
    config.train.steps, config.train.batch_rows = 4, 8
    config.train.log_every_steps = config.train.checkpoint_every_steps = 2
    config.optimizer.warmup_steps = 1
    config.sampling.max_actions = 2 if fused else 24
    config.sampling.temperature = 0.0
    config.evaluate.problems = config.evaluate.batch_rows = 8
    config.evaluate.corrupt_tokens = 0
    return config
"""


def run(*argv):
    """(exit code, what was printed, what was said of mistakes)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main.run(["reasoning-jax", *map(str, argv)])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of 4 steps: stage 0 for two of them, then 1; checkpoints at 2 and 4."""
    import jax

    folder = tmp_path_factory.mktemp("latent")
    (folder / "tiny.py").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        device = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda: device)
        patch.setattr(jax, "device_count", lambda: 1)
        jax.config.update("jax_disable_most_optimizations", True)
        code, _, err = run("train", f"--config={folder}/tiny.py", f"--workdir={folder}/run")
        assert code == 0, err
        yield folder / "run"
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def question():
    task = ProsQA(form="fused", family="mirrored", min_hops=2, max_hops=2)
    return task.problem(1, "validation").question


def test_evaluate_poses_problems_as_the_checkpoint_s_stage_does(workdir):
    # Catches: every checkpoint measured as one of the last stage.
    for step, stage in ((2, 0), (4, 1)):
        code, out, err = run("evaluate", f"--workdir={workdir}", f"--checkpoint={step}")
        assert (code, err) == (0, "")
        assert out.startswith(f"step {step}, stage {stage}, validation split")
        metrics = json.loads((workdir / "eval" / f"step_{step:08d}.json").read_text())["metrics"]
        # Thoughts are counted as tokens: of the completion there are two more at most.
        assert stage < metrics["tokens"]["value"] <= stage + 2
        assert "choice" in metrics


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ([], " [R] {root}  <1 thought> [A] "),
        (["--checkpoint=2"], " [R] {root}  [A] "),
        (["--config.evaluate.thoughts=2"], " [R] {root}  <2 thoughts> [A] "),
    ],
    ids=["newest", "first stage", "forced"],
)
def test_sample_thinks_as_the_stage_or_as_told(workdir, question, flags, shown):
    # Catches: a prompt without its thoughts; the stage of another checkpoint; a batch of one row.
    code, out, err = run("sample", f"--workdir={workdir}", f"--prompt={question}", *flags)
    assert (code, err) == (0, "")
    assert shown.format(root=question.split()[-1]) in out
    assert "cut off" not in out


def test_sample_needs_no_data(workdir, question):
    code, _, err = run(
        "sample", f"--workdir={workdir}", f"--prompt={question}",
        "--config.data.source=jsonl", "--config.data.path=gone.jsonl",
    )  # fmt: skip
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    "changes",
    [{"c_thought": 2}, {"max_latent_stage": 1, "stage_steps": "(2,2)"}, {"thought": "residual"}],
    ids=["c_thought", "max_latent_stage", "thought"],
)
@pytest.mark.parametrize("command", ["evaluate", "sample"])
def test_another_curriculum_is_refused_by_its_key(workdir, question, command, changes):
    # Catches: a checkpoint read as if it had been trained with another number of thoughts.
    flags = [f"--config.latent.{key}={value}" for key, value in changes.items()]
    flags += [f"--prompt={question}"] if command == "sample" else []
    code, _, err = run(command, f"--workdir={workdir}", *flags)
    assert code == 2
    assert f"latent.{next(iter(changes))} differs" in err
    assert "evaluate.thoughts" in err


def test_a_word_that_the_vocabulary_lacks_is_named_before_a_checkpoint_is_read(workdir):
    code, _, err = run("sample", f"--workdir={workdir}", "--prompt=0>1 [Q] 1 99 [R] 0")
    assert code == 2
    assert "'99'" in err
