"""A checkpoint is what was saved, or it is not used; a failing disk loses nothing."""

import json
import os
import random
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reasoning_jax.train import checkpoint as lib
from reasoning_jax.train import manifest
from reasoning_jax.train.checkpoint import CheckpointError, Checkpoints
from reasoning_jax.train.faults import NO_FAULTS, parse
from reasoning_jax.train.state import TrainState

DATA, META = {"next_index": 3}, {"config": {"seed": 0}}
MUTATIONS = int(os.environ.get("CHECKPOINT_MUTATIONS", "60"))


def state_of(step, seed=0):
    rng = np.random.default_rng([seed, step])
    params = {
        "model": {
            "embedding": jnp.asarray(rng.standard_normal((16, 8)), jnp.float32),
            "layers": {"up": jnp.asarray(rng.standard_normal((2, 8, 24)), jnp.bfloat16)},
        },
        "lora": {},
    }
    return TrainState(jnp.int32(step), params, optax.adam(1e-3).init(params["model"]))


def save(folder, *steps, seed=0, **options):
    """Save some steps; returns what failed."""
    with Checkpoints(folder, **options) as checkpoints:
        for step in steps:
            checkpoints.save(state_of(step, seed), DATA, {**META, "at": step})
            checkpoints.wait()
        return checkpoints.failures()


def restored(folder, step=None):
    """(step, checkpoints.damaged) of what is restored, compared with what was saved."""
    with Checkpoints(folder) as checkpoints:
        state, data, meta, _ = checkpoints.restore(state_of(0), step)
        found = int(state.step)
        want = state_of(found)
        for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(state), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
        assert data == DATA
        assert meta["at"] == found
        return found, checkpoints.damaged


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    assert save(folder, 2, 4, 6) == []
    return folder


def files_of(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


def flip(path, rng, _):
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content))
    content[at] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def truncate(path, rng, _):
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def lengthen(path, rng, _):
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.randint(1, 64)))


def zero(path, rng, _):
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content))
    content[at : at + 4096] = bytes(len(content[at : at + 4096]))
    path.write_bytes(content)


def delete(path, _rng, _):
    path.unlink()


def foreign(path, rng, _):
    (path.parent / f"foreign_{rng.randrange(1000)}").write_bytes(rng.randbytes(10))


def swap(path, rng, step):
    """The file of another step, or another file of this one, in its place."""
    other = rng.choice([p for p in files_of(step.parent) if p != path])
    shutil.copyfile(other, path)


def link(path, rng, step):
    """The right content, elsewhere: a link is not what was saved."""
    elsewhere = step.parent.parent / f"elsewhere_{rng.randrange(10**9)}"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def whole_step(path, _rng, step):
    """Another step under this one's name."""
    shutil.rmtree(step)
    shutil.copytree(step.parent / "4", step)


KINDS = (flip, truncate, lengthen, zero, delete, foreign, swap, link, whole_step)


def test_no_mutation_is_silent(three_steps, tmp_path):
    """Of the newest step: seen, named, and the step before it is what a run would go on from.

    CHECKPOINT_MUTATIONS=1000 is the long form. Catches: a file without a hash, a hash of the
    names only, a manifest that may be that of another step.
    """
    rng = random.Random(0)
    seen, changed = 0, 0
    with Checkpoints(tmp_path / "now") as checkpoints:
        for number in range(MUTATIONS):
            shutil.rmtree(tmp_path / "now", ignore_errors=True)
            shutil.copytree(three_steps, tmp_path / "now")
            step = tmp_path / "now" / "6"
            path = rng.choice(files_of(step))
            before = {p: p.read_bytes() for p in files_of(step)}
            KINDS[number % len(KINDS)](path, rng, step)
            after = {p: p.read_bytes() for p in files_of(step)}
            if before == after and not path.is_symlink():
                continue
            changed += 1
            findings = checkpoints.verify(6)
            seen += bool(findings)
            assert findings, (KINDS[number % len(KINDS)].__name__, path)
            assert not checkpoints.verify(4)
    print(f"{seen} of {changed} mutations seen")
    assert changed > 0.9 * MUTATIONS


def test_a_manifest_that_was_made_to_fit_is_seen(three_steps, tmp_path):
    """Its own hash is over its values. Catches: a file that is deleted with its entry."""
    step = shutil.copytree(three_steps, tmp_path / "now") / "6"
    path = step / "manifest.json"
    body = json.loads(path.read_text())
    path.write_text(json.dumps(body))  # the same values in another layout
    assert manifest.check(step, 6) == []
    (gone, *_) = (name for name in body["files"] if name.startswith("opt/"))
    del body["files"][gone]
    (step / gone).unlink()
    path.write_text(json.dumps(body))
    assert manifest.check(step, 6) == ["manifest.json: is damaged"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda f: f.__name__)
