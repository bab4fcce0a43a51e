import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from _pytest.mark import ParameterSet
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator, Draft202012Validator
from referencing import Registry, Resource
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from signaling import Role
from signaling.cli import schemas
from signaling.errors import MessageError
from signaling.livekit.embedded import EmbeddedServer
from signaling.livekit.installation import require
from signaling.messages.base import Command, Event, Message, Namespace, parse_payload
from signaling.messages.envelope import Delivery, parse_frame
from signaling.server.websocket import Timing
from tests.server.hosting import Hosted, command, hosted

FOLDER = Path(__file__).parents[1] / "schemas"
OFFICIAL = Path(__file__).parent / "third_party" / "asyncapi" / "asyncapi-3.0.0.json"

FILES = schemas.files()
DOCUMENTS: dict[str, dict[str, Any]] = {
    name: json.loads(text) if name.endswith(".json") else yaml.safe_load(text) for name, text in FILES.items()
}
SCHEMAS = {name: document for name, document in DOCUMENTS.items() if name.endswith(".json")}
COMMANDS = {schemas.path(namespace, kind): kind for namespace, kind in schemas.commands()}
EVENTS = {schemas.path(namespace, kind): kind for namespace, kind in schemas.events()}
BY_ACTION = {namespace: dict[str, type[Command]]() for namespace in Namespace}
for of_namespace, of_kind in schemas.commands():
    BY_ACTION[of_namespace][schemas.tag(of_kind)] = of_kind


