import json

import pytest

from signaling.errors import MessageError
from signaling.identifiers import ParticipantId
from signaling.messages import moderation
from signaling.messages.base import Message, parse_payload
from signaling.messages.envelope import Delivery
from tests.messages.wire import concrete, dumped, parsed, reversed_keys, row

BOB = ParticipantId("bob")
CAROL = ParticipantId("carol")

EVENTS = [
    row(
        moderation.Result(
            command_id="c-1",
            action="force_mute",
            outcomes=(
                moderation.Outcome(participant=BOB, outcome="muted"),
                moderation.Outcome(participant=CAROL, outcome="failed", error="livekit_unavailable"),
            ),
            repaired_later=(CAROL, BOB, CAROL),
        ),
        '{"message": "result", "command_id": "c-1", "action": "force_mute", "outcomes": ['
        '{"participant": "bob", "outcome": "muted"},'
        ' {"participant": "carol", "outcome": "failed", "error": "livekit_unavailable"}],'
        ' "repaired_later": ["bob", "carol"]}',
    ),
    row(
        moderation.Result(command_id="c-2", error="invalid_command", detail="participants: is required"),
        '{"message": "result", "command_id": "c-2", "error": "invalid_command", "detail": "participants: is required",'
        ' "outcomes": [], "repaired_later": []}',
    ),
    *(
        row(moderation.ModerationError(error=code), f'{{"message": "error", "error": "{code}"}}')
        for code in (
            "insufficient_permissions",
            "invalid_command",
            "livekit_unavailable",
            "unavailable",
            "rate_limit_exceeded",
            "internal",
        )
    ),
    row(
        moderation.ModerationError(error="invalid_command", detail="unknown field"),
        '{"message": "error", "error": "invalid_command", "detail": "unknown field"}',
    ),
]

PARTS = [
    pytest.param(
        moderation.MayPublish(may_publish=("camera", "microphone", "screen_share", "screen_share_audio")),
        '{"may_publish": ["camera", "microphone", "screen_share", "screen_share_audio"]}',
        id="may_publish",
    ),
    pytest.param(
        moderation.StateView(
            version=7,
            restrictions=(moderation.RestrictionView(source="microphone", allowed=(CAROL, BOB)),),
            blocks=(moderation.BlockView(participant=BOB, source="screen_share"),),
            participants=(
                moderation.ParticipantView(
                    participant=BOB,
                    role="user",
                    kind="sip",
                    connected=True,
                    in_livekit=True,
                    may_publish=("microphone",),
                    publishing=(moderation.TrackView(source="microphone", track_sid="TR_1", muted=False),),
                    hand_is_up=True,
                    settling=False,
                ),
            ),
        ),
        '{"version": 7, "restrictions": [{"source": "microphone", "allowed": ["bob", "carol"]}],'
        ' "blocks": [{"participant": "bob", "source": "screen_share"}],'
        ' "participants": [{"participant": "bob", "role": "user", "kind": "sip", "connected": true,'
        ' "in_livekit": true, "may_publish": ["microphone"],'
        ' "publishing": [{"source": "microphone", "track_sid": "TR_1", "muted": false}],'
        ' "hand_is_up": true, "settling": false}]}',
        id="state",
    ),
]


@pytest.mark.parametrize(("event", "text"), EVENTS)
def test_dump_an_event(event: moderation.ModerationEvent, text: str) -> None:
    assert json.loads(dumped(event)) == json.loads(text)
    assert Delivery(event, 0).payload == json.loads(text)
    assert Delivery(event, 0).namespace == "livekit_moderation"


@pytest.mark.parametrize(("event", "text"), EVENTS)
def test_parse_an_event(event: moderation.ModerationEvent, text: str) -> None:
    assert parsed(type(event), text) == event
    assert parsed(type(event), reversed_keys(text)) == event


@pytest.mark.parametrize(("part", "text"), PARTS)
def test_dump_a_part(part: Message, text: str) -> None:
    assert json.loads(dumped(part)) == json.loads(text)


@pytest.mark.parametrize(("part", "text"), PARTS)
def test_parse_a_part(part: Message, text: str) -> None:
    assert parsed(type(part), text) == part


def test_every_event_has_its_rows() -> None:
    assert {type(param.values[0]) for param in EVENTS} == concrete(moderation.ModerationEvent)


@pytest.mark.parametrize(
    "outcome",
    [
        "muted",
        "already_muted",
        "no_track",
        "granted",
        "revoked",
        "restricted",
        "settling",
        "unrestricted",
        "unchanged",
        "exempt",
        "not_connected",
        "unknown",
        "failed",
    ],
)
def test_every_outcome_is_on_the_wire(outcome: str) -> None:
    text = f'{{"participant": "bob", "outcome": "{outcome}"}}'
    assert json.loads(dumped(parsed(moderation.Outcome, text))) == json.loads(text)


def test_what_is_no_command_is_refused() -> None:
    with pytest.raises(MessageError, match="action: not a command of this namespace"):
        parse_payload({"action": "force_mute", "participants": []}, moderation.COMMANDS)