def test_falls_back_and_names_file_step_and_what_is_used(three_steps, tmp_path, kind):
    shutil.copytree(three_steps, tmp_path / "now")
    path = next(p for p in files_of(tmp_path / "now" / "6" / "params") if p.stat().st_size > 300)
    kind(path, random.Random(1), tmp_path / "now" / "6")
    used, damaged = restored(tmp_path / "now")
    assert used == 4
    assert list(damaged) == [6]
    with Checkpoints(tmp_path / "now") as checkpoints:
        checkpoints.restore(state_of(0))
        (note,) = checkpoints.notes(4)
    name = {"foreign": "foreign_", "whole_step": "manifest.json"}.get(kind.__name__, path.name)
    assert name in note
    assert "/6 is damaged" in note
    assert note.endswith("using step 4")


def test_a_step_that_was_asked_for_is_that_step_or_nothing(three_steps, tmp_path):
    shutil.copytree(three_steps, tmp_path / "now")
    flip(files_of(tmp_path / "now" / "6" / "opt")[0], random.Random(0), None)
    with Checkpoints(tmp_path / "now") as checkpoints:
        with pytest.raises(CheckpointError, match=r"(?s)checkpoint 6 .*opt/.*intact: 2, 4"):
            checkpoints.restore(state_of(0), 6)
        # What is not read need not be right, but must be there.
        params, step = checkpoints.restore_params(state_of(0).params)
        assert step == 6
        assert np.array_equal(
            params["model"]["embedding"], state_of(6).params["model"]["embedding"]
        )
    assert restored(tmp_path / "now", 2) == (2, {})


def test_none_intact_is_no_start(three_steps, tmp_path):
    shutil.copytree(three_steps, tmp_path / "now")
    for step in "246":
        delete(files_of(tmp_path / "now" / step / "data")[0], None, None)
    with (
        Checkpoints(tmp_path / "now") as checkpoints,
        pytest.raises(CheckpointError, match=r"(?s)no intact checkpoint.*checkpoint 6.*missing"),
    ):
        checkpoints.restore(state_of(0))


def test_a_step_of_a_version_without_manifests_is_used_last_and_said(three_steps, tmp_path):
    shutil.copytree(three_steps, tmp_path / "now")
    (tmp_path / "now" / "6" / manifest.NAME).unlink()
    assert restored(tmp_path / "now")[0] == 4
    for step in "24":
        (tmp_path / "now" / step / manifest.NAME).unlink()
    assert restored(tmp_path / "now") == (6, {})
    with Checkpoints(tmp_path / "now") as checkpoints:
        checkpoints.restore(state_of(0))
        assert "cannot be verified" in checkpoints.notes(6)[0]


def test_the_state_itself_is_hashed_too(three_steps, tmp_path, monkeypatch):
    """A manifest over wrong content (as of a defect in what writes or reads) helps nobody."""
    shutil.copytree(three_steps, tmp_path / "now")
    shutil.rmtree(tmp_path / "now" / "6" / "params")
    shutil.copytree(tmp_path / "now" / "4" / "params", tmp_path / "now" / "6" / "params")
    manifest.write(tmp_path / "now" / "6", 6, manifest.arrays(three_steps / "6"))
    assert Checkpoints(tmp_path / "now").verify(6) == []
    # What restoring finds, `checkpoint verify` finds.
    assert Checkpoints(tmp_path / "now").verify(6, values=True) == [
        "params: what is read is not what was saved (state hash)"
    ]
    assert Checkpoints(tmp_path / "now").verify(4, values=True) == []
    used, damaged = restored(tmp_path / "now")
    assert used == 4
    assert "not what was saved" in damaged[6][-1]


