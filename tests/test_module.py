"""The rules of the namespace `livekit`, through the embedding API, on the fake RoomService."""

import asyncio
from typing import Any

import jwt
import pytest

from signaling import InvalidParticipant, Kind, NoSuchMeeting, NotInMeeting, Participant, Role, SessionEnded
from signaling.core.state import POPOUTS_PER_PERSON
from signaling.identifiers import BreakoutId, ParticipantId
from signaling.meeting.turn import MAX_WAITING
from signaling.stores.contract import Commit
from signaling.stores.memory import MemoryStore
from signaling.testing.fake_room_service import FakeRoomService
from tests.meeting_on_fake import ROOM, MeetingOnFake, meeting_on_fake, outcomes, until

ALL = ["camera", "microphone", "screen_share", "screen_share_audio"]
LESS_MICROPHONE = ["camera", "screen_share", "screen_share_audio"]
LESS_SCREEN = ["camera", "microphone"]


def claims(token: str) -> dict[str, Any]:
    return dict(jwt.decode(token, options={"verify_signature": False}))


def sources(token: str) -> list[str]:
    return list(claims(token)["video"]["canPublishSources"])


# --- Joining and tokens ------------------------------------------------------------------------------------------


async def test_join_data_is_flat_and_says_what_is_restricted(meeting: MeetingOnFake) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    assert alice.session.join_data is not None
    assert set(alice.session.join_data) == {
        *("room", "token", "public_url", "microphone_restriction_state", "credentials")
    }
    assert alice.session.join_data["room"] == ROOM
    assert alice.session.join_data["microphone_restriction_state"] == {"type": "disabled"}
    await alice.send("enable_microphone_restrictions", unrestricted_participants=["dave", "bob"])
    bob = await meeting.join("bob")
    assert bob.session.join_data is not None
    assert bob.session.join_data["microphone_restriction_state"] == {
        "type": "enabled",
        "unrestricted_participants": ["bob", "dave"],
    }


@pytest.mark.parametrize(("kind", "has_it"), [("sip", True), ("recorder", True), ("user", False), ("guest", False)])
async def test_service_url_is_only_for_kinds_beside_the_server(
    meeting: MeetingOnFake, kind: str, *, has_it: bool
) -> None:
    person = await meeting.join("somebody", kind=Kind(kind))
    assert person.session.join_data is not None
    if has_it:
        assert person.session.join_data["service_url"] == meeting.fake.url.replace("http", "ws")
    else:
        assert "service_url" not in person.session.join_data


async def test_a_token_has_exactly_these_grants_and_lives_32_s(meeting: MeetingOnFake) -> None:
    bob = await meeting.join("bob")
    token = claims(bob.token)
    assert token["sub"] == token["name"] == "bob"
    assert token["exp"] - token["nbf"] == 32
    assert "metadata" not in token
    assert token["video"] == {
        "room": ROOM,
        "roomJoin": True,
        "canSubscribe": True,
        "canPublish": True,
        "canPublishSources": ALL,
        "canPublishData": False,
        "canUpdateOwnMetadata": False,
        "roomCreate": False,
        "roomList": False,
        "roomAdmin": False,
        "roomRecord": False,
        "recorder": False,
        "ingressAdmin": False,
        "hidden": False,
    }


async def test_a_popout_token_is_hidden_and_only_subscribes(meeting: MeetingOnFake) -> None:
    bob = await meeting.join("bob")
    await bob.send("request_popout_stream_access_token", transaction_id="p")
    token = claims(bob.told("popout_stream_access_token")[0]["token"])
    assert token["sub"] == token["name"] == "bob-popout1"
    assert (token["video"]["canPublish"], token["video"]["canPublishSources"]) == (False, [])
    assert token["video"]["hidden"] is True
    assert token["video"]["canSubscribe"] is True


async def test_a_recorder_is_hidden_and_nobody_is_told_of_it(meeting: MeetingOnFake) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    recorder = await meeting.join("recorder", kind=Kind.RECORDER)
    assert claims(recorder.token)["video"]["hidden"] is True
    await recorder.session.leave()
    assert alice.inbox == []


async def test_popouts_count_up_and_the_seventeenth_removes_the_oldest(meeting: MeetingOnFake) -> None:
    bob = await meeting.join("bob")
    tokens = []
    for number in range(1, POPOUTS_PER_PERSON + 2):
        await bob.send("request_popout_stream_access_token")
        tokens.append(bob.told("popout_stream_access_token")[-1]["token"])
        if number <= POPOUTS_PER_PERSON:
            meeting.fake.join(ROOM, f"bob-popout{number}", token=tokens[-1])
    assert [claims(token)["sub"] for token in tokens] == [f"bob-popout{n}" for n in range(1, POPOUTS_PER_PERSON + 2)]
    await until(lambda: "bob-popout1" not in meeting.fake.permissions(ROOM))
    assert "bob-popout2" in meeting.fake.permissions(ROOM)


async def test_breakouts_have_rooms_of_their_own(meeting: MeetingOnFake) -> None:
    bob = await meeting.join("bob", breakout="red")
    assert bob.session.join_data is not None
    assert bob.session.join_data["room"] == "standup:red"


async def test_livekit_down_at_joining_leaves_livekit_out_and_says_so(fake: FakeRoomService) -> None:
    async with meeting_on_fake(fake) as meeting:
        await fake.offline()
        bob = await meeting.join("bob", in_livekit=False)
        assert bob.session.join_data is None
        assert bob.told("error") == [{"message": "error", "error": "livekit_unavailable"}]
        await bob.send("create_new_access_token")
        assert bob.told("error")[1:] == [{"message": "error", "error": "livekit_unavailable"}]
        await fake.online()
        await until(lambda: meeting.module.livekit_answers)
        await bob.send("create_new_access_token")
        assert sources(bob.told("credentials")[0]["token"]) == ALL


async def test_many_joiners_share_one_call_that_makes_the_room(meeting: MeetingOnFake) -> None:
    await asyncio.gather(*(meeting.join(f"p{n}", in_livekit=False) for n in range(20)))
    assert len(meeting.calls("CreateRoom")) == 1


