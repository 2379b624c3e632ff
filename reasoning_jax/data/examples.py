"""Examples: what a training record is, how it is laid out as text, and tasks as a source of them.

A source is anything with `len` and random access by integer that gives an `Example`, the same one
each time, and that can be pickled; `grain.MapDataset.source` takes it as it is. Nothing here
tokenizes, shuffles or touches a file.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

from reasoning_jax.tasks.base import Problem, Task, TaskError, check_split


class DataError(ValueError):
    """Data that cannot be used; the message says where, what was got and what was wanted."""


@dataclass(frozen=True)
class Example:
    """One record of any source. `index` is its place there; `steps` may be empty. `ends` is False
    where the text goes on behind the answer, as a window of a longer text does: then no <eos>
    follows it.

    `step_choices`: for step k the texts of all right next steps, that of `steps` among them;
    `frontiers`: of all next steps that a search in breadth would take up then; `options`: the
    answers to choose from, the right one first. All are empty where the source does not know them.
    """

    question: str
    steps: tuple[str, ...]
    answer: str
    difficulty: str = ""
    index: int = 0
    ends: bool = True
    step_choices: tuple[tuple[str, ...], ...] = ()
    frontiers: tuple[tuple[str, ...], ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskSource:
    """The problems of a task for the seeds `first_seed` to `first_seed + size - 1`, made on demand.

    Different seeds may give the same problem. Its `repr` is as stable as that of the task.

    Raises:
      TaskError: unknown split, or a size or seed out of range.
    """

    task: Task
    split: str
    size: int
    first_seed: int = 0
    with_steps: bool = True
    # Its problems are too many to be measured beforehand.
    made_on_demand = True

    def __post_init__(self) -> None:
        check_split(self.split)
        if self.size < 1:
            raise TaskError(f"{self.task.name}: size must be >= 1, got {self.size}")
        if self.first_seed < 0:
            raise TaskError(f"{self.task.name}: first_seed must be >= 0, got {self.first_seed}")

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        index = record_index(index, self.size)
        return example_of(self.problem(index), index, self.with_steps)

    def place(self, index: int) -> str:
        """Which problem it is."""
        return f"{self.task.name}, {self.split}, problem {self.first_seed + index}"

    def problem(self, index: int) -> Problem:
        """The problem itself, with the data by which `task.verify` judges an answer."""
        return self.task.problem(self.first_seed + record_index(index, self.size), self.split)


def example_of(problem: Problem, index: int, with_steps: bool = True) -> Example:
    """What a model is shown of a problem."""

    def next_steps(name: str) -> tuple[tuple[str, ...], ...]:
        return tuple(map(tuple, problem.data.get(name, ()))) if with_steps else ()

    return Example(
        question=problem.question,
        steps=problem.steps if with_steps else (),
        answer=problem.answer,
        difficulty=problem.difficulty,
        index=index,
        step_choices=next_steps("step_choices"),
        frontiers=next_steps("frontiers"),
        options=tuple(problem.data.get("options", ())),
    )


def record_index(index: int, size: int) -> int:
    """`index` as an integer in [0, size); negative counts from the end. Raises IndexError."""
    return range(size)[operator.index(index)]


def render(
    example: Example, question_suffix: str, step_suffix: str, answer_prefix: str
) -> tuple[str, str]:
    """(prompt, response): `question + question_suffix`, and each `step + step_suffix`, then
    `answer_prefix + answer`.
    """
    steps = "".join(step + step_suffix for step in example.steps)
    return example.question + question_suffix, steps + answer_prefix + example.answer


def extract_answer(response: str, answer_prefix: str) -> str:
    """What follows the last `answer_prefix`; the whole response when the prefix is empty.

    A response without the prefix gives no answer: "". The inverse of `render` for answers that do
    not hold the prefix. Blanks that the prefix begins with may be missing where the response begins
    with it: a vocabulary of words does not write them.
    """
    if not answer_prefix:
        return response
    begin = answer_prefix.lstrip()
    if begin and response.startswith(begin):
        response = answer_prefix + response.removeprefix(begin)
    _, found, answer = response.rpartition(answer_prefix)
    return answer if found else ""
