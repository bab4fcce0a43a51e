import json
from typing import Any, get_args

import pytest

from signaling.errors import MessageError
from signaling.identifiers import ParticipantId
from signaling.messages import livekit, moderation
from signaling.messages.base import MAX_IDS, Message, in_order, parse_payload, rfc3339
from signaling.messages.envelope import Delivery
from tests.messages.wire import concrete, dumped, parsed, reversed_keys, row, with_unknown_keys

ALICE = ParticipantId("alice")
BOB = ParticipantId("bob")
CAROL = ParticipantId("carol")
AT = 1_772_357_400.123
AT_TEXT = "2026-03-01T09:30:00.123Z"

COMMANDS = [
    row(moderation.Mute(participants=(BOB,)), '{"action": "mute", "participants": ["bob"], "sources": ["microphone"]}'),
    row(
        moderation.Mute(everyone_except=(), sources=("camera", "microphone"), hold_s=3600),
        '{"action": "mute", "everyone_except": [], "sources": ["camera", "microphone"], "hold_s": 3600}',
    ),
    row(moderation.Restrict(source="camera"), '{"action": "restrict", "source": "camera", "allowed": []}'),
    row(
        moderation.Restrict(source="microphone", allowed=(BOB, CAROL), expires_in_s=1),
        '{"action": "restrict", "source": "microphone", "allowed": ["bob", "carol"], "expires_in_s": 1}',
    ),
    row(moderation.Unrestrict(source="screen_share"), '{"action": "unrestrict", "source": "screen_share"}'),
    row(
        moderation.Disallow(source="camera", participants=(BOB,)),
        '{"action": "disallow", "source": "camera", "participants": ["bob"]}',
    ),
    row(
        moderation.Allow(source="microphone", participants=(BOB,)),
        '{"action": "allow", "source": "microphone", "participants": ["bob"]}',
    ),
    row(
        moderation.Stop(source="screen_share", participants=(BOB,)),
        '{"action": "stop", "source": "screen_share", "participants": ["bob"]}',
    ),
    row(moderation.SetPresenter(), '{"action": "set_presenter"}'),
    row(moderation.SetPresenter(participant=BOB), '{"action": "set_presenter", "participant": "bob"}'),
    row(moderation.AskToUnmute(participants=(BOB,)), '{"action": "ask_to_unmute", "participants": ["bob"]}'),
    row(
        moderation.AnswerUnmuteRequest(request_id="r-1", accept=False),
        '{"action": "answer_unmute_request", "request_id": "r-1", "accept": false}',
    ),
    row(moderation.Kick(participants=(BOB,)), '{"action": "kick", "participants": ["bob"], "ban": false}'),
    row(
        moderation.Kick(participants=(BOB,), ban=True, reason="shouting"),
        '{"action": "kick", "participants": ["bob"], "ban": true, "reason": "shouting"}',
    ),
    row(moderation.Unban(participants=(BOB,)), '{"action": "unban", "participants": ["bob"]}'),
    row(moderation.Undo(command_id="c-1"), '{"action": "undo", "command_id": "c-1"}'),
    row(moderation.GetState(), '{"action": "get_state"}'),
    row(moderation.Watch(enabled=True), '{"action": "watch", "enabled": true}'),
    row(moderation.GetAudit(limit=100), '{"action": "get_audit", "limit": 100}'),
    row(moderation.GetAudit(limit=1, before="c-1"), '{"action": "get_audit", "limit": 1, "before": "c-1"}'),
    row(
        moderation.Preview(command=moderation.Mute(everyone_except=(BOB,))),
        '{"action": "preview", "command": {"action": "mute", "everyone_except": ["bob"], "sources": ["microphone"]}}',
    ),
    row(
        moderation.Preview(command=moderation.SetPresenter(participant=BOB)),
        '{"action": "preview", "command": {"action": "set_presenter", "participant": "bob"}}',
    ),
]