# --- The commands ------------------------------------------------------------------------------------------------


async def test_force_muted_goes_to_each_person_whose_track_was_muted_and_to_nobody_else(
    meeting: MeetingOnFake,
) -> None:
    alice, bob, carol = (
        await meeting.join("alice", Role.MODERATOR),
        await meeting.join("bob"),
        await meeting.join("carol"),
    )
    dave = await meeting.join("dave", in_livekit=False)
    track = meeting.fake.publish(ROOM, "bob", "microphone")
    meeting.fake.publish(ROOM, "carol", "microphone", muted=True)
    meeting.fake.publish(ROOM, "alice", "microphone")
    came_to = await alice.outcomes("force_mute", participants=["bob", "carol", "dave", "zoe"])
    assert came_to == {"bob": "muted", "carol": "already_muted", "dave": "not_connected", "zoe": "unknown"}
    assert meeting.is_muted(bob, track)
    assert bob.told("force_muted") == [{"message": "force_muted", "moderator": "alice"}]
    assert not alice.told("force_muted") + carol.told("force_muted") + dave.told("force_muted")


async def test_force_mute_leaves_cameras_and_screens_alone(meeting: MeetingOnFake) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    camera = meeting.fake.publish(ROOM, "bob", "camera")
    assert await alice.outcomes("force_mute", participants=["bob"]) == {"bob": "no_track"}
    assert not meeting.is_muted(bob, camera)


async def test_the_senders_own_copies_carry_the_transaction_id_and_nobody_elses_do(meeting: MeetingOnFake) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    alice.forget()
    await alice.send("enable_microphone_restrictions", unrestricted_participants=[], transaction_id=2**64 - 1)
    assert {delivery.transaction_id for delivery in alice.inbox} == {2**64 - 1}
    assert {delivery.transaction_id for delivery in bob.inbox} == {None}


async def test_a_result_is_only_for_commands_with_a_transaction_id_and_connections_with_the_extension(
    meeting: MeetingOnFake,
) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    plain = await meeting.join("bob", Role.MODERATOR, extensions=[])
    await alice.send("disable_microphone_restrictions")
    await plain.send("disable_microphone_restrictions", transaction_id=1)
    assert not alice.told("result", "livekit_moderation")
    assert {delivery.namespace for delivery in plain.inbox} == {"livekit"}
    for action in ("create_new_access_token", "request_popout_stream_access_token", "disable_microphone_restrictions"):
        alice.forget()
        await alice.send(action, transaction_id=7)
        results = alice.told("result", "livekit_moderation")
        assert [(result["action"], "error" in result) for result in results] == [(action, False)]


@pytest.mark.parametrize(
    ("action", "fields"),
    [
        ("force_mute", {"participants": ["alice"]}),
        ("grant_screen_share_permission", {"participants": ["bob"]}),
        ("revoke_screen_share_permission", {"participants": ["alice"]}),
        ("enable_microphone_restrictions", {"unrestricted_participants": []}),
        ("disable_microphone_restrictions", {}),
    ],
)
async def test_who_is_no_moderator_is_refused_and_nothing_changes(
    meeting: MeetingOnFake, action: str, fields: dict[str, list[str]]
) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    alice.forget()
    calls = len(meeting.fake.calls)
    result = await bob.result(action, **fields)
    assert result["error"] == "insufficient_permissions"
    assert bob.told("error") == [{"message": "error", "error": "insufficient_permissions"}]
    assert alice.inbox == []
    assert len(meeting.fake.calls) == calls


async def test_what_cannot_be_parsed_is_one_error_that_names_the_field(meeting: MeetingOnFake) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    result = await alice.result("force_mute", participants="bob")
    assert (result["error"], result["detail"]) == ("invalid_command", "participants: must be a list")
    assert alice.told("error") == [
        {"message": "error", "error": "invalid_command", "detail": "participants: must be a list"}
    ]
    await alice.session.receive("livekit_moderation", {"action": "nonsense"})
    assert [error["error"] for error in alice.told("error", "livekit_moderation")] == ["invalid_command"]


# --- Restrictions ------------------------------------------------------------------------------------------------


async def test_only_those_listed_and_moderators_may_publish_a_microphone(meeting: MeetingOnFake) -> None:
    alice, bob, carol = (
        await meeting.join("alice", Role.MODERATOR),
        await meeting.join("bob"),
        await meeting.join("carol"),
    )
    came_to = await alice.outcomes("enable_microphone_restrictions", unrestricted_participants=["carol"])
    assert came_to == {"alice": "exempt", "bob": "restricted", "carol": "unchanged"}
    assert [meeting.may(person) for person in (alice, bob, carol)] == [True, False, True]
    event = {"message": "microphone_restrictions_enabled", "unrestricted_participants": ["carol"]}
    assert [person.told(str(event["message"])) for person in (alice, bob, carol)] == [[event]] * 3


async def test_again_with_another_list_those_now_listed_get_it_back(meeting: MeetingOnFake) -> None:
    alice, bob, carol = (
        await meeting.join("alice", Role.MODERATOR),
        await meeting.join("bob"),
        await meeting.join("carol"),
    )
    await alice.send("enable_microphone_restrictions", unrestricted_participants=["carol"])
    came_to = await alice.outcomes("enable_microphone_restrictions", unrestricted_participants=["bob"])
    assert came_to == {"alice": "exempt", "bob": "unrestricted", "carol": "restricted"}
    assert [meeting.may(person) for person in (bob, carol)] == [True, False]


async def test_an_empty_allow_list_is_enabled_and_restricts_everyone_but_moderators(meeting: MeetingOnFake) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    assert [meeting.may(person) for person in (alice, bob)] == [True, False]
    assert bob.told("microphone_restrictions_enabled")[0]["unrestricted_participants"] == []


