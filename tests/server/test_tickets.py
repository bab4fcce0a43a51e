import base64
import hashlib
import hmac
import json
from dataclasses import replace
from typing import Any, get_args

import jwt
import pytest

from signaling import ConfigurationError, Kind, Participant, Role
from signaling.identifiers import BreakoutId, ParticipantId, RoomId
from signaling.server.tickets import LEEWAY_S, InvalidTicket, Ticket, Tickets, make_ticket
from signaling.settings import TicketAlgorithm
from tests.server.keys import SECRET, pair, unsuitable_pems

ALGORITHMS: tuple[TicketAlgorithm, ...] = get_args(TicketAlgorithm)
NOW = 1_800_000_000
ROOM = RoomId("standup")
BOB = Participant(ParticipantId("bob"), display_name="Bob")
CLAIMS: dict[str, Any] = {
    "aud": "livekit-moderation",
    "sub": "bob",
    "room": "standup",
    "name": "Bob",
    "role": "user",
    "kind": "user",
    "jti": "1",
    "iat": NOW,
    "exp": NOW + 60,
}


class Clock:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tickets(clock: Clock) -> Tickets:
    return Tickets(SECRET, "HS256", clock=clock)


def signed(**claims: object) -> str:
    """A ticket whose claims are right but for these; `None` leaves one out."""
    return jwt.encode({name: value for name, value in (CLAIMS | claims).items() if value is not None}, SECRET, "HS256")


def segment(value: object) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def hashed(header: str, payload: str) -> str:
    """A ticket of these two parts with the right signature."""
    text = f"{header}.{payload}"
    return f"{text}.{segment(hmac.digest(SECRET.encode(), text.encode(), 'sha256'))}"


@pytest.mark.parametrize("header", [{"alg": "HS256", "typ": "JWT"}, {"typ": "JWT", "alg": "HS256"}, {"alg": "HS256"}])
def test_what_is_signed_as_usual_is_taken_by_its_signature_alone(
    tickets: Tickets, monkeypatch: pytest.MonkeyPatch, header: dict[str, str]
) -> None:
    monkeypatch.setattr(tickets, "_signatures", None)
    text = hashed(segment(json.dumps(header, separators=(",", ":")).encode()), segment(CLAIMS))
    assert tickets.verify(text).id == "1"


USUAL = segment(b'{"alg":"HS256","typ":"JWT"}')


