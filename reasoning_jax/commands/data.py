"""`data build`: write the problems of the config's task as a TFDS array_record data set.
`data shortcuts`: how far its questions are answered without any search.
"""

from __future__ import annotations

from pathlib import Path

from reasoning_jax import screen
from reasoning_jax.config import Config, ConfigError
from reasoning_jax.tasks import make_task

# Problems of the validation and of the test split, each.
_HELD_OUT = 1000


def build(config: Config, out: Path) -> int:
    """Write `data.train_problems` training and 1,000 validation and test problems each."""
    from reasoning_jax.data import builder

    if config.data.source != "task":
        raise ConfigError(f"data build writes tasks; data.source is {config.data.source!r}")
    dials = dict(config.task.dials)
    sizes = {"train": config.data.train_problems, "validation": _HELD_OUT, "test": _HELD_OUT}
    task = make_task(config.task.name, **dials)
    try:
        with screen.doing(f"writing {sum(sizes.values()):,} problems"):
            folder = builder.build(
                task, name=config.task.name, dials=dials, out_dir=out, sizes=sizes, seed=config.seed
            )
    except OSError as error:
        raise ConfigError(f"--out={out} cannot be written: {error.strerror or error}") from None
    total = sum(sizes.values())
    print(f"{total:,} problems of {config.task.name} in {folder}")
    print(f"train on them: --config.data.source=tfds --config.data.path={folder}")
    return 0


def shortcuts(config: Config, problems: int) -> int:
    """Print the accuracy of shortcuts, fitted on `problems` training examples of the config's data
    and judged on as many held-out ones.
    """
    from reasoning_jax.analysis.shortcuts import FEATURES
    from reasoning_jax.analysis.shortcuts import shortcuts as measure
    from reasoning_jax.commands import assemble
    from reasoning_jax.commands.records import Sources

    sources = Sources(config.data, assemble.task_of(config))
    fitted, tested = (
        assemble.first_examples(sources.raw(split), problems)
        for split in ("train", config.evaluate.split)
    )
    with screen.doing(f"fitting {len(fitted):,} questions"):
        found = measure(fitted, tested)
    print(f"fitted on {found.fitted:,} questions, judged on {found.tested:,}; chance is 50 %")
    print(f"linear, all features  {found.linear:.1%}")
    for name in sorted(FEATURES, key=lambda name: -found.alone[name]):
        print(f"  {name:19} {found.alone[name]:.1%}")
    return 0