VIEW = moderation.ParticipantView(
    participant=BOB,
    role="user",
    kind="sip",
    connected=True,
    in_livekit=True,
    may_publish=("microphone",),
    publishing=(moderation.TrackView(source="microphone", track_sid="TR_1", muted=False),),
    hand_is_up=True,
    hand_updated_at=rfc3339(AT),
    settling=False,
)
VIEW_TEXT = (
    '{"participant": "bob", "role": "user", "kind": "sip", "connected": true,'
    ' "in_livekit": true, "may_publish": ["microphone"],'
    ' "publishing": [{"source": "microphone", "track_sid": "TR_1", "muted": false}],'
    ' "hand_is_up": true, "hand_updated_at": "2026-03-01T09:30:00.123Z", "settling": false}'
)
STRANGER = moderation.StrangerView(
    identity=ParticipantId("sip_+4930 #1"),
    kind="sip",
    may_publish=("camera",),
    publishing=(moderation.TrackView(source="unknown", track_sid="TR_2", muted=True),),
    settling=True,
)
STRANGER_TEXT = (
    '{"identity": "sip_+4930 #1", "role": "guest", "kind": "sip", "connected": false, "in_livekit": true,'
    ' "may_publish": ["camera"], "publishing": [{"source": "unknown", "track_sid": "TR_2", "muted": true}],'
    ' "hand_is_up": false, "settling": true}'
)
STATE = moderation.StateView(
    version=7,
    restrictions=(
        moderation.RestrictionView(source="microphone", allowed=(CAROL, BOB)),
        moderation.RestrictionView(source="camera", allowed=(), expires_at=rfc3339(AT)),
    ),
    blocks=(
        moderation.BlockView(participant=BOB, source="screen_share", cause="moderator"),
        moderation.BlockView(participant=BOB, source="camera", cause="bypass", count=1),
        moderation.BlockView(participant=BOB, source="microphone", cause="hold", until=rfc3339(AT)),
    ),
    bans=(CAROL, ALICE),
    presenter=BOB,
    participants=(VIEW,),
    strangers=(STRANGER,),
)
STATE_TEXT = (
    '"version": 7, "restrictions": [{"source": "microphone", "allowed": ["bob", "carol"]},'
    f' {{"source": "camera", "allowed": [], "expires_at": "{AT_TEXT}"}}],'
    ' "blocks": [{"participant": "bob", "source": "screen_share", "cause": "moderator"},'
    ' {"participant": "bob", "source": "camera", "cause": "bypass", "count": 1},'
    f' {{"participant": "bob", "source": "microphone", "cause": "hold", "until": "{AT_TEXT}"}}],'
    f' "bans": ["alice", "carol"], "presenter": "bob", "participants": [{VIEW_TEXT}],'
    f' "strangers": [{STRANGER_TEXT}]'
)
ENTRY: dict[str, Any] = {
    "command_id": "c-1",
    "at": rfc3339(AT),
    "moderator": ALICE,
    "action": "kick",
    "targets": (CAROL, BOB),
    "outcomes": (moderation.Outcome(participant=BOB, outcome="removed"),),
}
ENTRY_TEXT = (
    f'"command_id": "c-1", "at": "{AT_TEXT}", "moderator": "alice", "action": "kick", "targets": ["bob", "carol"],'
    ' "outcomes": [{"participant": "bob", "outcome": "removed"}]'
)

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
    row(
        moderation.Result(command_id="c-2", error="rate_limit_exceeded", retry_after_s=0.5),
        '{"message": "result", "command_id": "c-2", "error": "rate_limit_exceeded", "retry_after_s": 0.5,'
        ' "outcomes": [], "repaired_later": []}',
    ),
    *(
        row(moderation.ModerationError(error=code), f'{{"message": "error", "error": "{code}"}}')
        for code in (
            "insufficient_permissions",
            "invalid_command",
            "livekit_unavailable",
            "unavailable",
            "unknown_command_id",
            "unknown_request_id",
            "not_undoable",
            "rate_limit_exceeded",
            "internal",
        )
    ),
    row(
        moderation.ModerationError(error="invalid_command", detail="unknown field"),
        '{"message": "error", "error": "invalid_command", "detail": "unknown field"}',
    ),
    row(
        moderation.ModerationError(error="rate_limit_exceeded", retry_after_s=1.0),
        '{"message": "error", "error": "rate_limit_exceeded", "retry_after_s": 1.0}',
    ),
    row(moderation.State(**dict(STATE)), f'{{"message": "state", {STATE_TEXT}}}'),
    row(
        moderation.StateChanged(version=8, changed=moderation.Changed(gone=("presenter",))),
        '{"message": "state_changed", "version": 8, "changed": {"gone": ["presenter"]}}',
    ),
    row(
        moderation.StateChanged(
            version=9,
            changed=moderation.Changed(
                restrictions=(),
                blocks=(),
                bans=(),
                presenter=CAROL,
                participants=(VIEW, moderation.ParticipantGone(participant=CAROL)),
                strangers=(STRANGER,),
            ),
        ),
        '{"message": "state_changed", "version": 9, "changed": {"restrictions": [], "blocks": [], "bans": [],'
        f' "presenter": "carol", "participants": [{VIEW_TEXT}, {{"participant": "carol", "gone": true}}],'
        f' "strangers": [{STRANGER_TEXT}]}}}}',
    ),
    row(moderation.Audit(entries=()), '{"message": "audit", "entries": []}'),
    row(
        moderation.Audit(entries=(moderation.AuditView(**ENTRY),)),
        f'{{"message": "audit", "entries": [{{{ENTRY_TEXT}}}]}}',
    ),
    row(
        moderation.ActionTaken(**ENTRY, reason="shouting"),
        f'{{"message": "action_taken", {ENTRY_TEXT}, "reason": "shouting"}}',
    ),
    row(
        moderation.Muted(moderator="controller", sources=("camera", "microphone")),
        '{"message": "muted", "moderator": "controller", "sources": ["camera", "microphone"]}',
    ),
    row(
        moderation.PermissionsChanged(may_publish=(), cause="expiry"),
        '{"message": "permissions_changed", "may_publish": [], "cause": "expiry"}',
    ),
    *(
        row(
            moderation.PermissionsChanged(moderator=ALICE, may_publish=("camera",), cause=cause),
            '{"message": "permissions_changed", "moderator": "alice", "may_publish": ["camera"],'
            f' "cause": "{cause}"}}',
        )
        for cause in ("restriction", "permission", "hold", "presenter", "role", "bypass", "undo")
    ),
    row(moderation.Kicked(moderator=ALICE), '{"message": "kicked", "moderator": "alice"}'),
    row(
        moderation.Kicked(moderator="controller", reason="shouting"),
        '{"message": "kicked", "moderator": "controller", "reason": "shouting"}',
    ),
    row(
        moderation.UnmuteRequested(request_id="r-1", moderator=ALICE),
        '{"message": "unmute_requested", "request_id": "r-1", "moderator": "alice"}',
    ),
    row(
        moderation.UnmuteRequestAnswered(request_id="r-1", participant=BOB, accepted=False),
        '{"message": "unmute_request_answered", "request_id": "r-1", "participant": "bob", "accepted": false}',
    ),
    row(
        moderation.DriftRepaired(participant="bob#2", found=("camera", "microphone"), expected=()),
        '{"message": "drift_repaired", "participant": "bob#2", "found": ["camera", "microphone"], "expected": []}',
    ),
    *(
        row(
            moderation.BypassStopped(participant=BOB, track_sid="TR_1", declared="camera", media=media),
            '{"message": "bypass_stopped", "participant": "bob", "track_sid": "TR_1", "declared": "camera",'
            f' "media": "{media}"}}',
        )
        for media in ("audio", "video")
    ),
    row(moderation.UnmutedAgain(participant=BOB), '{"message": "unmuted_again", "participant": "bob"}'),
    row(moderation.UnknownParticipant(identity="EG 1#"), '{"message": "unknown_participant", "identity": "EG 1#"}'),
    row(moderation.StateRolledBack(command_ids=()), '{"message": "state_rolled_back", "command_ids": []}'),
    row(
        moderation.StateRolledBack(command_ids=("c1", "c2")),
        '{"message": "state_rolled_back", "command_ids": ["c1", "c2"]}',
    ),
]