def closed(schema: Any) -> Any:  # noqa: ANN401 - any JSON
    """The same schema, for what this version sends: nothing that is not in it."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {key: value if key == "examples" else closed(value) for key, value in schema.items()}
    return {"additionalProperties": False, **parts} if {"type", "properties"} <= schema.keys() else parts


def registry(documents: Mapping[str, dict[str, Any]]) -> Registry[Any]:
    return Registry().with_resources(
        (name, Resource.from_contents({"$schema": SCHEMAS["client_frame.json"]["$schema"], **document}))
        for name, document in documents.items()
    )


OPEN = registry(DOCUMENTS)
CLOSED = registry({name: closed(schema) for name, schema in SCHEMAS.items()})


def accepts(reference: str, instance: object, documents: Registry[Any] = OPEN) -> bool:
    """Whether the schema that `reference` names has nothing against `instance`."""
    return bool(Draft202012Validator({"$ref": reference}, registry=documents).is_valid(instance))


def objections(reference: str, instance: object) -> list[str]:
    """What the schema has against an instance that we sent."""
    validator = Draft202012Validator({"$ref": reference}, registry=CLOSED)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(instance)]


def parses(namespace: Namespace, payload: object) -> bool:
    try:
        parse_payload(payload, BY_ACTION[namespace])
    except MessageError:
        return False
    return True


def parses_frame(frame: object) -> bool:
    try:
        parsed = parse_frame(json.dumps(frame))
    except MessageError:
        return False
    return parses(parsed.namespace, parsed.payload)


def examples_of(kinds: Mapping[str, type[Message]]) -> list[ParameterSet]:
    return [
        pytest.param(name, kind, example, id=f"{name}-{number}")
        for name, kind in kinds.items()
        for number, example in enumerate(SCHEMAS[name]["examples"])
    ]


# --- The files ---------------------------------------------------------------------------------------------------


def test_the_files_are_those_that_are_generated() -> None:
    assert schemas.generated(FOLDER) == FILES.keys(), "run `make schemas`"


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_as_generated(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == FILES[name], "run `make schemas`"


def test_generating_writes_what_is_missing_and_stale_and_removes_what_is_superfluous(tmp_path: Path) -> None:
    foreign = [tmp_path / "README.md", tmp_path / "third_party" / "licence.json"]
    superfluous = [tmp_path / "old.json", tmp_path / "livekit" / "unmute.command.json"]
    for file in (*foreign, *superfluous, tmp_path / schemas.ASYNCAPI):
        file.parent.mkdir(exist_ok=True)
        file.write_text("{}")
    assert schemas.main([str(tmp_path)]) == 0
    assert not [file for file in superfluous if file.exists()]
    assert [file.read_text() for file in foreign] == ["{}", "{}"]
    written = {file.relative_to(tmp_path).as_posix(): file for file in tmp_path.rglob("*") if file.is_file()}
    assert {name: written[name].read_text(encoding="utf-8") for name in FILES} == FILES
    assert written.keys() - FILES.keys() == {"README.md", "third_party/licence.json"}


def test_generating_needs_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert schemas.main([]) == 2
    assert capsys.readouterr().err == "usage: python -m signaling.cli.schemas DIR\n"


def test_every_message_has_its_file() -> None:
    named = {f"{namespace.value}/{action}.command.json" for namespace in Namespace for action in BY_ACTION[namespace]}
    assert COMMANDS.keys() == named
    assert SCHEMAS.keys() == {*COMMANDS, *EVENTS, schemas.CLIENT_FRAME, schemas.SERVER_FRAME}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_one(name: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[name])
    assert SCHEMAS[name]["$id"] == name
    assert SCHEMAS[name]["title"]
    assert SCHEMAS[name]["description"]
    assert SCHEMAS[name]["examples"]


@pytest.mark.parametrize(("name", "kind"), {**COMMANDS, **EVENTS}.items())
def test_a_message_is_described_by_its_docstring(name: str, kind: type[Message]) -> None:
    assert (SCHEMAS[name]["title"], SCHEMAS[name]["description"]) == (kind.__name__, kind.__doc__)


def test_a_message_without_an_example_or_replies_is_noticed() -> None:
    class Unheard(Command):
        """Nobody has given an example of it."""

    with pytest.raises(LookupError, match="Unheard needs an example"):
        schemas.examples(Unheard)
    assert set(schemas.REPLIES) == set(COMMANDS.values())


def test_a_key_too_many_from_us_would_be_noticed() -> None:
    (example, *_) = SCHEMAS[schemas.SERVER_FRAME]["examples"]
    assert objections(schemas.SERVER_FRAME, example) == []
    assert objections(schemas.SERVER_FRAME, {**example, "x": 1})
    assert objections(schemas.SERVER_FRAME, {**example, "payload": {**example["payload"], "x": 1}})
    assert accepts(schemas.SERVER_FRAME, {**example, "payload": {**example["payload"], "x": 1}})


# --- Examples ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind", "example"), examples_of(COMMANDS))
def test_an_example_of_a_command_is_valid_and_parsed(name: str, kind: type[Command], example: dict[str, Any]) -> None:
    namespace = Namespace(name.partition("/")[0])
    assert objections(name, example) == []
    command = parse_payload(example, BY_ACTION[namespace])
    assert type(command) is kind
    assert command.model_dump(mode="json", exclude_none=True) == example
    assert parses_frame({"namespace": namespace, "payload": example})


@pytest.mark.parametrize(("name", "kind", "example"), examples_of(EVENTS))
def test_an_example_of_an_event_is_valid_and_dumped(name: str, kind: type[Event], example: dict[str, Any]) -> None:
    assert objections(name, example) == []
    delivery = Delivery(kind.model_validate_json(json.dumps(example)), 1_772_357_400.123, 7)
    assert delivery.payload == example
    assert objections(schemas.SERVER_FRAME, json.loads(delivery.text)) == []


@pytest.mark.parametrize("name", [schemas.CLIENT_FRAME, schemas.SERVER_FRAME])
def test_examples_of_frames_are_valid(name: str) -> None:
    for example in SCHEMAS[name]["examples"]:
        assert objections(name, example) == []
        assert name != schemas.CLIENT_FRAME or parses_frame(example)


# --- What is refused ---------------------------------------------------------------------------------------------

NOBODY: list[Any] = [
    "",
    "bob#x",
    "bob carol",
    "bob\n",
    "controller",
    "bob-popout3",
    "-popout0",
    "é",
    "b" * 128,
    "{bob}",
    None,
    7,
    {},
]
SOMEBODY = [
    "bob",
    "b" * 127,
    "sip:49",
    "Controller",
    "controller-popout",
    "popout3",
    "a.b_c@d-e:f",
    "{0B1F9F6E-6a3c-4b8e-9c53-8d5f1f7f2a10}",
    "urn:uuid:0b1f9f6e-6a3c-4b8e-9c53-8d5f1f7f2a10",
    "URN:UUID:0B1F9F6E-6A3C-4B8E-9C53-8D5F1F7F2A10",
    "0b1f9f6e6a3c4b8e9c538d5f1f7f2a10",
]
OF_ANY_TYPE: list[Any] = [None, True, 0, 1.5, "", "bob", [], ["bob"], [7], [None], {}, {"bob": "bob"}]
PEOPLE = [
    ("livekit", "force_mute", "participants"),
    ("livekit", "grant_screen_share_permission", "participants"),
    ("livekit", "revoke_screen_share_permission", "participants"),
    ("livekit", "enable_microphone_restrictions", "unrestricted_participants"),
    ("livekit_moderation", "mute", "participants"),
    ("livekit_moderation", "mute", "everyone_except"),
    ("livekit_moderation", "kick", "participants"),
]
TARGETS = [("control", action, "target") for action in ("lower_hand", "grant_moderator_role", "revoke_moderator_role")]


def fields() -> Iterator[ParameterSet]:
    for name in COMMANDS:
        for field in SCHEMAS[name]["properties"]:
            yield pytest.param(name, field, id=f"{name}-{field}")


def agree(name: str, payload: object) -> bool:
    """Whether both accept; fails unless schema and parser are of one mind."""
    namespace = name.partition("/")[0]
    accepted = parses(Namespace(namespace), payload)
    assert accepts(name, payload) == accepted
    assert accepts(schemas.CLIENT_FRAME, {"namespace": namespace, "payload": payload}) == accepted
    return accepted


@pytest.mark.parametrize(("name", "field"), tuple(fields()))
def test_a_field_of_a_wrong_type_is_refused_by_both(name: str, field: str) -> None:
    example = SCHEMAS[name]["examples"][-1]
    assert not all(agree(name, {**example, field: value}) for value in OF_ANY_TYPE)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_field_that_is_missing_is_refused_by_both(name: str) -> None:
    example = SCHEMAS[name]["examples"][-1]
    for missing in SCHEMAS[name]["properties"]:
        without = {field: value for field, value in example.items() if field != missing}
        # Without an action it is no command at all; both know what is optional, or one of two that are.
        one_of_two = {one for choice in SCHEMAS[name].get("oneOf", ()) for one in choice["required"]}
        is_required = missing in SCHEMAS[name]["required"] or missing in one_of_two & example.keys()
        assert agree(name, without) is not is_required


@pytest.mark.parametrize("name", COMMANDS)
def test_unknown_keys_are_for_both_as_the_namespace_has_it(name: str) -> None:
    example = SCHEMAS[name]["examples"][0]
    assert agree(name, {**example, "unheard_of": [{"x": None}]}) is not name.startswith("livekit_moderation/")


NO_NAMES: list[Any] = ["", "x" * 257, None, 1, True, [], {}]
NAMES = ["controller", "bob-popout3", "bob#x", "sip_+4930 #1", "..", "a\nb", "ä", "x" * 256]
"""A command may name whatever LiveKit takes for an identity."""


@pytest.mark.parametrize(("namespace", "action", "field"), PEOPLE)
def test_each_person_is_checked_by_both(namespace: str, action: str, field: str) -> None:
    name = f"{namespace}/{action}.command.json"
    assert not [one for one in NO_NAMES if agree(name, {"action": action, field: ["bob", one]})]
    assert not [one for one in NAMES if not agree(name, {"action": action, field: ["bob", one]})]


@pytest.mark.parametrize(("namespace", "action", "field"), PEOPLE)
def test_the_number_of_people_is_checked_by_both(namespace: str, action: str, field: str) -> None:
    name = f"{namespace}/{action}.command.json"
    people = [f"p{number}" for number in range(5_001)]
    for named, is_right in ((people[1:], True), (people, False), (["bob", "bob"], True)):
        payload = {"action": action, field: named}
        assert (accepts(name, payload), parses(Namespace(namespace), payload)) == (is_right, is_right)


@pytest.mark.parametrize(("namespace", "action", "field"), TARGETS)
def test_a_target_is_checked_by_both(namespace: str, action: str, field: str) -> None:
    name = f"{namespace}/{action}.command.json"
    assert not [one for one in NOBODY if one is not None and agree(name, {"action": action, field: one})]
    assert not [one for one in SOMEBODY if not agree(name, {"action": action, field: one})]


@pytest.mark.parametrize(
    ("fields", "is_right"),
    [
        ({"display_name": "n"}, True),
        ({"display_name": "n" * 100}, True),
        ({"display_name": " Eve from next door "}, True),
        ({"display_name": "n" * 101}, True),
        ({"display_name": " \t\n"}, True),
        ({"display_name": 7}, False),
        ({"extensions": ["x"] * 32}, True),
        ({"extensions": ["x"] * 33}, False),
    ],
)
def test_joining_is_checked_by_both(fields: dict[str, Any], is_right: bool) -> None:  # noqa: FBT001 - of the table
    assert agree("control/join.command.json", {"action": "join", **fields}) is is_right


@pytest.mark.parametrize("wrong", [True, -1, 2**64, 1.5, "", "t" * 65, [], {}])
def test_a_wrong_transaction_id_is_refused_by_both(wrong: object) -> None:
    frame = {"namespace": "echo", "payload": {"action": "ping"}, "transaction_id": wrong}
    assert not parses_frame(frame)
    assert not accepts(schemas.CLIENT_FRAME, frame)


@pytest.mark.parametrize("right", [0, 2**64 - 1, "t", "ü" * 64])
def test_a_right_transaction_id_is_accepted_by_both(right: object) -> None:
    frame = {"namespace": "echo", "payload": {"action": "ping"}, "transaction_id": right, "unheard_of": 1}
    assert parses_frame(frame)
    assert accepts(schemas.CLIENT_FRAME, frame)


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        {},
        {"namespace": "livekit"},
        {"namespace": "polls", "payload": {"action": "ping"}},
        {"namespace": None, "payload": {"action": "ping"}},
        {"namespace": "livekit", "payload": {"action": "ping"}},
        {"namespace": "livekit_moderation", "payload": {"action": "ping"}},
        {"namespace": "livekit_moderation", "payload": {"action": "preview", "command": {"action": "undo"}}},
        {"namespace": "livekit", "payload": {"action": "force_mute", "participants": []}, "transaction_id": None},
        {"namespace": "echo", "payload": []},
        {"namespace": "echo", "payload": {"message": "pong"}},
    ],
)
def test_a_wrong_frame_is_refused_by_both(wrong: object) -> None:
    assert not parses_frame(wrong)
    assert not accepts(schemas.CLIENT_FRAME, wrong)


IDS = st.sampled_from(SOMEBODY) | st.from_regex(r"[A-Za-z0-9._@:-]{1,130}(-popout[0-9]*)?", fullmatch=True) | st.text()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | IDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def payloads(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A command with some of its fields replaced, or left out."""
    name = draw(st.sampled_from(sorted(COMMANDS)))
    payload = dict(draw(st.sampled_from(SCHEMAS[name]["examples"])))
    for field in draw(st.lists(st.sampled_from(sorted(SCHEMAS[name]["properties"])), unique=True)):
        payload[field] = draw(JSON | st.lists(IDS, max_size=4))
        if draw(st.booleans()):
            del payload[field]
    return name, payload


