"""What was decided holds when it is quiet again, whatever people, LiveKit and the network do: random whole meetings."""

import asyncio
import os
import re
from collections import Counter
from collections.abc import Callable, Coroutine
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import aiohttp
import jwt
import structlog
import tenacity
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from livekit.protocol import models

import signaling.testing.webhooks
from signaling import (
    Delivery,
    InvalidParticipant,
    Kind,
    ModerationModule,
    NoSuchMeeting,
    NotInMeeting,
    Participant,
    ParticipantBanned,
    Role,
    Session,
    SessionEnded,
    Settings,
    StoreError,
    WebhookRefused,
)
from signaling.core.effects import Presence
from signaling.core.enforcement import owner_of
from signaling.core.participants import SERVICES, Source
from signaling.core.policy import is_blocked, is_service, obeys_room, publishable
from signaling.core.state import MeetingState
from signaling.identifiers import BreakoutId, CommandId, Identity, LiveKitRoom, ParticipantId, RoomId
from signaling.livekit.roster import presence_of
from signaling.livekit.tokens import TokenMint
from signaling.meeting.meeting import Meeting
from signaling.meeting.view import join_data
from signaling.messages import moderation
from signaling.messages.base import rfc3339
from signaling.module import NotEntered
from signaling.stores.contract import Commit, Record, fold
from signaling.stores.memory import MemoryStore
from signaling.testing.fake_room_service import Change, FakeRoomService, Fault
from signaling.testing.participants import JoinRefused, PublishRefused
from signaling.testing.webhooks import sign_webhook, webhook_of
from tests.test_view import kept, merged
from tests.timeless import Direct, TimelessLoop

ROOM = RoomId("standup")
BEGAN_AT = 1_780_000_000.0
TOKEN = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]+")
SCREEN = Source.SCREEN_SHARE
EXPECTED_ERRORS = (InvalidParticipant, NoSuchMeeting, NotInMeeting, ParticipantBanned, SessionEnded, StoreError)

CAST = {
    "alice": (Role.MODERATOR, Kind.USER),
    "mia": (Role.MODERATOR, Kind.USER),
    "bob": (Role.USER, Kind.USER),
    "carol": (Role.USER, Kind.USER),
    "gus": (Role.GUEST, Kind.GUEST),
    "pam": (Role.GUEST, Kind.SIP),
    "rec": (Role.USER, Kind.RECORDER),
}
STRANGERS = {
    "eve": models.ParticipantInfo.STANDARD,
    "EG_1": models.ParticipantInfo.EGRESS,
    "IN_1": models.ParticipantInfo.INGRESS,
}

ODD = ["wumpus#1234", "studio #1", "0B1F9F6E-6A3C-4B8E-9C53-8D5F1F7F2A10", "sip_+49"]
INTRUDERS = [*STRANGERS, *ODD, "bob#x", "carol#2", "eve-popout1"]
CAME = [
    models.ParticipantPermission(can_subscribe=True, can_publish=True),
    models.ParticipantPermission(can_subscribe=True),
    models.ParticipantPermission(can_subscribe=True, can_publish=True, can_publish_sources=["CAMERA"]),
    models.ParticipantPermission(
        can_subscribe=True, can_publish=True, can_publish_sources=["SCREEN_SHARE", "MICROPHONE"]
    ),
]
"""With what strangers come: their tokens are somebody else's."""
FOREIGN = f"{ROOM}:lobby"
"""A room of another application, which only looks like a breakout."""

# --- What is drawn -----------------------------------------------------------------------------------------------

SOMEBODY = st.sampled_from([*CAST])
NAMED = st.lists(st.sampled_from(["bob", "carol", *CAST, *STRANGERS, *ODD, "zoe"]), min_size=1, max_size=4)
SENDER = st.sampled_from([*["alice", "mia"] * 4, *CAST, "controller"])
BREAKOUT = st.sampled_from([None, None, BreakoutId("left"), BreakoutId("right")])
RESTRICTABLE = st.sampled_from(["camera", "microphone", "screen_share"])
SOURCES = st.lists(st.sampled_from([source.value for source in Source]), min_size=1, max_size=2)
SECONDS = st.sampled_from([1, 5, 50])
NUMBER = st.integers(0, 9)
"""Which of those that there are."""
PATIENCE = st.sampled_from([None, None, None, 0, 1, 4, 15, 40, 100])
"""How far something gets before anything else happens: so many steps of the event loop, or to its end."""


Fields = st.SearchStrategy[dict[str, Any]]


def command(action: str, optional: dict[str, st.SearchStrategy[Any]] | None = None, **fields: Any) -> Fields:  # noqa: ANN401
    required: dict[str, st.SearchStrategy[Any]] = {"action": st.just(action), **fields}
    return st.fixed_dictionaries(required, optional=optional or {})


