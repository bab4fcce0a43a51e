"""`make schemas`: JSON Schema for every message, and AsyncAPI for the whole WebSocket, out of `signaling.messages`."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import signaling
from signaling import messages
from signaling.identifiers import CONTROLLER, ParticipantId
from signaling.messages import control, echo, livekit, moderation, removal
from signaling.messages.base import Command, Event, Message, Namespace, ServerNamespace, rfc3339
from signaling.messages.envelope import MAX_FRAME_BYTES, MAX_TRANSACTION_ID, MAX_TRANSACTION_ID_LENGTH
from signaling.messages.json_schema import NAMED, TIMESTAMP, TOLD, Json, SchemaGenerator
from signaling.server.handshake import PATH, STATUS, SUBPROTOCOL, TICKET_PREFIX

CLIENT_FRAME: Final = "client_frame.json"
SERVER_FRAME: Final = "server_frame.json"
ASYNCAPI: Final = "asyncapi.yaml"

AnyNamespace = Namespace | ServerNamespace

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_KEYWORDS: Final = (
    *("$schema", "$id", "$ref", "title", "description", "const", "enum", "type", "format"),
    *("properties", "required", "additionalProperties", "items", "minItems", "maxItems", "uniqueItems"),
    *(
        "minimum",
        "maximum",
        "minLength",
        "maxLength",
        "pattern",
        "not",
        "oneOf",
        "anyOf",
        "default",
        "$defs",
        "examples",
    ),
)
"""In the order in which people read them."""

_COMMANDS: Final[Mapping[Namespace, Mapping[str, type[Command]]]] = {
    Namespace.CONTROL: control.COMMANDS,
    Namespace.ECHO: echo.COMMANDS,
    Namespace.LIVEKIT: livekit.COMMANDS,
    Namespace.MODERATION: moderation.COMMANDS,
}


# --- Examples ----------------------------------------------------------------------------------------------------

ALICE: Final = ParticipantId("0b1f9f6e-6a3c-4b8e-9c53-8d5f1f7f2a10")
BOB: Final = ParticipantId("5c2d7a41-93be-4f0a-8f4e-2b6f0c9d1e57")
CAROL: Final = ParticipantId("e4a86b1d-0f72-4c19-b3d5-71a9c2f8d603")
DAVE: Final = ParticipantId("a1d0c3b2-7e45-4f96-8a2b-3c9d5e6f7081")

_AT: Final = 1_772_357_400.123
_TOKEN: Final = "eyJhbGciOiJIUzI1NiJ9.eyJ2aWRlbyI6e319.c2lnbmF0dXJl"  # noqa: S105 - an example
_COMMAND_ID: Final = "7f0c2b5d4e6a48c19a3b8d7e6f5a4c3b"
_REQUEST_ID: Final = "2c9a51d08b7e4f63a0d4e8f1b6c37295-1"
_ALICE_DATA: Final = control.ControlData(
    display_name="Alice",
    role="moderator",
    participation_kind="user",
    hand_is_up=False,
    hand_updated_at=rfc3339(_AT - 60),
    joined_at=rfc3339(_AT - 60),
)
_BOB_DATA: Final = control.ControlData(
    display_name="Bob",
    role="user",
    participation_kind="user",
    hand_is_up=True,
    hand_updated_at=rfc3339(_AT - 10),
    joined_at=rfc3339(_AT - 30),
)
_ROOM_INFO: Final = control.RoomInfo(id="9d2b1c7e-standup")
_JOIN_DATA: Final = livekit.JoinData(
    room="9d2b1c7e-standup",
    token=_TOKEN,
    public_url="wss://lk.example.org",
    microphone_restriction_state=livekit.MicrophoneRestrictionsOn(unrestricted_participants=(BOB,)),
)
_AUDIT_ENTRY: Final = moderation.AuditView(
    command_id=_COMMAND_ID,
    at=rfc3339(_AT),
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
        moderation.RestrictionView(source="camera", allowed=(), expires_at=rfc3339(_AT + 600)),
    ),
    blocks=(
        moderation.BlockView(participant=CAROL, source="screen_share", cause="moderator"),
        moderation.BlockView(participant=CAROL, source="camera", cause="bypass", count=1),
        moderation.BlockView(participant=CAROL, source="microphone", cause="hold", until=rfc3339(_AT + 60)),
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
            hand_updated_at=rfc3339(_AT - 10),
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
        hand_updated_at=rfc3339(_AT - 10),
        participants=(control.ParticipantEntry(id=ALICE, control=_ALICE_DATA),),
        livekit=livekit.JoinData(
            room="9d2b1c7e-standup:red",
            token=_TOKEN,
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
    livekit.Credentials(room="9d2b1c7e-standup", token=_TOKEN, public_url="wss://lk.example.org"),
    livekit.Credentials(
        room="9d2b1c7e-standup",
        token=_TOKEN,
        public_url="wss://lk.example.org",
        service_url="ws://lk.internal:7880",
    ),
    livekit.PopoutStreamAccessToken(token=_TOKEN),
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
    removal.Kicked(),
    removal.Banned(),
)
"""One of each message at least."""

_Kinds = tuple[type[Event], ...]
_OF_LIVEKIT: Final[_Kinds] = (livekit.LiveKitError, moderation.Result, control.ControlError)
_OF_CONTROL: Final[_Kinds] = (control.ControlError,)
_OF_READING: Final[_Kinds] = (moderation.Result, moderation.ModerationError)
# What moderators do is told to all of them, and may change their own rights.
_OF_ACTIONS: Final[_Kinds] = (moderation.ActionTaken, moderation.PermissionsChanged)
# That LiveKit did not do its part of a command is told in `livekit`, whatever the command's own namespace.
_OF_MODERATION: Final[_Kinds] = (*_OF_ACTIONS, *_OF_READING, livekit.LiveKitError)
_OF_ROLES: Final[_Kinds] = (control.Update, *_OF_ACTIONS, control.ControlError, livekit.LiveKitError)
_OF_MICROPHONES: Final[_Kinds] = (
    livekit.MicrophoneRestrictionsEnabled,
    livekit.MicrophoneRestrictionsDisabled,
    *_OF_MODERATION,
)
REPLIES: Final[Mapping[type[Command], _Kinds]] = {
    control.Join: (control.JoinSuccess, control.ControlError),
    control.RaiseHand: (control.HandRaised, *_OF_CONTROL),
    control.LowerHand: (control.HandLowered, control.Update, *_OF_CONTROL),
    control.GrantModeratorRole: (control.ModeratorRoleGranted, *_OF_ROLES),
    control.RevokeModeratorRole: (control.RoleUpdated, control.ModeratorRoleRevoked, *_OF_ROLES),
    echo.Ping: (echo.Pong, echo.EchoError),
    livekit.CreateNewAccessToken: (livekit.Credentials, *_OF_LIVEKIT),
    livekit.ForceMute: (livekit.ForceMuted, moderation.Muted, *_OF_ACTIONS, *_OF_LIVEKIT),
    livekit.GrantScreenSharePermission: (livekit.ScreenSharePermissionsUpdated, *_OF_ACTIONS, *_OF_LIVEKIT),
    livekit.RevokeScreenSharePermission: (livekit.ScreenSharePermissionsUpdated, *_OF_ACTIONS, *_OF_LIVEKIT),
    livekit.EnableMicrophoneRestrictions: (livekit.MicrophoneRestrictionsEnabled, *_OF_ACTIONS, *_OF_LIVEKIT),
    livekit.DisableMicrophoneRestrictions: (livekit.MicrophoneRestrictionsDisabled, *_OF_ACTIONS, *_OF_LIVEKIT),
    livekit.RequestPopoutStreamAccessToken: (livekit.PopoutStreamAccessToken, *_OF_LIVEKIT),
    moderation.Mute: (livekit.ForceMuted, moderation.Muted, *_OF_MODERATION),
    moderation.Restrict: _OF_MICROPHONES,
    moderation.Unrestrict: _OF_MICROPHONES,
    moderation.Disallow: (*_OF_MICROPHONES, livekit.ScreenSharePermissionsUpdated),
    moderation.Allow: (*_OF_MICROPHONES, livekit.ScreenSharePermissionsUpdated),
    moderation.Stop: _OF_MODERATION,
    moderation.SetPresenter: _OF_MODERATION,
    moderation.AskToUnmute: (moderation.UnmuteRequested, *_OF_MODERATION),
    moderation.AnswerUnmuteRequest: (moderation.UnmuteRequestAnswered, *_OF_MICROPHONES),
    moderation.Kick: (control.Left, *_OF_MODERATION),
    moderation.Unban: _OF_MODERATION,
    moderation.Undo: _OF_MICROPHONES,
    moderation.GetState: (moderation.State, *_OF_READING),
    moderation.Watch: (moderation.State, *_OF_READING),
    moderation.GetAudit: (moderation.Audit, *_OF_READING),
    moderation.Preview: (moderation.Result,),
}
"""What the sender of a command may be answered; each of these carries the command's `transaction_id`."""


