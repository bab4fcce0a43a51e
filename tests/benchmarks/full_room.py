"""A LiveKit room full of real participants, a meeting of the module about it, and the library's bare calls beside."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, Literal, TypeAlias

import aiohttp
from livekit.api import AccessToken, LiveKitAPI, VideoGrants
from livekit.api.room_service import RoomService
from livekit.protocol import models
from livekit.protocol import room as protocol

from signaling import Delivery, ModerationModule, Participant, Role, Session, Settings, metrics
from signaling.core.effects import Presence
from signaling.core.participants import Source
from signaling.identifiers import ParticipantId, RoomId
from signaling.livekit.embedded import EmbeddedServer
from signaling.livekit.installation import require
from signaling.testing.participants import participant_token
from tests.benchmarks.hosts import in_flight
from tests.crowd.crowd import Crowd, EventName, Join, Member, Publication

Microphone: TypeAlias = Literal["live", "muted", "none"]

AT_ONCE: Final = 8
USUAL_AT_ONCE: Final = 25
_ROOM: Final = RoomId("meeting")
_LIMIT_S: Final = 60
_POLL_S: Final = 0.01
_QUIET_S: Final = 0.05
_UNMUTED_AT_ONCE: Final = 100
"""LiveKit keeps 200 messages for each connection, and closes those for which it has more."""
_UNRESTRICTED: Final = (models.CAMERA, models.MICROPHONE, models.SCREEN_SHARE, models.SCREEN_SHARE_AUDIO)
_RESTRICTED: Final = (models.CAMERA, models.SCREEN_SHARE, models.SCREEN_SHARE_AUDIO)
_WITHOUT_SCREEN: Final = (models.CAMERA, models.MICROPHONE)
_PUBLISH: Final[dict[Microphone, list[Publication | str]]] = {
    "live": ["microphone"],
    "muted": [{"source": "microphone", "muted": True}],
    "none": [],
}


class Bare:
    """The library's calls for the room, counted, with a token signed once and one pooled session."""

    def __init__(self, service: RoomService) -> None:
        self._service = service
        self.calls = 0
        self.answered_at: dict[str, float] = {}

    async def listed(self) -> Sequence[models.ParticipantInfo]:
        """Everybody in the room."""
        self.calls += 1
        return (await self._service.list_participants(protocol.ListParticipantsRequest(room=_ROOM))).participants

    async def get(self, identity: str) -> models.ParticipantInfo:
        """One of them."""
        self.calls += 1
        return await self._service.get_participant(protocol.RoomParticipantIdentity(room=_ROOM, identity=identity))

    async def mute(self, identity: str, sid: str) -> None:
        """Mute a track."""
        self.calls += 1
        await self._service.mute_published_track(
            protocol.MuteRoomTrackRequest(room=_ROOM, identity=identity, track_sid=sid, muted=True)
        )

    async def allow(self, info: models.ParticipantInfo, sources: Sequence[models.TrackSource]) -> None:
        """Let somebody publish these sources, with everything else as it was."""
        permission = models.ParticipantPermission()
        permission.CopyFrom(info.permission)
        del permission.can_publish_sources[:]
        permission.can_publish_sources.extend(sources)
        self.calls += 1
        await self._service.update_participant(
            protocol.UpdateParticipantRequest(room=_ROOM, identity=info.identity, permission=permission)
        )
        self.answered_at[info.identity] = time.monotonic()


