"""What is attacked: each target makes cases by dice, sends them, and says what must not have come back."""

import base64
import gzip
import hashlib
import json
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Final
from urllib.parse import quote

import jwt
from google.protobuf.descriptor import FieldDescriptor
from livekit.protocol.webhook import WebhookEvent
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.protocol import State

from signaling.messages.envelope import MAX_FRAME_BYTES
from signaling.server.openapi import openapi
from tests.fuzz.grammar import NAMES, ODD, Grammar, mangled, nearly, text_of
from tests.fuzz.world import OTHER_ROOM, PEOPLE, ROOM, ROOMS, Answer, Finding, Seat, World, exchange

_SCHEMAS: Final = Path(__file__).parents[2] / "schemas"
_WHOLE_S: Final = 20
"""How long a request that is whole may take to be answered."""
_BROKEN_S: Final = 0.2
"""How long is waited for an answer to what may be half a request, for which nobody owes one."""
_SOURCES: Final = ("microphone", "camera", "screen_share", "screen_share_audio")


class Target(ABC):
    """One door of the server."""

    name: ClassVar[str]
    workers: ClassVar[int]

    def __init__(self, world: World) -> None:
        self.world = world

    @abstractmethod
    async def run(self, dice: Random) -> None:
        """
        One case, the same for the same dice.

        Raises:
            Finding: What must not be.
        """

    def count(self, what: object) -> None:
        """Remember what came of a case."""
        answers = self.world.answers.setdefault(self.name, {})
        answers[str(what)] = answers.get(str(what), 0) + 1

    def judge(self, answer: Answer, *, is_whole: bool) -> None:
        """Find fault with an answer of HTTP."""
        self.count(answer.status)
        self.world.check_no_secret(answer.raw.decode(errors="replace"), f"an answer of {self.name}")
        if answer.status is None and is_whole:
            raise Finding("a whole request was not answered", repr(answer.raw[:60]))
        if answer.status is not None and answer.status >= 500:
            raise Finding(f"answered by {answer.status}", repr(answer.raw[-300:]))


# --- Frames ------------------------------------------------------------------------------------------------------


