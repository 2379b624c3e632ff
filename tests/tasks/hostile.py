"""Strings that a model, or somebody else, might answer with to stall or trick a verifier.

`hostile(problem, count, seed)` gives families of them in many lengths, among them just below and
above what each verifier reads, alone and around a right answer; `fuzz` gives random ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

# What is judged is at most some hundreds of characters long; the rest must be refused unread.
LENGTHS = (1, 2, 7, 30, 90, 199, 200, 201, 330, 499, 500, 501, 999, 1_000, 1_001, 4_301, 9_999)
LONG = (100_000, 1_000_000)

INJECTIONS = (
    "__import__('os').system('touch PWNED')",
    "().__class__.__base__.__subclasses__()",
    "open('PWNED','w').write('x')",
    "exec(\"open('PWNED','w')\")",
    "eval('9**9**9')",
    "os.system('touch PWNED')",
    "[x for x in range(10**9)]",
    "lambda: (yield)",
    "$(touch PWNED)",
    "`touch PWNED`",
    "; touch PWNED #",
    "| touch PWNED",
    "\ntouch PWNED\n",
    "!touch PWNED",
    "{0.__class__.__init__.__globals__}",
    "{{7*7}}{% include '/etc/passwd' %}",
    "%s%n%x%d%(a)s",
    "${7*7}#{7*7}",
    "cposix\nsystem\n(S'touch PWNED'\ntR.",
    "!!python/object/apply:os.system ['touch PWNED']",
    "\x80\x04\x95.",
    "<script>fetch('http://localhost')</script>",
    "' OR 1=1; DROP TABLE answers --",
    "http://localhost:1/x",
    "file:///etc/passwd",
    "../../../../etc/passwd",
    "\\input{/etc/passwd}\\write18{touch PWNED}",
    "sympify('x')",
    "import subprocess",
    "<!ENTITY a '&a;&a;'>",
)
NUMBERS = (
    "1e999999", "1e-999999", "9**9**9", "9^9^9", "nan", "-nan", "inf", "Infinity", "0x1p99999",
    "1/0", "0/0", "-0", "+0", "--1", "1_000", "0b1", "0x10", "0o7", "1.", ".1", "1e", "1j", "1,2",
    "1.5", "01", "½", "²", "Ⅷ", "七", "𝟙𝟚", "١٢", "１２", "෧", "1\u00a02", "1\u200b2",
)  # fmt: skip

# A family makes a string of about n characters.
FAMILIES: dict[str, Callable[[random.Random, int], str]] = {
    "digits": lambda r, n: r.choice("123456789") * n,
    "zeros": lambda r, n: "0" * n + "1",
    "digits then a letter": lambda r, n: "1" * n + "x",
    "digits with a point": lambda r, n: "1" * (n // 2) + "." + "1" * (n // 2),
    "minus signs": lambda r, n: "-" * n + "1",
    "open parentheses": lambda r, n: "(" * n,
    "closed parentheses": lambda r, n: ")" * n,
    "nested parentheses": lambda r, n: "(" * (n // 2) + "1" + ")" * (n // 2),
    "nested brackets": lambda r, n: "[" * (n // 2) + "]" * (n // 2),
    "nested braces": lambda r, n: '{"a":' * (n // 5) + "1" + "}" * (n // 5),
    "pairs of parentheses": lambda r, n: "()" * (n // 2),
    "sums": lambda r, n: "1+" * (n // 2) + "1",
    "products": lambda r, n: "9*" * (n // 2) + "9",
    "quotients": lambda r, n: "1/3+" * (n // 4) + "1",
    "towers": lambda r, n: "9**" * (n // 3) + "9",
    "alternating signs": lambda r, n: "+-" * (n // 2) + "1",
    "right-nested sums": lambda r, n: "(1+" * (n // 4) + "1" + ")" * (n // 4),
    "operations": lambda r, n: "1+1=2\n" * (n // 6),
    "broken operations": lambda r, n: "1+1=2\n" * (n // 6) + "1+1=",
    "equals signs": lambda r, n: "=" * n,
    "blanks": lambda r, n: r.choice(" \t\n\r\v\f\u2003\u3000\u00a0") * n,
    "blanks around": lambda r, n: " " * (n // 2) + "1" + " " * (n // 2),
    "blanks, then a letter": lambda r, n: " " * n + "x",
    "blanks between": lambda r, n: "1 " * (n // 2),
    "tabs between signs": lambda r, n: "1\t+\t" * (n // 4),
    "one letter": lambda r, n: r.choice("aZéß") * n,
    "a run and a stop": lambda r, n: "a" * n + "!",
    "words": lambda r, n: "Every a is a b. " * (n // 16),
    "a chain that ends badly": lambda r, n: "Every aa is a aa. " * (n // 18) + "Every",
    "edges": lambda r, n: "1>2 " * (n // 4),
    "right-to-left marks": lambda r, n: "\u200f\u202e\u2066" * (n // 3),
    "joiners": lambda r, n: "\U0001f468\u200d" * (n // 2),
    "combining marks": lambda r, n: "1" + "\u0301\u0489" * (n // 2),
    "variation selectors": lambda r, n: "1\ufe0f\u20e3" * (n // 3),
    "NULs": lambda r, n: "\0" * n,
    "lone surrogates": lambda r, n: r.choice(("\ud800", "\udfff", "\udc00\ud800")) * n,
    "control characters": lambda r, n: "".join(map(chr, range(32))) * (n // 32 + 1),
    "the last code points": lambda r, n: "\U0010ffff\ufffe\uffff" * (n // 3),
    "astral digits": lambda r, n: "\U0001d7ce\U0001d7d8" * (n // 2),
    "Arabic digits": lambda r, n: "٣" * n,
    "full-width digits": lambda r, n: "３" * n,
    "mixed digits": lambda r, n: "1٣３" * (n // 3),
    "case that grows": lambda r, n: "ŉİß" * (n // 3),
    "byte order marks": lambda r, n: "\ufeff" * n + "1",
    "line separators": lambda r, n: "1\u2028\u2029\x85" * (n // 4),
    "escapes": lambda r, n: "\\" * n,
    "quotes": lambda r, n: "'\"`" * (n // 3),
    "terminal codes": lambda r, n: "\x1b[2J\x1b]0;x\x07" * (n // 9 + 1),
    "percent signs": lambda r, n: "%" * n,
    "format fields": lambda r, n: "{0}" * (n // 3),
    "commas": lambda r, n: "," * n,
    "numbers with commas": lambda r, n: "1,000," * (n // 6),
    "prefixes": lambda r, n: "### " * (n // 4),
    "specials": lambda r, n: "<backspace><eos>" * (n // 16 + 1),
    "an injection": lambda r, n: r.choice(INJECTIONS),
    "an injection, padded": lambda r, n: r.choice(INJECTIONS) + " " * n,
    "a strange number": lambda r, n: r.choice(NUMBERS),
    "strange numbers": lambda r, n: r.choice(NUMBERS) * (n // 5 + 1),
}

ALPHABETS = (
    "0123456789",
    "0123456789+-*/()= \n",
    "0123456789abcdef-",
    "".join(map(chr, range(128))),
    "٠١٢٣１２²\u200b\u200f\u202e\ufeff\0\ud800\udfff\u0301é\U0001f600",
    "Every lempus is a rompus. Alex",
)


def hostile(answer: str, count: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """(title, string): every family in every length in turn, some around the right `answer`.

    None of them is the right answer, blanks and commas aside, which some verifiers forgive.
    """
    rng = random.Random(f"hostile {seed}")
    sizes = [n for n in LENGTHS for _ in FAMILIES]
    names = list(FAMILIES) * len(LENGTHS)
    rng.shuffle(pairs := list(zip(names, sizes)))
    # Each family once in a small length, in a middling one, and in the longest.
    first = [(name, n) for n in (90, 450, 10**6) for name in FAMILIES]
    for i in range(count):
        name, n = (first + pairs)[i % len(first + pairs)]
        text = FAMILIES[name](rng, n)
        if i >= len(first) and rng.random() < 0.4 and text.strip():
            # A right answer with something about it that is more than blanks.
            text = rng.choice((text + answer, answer + text, text + answer + text))
            name += " around an answer"
        if text.replace(",", "").strip() in (answer.strip(), answer.strip() * 2):
            text += "~"
        yield f"{name}, {n}", text


def fuzz(answer: str, count: int, seed: int) -> Iterator[str]:
    """Random strings over several alphabets, and right answers with a few random edits."""
    rng = random.Random(seed)
    for index in range(count):
        alphabet = rng.choice(ALPHABETS)
        if index % 2:
            text = list(answer)
            for _ in range(rng.randint(1, 3)):
                place = rng.randrange(len(text) + 1)
                text[place : place + rng.randrange(2)] = rng.choices(alphabet, k=rng.randrange(3))
            yield "".join(text)
        else:
            yield "".join(rng.choices(alphabet, k=min(int(rng.expovariate(0.02)), 2_000)))