async def test_a_late_joiner_is_restricted_too(meeting: MeetingOnFake) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    await alice.send("enable_microphone_restrictions", unrestricted_participants=["carol"])
    bob, carol = await meeting.join("bob"), await meeting.join("carol")
    assert (sources(bob.token), sources(carol.token)) == (LESS_MICROPHONE, ALL)
    assert [meeting.may(person) for person in (bob, carol)] == [False, True]


async def test_the_list_may_name_people_who_are_absent(meeting: MeetingOnFake) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    bob = await meeting.join("bob")
    await bob.session.leave()
    await alice.send("enable_microphone_restrictions", unrestricted_participants=["bob"])
    assert sources((await meeting.join("bob")).token) == ALL


async def test_disabling_gives_it_back_and_is_told_also_when_it_was_off(meeting: MeetingOnFake) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    assert await alice.outcomes("disable_microphone_restrictions") == {"alice": "unchanged", "bob": "unrestricted"}
    assert meeting.may(bob)
    assert await alice.outcomes("disable_microphone_restrictions") == {"alice": "unchanged", "bob": "unchanged"}
    assert len(bob.told("microphone_restrictions_disabled")) == 2


async def test_nothing_to_change_costs_one_call(meeting: MeetingOnFake) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    for n in range(10):
        await meeting.join(f"p{n}")
    await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    await until(lambda: meeting.module._entered.meetings[ROOM].due.count() == 0)
    meeting.fake.calls.clear()
    await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    assert [call.method for call in meeting.fake.calls] == ["ListParticipants"]


async def test_a_restriction_costs_one_list_and_one_call_for_each_who_differs(meeting: MeetingOnFake) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    for n in range(10):
        await meeting.join(f"p{n}")
    meeting.fake.calls.clear()
    await alice.send("enable_microphone_restrictions", unrestricted_participants=["p3"])
    assert sorted(meeting.calls("UpdateParticipant")) == [f"p{n}" for n in range(10) if n != 3]
    assert len(meeting.fake.calls) == 10


async def test_who_is_heard_comes_first_and_who_publishes_nothing_last(meeting: MeetingOnFake) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    for name in ("idle", "muted", "live"):
        await meeting.join(name)
    meeting.fake.publish(ROOM, "live", "microphone")
    meeting.fake.publish(ROOM, "muted", "microphone", muted=True)
    with meeting.fake.delay(0.01, method="UpdateParticipant"):
        meeting.fake.calls.clear()
        await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    assert meeting.calls("UpdateParticipant") == ["live", "muted", "idle"]


async def test_calls_in_flight_for_a_room_never_exceed_eight(meeting: MeetingOnFake) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    for n in range(30):
        await meeting.join(f"p{n}")
    meeting.fake.calls.clear()
    with meeting.fake.delay(0.02, method="UpdateParticipant"):
        await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    moments = [(call.arrived_at, 1) for call in meeting.fake.calls] + [
        (call.answered_at, -1) for call in meeting.fake.calls
    ]
    in_flight, most = 0, 0
    for _, step in sorted(moments):
        in_flight += step
        most = max(most, in_flight)
    assert most == 8


async def test_idle_people_of_a_large_room_settle_after_the_answer(meeting: MeetingOnFake) -> None:
    alice, live = await meeting.join("alice", Role.MODERATOR), await meeting.join("live")
    people = [await meeting.join(f"p{n:02}") for n in range(40)]
    meeting.fake.publish(ROOM, "live", "microphone")
    with meeting.fake.delay(0.1, method="UpdateParticipant"):
        came_to = await alice.outcomes("enable_microphone_restrictions", unrestricted_participants=[])
        assert came_to["live"] == "restricted"
        assert not meeting.may(live)
        settling = [person for person in people if came_to[person.id] == "settling"]
        assert 10 < len(settling) < 40
        assert sources((await meeting.join("p00", in_livekit=False)).token) == LESS_MICROPHONE
        await until(lambda: not (any(meeting.may(person) for person in people)))


# --- Screen sharing ----------------------------------------------------------------------------------------------


async def test_granting_is_remembered_and_applied_also_at_renewal_and_return(fake: FakeRoomService) -> None:
    async with meeting_on_fake(fake, moderation_screen_share_requires_permission=True) as meeting:
        alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
        assert sources(bob.token) == LESS_SCREEN
        assert await alice.outcomes("grant_screen_share_permission", participants=["bob"]) == {"bob": "granted"}
        assert meeting.may(bob, "screen_share")
        assert alice.told("screen_share_permissions_updated") == [
            {"message": "screen_share_permissions_updated", "grant": True, "participants": ["bob"]}
        ]
        assert not bob.told("screen_share_permissions_updated")
        await bob.send("create_new_access_token")
        assert sources(bob.told("credentials")[0]["token"]) == ALL
        await bob.session.move(BreakoutId("red"))
        assert sources(bob.told("credentials")[-1]["token"]) == ALL
        await bob.session.leave()
        assert sources((await meeting.join("bob")).token) == ALL
        assert await alice.outcomes("revoke_screen_share_permission", participants=["bob"]) == {"bob": "revoked"}
        assert sources((await meeting.join("bob")).token) == LESS_SCREEN


async def test_revoking_holds_for_moderators_too_and_ends_a_running_share(meeting: MeetingOnFake) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    await meeting.join("mia", Role.MODERATOR)
    meeting.fake.publish(ROOM, "mia", "screen_share")
    meeting.fake.publish(ROOM, "mia", "screen_share_audio")
    assert await alice.outcomes("revoke_screen_share_permission", participants=["mia"]) == {"mia": "revoked"}
    assert list(meeting.fake.participant(ROOM, "mia").tracks) == []


async def test_people_who_have_not_joined_are_left_out_of_a_grant_and_not_remembered(fake: FakeRoomService) -> None:
    async with meeting_on_fake(fake, moderation_screen_share_requires_permission=True) as meeting:
        alice = await meeting.join("alice", Role.MODERATOR)
        assert await alice.outcomes("grant_screen_share_permission", participants=["zoe"]) == {"zoe": "unknown"}
        assert alice.told("screen_share_permissions_updated")[0]["participants"] == []
        assert sources((await meeting.join("zoe")).token) == LESS_SCREEN