# --- Messages ----------------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[Namespace, type[Command]]]:
    """All commands, in the order of their namespaces and names."""
    for namespace, by_name in _COMMANDS.items():
        for action in sorted(by_name):
            yield namespace, by_name[action]


def events() -> Iterator[tuple[AnyNamespace, type[Event]]]:
    """All events, in the order of their namespaces and names."""
    ours = (kind for kind in _below(Event) if kind.__module__.startswith(f"{messages.__name__}."))
    found = [kind for kind in ours if "message" in kind.__annotations__]
    yield from sorted(((kind.namespace, kind) for kind in found), key=lambda pair: (pair[0].value, tag(pair[1])))


def tag(kind: type[Message]) -> str:
    """What `action` or `message` is for a kind of message."""
    name: str = kind.model_fields["action" if issubclass(kind, Command) else "message"].default
    return name


def path(namespace: AnyNamespace, kind: type[Message]) -> str:
    """The file of a message's schema, which is also its `$id`."""
    return f"{namespace.value}/{tag(kind)}.{'command' if issubclass(kind, Command) else 'event'}.json"


def examples(kind: type[Message]) -> list[Json]:
    """Examples of a kind of message, as they are on the wire."""
    found = [message.model_dump(mode="json", exclude_none=True) for message in EXAMPLES if type(message) is kind]
    if not found:
        raise LookupError(f"{kind.__name__} needs an example")
    return found


