"""`--explain`, `config show`, `config diff`: what is printed of configs; nothing is run."""

import subprocess
import sys
from pathlib import Path

import pytest

from reasoning_jax import main
from reasoning_jax import vocab as V
from reasoning_jax.commands import runfolder
from reasoning_jax.config import to_dict
from reasoning_jax.config_check import from_dict

CONFIGS = Path(__file__).parent.parent.parent / "configs"
QUICK = CONFIGS / "quickstart.py"


@pytest.fixture
def command(capsys):
    def run(*argv):
        code = main.run(["reasoning-jax", *map(str, argv)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def run_folder(tmp_path):
    values = {"train": {"steps": 300}, "optimizer": {"learning_rate": 0.5}}
    folder = tmp_path / "run"
    config = from_dict(values)
    runfolder.open_run(folder, config, [], V.make_vocab(V.CharCodec("ab")), config.model)
    return folder


def test_each_value_is_explained_with_where_it_is_from(command):
    # Catches: a source that is always the file's; values that are the default, in the list.
    code, out, err = command(
        "train", f"--config={QUICK}", "--explain", "--config.train.batch_rows=48",
        "--config.seed=0", "--config.task.max_digits=4",
    )  # fmt: skip
    assert (code, err) == (0, "")
    cells = {line.split()[0]: line.split(maxsplit=1)[1] for line in out.splitlines() if "." in line}
    assert " ".join(cells["train.batch_rows"].split()) == "48 default 64 command line"
    assert " ".join(cells["train.steps"].split()) == "2000 default 1000 config file"
    assert " ".join(cells["task.max_digits"].split()) == "4 default 3 command line"
    assert "optimizer.eps" not in cells
    (seed,) = [line.split() for line in out.splitlines() if line.startswith("  seed ")]
    assert seed == ["seed", "0", "default", "0", "command", "line"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--config.train.batch_rows=12"], [
            "on 1 device(s) data 1 x fsdp 1", "12 rows x 16 = 192", "12 rows (data 1",
            "also on          2 (6 rows each), 3 (4 rows each), 4 (3 rows each), 6 (2 rows each), "
            "12 (1 rows each) devices",
        ]),
        (["--config.train.batch_rows=8", "--config.optimizer.accumulate=2",
          "--config.mesh.tensor=2"], [
            "on 2 device(s) data 1 x fsdp 1 x tensor 2", "2 part(s) of 4 rows",
            "also on          4 (2 rows each), 8 (1 rows each) devices",
        ]),
        (["--config.mesh.data=1", "--config.mesh.fsdp=1"], ["on 1 device(s)"]),
    ],
)  # fmt: skip
def test_the_tree_says_on_which_devices_it_runs(command, changes, said):
    code, out, _ = command("train", f"--config={QUICK}", "--explain", *changes)
    assert code == 0
    for words in said:
        assert words in out
    assert ("also on" in out) == (len(said) > 1)


def test_explaining_starts_nothing(tmp_path):
    """Catches: a dry run in the place of words; a folder that is made."""
    program = (
        "import sys; from reasoning_jax import main; "
        f"code = main.run(['', 'train', '--config={QUICK}', '--explain', '--workdir=new']); "
        f"code += main.run(['', 'config', 'diff', '{QUICK}', '{CONFIGS / 'countdown.py'}']); "
        "sys.exit(code or 'jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_explained_and_shown(command, run_folder):
    code, out, _ = command("evaluate", f"--workdir={run_folder}", "--explain")
    assert code == 0
    (line,) = [x for x in out.splitlines() if "train.steps" in x]
    assert line.split() == ["train.steps", "300", "default", "1000", "run"]
    shown = command("config", "show", run_folder)
    assert shown == (0, out, "")
    assert command("config", "show", run_folder / "config.json")[1].count("300") == 1


def test_two_configs_are_told_apart(command, run_folder, tmp_path):
    # Catches: keys of one side alone left out; a length of training that makes another run.
    other = to_dict(from_dict({"train": {"steps": 500}, "task": {"max_digits": 2}}))
    runfolder.write_json(tmp_path / "other.json", other)
    code, out, err = command("config", "diff", run_folder, tmp_path / "other.json")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()[1:-1]]
    assert lines == [
        ["optimizer.learning_rate", "0.5", "0.001", "another", "run"],
        ["task.max_digits", "-", "2", "another", "run"],
        ["train.steps", "300", "500"],
    ]
    assert out.splitlines()[-1].startswith("3 of ")
    assert out.endswith(" values differ; a run of one cannot be continued as the other\n")
    assert command("config", "diff", run_folder, run_folder)[1] == "the same config\n"
    longer = to_dict(from_dict({**runfolder.read_json(run_folder / "config.json"),
                                "train": {"steps": 301}}))  # fmt: skip
    runfolder.write_json(tmp_path / "longer.json", longer)
    out = command("config", "diff", run_folder, tmp_path / "longer.json")[1]
    assert out.splitlines()[-1].endswith("they may be one run")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["config"], "config diff A B"),
        (["config", "dif", "a", "b"], "config diff A B"),
        (["config", "diff", QUICK], "config diff A B"),
        (["config", "show", QUICK, QUICK], "config diff A B"),
        (["config", "diff", QUICK, "none.py"], "none.py: there is no such file"),
        (["config", "show", CONFIGS], "config.json does not exist; is"),
        (["config", "show", QUICK, "--quiet"], "config does not take --quiet; it takes no flags"),
        (["train", f"--config={QUICK}", "--explain", "--dry_run"], "of --explain and --dry_run"),
        (["train", f"--config={QUICK}", "--explain", "--print_config"], "--print_config and --exp"),
    ],
)  # fmt: skip
def test_what_it_does_not_know_is_refused(command, argv, said):
    code, out, err = command(*argv)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) <= 6