PARTS = [
    pytest.param(
        moderation.MayPublish(may_publish=("camera", "microphone", "screen_share", "screen_share_audio")),
        '{"may_publish": ["camera", "microphone", "screen_share", "screen_share_audio"]}',
        id="may_publish",
    ),
    pytest.param(STATE, f"{{{STATE_TEXT}}}", id="state"),
    pytest.param(
        moderation.StateView(version=1, restrictions=(), blocks=(), bans=(), participants=()),
        '{"version": 1, "restrictions": [], "blocks": [], "bans": [], "participants": [], "strangers": []}',
        id="state-without-presenter",
    ),
]


# --- Commands ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "text"), COMMANDS)
def test_dump_a_command(command: moderation.ModerationCommand, text: str) -> None:
    assert json.loads(dumped(command)) == json.loads(text)


@pytest.mark.parametrize(("command", "text"), COMMANDS)
def test_parse_a_command(command: moderation.ModerationCommand, text: str) -> None:
    assert parse_payload(json.loads(text), moderation.COMMANDS) == command
    assert parse_payload(json.loads(reversed_keys(text)), moderation.COMMANDS) == command


@pytest.mark.parametrize(("command", "text"), COMMANDS)
def test_unknown_keys_of_a_command_are_refused(command: moderation.ModerationCommand, text: str) -> None:
    assert refused(with_unknown_keys(text)) == "unknown field"
    assert command.action in text


def test_every_command_has_its_rows() -> None:
    assert {param.values[0].action for param in COMMANDS} == moderation.COMMANDS.keys()  # type: ignore[union-attr]
    assert set(get_args(moderation.ModerationCommand)) == set(moderation.COMMANDS.values())


