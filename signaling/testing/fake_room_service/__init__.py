"""
A stateful double of LiveKit's RoomService, for what the real one cannot be made to do at will.

It answers as livekit-server v1.13.5 does, with its codes and its words; one test suite holds for both.
"""

from signaling.testing.fake_room_service.faults import Fault, Which
from signaling.testing.fake_room_service.rooms import Change, Happening
from signaling.testing.fake_room_service.service import FakeRoomService
from signaling.testing.fake_room_service.twirp import Call

__all__ = ["Call", "Change", "FakeRoomService", "Fault", "Happening", "Which"]
