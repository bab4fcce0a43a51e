"""The way of a command is what the program says that it is."""

import pytest

from tests.way_of_a_command import Way, main, walk


async def test_a_command_goes_from_its_text_through_the_store_and_livekit() -> None:
    way = await walk()
    assert way.files[0] == "messages/envelope.py"
    assert {"session.py", "stores/memory.py", "livekit/room_service.py"} <= set(way.files)
    assert not [file for file in way.files if file.startswith("testing/")]
    assert len(way.files) - 1 <= len(way.moves) <= way.moves.total()
    assert all(begin != end for begin, end in way.between())


def test_nothing_is_noted_outside_of_a_way() -> None:
    way = Way()
    way.begin()
    way.end()
    assert (way.files, way.moves.total()) == ([], 0)


def test_the_program_prints_files_and_moves(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "  1 messages/envelope.py"
    assert any("files, " in line and "moves between them" in line for line in lines)
    assert any(" -> " in line for line in lines)