@pytest.mark.parametrize(
    "text",
    [
        hashed(USUAL, segment(CLAIMS)),
        hashed(USUAL, segment(CLAIMS | {"name": "\u00ff\u00fe?>~"})),
        hashed(USUAL, segment(CLAIMS) + "="),
        hashed(USUAL, segment(CLAIMS) + "=="),
        hashed(USUAL, segment(CLAIMS) + "\u00fc"),
        hashed(USUAL, segment(CLAIMS)[:-1] + "/"),
        hashed(USUAL, segment(CLAIMS)[:-1] + "!"),
        hashed(USUAL, segment(CLAIMS) + "."),
        hashed(USUAL, "." + segment(CLAIMS)),
        hashed(USUAL, ""),
        hashed(USUAL, "A"),
        hashed(USUAL, segment(CLAIMS)) + "=",
        hashed(USUAL, segment(CLAIMS)) + "A",
        hashed(USUAL, segment(CLAIMS))[:-1],
        hashed(USUAL + "=", segment(CLAIMS)),
        hashed(segment({"alg": "HS256", "kid": "1"}), segment(CLAIMS)),
        hashed(segment({"alg": "HS384"}), segment(CLAIMS)),
        hashed(segment({"alg": "HS256", "crit": ["exp"]}), segment(CLAIMS)),
    ],
)
def test_the_short_way_lets_in_whom_the_long_way_lets_in(
    tickets: Tickets, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    def found() -> Ticket | str:
        try:
            return tickets.verify(text)
        except InvalidTicket as error:
            return str(error)

    short = found()
    monkeypatch.setattr(tickets, "_hmac", None)
    assert short == found()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_lets_in_whoever_the_controller_signed_for(algorithm: TicketAlgorithm) -> None:
    keys = pair(algorithm)
    somebody = Participant(
        ParticipantId("alice"), role=Role.MODERATOR, display_name="Alice", breakout=BreakoutId("red")
    )
    text = make_ticket(keys.private, algorithm, somebody, ROOM, now=NOW)
    ticket = Tickets(keys.public, algorithm, clock=lambda: NOW).verify(text)
    assert ticket == Ticket(somebody, ROOM, ticket.id, NOW + 60 + LEEWAY_S)


def test_a_ticket_has_exactly_these_claims() -> None:
    payload = jwt.decode(
        make_ticket(SECRET, "HS256", BOB, ROOM, now=NOW), SECRET, ["HS256"], options={"verify_signature": False}
    )
    assert payload == CLAIMS | {"jti": payload["jti"]}


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_the_public_key_is_no_secret_to_sign_with(algorithm: TicketAlgorithm) -> None:
    public = pair(algorithm).public
    signing_input = f"{segment({'alg': 'HS256', 'typ': 'JWT'})}.{segment(CLAIMS)}"
    forged = segment(hmac.new(public.encode(), signing_input.encode(), hashlib.sha256).digest())
    with pytest.raises(InvalidTicket):
        Tickets(public, algorithm, clock=lambda: NOW).verify(f"{signing_input}.{forged}")


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "HS384", "HS512", None, 7, ["HS256"]])
def test_the_algorithm_is_never_taken_from_the_ticket(tickets: Tickets, algorithm: object) -> None:
    head = f"{segment({'alg': algorithm, 'typ': 'JWT'})}.{segment(CLAIMS)}"
    digest = hashlib.sha512 if algorithm == "HS512" else hashlib.sha384
    for signature in ("", segment(hmac.new(SECRET.encode(), head.encode(), digest).digest())):
        with pytest.raises(InvalidTicket):
            tickets.verify(f"{head}.{signature}")


def test_another_key_lets_nobody_in(tickets: Tickets) -> None:
    with pytest.raises(InvalidTicket, match="not signed"):
        tickets.verify(make_ticket("another secret of thirty-two bytes or so", "HS256", BOB, ROOM, now=NOW))
    es256 = make_ticket(pair("ES256").private, "ES256", BOB, ROOM, now=NOW)
    with pytest.raises(InvalidTicket):
        Tickets(pair("RS256").public, "RS256", clock=lambda: NOW).verify(es256)


def test_changed_claims_let_nobody_in(tickets: Tickets) -> None:
    head, _, signature = signed().split(".")
    with pytest.raises(InvalidTicket):
        tickets.verify(f"{head}.{segment(CLAIMS | {'role': 'moderator'})}.{signature}")


def test_it_is_valid_for_as_long_as_its_use_is_kept_and_no_longer(tickets: Tickets, clock: Clock) -> None:
    clock.now = tickets.verify(signed()).until
    assert tickets.verify(signed()).until == clock.now == NOW + 60 + LEEWAY_S
    clock.now += 0.5
    with pytest.raises(InvalidTicket, match="expired"):
        tickets.verify(signed())


def test_sixty_seconds_are_allowed_and_sixty_one_are_not(tickets: Tickets) -> None:
    tickets.verify(signed(exp=NOW + 60))
    for exp in (NOW + 61, NOW, NOW - 1):
        with pytest.raises(InvalidTicket, match="60 s at most"):
            tickets.verify(signed(exp=exp))
    with pytest.raises(InvalidTicket, match="60 s at most"):
        tickets.verify(signed(iat=NOW - 31))


def test_clocks_may_differ_by_thirty_seconds(tickets: Tickets, clock: Clock) -> None:
    for now in (NOW - 30, NOW + 90):
        clock.now = now
        tickets.verify(signed())
    clock.now = NOW - 31
    with pytest.raises(InvalidTicket, match="not valid yet"):
        tickets.verify(signed())
    clock.now = NOW + 91
    with pytest.raises(InvalidTicket, match="expired"):
        tickets.verify(signed())