ROOM_WIDE = st.one_of(
    command("mute", everyone_except=st.just([]) | NAMED, sources=SOURCES, optional={"hold_s": SECONDS}),
    command("restrict", source=RESTRICTABLE, allowed=st.just([]) | NAMED, optional={"expires_in_s": SECONDS}),
    command("unrestrict", source=RESTRICTABLE),
    command("set_presenter", participant=st.sampled_from([*CAST, "zoe"])),
    command("set_presenter"),
)
LIVEKIT = [
    command("create_new_access_token"),
    command("force_mute", participants=NAMED),
    command("grant_screen_share_permission", participants=NAMED),
    command("revoke_screen_share_permission", participants=NAMED),
    command("enable_microphone_restrictions", unrestricted_participants=st.just([]) | NAMED),
    command("disable_microphone_restrictions"),
    command("request_popout_stream_access_token"),
    command("force_mute"),
]
MODERATION = [
    ROOM_WIDE,
    ROOM_WIDE,
    ROOM_WIDE,
    command("mute", participants=NAMED, sources=SOURCES),
    command("mute", participants=NAMED, sources=SOURCES, hold_s=SECONDS),
    command("disallow", source=RESTRICTABLE, participants=NAMED),
    command("allow", source=RESTRICTABLE, participants=NAMED),
    command("stop", source=RESTRICTABLE, participants=NAMED),
    command("stop", source=RESTRICTABLE, participants=NAMED),
    command("ask_to_unmute", participants=NAMED),
    command("answer_unmute_request", request_id=NUMBER, accept=st.booleans()),
    command("kick", participants=NAMED, ban=st.booleans(), optional={"reason": st.just("noise")}),
    command("unban", participants=NAMED),
    command("preview", command=ROOM_WIDE),
    command("undo", command_id=NUMBER),
    command("undo", command_id=st.just(0)),
    command("get_state"),
    command("watch", enabled=st.booleans()),
    command("get_audit", limit=st.integers(1, 3), optional={"before": NUMBER}),
    command("kick", participants=st.just(["bob#x"])),
]
CONTROL = [
    command("raise_hand"),
    command("lower_hand", optional={"target": SOMEBODY}),
    command("grant_moderator_role", target=SOMEBODY),
    command("revoke_moderator_role", target=SOMEBODY),
    command("join"),
]
COMMAND = st.one_of(
    *(
        st.tuples(st.just(namespace), command)
        for namespace, commands in (("livekit", LIVEKIT), ("livekit_moderation", MODERATION), ("control", CONTROL))
        for command in commands
    )
)
AUDITED = {
    *("force_mute", "grant_screen_share_permission", "revoke_screen_share_permission"),
    *("enable_microphone_restrictions", "disable_microphone_restrictions"),
    *("mute", "restrict", "unrestrict", "set_presenter", "disallow", "allow", "stop", "ask_to_unmute", "kick", "unban"),
    "undo",
}


# --- People ------------------------------------------------------------------------------------------------------


class Connection:
    """One session of somebody's in the signaling, and what came by it."""

    def __init__(self, who: "Somebody") -> None:
        self.who = who
        self.session: Session | None = None
        self.is_cut = False
        self.last_at = 0.0
        self.asked: dict[int, str] = {}
        self.results: dict[int, list[dict[str, Any]]] = {}
        self.microphones: dict[str, Any] | None = None
        self.copy: dict[str, Any] | None = None
        self.actions: Counter[str] = Counter()

    def deliver(self, delivery: Delivery) -> None:
        world, payload = self.who.world, delivery.payload
        world.check(delivery.timestamp >= self.last_at, f"{delivery} to {self.who.id} goes back in time")
        self.last_at = delivery.timestamp
        for token in TOKEN.findall(delivery.text):
            room, identity = place_of(token)
            world.check(identity.partition("-popout")[0] == self.who.id, f"{self.who.id} got a token of {identity}")
            self.who.tokens.append((room, identity, token))
        if delivery.transaction_id is not None:
            world.check(delivery.transaction_id in self.asked, f"{self.who.id} never asked {delivery.transaction_id}")
        match payload:
            case {"message": "result"}:
                assert isinstance(delivery.transaction_id, int)
                self.results.setdefault(delivery.transaction_id, []).append(payload)
                world.check(payload.get("error") != "internal", f"{payload}")
            case {"message": "microphone_restrictions_enabled"}:
                self.microphones = {
                    "type": "enabled",
                    "unrestricted_participants": payload["unrestricted_participants"],
                }
            case {"message": "microphone_restrictions_disabled"}:
                self.microphones = {"type": "disabled"}
            case {"message": "unmute_requested"}:
                self.who.requests.append(payload["request_id"])
            case {"message": "action_taken"}:
                self.actions[payload["command_id"]] += 1
            case {"message": "state"}:
                self.copy = {name: value for name, value in payload.items() if name != "message"}
            case {"message": "state_changed"} if self.copy is not None:
                world.check(payload["version"] == self.copy["version"] + 1, f"{self.who.id} misses a version")
                self.copy = {**merged(self.copy, payload["changed"]), "version": payload["version"]}

    @property
    def is_open(self) -> bool:
        return self.session is not None and not self.session.is_over and not self.is_cut


