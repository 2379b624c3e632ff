"""Examples are functions of their index, and their layout can be read back."""

import pickle

import grain
import pytest

from reasoning_jax.data.examples import Example, TaskSource, extract_answer, render
from reasoning_jax.tasks import TaskError, make_task

TASK = make_task("arithmetic", steps=True)


def test_a_grain_pipeline_gives_the_problems_of_the_task_in_order():
    # Catches: first_seed left out, or the split not passed on.
    source = TaskSource(TASK, "validation", 20, first_seed=7)
    direct = [TASK.problem(7 + i, "validation") for i in range(20)]
    read = list(grain.MapDataset.source(source))
    assert [(e.question, e.steps, e.answer, e.difficulty) for e in read] == [
        (p.question, p.steps, p.answer, p.difficulty) for p in direct
    ]
    assert [e.index for e in read] == list(range(20))
    assert [source.problem(i) for i in range(20)] == direct


def test_an_example_does_not_depend_on_what_was_read_before():
    # Catches: a random generator kept in the source.
    source = TaskSource(TASK, "train", 50)
    in_order = [source[i] for i in range(50)]
    assert [source[i] for i in reversed(range(50))] == in_order[::-1]
    assert source[-1] == in_order[-1]
    with pytest.raises(IndexError):
        source[50]


def test_a_pickled_source_is_the_same_source():
    source = TaskSource(TASK, "test", 9, first_seed=3)
    copy = pickle.loads(pickle.dumps(source))
    assert list(copy) == list(source)
    assert repr(copy) == repr(source)
    assert " at 0x" not in repr(source)


def test_without_steps_only_the_steps_are_gone():
    with_steps, without = (TaskSource(TASK, "train", 5, with_steps=w)[2] for w in (True, False))
    assert with_steps.steps
    assert without.steps == ()
    assert (without.question, without.answer) == (with_steps.question, with_steps.answer)


def test_a_source_without_problems_is_refused():
    with pytest.raises(TaskError, match="split"):
        TaskSource(TASK, "dev", 5)
    with pytest.raises(TaskError, match="size"):
        TaskSource(TASK, "train", 0)
    with pytest.raises(TaskError, match="first_seed"):
        TaskSource(TASK, "train", 1, first_seed=-1)


@pytest.mark.parametrize(
    ("suffix", "step_suffix", "prefix", "prompt", "response"),
    [
        ("", "\n", "", "1+2=", "a\nb\n3"),
        ("\n", " ", "#### ", "1+2=\n", "a b #### 3"),
        (" ", "", "=", "1+2= ", "ab=3"),
    ],
)
def test_layout(suffix, step_suffix, prefix, prompt, response):
    example = Example("1+2=", ("a", "b"), "3")
    assert render(example, suffix, step_suffix, prefix) == (prompt, response)
    # Catches: the first prefix instead of the last one, which a step may hold.
    wanted = "3" if prefix else response
    assert extract_answer(response, prefix) == wanted
    assert extract_answer(f"guess {prefix}9\n{response}", prefix).endswith(wanted)


def test_the_last_answer_counts_and_none_is_empty():
    assert extract_answer("A: 1 A: 2", "A: ") == "2"
    assert extract_answer("2", "A: ") == ""


def test_a_prefix_s_first_blanks_may_be_missing_at_the_start():
    # Words are joined without a blank before the first. Catches: a prefix of blanks that is there
    # everywhere, a second answer that is lost.
    assert extract_answer("[A] 4", " [A] ") == "4"
    assert extract_answer("[A] 4 [A] 5", " [A] ") == "5"
    assert extract_answer("3 [A] 4", " [A] ") == "4"
    assert extract_answer("3[A] 4", " [A] ") == ""
    assert extract_answer("4", "\n") == ""
