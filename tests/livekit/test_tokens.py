"""What a token says, claim for claim."""

import itertools
import time
from typing import Any

import jwt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from signaling.core.participants import ALL_SOURCES, Kind, Source
from signaling.errors import ConfigurationError
from signaling.identifiers import Identity, LiveKitRoom
from signaling.livekit.tokens import TokenMint

KEY = "a key"
SECRET = "a secret of thirty-two characters or more"
MINT = TokenMint(KEY, SECRET)
ROOM = LiveKitRoom("standup:red")
BOB = Identity("bob")


def claims_of(token: str) -> dict[str, Any]:
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT"}
    return dict(jwt.decode(token, SECRET, algorithms=["HS256"]))


def without_times(claims: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in claims.items() if name not in {"nbf", "exp", "iat"}}


def grants(sources: list[str], *, can_publish: bool, hidden: bool) -> dict[str, Any]:
    return {
        "roomJoin": True,
        "room": "standup:red",
        "canSubscribe": True,
        "canPublish": can_publish,
        "canPublishSources": sources,
        "canPublishData": False,
        "canUpdateOwnMetadata": False,
        "hidden": hidden,
        "roomCreate": False,
        "roomList": False,
        "roomAdmin": False,
        "roomRecord": False,
        "recorder": False,
        "ingressAdmin": False,
    }


def test_a_users_token_has_these_claims_and_no_others() -> None:
    claims = claims_of(MINT.for_participant(ROOM, BOB, sources=ALL_SOURCES, kind=Kind.USER))
    assert without_times(claims) == {
        "iss": KEY,
        "sub": "bob",
        "name": "bob",
        "video": grants(["camera", "microphone", "screen_share", "screen_share_audio"], can_publish=True, hidden=False),
    }


def test_a_token_is_valid_from_now_for_32_seconds() -> None:
    before = int(time.time())
    claims = claims_of(MINT.for_participant(ROOM, BOB, sources=ALL_SOURCES, kind=Kind.USER))
    assert before <= claims["nbf"] <= int(time.time())
    assert claims["exp"] - claims["nbf"] == 32


@pytest.mark.parametrize(
    "sources", [chosen for size in range(1, 5) for chosen in itertools.combinations(ALL_SOURCES, size)]
)
def test_sources_are_listed_in_the_order_of_livekit(sources: tuple[Source, ...]) -> None:
    video = claims_of(MINT.for_participant(ROOM, BOB, sources=sources, kind=Kind.USER))["video"]
    assert video["canPublish"] is True
    order = ["camera", "microphone", "screen_share", "screen_share_audio"]
    assert video["canPublishSources"] == [name for name in order if Source(name) in sources]


@pytest.mark.parametrize("kind", [*Kind])
def test_no_source_at_all_is_said_by_can_publish_since_an_empty_list_would_allow_everything(kind: Kind) -> None:
    video = claims_of(MINT.for_participant(ROOM, BOB, sources=(), kind=kind))["video"]
    assert video == grants([], can_publish=False, hidden=kind is Kind.RECORDER)


@pytest.mark.parametrize("kind", [*Kind])
def test_only_services_are_hidden(kind: Kind) -> None:
    video = claims_of(MINT.for_participant(ROOM, BOB, sources=ALL_SOURCES, kind=kind))["video"]
    assert video["hidden"] is (kind is Kind.RECORDER)


def test_a_popouts_token_is_hidden_and_can_only_subscribe() -> None:
    claims = claims_of(MINT.for_popout(ROOM, Identity("bob-popout3")))
    assert claims["exp"] - claims["nbf"] == 32
    assert without_times(claims) == {
        "iss": KEY,
        "sub": "bob-popout3",
        "name": "bob-popout3",
        "video": grants([], can_publish=False, hidden=True),
    }


@given(
    sources=st.sets(st.sampled_from(Source)).map(lambda chosen: tuple(source for source in Source if source in chosen)),
    kind=st.sampled_from(Kind),
)
def test_no_token_carries_anything_administrative_or_leaves_a_grant_to_its_default(
    sources: tuple[Source, ...], kind: Kind
) -> None:
    token = MINT.for_participant(ROOM, BOB, sources=sources, kind=kind)
    video = claims_of(token)["video"]
    assert set(video) == set(grants([], can_publish=False, hidden=False))
    assert {name for name, value in video.items() if value is True} <= {
        "roomJoin",
        "canSubscribe",
        "canPublish",
        "hidden",
    }
    assert video["canPublish"] is bool(video["canPublishSources"])


@given(
    key=st.text(),
    secret=st.text(min_size=1),
    room=st.text(),
    identity=st.text(),
    sources=st.sets(st.sampled_from(Source)).map(lambda chosen: tuple(source for source in Source if source in chosen)),
    kind=st.sampled_from(Kind),
)
@example(key="", secret="short", room="é", identity="\ud800", sources=(), kind=Kind.USER)
@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
def test_pyjwt_would_have_made_the_same_token(
    key: str, secret: str, room: str, identity: str, sources: tuple[Source, ...], kind: Kind
) -> None:
    token = TokenMint(key, secret).for_participant(LiveKitRoom(room), Identity(identity), sources=sources, kind=kind)
    claims = jwt.decode(token, secret, algorithms=["HS256"])
    assert (claims["iss"], claims["sub"], claims["name"], claims["video"]["room"]) == (key, identity, identity, room)
    assert jwt.encode(claims, secret, algorithm="HS256") == token


@pytest.mark.parametrize("secret", ["", "-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_secret_is_refused_at_once(secret: str) -> None:
    with pytest.raises(ConfigurationError, match="LIVEKIT_API_SECRET: is not a secret to sign with"):
        TokenMint(KEY, secret)


def test_another_secret_signs_another_token() -> None:
    token = TokenMint(KEY, "another secret of thirty-two characters").for_popout(ROOM, BOB)
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(token, SECRET, algorithms=["HS256"])
