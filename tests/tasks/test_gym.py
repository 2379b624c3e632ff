import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from importlib import util
from pathlib import Path

import pytest

from reasoning_jax.tasks import TaskError, gym, gym_worker, make_task

pytestmark = pytest.mark.skipif(
    util.find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed"
)


def worker():
    return gym._worker(os.getpid())


def test_a_missing_package_is_told_with_its_remedy(monkeypatch):
    monkeypatch.setattr(gym.util, "find_spec", lambda name: None)
    with pytest.raises(TaskError, match="pip install reasoning-gym"):
        make_task("reasoning_gym")


@pytest.mark.parametrize(
    ("dials", "told"),
    [
        ({"dataset": "chain_sums"}, "Did you mean 'chain_sum'?"),
        ({"dataset": 3}, "must be a string"),
        ({"dials": (("max_term", 3),)}, "Did you mean 'max_terms'?"),
        ({"dials": '{"max_terms": 0}'}, "chain_sum refuses its dials"),
        ({"dials": '{"max_terms": NaN}'}, "must be (name, value) pairs or a JSON object"),
        ({"dials": "max_terms=3"}, "must be (name, value) pairs or a JSON object"),
        ({"dials": "[" * 100_000}, "must be (name, value) pairs or a JSON object"),
        ({"dials": "[1]"}, "must name each dial by a string"),
        ({"dials": (("seed", 3),)}, "'seed' is set by the problem's own seed"),
    ],
)
def test_bad_dials_are_refused(dials, told):
    with pytest.raises(TaskError) as refusal:
        make_task("reasoning_gym", **dials)
    assert told in str(refusal.value)


def test_dials_reach_the_dataset():
    task = make_task("reasoning_gym", dials=(("min_terms", 5), ("max_terms", 5)))
    assert all(task.problem(seed).question.count(" + ") <= 4 for seed in range(20))
    numbers = [
        len([w for w in task.problem(seed).question.split() if w in "+-"]) for seed in (0, 1)
    ]
    assert numbers == [4, 4]
    same = make_task("reasoning_gym", dials='{"min_terms": 5, "max_terms": 5}')
    assert same.problem(4).question == task.problem(4).question


def test_a_partial_score_is_not_correct():
    task = make_task("reasoning_gym")
    problem = task.problem(0)
    # The dataset's own scorer gives part of the point where the answer is somewhere in the text.
    score = task.verify(problem, f"maybe {problem.answer}")
    assert not score.correct
    assert 0 < score.value < 1


def test_a_problem_of_other_dials_is_not_scored():
    problem = make_task("reasoning_gym").problem(0)
    other = make_task("reasoning_gym", dials=(("max_digits", 1),))
    with pytest.raises(TaskError, match="another question"):
        other.verify(problem, problem.answer)


def test_a_stalling_answer_is_wrong_and_the_next_one_is_scored():
    task = make_task("reasoning_gym", dataset="countdown")
    problem = task.problem(0)
    start = time.monotonic()
    assert "out of time" in task.verify(problem, "9**9**9**9").reason
    assert time.monotonic() - start < 1.0
    start = time.monotonic()
    assert task.verify(problem, problem.answer).correct
    # A fresh child is forked, not a fresh interpreter started.
    assert time.monotonic() - start < 1.0


EVALUATING = [
    "binary_matrix",
    "countdown",
    "intermediate_integration",
    "n_queens",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
    "spiral_matrix",
    "string_insertion",
]


@pytest.mark.parametrize("dataset", EVALUATING)
def test_answers_are_not_run(dataset, tmp_path):
    task = make_task("reasoning_gym", dataset=dataset)
    problem = task.problem(0)
    assert task.verify(problem, problem.answer).correct
    path = tmp_path / "written"
    for attack in (
        f"__import__('os').system('touch {path}')",
        f"open('{path}', 'w')",
        f"[open('{path}','w')]",
        f"[().__class__.__base__.__subclasses__(), open('{path}', 'w')]",
        f"(lambda: open('{path}', 'w'))()",
    ):
        assert "scorer evaluates its input" in task.verify(problem, attack).reason
        assert not path.exists()


def test_side_effects_are_refused_while_scoring(tmp_path, monkeypatch):
    monkeypatch.setattr(gym_worker, "_scoring", True)
    write = os.O_WRONLY | os.O_CREAT
    for event, args in (
        ("open", (str(tmp_path / "x"), "w", write)),
        ("os.system", (b"true",)),
        ("os.fork", ()),
        ("subprocess.Popen", ("true", [], None, None)),
        ("socket.__new__", (None, 2, 1, 0)),
        ("os.remove", ("x", -1)),
    ):
        with pytest.raises(PermissionError, match=event):
            gym_worker._refuse_side_effects(event, args)
    gym_worker._refuse_side_effects("open", ("x", "r", os.O_RDONLY))
    gym_worker._refuse_side_effects("os.listdir", ("x",))
    gym_worker._refuse_side_effects("import", ("sympy",))
    monkeypatch.setattr(gym_worker, "_scoring", False)
    gym_worker._refuse_side_effects("os.remove", ("x", -1))


