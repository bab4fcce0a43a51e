"""One example at least of every kind of message."""

from typing import Final

from signaling.identifiers import CONTROLLER, ParticipantId
from signaling.messages import control, echo, livekit, moderation, removal
from signaling.messages.base import Message, rfc3339
from signaling.messages.json_schema import Json

ALICE: Final = ParticipantId("0b1f9f6e-6a3c-4b8e-9c53-8d5f1f7f2a10")
BOB: Final = ParticipantId("5c2d7a41-93be-4f0a-8f4e-2b6f0c9d1e57")
CAROL: Final = ParticipantId("e4a86b1d-0f72-4c19-b3d5-71a9c2f8d603")
DAVE: Final = ParticipantId("a1d0c3b2-7e45-4f96-8a2b-3c9d5e6f7081")

AT: Final = 1_772_357_400.123
TOKEN: Final = "eyJhbGciOiJIUzI1NiJ9.eyJ2aWRlbyI6e319.c2lnbmF0dXJl"  # noqa: S105 - an example
_COMMAND_ID: Final = "7f0c2b5d4e6a48c19a3b8d7e6f5a4c3b"
_REQUEST_ID: Final = "2c9a51d08b7e4f63a0d4e8f1b6c37295-1"
_ALICE_DATA: Final = control.ControlData(
    display_name="Alice",
    role="moderator",
    participation_kind="user",
    hand_is_up=False,
    hand_updated_at=rfc3339(AT - 60),
    joined_at=rfc3339(AT - 60),
)
_BOB_DATA: Final = control.ControlData(
    display_name="Bob",
    role="user",
    participation_kind="user",
    hand_is_up=True,
    hand_updated_at=rfc3339(AT - 10),
    joined_at=rfc3339(AT - 30),
)
_ROOM_INFO: Final = control.RoomInfo(id="9d2b1c7e-standup")
_JOIN_DATA: Final = livekit.JoinData(
    room="9d2b1c7e-standup",
    token=TOKEN,
    public_url="wss://lk.example.org",
    microphone_restriction_state=livekit.MicrophoneRestrictionsOn(unrestricted_participants=(BOB,)),
)
_AUDIT_ENTRY: Final = moderation.AuditView(
    command_id=_COMMAND_ID,
    at=rfc3339(AT),
    moderator=ALICE,
    action="kick",
    targets=(DAVE,),
    outcomes=(moderation.Outcome(participant=DAVE, outcome="banned"),),
    reason="shouting",
)
_STATE: Final = moderation.StateView(
    version=12,
    restrictions=(
        moderation.RestrictionView(source="microphone", allowed=(BOB,)),
        moderation.RestrictionView(source="camera", allowed=(), expires_at=rfc3339(AT + 600)),
    ),
    blocks=(
        moderation.BlockView(participant=CAROL, source="screen_share", cause="moderator"),
        moderation.BlockView(participant=CAROL, source="camera", cause="bypass", count=1),
        moderation.BlockView(participant=CAROL, source="microphone", cause="hold", until=rfc3339(AT + 60)),
    ),
    bans=(DAVE,),
    presenter=BOB,
    participants=(
        moderation.ParticipantView(
            participant=BOB,
            role="user",
            kind="user",
            connected=True,
            in_livekit=True,
            may_publish=("camera", "microphone", "screen_share", "screen_share_audio"),
            publishing=(moderation.TrackView(source="microphone", track_sid="TR_AMbqL3kEdYVrsW", muted=False),),
            hand_is_up=True,
            hand_updated_at=rfc3339(AT - 10),
            settling=False,
        ),
    ),
)

