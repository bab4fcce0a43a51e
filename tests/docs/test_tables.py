"""What the pages list is what the code has: settings, metrics, errors, codes, public names."""

import inspect
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import prometheus_client
import pytest
from annotated_types import Ge, Gt, Le
from pydantic.fields import FieldInfo
from websockets.frames import CloseCode

import signaling
from signaling import errors, metrics
from signaling.server import controller_api
from signaling.server.handshake import STATUS
from signaling.server.tickets import LEEWAY_S, LIFETIME_S
from signaling.settings import HostPort, ServerSettings, Settings
from tests.docs.pages import REPOSITORY, names, rows, tables

OF_THE_SERVER = "Stand-alone server"
SETTINGS = {
    names(row[0])[0].lower(): row
    for heading in ("LiveKit", "Meetings", OF_THE_SERVER)
    for row in rows("settings.md", heading)
}
BOUNDED = [
    name for name, field in ServerSettings.model_fields.items() if any(isinstance(b, Le) for b in field.metadata)
]


# --- Settings ----------------------------------------------------------------------------------------------------


def test_every_setting_is_listed_once_and_no_other() -> None:
    listed = [name.lower() for row in rows("settings.md") for name in names(row[0]) if name.isupper()]
    assert sorted(listed) == sorted(ServerSettings.model_fields)
    assert sorted(SETTINGS) == sorted(listed)


def test_only_those_of_the_server_are_listed_as_such() -> None:
    listed = {names(row[0])[0].lower() for row in rows("settings.md", OF_THE_SERVER)}
    assert listed == ServerSettings.model_fields.keys() - Settings.model_fields.keys()


def as_text(field: FieldInfo) -> str:
    """A default as the table has it."""
    match field.default:
        case _ if field.is_required():
            return "required"
        case None:
            return "unset"
        case frozenset() as value if not value:
            return "none"
        case bool() as value:
            return f"`{json.dumps(value)}`"
        case int() | float() as value:
            return f"{value:,}"
        case HostPort(host, port):
            return f"`{host}:{port}`"
        case value:
            return f"`{value}`"


@pytest.mark.parametrize("name", ServerSettings.model_fields)
def test_a_setting_has_the_default_that_is_listed(name: str) -> None:
    field = {**ServerSettings.model_fields, **Settings.model_fields}[name]
    assert SETTINGS[name][1] == as_text(field)


def test_serve_has_one_other_default_which_is_told() -> None:
    of_serve = ServerSettings.model_fields
    differing = [name for name, field in Settings.model_fields.items() if field.default != of_serve[name].default]
    assert differing == ["moderation_store_url"]
    default = as_text(of_serve["moderation_store_url"])
    assert SETTINGS["moderation_store_url"][3].endswith(f"of `serve` the default is {default}")


@pytest.mark.parametrize("name", BOUNDED)
def test_a_number_has_the_unit_and_the_bounds_that_are_listed(name: str) -> None:
    bounds = {type(bound): bound for bound in ServerSettings.model_fields[name].metadata}
    most = f"{bounds[Le].le:,}"
    unit = "seconds" if name.endswith("_s") and not name.endswith("_per_s") else "number"
    above_zero = bounds.get(Gt) == Gt(0)
    assert SETTINGS[name][2] == (f"{unit}, to {most}" if above_zero else f"{unit}, {bounds[Ge].ge:,} to {most}")


@pytest.mark.parametrize("name", ServerSettings.model_fields)
def test_a_choice_is_among_those_that_are_listed(name: str) -> None:
    annotation = ServerSettings.model_fields[name].annotation
    literals = [part for part in (annotation, *get_args(annotation)) if get_origin(part) is Literal]
    assert not literals or names(SETTINGS[name][2]) == [choice for part in literals for choice in get_args(part)]


# --- Metrics -----------------------------------------------------------------------------------------------------


def counted() -> Iterator[tuple[str, list[str]]]:
    """The metrics, by the names that Prometheus sees, with their labels."""
    for metric in vars(metrics).values():
        match metric:
            case prometheus_client.Counter():
                yield f"{metric._name}_total", list(metric._labelnames)
            case prometheus_client.Gauge() | prometheus_client.Histogram():
                yield metric._name, list(metric._labelnames)


def test_every_metric_is_listed_with_its_labels_and_no_other() -> None:
    listed = [(names(row[0])[0], names(row[1])) for row in rows("settings.md", "Metrics")]
    assert sorted(listed) == sorted(counted())


# --- Errors ------------------------------------------------------------------------------------------------------


