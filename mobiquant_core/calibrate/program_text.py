"""Program text that every machine has: the running interpreter's own library. It knows files, no tokens."""

import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

FOLDERS = ("asyncio", "email", "http", "logging", "unittest", "xml")
"""Packages of the library; what measures text unlike the calibration's must keep away from them."""


def program_text() -> Iterator[str]:
    """Source files of the calibration; none where an interpreter comes without its library's sources."""
    library = Path(sysconfig.get_paths()["stdlib"])
    return sources(path for folder in FOLDERS for path in sorted((library / folder).rglob("*.py")))


def sources(paths: Iterable[Path]) -> Iterator[str]:
    """The texts of some source files."""
    for path in paths:
        yield path.read_text(encoding="utf-8", errors="replace")
