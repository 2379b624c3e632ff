"""When two written answers are the same answer: blanks around them, and how a number is written.

`same_answer` judges answers of users' own files, where nothing but the text is known. It reads
numbers exactly, never as floats, in time linear in their length. It knows no units, no LaTeX, no
fractions, no exponents and no digits beyond ASCII: such answers are equal as text, or not at all.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# Digits, or groups of three behind a first group that does not begin with 0: 0,125 is a decimal
# comma or a list, and 007 may be a code.
_GROUPS = r"[1-9][0-9]{0,2}(?:,[0-9]{3})+"
_NUMBER = re.compile(rf"([+-]?)({_GROUPS}|0|[1-9][0-9]*|(?=\.))(?:\.([0-9]+))?")
_SEPARATED = re.compile(rf"-?{_GROUPS}(?:\.[0-9]+)?")


class Number(NamedTuple):
    """The exact value of a decimal numeral: no zeros at either end, and no sign of zero."""

    negative: bool
    whole: str
    fraction: str


def same_answer(answer: str, response: str) -> bool:
    """Whether a response gives the answer, blanks around both aside.

    Either the texts are the same, to the letter, or both are numbers of one exact value: 1,000 is
    1000, and 5.0, +5 and 5.00 are 5; 1,2 is not 12, 007 is not 7 and 5. is not 5. An answer of
    blanks alone is none, so that nothing equals it.
    """
    answer, response = answer.strip(), response.strip()
    if not answer or not response:
        return False
    if answer == response:
        return True
    number = read_number(answer)
    return number is not None and number == read_number(response)


def read_number(text: str) -> Number | None:
    """The value of `-?(digits or groups of three)(.digits)?`, or None for any other text.

    Other leading zeros than that of 0.5 make a text no number; a + in front and a missing 0 before
    the point are read.
    """
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    sign, whole, fraction = match.groups(default="")
    whole = whole.replace(",", "").lstrip("0")
    fraction = fraction.rstrip("0")
    return Number(sign == "-" and bool(whole or fraction), whole, fraction)


def without_separators(text: str) -> str:
    """A number without the commas between its groups of three; any other text as it is."""
    return text.replace(",", "") if _SEPARATED.fullmatch(text) else text
