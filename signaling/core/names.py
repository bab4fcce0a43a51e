"""Names of people, as others see them."""

import re
from typing import Final

MAX_NAME: Final = 100
_LOOKED_AT: Final = 10_000
"""What is beyond is not looked at: no name is that long, though a frame may be."""

_INVISIBLE: Final = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # control characters
    "\u00ad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff"
    "\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U0001345f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"  # format
    "\u2028\u2029"  # separators of lines and paragraphs
    "\ud800-\udfff"  # halves of what a client has cut through
    "\u034f\u17b4\u17b5\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0000-\U000e0fff"  # to be ignored when shown
    "\u115f\u1160\u2800\u3164\uffa0\ufffc\U00016fe4\U0001d159"  # blank
    "]+"
)


def display_name(text: str, otherwise: str) -> str:
    """
    What is shown of a name, which is never a reason to refuse anybody.

    Args:
        text: Whatever somebody, or their controller, says that they are called.
        otherwise: What is shown when nothing visible is left of that: their id.
    """
    visible = _INVISIBLE.sub("", text[:_LOOKED_AT]).strip()
    return visible[:MAX_NAME].rstrip() or otherwise[:MAX_NAME]
