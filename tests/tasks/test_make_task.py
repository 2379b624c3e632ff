import dataclasses
import subprocess
import sys

import pytest

from reasoning_jax.tasks import TASKS, Task, TaskError, make_task, task_dials

NATIVE = [name for name in TASKS if name != "reasoning_gym"]


@pytest.mark.parametrize("name", NATIVE)
def test_a_task_is_its_name_and_its_dials(name):
    task = make_task(name)
    assert isinstance(task, Task)
    assert task.name == name
    assert make_task(name, **task_dials(name)) == task
    assert {field.name for field in dataclasses.fields(task)} == set(task_dials(name))
    hash(task)


@pytest.mark.parametrize(
    ("name", "dials", "told"),
    [
        ("arithmetical", {}, "'arithmetic'"),
        ("zzzz", {}, "The tasks: arithmetic, add_or_sub_in_base"),
        (7, {}, "no task 7"),
        ("arithmetic", {"max_digit": 4}, "'max_digits'"),
        ("countdown", {"zzzz": 4}, "Its dials: min_numbers, max_numbers"),
        ("arithmetic", {"max_digits": True}, "max_digits=True: must be an integer from 1 to 64"),
        ("arithmetic", {"max_digits": 2.0}, "max_digits=2.0"),
        ("arithmetic", {"max_digits": 65}, "must be an integer from 1 to 64"),
        ("arithmetic", {"min_digits": 4}, "min_digits=4: must not be above max_digits=3"),
        ("arithmetic", {"operations": ["add"]}, "must be a non-empty tuple"),
        ("arithmetic", {"operations": "add"}, "must be a non-empty tuple"),
        ("arithmetic", {"operations": ()}, "must be a non-empty tuple"),
        ("arithmetic", {"operations": ("add", "add")}, "must not name anything twice"),
        ("arithmetic", {"operations": ("ad",)}, "Did you mean 'add'?"),
        ("arithmetic", {"reverse": 1}, "reverse=1: must be True or False"),
        ("add_or_sub_in_base", {"max_base": 17}, "must be an integer from 2 to 16"),
        ("add_or_sub_in_base", {"operations": ("mul",)}, "must be one of add, sub"),
        ("countdown", {"max_numbers": 7}, "must be an integer from 3 to 6"),
        ("countdown", {"min_target": 200}, "must not be above max_target=100"),
        ("prosqa", {"form": "txt"}, "Did you mean 'text'?"),
        ("prosqa", {"parent_rate": float("nan")}, "must be a number from 0.1 to 10.0"),
        ("prosqa", {"first_family": True}, "must be a number from 0.0 to 1.0"),
        ("prosqa", {"depth_weight": "1"}, "must be a number"),
        ("prosqa", {"n_nodes": 39}, "there are 38 concepts"),
        ("prosqa", {"n_nodes": 8, "min_hops": 6}, "have no longer path than 5"),
        ("prosqa", {"form": "fuse"}, "Did you mean 'fused'?"),
        ("prosqa", {"family": "mirror"}, "Did you mean 'mirrored'?"),
        ("prosqa", {"family": "mirrored", "n_nodes": 14}, "n_nodes=14 has no effect on family="),
        ("prosqa", {"family": "mirrored", "parent_rate": 2.0}, "leave it at 1.5"),
        ("prosqa", {"family": "mirrored", "first_family": 0.5}, "leave it at 0.35"),
        ("prosqa", {"family": "mirrored", "second_family": 0.5}, "leave it at 0.7"),
        ("prosqa", {"family": "mirrored", "depth_weight": 0.0}, "depth_weight=0.0 has no effect"),
        ("prosqa", {"family": "mirrored", "max_hops": 10}, "has at most 9 hops"),
        ("prosqa", {"family": "mirrored", "form": "fused", "max_hops": 50}, "at most 49 hops"),
        ("prontoqa", {"min_hops": 6}, "min_hops=6: must not be above max_hops=5"),
        ("prontoqa", {"distractors": 0}, "distractors=0: must be an integer from 1"),
        ("prontoqa", {"max_hops": 19}, "need 40 concepts"),
        ("prontoqa", {"order": "forwards"}, "Did you mean 'forward'?"),
        ("gsm_chain", {"max_steps": 13}, "must be an integer from 1 to 12"),
        ("gsm_chain", {"operations": ("plus",)}, "must be one of add, sub, mul, div"),
        ("gsm_chain", {"max_value": 3}, "max_value=3: must be an integer from 4"),
        ("gsm_chain", {"long_steps": 1}, "long_steps=1: must be True or False"),
    ],
)
def test_a_bad_task_or_dial_is_refused_with_the_rule(name, dials, told):
    with pytest.raises(TaskError) as refusal:
        make_task(name, **dials)
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_tasks_import_no_accelerator_and_no_optional_package():
    code = (
        "import sys\n"
        "from reasoning_jax.tasks import TASKS, make_task\n"
        "[make_task(name) for name in TASKS if name != 'reasoning_gym']\n"
        "import reasoning_jax.tasks.gym\n"
        "print([name for name in ('jax', 'reasoning_gym', 'sympy') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