async def test_people_whose_update_failed_are_left_out_of_the_event_and_retried(meeting: MeetingOnFake) -> None:
    alice, bob, carol = (
        await meeting.join("alice", Role.MODERATOR),
        await meeting.join("bob"),
        await meeting.join("carol"),
    )
    with meeting.fake.refuse("internal", method="UpdateParticipant", identity="bob"):
        result = await alice.result("revoke_screen_share_permission", participants=["bob", "carol"])
        assert alice.told("screen_share_permissions_updated")[0]["participants"] == ["carol"]
        assert alice.told("error") == [{"message": "error", "error": "livekit_unavailable"}]
        assert result["outcomes"] == [
            {"participant": "bob", "outcome": "failed", "error": "livekit_rejected"},
            {"participant": "carol", "outcome": "revoked"},
        ]
        assert result["repaired_later"] == ["bob"]
        assert sources((await meeting.join("bob", in_livekit=False)).token) == LESS_SCREEN
    await until(lambda: not (meeting.may(bob, "screen_share")))
    assert not meeting.may(carol, "screen_share")
    assert len(alice.told("screen_share_permissions_updated")) == 1


async def test_people_in_a_room_that_livekit_does_not_list_have_failed_whatever_was_known_of_them(
    meeting: MeetingOnFake,
) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    carol = await meeting.join("carol", breakout="blue")
    breakout = f"{ROOM}:blue"
    await alice.outcomes("enable_microphone_restrictions", unrestricted_participants=["bob", "carol"])
    with meeting.fake.refuse("internal", method="ListParticipants", room=breakout):
        came_to = await alice.result("enable_microphone_restrictions", unrestricted_participants=[])
        assert outcomes(came_to) == {"alice": "exempt", "bob": "restricted", "carol": "failed"}
        assert came_to["repaired_later"] == ["carol"]
        assert not meeting.may(bob)
        assert meeting.may(carol, room=breakout)
    await until(lambda: not meeting.may(carol, room=breakout))


async def test_equal_rights_are_not_told_to_livekit_again(meeting: MeetingOnFake) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    await meeting.join("bob")
    meeting.fake.calls.clear()
    assert await alice.outcomes("grant_screen_share_permission", participants=["bob"]) == {"bob": "granted"}
    assert await alice.outcomes("grant_screen_share_permission", participants=["bob"]) == {"bob": "unchanged"}
    assert meeting.calls("UpdateParticipant") == []


# --- Roles -------------------------------------------------------------------------------------------------------


async def test_a_role_given_is_enforced_at_once_and_outlasts_a_new_ticket(meeting: MeetingOnFake) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    await bob.session.change_role(Role.MODERATOR)
    assert meeting.may(bob)
    assert bob.told("role_updated", "control") == [{"message": "role_updated", "new_role": "moderator"}]
    bob = await meeting.join("bob", Role.USER)
    assert sources(bob.token) == ALL
    assert "error" not in await bob.result("enable_microphone_restrictions", unrestricted_participants=[])


async def test_a_role_taken_is_enforced_at_once_and_outlasts_a_new_ticket(meeting: MeetingOnFake) -> None:
    alice, mia = await meeting.join("alice", Role.MODERATOR), await meeting.join("mia", Role.MODERATOR)
    await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    meeting.fake.publish(ROOM, "mia", "microphone")
    await alice.session.receive("control", {"action": "revoke_moderator_role", "target": "mia"})
    assert not meeting.may(mia)
    assert list(meeting.fake.participant(ROOM, "mia").tracks) == []
    mia = await meeting.join("mia", Role.MODERATOR)
    assert sources(mia.token) == LESS_MICROPHONE


async def test_a_role_change_clears_the_persons_own_grant_and_revocation(meeting: MeetingOnFake) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    await alice.send("revoke_screen_share_permission", participants=["bob"])
    await bob.session.change_role(Role.MODERATOR)
    assert meeting.may(bob, "screen_share")


async def test_nobody_of_kind_guest_or_sip_becomes_a_moderator(meeting: MeetingOnFake) -> None:
    alice, gus = await meeting.join("alice", Role.MODERATOR), await meeting.join("gus", Role.GUEST, kind=Kind.GUEST)
    await alice.session.receive("control", {"action": "grant_moderator_role", "target": "gus"})
    assert [error["error"] for error in alice.told("error", "control")] == ["insufficient_permissions"]
    with pytest.raises(InvalidParticipant):
        await gus.session.change_role(Role.MODERATOR)
    with pytest.raises(InvalidParticipant):
        Participant(ParticipantId("sid"), role=Role.MODERATOR, kind=Kind.SIP)


async def test_a_moderator_cannot_revoke_the_role_of_the_last_one_but_the_host_may(meeting: MeetingOnFake) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    await alice.session.receive("control", {"action": "revoke_moderator_role", "target": "alice"})
    assert [error["error"] for error in alice.told("error", "control")] == ["insufficient_permissions"]
    await alice.session.change_role(Role.USER)
    assert alice.told("role_updated", "control") == [{"message": "role_updated", "new_role": "user"}]


async def test_a_role_change_stands_when_livekit_does_not_answer(meeting: MeetingOnFake) -> None:
    alice, mia = await meeting.join("alice", Role.MODERATOR), await meeting.join("mia", Role.MODERATOR)
    await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    await meeting.fake.offline()
    await alice.session.receive("control", {"action": "revoke_moderator_role", "target": "mia"})
    assert mia.told("role_updated", "control") == [{"message": "role_updated", "new_role": "user"}]
    assert alice.told("error") == [{"message": "error", "error": "livekit_unavailable"}]
    await meeting.fake.online()
    await until(lambda: not (meeting.may(mia)))


