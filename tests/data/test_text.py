"""A user's text is cut, split and read as it is, or refused with file and byte; nothing blocks."""

import itertools
import os
import pickle
import random
import tracemalloc
import unicodedata

import grain
import pytest

from reasoning_jax.data import text
from reasoning_jax.data.examples import DataError, Example
from reasoning_jax.data.text import TextSource
from reasoning_jax.tasks.base import SPLITS, TaskError
from tests.data.edits import edit_unseen, overwrite, replace

WORDS = ["a", "fox", "jumps", "naïve", "日本", "e\u0301clair", "🦊", ".", "\n", "\r\n", " "]


def prose(seed, words):
    return " ".join(random.Random(seed).choices(WORDS, k=words)) + "\n"


def write(folder, files):
    """Write a folder of files, given as name -> text or bytes."""
    for name, body in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body if isinstance(body, bytes) else body.encode())
    return folder


def answers(source):
    return [example.answer for example in source]


def everything(path, window_chars):
    return {split: answers(TextSource(path, window_chars, split)) for split in SPLITS}


def test_a_window_is_an_answer_without_question_or_steps(tmp_path):
    write(tmp_path, {"a.txt": "0123456789abcdefghij"})
    assert list(TextSource(tmp_path, 10)) == [
        Example("", (), "0123456789", index=0, ends=False),
        Example("", (), "abcdefghij", index=1),
    ]


