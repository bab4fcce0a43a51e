import base64
import contextlib
import hashlib
import itertools
import json
import time
from typing import Any

import jwt
import pytest
from google.protobuf.json_format import MessageToJson
from hypothesis import given
from hypothesis import strategies as st
from livekit.protocol import models
from livekit.protocol.webhook import WebhookEvent

from signaling.core.participants import Source
from signaling.errors import WebhookRefused
from signaling.livekit.webhooks import LEEWAY_S, MAX_AGE_S, Webhooks
from signaling.testing.webhooks import sign_webhook

KEY, SECRET = "key", "a secret of at least thirty-two bytes"


FIELDS = [
    *("event", "id", "createdAt", "room", "name", "sid", "participant", "identity", "permission", "canPublish"),
    *("canPublishSources", "tracks", "track", "source", "type", "mimeType", "kind", "state", "egressInfo", "new"),
]
_numbers = itertools.count(1)


def body_of(
    event: str,
    participant: models.ParticipantInfo | None = None,
    **fields: Any,  # noqa: ANN401 - of the event
) -> bytes:
    """The body of a new one."""
    fields = {"id": f"EV_{next(_numbers)}", "created_at": int(time.time()), **fields}
    event_of_it = WebhookEvent(event=event, room=models.Room(name="standup"), participant=participant, **fields)
    return MessageToJson(event_of_it).encode()


class Clock:
    def __init__(self) -> None:
        self.now = float(int(time.time()))

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def webhooks(clock: Clock) -> Webhooks:
    return Webhooks(KEY, SECRET, clock=clock)


def refusal(webhooks: Webhooks, body: bytes, authorization: str | None = None) -> str:
    with pytest.raises(WebhookRefused) as refused:
        webhooks.open(body, sign_webhook(body, KEY, SECRET) if authorization is None else authorization)
    return refused.value.reason


def test_who_joined_is_read_with_what_they_may_do(webhooks: Webhooks) -> None:
    permission = models.ParticipantPermission(can_publish=True, can_publish_sources=["CAMERA"])
    body = body_of(
        "participant_joined", participant=models.ParticipantInfo(sid="PA_1", identity="bob", permission=permission)
    )
    notice = webhooks.open(body, sign_webhook(body, KEY, SECRET)).notice
    assert notice is not None
    assert (notice.kind, notice.room, notice.identity, notice.sid) == ("participant_joined", "standup", "bob", "PA_1")
    assert notice.presence is not None
    assert notice.presence.permission.allows_exactly((Source.CAMERA,))


@pytest.mark.parametrize("event", ["track_published", "track_unpublished"])
def test_a_track_is_read_with_its_source_and_what_it_really_is(webhooks: Webhooks, event: str) -> None:
    track = models.TrackInfo(sid="TR_1", source="CAMERA", type="VIDEO", mime_type="audio/opus")
    body = body_of(event, participant=models.ParticipantInfo(sid="PA_1", identity="bob"), track=track)
    notice = webhooks.open(body, f"Bearer {sign_webhook(body, KEY, SECRET)}").notice
    assert notice is not None
    assert notice.track is not None
    assert (notice.track.source, notice.track.is_sound) == (Source.CAMERA, True)


@pytest.mark.parametrize(("name", "is_streamed_in"), [("synthesized-camera", True), ("camera", False), ("", False)])
def test_a_track_that_came_by_whip_is_known_by_its_name(webhooks: Webhooks, name: str, *, is_streamed_in: bool) -> None:
    track = models.TrackInfo(sid="TR_1", source="CAMERA", type="VIDEO", mime_type="video/VP8", name=name)
    body = body_of("track_published", participant=models.ParticipantInfo(sid="PA_1", identity="bob"), track=track)
    notice = webhooks.open(body, sign_webhook(body, KEY, SECRET)).notice
    assert notice is not None
    assert notice.track is not None
    assert notice.track.is_streamed_in is is_streamed_in


@pytest.mark.parametrize("event", ["room_started", "participant_connection_aborted", "new_kind"])
def test_from_other_events_nothing_follows(webhooks: Webhooks, event: str) -> None:
    body = body_of(event, participant=models.ParticipantInfo(identity="bob"))
    assert webhooks.open(body, sign_webhook(body, KEY, SECRET)).notice is None


def test_a_participant_without_identity_is_nobody(webhooks: Webhooks) -> None:
    body = body_of("participant_joined")
    assert webhooks.open(body, sign_webhook(body, KEY, SECRET)).notice is None


def test_what_another_key_signed_is_forged(webhooks: Webhooks) -> None:
    body = body_of("room_finished")
    assert refusal(webhooks, body, sign_webhook(body, KEY, "another secret of thirty-two bytes or so")) == "forged"
    assert refusal(webhooks, body, sign_webhook(body, "another", SECRET)) == "forged"
    assert refusal(webhooks, body + b" ", sign_webhook(body, KEY, SECRET)) == "forged"


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer x.y.z", "é", "x" * 10_000])
def test_without_a_signature_it_is_forged(webhooks: Webhooks, authorization: str) -> None:
    assert refusal(webhooks, body_of("room_finished"), authorization) == "forged"


