"""Any path, any place: run folders and data under names that are patterns, addresses or no text, on
read-only file systems, moved, and behind links.

Catches: a path taken for a pattern, a step that counts without its arrays, work that is done before
it is said that nothing can be written.
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import jax
import pytest

from reasoning_jax import main, paths
from reasoning_jax.commands import runfolder
from reasoning_jax.config import ConfigError, to_dict
from reasoning_jax.data import builder
from reasoning_jax.tasks import make_task
from reasoning_jax.train import manifest
from reasoning_jax.train.checkpoint import Checkpoints
from tests.small import thinking_run, tiny_run
from tests.train.test_checkpoint import DATA, META, restored, state_of

SAVED_CONFIG = Path(main.__file__).parent / "commands" / "saved_config.py"
ODD = os.fsdecode(b"\xff")  # no UTF-8
NAMES = (
    "a b", " lead", "trail ", "x[1]", "br]ack", "[a-z]", "s*r", "**", "q?", "back\\slash",
    "new\nline", "tab\t", "-dash", "12:30", "a=b", "a,b", "100%", "%s", "#h", "{0.1}", "~", "~root",
    "$HOME", "日本", "e\u0301", ODD, "gs:", "'quote\"", "`x`", "<b>&amp;", "a;b", "x@3", "...",
)  # fmt: skip
# All of it at once.
WORST = f"-x[1] *?\\\n:=,%#{{}}~é日{ODD}<b>&'\"$x;@3"


def run(*argv):
    """(exit code, what was printed, what was said that is not in order)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main.run(["reasoning-jax", *map(str, argv)])
    # Remarks aside, such as that a command is alive, or where it writes.
    signs = ("error", "WARNING", "Traceback", "damaged", "cannot be", "failed")
    lines = [line for line in err.getvalue().splitlines(True) if any(s in line for s in signs)]
    return code, out.getvalue(), "".join(lines)


@pytest.fixture(scope="module", autouse=True)
def one_device(unoptimised):
    patch, device = pytest.MonkeyPatch(), jax.devices()[:1]
    patch.setattr(jax, "devices", lambda: device)
    patch.setattr(jax, "device_count", lambda: 1)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run whose folder and whose config's folder have the worst names."""
    config = tiny_run(
        evaluate={"problems": 2, "corrupt_tokens": 0}, sampling={"max_actions": 2},
        vocab={"backspace": False}, noise={"rate": 0.0}, objective={"name": "mle"},
    )  # fmt: skip
    return train(config, tmp_path_factory.mktemp("paths"))


def train(config, tmp):
    runfolder.write_json(tmp / f"c{WORST}" / "config.json", to_dict(config))
    workdir = tmp / WORST
    config = f"--config={SAVED_CONFIG}:{tmp / f'c{WORST}'}"
    code, out, err = run("train", config, f"--workdir={workdir}")
    assert (code, err) == (0, ""), err
    assert "step 6/6 validation" in out
    return workdir


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_step_is_saved_and_restored_under_any_name(tmp_path, name):
    folder = tmp_path / name / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.save(state_of(2), DATA, {**META, "at": 2}, {"replay": state_of(1).step})
        checkpoints.wait()
        assert checkpoints.failures() == []
        assert checkpoints.verify(2, values=True) == []
        assert checkpoints.read_all(2)["meta"]["at"] == 2
    assert restored(folder) == (2, {})
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_relative_folder_that_looks_like_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpoints(Path("gs:/bucket")) as checkpoints:
        assert checkpoints.save(state_of(2), DATA, {**META, "at": 2})
        checkpoints.wait()
        assert checkpoints.failures() == []
    assert restored(tmp_path / "gs:" / "bucket") == (2, {})