# --- LiveKit does not answer -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "fields"),
    [
        ("force_mute", {"participants": ["bob"]}),
        ("grant_screen_share_permission", {"participants": ["bob"]}),
        ("revoke_screen_share_permission", {"participants": ["bob"]}),
        ("enable_microphone_restrictions", {"unrestricted_participants": []}),
    ],
)
async def test_livekit_answers_nothing_at_all_and_everything_is_as_before(
    meeting: MeetingOnFake, action: str, fields: dict[str, list[str]]
) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    alice.forget()
    meeting.fake.stall()
    result = await alice.result(action, **fields)
    assert result["error"] == "livekit_unavailable"
    assert [delivery.payload["message"] for delivery in alice.inbox] == ["result", "error"]
    assert bob.inbox == []
    calls = len(meeting.fake.calls)
    assert (await alice.result(action, **fields))["error"] == "livekit_unavailable"  # at once: no call is made
    assert len(meeting.fake.calls) == calls
    meeting.fake.unstall()
    await until(lambda: meeting.module.livekit_answers)
    assert sources((await meeting.join("bob", in_livekit=False)).token) == ALL


async def test_a_command_that_livekit_carried_out_without_saying_so_is_taken_back(meeting: MeetingOnFake) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    meeting.fake.publish(ROOM, "bob", "microphone")
    with meeting.fake.reset(method="UpdateParticipant", takes_effect=True, times=1):
        result = await alice.result("enable_microphone_restrictions", unrestricted_participants=[])
    # The list was answered, so this is one person's failure: the restriction stands, and LiveKit is asked again.
    assert outcomes(result) == {"alice": "exempt", "bob": "failed"}
    await until(lambda: not (meeting.module._entered.meetings[ROOM].due.is_settling(bob.id)))
    assert not meeting.may(bob)


async def test_a_mute_that_failed_is_tried_again_and_its_late_success_told_to_the_person(
    meeting: MeetingOnFake,
) -> None:
    alice, bob, carol = (
        await meeting.join("alice", Role.MODERATOR),
        await meeting.join("bob"),
        await meeting.join("carol"),
    )
    tracks = [meeting.fake.publish(ROOM, name, "microphone") for name in ("bob", "carol")]
    with meeting.fake.hang(method="MutePublishedTrack", identity="bob", times=1):
        result = await alice.result("force_mute", participants=["bob", "carol"])
        assert outcomes(result) == {"bob": "failed", "carol": "muted"}
        assert alice.told("error") == [{"message": "error", "error": "livekit_unavailable"}]
        assert carol.told("force_muted") == [{"message": "force_muted", "moderator": "alice"}]
        assert await bob.until_told("force_muted") == {"message": "force_muted", "moderator": "alice"}
    assert meeting.is_muted(bob, tracks[0])
    assert len(alice.told("error")) == 1


async def test_commands_of_one_meeting_take_effect_in_the_order_received(meeting: MeetingOnFake) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    meeting.fake.publish(ROOM, "bob", "camera")
    alice.forget()
    await asyncio.gather(
        *(alice.send("enable_microphone_restrictions", unrestricted_participants=[f"p{n}"]) for n in range(10)),
        alice.send("disable_microphone_restrictions"),
    )
    lists = [told["unrestricted_participants"] for told in bob.told("microphone_restrictions_enabled")]
    assert lists == [[f"p{n}"] for n in range(10)]
    in_livekit = [delivery for delivery in bob.inbox if delivery.namespace == "livekit"]
    assert in_livekit[-1].payload == {"message": "microphone_restrictions_disabled"}


