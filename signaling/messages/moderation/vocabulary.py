"""The words that commands and events of the namespace share."""

from typing import Annotated, Literal

from pydantic import Strict

from signaling.messages.base import Participant

RoleName = Literal["guest", "user", "moderator"]
KindName = Literal["user", "guest", "sip", "recorder"]
LiveKitKindName = Literal["standard", "ingress", "egress", "agent", "sip"]
SourceName = Literal["camera", "microphone", "screen_share", "screen_share_audio"]
RestrictableName = Literal["camera", "microphone", "screen_share"]
Sources = Annotated[tuple[SourceName, ...], Strict(strict=False)]
Moderator = Participant | Literal["controller"]
"""Who did it: somebody, or the host."""
