"""Public names that are loaded when they are first used, so that a command line or a pytest plugin starts at once."""

from collections.abc import Callable, Collection, Sequence
from importlib import import_module


def names_of(package: str, names: Collection[str], modules: Sequence[str]) -> Callable[[str], object]:
    """
    A package's `__getattr__`, as in PEP 562.

    Args:
        names: Those that it has.
        modules: Of the package, in which they are looked for, in this order: those that load fast come first.
    """

    def load(name: str) -> object:
        if name in names:
            for module in modules:
                found = vars(import_module(f"{package}.{module}"))
                if name in found:
                    return found[name]
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load