@dataclass
class Somebody:
    """A person, their newest connection, and every token that they ever got; LiveKit has refreshed them all since."""

    id: ParticipantId
    world: "World"
    connection: Connection | None = None
    connections: list[Connection] = field(default_factory=list)
    tokens: list[tuple[str, str, str]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def place_of(token: str) -> tuple[str, str]:
    """For which room, and for whom a token is."""
    claims = jwt.decode(token, options={"verify_signature": False})
    return claims["video"]["room"], claims["sub"]


@dataclass(frozen=True)
class CheckedMint(TokenMint):
    """Mints tokens, and has each compared with the state."""

    check: Callable[[ParticipantId, tuple[Source, ...]], None]

    def for_participant(self, room: LiveKitRoom, identity: Identity, *, sources: tuple[Source, ...], kind: Kind) -> str:
        self.check(ParticipantId(identity), sources)
        return super().for_participant(room, identity, sources=sources, kind=kind)


class SlowStore(MemoryStore):
    """A store whose answers take a while; writes have their effect in the middle of it."""

    takes_s = 0.0

    def newest(self) -> Record | None:
        """What is kept by now."""
        return None if (log := self._logs.get(ROOM)) is None else log.record

    async def _wait(self) -> None:
        if self.takes_s:
            await asyncio.sleep(self.takes_s)

    async def read(self, room: RoomId) -> Record | None:
        await self._wait()
        return await super().read(room)

    async def append(self, commit: Commit, *, fence: int | None = None) -> bool:
        await self._wait()
        is_written = await super().append(commit, fence=fence)
        await self._wait()
        return is_written

    async def forget(self, room: RoomId, revision: int) -> bool:
        await self._wait()
        is_forgotten = await super().forget(room, revision)
        await self._wait()
        return is_forgotten


# --- The world ---------------------------------------------------------------------------------------------------


class World:
    """A module on a fake RoomService in an event loop that never waits."""

    def __init__(self, **chosen: object) -> None:
        self.wrong: list[str] = []
        self.people = {name: Somebody(ParticipantId(name), self) for name in CAST}
        self.loop = TimelessLoop()
        self.loop.set_exception_handler(lambda _, context: self.wrong.append(f"{context}"))
        self.running: list[asyncio.Task[None]] = []
        self.faults: list[Fault] = []
        self.post: list[bytes] = []
        self.posts_at_once = False
        self.command_ids: list[str] = []
        self.actions: dict[str, tuple[moderation.ActionTaken, list[Connection]]] = {}
        self.past: set[str] = set()
        self.results: list[dict[str, Any]] = []
        self._screens: dict[str, bool] = {}
        self._known: dict[Identity, set[str]] = {}
        self.made_by_others = set[str]()
        self.came: dict[ParticipantId, dict[str, set[Source]]] = {}
        self.is_troubled = False
        self._transactions = 0
        self._stack = ExitStack()
        enter = self._stack.enter_context
        self.logs = enter(structlog.testing.capture_logs(processors=[structlog.processors.format_exc_info]))
        enter(patch.object(signaling.testing.webhooks, "time", SimpleNamespace(time=self.clock)))
        enter(patch.object(tenacity, "time", SimpleNamespace(monotonic=self.loop.time)))
        self.run(self._open(chosen))

    async def _open(self, chosen: dict[str, Any]) -> None:
        self.fake = await FakeRoomService().__aenter__()
        self.fake.observe(self._on_change)
        self.store = SlowStore()
        self.store.listen(self._on_commit)
        self.folded = Record(0, MeetingState(ROOM))
        self._settings = Settings(
            livekit_url=self.fake.url,
            livekit_api_key=self.fake.api_key,
            livekit_api_secret=self.fake.api_secret,
            **chosen,
        )
        await self._begin()

    async def _begin(self) -> None:
        self.module = ModerationModule(self._settings, store=self.store, clock=self.clock)
        with patch.object(aiohttp, "TCPConnector", lambda **_: Direct(self.fake)):
            await self.module.__aenter__()
        self.module._entered.credentials._mint = CheckedMint(self.fake.api_key, self.fake.api_secret, self._check_token)
        assert self.module._entered.media is not None
        enforce = self.module._entered.media.allow

        async def allow(presence: Presence, sources: tuple[Source, ...]) -> Presence:
            meeting = self.meeting()
            self._known[presence.identity] = {known.sid for known in meeting.roster.presences} if meeting else set()
            return await enforce(presence, sources)

        self.module._entered.media.allow = allow  # type: ignore[method-assign]

    async def restart(self) -> None:
        """The process ends, with whatever was under way, and another one goes on."""
        for task in self.running:
            task.cancel()
        await asyncio.gather(*self.running, return_exceptions=True)
        await self.module.__aexit__(None, None, None)
        for person in self.people.values():
            for connection in person.connections:
                connection.is_cut = True
            person.connection = None
        self.logs[:] = [line for line in self.logs if line["event"] != "store_failed"]  # it was closed
        await self._begin()

    def close(self) -> None:
        """End everything, and see to it that nothing is left."""
        self.run(self._close())
        assert not asyncio.all_tasks(self.loop)
        self.loop.close()
        self._stack.close()

    async def _close(self) -> None:
        await self.calm()
        await self.module.__aexit__(None, None, None)
        await self.fake.__aexit__(None, None, None)
        await asyncio.sleep(1)

    def clock(self) -> float:
        return BEGAN_AT + self.loop.time()

    # --- Doing -------------------------------------------------------------------------------------------------------

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401
        return self.loop.run_until_complete(work)

    def begin(self, work: Coroutine[Any, Any, object], patience: int | None) -> None:
        """Begin something, and let it get so far."""
        task = self._spawn(work)
        self.run(steps(patience) if patience is not None else asyncio.wait({task}, timeout=60))
        self.running = [task for task in self.running if not task.done()]

    def _spawn(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[None]:
        task = self.loop.create_task(self._guard(work))
        task.add_done_callback(lambda _: work.close())  # if it was cancelled before its first step
        self.running.append(task)
        return task

    async def _guard(self, work: Coroutine[Any, Any, object]) -> None:
        try:
            await work
        except EXPECTED_ERRORS:
            pass
        except Exception as error:  # noqa: BLE001 - told when the step is over
            self.wrong.append(f"{error!r}")

    async def join(self, who: Somebody, participant: Participant, extensions: frozenset[str]) -> None:
        connection = Connection(who)
        session = await self.module.join(ROOM, participant, deliver=connection.deliver, extensions=extensions)
        connection.session = session
        if session.join_data is not None:
            token = str(session.join_data["token"])
            who.tokens.append((*place_of(token), token))
            if connection.microphones is None:
                connection.microphones = dict(session.join_data["microphone_restriction_state"])  # type: ignore[call-overload]
        who.connections.append(connection)
        if not session.is_over:
            who.connection = connection

    async def ask(self, connection: Connection, namespace: str, payload: dict[str, Any]) -> None:
        assert connection.session is not None
        self._transactions += 1
        number = self._transactions
        connection.asked[number] = namespace
        await connection.session.receive(namespace, payload, number)
        if connection.session.has_moderation and connection.is_open:
            results = connection.results.get(number, [])
            expected = 0 if namespace == "control" else 1
            self.check(len(results) == expected, f"{connection.who.id} got {results} to {namespace} {payload}")
            self.results += results if payload["action"] != "preview" else []

    async def command(self, namespace: str, payload: dict[str, Any]) -> None:
        result = (await self.module.command(ROOM, namespace, payload)).model_dump(mode="json")
        self.results += [result] if payload["action"] != "preview" else []

    def in_livekit(self) -> list[tuple[str, models.ParticipantInfo]]:
        return [(room, info) for room in sorted(self.fake.rooms) for info in self.fake.participants(room)]

    def deliver_post(self, body: bytes) -> None:
        async def deliver() -> None:
            try:
                await self.module.receive_webhook(body, sign_webhook(body, self.fake.api_key, self.fake.api_secret))
            except NotEntered:  # it restarts: 503, and LiveKit reports it again
                self.post.append(body)
            except WebhookRefused as refused:
                self.check(refused.reason in {"replayed", "stale"}, f"{refused!r}")

        self._spawn(deliver())

    async def calm(self) -> None:
        """Nothing goes wrong any more."""
        for fault in self.faults:
            fault.lift()
        self.faults.clear()
        self.fake.unstall()
        await self.fake.online()

    async def become_quiet(self) -> None:
        """Nothing goes wrong any more, and everything that was begun comes to its end."""
        await self.calm()
        if self.running:
            _, pending = await asyncio.wait(self.running, timeout=120)
            self.check(not pending, f"{pending} never ends")
        self.running.clear()
        for _ in range(30):
            await asyncio.sleep(16)
            if await self._is_quiet():
                self.is_troubled = False
                return
        self.check(False, "it never becomes quiet")  # noqa: FBT003

    async def _is_quiet(self) -> bool:
        record = await self.store.read(ROOM)
        meeting = self.meeting()
        if record is None:
            return meeting is None
        if not record.state.goes_on or meeting is None:
            return False
        settling = [who for who in record.state.members if meeting.due.is_settling(who)]
        away = [who for who, member in record.state.members.items() if member.returns_until is not None]
        return record.staged is None and not settling and not away and len(meeting.tasks) == 1

    def meeting(self) -> Meeting | None:
        return self.module._entered.meetings.get(ROOM)

    def record(self) -> Record | None:
        record: Record | None = self.run(self.store.read(ROOM))
        return record

    # --- Looking on --------------------------------------------------------------------------------------------------

    def check(self, is_so: bool, otherwise: str) -> None:  # noqa: FBT001
        if not is_so:
            self.wrong.append(otherwise)

    def tell(self) -> None:
        """Fail if anything was wrong."""
        self.wrong += [f"{line}" for line in self.logs if line["log_level"] in {"error", "critical"}]
        self.logs.clear()
        assert not self.wrong, "\n".join(self.wrong)

    def _on_commit(self, commit: Commit) -> None:
        state = commit.record.state
        self.folded = fold(self.folded, commit.entry)
        self.check(self.folded == commit.record, f"folding {commit.entry} anew gives something else")
        if not state.goes_on:
            self.past |= self.actions.keys()
            self.actions.clear()
            self.results.clear()
        for announcement in commit.entry.announcements:
            if isinstance(announcement.event, moderation.ActionTaken):
                told = [
                    connection
                    for person in self.people.values()
                    for connection in person.connections
                    if connection.is_open
                    and connection.session is not None
                    and connection.session.has_moderation
                    and state.is_moderator(person.id)
                ]
                self.actions[announcement.event.command_id] = announcement.event, told
                self.command_ids.append(announcement.event.command_id)

    def _check_token(self, who: ParticipantId, sources: tuple[Source, ...]) -> None:
        record = self.store.newest()
        assert record is not None
        for state in (record.state, record.effective):
            self.check(set(sources) <= set(publishable(who, state)), f"{who} gets a token for {sources}")

    def _check_screens(self, room: str, given_to: models.ParticipantInfo) -> None:
        """Whoever is given the screen beside a presenter has it alone, but for newcomers whom nobody knows yet."""
        given = presence_of(LiveKitRoom(room), given_to)
        had_it = self._screens.get(given.sid, True)
        self._screens[given.sid] = SCREEN in given.permission.allowed()
        record = self.store.newest()
        if record is None or record.effective.presenter is None or self.is_troubled:
            return
        state = record.effective
        if had_it or SCREEN not in given.permission.allowed() or not obeys(state, given):
            return
        for other_room, info in self.in_livekit():
            other = presence_of(LiveKitRoom(other_room), info)
            if (
                other.identity != given.identity
                and SCREEN in other.permission.allowed()
                and obeys(state, other)
                and other.sid in self._known[given.identity]
                and state.presenter in {ParticipantId(given.identity), ParticipantId(other.identity)}
            ):
                self.check(False, f"{given.identity} gets the screen beside {other}")  # noqa: FBT003

    def _on_change(self, change: Change) -> None:
        info = change.participant
        if info is not None and change.happening == "permission_changed":
            self._check_screens(change.room.name, info)
        elif info is not None and change.happening == "participant_joined":
            came = presence_of(LiveKitRoom(change.room.name), info).permission.allowed()
            self.came.setdefault(ParticipantId(info.identity), {})[info.sid] = set(came)
            self._screens[info.sid] = SCREEN in presence_of(LiveKitRoom(change.room.name), info).permission.allowed()
        body = webhook_of(change)
        if body is None:
            return
        if self.posts_at_once:
            self.deliver_post(body)
        else:
            self.post.append(body)

    # --- What holds when it is quiet ---------------------------------------------------------------------------------

    def check_rooms(self, used: AbstractSet[str]) -> None:
        """LiveKit has no rooms beside these."""
        there = set(self.fake.rooms) - self.made_by_others
        self.check(used >= there, f"{there} are there beside {used}")
        called = [call for call in self.fake.calls if call.room == FOREIGN]
        self.check(not called, f"{called} are about another application's room")

    def check_livekit(self, state: MeetingState, *, removes_unknown: bool) -> None:
        """LiveKit agrees with the state, and nobody gets round it."""
        self.check(
            state.rooms_in_use() <= set(self.fake.rooms), f"of {state.rooms_in_use()} {self.fake.rooms} are there"
        )
        self.check_rooms(state.rooms)
        for room, info in self.in_livekit():
            self._check_gifts(state, info)
            if room not in state.rooms_in_use():
                continue  # nobody is there to be protected, so nobody looks
            presence = presence_of(LiveKitRoom(room), info)
            problem = problem_with(state, presence, removes_unknown=removes_unknown)
            self.check(problem is None, f"{info.identity} in {room} {problem}: {presence}")

    def check_shown(self, state: MeetingState) -> None:
        """Moderators see whoever LiveKit lists in the rooms in use, members or not, with what they may publish."""
        shown = self.run(self.module.state(ROOM))
        seen = {
            presence_of(LiveKitRoom(room), info)
            for room, info in self.in_livekit()
            if room in state.rooms and owner_of(Identity(info.identity), state) == info.identity
        }
        members = {person.participant for person in shown.participants if person.in_livekit}
        at_home = {
            presence.identity for presence in seen if state.room_of(ParticipantId(presence.identity)) == presence.room
        }
        self.check(members == at_home, f"{members} are shown in LiveKit, and {at_home} are there")
        strangers = {stranger.identity: set(stranger.may_publish) for stranger in shown.strangers}
        unknown = {
            (presence.room, presence.identity): {source.value for source in presence.permission.allowed()}
            for presence in seen
            if ParticipantId(presence.identity) not in state.members
        }
        used = {identity for room, identity in unknown if room in state.rooms_in_use()}
        there = {identity for _, identity in unknown} - state.departed - state.bans
        # Where nobody belongs nobody looks, but at whom they know of.
        self.check(used <= strangers.keys() <= there, f"{strangers} are shown as strangers, and {unknown} are there")
        for (_, identity), may_publish in unknown.items():
            if identity in used and len([place for place in unknown if place[1] == identity]) == 1:
                self.check(strangers[identity] == may_publish, f"{identity} is shown with {strangers[identity]}")
        for person in shown.participants:
            member = state.members[person.participant]
            self.check(person.hand_is_up == member.hand_is_up, f"{person} is shown for {member}")

    def _check_gifts(self, state: MeetingState, info: models.ParticipantInfo) -> None:
        """Whoever never joined may publish what they came with, less what is taken away, and nothing else."""
        presence = presence_of(LiveKitRoom(info.identity), info)
        who = ParticipantId(info.identity)
        if who in state.members or who in self.people or is_service(presence):
            return
        allowed, came = set(presence.permission.allowed()), self.came[who]
        self.check(allowed <= set().union(*came.values()), f"{who} came with {came}, and may publish {allowed}")

    def check_story(self, record: Record) -> None:
        """Everybody was told the same."""
        state = record.state
        entries = self.run(self.module.audit(ROOM, limit=10_000))
        by_id = {entry.command_id: entry for entry in entries}
        self.check(len(by_id) == len(entries), "a command is in the audit twice")
        for command_id, (event, told) in self.actions.items():
            entry = by_id.get(CommandId(command_id))
            self.check(entry is not None, f"{event} is not in the audit")
            if entry is not None:
                self.check(event.outcomes == entry.outcomes, f"{event} is another story than {entry}")
                self.check(event.at == rfc3339(entry.at), f"{event} is another story than {entry}")
                self.check((event.moderator, event.action) == (entry.moderator, entry.action), f"{event} {entry}")
            for connection in told:
                self.check(connection.actions[command_id] == 1, f"{connection.who.id} was not told once of {event}")
        self.check(by_id.keys() - self.past == self.actions.keys(), "somebody was not told of all of the audit")
        for result in self.results:
            if result.get("action") in AUDITED and (result["outcomes"] or result.get("error") is None):
                entry = by_id.get(CommandId(result["command_id"]))
                self.check(entry is not None, f"{result} is not in the audit")
                if entry is not None:
                    outcomes = [outcome.model_dump(mode="json", exclude_none=True) for outcome in entry.outcomes]
                    self.check(without_none(result["outcomes"]) == outcomes, f"{result} is another story than {entry}")
        for connection in self.open_connections():
            self._check_connection(connection, record)
        for who in state.members:
            self.check(who in self.people, f"{who} is in the meeting")
            is_open = any(connection.is_open for connection in self.people[who].connections)
            self.check(is_open, f"{who} is in the meeting as connected, and is not")

    def _check_connection(self, connection: Connection, record: Record) -> None:
        who, session, meeting = connection.who.id, connection.session, self.meeting()
        assert session is not None
        assert meeting is not None
        self.check(who in record.state.members, f"{who} is connected and not in the meeting")
        if who not in record.state.members:
            return
        credentials = SimpleNamespace(room="", token="", public_url="", service_url=None)
        told = kept(join_data(record, credentials).microphone_restriction_state)  # type: ignore[arg-type]
        if connection.microphones is not None:
            self.check(connection.microphones == told, f"{who} was told {connection.microphones}, joiners {told}")
        if session in meeting.view.watchers and connection.copy is not None:
            shown = without_none(self.run(self.module.state(ROOM)).model_dump(mode="json"))
            del shown["message"]
            self.check(connection.copy == shown, f"{who} keeps\n{connection.copy}\ninstead of\n{shown}")

    def open_connections(self) -> list[Connection]:
        return [each for person in self.people.values() for each in person.connections if each.is_open]


def without_none(value: Any) -> Any:  # noqa: ANN401
    match value:
        case dict():
            return {name: without_none(each) for name, each in value.items() if each is not None}
        case list():
            return [without_none(each) for each in value]
        case _:
            return value


def obeys(state: MeetingState, presence: Presence) -> bool:
    """Whether what is decided for everybody concerns an identity."""
    return obeys_room(ParticipantId(presence.identity), state, is_service=is_service(presence))


def problem_with(state: MeetingState, presence: Presence, *, removes_unknown: bool) -> str | None:
    """What is wrong about an identity that LiveKit lists."""
    identity = presence.identity
    owner = owner_of(identity, state)
    first, mark, _ = identity.partition("#")
    if mark and ParticipantId(first) in {*state.members, *state.departed, *state.bans}:
        return "is a second session"
    if owner != ParticipantId(identity):
        popouts = state.popouts[owner].open
        if all((popout.identity, popout.room) != (identity, presence.room) for popout in popouts):
            return "is a popout that is closed"
        return "may publish" if presence.permission.can_publish or not presence.is_hidden else None
    who = ParticipantId(identity)
    member = state.members.get(who)
    if member is None:
        if who in state.departed | state.bans:
            return "has to be gone"
        if is_service(presence):
            return problem_with_service(state, presence)
        if removes_unknown:
            return "is unknown"
        allowed = presence.permission.allowed()
        if not set(allowed) <= set(publishable(who, state)):
            return "may publish what nobody like them may"
    elif state.room_of(who) != presence.room:
        return "belongs elsewhere"
    elif member.kind in SERVICES:
        return problem_with_service(state, presence)
    else:
        allowed = publishable(who, state)
        if not presence.permission.allows_exactly(allowed):
            return f"is to publish {allowed}"
    kept_from = set(Source) - set(allowed)
    for track in presence.tracks:
        if track.source in kept_from:
            return f"publishes {track.source}"
        if Source.MICROPHONE in kept_from and track.is_sound and track.source in {Source.CAMERA, SCREEN}:
            return f"is heard by {track.source}"
        if Source.CAMERA in kept_from and not track.is_sound and track.source not in {Source.CAMERA, SCREEN}:
            return f"is seen by {track.source}"
        if (
            Source.MICROPHONE in kept_from
            and track.is_sound
            and track.source is Source.SCREEN_SHARE_AUDIO
            and who not in state.listed.get(SCREEN, ())
            and all(other.source is not SCREEN for other in presence.tracks)
        ):
            return "is heard by the sound of no screen"
    return None


def problem_with_service(state: MeetingState, presence: Presence) -> str | None:
    """It has nothing that is kept from it by name, and has back what was."""
    who = ParticipantId(presence.identity)
    kept_from = {source for source in Source if is_blocked(who, source, state)}
    if kept_from & set(presence.permission.allowed()):
        return f"may publish some of {kept_from}"
    came = state.came.get(presence.room, {}).get(who)
    given_back = set() if came is None or came.session != presence.sid else came.sources - kept_from
    return None if given_back <= set(presence.permission.allowed()) else f"has not got back {given_back}"


async def steps(number: int) -> None:
    """Let so many steps of the event loop be made."""
    for _ in range(number):
        await asyncio.sleep(0)


# --- The machine -------------------------------------------------------------------------------------------------


class RandomMeetings(RuleBasedStateMachine):
    """Whatever may happen, in any order."""

    world: World

    @initialize(
        by_permission=st.booleans(),
        unknown=st.sampled_from(["restrict", "remove"]),
        posts_at_once=st.booleans(),
        auto_create=st.booleans(),
        latency_s=st.sampled_from([0, 0, 0.01]),
        store_takes_s=st.sampled_from([0, 0, 0.002, 0.03]),
    )
    def begin(
        self,
        by_permission: bool,  # noqa: FBT001
        unknown: str,
        posts_at_once: bool,  # noqa: FBT001
        auto_create: bool,  # noqa: FBT001
        latency_s: float,
        store_takes_s: float,
    ) -> None:
        self.removes_unknown = unknown == "remove"
        self.world = World(
            moderation_screen_share_requires_permission=by_permission, moderation_unknown_participants=unknown
        )
        self.world.posts_at_once = posts_at_once
        self.world.fake.auto_create = auto_create
        self.come(["alice", "bob", "carol", "mia"], None, None, None, is_plain=False, patience=None)
        who = [("alice", 0), ("bob", 0), ("carol", 0), ("mia", 0)]
        self.enter_livekit(who, is_silent=False, publishes=[Source.MICROPHONE])
        self.world.fake.latency_s = latency_s
        self.world.store.takes_s = store_takes_s

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self.become_quiet()
            finally:
                self.world.close()

    # --- The signaling -----------------------------------------------------------------------------------------------

    @rule(
        names=st.lists(SOMEBODY, min_size=1, max_size=3),
        breakout=BREAKOUT,
        role=st.sampled_from([None, None, None, *Role]),
        kind=st.sampled_from([None, None, None, None, Kind.GUEST, Kind.SIP]),
        is_plain=st.booleans(),
        patience=PATIENCE,
    )
    def come(
        self,
        names: list[str],
        breakout: BreakoutId | None,
        role: Role | None,
        kind: Kind | None,
        is_plain: bool,  # noqa: FBT001
        patience: int | None,
    ) -> None:
        extensions = frozenset({"control"} if is_plain else {"control", "livekit_moderation"})
        world = self.world
        for name in names:
            own_role, own_kind = CAST[name]
            with suppress(InvalidParticipant):
                who = Participant(
                    ParticipantId(name),
                    role=role or (own_role if kind is None else Role.GUEST),
                    kind=own_kind if kind is None or own_kind in SERVICES else kind,
                    display_name=name.title(),
                    breakout=breakout,
                )
                world.begin(world.join(world.people[name], who, extensions), patience)
        world.tell()

    @rule(name=SOMEBODY, how=st.sampled_from(["leave", "disconnect"]), patience=PATIENCE)
    def go(self, name: str, how: str, patience: int | None) -> None:
        self._with_session(name, lambda session: getattr(session, how)(), patience)

    @rule(name=SOMEBODY, breakout=BREAKOUT, by_host=st.booleans(), patience=PATIENCE)
    def move(self, name: str, breakout: BreakoutId | None, by_host: bool, patience: int | None) -> None:  # noqa: FBT001
        if not by_host:
            self._with_session(name, lambda session: session.move(breakout), patience)
        else:
            self.world.begin(self.world.module.move(ROOM, ParticipantId(name), breakout), patience)
            self.world.tell()

    @rule(name=SOMEBODY, role=st.sampled_from(Role), by_host=st.booleans(), patience=PATIENCE)
    def change_role(self, name: str, role: Role, by_host: bool, patience: int | None) -> None:  # noqa: FBT001
        if by_host:
            self.world.begin(self.world.module.change_role(ROOM, ParticipantId(name), role), patience)
            self.world.tell()
        else:
            self._with_session(name, lambda session: session.change_role(role), patience)

    def _with_session(
        self, name: str, work: Callable[[Session], Coroutine[Any, Any, None]], patience: int | None
    ) -> None:
        connection = self.world.people[name].connection
        if connection is not None and connection.session is not None:
            self.world.begin(work(connection.session), patience)
            self.world.tell()

    @rule(asked=st.lists(st.tuples(SENDER, COMMAND, PATIENCE), min_size=1, max_size=5))
    def ask(self, asked: list[tuple[str, tuple[str, Any], int | None]]) -> None:
        world = self.world
        for name, (namespace, payload), patience in asked:
            if name == "controller":
                world.begin(world.command(namespace, self._filled_in(payload, [])), patience)
                continue
            connection = world.people[name].connection
            connections = world.open_connections()
            if connection is None or not connection.is_open:
                if not connections:
                    continue
                connection = connections[0]
            filled_in = self._filled_in(payload, connection.who.requests)
            world.begin(world.ask(connection, namespace, filled_in), patience)
        world.tell()

    ask_more = ask_once_more = ask  # most of what happens

    def _filled_in(self, payload: dict[str, Any], requests: list[str]) -> dict[str, Any]:
        """The command, with ids where it has only said which."""
        known = {"command_id": self.world.command_ids, "before": self.world.command_ids, "request_id": requests}
        return {
            name: (known[name][-1 - value % len(known[name])] if known[name] else "none") if name in known else value
            for name, value in payload.items()
        }

    @rule(numbers=st.lists(NUMBER, min_size=1, max_size=3), patience=PATIENCE)
    def give_up(self, numbers: list[int], patience: int | None) -> None:
        """Hosts cancel what they have begun: joining, receiving, moving, leaving."""
        world = self.world
        for number in numbers:
            if world.running:
                world.running[number % len(world.running)].cancel()
        world.run(steps(patience or 1))
        world.running = [task for task in world.running if not task.done()]
        world.tell()

    @rule(name=SOMEBODY, patience=st.sampled_from([0, 1, 4]))
    def stop_waiting_for_the_end(self, name: str, patience: int) -> None:
        connection = self.world.people[name].connection
        if connection is not None and connection.session is not None:
            waiting = self.world.loop.create_task(asyncio.wait_for(connection.session.ended, 1))
            waiting.add_done_callback(lambda task: task.cancelled() or task.exception())
            self.world.run(steps(patience))
            waiting.cancel()
            self.world.run(steps(1))
            self.world.tell()

    # --- LiveKit -----------------------------------------------------------------------------------------------------

    @rule(
        who=st.lists(st.tuples(SOMEBODY, st.sampled_from([0, 0, 1, 2, 3, 5, 8])), min_size=1, max_size=3),
        is_silent=st.booleans(),
        publishes=st.lists(st.sampled_from(Source), max_size=2),
    )
    def enter_livekit(self, who: list[tuple[str, int]], is_silent: bool, publishes: list[Source]) -> None:  # noqa: FBT001
        for name, older in who:
            tokens = self.world.people[name].tokens
            if tokens:
                room, identity, token = tokens[-1 - older % len(tokens)]
                state = models.ParticipantInfo.JOINED if is_silent else models.ParticipantInfo.ACTIVE
                with suppress(JoinRefused):
                    self.world.fake.join(room, identity, token=token, state=state)
                    for source in publishes:
                        with suppress(PublishRefused):
                            self.world.fake.publish(room, identity, source.value)

    @rule(
        name=st.sampled_from(INTRUDERS),
        room=st.sampled_from([ROOM, ROOM, f"{ROOM}:left", FOREIGN]),
        permission=st.sampled_from(CAME),
    )
    def intrude(self, name: str, room: str, permission: models.ParticipantPermission) -> None:
        kind = STRANGERS.get(name, models.ParticipantInfo.STANDARD)
        if room == FOREIGN:
            self.world.fake.create_room(room)
        if room not in self.world.fake.rooms or room == FOREIGN:
            self.world.made_by_others.add(room)
        with suppress(JoinRefused):
            self.world.fake.join(room, name, permission=permission, kind=kind)

    @rule(
        published=st.lists(
            st.tuples(
                NUMBER,
                st.sampled_from(Source),
                st.sampled_from([None, None, "audio/opus", "video/VP8"]),
                st.sampled_from([None, models.VIDEO]),
                st.booleans(),
            ),
            min_size=1,
            max_size=3,
        )
    )
    def publish(self, published: "list[tuple[int, Source, str | None, models.TrackType | None, bool]]") -> None:
        present = self.world.in_livekit()
        for number, source, mime_type, type_, is_muted in published:
            if present:
                room, info = present[number % len(present)]
                with suppress(PublishRefused):
                    self.world.fake.publish(
                        room, info.identity, source.value, mime_type=mime_type, type=type_, muted=is_muted
                    )

    @rule(number=NUMBER, what=st.sampled_from(["mute_self", "unmute", "unmute", "unpublish"]))
    def change_track(self, number: int, what: str) -> None:
        tracks = [(room, info.identity, track.sid) for room, info in self.world.in_livekit() for track in info.tracks]
        if tracks:
            getattr(self.world.fake, what)(*tracks[number % len(tracks)])

    @rule(number=NUMBER)
    def leave_livekit(self, number: int) -> None:
        present = self.world.in_livekit()
        if present:
            room, info = present[number % len(present)]
            self.world.fake.leave(room, info.identity)

    # --- Webhooks ----------------------------------------------------------------------------------------------------

    @rule(
        numbers=st.lists(NUMBER, max_size=6),
        keeps=st.booleans(),
        loses=st.booleans(),
        patience=st.sampled_from([0, 3, 30]),
    )
    def deliver_post(self, numbers: list[int], keeps: bool, loses: bool, patience: int) -> None:  # noqa: FBT001
        world = self.world
        for number in numbers:
            if world.post:
                index = number % len(world.post)
                world.deliver_post(world.post[index] if keeps else world.post.pop(index))
        if loses:
            world.post.clear()
        world.run(steps(patience))
        world.tell()

    # --- What goes wrong ---------------------------------------------------------------------------------------------

    @rule(
        what=st.sampled_from(["hang", "delay", "refuse", "reset", "garble"]),
        method=st.sampled_from(
            [
                *("UpdateParticipant", "UpdateParticipant", "ListParticipants", "RemoveParticipant"),
                *("MutePublishedTrack", "CreateRoom", "DeleteRoom"),
            ]
        ),
        identity=st.sampled_from([None, "bob", "carol", "alice"]),
        times=st.sampled_from([None, 1, 2]),
        takes_effect=st.booleans(),
        delay_s=st.sampled_from([0.5, 3.0]),
        code=st.sampled_from(["not_found", "unavailable", "internal"]),
    )
    def go_wrong(
        self,
        what: str,
        method: str,
        identity: str | None,
        times: int | None,
        takes_effect: bool,  # noqa: FBT001
        delay_s: float,
        code: str,
    ) -> None:
        self.world.is_troubled = True
        which: dict[str, Any] = {"method": method, "takes_effect": takes_effect}
        if identity is not None and method not in {"ListParticipants", "CreateRoom", "DeleteRoom"}:
            which["identity"] = identity
        if times is not None:
            which["times"] = times
        if method in {"CreateRoom", "DeleteRoom"} and code == "not_found":
            code = "unavailable"  # LiveKit does not say of a room that it is not there when it is
        arguments: dict[str, tuple[Any, ...]] = {"delay": (delay_s,), "refuse": (code,)}
        self.world.faults.append(getattr(self.world.fake, what)(*arguments.get(what, ()), **which))

    @rule(
        what=st.sampled_from(["stall", "offline", "crash", "close_room", "end", "restart", *(["recover"] * 5)]),
        patience=PATIENCE,
    )
    def break_down(self, what: str, patience: int | None) -> None:
        world = self.world
        world.is_troubled = True
        match what:
            case "offline":
                world.run(world.fake.offline())
            case "close_room":
                for room in sorted(world.fake.rooms)[:1]:
                    world.fake.close_room(room)
            case "end":
                world.begin(world.module.close_room(ROOM), patience)
            case "restart":
                world.run(world.restart())
            case "recover":
                world.run(world.calm())
            case _:
                getattr(world.fake, what)()
        world.tell()

    # --- Time --------------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.02, 0.3, 1.1, 2.5, 6, 11, 61]))
    def let_time_pass(self, seconds: float) -> None:
        self.world.run(asyncio.sleep(seconds))
        self.world.tell()

    @rule()
    def become_quiet(self) -> None:
        world = self.world
        world.run(world.become_quiet())
        world.tell()
        record = world.record()
        if record is None:
            world.check_rooms(set())
        else:
            world.check_livekit(record.state, removes_unknown=self.removes_unknown)
            world.check_shown(record.state)
            world.check_story(record)
        world.tell()

    @rule(name=st.sampled_from(["alice", "mia"]), command=ROOM_WIDE)
    def preview(self, name: str, command: dict[str, Any]) -> None:
        self.become_quiet()
        world = self.world
        connection = world.people[name].connection
        if connection is None or not connection.is_open:
            return
        for payload in ({"action": "preview", "command": command}, command):
            world.begin(world.ask(connection, "livekit_moderation", payload), None)
        world.tell()
        before, after = [connection.results[number][0] for number in sorted(connection.results)[-2:]]
        assert before.get("error") == after.get("error")
        assert before["outcomes"] == after["outcomes"]


def test_random_meetings() -> None:
    examples = int(os.environ.get("RANDOM_MEETINGS", "250"))
    run_state_machine_as_test(
        RandomMeetings,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        ),
    )
