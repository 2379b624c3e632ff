"""What a reader sees after each action of a sampled sequence. Knows no run folder and no page.

`viewer.js` has the same semantics; `tests/report/test_viewer.py` holds the two together.

A completion is a stack. A token is pushed; a backspace pops the newest generated token, and when
none is left, the newest token of the prompt's deletable part; at the bottom it does nothing. The
end-of-sequence action pushes nothing, and nothing after it has an effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

KINDS = ("token", "backspace", "eos")


def replay(actions: Sequence[Mapping[str, Any]], deletable: Sequence[str] = ()) -> list[str]:
    """The visible completion after each action: what is left of `deletable`, then what was written.

    Raises:
      ValueError: an action whose kind is not one of KINDS.
    """
    stack = list(deletable)
    states, ended = [], False
    for index, action in enumerate(actions):
        kind = action["kind"]
        if kind not in KINDS:
            raise ValueError(
                f"action {index}: kind must be one of {', '.join(KINDS)}, got {kind!r}"
            )
        if not ended:
            if kind == "token":
                stack.append(action["text"])
            elif kind == "backspace" and stack:
                stack.pop()
        ended = ended or kind == "eos"
        states.append("".join(stack))
    return states
