import json

import pytest

from signaling.messages import removal
from signaling.messages.envelope import Delivery, EnvelopeError, parse_frame
from tests.messages.wire import concrete, dumped, event_of, parsed, row

EVENTS = [
    row(removal.Kicked(), '{"message": "kicked"}'),
    row(removal.Banned(), '{"message": "banned"}'),
]


@pytest.mark.parametrize(("event", "text"), EVENTS)
def test_dump_an_event(event: removal.RemovalEvent, text: str) -> None:
    assert json.loads(dumped(event)) == json.loads(text)


@pytest.mark.parametrize(("event", "text"), EVENTS)
def test_parse_an_event(event: removal.RemovalEvent, text: str) -> None:
    assert parsed(type(event), text) == event


def test_every_event_has_its_rows() -> None:
    assert {type(param.values[0]) for param in EVENTS} == concrete(removal.RemovalEvent)


def test_every_event_is_of_this_namespace() -> None:
    assert {Delivery(event_of(param), 0).namespace for param in EVENTS} == {"moderation"}


def test_nobody_sends_anything_in_it() -> None:
    with pytest.raises(EnvelopeError) as refused:
        parse_frame('{"namespace": "moderation", "payload": {"action": "kick", "target": "bob"}}')
    assert refused.value.code == "invalid_namespace"