class FullRoom:
    """
    Everybody in it has joined the meeting of the module too; the moderator only signals.

    What is measured leaves the room as it was at first, and LiveKit with nothing more to tell anybody.
    """

    def __init__(
        self, server: EmbeddedServer, module: ModerationModule, crowd: Crowd, http: aiohttp.ClientSession
    ) -> None:
        grants = VideoGrants(room_admin=True, room=_ROOM)
        token = AccessToken(server.api_key, server.api_secret).with_grants(grants).to_jwt()
        self._bare = Bare(LiveKitAPI.with_token(token, server.http_url, session=http, failover=False).room)
        self._server = server
        self._module = module
        self._crowd = crowd
        self._http = http
        self._told: Counter[str] = Counter()
        self._told_at: dict[str, float] = {}
        self._answered_at: dict[str, float] = {}
        self._moderator: Session | None = None
        self._microphones: dict[Member, Microphone] = {}

    @property
    def everybody(self) -> Collection[Member]:
        """All in LiveKit."""
        return self._microphones.keys()

    @property
    def live(self) -> Collection[Member]:
        """Whose microphone is live while nobody moderates."""
        return [member for member, microphone in self._microphones.items() if microphone == "live"]

    async def gather(self, microphones: Sequence[Microphone]) -> None:
        """Let so many join, the signaling and LiveKit."""
        self._note_answers()
        self._moderator = await self._join("moderator", Role.MODERATOR)
        names = [f"p{number}" for number in range(len(microphones))]
        for name in names:
            await self._join(name, Role.USER)
        joins = [
            Join(url=self._server.url, token=self._token(name), publish=_PUBLISH[microphone])
            for name, microphone in zip(names, microphones, strict=True)
        ]
        self._microphones = dict(zip(await self._crowd.join_many(joins), microphones, strict=True))
        await self._restore()

    async def _join(self, name: str, role: Role) -> Session:
        return await self._module.join(
            _ROOM,
            Participant(ParticipantId(name), role=role),
            deliver=self._deliver,
            extensions=frozenset({"livekit_moderation"}),
        )

    def _deliver(self, delivery: Delivery) -> None:
        self._told[delivery.event.message] += 1
        self._told_at[delivery.event.message] = time.monotonic()

    def _note_answers(self) -> None:
        """As for the bare calls: when LiveKit answered about whom."""
        media = self._module._entered.media
        assert media is not None
        allow = media.allow

        async def noted(presence: Presence, sources: tuple[Source, ...]) -> Presence:
            answer = await allow(presence, sources)
            self._answered_at[presence.identity] = time.monotonic()
            return answer

        media.allow = noted  # type: ignore[method-assign]

    def _token(self, name: str) -> str:
        sources = [models.TrackSource.Name(source).lower() for source in _UNRESTRICTED]
        return participant_token(
            self._server.api_key, self._server.api_secret, _ROOM, name, can_publish_sources=sources
        )

    # --- What is measured ----------------------------------------------------------------------------------------

    async def restrict(self) -> dict[str, float]:
        """The module's restriction of everybody's microphone, and the same again; then it is lifted."""
        before = await self._cut_off()
        began_at = time.monotonic()
        sample = await self._command(*_RESTRICT, unrestricted_participants=[])
        sample |= await self._noticed(began_at, self.everybody, self._answered_at)
        sample["again"] = (await self._command(*_RESTRICT, unrestricted_participants=[]))["calls"]
        await self._command("microphone_restrictions_disabled", "disable_microphone_restrictions")
        sample["cut off"] = await self._cut_off() - before
        await self._restore()
        return sample

    async def restrict_bare(self, people: Collection[Member], at_once: int) -> dict[str, float]:
        """The same by the library: list, then withdraw it from these, so many at a time; then it is given back."""
        before, calls = await self._cut_off(), self._bare.calls
        began_at = time.monotonic()
        concerned = {member.identity for member in people}
        listed = [info for info in await self._bare.listed() if info.identity in concerned]
        await in_flight(at_once, [partial(self._bare.allow, info, _RESTRICTED) for info in listed])
        sample = self._done(began_at, calls) | await self._noticed(began_at, people, self._bare.answered_at)
        await in_flight(at_once, [partial(self._bare.allow, info, _UNRESTRICTED) for info in listed])
        sample["cut off"] = await self._cut_off() - before
        await self._restore()
        return sample

    async def mute(self) -> dict[str, float]:
        """The module's mute of everybody."""
        began_at = time.monotonic()
        identities = [member.identity for member in self.everybody]
        sample = await self._command("force_muted", "force_mute", participants=identities)
        assert sample["told"] == len(self.live), sample
        await self._unmute(began_at)
        return sample

    async def mute_one(self) -> dict[str, float]:
        """The module's mute of the only one who is live."""
        began_at = time.monotonic()
        (member,) = self.live
        sample = await self._command("force_muted", "force_mute", participants=[member.identity])
        await self._unmute(began_at)
        return sample

    async def grant(self) -> dict[str, list[float]]:
        """The module takes the screen from one, and gives it back."""
        took_ms = []
        for action in ("revoke_screen_share_permission", "grant_screen_share_permission"):
            sample = await self._command("screen_share_permissions_updated", action, participants=[self._one])
            took_ms.append(sample["event"])
            await self._until_quiet()
        return {"event": took_ms}

    async def grant_bare(self) -> dict[str, list[float]]:
        """List, then change one; twice."""
        took_ms = []
        for sources in (_WITHOUT_SCREEN, _UNRESTRICTED):
            began_at, calls = time.monotonic(), self._bare.calls
            (info,) = [info for info in await self._bare.listed() if info.identity == self._one]
            await self._bare.allow(info, sources)
            took_ms.append(self._done(began_at, calls)["event"])
            await self._until_quiet()
        return {"event": took_ms}

    @property
    def _one(self) -> str:
        return next(member.identity for member in self.everybody if member not in self.live)

    async def mute_bare(self) -> dict[str, float]:
        """List, then mute what is live."""
        began_at, calls = time.monotonic(), self._bare.calls
        listed = await self._bare.listed()
        live = [(info.identity, track.sid) for info in listed for track in info.tracks if not track.muted]
        await in_flight(AT_ONCE, [partial(self._bare.mute, *each) for each in live])
        sample = self._done(began_at, calls)
        await self._unmute(began_at)
        return sample

    async def mute_usually(self) -> dict[str, float]:
        """Get each in turn, and mute each microphone."""
        began_at, calls = time.monotonic(), self._bare.calls
        for member in self.everybody:
            for track in (await self._bare.get(member.identity)).tracks:
                if track.source == models.MICROPHONE:
                    await self._bare.mute(member.identity, track.sid)
        sample = self._done(began_at, calls)
        await self._unmute(began_at)
        return sample

    async def sweep(self) -> dict[str, float]:
        """What the module does every few seconds, while nothing is wrong."""
        meeting = self._module._entered.meetings[_ROOM]
        calls, began_at, cpu_s = _module_calls(), time.monotonic(), time.process_time()
        await meeting.reconciler.sweep()
        return _cost(began_at, cpu_s) | {"calls": _module_calls() - calls}

    async def list_bare(self) -> dict[str, float]:
        """The list that it takes."""
        began_at, cpu_s = time.monotonic(), time.process_time()
        await self._bare.listed()
        return _cost(began_at, cpu_s) | {"calls": 1}

    async def _command(self, message: str, action: str, **fields: object) -> dict[str, float]:
        """Until the last of its events, the calls until all is settled, and how many were told."""
        assert self._moderator is not None
        calls, told = _module_calls(), self._told[message]
        began_at = time.monotonic()
        await self._moderator.receive("livekit", {"action": action, **fields}, 1)
        event_ms = (self._told_at[message] - began_at) * 1e3
        due = self._module._entered.meetings[_ROOM].due
        async with asyncio.timeout(_LIMIT_S):
            while due.count():  # noqa: ASYNC110 - nobody announces it
                await asyncio.sleep(_POLL_S)
        return {"event": event_ms, "calls": _module_calls() - calls, "told": self._told[message] - told}

    def _done(self, began_at: float, calls: int) -> dict[str, float]:
        return {"event": (time.monotonic() - began_at) * 1e3, "calls": self._bare.calls - calls}

    async def _noticed(
        self, since: float, people: Collection[Member], answered_at: dict[str, float]
    ) -> dict[str, float]:
        """Until LiveKit had answered about the last of these, and of the live; and until the last of those was told."""
        live = [member for member in people if self._microphones[member] == "live"]
        at = {"settled": max(answered_at[member.identity] for member in people)}
        await self._told_by("permission", people, since)
        if live:
            at["withdrawn"] = max(answered_at[member.identity] for member in live)
            at["told"] = await self._told_by("unpublished", live, since)
        return {what: (each - since) * 1e3 for what, each in at.items()}

    # --- LiveKit and the crowd -----------------------------------------------------------------------------------

    async def _told_by(self, name: EventName, members: Iterable[Member], since: float) -> float:
        """When the last of these was told first; nobody waits for those whom LiveKit cut off."""
        waiting, last = set(members), since
        async with asyncio.timeout(_LIMIT_S):
            while True:
                for member in tuple(waiting):
                    told = next((event.at for event in member.events if event.at >= since and event.name == name), None)
                    if told is not None or _is_cut_off(member):
                        waiting.discard(member)
                        last = max(last, told or since)
                if not waiting:
                    return last
                await asyncio.sleep(_POLL_S)

    async def _unmute(self, since: float) -> None:
        await self._told_by("mute", self.live, since)  # or they would still confirm it after unmuting
        live = list(self.live)
        for first in range(0, len(live), _UNMUTED_AT_ONCE):
            await self._until_quiet()
            for member in live[first : first + _UNMUTED_AT_ONCE]:
                for track in member.tracks:
                    await member.unmute(track)
        await self._restore()

    async def _restore(self) -> None:
        """Who was cut off returns, whose track was withdrawn publishes anew, until all is as it was at first."""
        await self._until_quiet()

        async def come_back(member: Member) -> None:
            publish = _PUBLISH[self._microphones[member]]
            if _is_cut_off(member):
                await member.rejoin(self._token(member.identity), publish=publish)
            elif publish and not member.tracks:
                await member.publish("microphone")

        async with asyncio.timeout(_LIMIT_S):
            while True:
                await in_flight(AT_ONCE, [partial(come_back, member) for member in self.everybody])
                await self._until_quiet()
                listed = {info.identity: info for info in await self._bare.listed()}
                if all(
                    not _is_cut_off(member) and _is_as_at_first(listed.get(member.identity), microphone)
                    for member, microphone in self._microphones.items()
                ):
                    return

    async def _until_quiet(self) -> None:
        """Wait until LiveKit has nothing more to tell anybody."""
        async with asyncio.timeout(_LIMIT_S):
            sent = await self._messages("success")
            while True:
                await asyncio.sleep(_QUIET_S)
                before, sent = sent, await self._messages("success")
                if sent == before:
                    return

    async def _cut_off(self) -> float:
        """How many connections LiveKit has closed since it started, because too much waited for them."""
        return await self._messages("failure")

    async def _messages(self, status: str) -> float:
        assert self._server.prometheus_url is not None
        async with self._http.get(self._server.prometheus_url) as answer:
            lines = (await answer.text()).splitlines()
        wanted = f'status="{status}"'
        counted = [line for line in lines if line.startswith("livekit_node_messages{") and wanted in line]
        return sum(float(line.rpartition(" ")[2]) for line in counted)