def test_the_audit_hook_holds_where_the_check_of_the_text_does_not(tmp_path):
    path = tmp_path / "written"
    common = {"dataset": "n_queens", "dials": {}, "seed": 1}
    requests = [
        {**common, "op": "make", "id": 1},
        {**common, "op": "score", "id": 2, "answer": f"open('{path}', 'w')"},
        {**common, "op": "score", "id": 3, "answer": f"__import__('os').mkdir('{path}')"},
    ]
    code = (
        "import reasoning_gym\n"
        "from reasoning_jax.tasks import gym_worker\n"
        "gym_worker.harmless = lambda text: True\n"
        "gym_worker._serve(1)\n"
    )
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    done = subprocess.run([sys.executable, "-c", code], input=lines, capture_output=True, text=True)
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    assert [reply["id"] for reply in replies] == [1, 2, 3]
    assert replies[1]["score"] == replies[2]["score"] == 0.0
    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("(95 + 86) * 76 - 86", True),
        ("-3*x**2/2 + exp(x)*sin(x) + C", True),
        ("[['_', 'Q'], ['Q', '_']]", True),
        ("_ Q _ _\n_ _ _ Q", True),
        ("['A', 'B', 'AECDB']", True),
        ("0.8064", True),
        ("EAADCBA", True),
        ("open('x')", False),
        ("S('x')", False),
        ("x.y", False),
        ("x . y", False),
        ("__x", False),
        ("x_", False),
        ("lambda x: x", False),
        ("[x for x in y]", False),
        ("x := 3", False),
        ("ｏｐｅｎ", False),
        ("1;2", False),
        ("{}", False),
        ("@", False),
    ],
)
def test_only_text_that_computes_is_passed_to_scorers_that_evaluate(text, allowed):
    assert gym_worker.harmless(text) is allowed


def test_a_lost_worker_is_replaced():
    task = make_task("reasoning_gym")
    problem = task.problem(0)
    os.killpg(worker()._process.pid, signal.SIGKILL)
    assert task.verify(problem, problem.answer).correct
    assert task.problem(0) == problem


def test_threads_do_not_mix_their_replies():
    # One thread kills the shared worker's child again and again while the others are scored.
    task = make_task("reasoning_gym", dataset="countdown")
    problems = [task.problem(seed) for seed in range(3)]
    verdicts: list[bool] = []

    def score(problem):
        verdicts.extend(task.verify(problem, problem.answer).correct for _ in range(20))

    threads = [threading.Thread(target=score, args=(problem,)) for problem in problems]
    for thread in threads:
        thread.start()
    stalled = [task.verify(problems[0], "9**9**9**9").reason for _ in range(2)]
    for thread in threads:
        thread.join()
    assert all("out of time" in reason for reason in stalled)
    assert verdicts == [True] * 60


def test_set_order_does_not_reach_problems(monkeypatch):
    task = make_task("reasoning_gym", dataset="isomorphic_strings")
    before = [task.problem(seed).question for seed in range(5)]
    worker().close()
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    assert [task.problem(seed).question for seed in range(5)] == before


def running(group):
    """Processes of a process group that have not ended; Linux only."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, process_group, *_ = stat.read_text().rpartition(")")[2].split()
            if int(process_group) == group and state != "Z":
                found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_a_program_killed_while_scoring_leaves_no_worker_behind():
    code = (
        "import os, signal, threading, time\n"
        "from reasoning_jax.tasks import gym, make_task\n"
        "task = make_task('reasoning_gym', dataset='countdown')\n"
        "stall = (task.problem(0), '9**9**9**9')\n"
        "threading.Thread(target=task.verify, args=stall).start()\n"
        "time.sleep(0.2)\n"
        "print(gym._worker(os.getpid())._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    group = int(done.stdout)
    deadline = time.monotonic() + 10
    while running(group):
        assert time.monotonic() < deadline, f"still running: {running(group)}"
        time.sleep(0.02)


def test_datasets_beyond_the_characters_are_refused():
    assert "→" in make_task("reasoning_gym", dataset="acre").characters()
    with pytest.raises(TaskError, match="only printable ASCII is carried"):
        make_task("reasoning_gym", dataset="emoji_mystery").problem(0)
