"""What speaks against a full score of reasoning-gym: scorers that take a wrong answer for right.

Found by giving every scorer of reasoning-gym 0.1.25 edited reference answers. Some drop commas or
blanks (`665,2` is 6652), some let Python read numbers (`1_0` is 10), one asks only whether there is
any text (game_of_life_halting), one takes sorted lists within 1 of the right numbers. A full score
must pass here as well. Nothing here makes a score better.
"""

from __future__ import annotations

import re

from reasoning_jax.tasks.answers import Number, read_number

# Datasets with one right answer whose scorers take others: the text must be that of the reference,
# but for blanks, the case of letters and how a number is written.
_ONE_ANSWER = frozenset(
    {
        "calendar_arithmetic",
        "chain_sum",
        "game_of_life_halting",
        "gsm_symbolic",
        "letter_jumble",
        "number_sorting",
        "products",
        "spell_backward",
        "time_intervals",
    }
)
# Datasets with several right answers whose scorers pass over whatever they do not know: all that an
# answer may consist of.
_SHAPES = {
    "fraction_simplification": r"\$?(?:-?\d+\s*/\s*-?\d+|\\d?frac\{-?\d+\}\{-?\d+\})\$?",
    "kakurasu": r"[01\s]*",
    "knights_knaves": r"[A-Za-z ,.]*",
    # No two statements side by side.
    "propositional_logic": r"(?!.*[A-Z)]\s*[(¬A-Z])[A-Z\s()¬∧∨→↔]*",
    "quantum_lock": r"[A-Za-z](?:\s*(?:→|->|,)?\s*[A-Za-z]\b)*",
    "rubiks_cube": r"[A-Za-z2'\s]*",
    "sokoban": r"[LRUDlrud]*",
}
# What parts digits that belong to one number, or two numbers.
_PARTED = {"a comma": r"[0-9],[0-9]", "a blank": r"[0-9]\s+[0-9]", "an underscore": r"[0-9]_[0-9]"}
_GROUPED = re.compile(r"(?<![0-9,.])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9,])")
_TOKEN = re.compile(r"[+-]?(?:[0-9][0-9,]*)?\.?[0-9]+|[^\W\d_]+|\S")


def objection(dataset: str, reference: str, response: str) -> str:
    """Why a response with a full score is wrong all the same, or ""."""
    if response == reference:
        return ""
    ours, theirs = (_GROUPED.sub(_without_commas, text) for text in (response, reference))
    for what, parted in _PARTED.items():
        if re.search(parted, ours) and not re.search(parted, theirs):
            return f"{what} between digits, where the answer has none"
    if _bare(ours) == _bare(theirs) and re.findall("[0-9]+", ours) != re.findall("[0-9]+", theirs):
        return "its digits are parted into other numbers than those of the answer"
    if dataset in _ONE_ANSWER and _tokens(response) != _tokens(reference):
        return "it is not the answer, though the dataset's scorer takes it"
    shape = _SHAPES.get(dataset)
    if shape and not re.fullmatch(shape, response.strip()):
        return "it says more than an answer, which the dataset's scorer passes over"
    return ""


def _without_commas(match: re.Match[str]) -> str:
    return match[0].replace(",", "")


def _bare(text: str) -> str:
    return re.sub(r"[\s,_]", "", text).lower()


def _tokens(text: str) -> list[Number | str]:
    """The numbers of a text by their values, its words in lower case and its signs."""
    found = _TOKEN.findall(text.replace('"', "'"))
    return [read_number(token) or token.lower() for token in found]