EXAMPLES: Final[tuple[Message, ...]] = (
    control.Join(extensions=("livekit_moderation",)),
    control.Join(display_name="Carol from next door"),
    control.RaiseHand(),
    control.LowerHand(),
    control.LowerHand(target=BOB),
    control.GrantModeratorRole(target=BOB),
    control.RevokeModeratorRole(target=BOB),
    control.JoinSuccess(
        id=ALICE,
        display_name="Alice",
        role="moderator",
        hand_is_up=False,
        participants=(control.ParticipantEntry(id=BOB, control=_BOB_DATA),),
        livekit=_JOIN_DATA,
        livekit_moderation=_STATE,
        room_info=_ROOM_INFO,
    ),
    control.JoinSuccess(
        id=BOB,
        display_name="Bob",
        role="user",
        hand_is_up=True,
        hand_updated_at=rfc3339(AT - 10),
        participants=(control.ParticipantEntry(id=ALICE, control=_ALICE_DATA),),
        livekit=livekit.JoinData(
            room="9d2b1c7e-standup:red",
            token=TOKEN,
            public_url="wss://lk.example.org",
            microphone_restriction_state=livekit.MicrophoneRestrictionsOff(),
        ),
        livekit_moderation=moderation.MayPublish(may_publish=("camera", "microphone")),
        room_info=_ROOM_INFO,
    ),
    control.JoinSuccess(
        id=BOB, display_name="Bob", role="user", hand_is_up=False, participants=(), room_info=_ROOM_INFO
    ),
    control.Joined(id=ALICE, control=_ALICE_DATA),
    control.Update(id=BOB, control=_BOB_DATA),
    control.Left(id=BOB, reason="timeout"),
    control.HandRaised(),
    control.HandLowered(),
    control.RoleUpdated(new_role="moderator"),
    control.ModeratorRoleGranted(target=BOB),
    control.ModeratorRoleRevoked(target=BOB),
    control.RoomDeleted(),
    control.ControlError(error="not_yet_joined"),
    control.ControlError(error="invalid_command", detail="target: is required"),
    echo.Ping(),
    echo.Pong(),
    echo.EchoError(error="invalid_command", detail="action: not a command of this namespace"),
    livekit.CreateNewAccessToken(),
    livekit.ForceMute(participants=(BOB, CAROL)),
    livekit.GrantScreenSharePermission(participants=(BOB,)),
    livekit.RevokeScreenSharePermission(participants=(BOB,)),
    livekit.EnableMicrophoneRestrictions(unrestricted_participants=(BOB,)),
    livekit.EnableMicrophoneRestrictions(unrestricted_participants=()),
    livekit.DisableMicrophoneRestrictions(),
    livekit.RequestPopoutStreamAccessToken(),
    livekit.Credentials(room="9d2b1c7e-standup", token=TOKEN, public_url="wss://lk.example.org"),
    livekit.Credentials(
        room="9d2b1c7e-standup",
        token=TOKEN,
        public_url="wss://lk.example.org",
        service_url="ws://lk.internal:7880",
    ),
    livekit.PopoutStreamAccessToken(token=TOKEN),
    livekit.ForceMuted(moderator=ALICE),
    livekit.ForceMuted(moderator=CONTROLLER),
    livekit.MicrophoneRestrictionsEnabled(unrestricted_participants=(BOB,)),
    livekit.MicrophoneRestrictionsDisabled(),
    livekit.ScreenSharePermissionsUpdated(grant=True, participants=(BOB,)),
    livekit.LiveKitError(error="livekit_unavailable"),
    livekit.LiveKitError(error="invalid_command", detail="participants: must be a list"),
    moderation.Result(
        command_id=_COMMAND_ID,
        action="force_mute",
        outcomes=(
            moderation.Outcome(participant=BOB, outcome="muted"),
            moderation.Outcome(participant=CAROL, outcome="no_track"),
        ),
    ),
    moderation.Result(
        command_id=_COMMAND_ID,
        action="enable_microphone_restrictions",
        error="livekit_unavailable",
        outcomes=(moderation.Outcome(participant=CAROL, outcome="failed", error="livekit_unavailable"),),
        repaired_later=(CAROL,),
    ),
    moderation.Result(command_id=_COMMAND_ID, error="invalid_command", detail="action: is required"),
    moderation.Result(command_id=_COMMAND_ID, action="force_mute", error="rate_limit_exceeded", retry_after_s=1.0),
    moderation.ModerationError(error="invalid_command", detail="action: not a command of this namespace"),
    moderation.ModerationError(error="rate_limit_exceeded", retry_after_s=0.1),
    moderation.Mute(everyone_except=(BOB,), hold_s=300),
    moderation.Mute(participants=(BOB, CAROL), sources=("camera", "microphone")),
    moderation.Restrict(source="camera"),
    moderation.Restrict(source="microphone", allowed=(BOB,), expires_in_s=600),
    moderation.Unrestrict(source="microphone"),
    moderation.Disallow(source="camera", participants=(BOB,)),
    moderation.Allow(source="camera", participants=(BOB,)),
    moderation.Stop(source="screen_share", participants=(BOB,)),
    moderation.SetPresenter(),
    moderation.SetPresenter(participant=BOB),
    moderation.AskToUnmute(participants=(BOB,)),
    moderation.AnswerUnmuteRequest(request_id=_REQUEST_ID, accept=True),
    moderation.Kick(participants=(DAVE,)),
    moderation.Kick(participants=(DAVE,), ban=True, reason="shouting"),
    moderation.Unban(participants=(DAVE,)),
    moderation.Undo(command_id=_COMMAND_ID),
    moderation.GetState(),
    moderation.Watch(enabled=True),
    moderation.GetAudit(limit=50),
    moderation.GetAudit(limit=50, before=_COMMAND_ID),
    moderation.Preview(command=moderation.Mute(everyone_except=())),
    moderation.Preview(command=moderation.Restrict(source="microphone", allowed=(BOB,))),
    moderation.State(**dict(_STATE)),
    moderation.StateChanged(
        version=13,
        changed=moderation.Changed(
            bans=(),
            participants=(_STATE.participants[0], moderation.ParticipantGone(participant=CAROL)),
            gone=("presenter",),
        ),
    ),
    moderation.StateChanged(version=14, changed=moderation.Changed(presenter=CAROL)),
    moderation.Audit(entries=(_AUDIT_ENTRY,)),
    moderation.ActionTaken(**dict(_AUDIT_ENTRY)),
    moderation.Muted(moderator=ALICE, sources=("microphone",)),
    moderation.PermissionsChanged(moderator=ALICE, may_publish=("camera",), cause="restriction"),
    moderation.PermissionsChanged(may_publish=("camera", "microphone"), cause="expiry"),
    moderation.Kicked(moderator=CONTROLLER),
    moderation.Kicked(moderator=ALICE, reason="shouting"),
    moderation.UnmuteRequested(request_id=_REQUEST_ID, moderator=ALICE),
    moderation.UnmuteRequestAnswered(request_id=_REQUEST_ID, participant=BOB, accepted=True),
    moderation.DriftRepaired(participant=BOB, found=("camera", "microphone"), expected=("camera",)),
    moderation.BypassStopped(participant=BOB, track_sid="TR_VCmbqL3kEdYVrs", declared="camera", media="audio"),
    moderation.UnmutedAgain(participant=BOB),
    moderation.UnknownParticipant(identity="EG_hJ4mTz9qWx"),
    moderation.StateRolledBack(command_ids=("0190d2f4a1b27c3e",)),
    removal.Kicked(),
    removal.Banned(),
)
"""One of each message at least."""


def examples(kind: type[Message]) -> list[Json]:
    """Examples of a kind of message, as they are on the wire."""
    found = [message.model_dump(mode="json", exclude_none=True) for message in EXAMPLES if type(message) is kind]
    if not found:
        raise LookupError(f"{kind.__name__} needs an example")
    return found
