"""Keys for tickets, made once for all tests."""

from dataclasses import dataclass
from functools import cache

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from signaling.settings import TicketAlgorithm

SECRET = "a secret of at least thirty-two bytes"


@dataclass(frozen=True)
class Pair:
    """What signs, and what the server is given; the same thing for a secret."""

    algorithm: TicketAlgorithm
    private: str
    public: str


@cache
def pair(algorithm: TicketAlgorithm, _name: str = "") -> Pair:
    """The keys of an algorithm; others by another name."""
    match algorithm:
        case "HS256":
            return Pair(algorithm, SECRET, SECRET)
        case "RS256":
            return _pems(algorithm, rsa.generate_private_key(public_exponent=65537, key_size=2048))
        case "ES256":
            return _pems(algorithm, ec.generate_private_key(ec.SECP256R1()))
        case "EdDSA":
            return _pems(algorithm, ed25519.Ed25519PrivateKey.generate())


@cache
def unsuitable_pems() -> dict[str, str]:
    """Public keys that no algorithm accepts."""
    short = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - to be refused
    return {
        "a short RSA key": _pems("RS256", short).public,
        "a P-384 key": _pems("ES256", ec.generate_private_key(ec.SECP384R1())).public,
    }


def _pems(
    algorithm: TicketAlgorithm,
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey,
) -> Pair:
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return Pair(algorithm, private.decode(), public.decode())