def _below(kind: type[Event]) -> Iterator[type[Event]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _below(subclass)


# --- JSON Schema -------------------------------------------------------------------------------------------------

_TRANSACTION_ID: Final[Json] = {
    "description": "Chosen by the client; the sender's own copies of what a command caused carry it back.",
    "oneOf": [
        {"type": "integer", "minimum": 0, "maximum": MAX_TRANSACTION_ID},
        {"type": "string", "minLength": 1, "maxLength": MAX_TRANSACTION_ID_LENGTH},
    ],
}
_SHARED: Final[Mapping[str, tuple[Json, ...]]] = {"ParticipantId": (NAMED, TOLD), "Timestamp": (TIMESTAMP,)}


def message_schema(namespace: AnyNamespace, kind: type[Message]) -> Json:
    """The schema of a message's payload; complete in itself."""
    mode: Literal["validation", "serialization"] = "validation" if issubclass(kind, Command) else "serialization"
    described = kind.model_json_schema(schema_generator=SchemaGenerator, mode=mode)
    shared: Json = {}
    own = _share(described.pop("$defs", {}), shared)
    schema = _share(described, shared)
    definitions = {"$defs": dict(sorted((own | shared).items()))} if own or shared else {}
    head = {"$schema": _DIALECT, "$id": path(namespace, kind)}
    ordered: Json = _ordered({**head, **schema, **definitions, "examples": examples(kind)})
    return ordered


def client_frame_schema() -> Json:
    """The schema of a text frame from a client."""
    return _frame_schema(
        CLIENT_FRAME,
        "ClientFrame",
        "A text frame from a client: a command. Unknown keys are ignored; the order of keys is free.",
        {},
        tuple(commands()),
    )


def server_frame_schema() -> Json:
    """The schema of a text frame from the server."""
    return _frame_schema(
        SERVER_FRAME,
        "ServerFrame",
        "A text frame from the server: an event. `timestamp` never goes backwards on one connection.",
        {"timestamp": {"$ref": "#/$defs/Timestamp"}},
        tuple(events()),
    )


def client_frame(namespace: AnyNamespace, payload: Json, transaction_id: int | None = None) -> Json:
    """A command in its envelope."""
    frame = {"namespace": namespace.value, "payload": payload}
    return frame if transaction_id is None else {**frame, "transaction_id": transaction_id}


def server_frame(namespace: AnyNamespace, payload: Json, transaction_id: int | None = None) -> Json:
    """An event in its envelope."""
    frame = {"namespace": namespace.value, "timestamp": rfc3339(_AT), "payload": payload}
    return frame if transaction_id is None else {**frame, "transaction_id": transaction_id}


def _frame_schema(
    name: str,
    title: str,
    description: str,
    more: Json,
    kinds: Sequence[tuple[AnyNamespace, type[Message]]],
) -> Json:
    by_namespace: dict[AnyNamespace, list[type[Message]]] = {}
    for namespace, kind in kinds:
        by_namespace.setdefault(namespace, []).append(kind)
    frame = server_frame if more else client_frame
    shared = {"Timestamp": TIMESTAMP} if more else {}
    schema: Json = _ordered(
        {
            "$schema": _DIALECT,
            "$id": name,
            "title": title,
            "description": description,
            "type": "object",
            "properties": {
                "namespace": {"enum": [namespace.value for namespace in by_namespace]},
                **more,
                "payload": {"type": "object"},
                "transaction_id": {"$ref": "#/$defs/TransactionId"},
            },
            "required": ["namespace", *more, "payload"],
            "oneOf": [
                {
                    "properties": {
                        "namespace": {"const": namespace.value},
                        "payload": {"oneOf": [{"$ref": path(namespace, kind)} for kind in of_namespace]},
                    }
                }
                for namespace, of_namespace in by_namespace.items()
            ],
            "$defs": {**shared, "TransactionId": _TRANSACTION_ID},
            "examples": [
                frame(namespace, examples(kind)[0], 7 if transaction else None)
                for transaction, namespace, kind in _chosen(kinds)
            ],
        }
    )
    return schema


def _chosen(kinds: Sequence[tuple[AnyNamespace, type[Message]]]) -> Iterator[tuple[bool, AnyNamespace, type[Message]]]:
    """A few that show an envelope with and without `transaction_id`."""
    for namespace, kind in kinds:
        if kind in {livekit.ForceMute, livekit.ForceMuted}:
            yield False, namespace, kind
        if kind in {livekit.ForceMute, moderation.Result}:
            yield True, namespace, kind


def _share(part: Any, definitions: Json) -> Any:  # noqa: ANN401 - any JSON
    """The same schema, with what several have in common by reference into `definitions`."""
    if isinstance(part, list):
        return [_share(item, definitions) for item in part]
    if not isinstance(part, dict):
        return part
    for name, shared in _SHARED.items():
        if part in shared:
            definitions[name] = part
            return {"$ref": f"#/$defs/{name}"}
    return {key: _share(value, definitions) for key, value in part.items()}


def _ordered(schema: Any) -> Any:  # noqa: ANN401 - any JSON
    """The same schema, with its keywords in order."""
    if isinstance(schema, list):
        return [_ordered(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    ordered = {}
    for keyword in sorted(schema, key=lambda each: _KEYWORDS.index(each) if each in _KEYWORDS else len(_KEYWORDS)):
        value = schema[keyword]
        match keyword:
            case "properties" | "$defs":
                ordered[keyword] = {name: _ordered(part) for name, part in value.items()}
            case "const" | "default" | "enum" | "examples":
                ordered[keyword] = value
            case _:
                ordered[keyword] = _ordered(value)
    return ordered


# --- AsyncAPI ----------------------------------------------------------------------------------------------------

_CHANNEL: Final = "#/channels/signaling"
_INTRODUCTION: Final = f"""\
What crosses the WebSocket of the stand-alone server: text frames of JSON, {MAX_FRAME_BYTES // 1024**2} MiB at most.
`receive` is what clients send, `send` what they are told.
"""
_HANDSHAKE: Final = f"""\
`GET {PATH}`, with one ticket, in one of two ways:

- as a browser: `Sec-WebSocket-Protocol: {SUBPROTOCOL}, {TICKET_PREFIX}<ticket>`, in any order
- otherwise: `Authorization: Bearer <ticket>`

A ticket is a JWT made by the controller, lives a minute and is used once. Refusals are HTTP responses with
`{{"error": code, "code": code, "message": text}}`:
{", ".join(f"{status.value} `{code}`" for code, status in STATUS.items())}.

The first command is `control/join`. The server closes with 1007 after what is not UTF-8, with 1008 when the client has
not joined in time, with 1009 after a frame that is too large, and with 1000 when the same participant has connected
again, or after `control/room_deleted`, `moderation/kicked` or `moderation/banned`; 1001, 1012 and 1013 tell a client to
come back. A client that closes with 1000, or without a code, leaves.
"""
_NAMESPACES: Final[Mapping[AnyNamespace, str]] = {
    Namespace.CONTROL: "Joining, leaving, roles and raised hands.",
    Namespace.ECHO: "A sign of life for clients.",
    Namespace.LIVEKIT: "What OpenTalk's LiveKit signaling module has, field for field.",
    Namespace.MODERATION: "Only for connections that joined with the extension `livekit_moderation`, or have used it.",
    ServerNamespace.REMOVAL: "What known clients are told before they are closed. Nothing is sent in it by clients.",
}


def asyncapi() -> Json:
    """The AsyncAPI document."""
    kinds: list[tuple[AnyNamespace, type[Message]]] = [*commands(), *events()]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "LiveKit moderation",
            "version": signaling.__version__,
            "description": _INTRODUCTION,
            "license": {"name": "Apache-2.0"},
            "tags": [{"name": namespace.value, "description": text} for namespace, text in _NAMESPACES.items()],
        },
        "defaultContentType": "application/json",
        "servers": {
            "standalone": {
                "host": "{address}",
                "protocol": "ws",
                "description": "The stand-alone server, `livekit-moderation serve`; `wss` behind a proxy with TLS.",
                "variables": {
                    "address": {"default": "127.0.0.1:8700", "description": "The setting `MODERATION_LISTEN`."}
                },
                "security": [
                    {"$ref": "#/components/securitySchemes/subprotocol"},
                    {"$ref": "#/components/securitySchemes/bearer"},
                ],
            }
        },
        "channels": {
            "signaling": {
                "address": PATH,
                "title": "Signaling",
                "description": _HANDSHAKE,
                "servers": [{"$ref": "#/servers/standalone"}],
                "messages": {_name(*kind): _reference(f"#/components/messages/{_name(*kind)}") for kind in kinds},
                "bindings": {"ws": {"method": "GET", "headers": _handshake_headers(), "bindingVersion": "0.1.0"}},
            }
        },
        "operations": {
            **{_name(namespace, kind): _receiving(namespace, kind) for namespace, kind in commands()},
            **{_name(namespace, kind): _sending(namespace, kind) for namespace, kind in events()},
        },
        "components": {
            "messages": {_name(*kind): _message(*kind) for kind in kinds},
            "correlationIds": {
                "transaction": {
                    "description": "A command's `transaction_id`, in the sender's own copies of what it caused.",
                    "location": "$message.payload#/transaction_id",
                }
            },
            "securitySchemes": {
                "subprotocol": {
                    "type": "httpApiKey",
                    "in": "header",
                    "name": "Sec-WebSocket-Protocol",
                    "description": f"`{SUBPROTOCOL}` and `{TICKET_PREFIX}<ticket>`: a browser's way.",
                },
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "The ticket.",
                },
            },
        },
    }


