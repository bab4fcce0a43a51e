import os
from collections.abc import Callable
from pathlib import Path

import pytest

from signaling import Kind, Participant, Role
from signaling.cli import main
from signaling.identifiers import BreakoutId, ParticipantId
from signaling.server import Tickets
from signaling.settings import TicketAlgorithm
from tests.server.keys import SECRET, pair

WHO = ["--room", "standup", "--participant", "bob"]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("MODERATION_", "LIVEKIT_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MODERATION_TICKET_KEY", SECRET)


@pytest.fixture
def ticket(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def printed(*arguments: str) -> str:
        assert main(["ticket", *WHO, *arguments]) == 0
        written = capsys.readouterr()
        assert written.err == ""
        return written.out.removesuffix("\n")

    return printed


def test_it_lets_the_participant_in(ticket: Callable[..., str]) -> None:
    verified = Tickets(SECRET, "HS256").verify(ticket())
    assert verified.room == "standup"
    assert verified.participant == Participant(ParticipantId("bob"), display_name="bob", keeps_room=True)


def test_everything_else_may_be_said(ticket: Callable[..., str]) -> None:
    text = ticket("--role", "moderator", "--kind", "user", "--name", "Bob the Builder", "--breakout", "red")
    assert Tickets(SECRET, "HS256").verify(text).participant == Participant(
        ParticipantId("bob"), Role.MODERATOR, Kind.USER, "Bob the Builder", BreakoutId("red")
    )


@pytest.mark.parametrize(("name", "shown"), [("n" * 101, "n" * 100), (" ", "bob")])
def test_no_name_is_refused(ticket: Callable[..., str], name: str, shown: str) -> None:
    assert Tickets(SECRET, "HS256").verify(ticket("--name", name)).participant.display_name == shown


def test_two_tickets_are_two(ticket: Callable[..., str]) -> None:
    tickets = Tickets(SECRET, "HS256")
    assert tickets.verify(ticket()).id != tickets.verify(ticket()).id


@pytest.mark.parametrize("algorithm", ["HS256", "ES256"])
def test_a_url_cannot_sign(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], algorithm: str) -> None:
    monkeypatch.setenv("MODERATION_TICKET_ALGORITHM", algorithm)
    monkeypatch.setenv("MODERATION_TICKET_KEY", "https://auth.example.org/certs")
    assert main(["ticket", *WHO]) == 2
    assert capsys.readouterr() == (
        "",
        "MODERATION_TICKET_KEY: a URL cannot sign; tickets are made with a private key of that key set\n",
    )


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_private_key_signs_and_a_public_key_cannot(
    ticket: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    algorithm: TicketAlgorithm,
) -> None:
    keys = pair(algorithm)
    monkeypatch.setenv("MODERATION_TICKET_ALGORITHM", algorithm)
    monkeypatch.setenv("MODERATION_TICKET_KEY", keys.private)
    Tickets(keys.public, algorithm).verify(ticket())
    monkeypatch.setenv("MODERATION_TICKET_KEY", keys.public)
    assert main(["ticket", *WHO]) == 2
    assert capsys.readouterr().err.startswith("MODERATION_TICKET_KEY: a public key cannot sign")


def test_a_file_may_hold_the_key(ticket: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MODERATION_TICKET_KEY")
    path = tmp_path / "moderation.toml"
    path.write_text(f'moderation_ticket_key = "{SECRET}"\n')
    Tickets(SECRET, "HS256").verify(ticket("--config", str(path)))


def test_without_a_key_there_is_no_ticket(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("MODERATION_TICKET_KEY")
    assert main(["ticket", *WHO]) == 2
    assert capsys.readouterr() == ("", "MODERATION_TICKET_KEY: must be set\n")


def test_guests_are_no_moderators(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ticket", *WHO, "--kind", "guest", "--role", "moderator"]) == 1
    assert "is a moderator" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--room", "standup"], "--participant"),
        (["--participant", "bob"], "--room"),
        (["--room", "a:b", "--participant", "bob"], "argument --room: must be 1 to 127 characters"),
        (["--room", "standup", "--participant", "controller"], "argument --participant: is reserved"),
        ([*WHO, "--breakout", "a#b"], "argument --breakout: must be"),
        ([*WHO, "--role", "admin"], "argument --role: invalid choice"),
        ([*WHO, "--kind", "bot"], "argument --kind: invalid choice"),
    ],
)
def test_wrong_arguments_are_told(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ticket", *arguments])
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err