@settings(deadline=None)
@given(payloads())
def test_what_the_parser_refuses_the_schema_refuses(drawn: tuple[str, dict[str, Any]]) -> None:
    name, payload = drawn
    if accepts(name, payload):
        assert parses(Namespace(name.partition("/")[0]), payload)


@settings(deadline=None)
@given(IDS)
def test_an_id_is_for_both_the_same(text: str) -> None:
    agree("control/lower_hand.command.json", {"action": "lower_hand", "target": text})


@settings(deadline=None)
@given(payloads().map(lambda drawn: drawn[1]), st.sampled_from([*Namespace, "polls"]), JSON)
def test_what_the_parser_refuses_of_frames_the_schema_refuses(
    payload: dict[str, Any], namespace: str, transaction_id: object
) -> None:
    frame = {"namespace": namespace, "payload": payload, "transaction_id": transaction_id}
    is_whole_float = isinstance(transaction_id, float) and transaction_id.is_integer()  # 1.0 is an integer there
    if not is_whole_float and accepts(schemas.CLIENT_FRAME, frame):
        assert parses_frame(frame)


# --- AsyncAPI ----------------------------------------------------------------------------------------------------

ASYNCAPI = DOCUMENTS[schemas.ASYNCAPI]


def references(document: object) -> Iterator[str]:
    if isinstance(document, dict):
        if isinstance(document.get("$ref"), str):
            yield document["$ref"]
        for part in document.values():
            yield from references(part)
    elif isinstance(document, list):
        for part in document:
            yield from references(part)