_RESTRICT: Final = ("microphone_restrictions_enabled", "enable_microphone_restrictions")


@asynccontextmanager
async def full_room(n: int, *, live: int, muted: int = 0) -> AsyncIterator[FullRoom]:
    """A room of `n` on a server of its own; who is neither live nor muted publishes nothing."""
    async with (
        EmbeddedServer(path=require(None), prometheus=True) as server,
        aiohttp.ClientSession() as http,
        Crowd() as crowd,
    ):
        settings = Settings(
            livekit_url=server.url,
            livekit_api_key=server.api_key,
            livekit_api_secret=server.api_secret,
            moderation_sweep_s=3_600,  # what a baseline changes is no drift
        )
        kinds: list[Microphone] = ["live" if i < live else "muted" if i < live + muted else "none" for i in range(n)]
        random.Random(n).shuffle(kinds)  # noqa: S311 - nobody guesses it
        async with ModerationModule(settings) as module:
            room = FullRoom(server, module, crowd, http)
            await room.gather(kinds)
            yield room


def _module_calls() -> float:
    return sum(
        sample.value
        for family in metrics.LIVEKIT_CALLS.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    )


def _cost(began_at: float, cpu_s: float) -> dict[str, float]:
    return {"time": (time.monotonic() - began_at) * 1e3, "CPU": (time.process_time() - cpu_s) * 1e3}


def _is_cut_off(member: Member) -> bool:
    """Whether LiveKit has closed the connection, and they have not come back since."""
    last = next(event.name for event in reversed(member.events) if event.name in {"joined", "closed", "leave"})
    return last != "joined"


def _is_as_at_first(info: models.ParticipantInfo | None, microphone: Microphone) -> bool:
    wanted = {"live": [False], "muted": [True], "none": []}
    return info is not None and [track.muted for track in info.tracks] == wanted[microphone]