def test_the_exception_tree_is_the_one_in_the_code() -> None:
    tree = {
        name: kind.__base__.__name__
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if kind.__base__ is not None
    }
    assert {names(row[0])[0]: names(row[1])[0] for row in rows("errors.md", "Exceptions")} == tree


def test_the_exceptions_that_can_be_imported_are_told_apart_from_those_that_cannot() -> None:
    public, inner = ({names(row[0])[0] for row in table} for table in tables("errors.md", "Exceptions"))
    assert public == {name for name in signaling.__all__ if hasattr(errors, name)}
    assert not inner & set(signaling.__all__)


def enums(schema: Any, name: str) -> Iterator[str]:  # noqa: ANN401 - any JSON
    """What the properties called `name` may be, wherever they are in a schema."""
    if isinstance(schema, list):
        for part in schema:
            yield from enums(part, name)
    elif isinstance(schema, dict):
        found = schema.get("properties", {}).get(name, {})
        yield from found.get("enum", [found["const"]] if "const" in found else [])
        for part in schema.values():
            yield from enums(part, name)


def schemas() -> Iterator[tuple[str, dict[str, Any]]]:
    """The events' schemas with their namespaces."""
    for file in sorted((REPOSITORY / "schemas").glob("*/*.event.json")):
        yield file.parent.name, json.loads(file.read_text())


def test_every_error_code_of_every_namespace_is_listed_and_no_other() -> None:
    codes: defaultdict[str, set[str]] = defaultdict(set)
    for namespace, schema in schemas():
        codes[namespace] |= set(enums({**schema, "$defs": {}}, "error"))
    listed = {
        namespace: {names(row[0])[0] for row in rows("errors.md", f"Namespace `{namespace}`")} for namespace in codes
    }
    assert listed == codes


def test_every_outcome_is_listed_and_no_other() -> None:
    outcomes, reasons = set(), set()
    for _, schema in schemas():
        outcomes |= set(enums(schema, "outcome"))
        reasons |= set(enums(schema.get("$defs", {}).get("Outcome", {}), "error"))
    listed = list(rows("errors.md", "Outcomes"))
    assert sorted(name for row in listed for name in names(row[0])) == sorted(outcomes)
    failed = next(row for row in listed if names(row[0]) == ["failed"])
    assert set(names(failed[1])) == {"error", *reasons}


def test_refused_webhooks_are_listed_with_their_status() -> None:
    listed = {names(row[1])[0]: int(row[0]) for row in rows("errors.md", "Refused webhooks")}
    reasons = get_args(inspect.signature(errors.WebhookRefused).parameters["reason"].annotation)
    assert listed == {reason: 400 if reason == "unparsable" else 401 for reason in reasons} | {
        "oversized": 413,
        "timeout": 408,
    }


def test_refused_connections_are_listed_with_their_status() -> None:
    listed = {names(row[1])[0]: int(row[0]) for row in rows("errors.md", "Refused connections")}
    assert listed == {code: status.value for code, status in STATUS.items()}


def test_refused_requests_are_listed_with_their_status() -> None:
    listed = {names(row[1])[0]: int(row[0]) for row in rows("errors.md", "Refused requests")}
    assert listed == {code: status.value for code, status in controller_api.STATUS.items()}
    assert set(controller_api.STATUS) == set(get_args(controller_api.ErrorCode))


def test_every_route_of_the_controller_api_is_listed_with_its_answer_and_no_other() -> None:
    listed = [
        (names(row[0])[0], names(row[2])[0] if names(row[2]) else row[2]) for row in rows("server.md", "Controller API")
    ]
    assert listed == [
        (
            f"{route.method} {controller_api.PREFIX}{route.path}",
            "204" if route.answer is None else route.answer.model_fields["message"].default,
        )
        for route in controller_api.ROUTES
    ]


def test_every_close_code_that_the_server_sends_is_listed() -> None:
    listed = {int(row[0]) for row in rows("errors.md", "Close codes")}
    source = "".join(file.read_text() for file in (REPOSITORY / "signaling" / "server").glob("*.py"))
    sent = {CloseCode[name].value for name in re.findall(r"CloseCode\.([A-Z_]+)", source)}
    sent -= {CloseCode.NO_STATUS_RCVD}  # stands for none, and is never sent
    assert sent
    assert sent <= listed


def test_the_claims_of_tickets_have_the_limits_that_are_told() -> None:
    limits = next(row[1] for row in rows("server.md", "Tickets") if names(row[0]) == ["iat", "exp"])
    assert limits == f"at most {LIFETIME_S} s apart; clocks may differ by {LEEWAY_S} s"