class Frames(Target):
    """What comes over a WebSocket, from people who joined and from one who has not."""

    name = "frames"
    workers = 2

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._commands = [
            (path.parent.name, Grammar(schema), schema)
            for path in sorted(_SCHEMAS.glob("*/*.command.json"))
            for schema in [json.loads(path.read_text())]
        ]

    async def run(self, dice: Random) -> None:
        """A few frames of one person; then they still get a pong, unless they broke the WebSocket or had to go."""
        who = dice.choices([*PEOPLE, None], [10, 2, 4, 3, 2])[0]
        sent = [self._frame(dice) for _ in range(dice.randrange(1, 6))]
        if who is None:
            await self._as_newcomer(dice, sent)
        else:
            await self._send(await self.world.seat(who), sent)
        if dice.random() < 0.01:
            await self.world.restore()

    async def _as_newcomer(self, dice: Random, sent: list[Frame | bytes]) -> None:
        try:
            seat = await self.world.open(dice.choice(PEOPLE), OTHER_ROOM)
        except InvalidStatus as refused:  # banned
            self.count(refused.response.status_code)
            await self.world.command(OTHER_ROOM, "unban", participants=[who.name for who in PEOPLE])
            return
        await self._send(seat, sent)
        await seat.close(dice.choice([1000, 1001, 4000]))

    async def _send(self, seat: Seat, sent: list[Frame | bytes]) -> None:
        try:
            for piece in sent:
                raw = piece if isinstance(piece, bytes) else piece.serialize(mask=True)
                if seat.connection.state is State.OPEN:
                    seat.connection.transport.write(raw)
            answered = await seat.ping()
        except ConnectionClosed:
            answered = False
        self.count("pong" if answered else "closed")

    def _frame(self, dice: Random) -> Frame | bytes:
        namespace, grammar, schema = dice.choice(self._commands)
        frame: dict[str, Any] = {"namespace": namespace, "payload": grammar.throw(dice, schema)}
        if dice.random() < 0.7:
            frame["transaction_id"] = dice.choice([dice.randrange(2**64), f"{dice.random()}"])
        match dice.choices(range(6), [50, 30, 12, 3, 3, 2])[0]:
            case 0:
                text = text_of(dice, frame).encode()
            case 1:
                text = text_of(dice, nearly(dice, frame)).encode()
            case 2:
                text = mangled(dice, text_of(dice, frame).encode())
            case 3:
                text = self._large(dice)
            case 4:
                return Frame(
                    dice.choice([Opcode.BINARY, Opcode.PING, Opcode.PONG]), dice.randbytes(dice.randrange(126))
                )
            case _:
                return self._broken(dice, text_of(dice, frame).encode())
        return Frame(Opcode.TEXT, text)

    @staticmethod
    def _large(dice: Random) -> bytes:
        before, piece, after = dice.choice(
            [
                (b'{"namespace":"livekit","payload":{"action":"force_mute","participants":[', b'"a",', b'"b"]}}'),
                (b'{"namespace":"livekit","payload":{"action":"force_mute","participants":[', b"0,", b"0]}}"),
                (b"", b'{"":', b""),
                (b"", b"[", b""),
                (b'{"namespace":"echo","payload":{"action":"ping","x":"', b"\\u0041", b'"}}'),
                (b'{"namespace":"control","payload":{"action":"join","extensions":[', b'"",', b'""]}}'),
            ]
        )
        room = dice.choice([10_000, 100_000, MAX_FRAME_BYTES, MAX_FRAME_BYTES, MAX_FRAME_BYTES + 10])
        return before + piece * ((room - len(before) - len(after)) // len(piece)) + after

    @staticmethod
    def _broken(dice: Random, text: bytes) -> bytes:
        """What is no WebSocket any more, or one in pieces."""
        first, rest = text[: len(text) // 2], text[len(text) // 2 :]
        return dice.choice(
            [
                Frame(Opcode.TEXT, first, fin=False).serialize(mask=True)
                + Frame(Opcode.PING, b"between").serialize(mask=True)
                + Frame(Opcode.CONT, rest).serialize(mask=True),
                Frame(Opcode.CONT, text).serialize(mask=True),
                Frame(Opcode.TEXT, text).serialize(mask=False),
                b"\xc1" + Frame(Opcode.TEXT, text).serialize(mask=True)[1:],  # as if compressed
                Frame(Opcode.CLOSE, dice.randbytes(dice.randrange(5))).serialize(mask=True),
                b"\x81\xff" + b"\xff" * 8,
                mangled(dice, Frame(Opcode.TEXT, text).serialize(mask=True)),
            ]
        )


# --- Handshakes --------------------------------------------------------------------------------------------------


class Handshakes(Target):
    """Requests to connect: paths, headers, subprotocols, tickets."""

    name = "handshakes"
    workers = 3

    async def run(self, dice: Random) -> None:
        """One request, and whether its answer is one that a server may give."""
        ticket, is_right = self._ticket(dice)
        offers = ["opentalk-signaling-json-v1.0", f"ticket#{ticket}"]
        headers = [
            ("Host", f"{self.world.signaling[0]}:{self.world.signaling[1]}"),
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", base64.b64encode(dice.randbytes(16)).decode()),
        ]
        path = "/signaling"
        kind = dice.choices(["plain", "offers", "headers", "path"], [4, 2, 2, 1])[0]
        if kind == "offers":
            offers = nearly_listed(dice, offers)
        if dice.random() < 0.8:
            headers.append(("Sec-WebSocket-Protocol", ", ".join(offers)))
        if dice.random() < 0.3:
            headers.append(("Authorization", dice.choice(["Bearer ", "bearer  ", "Basic ", ""]) + ticket))
        if dice.random() < 0.3:
            headers.append(("Origin", dice.choice(["http://127.0.0.1", "null", "http://[", "https://x:99999", "é"])))
        if kind == "headers":
            headers = odd_headers(dice, headers)
        if kind == "path":
            path = dice.choice(
                [
                    "/",
                    "*",
                    "//",
                    "/signaling/",
                    "/signaling?x=%00",
                    "http://x/signaling",
                    "/\xe9",
                    "/" + "x" * 9_000,
                    "",
                ]
            )
        request = head_of("GET", path, headers)
        is_whole = kind == "plain" and ticket.isascii() and ticket.isprintable()
        if dice.random() < 0.2:
            request, is_whole = mangled(dice, request), False
        answer = await exchange(self.world.signaling, request, within_s=_WHOLE_S if is_whole else _BROKEN_S)
        self.judge(answer, is_whole=is_whole)
        if is_whole and answer.status == 101 and not is_right:
            raise Finding("somebody got in by a ticket that is none")

    def _ticket(self, dice: Random) -> tuple[str, bool]:
        now = int(time.time())
        who = dice.choice(PEOPLE)
        claims: dict[str, Any] = {
            "aud": "livekit-moderation",
            "sub": f"{who.name}-again",
            "room": dice.choice(ROOMS),
            "name": dice.choice([who.name, *NAMES]),
            "role": who.role.value,
            "kind": who.kind.value,
            "jti": f"{dice.random()} {now}",
            "iat": now,
            "exp": now + 60,
        }
        header: dict[str, Any] = {}
        kind = dice.choices(["right", "claims", "header", "key", "bytes", "nested"], [4, 6, 2, 2, 3, 1])[0]
        if kind == "right":
            ticket = jwt.encode(claims, self.world.ticket_key, algorithm="HS256")
            self.world.secrets_of_tokens.add(ticket)
            return ticket, True
        if kind == "claims":
            claims = nearly(dice, claims)
        if kind == "nested":
            claims["x"] = json.loads("[" * 900 + "]" * 900)
        if kind == "header":
            header = {dice.choice(["kid", "jku", "crit", "b64", "typ", "alg", "x"]): dice.choice(ODD)}
        ticket = _signed(claims, "x" * 32 if kind == "key" else self.world.ticket_key, header)
        if kind == "bytes":
            changed = mangled(dice, ticket.encode()).decode("latin-1")
            return changed, _is_signed_alike(changed, ticket)
        # What is changed may be without consequence: an unknown claim more, another name.
        return ticket, kind in {"claims", "header", "nested"}


def _signed(claims: object, key: str, header: Mapping[str, Any]) -> str:
    """A JWT of anything at all, which no library would sign."""
    head = {"typ": "JWT", "alg": "HS256", **header}
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (head, claims)]
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(b".".join(parts), key.encode())
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


def _is_signed_alike(changed: str, ticket: str) -> bool:
    """Whether two tickets say the same by the same signature: base64 can be written in several ways."""
    (said, _, signature), (says, _, signed) = changed.rpartition("."), ticket.rpartition(".")
    try:
        return said == says and base64.urlsafe_b64decode(f"{signature}==") == base64.urlsafe_b64decode(f"{signed}==")
    except ValueError:
        return False


def nearly_listed(dice: Random, offers: list[str]) -> list[str]:
    """A list of subprotocols with something wrong in it."""
    changed = [
        *offers,
        dice.choice(["", "x", "ticket#", "ticket#x", offers[0], "opentalk-signaling-json-v2", '"', "é", "a b"]),
    ]
    dice.shuffle(changed)
    return changed[: dice.randrange(4)]


def odd_headers(dice: Random, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Headers with something wrong in them."""
    changed = list(headers)
    at = dice.randrange(len(changed))
    name, value = changed[at]
    match dice.randrange(6):
        case 0:
            del changed[at]
        case 1:
            changed.append(changed[at])
        case 2:
            changed[at] = (
                name,
                dice.choice(["", " ", "\0", "é", "x" * 9_000, "a\r\n b", ",", '"', "0", "-1", value + "\0"]),
            )
        case 3:
            changed[at] = (
                dice.choice([f"{name} ", f" {name}", f"{name}\0", "", "é", "x" * 9_000, name.upper()]),
                value,
            )
        case 4:
            odd = [
                ("Content-Length", "5"),
                ("Transfer-Encoding", "chunked"),
                ("Expect", "100-continue"),
                ("Cookie", "\xff"),
            ]
            changed.append(dice.choice(odd))
        case _:
            changed += [(f"X-{number}", "y") for number in range(dice.choice([50, 200]))]
    return changed


def head_of(method: str, path: str, headers: list[tuple[str, str]]) -> bytes:
    """A request up to its body."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", errors="surrogatepass")


# --- Internal HTTP -----------------------------------------------------------------------------------------------


class Http(Target):
    """What webhooks and the controller API share: a request with a body, in many ways."""

    workers = 3

    async def send(self, dice: Random, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> None:
        """Send a request, as it is or with something wrong in it."""
        headers = [("Host", f"{self.world.internal[0]}:{self.world.internal[1]}"), ("Connection", "close"), *headers]
        is_whole = True
        if dice.random() < 0.15:
            body, coding = self._coded(dice, body)
            headers.append(("Content-Encoding", coding))
        if dice.random() < 0.1:
            headers.append(("Transfer-Encoding", "chunked"))
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        else:
            headers.append(("Content-Length", str(len(body))))
        if dice.random() < 0.1:
            headers, is_whole = odd_headers(dice, headers), False
        request = head_of(method, path, headers) + body
        if dice.random() < 0.05:
            request, is_whole = mangled(dice, request), False
        answer = await exchange(self.world.internal, request, within_s=_WHOLE_S if is_whole else _BROKEN_S)
        self.judge(answer, is_whole=is_whole)

    @staticmethod
    def _coded(dice: Random, body: bytes) -> tuple[bytes, str]:
        coding = dice.choice(["gzip", "deflate", "br", "zstd", "identity", "x", "gzip, gzip", ""])
        match dice.randrange(4):
            case 0:
                return gzip.compress(body, mtime=0), coding
            case 1:
                return zlib.compress(body), coding
            case 2:
                return mangled(dice, gzip.compress(body, mtime=0)), coding
            case _:
                return body, coding


class Webhooks(Http):
    """What says that it comes from LiveKit."""

    name = "webhooks"

    async def run(self, dice: Random) -> None:
        """One webhook, rightly signed or not."""
        event = self._event(dice)
        match dice.choices(range(4), [6, 4, 2, 1])[0]:
            case 0:
                body = json.dumps(event).encode()
            case 1:
                body = json.dumps(nearly(dice, event)).encode()
            case 2:
                body = mangled(dice, json.dumps(event).encode())
            case _:
                body = dice.choice([b"", b"[" * 100_000, dice.randbytes(300), b"null", b'{"id":' + b"9" * 5_000 + b"}"])
        headers = [("Content-Type", "application/webhook+json"), ("Authorization", self._signature(dice, body))]
        await self.send(dice, "POST", "/livekit/webhook", headers, body)

    def _event(self, dice: Random) -> dict[str, Any]:
        track = {"sid": f"TR_{dice.randrange(9)}", "source": dice.choice(_SOURCES).upper()}
        track |= {"type": dice.choice(["AUDIO", "VIDEO"]), "mimeType": dice.choice(["audio/red", "video/vp8", "", "é"])}
        name = dice.choice([*NAMES, *(who.name for who in PEOPLE)])
        participant = {"sid": f"PA_{dice.randrange(9)}", "identity": name, "state": "ACTIVE", "tracks": [track]}
        return {
            **(_message(dice, WebhookEvent.DESCRIPTOR) if dice.random() < 0.3 else {}),
            "event": dice.choice(
                ["participant_joined", "participant_left", "track_published", "track_unpublished", "room_finished", "x"]
            ),
            "id": f"EV_{dice.randrange(2**40)}",
            "createdAt": int(time.time()) + dice.choice([0, 0, 0, 0, 50, -250, 10_000, -10_000]),
            "room": {
                "sid": "RM_1",
                "name": dice.choice([ROOM, ROOM, OTHER_ROOM, f"{ROOM}:blue", "elsewhere", ":", ""]),
            },
            "participant": participant,
            "track": track,
        }

    def _signature(self, dice: Random, body: bytes) -> str:
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": self.world.livekit.api_key,
            "nbf": now,
            "exp": now + 300,
            "sha256": base64.b64encode(hashlib.sha256(body).digest()).decode(),
        }
        key = self.world.livekit.api_secret
        match dice.choices(range(5), [10, 3, 2, 1, 1])[0]:
            case 1:
                name = dice.choice(
                    ["video", "sip", "attributes", "roomConfig", "metadata", "name", "kind", "inference", "sub"]
                )
                claims[name] = dice.choice([*ODD, [1], {"room": [1]}, {"x": {"y": 1}}])
            case 2:
                claims = nearly(dice, claims)
            case 3:
                key = "x" * 32
            case 4:
                return mangled(dice, _signed(claims, key, {}).encode()).decode("latin-1")
        return dice.choice(["", "Bearer "]) + _signed(claims, key, {})


def _message(dice: Random, descriptor: Any, depth: int = 0) -> dict[str, Any]:  # noqa: ANN401 - of one of two kinds
    """Some fields of a protobuf, as JSON."""
    return {
        field.json_name: _field(dice, field, depth)
        for field in descriptor.fields
        if dice.random() < 0.3 and (field.message_type is None or depth < 3)
    }


def _field(dice: Random, field: FieldDescriptor, depth: int) -> Any:  # noqa: ANN401 - any JSON
    below = field.message_type
    if below is not None and below.GetOptions().map_entry:
        return {}
    if below is not None:
        value: Any = _message(dice, below, depth + 1)
    elif field.enum_type is not None:
        value = dice.choice([dice.randrange(9), field.enum_type.values[0].name, -1])
    else:
        value = dice.choice([*ODD[3:8], "x", 0.5, True]) if dice.random() < 0.3 else dice.choice([1, "x", True])
    return [value] if field.is_repeated else value


class Api(Http):
    """What says that it comes from a controller."""

    name = "api"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        document = openapi()
        self._grammar = Grammar(document)
        self._operations = [
            (method.upper(), path, operation)
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
            if method != "parameters"
        ]

    async def run(self, dice: Random) -> None:
        """One request, rightly authorized or not."""
        method, path, operation = dice.choice(self._operations)
        room = dice.choice([ROOM, ROOM, ROOM, OTHER_ROOM, dice.choice(NAMES)])
        if method == "DELETE" and "participants" not in path and dice.random() < 0.9:
            room = OTHER_ROOM  # ended, which is a case too; the other one is to go on, mostly
        somebody = dice.choice([*NAMES, *(who.name for who in PEOPLE)])
        path = path.replace("{room}", _escaped(dice, room)).replace("{id}", _escaped(dice, somebody))
        if "audit" in path or dice.random() < 0.05:
            path += "?" + "&".join(
                f"{dice.choice(['limit', 'before', 'x'])}={quote(str(dice.choice([*ODD[3:8], 5, '']))[:99])}"
                for _ in range(dice.randrange(3))
            )
        if dice.random() < 0.05:
            method = dice.choice(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "x", "CONNECT"])
        body = b""
        if "requestBody" in operation:
            value = self._grammar.throw(dice, operation["requestBody"]["content"]["application/json"]["schema"])
            text = text_of(dice, value if dice.random() < 0.6 else nearly(dice, value)).encode()
            body = text if dice.random() < 0.9 else mangled(dice, text)
        shown = dice.choices(
            [f"Bearer {self.world.token}", "Bearer x", "", f"Bearer {self.world.token}\0"], [30, 1, 1, 1]
        )[0]
        kind = dice.choices(
            ["application/json", "application/json; charset=utf-16", "text/plain", "é/", ""], [30, 1, 1, 1, 1]
        )[0]
        await self.send(dice, method, path, [("Authorization", shown), ("Content-Type", kind)], body)


def _escaped(dice: Random, text: str) -> str:
    return (
        quote(text, safe=dice.choice(["", "/:@"]))
        if dice.random() < 0.95
        else dice.choice(["%", "%zz", "%ff", "%2f", text])
    )


TARGETS: Final[tuple[type[Target], ...]] = (Frames, Handshakes, Webhooks, Api)
