"""What reaches the port of the WebSocket and is no handshake, over bare sockets: nothing of it is repeated."""

import asyncio
from urllib.parse import urlsplit

import pytest

from signaling.server.logs import configure_logging
from tests.meeting_on_fake import until
from tests.server.hosting import Hosted, logged

LIMIT_S = 20
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def head(ticket: str, **changed: str) -> str:
    headers = {
        "Host": "127.0.0.1",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Protocol": f"opentalk-signaling-json-v1.0, ticket#{ticket}",
        **{name.replace("_", "-"): value for name, value in changed.items()},
    }
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value)


def malformed(ticket: str) -> dict[str, str]:
    line, good = "GET /signaling HTTP/1.1\r\n", head(ticket)
    return {
        "a NUL byte in a header": f"{line}{good}X-Other: {ticket}\0\r\n\r\n",
        "a space before a colon": f"{line}{good}Sec-WebSocket-Protocol : ticket#{ticket}\r\n\r\n",
        "a header without a colon": f"{line}{good}{ticket}\r\n\r\n",
        "a header that is continued": f"{line}{good}X-Other: a\r\n {ticket}\r\n\r\n",
        "a huge header": f"{line}{good}X-Other: {ticket * 100}\r\n\r\n",
        "a thousand headers": f"{line}{good}{f'X-Other: {ticket}{chr(13)}{chr(10)}' * 1000}\r\n",
        "a huge target": f"GET /signaling?{ticket * 100} HTTP/1.1\r\n{good}\r\n",
        "a target that is none": f"GET //[{ticket} HTTP/1.1\r\n{good}\r\n",
        "a method that is none": f"{ticket} /signaling HTTP/1.1\r\n{good}\r\n",
        "another method": f"POST /signaling HTTP/1.1\r\n{good}\r\n",
        "HTTP/0.9": f"GET /signaling?{ticket}\r\n\r\n",
        "another protocol": f"GET /signaling {ticket}\r\n{good}\r\n",
        "HTTP/1.0": f"GET /signaling HTTP/1.0\r\n{good}\r\n",
        "a body": f"{line}{good}Content-Length: 5\r\n\r\nhello",
        "a length that is none": f"{line}{good}Content-Length: {ticket}\r\n\r\n",
        "chunks": f"{line}{good}Transfer-Encoding: chunked\r\n\r\n{ticket}\r\n",
        "no upgrade": f"{line}{head(ticket, Upgrade='')}\r\n",
        "another upgrade": f"{line}{head(ticket, Upgrade=ticket)}\r\n",
        "an upgrade that is none": f"{line}{head(ticket, Upgrade=f'({ticket}')}\r\n",
        "another connection": f"{line}{head(ticket, Connection=ticket)}\r\n",
        "a connection that is none": f"{line}{head(ticket, Connection=f'({ticket}')}\r\n",
        "another key": f"{line}{head(ticket, Sec_WebSocket_Key=ticket)}\r\n",
        "no key": f"{line}{head(ticket, Sec_WebSocket_Key='')}\r\n",
        "two keys": f"{line}{good}Sec-WebSocket-Key: {ticket}\r\n\r\n",
        "another version": f"{line}{head(ticket, Sec_WebSocket_Version=ticket)}\r\n",
        "two versions": f"{line}{good}Sec-WebSocket-Version: {ticket}\r\n\r\n",
        "extensions that are none": f"{line}{good}Sec-WebSocket-Extensions: ({ticket}\r\n\r\n",
        "protocols that are none": f"{line}{head(ticket, Sec_WebSocket_Protocol=f'({ticket}')}\r\n",
        "two origins": f"{line}{good}Origin: {ticket}\r\nOrigin: null\r\n\r\n",
        "letters of nobody": f"{line}{good}X-Other: \xff{ticket}\r\n\r\n",
        "a path with letters of nobody": f"GET /signaling\xff{ticket} HTTP/1.1\r\n{good}\r\n",
        "TLS": f"\x16\x03\x01\x02\x00\x01\x00\x01\xfc{ticket}\r\n\r\n",
        "garbage": f"{ticket}\r\n" * 10,
        "garbage behind a good one": f"{line}{good}\r\n{ticket * 100}",
    }


async def answer(host: Hosted, sent: bytes) -> bytes:
    """What comes back at first, if anything."""
    address = urlsplit(host.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        async with asyncio.timeout(LIMIT_S):
            writer.write(sent)
            return await reader.read(65_536)
    except ConnectionResetError:
        return b""
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("kind", malformed("ticket"))
async def test_a_malformed_handshake_is_at_most_one_line_and_nothing_of_it_is_repeated(
    door: Hosted, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    writer = configure_logging("json", "debug")
    ticket = door.ticket()
    answered = (await answer(door, malformed(ticket)[kind].encode("latin-1"))).decode("latin-1")
    await until(lambda: not door.server._websocket._open)
    writer.flush()
    said = capsys.readouterr().err
    assert ticket not in answered + said
    assert ticket[-20:] not in answered + said  # nor the end of it
    assert len(logged(said)) <= 1
    assert "Traceback" not in said


async def test_a_request_that_is_no_websocket_is_told_so_with_what_it_may_be(door: Hosted) -> None:
    answers = malformed(door.ticket())
    no_upgrade = (await answer(door, answers["no upgrade"].encode())).decode()
    assert no_upgrade.startswith("HTTP/1.1 426 Upgrade Required")
    assert "Upgrade: websocket" in no_upgrade
    assert no_upgrade.endswith("\r\n\r\nNo WebSocket was opened: 426 Upgrade Required.\n")
    another_method = (await answer(door, answers["another method"].encode())).decode()
    assert another_method.startswith("HTTP/1.1 405 ")
    assert "Allow: GET" in another_method
