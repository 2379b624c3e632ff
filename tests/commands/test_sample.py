"""What a terminal shows of a completion: everything written, what was deleted struck out."""

import re

import numpy as np
import pytest

from reasoning_jax.commands.sample import numbered, printable, read_prompts, strike_out
from reasoning_jax.config import ConfigError
from reasoning_jax.evaluate.completions import Completion, Prompt
from reasoning_jax.vocab import ByteCodec, CharCodec, WordCodec, make_vocab
from tests import oracle

CHARS = make_vocab(CharCodec("abcdefgh\n"))
WORDS = make_vocab(WordCodec(("aa", "b", "ccc", "\n")))
BYTES = make_vocab(ByteCodec())
COLOUR = re.compile("\x1b\\[9;31m(.*?)\x1b\\[0m", re.DOTALL)
PLAIN = re.compile(r"\[-(.*?)-\]", re.DOTALL)


def shown(vocab, actions, colour=False, prompt=(0, 1)):
    actions = [vocab.backspace_id if a == oracle.BK else a for a in actions]
    completion = Completion(Prompt(prompt, len(prompt) - 1), actions, [], [], "", False)
    return strike_out(completion, vocab, colour)


def script(text):
    """Actions from text in which "<" is a backspace and "$" the end."""
    special = {"<": oracle.BK, "$": CHARS.eos_id}
    return [special[c] if c in special else CHARS.encode(c)[0] for c in text]


@pytest.mark.parametrize(
    ("actions", "want"),
    [
        ("abc$", "abc"),
        ("abc<<d$", "a[-bc-]d"),
        ("abc<<<d<$", "[-abcd-]"),
        # A deletion inside a deletion: c goes first, then d, then b.
        ("abc<d<<e$", "a[-bcd-]e"),
        ("ab<c<a<<b$", "[-abca-]b"),
        # Two deletions with a survivor between them.
        ("ab<cd<$", "a[-b-]c[-d-]"),
        # At the edge of the prompt there is nothing to delete, however often it is tried.
        ("<<<a$", "a"),
        ("a<<<b<<c$", "[-ab-]c"),
        ("$", ""),
        ("", ""),
        ("a\nb<<c", "a[-\nb-]c"),
    ],
)
def test_scripts(actions, want):
    # Catches: striking the newest written in place of the newest standing; a backspace that reaches
    # into the prompt; <eos> shown.
    assert shown(CHARS, script(actions)) == want
    marked = want.replace("[-", "\x1b[9;31m").replace("-]", "\x1b[0m")
    assert shown(CHARS, script(actions), colour=True) == marked


@pytest.mark.parametrize("vocab", [CHARS, WORDS], ids=["char", "word"])
@pytest.mark.parametrize("mark", [PLAIN, COLOUR], ids=["plain", "colour"])
def test_nothing_is_lost_and_what_is_not_struck_is_the_completion(vocab, mark):
    """With the marks taken out: all that was written; with the struck parts out: what stands."""
    # Catches: text shown twice or left out where a struck part begins or ends.
    rng = np.random.default_rng(0)
    longest = 0
    for _ in range(200):
        actions = rng.integers(0, len(vocab.text_ids()), int(rng.integers(0, 25))).tolist()
        actions = [oracle.BK if rng.random() < 0.4 else a for a in actions]
        text = shown(vocab, actions, mark is COLOUR)
        written = [a for a in actions if a != oracle.BK]
        assert mark.sub(r"\1", text) == vocab.decode(written)
        standing = oracle.states(0, actions)[-1][1:]
        left = vocab.decode(standing)
        # Between words, a space goes with the word behind it, struck or not.
        assert "".join(mark.sub("", text).split(" ")) == "".join(left.split(" "))
        longest = max(longest, len(standing))
    assert longest > 5


def test_bytes_of_a_character_are_shown_as_the_character():
    # Catches: each byte decoded alone.
    actions = [*"é".encode(), *"😀".encode(), *[oracle.BK] * 4, *"€a".encode()]
    assert shown(BYTES, actions) == "é[-😀-]€a"


def test_completions_cannot_command_the_terminal():
    """Escape sequences out of a model are shown as text, in both parts of what is shown."""
    # Catches: text printed as it was sampled; our own marks escaped with it.
    attack = "\x1b]0;owned\x07\x1b[2J"
    for colour in (False, True):
        before, after = ("\x1b[9;31m", "\x1b[0m") if colour else ("[-", "-]")
        actions = [*attack.encode(), *b"\r!", oracle.BK]
        got = shown(BYTES, actions, colour)
        assert got == rf"\x1b]0;owned\x07\x1b[2J\r{before}!{after}"
        everything_gone = shown(BYTES, [*attack.encode(), *[oracle.BK] * len(attack)], colour)
        assert everything_gone == rf"{before}\x1b]0;owned\x07\x1b[2J{after}"


def test_printable_leaves_text_and_no_control_character():
    # Catches: C1 controls (one character that is ESC [ to some terminals), bidi overrides, lone
    # surrogates, and a filter that eats letters.
    text = "".join(map(chr, range(0x250))) + "\u2028\u202e\u2066\ufeff\ud800\U000e0001"
    safe = printable(text)
    assert all(c.isprintable() or c == "\n" for c in safe)
    assert safe.encode("utf-8")
    for fine in ("Añá 한국어 日本 😀 ½ \n", r"\x1b", ""):
        assert printable(fine) == fine
    assert printable("\x1b\x9b\u202e\t\x7f") == r"\x1b\x9b\u202e\t\x7f"


def test_prompts_are_the_lines_that_hold_something(tmp_path):
    # Catches: a byte order mark or a carriage return in a prompt; prompts stripped of their spaces.
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff1+2=\r\n\n  \n 3+4= \nlast é".encode())
    assert read_prompts(str(path)) == ["1+2=", " 3+4= ", "last é"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "missing.txt cannot be read: .*No such file"),
        ("empty.txt", b"", "empty.txt has no prompts; write one a line"),
        ("blank.txt", b"\n \t\n\r\n", "blank.txt has no prompts"),
        ("latin.txt", b"caf\xe9\n", "latin.txt cannot be read: .*utf-8"),
        ("", None, "cannot be read: .*directory"),
        ("\x00", None, "cannot be read: .*null"),
    ],
)
def test_a_file_without_prompts_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"--prompt_file=(?s:.*){message}"):
        read_prompts(f"{tmp_path}/{name}")


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "large.txt"
    with path.open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(ConfigError, match="is larger than 64 MiB"):
        read_prompts(str(path))


def test_several_samples_are_numbered_and_set_apart():
    """Catches: samples of many lines that run into each other."""
    assert numbered(["a"], 1) == ["a"]
    assert numbered(["a\nb"], 1) == ["a\nb"]
    assert numbered(["a", "b"], 2) == ["1    a", "2    b"]
    assert numbered(["a", "b"], 1) == ["1    a", "2    b"]
    assert numbered(["a", "b", "c", "d"], 2) == ["1.1  a", "1.2  b", "2.1  c", "2.2  d"]
    assert numbered(["a\nb", "c"], 2) == ["--- sample 1 ---", "a\nb", "", "--- sample 2 ---", "c"]
    assert numbered(["a\nb", "c"], 1)[0] == "--- prompt 1 ---"
    assert numbered(["a\nb", "c", "d", "e"], 2)[3] == "--- prompt 1, sample 2 ---"
