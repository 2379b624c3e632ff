"""Ways in which a file changes behind the back of a source that has indexed it."""

import os


def overwrite(path):
    path.write_text(path.read_text().replace("2", "3"))


def replace(path):
    (path.parent / "b").write_text(path.read_text().replace("2", "3"))
    os.replace(path.parent / "b", path)


def edit_unseen(path):
    """The size and the time stamp stay."""
    status = path.stat()
    overwrite(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