def _handshake_headers() -> Json:
    return {
        "type": "object",
        "properties": {
            "Sec-WebSocket-Protocol": {
                "type": "string",
                "description": "The protocol, and the ticket unless `Authorization` has it.",
                "examples": [f"{SUBPROTOCOL}, {TICKET_PREFIX}{_TOKEN}"],
            },
            "Authorization": {
                "type": "string",
                "description": "The ticket, unless a subprotocol has it.",
                "examples": [f"Bearer {_TOKEN}"],
            },
        },
        "anyOf": [{"required": ["Sec-WebSocket-Protocol"]}, {"required": ["Authorization"]}],
    }


def _receiving(namespace: Namespace, kind: type[Command]) -> Json:
    replies = REPLIES.get(kind)
    if replies is None:
        raise LookupError(f"{kind.__name__} needs replies")
    return {
        "action": "receive",
        "channel": _reference(_CHANNEL),
        "summary": _summary(kind),
        "messages": [_in_channel(namespace, kind)],
        "reply": {
            "channel": _reference(_CHANNEL),
            "messages": [_in_channel(reply.namespace, reply) for reply in replies],
        },
    }


def _sending(namespace: AnyNamespace, kind: type[Event]) -> Json:
    return {
        "action": "send",
        "channel": _reference(_CHANNEL),
        "summary": _summary(kind),
        "messages": [_in_channel(namespace, kind)],
    }


