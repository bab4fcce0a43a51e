"""Tickets: what a controller signs so that somebody may connect, once."""

import binascii
import contextlib
import hmac
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Final
from uuid import uuid4

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, StringConstraints, ValidationError

from signaling.core.participants import Kind, Participant, Role
from signaling.errors import ConfigurationError, InvalidParticipant, SignalingError
from signaling.identifiers import BreakoutId, ParticipantId, RoomId
from signaling.identifiers import parse_breakout_id as to_breakout_id
from signaling.identifiers import parse_participant_id as to_participant_id
from signaling.identifiers import parse_room_id as to_room_id
from signaling.messages.envelope import mend_names
from signaling.server.key_sets import RSA_BITS, SETTING, KeySet, PublicKey, suitable
from signaling.settings import TicketAlgorithm

AUDIENCE: Final = "livekit-moderation"
LIFETIME_S: Final = 60
"""What may lie between `iat` and `exp` at most."""
LEEWAY_S: Final = 30
"""By how much the controller's clock may differ from ours."""

_SECRET_BYTES: Final = 32
_MAX_LENGTH: Final = 8_192
_USUAL_HEADERS: Final = frozenset(
    urlsafe_b64encode(header).rstrip(b"=").decode()
    for header in (b'{"alg":"HS256","typ":"JWT"}', b'{"typ":"JWT","alg":"HS256"}', b'{"alg":"HS256"}')
)
_STANDARD: Final = str.maketrans("-_+/=", "+/!!!")
"""Base64 as `binascii` has it, of that for URLs; what is not of that either is refused."""

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey


class InvalidTicket(SignalingError):
    """A ticket that lets nobody in; the message says why and repeats nothing of it."""


Seconds = Annotated[float, Field(ge=0, le=2**53, allow_inf_nan=False)]
"""A `NumericDate`."""


