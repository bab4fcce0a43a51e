"""AsyncAPI for the whole WebSocket."""

from collections.abc import Mapping
from typing import Final

import signaling
from signaling.cli.schemas.example_messages import TOKEN, examples
from signaling.cli.schemas.json_schemas import client_frame, server_frame
from signaling.cli.schemas.kinds import CLIENT_FRAME, SERVER_FRAME, AnyNamespace, commands, events, path, tag
from signaling.cli.schemas.replies import REPLIES
from signaling.messages.base import Command, Event, Message, Namespace, ServerNamespace
from signaling.messages.envelope import MAX_FRAME_BYTES
from signaling.messages.json_schema import Json
from signaling.server.handshake import PATH, STATUS, SUBPROTOCOL, TICKET_PREFIX

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
                "examples": [f"{SUBPROTOCOL}, {TICKET_PREFIX}{TOKEN}"],
            },
            "Authorization": {
                "type": "string",
                "description": "The ticket, unless a subprotocol has it.",
                "examples": [f"Bearer {TOKEN}"],
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