def _message(namespace: AnyNamespace, kind: type[Message]) -> Json:
    is_command = issubclass(kind, Command)
    envelope = CLIENT_FRAME if is_command else SERVER_FRAME
    timestamp = {} if is_command else {"timestamp": _reference(f"./{envelope}#/$defs/Timestamp")}
    frame = client_frame if is_command else server_frame
    return {
        "name": tag(kind),
        "title": kind.__name__,
        "summary": _summary(kind),
        "tags": [{"name": namespace.value}],
        "correlationId": _reference("#/components/correlationIds/transaction"),
        "payload": {
            "type": "object",
            "required": ["namespace", *timestamp, "payload"],
            "properties": {
                "namespace": {"const": namespace.value},
                **timestamp,
                "payload": _reference(f"./{path(namespace, kind)}"),
                "transaction_id": _reference(f"./{envelope}#/$defs/TransactionId"),
            },
        },
        "examples": [{"payload": frame(namespace, payload)} for payload in examples(kind)],
    }


def _name(namespace: AnyNamespace, kind: type[Message]) -> str:
    return path(namespace, kind).removesuffix(".json").replace("/", ".")


def _in_channel(namespace: AnyNamespace, kind: type[Message]) -> Json:
    return _reference(f"{_CHANNEL}/messages/{_name(namespace, kind)}")


