"""What operators copy from docs/deploying is what its own program, or a schema of its format, takes."""

import asyncio
import json
import os
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema
import pytest
import yaml

from signaling.livekit.installation import require
from signaling.settings import ServerSettings
from signaling.testing.redis_server import free_port

FILES = Path(__file__).parents[2] / "docs" / "deploying"
BIN = Path(sys.executable).parent
INTERNAL_PORT = 8701


async def run(*command: str | Path) -> str:
    """What a program says; it must end with 0."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(60):
        said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


def documents(name: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all((FILES / name).read_text()) if document]


@pytest.mark.parametrize("name", ["livekit-moderation.service", "livekit-moderation@.service"])
async def test_systemd_takes_the_units(name: str, tmp_path: Path) -> None:
    unit = (FILES / name).read_text()
    command = "/opt/livekit-moderation/bin/livekit-moderation"
    assert command in unit
    (tmp_path / name).write_text(unit.replace(command, str(BIN / "livekit-moderation")))
    assert await run("systemd-analyze", "verify", "--man=no", tmp_path / name) == ""
    assert "LimitNOFILE=" in unit
    assert "TimeoutStopSec=15\n" in unit, "longer than it takes to end"


def test_the_units_differ_only_in_where_a_node_listens_and_what_it_keeps() -> None:
    one, several = (
        {line for line in (FILES / name).read_text().splitlines() if not line.startswith(("#", "Description="))}
        for name in ("livekit-moderation.service", "livekit-moderation@.service")
    )
    assert one - several == {"StateDirectory=livekit-moderation", "Environment=XDG_STATE_HOME=/var/lib"}
    assert several - one == {"EnvironmentFile=/etc/livekit-moderation/%i.env"}


async def test_the_containerfile_is_one() -> None:
    assert await run(BIN / "hadolint", FILES / "Containerfile") == ""


async def test_the_compose_file_is_one_and_names_settings_that_there_are() -> None:
    schema = json.loads((files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text())
    (compose,) = documents("compose.yaml")
    jsonschema.validate(compose, schema)
    nodes = [service for name, service in compose["services"].items() if name.startswith("moderation-")]
    assert len(nodes) == 2
    for node in nodes:
        assert "ports" not in node, "a node is reached by the proxy only"
        assert {name.lower() for name in node["environment"]} <= ServerSettings.model_fields.keys()
    published = [str(port) for service in compose["services"].values() for port in service.get("ports", [])]
    assert not any(str(INTERNAL_PORT) in port for port in published)


async def test_the_cluster_takes_its_resources_and_the_settings_are_there() -> None:
    await run(BIN / "kubernetes-validate", "--strict", "-k", "1.30", FILES / "kubernetes.yaml")
    resources = documents("kubernetes.yaml")
    (settings,) = (resource["data"] for resource in resources if resource["kind"] == "ConfigMap")
    assert {name.lower() for name in settings} <= ServerSettings.model_fields.keys()
    (deployment,) = (resource for resource in resources if resource["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    pause_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= pause_s + 10
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    (ingress,) = (resource for resource in resources if resource["kind"] == "Ingress")
    (path,) = ingress["spec"]["rules"][0]["http"]["paths"]
    assert (path["path"], path["pathType"]) == ("/signaling", "Exact")


async def test_livekit_starts_with_its_configuration(tmp_path: Path) -> None:
    text = (FILES / "livekit.yaml").read_text()
    port = free_port()
    for old, new in {
        "port: 7880": f"port: {port}\nbind_addresses: [127.0.0.1]",
        "tcp_port: 7881": f"tcp_port: {free_port()}",
        "udp_port: 7882": f"udp_port: {free_port()}",
        "use_external_ip: true": "use_external_ip: false",  # it would ask others what that is
    }.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "livekit.yaml").write_text(text)
    process = await asyncio.create_subprocess_exec(
        *(str(require(None)), "--config", str(tmp_path / "livekit.yaml"), "--node-ip", "127.0.0.1"),
        env=os.environ | {"LIVEKIT_KEYS": f"moderation: {'x' * 32}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(20), aiohttp.ClientSession() as http:
            while True:
                try:
                    async with http.get(f"http://127.0.0.1:{port}/") as answer:
                        assert answer.status == 200
                        break
                except aiohttp.ClientConnectionError:
                    assert process.returncode is None, await process.stdout.read()
                    await asyncio.sleep(0.02)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
