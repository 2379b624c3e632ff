"""A run with thoughts, from training on: what evaluate and sample make of its stage, and refuse."""

import contextlib
import io
import json
import shutil

import pytest

from reasoning_jax import main
from reasoning_jax.commands.assemble import assemble
from reasoning_jax.config import Config, to_dict
from reasoning_jax.config_check import from_dict
from reasoning_jax.tasks import task_dials
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
    """(exit code, what was printed, what was said of mistakes: --quiet leaves out the rest)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main.run(["reasoning-jax", *map(str, argv), "--quiet"])
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


def test_another_number_of_thoughts_does_not_take_the_place_of_the_run_s_own(workdir):
    """A table of a reproduction reads the run's own evaluation."""
    # Catches: evaluate --config.evaluate.thoughts=2 over the file that is reported.
    assert run("evaluate", f"--workdir={workdir}")[0] == 0
    own = (workdir / "eval" / "step_00000004.json").read_text()
    code, _, _ = run("evaluate", f"--workdir={workdir}", "--config.evaluate.thoughts=2")
    assert code == 0
    assert (workdir / "eval" / "step_00000004.json").read_text() == own
    (other,) = (workdir / "eval" / "other").glob("step_00000004_*.json")
    assert json.loads(other.read_text())["metrics"]["tokens"]["value"] >= 2
    # Another split or number of problems is the same measure.
    assert run("evaluate", f"--workdir={workdir}", "--config.evaluate.problems=4")[0] == 0
    assert json.loads((workdir / "eval" / "step_00000004.json").read_text())["n_problems"] == 4


def test_a_dry_run_plans_the_thoughts_too(workdir):
    # Catches: the memory of a plain step, with logits of every column.
    code, out, err = run("train", f"--config={workdir.parent}/tiny.py", "--dry_run")
    assert (code, err) == (0, "")
    assert "temporaries of the step" in out


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


def test_sample_needs_no_data(workdir, question, tmp_path):
    # Catches: the data of a run opened for a command that continues prompts.
    copy = shutil.copytree(workdir, tmp_path / "run")
    config = json.loads((copy / "config.json").read_text())
    config["data"].update(source="jsonl", path="gone.jsonl")
    (copy / "config.json").write_text(json.dumps(config))
    code, _, err = run("sample", f"--workdir={copy}", f"--prompt={question}")
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


def test_probe_writes_numbers_pictures_and_a_page(workdir, tmp_path):
    # Catches: an analysis that does not fit the form; a picture that is named and not written.
    out = tmp_path / "probe"
    code, said, err = run(
        "probe", f"--workdir={workdir}", f"--out={out}", "--problems=4", "--problem=2"
    )
    assert (code, err) == (0, "")
    assert "step 4, 4 validation problems" in said
    found = json.loads((out / "probe.json").read_text())
    assert (found["step"], found["stage"], found["problems"]) == (4, 1, 4)
    assert [row["thoughts"] for row in found["k_sweep"]] == [0, 1, 2]
    for row in found["k_sweep"]:
        assert row["accuracy"]["n"] == row["choice"]["n"] == 4
        assert sum(m["value"] for m in row["categories"].values()) == pytest.approx(1)
    tree = found["tree"]
    assert tree["problem"] == 2
    assert [p["what"] for p in tree["panels"]] == ["next concept", "next concept", "answer"]
    assert all(len(p["values"]) == len(tree["symbols"]) for p in tree["panels"])
    assert all(0 < sum(p["values"]) < 1 for p in tree["panels"])
    assert {(row["layer"], row["step"]) for row in found["attention"]} == {
        (1, 1), (1, 2), (2, 1), (2, 2)
    }  # fmt: skip
    assert len(found["decoded"]) == 4
    assert len(found["thought_norm"]["steps"]) == 1  # of the rows of stage 1
    page = (out / "index.html").read_text()
    names = {"tree", "k_sweep", "next_concept", "parallelism", "height", "attention"}
    for name in names | {"inner_products", "thought_norm"}:
        for file in (f"{name}.png", f"{name}_dark.png"):
            assert (out / file).read_bytes().startswith(b"\x89PNG")
        assert f'id="{name}"' in page
    assert "http" not in page.replace("http-equiv", "")


def test_probe_draws_a_question_of_the_user_s(workdir, tmp_path):
    # Catches: the wrong one of the two choices as the target; the split's problem in its place.
    question = "4>1 0>2 2>3 4>5 0>6 1>7 [Q] 7 3 [R] 0"
    out = tmp_path / "typed"
    code, _, err = run(
        "probe", f"--workdir={workdir}", f"--out={out}", "--problems=4", f"--prompt={question}"
    )
    assert (code, err) == (0, "")
    tree = json.loads((out / "probe.json").read_text())["tree"]
    assert (tree["problem"], tree["question"], tree["answer"]) == (None, question, "3")
    assert tree["symbols"][tree["neg_target"]] == "7"


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--prompt=How many?"], "--prompt: prosqa: 'How many?' is not a question"),
        (["--prompt=0>1 0>2 [Q] 1 2 [R] 0"], "exactly one must be reachable"),
        (["--prompt=0 1 | 2 3 [Q] 1 3 [R] 0"], "the form 'symbolic'"),
        (["--prompt=0>1 2>33 [Q] 1 33 [R] 0"], "'2>33'"),
        (["--prompt=0>1 2>3 [Q] 1 3 [R] 0", "--problem=1"], "one of --problem=INDEX and --prompt"),
        (["--problem=100000000"], "the split has problems 0 to"),
        (["--problems=0"], "problems"),
        (["--checkpoint=3"], "there are 2, 4"),
        (["--samples=3"], "probe does not take --samples"),
    ],
)
def test_probe_refuses(workdir, flags, what):
    code, _, err = run("probe", f"--workdir={workdir}", "--config.evaluate.problems=4", *flags)
    assert code == (4 if "--checkpoint=3" in flags else 2)
    assert what in err


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"latent": {"mode": "off"}}, "latent.mode='off'"),
        ({"latent": {"mode": "pause", "max_latent_stage": 2}}, "latent.mode='pause'"),
    ],
)
def test_a_run_without_thoughts_is_not_probed(workdir, tmp_path, changes, what):
    other = tmp_path / "other"
    other.mkdir()
    (other / "checkpoints").mkdir()
    config = json.loads((workdir / "config.json").read_text())
    defaults = to_dict(Config())
    config["latent"] = defaults["latent"] | changes["latent"]
    (other / "config.json").write_text(json.dumps(config))
    (other / "vocab.json").write_text((workdir / "vocab.json").read_text())
    code, _, err = run("probe", f"--workdir={other}")
    assert code == 2
    assert "probe needs a run with thoughts" in err
    assert what in err


def test_a_task_without_graphs_is_not_probed(tmp_path):
    config = to_dict(Config())
    config["task"] = {"name": "gsm_chain", **task_dials("gsm_chain")}
    config["vocab"].update(kind="char", backspace=False, latent=True)
    config["latent"].update(mode="coconut")
    config["data"].update(seq_len=512, train_problems=100, answer_prefix="### ")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(config))
    vocab = assemble(from_dict(config)).vocab
    (tmp_path / "vocab.json").write_text(json.dumps(vocab.to_dict()))
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "split": "train"}) + "\n")
    code, _, err = run("probe", f"--workdir={tmp_path}")
    assert code == 2
    assert "probe reads ProsQA's graphs, and this run's questions are none" in err