async def test_nobody_has_more_waiting_than_is_left_for_others_and_all_together_sixty_four(
    meeting: MeetingOnFake,
) -> None:
    people = [await meeting.join(name, Role.MODERATOR) for name in ("alice", "bob", "carol")]
    alice = people[0]
    with meeting.fake.delay(0.5, method="ListParticipants", times=1) as delayed:
        first = asyncio.create_task(alice.send("disable_microphone_restrictions"))
        await delayed.hit()  # its turn has begun, and it waits no longer
        asked = [person.send("disable_microphone_restrictions") for person in people for _ in range(MAX_WAITING)]
        await asyncio.gather(first, *asked)
    refused = [len(person.told("error")) for person in people]
    assert refused == [MAX_WAITING - MAX_WAITING // 2**number for number in (1, 2, 3)]
    assert {error["error"] for person in people for error in person.told("error")} == {"rate_limit_exceeded"}


async def test_the_controllers_commands_wait_like_any_others_but_what_it_does_itself_is_never_refused(
    meeting: MeetingOnFake,
) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    command = {"action": "disable_microphone_restrictions"}
    with meeting.fake.delay(0.5, method="ListParticipants", times=1) as delayed:
        commands = [asyncio.create_task(meeting.module.command(ROOM, "livekit", command))]
        await delayed.hit()  # its turn has begun, and it waits no longer
        commands += [asyncio.create_task(meeting.module.command(ROOM, "livekit", command)) for _ in range(70)]
        await until(lambda: meeting.module._entered.meetings[ROOM].turns._waiting.total() == MAX_WAITING // 2)
        await alice.session.change_role(Role.USER)
    refused = [result for result in await asyncio.gather(*commands) if result.error]
    assert {(result.error, result.retry_after_s) for result in refused} == {("rate_limit_exceeded", 1)}
    assert alice.told("role_updated", "control")


async def test_tokens_and_popouts_never_wait_for_a_turn(meeting: MeetingOnFake) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    with meeting.fake.hang(method="UpdateParticipant") as hanging:
        restricting = asyncio.create_task(alice.send("enable_microphone_restrictions", unrestricted_participants=[]))
        await hanging.hit()
        await bob.send("create_new_access_token")
        await bob.send("request_popout_stream_access_token")
        carol = await meeting.join("carol")
        assert not restricting.done()
    assert sources(bob.told("credentials")[0]["token"]) == LESS_MICROPHONE
    assert sources(carol.token) == LESS_MICROPHONE
    await restricting


async def test_a_token_minted_while_a_restriction_is_lifted_waits_for_it_and_is_made_up_for(
    meeting: MeetingOnFake,
) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    with meeting.fake.hang(method="UpdateParticipant", times=1) as hanging:
        lifting = asyncio.create_task(alice.send("disable_microphone_restrictions"))
        await hanging.hit()
        carol = await meeting.join("carol")
        assert sources(carol.token) == LESS_MICROPHONE
    await lifting
    await until(lambda: bool(meeting.may(carol) and meeting.may(bob)))


async def test_a_joiner_is_told_the_state_that_events_have_announced(meeting: MeetingOnFake) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    switching = [
        alice.send("enable_microphone_restrictions", unrestricted_participants=[])
        if n % 2
        else alice.send("disable_microphone_restrictions")
        for n in range(30)
    ]
    joining = [meeting.join(f"p{n}", in_livekit=False) for n in range(30)]
    await asyncio.gather(*(work for pair in zip(switching, joining, strict=True) for work in pair))
    people = [await joined for joined in [meeting.join(f"late{n}", in_livekit=False) for n in range(2)]]
    for person in people:
        assert person.session.join_data is not None
        assert person.session.join_data["microphone_restriction_state"] == {
            "type": "enabled",
            "unrestricted_participants": [],
        }
        assert person.inbox == [] or person.told("joined", "control")


# --- Leaving, moving, ending -------------------------------------------------------------------------------------


async def test_leaving_removes_all_identities_also_when_an_old_token_returns(meeting: MeetingOnFake) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    await bob.send("request_popout_stream_access_token")
    meeting.fake.join(ROOM, "bob-popout1", token=bob.told("popout_stream_access_token")[0]["token"])
    token = bob.token
    await bob.session.leave()
    assert set(meeting.fake.permissions(ROOM)) == {"alice"}
    assert alice.told("left", "control") == [{"message": "left", "id": "bob", "reason": "quit"}]
    meeting.fake.join(ROOM, "bob", token=token)
    await meeting.module._entered.meetings[ROOM].reconciler.go_over(None)
    assert set(meeting.fake.permissions(ROOM)) == {"alice"}


async def test_leaving_stands_when_livekit_does_not_answer(meeting: MeetingOnFake) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    await meeting.fake.offline()
    await bob.session.leave()
    assert alice.told("left", "control")
    await meeting.fake.online()
    await until(lambda: "bob" not in meeting.fake.permissions(ROOM))


async def test_moving_delivers_credentials_and_removes_from_the_old_room(meeting: MeetingOnFake) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    await bob.session.move(BreakoutId("red"))
    credentials = bob.told("credentials")[0]
    assert credentials["room"] == "standup:red"
    assert sources(credentials["token"]) == LESS_MICROPHONE
    assert bob.session.join_data is not None
    assert bob.session.join_data["room"] == "standup:red"
    assert "bob" not in meeting.fake.permissions(ROOM)
    meeting.enter(bob)
    await alice.send("disable_microphone_restrictions")
    assert meeting.may(bob, room="standup:red")
    await bob.session.move(None)
    assert bob.told("credentials")[1]["room"] == ROOM
    assert "bob" not in meeting.fake.permissions("standup:red")


async def test_who_keeps_their_room_comes_back_to_where_they_were(meeting: MeetingOnFake) -> None:
    bob = await meeting.join("bob")
    await bob.session.move(BreakoutId("red"))
    for is_connected in (True, False):
        if not is_connected:
            await bob.session.disconnect()
        bob = await meeting.join("bob", keeps_room=True)
        assert bob.session.join_data is not None
        assert bob.session.join_data["room"] == f"{ROOM}:red"
    await bob.session.disconnect()
    bob = await meeting.join("bob")
    assert bob.session.join_data is not None
    assert bob.session.join_data["room"] == ROOM


async def test_who_was_moved_while_away_comes_back_to_there(meeting: MeetingOnFake) -> None:
    bob = await meeting.join("bob")
    await bob.session.disconnect()
    await meeting.module.move(ROOM, bob.id, BreakoutId("red"))
    bob = await meeting.join("bob", keeps_room=True)
    assert bob.session.join_data is not None
    assert bob.session.join_data["room"] == f"{ROOM}:red"


async def test_a_hand_is_still_up_after_a_reconnect_and_hands_are_in_order(meeting: MeetingOnFake) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    assert bob.session.take_join_success().hand_updated_at is None
    await bob.session.receive("control", {"action": "raise_hand"})
    await alice.session.receive("control", {"action": "raise_hand"})
    assert bob.told("hand_raised", "control") == [{"message": "hand_raised"}]
    await bob.session.disconnect()
    back = (await meeting.join("bob")).session.take_join_success()
    [entry] = back.participants
    assert (back.hand_is_up, entry.control.hand_is_up) == (True, True)
    assert back.hand_updated_at is not None
    assert back.hand_updated_at <= entry.control.hand_updated_at
    await alice.moderate("get_state")
    [state] = alice.noticed("state")
    seen = {person["participant"]: person["hand_updated_at"] for person in state["participants"]}
    assert seen == {"alice": entry.control.hand_updated_at, "bob": back.hand_updated_at}


async def test_whoever_is_moved_while_they_join_is_moved_when_they_have(meeting: MeetingOnFake) -> None:
    await meeting.join("alice", Role.MODERATOR)
    async with meeting.module._entered.meetings[ROOM].journal._writing:
        joining = asyncio.create_task(meeting.join("bob", in_livekit=False))
        await until(lambda: "bob" in meeting.module._audience._sessions[ROOM])
        moving = asyncio.create_task(meeting.module.move(ROOM, ParticipantId("bob"), BreakoutId("red")))
    bob = await joining
    await moving
    assert [credentials["room"] for credentials in bob.told("credentials")] == ["standup:red"]
    meeting.enter(bob)
    await meeting.module._entered.meetings[ROOM].reconciler.go_over(None)
    assert meeting.may(bob, room="standup:red")


async def test_whoever_is_moved_while_their_room_is_made_is_moved_all_the_same(meeting: MeetingOnFake) -> None:
    bob = await meeting.join("bob")
    await bob.session.disconnect()
    assert meeting.module._entered.media is not None
    meeting.module._entered.media.forget_rooms()
    with meeting.fake.hang(method="CreateRoom") as hanging:
        joining = asyncio.create_task(meeting.join("bob", in_livekit=False))
        await hanging.hit()
        moving = asyncio.create_task(meeting.module.move(ROOM, bob.id, BreakoutId("red")))
        await asyncio.wait({moving}, timeout=0.05)
    back = await joining
    await moving
    assert [credentials["room"] for credentials in back.told("credentials")] == ["standup:red"]


async def test_a_role_of_a_meeting_that_has_ended_meanwhile_is_nobodys(meeting: MeetingOnFake) -> None:
    bob, carol = await meeting.join("bob"), await meeting.join("carol")
    with meeting.fake.hang(method="ListParticipants") as hanging:
        given = asyncio.create_task(bob.session.change_role(Role.MODERATOR))
        waiting = asyncio.create_task(meeting.module.change_role(ROOM, carol.id, Role.MODERATOR))
        await hanging.hit()
        await meeting.module.close_room(ROOM)
    with pytest.raises(SessionEnded):
        await given
    with pytest.raises((NoSuchMeeting, NotInMeeting)):
        await waiting


async def test_the_last_to_leave_ends_no_session_but_their_own(meeting: MeetingOnFake) -> None:
    bob = await meeting.join("bob")
    await bob.session.leave()
    assert not bob.session.ended.done()


async def test_nobody_can_be_moved_whose_joining_came_to_nothing(fake: FakeRoomService) -> None:
    store = MemoryStore()
    async with meeting_on_fake(fake, store=store) as meeting:
        await meeting.join("alice", Role.MODERATOR)
        async with meeting.module._entered.meetings[ROOM].journal._writing:
            joining = asyncio.create_task(meeting.join("bob"))
            await until(lambda: "bob" in meeting.module._audience._sessions[ROOM])
            moving = asyncio.create_task(meeting.module.move(ROOM, ParticipantId("bob"), BreakoutId("red")))
            joining.cancel()
            await asyncio.wait({joining})
        with pytest.raises(NotInMeeting):
            await moving


async def test_the_end_of_a_meeting_clears_everything(meeting: MeetingOnFake) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob", breakout="red")
    await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    await alice.send("revoke_screen_share_permission", participants=["bob"])
    await bob.session.change_role(Role.MODERATOR)
    await meeting.module.close_room(ROOM)
    assert (alice.session.ended.result(), bob.session.ended.result()) == ("meeting_ended", "meeting_ended")
    assert meeting.fake.rooms == ()
    await bob.send("force_mute", participants=["alice"])  # answered by nobody: the session is over
    bob = await meeting.join("bob")
    assert sources(bob.token) == ALL
    assert (await bob.result("disable_microphone_restrictions"))["error"] == "insufficient_permissions"


async def test_a_meeting_that_ended_while_livekit_was_away_does_not_leak_into_the_next(meeting: MeetingOnFake) -> None:
    await meeting.join("alice", Role.MODERATOR)
    await meeting.join("bob")
    await meeting.fake.offline()
    await meeting.module.close_room(ROOM)
    await meeting.fake.online()
    await until(lambda: meeting.module.livekit_answers)
    await meeting.join("carol")
    assert set(meeting.fake.permissions(ROOM)) == {"carol"}


async def test_a_meeting_that_ends_while_its_rooms_are_being_made_again_leaves_none(meeting: MeetingOnFake) -> None:
    await meeting.join("alice")
    bob = await meeting.join("bob", breakout="left")
    meeting.fake.crash()
    meeting.module._entered.media.forget_rooms()
    with meeting.fake.hang(method="CreateRoom", room=ROOM) as hanging:
        restoring = asyncio.create_task(meeting.module._entered.meetings[ROOM].rooms.restore())
        await hanging.hit()
        ending = asyncio.create_task(meeting.module.close_room(ROOM))
        await bob.session.ended
    await asyncio.gather(restoring, ending)
    assert meeting.fake.rooms == ()


@pytest.mark.parametrize("is_begun_anew", [False, True])
async def test_a_command_that_is_running_when_the_meeting_ends_comes_to_nothing(
    meeting: MeetingOnFake,
    is_begun_anew: bool,  # noqa: FBT001
) -> None:
    alice, _ = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    with meeting.fake.hang(method="UpdateParticipant", times=1) as hanging:
        running = asyncio.create_task(alice.send("enable_microphone_restrictions", unrestricted_participants=[]))
        await hanging.hit()
        await meeting.module.close_room(ROOM)
        if is_begun_anew:
            await meeting.join("carol")
    await running
    if not is_begun_anew:
        assert await meeting.module._store.rooms() == (), "nothing of it is kept"
    assert sources((await meeting.join("dave")).token) == ALL


async def test_a_participant_who_connects_again_takes_over(meeting: MeetingOnFake) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    alice.forget()
    again = await meeting.join("bob", in_livekit=False)
    assert bob.session.ended.result() == "taken_over"
    assert alice.inbox == []
    assert "bob" in meeting.fake.permissions(ROOM)
    await bob.session.leave()  # of a session that is over: nothing
    assert not alice.told("left", "control")
    with pytest.raises(SessionEnded):
        await bob.session.change_role(Role.MODERATOR)
    await again.session.leave()
    assert alice.told("left", "control")


async def test_a_lost_connection_keeps_its_place_for_the_grace_period(fake: FakeRoomService) -> None:
    async with meeting_on_fake(fake, moderation_disconnect_grace_s=0.2) as meeting:
        alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
        await bob.session.disconnect()
        assert not alice.told("left", "control")
        bob = await meeting.join("bob")
        assert len(alice.told("joined", "control")) == 1
        await bob.session.disconnect()
        assert "bob" in fake.permissions(ROOM)
        assert await alice.until_told("left", "control") == {"message": "left", "id": "bob", "reason": "timeout"}
        await until(lambda: "bob" not in fake.permissions(ROOM))


async def test_a_meeting_ends_when_nobody_has_been_joined_for_a_while(fake: FakeRoomService) -> None:
    async with meeting_on_fake(fake, moderation_empty_room_s=0.2) as meeting:
        alice = await meeting.join("alice", Role.MODERATOR)
        await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
        await alice.session.leave()
        assert fake.rooms == (ROOM,)
        await until(lambda: not (fake.rooms or meeting.module._entered.meetings._meetings))
        assert sources((await meeting.join("bob")).token) == ALL


async def test_a_recorder_alone_does_not_keep_a_meeting_from_ending(fake: FakeRoomService) -> None:
    async with meeting_on_fake(fake, moderation_empty_room_s=0.2) as meeting:
        alice = await meeting.join("alice")
        recorder = await meeting.join("recorder", kind=Kind.RECORDER)
        await alice.session.leave()
        async with asyncio.timeout(5):
            assert await recorder.session.ended == "meeting_ended"
        await until(lambda: not (fake.rooms or meeting.module._entered.meetings._meetings))


class Pausing(MemoryStore):
    """A store whose answers can be held back, after it has written."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()
        self.answers.set()
        self.has_written = asyncio.Event()

    async def append(self, commit: Commit, *, fence: int | None = None) -> bool:
        is_written = await super().append(commit, fence=fence)
        self.has_written.set()
        await self.answers.wait()
        return is_written


async def test_who_gives_up_while_joining_does_not_stay_for_ever(fake: FakeRoomService) -> None:
    store = Pausing()
    async with meeting_on_fake(fake, store=store, moderation_disconnect_grace_s=0.1) as meeting:
        alice = await meeting.join("alice", Role.MODERATOR)
        store.answers.clear()
        store.has_written.clear()
        joining = asyncio.create_task(meeting.join("bob"))
        await store.has_written.wait()
        joining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await joining
        store.answers.set()
        assert (await alice.until_told("left", "control"))["reason"] == "quit"


# --- Whom room-wide changes leave alone --------------------------------------------------------------------------


async def test_popouts_recorders_and_services_are_untouched_by_every_room_wide_change(meeting: MeetingOnFake) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    recorder = await meeting.join("recorder", kind=Kind.RECORDER)
    await bob.send("request_popout_stream_access_token")
    meeting.fake.join(ROOM, "bob-popout1", token=bob.told("popout_stream_access_token")[0]["token"])
    meeting.fake.join(ROOM, "egress", hidden=True)
    before = {name: meeting.fake.permissions(ROOM)[name] for name in ("bob-popout1", recorder.id, "egress")}
    await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    await meeting.module._entered.meetings[ROOM].reconciler.go_over(None)
    await alice.send("disable_microphone_restrictions")
    assert {name: meeting.fake.permissions(ROOM)[name] for name in before} == before
    assert not {"bob-popout1", "recorder", "egress"} & set(meeting.calls("UpdateParticipant"))


async def test_who_only_looks_like_a_popout_is_restricted_like_anyone(meeting: MeetingOnFake) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    meeting.fake.join(ROOM, "alice-popout7")
    await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    assert not meeting.fake.may_publish(ROOM, "alice-popout7", "microphone")


async def test_somebody_who_never_joined_is_restricted_or_removed(fake: FakeRoomService) -> None:
    for choice, is_there in (("restrict", True), ("remove", False)):
        async with meeting_on_fake(fake, moderation_unknown_participants=choice) as meeting:
            alice = await meeting.join("alice", Role.MODERATOR)
            fake.join(ROOM, "zoe")
            await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
            assert ("zoe" in fake.permissions(ROOM)) is is_there
            if is_there:
                assert not fake.may_publish(ROOM, "zoe", "microphone")


async def test_the_rest_of_a_permission_is_left_as_it_was(meeting: MeetingOnFake) -> None:
    alice = await meeting.join("alice", Role.MODERATOR)
    await meeting.join("bob")
    before = meeting.fake.permissions(ROOM)["bob"]
    await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
    after = meeting.fake.permissions(ROOM)["bob"]
    after.ClearField("can_publish_sources")
    before.ClearField("can_publish_sources")
    assert after == before


async def test_an_old_token_that_returns_is_set_right_by_the_sweep(fake: FakeRoomService) -> None:
    async with meeting_on_fake(fake, moderation_sweep_s=0.05) as meeting:
        alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
        await alice.send("enable_microphone_restrictions", unrestricted_participants=[])
        meeting.enter(bob)  # with the token from before
        await until(lambda: not (meeting.may(bob)))


# --- The host's own mistakes -------------------------------------------------------------------------------------


async def test_a_namespace_that_is_not_the_modules_is_the_hosts_mistake(meeting: MeetingOnFake) -> None:
    plain = await meeting.join("bob", extensions=[])
    for namespace in ("chat", "echo", "control"):
        with pytest.raises(ValueError, match=namespace):
            await plain.session.receive(namespace, {"action": "join"})


async def test_a_callback_that_raises_does_not_keep_events_from_others(meeting: MeetingOnFake) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")

    def fail(_: object) -> None:
        raise RuntimeError("the host's outbox is full")

    await meeting.module.join(ROOM, Participant(ParticipantId("aaron")), deliver=fail)
    await alice.send("disable_microphone_restrictions")
    assert bob.told("microphone_restrictions_disabled")


async def test_the_audit_tells_who_did_what_to_whom(meeting: MeetingOnFake) -> None:
    alice, bob = await meeting.join("alice", Role.MODERATOR), await meeting.join("bob")
    await alice.send("force_mute", participants=["bob", "zoe"])
    await bob.session.change_role(Role.MODERATOR)
    changed, muted = await meeting.module.audit(ROOM)
    assert (muted.moderator, muted.action, muted.targets) == ("alice", "force_mute", ("bob", "zoe"))
    assert [(outcome.participant, outcome.outcome) for outcome in muted.outcomes] == [
        ("bob", "no_track"),
        ("zoe", "unknown"),
    ]
    assert (changed.moderator, changed.action, changed.targets) == ("controller", "change_role", ("bob",))
    assert await meeting.module.audit(ROOM, limit=5, before=changed.command_id) == (muted,)