class _Claims(BaseModel):
    """What a ticket says, beyond which it may say anything."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", hide_input_in_errors=True)

    aud: str | list[str]
    sub: Annotated[ParticipantId, AfterValidator(to_participant_id)]
    room: Annotated[RoomId, AfterValidator(to_room_id)]
    name: str | None = None
    role: Role
    kind: Kind
    breakout: Annotated[BreakoutId, AfterValidator(to_breakout_id)] | None = None
    jti: Annotated[str, StringConstraints(min_length=1, max_length=255)]
    iat: Seconds
    exp: Seconds
    nbf: Seconds | None = None


@dataclass(frozen=True, slots=True)
class Ticket:
    """
    Who may connect, and to which meeting.

    Attributes:
        id: Its `jti`.
        until: When it lets nobody in any more, whoever's clock is wrong; seconds since the epoch.
    """

    participant: Participant
    room: RoomId
    id: str
    until: float


class Tickets:
    """
    Checks tickets; that each is used once is up to whoever lets somebody in.

    Args:
        key: A secret of 32 bytes or more for HS256, else a public key in PEM or the URL of a key set.
        algorithm: The one that is accepted, whatever a ticket or a key set says.
        clock: Seconds since the epoch.

    Raises:
        ConfigurationError: The key does not suit the algorithm.
    """

    def __init__(
        self, key: SecretStr | str, algorithm: TicketAlgorithm, *, clock: Callable[[], float] = time.time
    ) -> None:
        text = _text(key)
        self._key = KeySet(text, algorithm) if _is_url(text) else _verifying_key(text, algorithm)
        self._algorithm = algorithm
        self._clock = clock
        self._signatures = jwt.PyJWS()
        self._hmac = hmac.new(self._key, digestmod="sha256") if isinstance(self._key, bytes) else None

    def start(self) -> None:
        """Begin to fetch the key set, if there is one."""
        if isinstance(self._key, KeySet):
            self._key.start()

    async def close(self) -> None:
        """Fetch no key set any more."""
        if isinstance(self._key, KeySet):
            await self._key.close()

    async def refresh_keys(self, text: str) -> None:
        """
        Fetch the key set if a ticket needs that; to be awaited before `verify`, which looks at what is known.

        Raises:
            InvalidTicket: No key will make it valid.
        """
        if isinstance(self._key, KeySet):
            await self._key.refresh(self._key_id(text))

    def verify(self, text: str) -> Ticket:
        """
        Check a ticket, which does not use it up.

        Raises:
            InvalidTicket: It lets nobody in.
        """
        claims = self._claims(text)
        now = self._clock()
        if AUDIENCE not in ([claims.aud] if isinstance(claims.aud, str) else claims.aud):
            raise InvalidTicket("is for somebody else: aud")
        if not 0 < claims.exp - claims.iat <= LIFETIME_S:
            raise InvalidTicket(f"must be valid for {LIFETIME_S} s at most: iat, exp")
        if claims.exp + LEEWAY_S < now:
            raise InvalidTicket("has expired: exp")
        if max(claims.iat, claims.nbf or 0) - LEEWAY_S > now:
            raise InvalidTicket("is not valid yet: iat, nbf")
        try:
            participant = Participant(
                claims.sub,
                role=claims.role,
                kind=claims.kind,
                display_name=claims.name or "",
                breakout=claims.breakout,
                keeps_room="breakout" not in claims.model_fields_set,  # `null` is the main room
            )
        except InvalidParticipant as error:
            raise InvalidTicket("gives a role that their kind cannot have: role, kind") from error
        return Ticket(participant, claims.room, claims.jti, claims.exp + LEEWAY_S)

    def _claims(self, text: str) -> _Claims:
        key = self._key.find(self._key_id(text)) if isinstance(self._key, KeySet) else self._key
        if key is None:
            raise InvalidTicket("is signed with no key that the key set is known to have: kid")
        with self._saying_less(text):
            payload = self._signed_as_usual(text)
            if payload is None:
                payload = self._signatures.decode(text, key, algorithms=[self._algorithm])
            return _Claims.model_validate_json(mend_names(payload.decode(), "name"))

    def _signed_as_usual(self, text: str) -> bytes | None:
        """
        What a ticket holds that is signed by HS256 and has a header as libraries write it; `None` for any other.

        PyJWT, which then has the last word, takes four times as long: it looks at each character, and at key and
        header anew for each ticket.
        """
        signed, _, signature = text.rpartition(".")
        header, _, payload = signed.partition(".")
        if self._hmac is None or header not in _USUAL_HEADERS or not text.isascii():
            return None
        mac = self._hmac.copy()
        mac.update(signed.encode())
        expected = urlsafe_b64encode(mac.digest()).rstrip(b"=")
        if not hmac.compare_digest(expected, signature.encode()):
            return None
        padded = payload.translate(_STANDARD) + "=" * (-len(payload) % 4)
        try:
            return binascii.a2b_base64(padded, strict_mode=True)
        except binascii.Error:
            return None

    def _key_id(self, text: str) -> str | None:
        with self._saying_less(text):
            header = self._signatures.get_unverified_header(text)
            if header.get("alg") != self._algorithm:  # nobody fetches anything for these
                raise jwt.InvalidAlgorithmError
            return header.get("kid")

    @contextlib.contextmanager
    def _saying_less(self, text: str) -> Iterator[None]:
        """Whatever is wrong with a ticket becomes `InvalidTicket`, never chained: the causes hold what was sent."""
        if len(text) > _MAX_LENGTH:
            raise InvalidTicket("is too long")
        try:
            yield
        except ValidationError as error:
            where = error.errors(include_url=False, include_context=False, include_input=False)[0]["loc"]
            raise InvalidTicket(f"has a wrong claim: {where[0] if where else 'no object'}") from None
        except (
            jwt.PyJWTError,
            ValueError,
            RecursionError,
        ):  # the last two: what is no JSON text, or nested without end
            raise InvalidTicket(f"is not signed by {self._algorithm} with the key that is set") from None


def make_ticket(
    key: SecretStr | str,
    algorithm: TicketAlgorithm,
    participant: Participant,
    room: RoomId,
    *,
    now: float | None = None,
    lifetime_s: int = LIFETIME_S,
    to_main_room: bool = False,
) -> str:
    """
    Sign a ticket, as a controller does.

    Args:
        key: The secret for HS256, else the private key in PEM.
        participant: Who is still in the meeting comes back to the room where they were, unless they have a breakout.
        now: Seconds since the epoch.
        to_main_room: Whether who has no breakout enters the main room, wherever they were.

    Raises:
        ConfigurationError: The key cannot sign by this algorithm.
    """
    issued_at = int(time.time() if now is None else now)
    claims: dict[str, str | int | None] = {
        "aud": AUDIENCE,
        "sub": participant.id,
        "room": room,
        "name": participant.display_name,
        "role": participant.role.value,
        "kind": participant.kind.value,
        "jti": uuid4().hex,
        "iat": issued_at,
        "exp": issued_at + lifetime_s,
    }
    if participant.breakout is not None or to_main_room:
        claims["breakout"] = participant.breakout
    return jwt.encode(claims, _signing_key(_text(key), algorithm), algorithm=algorithm)


def _text(key: SecretStr | str) -> str:
    text = key.get_secret_value() if isinstance(key, SecretStr) else key
    return text.strip() if _is_url(text.strip()) else text


def _is_url(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def _verifying_key(text: str, algorithm: TicketAlgorithm) -> bytes | PublicKey:
    if algorithm == "HS256":
        return _secret(text)
    with contextlib.suppress(ValueError, UnsupportedAlgorithm):  # told below, with what it should have been
        if (key := suitable(load_pem_public_key(text.encode()), algorithm)) is not None:
            return key
    raise ConfigurationError(f"{SETTING}: {algorithm} needs {_NEEDED[algorithm]} in PEM, the public one")


def _signing_key(text: str, algorithm: TicketAlgorithm) -> bytes | PrivateKey:
    if _is_url(text):
        raise ConfigurationError(f"{SETTING}: a URL cannot sign; tickets are made with a private key of that key set")
    if algorithm == "HS256":
        return _secret(text)
    if "PUBLIC KEY-----" in text:
        raise ConfigurationError(f"{SETTING}: a public key cannot sign; tickets are made with the private one")
    key: object = None
    with contextlib.suppress(ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it has a password
        key = load_pem_private_key(text.encode(), password=None)
    match algorithm, key:
        case "RS256", rsa.RSAPrivateKey() if key.key_size >= RSA_BITS:
            return key
        case "ES256", ec.EllipticCurvePrivateKey() if isinstance(key.curve, ec.SECP256R1):
            return key
        case "EdDSA", ed25519.Ed25519PrivateKey() | ed448.Ed448PrivateKey():
            return key
    raise ConfigurationError(
        f"{SETTING}: to sign by {algorithm}, it must be {_NEEDED[algorithm]} in PEM, the private one"
    )


def _secret(text: str) -> bytes:
    secret = text.encode()
    if "-----BEGIN" in text:
        raise ConfigurationError(f"{SETTING}: HS256 needs a secret, not a key in PEM; see MODERATION_TICKET_ALGORITHM")
    if len(secret) < _SECRET_BYTES:
        raise ConfigurationError(f"{SETTING}: must be a secret of {_SECRET_BYTES} bytes or more")
    return secret


_NEEDED: Final = {
    "RS256": f"an RSA key of {RSA_BITS:,} bits or more",
    "ES256": "a P-256 key",
    "EdDSA": "an Ed25519 or Ed448 key",
}