def test_the_asyncapi_document_is_valid_by_the_official_schema() -> None:
    official = json.loads(OFFICIAL.read_text(encoding="utf-8"))
    Draft7Validator.check_schema(official)
    assert [f"{error.json_path}: {error.message}" for error in Draft7Validator(official).iter_errors(ASYNCAPI)] == []
    without_action = {**ASYNCAPI, "operations": {"ping": {"channel": {"$ref": "#/channels/signaling"}}}}
    assert not Draft7Validator(official).is_valid(without_action)


def test_the_asyncapi_document_is_read_as_it_was_written() -> None:
    assert schemas.asyncapi() == ASYNCAPI


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_reference_leads_somewhere(name: str) -> None:
    resolver = OPEN.resolver(base_uri=name)
    for reference in references(DOCUMENTS[name]):
        assert resolver.lookup(reference).contents


def test_every_message_of_the_asyncapi_document_has_its_schema_and_operation() -> None:
    messages = ASYNCAPI["components"]["messages"]
    payloads = {message["payload"]["properties"]["payload"]["$ref"] for message in messages.values()}
    assert payloads == {f"./{name}" for name in (*COMMANDS, *EVENTS)}
    assert ASYNCAPI["channels"]["signaling"]["messages"].keys() == messages.keys()
    in_channel = {f"#/channels/signaling/messages/{name}" for name in messages}
    operations = ASYNCAPI["operations"].values()
    assert {message["$ref"] for operation in operations for message in operation["messages"]} == in_channel
    for operation in operations:
        named = {message["$ref"] for message in operation.get("reply", {"messages": []})["messages"]}
        assert named <= in_channel
        assert bool(named) == (operation["action"] == "receive")