def refused(text: str) -> str:
    with pytest.raises(MessageError) as caught:
        parse_payload(json.loads(text), moderation.COMMANDS)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ('{"action": "mute"}', "participants, everyone_except: exactly one of them is required"),
        (
            '{"action": "mute", "participants": [], "everyone_except": []}',
            "participants, everyone_except: exactly one of them is required",
        ),
        (
            '{"action": "mute", "participants": null, "everyone_except": []}',
            "participants: must be left out, never null",
        ),
        ('{"action": "mute", "participants": [], "sources": []}', "sources: must not be empty"),
        ('{"action": "mute", "participants": [], "sources": null}', "sources: must be left out, never null"),
        ('{"action": "mute", "participants": [], "hold_s": null}', "hold_s: must be left out, never null"),
        ('{"action": "mute", "participants": [], "hold_s": 0}', "hold_s: Input should be greater than or equal to 1"),
        (
            '{"action": "mute", "participants": [], "hold_s": 3601}',
            "hold_s: Input should be less than or equal to 3600",
        ),
        ('{"action": "mute", "participants": [], "hold_s": 1.5}', "hold_s: must be a whole number"),
        ('{"action": "mute", "participants": [], "hold_s": true}', "hold_s: must be a whole number"),
        ('{"action": "restrict"}', "source: is required"),
        ('{"action": "restrict", "source": "camera", "allowed": null}', "allowed: must be left out, never null"),
        (
            '{"action": "restrict", "source": "camera", "expires_in_s": null}',
            "expires_in_s: must be left out, never null",
        ),
        ('{"action": "set_presenter", "participant": null}', "participant: must be left out, never null"),
        ('{"action": "kick", "participants": [], "ban": null}', "ban: must be left out, never null"),
        ('{"action": "kick", "participants": [], "ban": 1}', "ban: must be true or false"),
        ('{"action": "kick", "participants": [], "reason": null}', "reason: must be left out, never null"),
        ('{"action": "kick", "participants": null}', "participants: must be a list"),
        ('{"action": "watch"}', "enabled: is required"),
        ('{"action": "get_audit", "limit": 101}', "limit: Input should be less than or equal to 100"),
        ('{"action": "get_audit", "limit": 1, "before": null}', "before: must be left out, never null"),
        ('{"action": "preview"}', "command: is required"),
        ('{"action": "preview", "command": []}', "command: payload: must be an object"),
        ('{"action": "preview", "command": {"action": "kick"}}', "command: action: not a command of this namespace"),
        ('{"action": "preview", "command": {"action": "mute", "x": 1, "participants": []}}', "command: unknown field"),
        (
            '{"action": "preview", "command": {"action": "set_presenter", "participant": null}}',
            "command: participant: must be left out, never null",
        ),
    ],
)
def test_what_is_wrong_is_named(text: str, detail: str) -> None:
    assert refused(text) == detail


@pytest.mark.parametrize("action", ["restrict", "unrestrict", "disallow", "allow", "stop"])
def test_screen_sharing_is_one_thing(action: str) -> None:
    named = ', "participants": []' if action in {"disallow", "allow", "stop"} else ""
    assert refused(f'{{"action": "{action}", "source": "screen_share_audio"{named}}}').startswith("source: ")


def test_sources_are_taken_once_and_in_livekits_order() -> None:
    text = '{"action": "mute", "participants": [], "sources": ["screen_share", "camera", "screen_share"]}'
    assert parse_payload(json.loads(text), moderation.COMMANDS) == moderation.Mute(
        participants=(), sources=("camera", "screen_share")
    )


def test_a_reason_loses_the_spaces_around_it_and_must_not_be_empty() -> None:
    kick = parse_payload({"action": "kick", "participants": [], "reason": " shouting\n"}, moderation.COMMANDS)
    assert isinstance(kick, moderation.Kick)
    assert kick.reason == "shouting"
    assert refused('{"action": "kick", "participants": [], "reason": " "}').startswith("reason: ")


# --- Events ------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("outcome", get_args(moderation.OutcomeName))
def test_every_outcome_is_on_the_wire(outcome: str) -> None:
    text = f'{{"participant": "bob", "outcome": "{outcome}"}}'
    assert json.loads(dumped(parsed(moderation.Outcome, text))) == json.loads(text)


def test_lists_in_what_is_told_are_as_long_as_they_are() -> None:
    many = tuple(ParticipantId(f"p{number:05}") for number in range(MAX_IDS + 1))
    for told in (
        moderation.Result(command_id="c-1", repaired_later=many).repaired_later,
        moderation.RestrictionView(source="microphone", allowed=many).allowed,
        livekit.MicrophoneRestrictionsEnabled(unrestricted_participants=many).unrestricted_participants,
        livekit.MicrophoneRestrictionsOn(unrestricted_participants=many).unrestricted_participants,
        livekit.ScreenSharePermissionsUpdated(grant=True, participants=many).participants,
    ):
        assert told == in_order(many)


def test_what_is_no_command_is_refused() -> None:
    assert refused('{"action": "force_mute", "participants": []}') == "action: not a command of this namespace"
