"""What the parent is answered, or refused."""

from typing import Any, Final, TypeAlias

Reply: TypeAlias = dict[str, Any]


class Refused(Exception):
    """What the parent raises as the error of that name."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind: Final = kind