def _reference(target: str) -> Json:
    return {"$ref": target}


def _summary(kind: type[Message]) -> str:
    return (kind.__doc__ or "").strip()


# --- Files -------------------------------------------------------------------------------------------------------


def files() -> dict[str, str]:
    """Everything that belongs into `schemas/`, by path."""
    schemas = [
        *(message_schema(namespace, kind) for namespace, kind in commands()),
        *(message_schema(namespace, kind) for namespace, kind in events()),
        client_frame_schema(),
        server_frame_schema(),
    ]
    texts = {schema["$id"]: f"{json.dumps(schema, indent=2, ensure_ascii=False)}\n" for schema in schemas}
    return texts | {ASYNCAPI: _yaml(asyncapi())}


def generated(folder: Path) -> set[str]:
    """The files in `folder` that were made here, of whatever version."""
    return {
        file.relative_to(folder).as_posix()
        for pattern in ("*.json", "*.yaml", "*/*.command.json", "*/*.event.json")
        for file in folder.glob(pattern)
    }


def main(argv: Sequence[str]) -> int:
    """Write the files into the folder that is named, and remove those that are no longer made; the exit status."""
    if len(argv) != 1:
        sys.stderr.write("usage: python -m signaling.cli.schemas DIR\n")
        return 2
    folder = Path(argv[0])
    texts = files()
    for name in generated(folder) - texts.keys():
        (folder / name).unlink()
    for name, text in texts.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return 0


def _yaml(document: Json) -> str:
    import yaml  # noqa: PLC0415 - nobody else needs it

    class Dumper(yaml.SafeDumper):
        """Long texts keep their lines, nothing is an alias, and lists are indented."""

        def ignore_aliases(self, _data: object) -> bool:
            return True

        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - PyYAML's
            super().increase_indent(flow, indentless=False)

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    dumped: str = yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10_000)
    return dumped


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
