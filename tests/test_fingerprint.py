"""A fingerprint follows the content, not the place."""

from reasoning_jax.fingerprint import fingerprint


def test_a_copy_elsewhere_is_the_same_source_and_any_change_is_another(tmp_path):
    a, b = tmp_path / "a [1]", tmp_path / "b"
    for folder in (a, b):
        (folder / "sub").mkdir(parents=True)
        (folder / "x.txt").write_bytes(b"one")
        (folder / "sub" / "y.txt").write_bytes(b"two")
    before = fingerprint(b)
    assert fingerprint(a) == before
    assert fingerprint(a / "x.txt") == fingerprint(b / "x.txt") != fingerprint(a / "sub" / "y.txt")
    (b / "sub" / "y.txt").write_bytes(b"twO")
    assert fingerprint(b) != before
    (b / "sub" / "y.txt").write_bytes(b"two")
    (b / "x.txt").rename(b / "z.txt")
    assert fingerprint(b) != before