def test_orbax_alone_reads_a_step(three_steps):
    """What is on disk is the library's own format, with one file more."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(three_steps.absolute()) as manager:
        assert sorted(manager.all_steps()) == [2, 4, 6]
        args = ocp.args.Composite(params=ocp.args.StandardRestore(), data=ocp.args.JsonRestore())
        out = manager.restore(4, args=args)
    assert out["data"] == DATA
    want = state_of(4).params["model"]["embedding"]
    assert np.array_equal(out["params"]["model"]["embedding"], want)


def test_what_is_kept(tmp_path):
    """Catches: keep_every counted from the newest, the newest deleted."""
    assert save(tmp_path, *range(1, 10), keep_last=2, keep_every=4) == []
    assert Checkpoints(tmp_path).steps() == [4, 8, 9]


@pytest.mark.parametrize("site", ["save", "write", "seal", "commit", "committed"])
@pytest.mark.parametrize("error", ["enospc", "eio", "erofs"])
def test_a_failed_save_is_blamed_on_its_own_step(tmp_path, site, error):
    """And the one before stays, the next one works. Catches: an error that the next call raises, a
    step deleted before the next is whole, a half-written step left over.
    """
    plan = parse(f"{error}@{site}:4")
    (failure,) = save(tmp_path, 2, 4, 6, keep_last=1, faults=plan)
    assert failure.step == 4
    assert f"{error}@{site}:4" in failure.reason
    assert Checkpoints(tmp_path).steps() == [6]
    assert restored(tmp_path) == (6, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["6"]


def test_an_error_while_deleting_loses_no_save(tmp_path):
    (failure,) = save(tmp_path, 2, 4, keep_last=1, faults=parse("eio@prune:4"))
    assert "older steps not deleted" in failure.reason
    assert Checkpoints(tmp_path).steps() == [2, 4]


def test_what_does_not_fit_is_not_begun(tmp_path, monkeypatch):
    assert save(tmp_path, 2) == []
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(lib.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    (failure,) = save(tmp_path, 4)
    assert failure.step == 4
    assert "are free" in failure.reason
    monkeypatch.undo()
    assert Checkpoints(tmp_path).steps() == [2]


DISK_CASES = int(os.environ.get("DISK_CASES", "8"))


def test_a_disk_that_is_full_at_any_byte(small_disk, monkeypatch):
    """A real ENOSPC wherever the room ends, then room again. DISK_CASES=50 is the long form.

    Catches: the wrong step blamed, an old step lost, an orbax that never saves again.
    """
    # The check before a save would see that it does not fit.
    monkeypatch.setattr(lib, "check_space", lambda *_: None)
    rng = random.Random(0)
    folder = small_disk / "checkpoints"
    assert save(folder, 2) == []
    failed = 0
    for case in range(DISK_CASES):
        free = shutil.disk_usage(small_disk).free
        room = rng.randrange(0, 250_000)
        with Checkpoints(folder, keep_last=2) as checkpoints:
            filler = small_disk / "filler"
            filler.write_bytes(bytes(max(0, free - room)))
            step = 4 + 2 * case
            before = checkpoints.steps()
            checkpoints.save(state_of(step), DATA, {**META, "at": step})
            checkpoints.wait()
            failures = checkpoints.failures()
            filler.unlink()
            if failures:
                failed += 1
                assert {f.step for f in failures} == {step}
                assert checkpoints.steps() == before
                assert "No space left" in failures[0].reason, failures
            assert not any(map(checkpoints.verify, checkpoints.steps()))
            # The next save works, whatever the last one ran into.
            step += 1
            checkpoints.save(state_of(step), DATA, {**META, "at": step})
            checkpoints.wait()
            assert checkpoints.failures() == []
            assert checkpoints.latest() == step
    print(f"{failed} of {DISK_CASES} saves ran out of room")
    assert 0 < failed < DISK_CASES
    assert restored(folder)[0] == step


def test_a_disk_that_cannot_be_written(small_disk):
    folder = small_disk / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state_of(2), DATA, {**META, "at": 2})
        checkpoints.wait()
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        checkpoints.save(state_of(4), DATA, META)
        checkpoints.wait()
        (failure,) = checkpoints.failures()
        assert failure.step == 4
        assert "Read-only" in failure.reason
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
        checkpoints.save(state_of(6), DATA, {**META, "at": 6})
        checkpoints.wait()
        assert checkpoints.failures() == []
    assert Checkpoints(folder).steps() == [2, 6]


def test_faults_are_parsed_or_refused():
    from reasoning_jax.config import ConfigError

    plan = parse(" kill@save:4+20, nan@loss:7,,")
    assert [str(f) for f in plan.faults] == ["kill@save:4+20", "nan@loss:7"]
    assert [(step, np.isnan(x)) for step, x in plan.poison("loss")] == [(7, True)]
    assert parse("") == NO_FAULTS
    for text, said in (
        ("kill@save", "is no fault"), ("kil@save:3", "did you mean kill"),
        ("nan@save:3", "cannot happen at 'save'"), ("kill@loss:3", "cannot happen"),
        ("eio@step:3", "cannot happen"), ("nan@loss:3+5", "cannot be delayed"),
        ("kill@save:-1", "is no fault"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            parse(text)


def test_a_fault_happens_once_a_run_folder(tmp_path):
    plan = parse("eio@seal:4", tmp_path)
    with pytest.raises(OSError, match="planned"):
        plan.reach("seal", 4)
    plan.reach("seal", 4)
    parse("eio@seal:4", tmp_path).reach("seal", 4)
    with pytest.raises(OSError, match="planned"):
        parse("eio@seal:4,eio@seal:5", tmp_path).reach("seal", 5)
