"""Lists of faults that could be made, and whether the tests notice each: in memory, each in a process of its own."""

import importlib
import importlib.abc
import importlib.machinery
import inspect
import os
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final, Self

ROOT: Final = Path(__file__).parents[2]
LISTS: Final = Path(__file__).parent / "lists"
_LIMIT_S: Final = 120
_NOT_USED: Final = 99
"""The exit status when the tests never imported what is mutated."""
_THIRD_PARTIES: Final = (
    *("aiohttp", "hypothesis", "jiter", "jwt", "livekit.api", "prometheus_client", "pydantic", "pydantic_settings"),
    *("pytest", "pytest_asyncio", "structlog.testing", "tenacity", "websockets.asyncio.client"),
)


class Stale(Exception):
    """A mutation of what is not there, or is there twice."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """
    One fault that could be made.

    Attributes:
        where: Its list and line.
        file: What is changed, below the root.
        tests: Files, or tests in them, that are to notice; the likeliest first.
        explanation: Why no test needs to notice; empty if one must.
    """

    where: str
    file: str
    tests: tuple[str, ...]
    old: str
    new: str
    explanation: str = ""

    def __str__(self) -> str:
        return f"{self.where} {self.file}: {self.old!r} → {self.new!r}"

    def source(self, root: Path = ROOT) -> str:
        """
        The file with the fault in it.

        Raises:
            Stale: The text that is replaced is not there exactly once.
        """
        text = (root / self.file).read_text(encoding="utf-8")
        if (times := text.count(self.old)) != 1:
            raise Stale(f"{self}: is there {times} times")
        return text.replace(self.old, self.new)


class Verdict(StrEnum):
    """What the tests said."""

    KILLED = "killed"
    SURVIVED = "survived"
    BROKEN = "broken"  # it cannot be imported, or the tests do not import it: nothing is proved


def read(path: Path) -> Iterator[Mutant]:
    """
    The mutations of a list.

    A line `@ FILE: TESTS` says for what follows. A mutation is a block: `- ` and what is there, `+ ` and what is to be
    there instead (several lines each, with the indentation after the mark), `? ` and why no test needs to notice.
    Lines that begin with `#` say something to readers.
    """
    file, tests = "", tuple[str, ...]()
    for block in re.finditer(r"(?:^[^\n]+\n?)+", path.read_text(encoding="utf-8"), re.MULTILINE):
        lines = [line for line in block[0].splitlines() if not line.startswith("#")]
        if not lines:
            continue
        if lines[0].startswith("@ "):
            file, _, named = lines[0].removeprefix("@ ").partition(": ")
            tests = tuple(named.split())
            continue
        number = path.read_text(encoding="utf-8").count("\n", 0, block.start()) + 1
        parts = {mark: "\n".join(line[2:] for line in lines if line[0] == mark) for mark in "-+?"}
        if not parts["-"] or any(line[0] not in parts or line[1:2] not in {" ", ""} for line in lines):
            raise ValueError(f"{path.name}:{number} is no mutation")
        yield Mutant(f"{path.name}:{number}", file, tests, parts["-"], parts["+"], parts["?"].replace("\n", " "))


def read_all(folder: Path = LISTS) -> list[Mutant]:
    """The mutations of all lists."""
    return [mutant for path in sorted(folder.glob("*.txt")) for mutant in read(path)]


def run(mutants: Iterable[Mutant]) -> Iterator[tuple[Mutant, Verdict, str]]:
    """
    Let the tests look at each mutant; those first that need a fresh import.

    They must pass without a fault first: else they would notice anything.

    Raises:
        Stale: A mutation is out of date.
        AssertionError: The tests of some of them fail as it is; the message is what they wrote.
    """
    faults = [(mutant, Fault.of(mutant)) for mutant in mutants]
    faults.sort(key=lambda each: each[1].functions is not None)
    _import(_THIRD_PARTIES)
    passed = set[tuple[str, ...]]()
    for mutant, fault in faults:
        if fault.functions is not None:
            _import(["_hypothesis_pytestplugin", "signaling.testing.plugin", fault.module])
            _import(test.partition(".py")[0].replace("/", ".") for test in mutant.tests)
        if mutant.tests not in passed:
            status, wrote = _in_child(mutant.tests, None)
            assert status == 0, wrote
            passed.add(mutant.tests)
        status, wrote = _in_child(mutant.tests, fault)
        verdict = {0: Verdict.SURVIVED, 1: Verdict.KILLED, -signal.SIGALRM: Verdict.KILLED}.get(status, Verdict.BROKEN)
        yield mutant, verdict, wrote


def _import(names: Iterable[str]) -> None:
    """Import what is not imported anew for each mutant."""
    for name in names:
        importlib.import_module(name)


@dataclass(frozen=True, slots=True)
class Fault:
    """
    A mutant, compiled.

    Attributes:
        functions: The code of what is different, by where it is in the module; `None` if it is not functions alone.
    """

    module: str
    path: Path
    source: str
    functions: dict[tuple[str, ...], CodeType] | None

    @classmethod
    def of(cls, mutant: Mutant) -> Self:
        """
        The fault of this mutant.

        Raises:
            Stale: It is out of date.
        """
        path = ROOT / mutant.file
        source = mutant.source()
        is_right, is_wrong = (compile(text, str(path), "exec") for text in (path.read_text(encoding="utf-8"), source))
        module = mutant.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        try:
            functions = dict(_differing(is_right, is_wrong))
        except _NotFunctionsAlone:
            return cls(module, path, source, None)
        return cls(module, path, source, functions)

    def make(self) -> None:
        """Make the fault in this process."""
        if self.functions is None:
            sys.meta_path.insert(0, _Mutating(self))
            return
        for place, code in self.functions.items():
            found: Any = sys.modules[self.module]
            for name in place:
                found = vars(found)[name]
            found = getattr(found, "fget", getattr(found, "__func__", found))
            inspect.unwrap(found).__code__ = code


class _NotFunctionsAlone(Exception):
    """A module, or a class in it, does something else than before when it is imported."""


def _differing(right: CodeType, wrong: CodeType) -> Iterator[tuple[tuple[str, ...], CodeType]]:
    """The functions of a module or a class that are different."""
    if _without_code(right) != _without_code(wrong):
        raise _NotFunctionsAlone
    for before, after in zip(_code_in(right), _code_in(wrong), strict=True):
        if not before.co_flags & inspect.CO_OPTIMIZED:
            for place, code in _differing(before, after):
                yield (after.co_name, *place), code
        elif not _is_alike(before, after):
            if "<" in after.co_name or before.co_freevars != after.co_freevars:
                raise _NotFunctionsAlone
            yield (after.co_name,), after


def _is_alike(right: CodeType, wrong: CodeType) -> bool:
    return _without_code(right) == _without_code(wrong) and all(map(_is_alike, _code_in(right), _code_in(wrong)))


def _without_code(code: CodeType) -> tuple[object, ...]:
    constants = [
        (type(each), each if not isinstance(each, CodeType) else (each.co_name, each.co_flags))
        for each in code.co_consts
    ]
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, constants


def _code_in(code: CodeType) -> list[CodeType]:
    return [each for each in code.co_consts if isinstance(each, CodeType)]


def _in_child(tests: Sequence[str], fault: Fault | None) -> tuple[int, str]:
    """The exit status of the tests, or minus the signal that ended them, and what they wrote."""
    with tempfile.TemporaryFile() as written:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            status = 3
            try:
                for number in (1, 2):
                    os.dup2(written.fileno(), number)
                signal.alarm(_LIMIT_S)
                status = _test(tests, fault)
            except BaseException:  # noqa: BLE001 - told, and the child ends
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, waited = os.waitpid(pid, 0)
        written.seek(0)
        return os.waitstatus_to_exitcode(waited), written.read().decode(errors="replace")


def _test(tests: Sequence[str], fault: Fault | None) -> int:
    import pytest  # noqa: PLC0415 - was imported before the fork
    from hypothesis import Phase, settings  # noqa: PLC0415

    settings.register_profile(
        "mutants", phases=[Phase.explicit, Phase.generate], database=None, derandomize=True, print_blob=False
    )
    settings.load_profile("mutants")
    os.chdir(ROOT)
    if fault is not None:
        fault.make()
    # Plain assertions: pytest would otherwise import our modules in its own way, since one of them is a plugin of it.
    status = int(
        pytest.main(["-x", "-q", "--no-header", "--tb=short", "--assert=plain", "-p", "no:cacheprovider", *tests])
    )
    return _NOT_USED if fault is not None and fault.module not in sys.modules else status


class _Mutating(importlib.abc.MetaPathFinder):
    """Finds one module with a fault in it."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._fault.module:
            return None
        return ModuleSpec(fullname, _Faulty(fullname, str(self._fault.path), self._fault.source.encode()))


class _Faulty(importlib.machinery.SourceFileLoader):
    """Loads this source instead of what is in the file, and leaves no trace of it."""

    def __init__(self, fullname: str, path: str, source: bytes) -> None:
        super().__init__(fullname, path)
        self._source = source

    def get_data(self, path: str) -> bytes:
        if path != self.path:
            raise OSError("nothing is cached")
        return self._source

    def path_stats(self, _path: str) -> dict[str, float]:
        raise OSError("nothing is cached")
