"""Signatures name types as those who import them do."""  # noqa: INP001 - Sphinx loads it

import re
from collections.abc import Mapping
from typing import Final

from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import signaling
import signaling.server
import signaling.testing
import signaling.testing.fake_room_service
import signaling.testing.participants

_PACKAGES: Final = (signaling, signaling.server, signaling.testing)
_PARTS: Final = (signaling.testing.fake_room_service, signaling.testing.participants)
"""Whose other public names are imported from themselves."""
_ENUM: Final = re.compile(r"<google\.protobuf[^>]*>|(google\.protobuf\.internal\.enum_type_wrapper\.)?EnumTypeWrapper")
"""How protobuf's enums write themselves, with an address in memory; their values are numbers."""


def setup(app: Sphinx) -> Mapping[str, bool]:
    """Called by Sphinx."""
    app.connect("missing-reference", _resolve)
    app.connect("autodoc-process-signature", _name_enums)
    return {"parallel_read_safe": True}


def _resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: object) -> object:
    """A class is written in one place, and documented by the name that it is imported by."""
    where, _, name = node.get("reftarget", "").rpartition(".")
    parts = tuple(part for part in _PARTS if where.startswith(part.__name__))
    for package in _PACKAGES + parts:
        if node.get("refdomain") == "py" and name in package.__all__:
            target = f"{package.__name__}.{name}"
            return env.domains.python_domain.resolve_xref(
                env, node["refdoc"], app.builder, "obj", target, node, content
            )
    return None


def _name_enums(
    _app: Sphinx,
    _what: str,
    _name: str,
    _documented: object,
    _options: object,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    return None if signature is None else _ENUM.sub("int", signature), returns