def test_without_other_names_for_folders_a_path_is_refused_before_anything(tmp_path, monkeypatch):
    """As on systems without /proc. Catches: a run that begins and cannot be saved."""
    monkeypatch.setattr(paths, "_OPEN", str(tmp_path / "none"))
    with paths.plain(tmp_path) as place:
        assert place == tmp_path
    for name in ("x[1]", "new\nline", ODD):
        with pytest.raises(ConfigError, match="use letters, digits"):
            paths.check(tmp_path / name)
    with pytest.raises(ConfigError, match="use letters, digits"):
        paths.check(Path("/gs/x"))
    with pytest.raises(ConfigError, match="use letters"), runfolder.opened(tmp_path / "a[1]"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_every_command_takes_any_path(trained, tmp_path):
    odd = tmp_path / WORST
    said = {}
    for name, line in {
        "verify": ("checkpoint", "verify", trained),
        "list": ("checkpoint", "list", trained),
        "diff": ("checkpoint", "diff", f"{trained}@4", trained),
        "config show": ("config", "show", trained),
        "config diff": ("config", "diff", trained, trained / "config.json"),
        "sample": ("sample", f"--workdir={trained}", f"--prompt={question(trained)}"),
        "evaluate": ("evaluate", f"--workdir={trained}"),
        "evaluate out": ("evaluate", f"--workdir={trained}", f"--out={odd}/e"),
        "report": ("report", trained),
        "report out": ("report", trained, f"--out={odd}/r/{WORST}.html"),
        "replay": ("replay", f"--workdir={trained}", "--step=5", f"--out={odd}/replay"),
        "export": ("export", f"--workdir={trained}", f"--out={odd}/hf"),
        "go on": ("train", f"--config={SAVED_CONFIG}:{trained}", f"--workdir={trained}", "--quiet"),
    }.items():
        code, out, err = run(*line)
        assert (code, err) == ((1 if name == "diff" else 0), ""), (name, out, err)
        said[name] = out
    assert "2 of 2 intact" in said["verify"]
    for file in ("e/eval/step_00000006.json", "e/samples/step_00000006.jsonl",
                 f"r/{WORST}.html", "replay/report.json", "hf/model.safetensors"):  # fmt: skip
        assert (odd / file).is_file(), file
    assert (trained / "report.html").is_file()


def question(workdir):
    line = (workdir / "samples" / "step_00000006.jsonl").read_text().split("\n")[0]
    return json.loads(line)["question"]


@pytest.mark.slow
def test_a_probe_of_any_path(tmp_path):
    config = thinking_run(latent={"stage_steps": (2, 2, 2)}, evaluate={"problems": 2})
    workdir = train(config, tmp_path)
    for out in ((), (f"--out={tmp_path / WORST / WORST}",)):
        code, _, err = run("probe", f"--workdir={workdir}", "--problems=2", *out)
        assert (code, err) == (0, "")
    assert (workdir / "probe" / "index.html").is_file()
    assert (tmp_path / WORST / WORST / "index.html").is_file()
    code, out, _ = run("report", workdir)
    assert code == 0


def test_data_sets_under_any_path(tmp_path):
    """TFDS and its files want text, orbax no patterns, JSON Lines nothing."""
    task = make_task("arithmetic", max_digits=1)
    about = {"name": "arithmetic", "dials": {"max_digits": 1}, "sizes": {"train": 3}}
    folder = builder.build(task, out_dir=tmp_path / WORST, **about)
    source = builder.TfdsSource(folder, "train")
    assert [source.problem(i).seed for i in range(3)] == [0, 1, 2]
    assert [p.name for p in (tmp_path / WORST).iterdir()] == ["arithmetic"]


def test_arrays_that_are_missing_are_seen_though_all_files_are_right(trained, tmp_path):
    """As orbax once left them. Catches: a manifest of what was written, not of what should be."""
    step = tmp_path / "run" / "checkpoints" / "6"
    shutil.copytree(trained, tmp_path / "run")
    wanted = manifest.arrays(step)
    assert {"params", "opt"} <= {*wanted}
    name, dtype, shape = wanted["params"][0]
    for arrays, finding in (
        ({**wanted, "params": [*wanted["params"], ["more", "float32", [2]]]}, "more is missing"),
        ({**wanted, "params": [[name, "int8", shape]]}, f"{name} is {dtype}"),
        ({**wanted, "params": [[name, dtype, [1, *shape]]]}, f"{name} is {dtype}"),
    ):
        manifest.write(step, 6, arrays)
        code, out, _ = run("checkpoint", "verify", tmp_path / "run")
        assert code == 1
        assert "step 6: DAMAGED" in out
        assert f"params: array {finding}" in out
    # The one database of the arrays is gone; what is left of them hashes right.
    (step / "params" / "manifest.ocdbt").unlink()
    shutil.rmtree(step / "params" / "d")
    # The other is of a version that did not note them.
    for arrays in (wanted, {}):
        manifest.write(step, 6, arrays)
        code, out, _ = run("checkpoint", "verify", tmp_path / "run", "--checkpoint=6")
        assert (code, "0 of 1 intact" in out) == (1, True), out
    code, out, err = run("sample", f"--workdir={tmp_path / 'run'}", f"--prompt={question(trained)}")
    assert code == 0
    assert "is damaged: params: " in err
    assert "using step 4" in err


@pytest.fixture
def read_only(trained, tmp_path):
    """The run on a file system that cannot be written, also by root."""
    folder = tmp_path / "ro"
    folder.mkdir()
    commands = (
        ["mount", "--bind", trained, folder], ["mount", "-o", "remount,ro,bind", folder]
    )  # fmt: skip
    for command in commands:
        if os.getuid() or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_read_only_run_is_evaluated_and_all_else(read_only, trained, tmp_path):
    ro = f"--workdir={read_only}"
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*")}
    code, out, err = run("evaluate", ro)
    assert code == 0
    assert "exact_match" in out
    assert err == (
        f"{read_only} cannot be written (its file system is read-only): this table is not kept; "
        "for its files give --out=FOLDER\n"
    )
    for line in (
        ("evaluate", ro, f"--out={tmp_path / 'e'}"), ("checkpoint", "verify", read_only),
        ("checkpoint", "list", read_only), ("checkpoint", "diff", read_only, f"{read_only}@6"),
        ("config", "show", read_only), ("sample", ro, f"--prompt={question(trained)}"),
        ("report", read_only, f"--out={tmp_path / 'r' / 'page.html'}"),
        ("replay", ro, "--step=5", f"--out={tmp_path / 'replay'}"),
        ("export", ro, f"--out={tmp_path / 'hf'}"),
    ):  # fmt: skip
        code, out, err = run(*line)
        assert (code, err) == (0, ""), (line, out, err)
    assert (tmp_path / "e" / "eval" / "step_00000006.json").is_file()
    # Told before the work, with what to do.
    loaded = pytest.MonkeyPatch()
    loaded.setattr(Checkpoints, "restore_params", lambda *_: pytest.fail("works first"))
    for line, said in (
        (("report", read_only), "read-only; give --out=FILE"),
        (("probe", ro), "read-only; give --out=FOLDER"),
        (("replay", ro, "--step=5"), "read-only; give --out=FOLDER"),
        (("evaluate", ro, f"--out={read_only / 'e'}"), "read-only"),
        (("export", ro, f"--out={read_only / 'hf'}"), "read-only"),
        (("train", f"--config={SAVED_CONFIG}:{read_only}", ro), "read-only"),
    ):
        code, out, err = run(*line)
        assert (code, out) == (2, ""), (line, out, err)
        assert err.strip().endswith(said), err
    loaded.undo()
    assert before == {p: p.stat().st_mtime_ns for p in trained.rglob("*")}


def test_a_folder_of_somebody_else(tmp_path, monkeypatch):
    assert runfolder.not_writable(tmp_path / "not" / "there") == ""
    (tmp_path / "file").touch()
    assert runfolder.not_writable(tmp_path / "file" / "x") == f"{tmp_path / 'file'} is a file"
    (tmp_path / "link").symlink_to("nowhere")
    assert runfolder.not_writable(tmp_path / "link") == f"{tmp_path / 'link'} leads nowhere"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert runfolder.not_writable(tmp_path) == "permission denied"


def test_a_run_that_was_moved_and_is_reached_by_a_link(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "moved [to]")
    (tmp_path / "link").symlink_to("moved [to]")
    link = tmp_path / "link"
    for line in (
        ("sample", f"--workdir={link}", f"--prompt={question(trained)}"), ("report", link),
        ("checkpoint", "verify", link),
    ):  # fmt: skip
        code, out, err = run(*line)
        assert (code, err) == (0, ""), (line, out, err)