def test_a_ticket_may_begin_later_than_it_was_issued(tickets: Tickets, clock: Clock) -> None:
    with pytest.raises(InvalidTicket, match="not valid yet"):
        tickets.verify(signed(nbf=NOW + 31))
    clock.now += 1
    tickets.verify(signed(nbf=NOW + 31))


def test_it_is_for_us_maybe_among_others(tickets: Tickets) -> None:
    tickets.verify(signed(aud=["somebody", "livekit-moderation"]))
    for aud in ("somebody", [], ["livekit-moderation-2"]):
        with pytest.raises(InvalidTicket, match="aud"):
            tickets.verify(signed(aud=aud))


@pytest.mark.parametrize("claim", [claim for claim in CLAIMS if claim != "name"])
def test_every_claim_but_the_name_is_required(tickets: Tickets, claim: str) -> None:
    with pytest.raises(InvalidTicket, match=claim):
        tickets.verify(signed(**{claim: None}))


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        ("aud", 7),
        ("sub", "controller"),
        ("sub", "bob-popout1"),
        ("sub", "bob#1"),
        ("sub", "b" * 128),
        ("sub", ""),
        ("sub", 7),
        ("room", "standup:red"),
        ("room", "a#b"),
        ("breakout", ""),
        ("breakout", "red:blue"),
        ("name", 7),
        ("role", "admin"),
        ("role", "Moderator"),
        ("kind", "service"),
        ("jti", ""),
        ("jti", 7),
        ("iat", str(NOW)),
        ("iat", True),
        ("exp", -1),
        ("exp", 10**30),
    ],
)
def test_claims_obey_the_rules_of_the_wire(tickets: Tickets, claim: str, value: object) -> None:
    with pytest.raises(InvalidTicket, match=claim) as caught:
        tickets.verify(signed(**{claim: value}))
    assert str(value) not in str(caught.value) or value in {"", 7}


def test_ids_that_are_uuids_are_normalised(tickets: Tickets) -> None:
    ticket = tickets.verify(signed(sub="9D2B6A4E-0000-4000-8000-00000000000A", room="9d2b6a4e0000400080000000000000ff"))
    assert ticket.participant.id == "9d2b6a4e-0000-4000-8000-00000000000a"
    assert ticket.room == "9d2b6a4e-0000-4000-8000-0000000000ff"


def test_further_claims_mean_nothing(tickets: Tickets) -> None:
    assert tickets.verify(signed(admin=True)).participant == replace(BOB, keeps_room=True)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ('"Bob"', "Bob"),
        ('"  Bob\\n"', "Bob"),
        (f'"{"n" * 101}"', "n" * 100),
        ('""', "bob"),
        ("null", "bob"),
        ('"\\u3164\\u200b"', "bob"),
        ('"Bob \\ud83d"', "Bob"),
    ],
)
def test_no_name_is_a_reason_to_refuse(tickets: Tickets, name: str, shown: str) -> None:
    payload = json.dumps(CLAIMS).replace('"Bob"', name)
    ticket = tickets.verify(jwt.PyJWS().encode(payload.encode(), SECRET, "HS256"))
    assert ticket.participant.display_name == shown
    assert tickets.verify(signed(name=None)).participant.display_name == "bob"


def test_an_id_is_never_mended(tickets: Tickets) -> None:
    payload = json.dumps(CLAIMS).replace('"bob"', '"bob\\ud83d"')
    with pytest.raises(InvalidTicket):
        tickets.verify(jwt.PyJWS().encode(payload.encode(), SECRET, "HS256"))