@pytest.mark.parametrize("window_chars", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("chunk", [3, 16, 1 << 16])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_windows_join_to_the_document(tmp_path, monkeypatch, window_chars, chunk, mark):
    # Catches: offsets in characters for bytes, a character or \r\n lost between two chunks, the
    # byte order mark counted or read as text.
    monkeypatch.setattr(text, "_CHUNK_BYTES", chunk)
    monkeypatch.setattr(text, "SHORTEST_CHARS", 0)
    body = prose(1, 500)
    write(tmp_path, {"a.txt": mark + body.encode()})
    windows, at = answers(TextSource(tmp_path / "a.txt", window_chars)), 0
    for window in windows:
        place = body.index(window, at)
        # What is between them is windows of white space, which are left out.
        assert not body[at:place].strip()
        at = place + len(window)
    assert not body[at:].strip()
    if window_chars > 7:
        assert "".join(windows) == body
    least = window_chars - min(16, window_chars // 2)
    assert all(least <= len(window) <= window_chars for window in windows[:-1])


def test_the_text_ends_at_the_last_window_of_a_document(tmp_path):
    # Catches: an <eos> taught at every border of windows; none at the end of a file's first part.
    write(tmp_path, {"a.txt": "x" * 70 + "\n<|endoftext|>\n" + "y" * 40, "b.txt": "z" * 90})
    source = TextSource(tmp_path, 30)
    assert [source[i].ends for i in range(len(source))] == [
        source[i].answer[0] != source[i + 1].answer[0] if i + 1 < len(source) else True
        for i in range(len(source))
    ]
    assert sum(source[i].ends for i in range(len(source))) == 3


def test_line_ends_and_combining_marks_stay_whole(tmp_path):
    # Catches: a cut at the very place.
    write(tmp_path, {"a.txt": "123456789\r\n2345678e\u0301\u0323cdefghi"})
    wanted = ["123456789", "\r\n2345678", "e\u0301\u0323cdefghi"]
    assert answers(TextSource(tmp_path, 10)) == wanted
    write(tmp_path, {"a.txt": prose(2, 3000)})
    windows = answers(TextSource(tmp_path, 40))
    assert not any(unicodedata.combining(window[0]) for window in windows)
    assert not any(a[-1] + b[0] == "\r\n" for a, b in itertools.pairwise(windows))


def test_marks_without_end_are_cut_all_the_same(tmp_path):
    # Catches: a search for a good place that never ends, or a window of no characters.
    write(tmp_path, {"a.txt": "e" + "\u0301" * 10_000})
    windows = answers(TextSource(tmp_path, 100))
    assert [len(w) for w in windows] == [100] * 100


@pytest.mark.parametrize(
    ("length", "wanted"),
    [(5, [5]), (40, [40]), (41, [40]), (55, [40]), (56, [40, 16]), (80, [40, 40]), (95, [40, 40])],
)
def test_a_short_last_window_is_left_out_unless_it_is_the_only_one(tmp_path, length, wanted):
    write(tmp_path, {"a.txt": "x" * length})
    assert [len(w) for w in answers(TextSource(tmp_path, 40))] == wanted


def test_white_space_is_left_out(tmp_path):
    # Catches: blank windows that a model would be trained on, and offsets behind them.
    write(tmp_path, {"a.txt": "x" * 20 + " " * 100 + "y" * 20, "b.txt": "\n\n \t\n"})
    assert answers(TextSource(tmp_path, 20)) == ["x" * 20, "y" * 20]


def test_lines_of_the_separator_part_documents(tmp_path):
    # Catches: the separator read as text, found inside a line, or lost with a Windows line end.
    m = "<|endoftext|>"
    body = f"{m}\none {m}\n{m} two\n{m}\r\nthree\n{m}\n\n{m}\nfour\n{m}"
    write(tmp_path, {"a.txt": body})
    assert answers(TextSource(tmp_path, 100)) == [f"one {m}\n{m} two\n", "three\n", "four\n"]
    assert answers(TextSource(tmp_path, 3))[-4:] == ["thr", "ee\n", "fou", "r\n"]
    write(tmp_path, {"a.txt": "x" * text._CHUNK_BYTES + m + "\nend"})
    assert answers(TextSource(tmp_path, 100_000)) == ["x" * text._CHUNK_BYTES + m + "\nend"]


def test_a_line_as_long_as_its_file_is_not_read_whole(tmp_path):
    write(tmp_path, {"a.txt": "x" * 8_000_000})
    tracemalloc.start()
    try:
        assert len(TextSource(tmp_path, 1000)) == 8000
        assert tracemalloc.get_traced_memory()[1] < 1_500_000
    finally:
        tracemalloc.stop()


def test_folders_are_searched_in_sorted_order(tmp_path):
    # Catches: the order of the file system, which differs between machines.
    names = ["b.txt", "a/z.txt", "a/b/c.TXT", "a-b.txt", "odd \n\x1b name.txt", "é.txt"]
    write(tmp_path, {name: name * 9 for name in names})
    write(tmp_path, {"c.md": "no", ".hidden.txt": "no", ".git/d.txt": "no", "txt": "no"})
    by_parts = sorted(names, key=lambda name: name.split("/"))
    assert answers(TextSource(tmp_path, 1000)) == [name * 9 for name in by_parts]


def test_links_are_not_followed_but_the_folder_itself_may_be_one(tmp_path):
    # Catches: text from outside, a folder that contains itself, a file read twice.
    write(tmp_path / "out", {"secret.txt": "secret", "more/s.txt": "secret"})
    inside = write(tmp_path / "in", {"a.txt": "mine"})
    (inside / "b.txt").symlink_to(tmp_path / "out" / "secret.txt")
    (inside / "c").symlink_to(tmp_path / "out")
    (inside / "d").symlink_to(inside)
    (inside / "e.txt").symlink_to(inside / "a.txt")
    (inside / "f.txt").symlink_to("nowhere")
    (tmp_path / "link").symlink_to(inside)
    assert answers(TextSource(tmp_path / "link", 100)) == ["mine"]


def test_many_documents_are_split_whole(tmp_path):
    # Catches: windows of one document on two sides.
    files = {f"{i}.txt": f"[{i}]" * 400 for i in range(200)}
    write(tmp_path, files)
    splits = everything(tmp_path, 100)
    assert TextSource(tmp_path, 100).split_by == "documents"
    assert sum(map(len, splits.values())) == len(TextSource(tmp_path, 100))
    numbers = {s: {w.split("[")[1].split("]")[0] for w in windows} for s, windows in splits.items()}
    assert not numbers["train"] & numbers["validation"]
    assert not numbers["train"] & numbers["test"]
    assert not numbers["validation"] & numbers["test"]
    assert 130 < len(numbers["train"]) < 185


def test_copies_of_a_document_are_on_one_side(tmp_path):
    # Catches: a hash of the name.
    files = {f"{i}.txt": f"{i} " * 40 for i in range(100)}
    write(tmp_path, files | {f"copy/{name}": body for name, body in files.items()})
    splits = [set(windows) for windows in everything(tmp_path, 50).values()]
    assert sum(map(len, splits)) == len(set.union(*splits))


def test_where_and_among_what_a_document_lies_does_not_move_it(tmp_path):
    files = {f"{i}.txt": f"{i} " * 40 for i in range(100)}
    before = everything(write(tmp_path / "a", files), 50)
    more = {f"x/{i}.txt": f"more {i} " * 40 for i in range(100)}
    after = everything(write(tmp_path / "b", {f"sub/{n}": b for n, b in files.items()} | more), 50)
    for split in SPLITS:
        assert [w for w in after[split] if "more" not in w] == before[split]


def test_one_file_is_split_by_blocks_of_neighbours(tmp_path):
    # Catches: a single file that falls into one split as a whole, or windows split one by one.
    write(tmp_path, {"a.txt": "".join(f"{i:010d}" for i in range(100 * 16))})
    splits = everything(tmp_path, 10)
    assert TextSource(tmp_path, 10).split_by == "blocks"
    places = {split: [int(w) for w in windows] for split, windows in splits.items()}
    assert sorted(itertools.chain(*places.values())) == list(range(1600))
    for windows in places.values():
        assert all(windows[i : i + 16] == list(range(windows[i], windows[i] + 16))
                   for i in range(0, len(windows), 16))  # fmt: skip
    assert 70 * 16 < len(places["train"]) < 92 * 16


def test_ten_documents_that_leave_a_split_empty_are_split_by_blocks(tmp_path):
    body = "".join(f"{i:010d}" for i in range(100 * 16))
    write(tmp_path, {f"{i}.txt": body for i in range(12)})
    assert TextSource(tmp_path, 10).split_by == "blocks"
    assert all(everything(tmp_path, 10).values())


def test_few_documents_are_split_by_blocks_even_if_each_split_would_get_one(tmp_path):
    # Catches: training on a third of the text.
    write(tmp_path / "many", {f"{i}.txt": f"{i} " * 40 for i in range(100)})
    one_each = {f"{s}.txt": w[0] for s, w in everything(tmp_path / "many", 1000).items()}
    assert TextSource(write(tmp_path / "few", one_each), 1000).split_by == "blocks"
    many = {f"{i}.txt": f"the same {i % 2}" for i in range(10)}
    assert TextSource(write(tmp_path / "few", many), 1000).split_by == "documents"


def test_an_empty_split_is_refused_with_advice(tmp_path):
    write(tmp_path, {"a.txt": "one window"})
    refusals = []
    for split in SPLITS:
        try:
            TextSource(tmp_path, 100, split)
        except DataError as error:
            refusals.append(str(error))
    assert len(refusals) == 2
    assert all("none of its 1 windows" in r and "give more text" in r for r in refusals)
    with pytest.raises(TaskError, match="split must be"):
        TextSource(tmp_path, 100, "dev")


def test_random_access_in_a_grain_pipeline_and_after_pickling(tmp_path):
    write(tmp_path, {f"{i}.txt": prose(i, 400) for i in range(30)})
    source = TextSource(tmp_path, 50, "train")
    assert list(grain.MapDataset.source(source)) == list(source)
    order = random.Random(1).sample(range(len(source)), len(source))
    wanted = list(source)
    assert [source[i] for i in order] == [wanted[i] for i in order]
    assert source[-1] == wanted[-1]
    with pytest.raises(IndexError):
        source[len(source)]
    copy = pickle.loads(pickle.dumps(source))
    assert list(copy) == wanted
    assert repr(copy) == repr(source)


def test_text_is_not_held_in_memory(tmp_path):
    write(tmp_path, {"a.txt": "x" * 1_000_000})
    source = TextSource(tmp_path, 1000)
    assert len(pickle.dumps(source)) < len(source) * 20 + 2000


def test_the_repr_tells_other_data(tmp_path):
    write(tmp_path, {"a.txt": "x" * 100})
    before = repr(TextSource(tmp_path, 10))
    assert before == repr(TextSource(tmp_path, 10))
    write(tmp_path, {"a.txt": "x" * 99 + "y"})
    assert repr(TextSource(tmp_path, 10)) != before
    assert repr(TextSource(tmp_path, 20)) != before
    assert "records=10" in before


@pytest.mark.parametrize("chunk", [4, 1 << 16])
@pytest.mark.parametrize(
    ("body", "byte", "wanted"),
    [
        (b"good\nbad \xff\n", 9, "0xff"),
        (b"\xef\xbb\xbfgood " + "é".encode() * 20 + "é".encode("latin-1") + b"\n", 48, "0xe9"),
        (b"cut off \xf0\x9f\xa6", 8, "0xf0"),
        (b"cut off \xf0\x9f\xa6\nand on", 8, "0xf0"),
        ("a surrogate \ud800".encode("utf-8", "surrogatepass"), 12, "0xed"),
        ("UTF-16".encode("utf-16"), 0, "0xff"),
        ("UTF-16".encode("utf-16-le"), 1, "NUL"),
        (b"x" * 100_000 + b"\0", 100_000, "NUL"),
    ],
)
def test_what_is_not_utf8_is_refused_with_its_place(
    tmp_path, monkeypatch, chunk, body, byte, wanted
):
    # Catches: an offset within the line or the chunk, or off by what the decoder still holds.
    monkeypatch.setattr(text, "_CHUNK_BYTES", chunk)
    write(tmp_path, {"a.txt": "good\n", "b.txt": body, "c.txt": "good\n"})
    with pytest.raises(DataError) as caught:
        TextSource(tmp_path, 5)
    message = str(caught.value)
    assert f"b.txt, byte {byte:,}: got" in message
    assert wanted in message
    if wanted != "NUL":
        assert body[byte] == int(wanted, 16)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("none", "no such file or folder"),
        ("none.txt", "no such file or folder"),
        ("a.md", "got suffix '.md', wanted .txt"),
        ("pipe.txt", "no regular file"),
        ("empty", "without any .txt file (0 others"),
        ("only_others", "without any .txt file (3 others"),
        ("blank", "no text in 2 .txt files"),
        ("blank/zero.txt", "no text in 1 .txt files"),
        ("nul\0.txt", "null"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, name, wanted):
    write(
        tmp_path, {"a.md": "text", "blank/zero.txt": "", "blank/b.txt": " \n", "only_others/b": ""}
    )
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.txt")
    os.mkfifo(tmp_path / "only_others" / "pipe.txt")
    (tmp_path / "only_others" / "link.txt").symlink_to(tmp_path / "a.md")
    with pytest.raises(DataError) as caught:
        TextSource(tmp_path / name, 10)
    assert wanted in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 6


@pytest.mark.parametrize("window_chars", [0, -1, True, 10.0, "10", None, text.MAX_WINDOW_CHARS + 1])
def test_a_window_of_no_size_is_refused(tmp_path, window_chars):
    write(tmp_path, {"a.txt": "text"})
    with pytest.raises(DataError, match="window_chars="):
        TextSource(tmp_path, window_chars)


def test_a_name_that_is_no_text_can_be_read_and_printed(tmp_path):
    # Catches: a message that cannot be encoded, or that a name splits into lines.
    name = os.fsencode(tmp_path) + b"/\xff\n\xfe.txt"
    with open(name, "wb") as file:
        file.write(b"good text")
    source = TextSource(tmp_path, 100)
    assert answers(source) == ["good text"]
    repr(source).encode()
    with open(name, "wb") as file:
        file.write(b"bad \xff")
    with pytest.raises(DataError) as caught:
        TextSource(tmp_path, 100)
    assert len(str(caught.value).encode().splitlines()) == 1


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_may_not_be_read_is_refused(tmp_path, monkeypatch, what):
    # Catches: a folder that is left out because it cannot be listed. (Root may list everything.)
    write(tmp_path, {"a.txt": "text", "locked/b.txt": "text"})

    def refused(call):
        def wrapped(path, *args, **options):
            if "locked" in os.fspath(path):
                raise PermissionError(13, "Permission denied", path)
            return call(path, *args, **options)

        return wrapped

    name = {"folder": "scandir", "file": "open"}[what]
    monkeypatch.setattr(os, name, refused(getattr(os, name)))
    with pytest.raises(DataError, match=r"locked.*: cannot be read: Permission denied"):
        TextSource(tmp_path, 10)


def append(path):
    path.write_text(path.read_text() + "more")


def become_a_pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "change", [overwrite, append, replace, edit_unseen, os.remove, become_a_pipe]
)
def test_a_file_that_changed_is_refused_when_it_is_read(tmp_path, change):
    # Catches: trust in size and time alone (edit_unseen), waiting for a writer (become_a_pipe).
    write(tmp_path, {"a.txt": "1" * 9 + "2" + "2" * 10, "b.txt": "untouched"})
    source = TextSource(tmp_path, 10)
    assert source[1].answer == "2" * 10
    change(tmp_path / "a.txt")
    for index in (0, 1):
        with pytest.raises(DataError, match=f"a.txt, byte {10 * index}"):
            source[index]
    assert source[2].answer == "untouched"


def test_a_file_that_grows_while_it_is_indexed_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path, {"a.txt": "text"}) / "a.txt"
    decoded = text._decoded

    def grow(file, name):
        yield from decoded(file, name)
        path.write_text("text and more")

    monkeypatch.setattr(text, "_decoded", grow)
    with pytest.raises(DataError, match="changed while it was read"):
        TextSource(path, 10)
