"""A meeting on several nodes that share a store and a fake RoomService, on a loop whose time jumps."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from contextvars import Context
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any, Final, TypeVar
from unittest.mock import patch

import aiohttp
import structlog
import tenacity
from google.protobuf.message import Message
from livekit.api import ServerError

import signaling.livekit.connection
import signaling.testing.webhooks
from signaling import Delivery, ModerationModule, Participant, Role, Session, Settings
from signaling.core.announcements import Everyone, Only
from signaling.core.changes import ConnectionLost, Entered, TimedOut
from signaling.core.effects import Presence
from signaling.core.policy import publishable
from signaling.core.state import MeetingState
from signaling.errors import SignalingError, WebhookRefused
from signaling.identifiers import LiveKitRoom, ParticipantId, RoomId, SessionId
from signaling.livekit.roster import presence_of
from signaling.presence import LIVES_S
from signaling.stores.contract import Commit, Record, Staged, Unstaged, fold
from signaling.testing.fake_room_service import Change, FakeRoomService
from signaling.testing.participants import JoinRefused, PublishRefused
from signaling.testing.webhooks import sign_webhook, webhook_of
from tests.processes import Process, ProcessesLoop
from tests.stores.shared_store import LEASE_S, Link, Shared, SharedStore
from tests.test_random_meetings import BEGAN_AT, place_of, problem_with

Answer = TypeVar("Answer", bound=Message)
ROOM: Final = RoomId("standup")
URL: Final = "http://livekit.invalid"
DEADLINE_S: Final = 1.0
SWEEP_S: Final = 5.0
GRACE_S: Final = 8.0
CALL_S: Final = 0.004
"""How long a call to LiveKit takes, and an operation of the store a quarter of that."""
SETTLES_S: Final = LEASE_S + DEADLINE_S + LIVES_S + GRACE_S + 3 * SWEEP_S
"""After which everything that went wrong has been made up for."""
UNKNOWN: Final = frozenset({"unavailable", "internal"})
"""Refusals that do not say whether it happened."""


class _Calls:
    """In the place of a Twirp client: calls that a node makes, without HTTP; LiveKit goes on when the node does not."""

    def __init__(self, fake: FakeRoomService, link: Link) -> None:
        self._fake = fake
        self._link = link

    async def request(
        self,
        _service: str,
        method: str,
        request: Message,
        _headers: dict[str, str],
        answer: type[Answer],
    ) -> Answer:
        """Carry out one of them."""

        async def call() -> Answer:
            calling = asyncio.get_running_loop().create_task(self._call(method, request, answer), context=Context())
            calling.add_done_callback(lambda done: done.exception(), context=Context())  # perhaps nobody waits for it
            return await asyncio.shield(calling)

        try:
            return await self._link.carry(method, call, to_store=False)
        except ConnectionResetError as error:
            raise aiohttp.ClientConnectionError(str(error)) from error

    async def _call(self, name: str, request: Message, answer: type[Answer]) -> Answer:
        await asyncio.sleep(CALL_S)
        methods = self._fake._methods
        method = methods.get(name)
        assert method is not None
        asked = method.request.FromString(request.SerializeToString())
        answered = await methods.carry_out(method, asked, DEADLINE_S * 0.75)
        if answered.status == HTTPStatus.OK:
            return answer.FromString(answered.body)
        said = json.loads(answered.body)
        raise ServerError(said["code"], said["msg"], status=answered.status, metadata=said.get("meta"))


class Node:
    """A process with a module."""

    def __init__(self, world: "World", number: int) -> None:
        self.number = number
        self.process = Process(world.loop)
        self.link = Link(self.process, takes_s=CALL_S / 4)
        self.store = self.process.context.run(world.make_store, self.link)
        self.module = ModerationModule(world.settings, store=self.store, clock=world.clock)

    @property
    def is_alive(self) -> bool:
        """Whether it will ever do anything again."""
        return not self.process.is_dead


class Person:
    """Somebody, their newest session, and every token that they ever got."""

    def __init__(self, world: "World", name: str, role: Role) -> None:
        self.world = world
        self.id = ParticipantId(name)
        self.role = role
        self.node: Node | None = None
        self.session: Session | None = None
        self.results: list[dict[str, Any]] = []
        self.tokens: list[str] = []

    def deliver(self, delivery: Delivery) -> None:
        """Keep results; go where credentials lead."""
        match delivery.payload:
            case {"message": "result"}:
                self.results.append(delivery.payload)
            case {"message": "credentials", "token": token}:
                self.tokens.append(token)
                asyncio.get_running_loop().call_soon(self.enter, -1, context=Context())

    def enter(self, which: int = -1) -> None:
        """Come into LiveKit with one of their tokens, and publish a microphone."""
        if self.tokens:
            token = self.tokens[which % len(self.tokens)]
            room, identity = place_of(token)
            with suppress(JoinRefused, PublishRefused):
                self.world.fake.join(room, identity, token=token)
                self.world.fake.publish(room, identity, "microphone")

    @property
    def is_connected(self) -> bool:
        """Whether they have a session on a node that lives."""
        return self.session is not None and not self.session.is_over and self.node is not None and self.node.is_alive


class World:
    """
    Some nodes, and people on them.

    Args:
        nodes: How many.
        kind: What a node sees of the store.
    """

    def __init__(self, nodes: int = 2, kind: type[SharedStore] = SharedStore) -> None:
        self.wrong: list[str] = []
        self.loop = ProcessesLoop()
        self.loop.set_exception_handler(lambda _, context: self.wrong.append(f"{context}"))
        self.shared = Shared(notice_s=CALL_S / 2)
        self._kind = kind
        self.fake = FakeRoomService()
        self.fake.observe(self._on_change)
        self.settings = Settings(
            livekit_url=URL,
            livekit_api_key=self.fake.api_key,
            livekit_api_secret=self.fake.api_secret,
            moderation_livekit_timeout_s=DEADLINE_S,
            moderation_sweep_s=SWEEP_S,
            moderation_disconnect_grace_s=GRACE_S,
        )
        self.heard: defaultdict[SessionId, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
        self.sessions: list[tuple[Node, Session]] = []
        self._running: set[asyncio.Task[None]] = set()
        self._posts = 0
        self._transactions = 0
        self._stack = ExitStack()
        enter = self._stack.enter_context
        self.logs = enter(structlog.testing.capture_logs(processors=[structlog.processors.format_exc_info]))
        enter(patch.object(signaling.testing.webhooks, "time", SimpleNamespace(time=self.clock)))
        enter(patch.object(tenacity, "time", SimpleNamespace(monotonic=self.loop.time)))
        enter(patch.object(Session, "push", self._watched(Session.push)))
        self.nodes = [Node(self, number) for number in range(nodes)]
        self.people: dict[str, Person] = {}
        for node in self.nodes:
            self.run(self._enter(node), node)

    def make_store(self, link: Link) -> SharedStore:
        """What a node sees of the store."""
        return self._kind(self.shared, link, clock=self.clock)

    async def _enter(self, node: Node) -> None:
        with patch.object(signaling.livekit.connection, "TwirpClient", lambda *_, **__: _Calls(self.fake, node.link)):
            await node.module.__aenter__()

    def clock(self) -> float:
        """Seconds since the epoch, for everybody."""
        return BEGAN_AT + self.loop.time()

    def close(self) -> None:
        """End everything, also what is left of nodes that are gone, and see to it that nothing is left."""
        for node in self.nodes:
            if not node.is_alive:
                self.loop.call_soon(node.process.bury)
            self.run(node.module.__aexit__(None, None, None), node)
        self.run(asyncio.sleep(2 * SETTLES_S))
        left = asyncio.all_tasks(self.loop)
        self.loop.close()
        self._stack.close()
        assert not left, f"{left} are left behind"

    # --- Doing -------------------------------------------------------------------------------------------------------

    def run(self, work: Coroutine[Any, Any, Any], node: Node | None = None) -> None:
        """Do something, as a node, to its end."""
        context = Context() if node is None else node.process.context
        self.loop.run_until_complete(self.loop.create_task(work, context=context))

    def begin(self, node: Node, work: Coroutine[Any, Any, object]) -> None:
        """Begin something as a node."""
        task = self.loop.create_task(self._guard(work), context=node.process.context)
        self._running.add(task)
        task.add_done_callback(self._running.discard, context=Context())

    async def _guard(self, work: Coroutine[Any, Any, object]) -> None:
        try:
            await work
        except SignalingError:
            pass
        except Exception as error:  # noqa: BLE001 - told at the end
            self.wrong.append(f"{error!r}")

    def pass_time(self, for_s: float) -> None:
        """Let that time pass."""
        self.run(asyncio.sleep(for_s))

    async def join(self, node: Node, name: str) -> None:
        """Have somebody come by way of a node."""
        person = self.people[name]
        session = await node.module.join(
            ROOM,
            Participant(person.id, role=person.role, display_name=name.title()),
            deliver=person.deliver,
            extensions=frozenset({"control", "livekit_moderation"}),
        )
        self.sessions.append((node, session))
        if not session.is_over or person.session is None:  # else a newer one was let in before this one returned
            person.node, person.session = node, session
        if session.join_data is not None:
            person.tokens.append(str(session.join_data["token"]))
            self.loop.call_soon(person.enter, context=Context())

    def come(self, name: str, role: Role, node: Node) -> None:
        """Have somebody come by way of a node, and wait for that."""
        self.people[name] = Person(self, name, role)
        self.run(self.join(node, name), node)

    async def ask(self, name: str, namespace: str, payload: dict[str, Any]) -> None:
        """Have somebody give a command."""
        session = self.people[name].session
        assert session is not None
        self._transactions += 1
        await session.receive(namespace, payload, self._transactions)

    # --- Looking on --------------------------------------------------------------------------------------------------

    def check(self, is_so: bool, otherwise: str) -> None:  # noqa: FBT001
        """Take note of what is not as it should be."""
        if not is_so:
            self.wrong.append(otherwise)

    def _watched(
        self, push: Callable[[Session, Delivery, int | None], None]
    ) -> Callable[[Session, Delivery, int | None], None]:
        def watch(session: Session, delivery: Delivery, revision: int | None) -> None:
            was_held_back = session._since is None
            push(session, delivery, revision)
            if revision is not None and not was_held_back and not session.is_over and revision > (session._since or 0):
                self.heard[session.key].append((revision, delivery.payload))

        return watch

    def _on_change(self, change: Change) -> None:
        body = webhook_of(change)
        if body is None:
            return
        alive = [node for node in self.nodes if node.is_alive]
        if alive:
            self._posts += 1
            node = alive[self._posts % len(alive)]
            self.loop.call_later(CALL_S, self.begin, node, self._post(node, body), context=Context())

    async def _post(self, node: Node, body: bytes) -> None:
        with suppress(WebhookRefused):
            await node.module.receive_webhook(body, sign_webhook(body, self.fake.api_key, self.fake.api_secret))

    def record(self) -> Record | None:
        """The meeting as it is kept now."""
        record: Record | None = self.loop.run_until_complete(self.shared.kept.read(ROOM))
        return record

    def forbidden(self) -> list[str]:
        """Who may publish in LiveKit what the state forbids."""
        record = self.record()
        if record is None or not record.state.goes_on:
            return []
        found = []
        for presence in self._presences():
            who = ParticipantId(presence.identity)
            allowed = set(publishable(who, record.state)) if who in record.state.members else set()
            if record.staged is None and set(presence.permission.allowed()) - allowed:
                found.append(f"{who} may publish {presence.permission.allowed()} instead of {allowed}")
        return found

    def _presences(self) -> list[Presence]:
        return [
            presence_of(LiveKitRoom(room), info) for room in self.fake.rooms for info in self.fake.participants(room)
        ]

    def settle(self) -> None:
        """Let the dust settle; by when nobody may do any more what is forbidden, it does not have to."""
        soon_s = LEASE_S + DEADLINE_S
        if not all(node.is_alive for node in self.nodes):
            soon_s += LIVES_S + SWEEP_S  # until another node looks after what theirs was
        self.pass_time(soon_s)
        self.wrong += self.forbidden()
        self.pass_time(SETTLES_S - soon_s)

    def judge(self) -> None:
        """All of what holds when the dust has settled."""
        self._judge_log()
        self._judge_livekit()
        self._judge_results()
        self._judge_presence()
        for node, session in self.sessions:
            self._judge_events(node, session)
        bugs = [line for line in self.logs if "exception" in line]
        self.wrong += [f"{line['event']}: {line['exception']}" for line in bugs]
        assert not self.wrong, "\n".join(self.wrong)

    def _judge_log(self) -> None:
        folded, staged = Record(0, MeetingState(ROOM)), None
        audited: set[str] = set()
        for commit in self.shared.history[ROOM]:
            entry = commit.entry
            folded = fold(folded, entry)
            self.check(folded == commit.record, f"folding {entry} gives something else than was kept")
            match entry.staging:
                case Staged(decision):
                    is_alone = staged is None or staged.command_id == decision.command_id
                    self.check(is_alone, f"{decision} is staged over {staged}")
                    staged = decision
                case Unstaged():
                    is_concluded = staged is None or entry.command_id == staged.command_id
                    self.check(is_concluded or not entry.changes, f"{entry} concludes what was not staged")
                    staged = None
                case None:
                    pass
            staged = staged if commit.record.state.goes_on else None
            if entry.audit is not None:
                self.check(entry.audit.command_id not in audited, f"{entry.audit} is in the log twice")
                audited.add(entry.audit.command_id)
        record = self.record()
        if record is not None:
            self.check(record == folded, "what is kept is not what the log comes to")
            self.check(record.staged is None, f"{record.staged} is left staged")
        self.audited = audited

    def _judge_livekit(self) -> None:
        record = self.record()
        if record is None or not record.state.goes_on:
            self.check(not self.fake.rooms, f"{self.fake.rooms} are left of a meeting that is over")
            return
        state = record.state
        self.check(state.rooms_in_use() <= set(self.fake.rooms), f"not all of {state.rooms_in_use()} are there")
        for presence in self._presences():
            if presence.room in state.rooms_in_use():
                problem = problem_with(state, presence, removes_unknown=False)
                self.check(problem is None, f"{presence.identity} in {presence.room} {problem}: {presence}")
        for name, person in self.people.items():
            member = state.members.get(person.id)
            if person.is_connected:
                self.check(member is not None, f"{name} is connected and not in the meeting")
            elif member is not None:
                self.check(False, f"{name} is in the meeting, and is not connected")  # noqa: FBT003

    def _judge_results(self) -> None:
        for person in self.people.values():
            for result in person.results:
                error, command_id = result.get("error"), result["command_id"]
                if error is None and result["action"] != "preview":
                    self.check(command_id in self.audited, f"{result} is not in the log")
                elif error is not None and error not in UNKNOWN and not result["outcomes"]:
                    self.check(command_id not in self.audited, f"{result} was refused, and is in the log")

    def _judge_presence(self) -> None:
        """Nobody is taken for gone whose node was heard of, and no session is interrupted whose place is kept."""
        before, timed_out = MeetingState(ROOM), set[SessionId | None]()
        for commit in self.shared.history[ROOM]:
            entry = commit.entry
            assert entry.node is not None
            heard = [alive for at, alive in self.shared.beats[entry.node] if BEGAN_AT + at <= entry.at]
            for change in entry.changes:
                if isinstance(change, ConnectionLost):
                    for who in change.participants & before.members.keys():
                        is_gone = before.members[who].node not in heard[-1] - {entry.node}
                        self.check(is_gone, f"{who} is taken for gone, and their node was heard of: {entry}")
                elif isinstance(change, TimedOut):
                    timed_out |= {before.members[who].session for who in change.participants & before.members.keys()}
            before = commit.record.state
        for _, session in self.sessions:
            is_interrupted = session._ended.done() and session._ended.result() == "interrupted"
            self.check(not is_interrupted or session.key in timed_out, f"{session.id} was interrupted needlessly")

    def _judge_events(self, node: Node, session: Session) -> None:
        """What a session was told of commits is a run of them without a gap; of one that goes on, to the end."""
        expected, began = list[tuple[int, dict[str, Any]]](), False
        for commit in self.shared.history[ROOM]:
            if began:
                expected += _told(commit, session.id)
            began = began or _is_entry_of(commit, session)
            if began and not commit.record.state.goes_on:
                break
        heard = self.heard[session.key]
        self.check(heard == expected[: len(heard)], f"{session.id} heard {heard} instead of {expected}")
        if node.is_alive and not session.is_over:
            self.check(len(heard) == len(expected), f"{session.id} has not heard {expected[len(heard) :]}")


def _is_entry_of(commit: Commit, session: Session) -> bool:
    return any(isinstance(change, Entered) and change.member.session == session.key for change in commit.entry.changes)


def _told(commit: Commit, who: ParticipantId) -> list[tuple[int, dict[str, Any]]]:
    return [
        (commit.entry.revision, Delivery(announcement.event, 0).payload)
        for announcement in commit.entry.announcements
        if _is_for(announcement.audience, who)
    ]


def _is_for(audience: Everyone | Only, who: ParticipantId) -> bool:
    match audience:
        case Everyone(but):
            return who not in but
        case Only(participants):
            return who in participants