@pytest.mark.parametrize(
    ("claims", "breakout", "keeps_room"),
    [("", None, True), (', "breakout": null', None, False), (', "breakout": "red"', "red", False)],
)
def test_a_ticket_without_a_breakout_keeps_the_room_and_null_is_the_main_room(
    tickets: Tickets, claims: str, breakout: str | None, *, keeps_room: bool
) -> None:
    payload = f"{json.dumps(CLAIMS).removesuffix('}')}{claims}}}"
    participant = tickets.verify(jwt.PyJWS().encode(payload.encode(), SECRET, "HS256")).participant
    assert (participant.breakout, participant.keeps_room) == (breakout, keeps_room)


def test_what_is_signed_for_the_main_room_says_so(tickets: Tickets) -> None:
    text = make_ticket(SECRET, "HS256", BOB, ROOM, now=NOW, to_main_room=True)
    assert tickets.verify(text).participant == BOB
    assert tickets.verify(make_ticket(SECRET, "HS256", BOB, ROOM, now=NOW)).participant.keeps_room


@pytest.mark.parametrize("kind", ["guest", "sip"])
def test_guests_and_telephones_are_no_moderators(tickets: Tickets, kind: str) -> None:
    assert tickets.verify(signed(kind=kind)).participant.kind == Kind(kind)
    with pytest.raises(InvalidTicket, match="role, kind"):
        tickets.verify(signed(kind=kind, role="moderator"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "...",
        "not a ticket",
        "ü.ü.ü",
        "\ud800",
        segment({"alg": "HS256"}),
        f"{segment(b'[' * 3_000)}.{segment(CLAIMS)}.x",
        f"{segment({'alg': 'HS256'})}.{segment(b'null')}.x",
        "e" * 100_000,
    ],
)
def test_whatever_is_no_ticket_lets_nobody_in(tickets: Tickets, text: str) -> None:
    with pytest.raises(InvalidTicket):
        tickets.verify(text)


@pytest.mark.parametrize("payload", [b"null", b"[]", b"7", b"{", b"\xff", b"[" * 5_000, b'{"exp": 1e999}'])
def test_what_is_signed_must_be_claims(tickets: Tickets, payload: bytes) -> None:
    with pytest.raises(InvalidTicket):
        tickets.verify(jwt.PyJWS().encode(payload, SECRET, "HS256"))


@pytest.mark.parametrize(
    ("algorithm", "key", "reason"),
    [
        ("HS256", "x" * 31, "32 bytes"),
        ("HS256", "", "32 bytes"),
        ("HS256", pair("RS256").public, "not a key in PEM"),
        ("RS256", SECRET, "an RSA key"),
        ("RS256", pair("ES256").public, "an RSA key"),
        ("RS256", pair("RS256").private, "the public one"),
        ("RS256", unsuitable_pems()["a short RSA key"], "2,048 bits"),
        ("ES256", pair("RS256").public, "a P-256 key"),
        ("ES256", unsuitable_pems()["a P-384 key"], "a P-256 key"),
        ("EdDSA", pair("ES256").public, "an Ed25519"),
    ],
)
def test_a_key_that_does_not_suit_the_algorithm_stops_the_start(
    algorithm: TicketAlgorithm, key: str, reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"^MODERATION_TICKET_KEY: .*{reason}") as caught:
        Tickets(key, algorithm)
    assert not key or key not in str(caught.value)


def test_thirty_two_bytes_need_not_be_characters() -> None:
    Tickets("ü" * 16, "HS256")


@pytest.mark.parametrize(
    ("algorithm", "key", "reason"),
    [
        ("HS256", "x" * 31, "32 bytes"),
        ("RS256", pair("RS256").public, "a public key cannot sign"),
        ("HS256", "https://auth.example.org/certs", "a URL cannot sign"),
        ("RS256", "https://auth.example.org/certs", "a URL cannot sign"),
        ("EdDSA", pair("EdDSA").public, "a public key cannot sign"),
        ("RS256", pair("EdDSA").private, "an RSA key"),
        ("ES256", "nothing of the kind", "a P-256 key"),
    ],
)
def test_what_cannot_sign_makes_no_ticket(algorithm: TicketAlgorithm, key: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        make_ticket(key, algorithm, BOB, ROOM)
