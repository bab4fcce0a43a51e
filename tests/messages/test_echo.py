import json

import pytest

from signaling.errors import MessageError
from signaling.messages import echo
from signaling.messages.base import parse_payload
from signaling.messages.envelope import Delivery
from tests.messages.wire import concrete, dumped, parsed, row

EVENTS = [
    row(echo.Pong(), '{"message": "pong"}'),
    row(
        echo.EchoError(error="invalid_command", detail="action: is required"),
        '{"message": "error", "error": "invalid_command", "detail": "action: is required"}',
    ),
    row(echo.EchoError(error="invalid_command"), '{"message": "error", "error": "invalid_command"}'),
]


def test_dump_a_ping() -> None:
    assert json.loads(dumped(echo.Ping())) == {"action": "ping"}


@pytest.mark.parametrize("text", ['{"action": "ping"}', '{"at": 5, "action": "ping", "data": {"x": [null]}}'])
def test_any_ping_is_a_ping(text: str) -> None:
    assert parse_payload(json.loads(text), echo.COMMANDS) == echo.Ping()


@pytest.mark.parametrize("text", ['{"action": "pong"}', '{"action": "Ping"}', '{"action": "ping "}'])
def test_anything_else_is_none(text: str) -> None:
    with pytest.raises(MessageError, match="action: not a command of this namespace"):
        parse_payload(json.loads(text), echo.COMMANDS)


@pytest.mark.parametrize(("event", "text"), EVENTS)
def test_dump_an_event(event: echo.EchoEvent, text: str) -> None:
    assert json.loads(dumped(event)) == json.loads(text)
    assert Delivery(event, 0).payload == json.loads(text)
    assert Delivery(event, 0).namespace == "echo"


@pytest.mark.parametrize(("event", "text"), EVENTS)
def test_parse_an_event(event: echo.EchoEvent, text: str) -> None:
    assert parsed(type(event), text) == event


def test_every_message_has_its_rows() -> None:
    assert set(echo.COMMANDS) == {"ping"}
    assert {type(param.values[0]) for param in EVENTS} == concrete(echo.EchoEvent)