@pytest.mark.parametrize("sha256", [None, "", "not base64!", 5, base64.b64encode(b"short").decode()])
def test_a_token_of_ours_that_does_not_sign_this_body_is_no_signature(webhooks: Webhooks, sha256: object) -> None:
    claims = {"iss": KEY, "exp": time.time() + 60, "sha256": sha256}
    assert refusal(webhooks, body_of("room_finished"), jwt.encode(claims, SECRET)) == "forged"


@pytest.mark.parametrize(
    "claims",
    [
        {"roomConfig": [1]},
        {"video": "all"},
        {"agent": [], "attributes": 5, "sub": {}},
        {"exp": 1e300, "nbf": "later", "iat": [], "aud": 7},
        {"metadata": "x" * 10_000},
    ],
    ids=str,
)
def test_what_else_the_signature_says_in_whatever_shape_does_not_count(
    webhooks: Webhooks, claims: dict[str, object]
) -> None:
    body = body_of("room_finished")
    sha256 = base64.b64encode(hashlib.sha256(body).digest()).decode()
    signed = jwt.PyJWS().encode(json.dumps({"iss": KEY, "sha256": sha256, **claims}).encode(), SECRET)
    assert webhooks.open(body, signed).notice is not None


@pytest.mark.parametrize("claim", ["iss", "sha256"])
@pytest.mark.parametrize("value", [None, [], {}, "x", 5, True, 10**400, float("inf"), "\ud800"], ids=repr)
def test_whatever_counts_has_its_shape_or_it_is_forged(webhooks: Webhooks, claim: str, value: object) -> None:
    body = body_of("room_finished")
    claims = {"iss": KEY, "sha256": base64.b64encode(hashlib.sha256(body).digest()).decode()}
    signed = jwt.PyJWS().encode(json.dumps(claims | {claim: value}).encode(), SECRET)
    assert refusal(webhooks, body, signed) == "forged"


@pytest.mark.parametrize("payload", [b"null", b"[]", b"{", b"\xff", b"[" * 100_000, b""], ids=len)
def test_what_is_signed_must_be_claims(webhooks: Webhooks, payload: bytes) -> None:
    assert refusal(webhooks, body_of("room_finished"), jwt.PyJWS().encode(payload, SECRET)) == "forged"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"event": 5}', b"[" * 100_000, b"[]", b'"x"', b'{"room":[]}'])
def test_what_is_no_event_is_unparsable(webhooks: Webhooks, body: bytes) -> None:
    assert refusal(webhooks, body) == "unparsable"


def test_an_event_without_its_kind_or_id_is_unparsable(webhooks: Webhooks) -> None:
    for body in (body_of(""), body_of("room_finished", id="")):
        assert refusal(webhooks, body) == "unparsable"


def test_one_whose_signature_has_run_out_with_it_is_too_old_and_not_forged(webhooks: Webhooks, clock: Clock) -> None:
    for age_s in (6 * 60, -120):
        body = body_of("room_finished", created_at=int(clock.now) - age_s)
        sha256 = base64.b64encode(hashlib.sha256(body).digest()).decode()
        claims = {"iss": KEY, "nbf": int(time.time()) - age_s, "exp": int(time.time()) - age_s + 300, "sha256": sha256}
        assert refusal(webhooks, body, jwt.encode(claims, SECRET)) == "stale"


@pytest.mark.parametrize(
    ("age_s", "is_stale"), [(MAX_AGE_S, False), (MAX_AGE_S + 1, True), (-LEEWAY_S, False), (-LEEWAY_S - 1, True)]
)
def test_too_old_ones_are_refused(webhooks: Webhooks, clock: Clock, age_s: int, is_stale: bool) -> None:  # noqa: FBT001
    body = body_of("room_finished", created_at=int(clock.now) - age_s)
    if is_stale:
        assert refusal(webhooks, body) == "stale"
    else:
        assert webhooks.open(body, sign_webhook(body, KEY, SECRET)).notice is not None


def test_it_is_known_by_its_id_until_it_is_too_old_to_come_again(webhooks: Webhooks, clock: Clock) -> None:
    body = body_of("room_finished", created_at=int(clock.now), id="EV_mine")
    webhook = webhooks.open(body, sign_webhook(body, KEY, SECRET))
    assert webhook.id == "EV_mine"
    clock.now = webhook.until
    assert refusal(webhooks, body) == "stale"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_whatever_is_signed_is_a_webhook_or_refused(event: dict[str, object]) -> None:
    body = json.dumps({"event": "participant_joined", "id": "EV_1", "createdAt": int(time.time()), **event}).encode()
    with contextlib.suppress(WebhookRefused):
        assert Webhooks(KEY, SECRET).open(body, sign_webhook(body, KEY, SECRET)).id


@given(st.binary(max_size=200), st.text(max_size=200))
def test_whatever_comes_is_refused_and_breaks_nothing(body: bytes, authorization: str) -> None:
    assert refusal(Webhooks(KEY, SECRET), body, authorization) == "forged"