@pytest.mark.parametrize("name", ASYNCAPI["components"]["messages"])
def test_examples_of_the_asyncapi_document_are_valid(name: str) -> None:
    message = ASYNCAPI["components"]["messages"][name]
    frame = schemas.CLIENT_FRAME if name.endswith(".command") else schemas.SERVER_FRAME
    assert message["examples"]
    for example in message["examples"]:
        assert accepts(f"{schemas.ASYNCAPI}#/components/messages/{name}/payload", example["payload"])
        assert objections(frame, example["payload"]) == []


# --- A real server -----------------------------------------------------------------------------------------------

RESULT = "livekit_moderation.result.event"


class Listener:
    """A connection whose frames are all kept, as they came."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.frames: list[dict[str, Any]] = []
        self._came = asyncio.Condition()
        self._transactions = 0

    async def read(self) -> None:
        """Read until the connection is closed."""
        try:
            while True:
                frame = json.loads(await self.connection.recv())
                async with self._came:
                    self.frames.append(frame)
                    self._came.notify_all()
        except ConnectionClosed:
            pass

    async def send(self, namespace: str, payload: Mapping[str, Any]) -> int:
        """Send a command; its transaction id."""
        self._transactions += 1
        frame = {"namespace": namespace, "payload": payload, "transaction_id": self._transactions}
        assert accepts(schemas.CLIENT_FRAME, frame)
        await self.connection.send(json.dumps(frame))
        return self._transactions

    async def answered(self, number: int, by: str | None = None) -> None:
        """Wait for an event with this transaction id: any, or a certain one."""

        def is_answered() -> bool:
            kinds = self.answers(number)
            return bool(kinds) if by is None else by in kinds

        await self._until(is_answered)

    async def told(self, kind: str) -> None:
        """Wait for an event."""
        await self._until(lambda: kind in map(kind_of, self.frames))

    async def _until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(20), self._came:
            await self._came.wait_for(is_so)

    def answers(self, number: int) -> set[str]:
        """The events so far with this transaction id."""
        return {kind_of(frame) for frame in self.frames if frame.get("transaction_id") == number}


def kind_of(frame: Mapping[str, Any]) -> str:
    return f"{frame['namespace']}.{frame['payload']['message']}.event"


def replies(name: str) -> set[str]:
    """The events that the document promises as answers to a command."""
    listed = ASYNCAPI["operations"][name.replace("/", ".").removesuffix(".json")]["reply"]["messages"]
    return {message["$ref"].rpartition("/")[2] for message in listed}


async def send_all(listener: Listener, *, has_extension: bool) -> set[str]:
    """Send every example of every command, in a useful order; the events that answered them."""
    ordered = sorted(COMMANDS, key=lambda name: ("join" not in name, "raise_hand" not in name))
    sent: list[tuple[str, int]] = []
    for name in ordered:
        namespace = name.partition("/")[0]
        if namespace == "livekit_moderation" and not has_extension:
            continue  # using the namespace is asking for it
        for example in SCHEMAS[name]["examples"]:
            number = await listener.send(namespace, example)
            sent.append((name, number))
            if has_extension and namespace.startswith("livekit"):
                await listener.answered(number, RESULT)
            elif namespace != "livekit" or "force_mute" not in name:  # of a mute only those are told who were muted
                await listener.answered(number)
    for name, number in sent:
        assert listener.answers(number) <= replies(name), name
    return {kind for _, number in sent for kind in listener.answers(number)}


@pytest.fixture
async def host() -> AsyncIterator[Hosted]:
    """A server on a media server."""
    async with (
        EmbeddedServer(path=require(None)) as livekit,
        hosted(livekit, timing=Timing(join_s=60), moderation_rate_burst=200) as running,
    ):
        yield running


async def test_every_frame_of_a_real_server_is_valid(host: Hosted) -> None:
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as reading:

        async def enter(name: str, role: Role) -> Listener:
            connection = await stack.enter_async_context(host.dial(bearer=host.ticket(name, role)))
            listener = Listener(connection)
            reading.create_task(listener.read())
            return listener

        alice = await enter(schemas.ALICE, Role.MODERATOR)
        bob = await enter(schemas.BOB, Role.USER)
        carol = await enter(schemas.CAROL, Role.MODERATOR)
        early = await enter("early", Role.USER)
        listeners = [alice, bob, carol, early]

        for name in COMMANDS:
            if "join" not in name:
                await early.answered(await early.send(name.partition("/")[0], SCHEMAS[name]["examples"][0]))
        for wrong in ("{", "[]", b"{}", command("ping", "polls"), command("ping"), command("ping", "livekit")):
            before = len(early.frames)
            await early.connection.send(json.dumps(wrong) if isinstance(wrong, dict) else wrong)
            await early.answered(await early.send("echo", {"action": "ping"}))
            assert len(early.frames) == before + 2

        # Bob may not moderate; Carol may, without the extension; Alice may, with it.
        of_bob = await send_all(bob, has_extension=True)
        await carol.answered(await carol.send("control", {"action": "join"}))
        of_carol = await send_all(carol, has_extension=False)
        of_alice = await send_all(alice, has_extension=True)
        await alice.connection.close()
        await bob.told("control.left.event")
        for listener in listeners:
            await listener.connection.close()

    for listener in listeners:
        for frame in listener.frames:
            assert objections(schemas.SERVER_FRAME, frame) == [], frame
            assert objections(kind_of(frame).replace(".", "/", 1) + ".json", frame["payload"]) == [], frame
    in_meeting = {"livekit.credentials.event", "livekit.popout_stream_access_token.event", "echo.pong.event"}
    assert of_bob >= in_meeting | {"control.join_success.event", "livekit.error.event", "control.hand_raised.event"}
    assert RESULT not in of_carol
    moderating = {
        "livekit.microphone_restrictions_disabled.event",
        "livekit.microphone_restrictions_enabled.event",
        "livekit.screen_share_permissions_updated.event",
    }
    assert of_carol >= in_meeting | moderating
    assert of_alice >= in_meeting | moderating | {RESULT, "control.update.event"}
    assert {kind_of(frame) for frame in bob.frames} >= {"control.joined.event", "control.role_updated.event"}
