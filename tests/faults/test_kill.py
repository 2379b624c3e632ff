"""SIGKILL at any moment, many of them inside a save: in the end nothing differs."""

import json
import shutil

import pytest

from reasoning_jax.train import faults
from tests.faults import harness


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """{kind: the folder of a run that was never interrupted}, made when asked for."""
    folders = {}

    def of(kind):
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind)
            assert harness.run(harness.KINDS[kind](), folders[kind]).code == 0
        return folders[kind]

    return of


@pytest.mark.parametrize(
    ("kind", "plan"),
    [
        # The end of an epoch (step 6) and the steps beside it; two moments of a save, and between
        # the save and the evaluation of the last step.
        ("mle", "kill@commit:3,kill@data:6,kill@step:7,kill@write:9,kill@evaluate:12"),
        # Before the first refresh of the buffer and after it; while orbax writes.
        ("match", "kill@data:4,kill@write:6+15,kill@step:8"),
        # The last step of stage 1, with its save under way, and the first of stage 2.
        ("stages", "kill@seal:6,kill@step:7,kill@prune:10"),
    ],
)
def test_killed_and_resumed_equals_unbroken(tmp_path, unbroken, kind, plan):
    """Catches: a half-written step taken for whole, a buffer older or newer than its parameters, a
    stage, an optimizer or metrics of a lost future.
    """
    planned = plan.split(",")
    kills = harness.run_with(harness.KINDS[kind](), tmp_path / "broken", plan)
    # A kill with a delay may come together with the next one.
    assert len(planned) - plan.count("+") <= kills <= len(planned)
    happened = (tmp_path / "broken" / faults.FILE).read_text().splitlines()
    assert sorted(map(json.loads, happened)) == sorted(planned)
    harness.assert_same(unbroken(kind), tmp_path / "broken")


@pytest.mark.parametrize("site", ["save", "write", "seal", "commit", "committed", "prune"])
def test_at_each_point_of_a_save_the_step_before_stays(tmp_path, site):
    """With one step kept, so that there is no other to fall back to. Catches: a step deleted
    before the next one counts, a step that counts before it is whole.
    """
    config = harness.changed(harness.mle(), train={"keep_last": 1, "steps": 6})
    outcome = harness.run(config, tmp_path, f"kill@{site}:6")
    assert outcome.code == harness.KILLED, outcome.output
    from reasoning_jax.train.checkpoint import Checkpoints

    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        # From the rename on the new one counts; the old one goes last.
        assert checkpoints.steps() == ([3, 6] if site in ("committed", "prune") else [3])
        assert not any(map(checkpoints.verify, checkpoints.steps()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", harness.KINDS)
def test_killed_at_random(tmp_path, unbroken, kind):
    """`python -m tests.faults` runs as many as wanted."""
    done, seed = 0, 0
    while done < 20:
        done += harness.kill_and_compare(kind, tmp_path, seed, 10, unbroken(kind))
        seed += 1


def test_terminated_at_any_step_saves_and_goes_on(tmp_path, unbroken):
    config = harness.mle()
    plan = "term@step:5,term@data:10"
    codes = [harness.run(config, tmp_path / "broken", plan).code for _ in range(3)]
    assert codes == [42, 42, 0]
    # Step 5 and 10 are saved beside the scheduled ones; the last is what both have.
    harness.assert_same(unbroken("mle"), tmp_path / "broken")


@pytest.mark.parametrize(
    ("site", "code", "said"),
    [
        ("log:10", 4, "the newest saved step is 9. Mend the disk and run again"),
        ("evaluate:12", 5, "--checkpoint=12 makes up for it\ntrained and saved, but 1 evaluation"),
    ],
)
def test_a_disk_that_is_full_beside_the_checkpoints(tmp_path, unbroken, site, code, said):
    """Said in two lines, without a traceback; the run goes on once there is room.

    Catches: a row that is lost or written twice, a state that is saved without its metrics.
    """
    config = harness.mle()
    outcome = harness.run(config, tmp_path / "broken", f"enospc@{site}")
    assert outcome.code == code, outcome.output
    assert "No space left on device" in outcome.output
    assert said in outcome.output
    assert "Traceback" not in outcome.output
    assert harness.run(config, tmp_path / "broken").code == 0
    harness.assert_same(unbroken("mle"), tmp_path / "broken")


def test_a_run_on_a_disk_that_runs_full(small_disk, unbroken):
    """Whatever is the first to be refused, there is room again, and nothing differs."""
    config, filler = harness.mle(), small_disk / "filler"
    codes, room = [], 900_000
    while not codes or codes[-1]:
        filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - room))
        outcome = harness.run(config, small_disk / "run")
        codes.append(outcome.code)
        assert "Traceback" not in outcome.output, outcome.output
        filler.unlink()
        room += 100_000
    print(f"exit codes with more and more room: {codes}")
    assert {*codes[:-1]} <= {2, 4, 5}
    assert len(codes) > 1, "the disk was never full"
    harness.assert_same(unbroken("mle"), small_disk / "run")
