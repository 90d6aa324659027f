"""Writes a file or a folder so that a reader sees the old one or the new one, never a mixture.

Bytes go to a hidden sibling first, are forced to the disk, and then take the name in one step.
It does not know what the bytes mean.
"""

import contextlib
import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mobiquant_core.errors import CheckpointError

_CURRENT_FOLDER = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def explain_disk_errors(target: Path) -> Iterator[None]:
    """Turn an OSError (disk full, read-only folder) into one line that names the target."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(
            f"{target} could not be written: {reason}. What was there before is untouched. "
            "Free some space or choose another place, then save again."
        ) from error


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and force its bytes to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_path(path: Path) -> None:
    """Force a file's bytes, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step; CheckpointError where the disk refuses."""
    path = Path(path)
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:80]}.", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        try:
            write_synced(temporary, data)
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_path(path.parent)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary sibling folder that becomes `target` when the block ends without an error.

    Where the system can swap two names in one call there is no instant without a target.
    """
    target = Path(target)
    with explain_disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        recover_folder(target)
        temporary = Path(tempfile.mkdtemp(prefix=_prefix(target, "new"), dir=target.parent))
        try:
            yield temporary
            temporary.chmod(0o755)
            for file in temporary.iterdir():
                sync_path(file)
            sync_path(temporary)
            _exchange(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_path(target.parent)


def recover_folder(target: Path) -> None:
    """Clear what savers that died left beside `target`; put an earlier folder back if its exchange was cut short."""
    target = Path(target)
    for earlier in _left_behind(target, "old"):
        if target.exists():
            shutil.rmtree(earlier, ignore_errors=True)
        else:
            earlier.replace(target)
    for half_made in _left_behind(target, "new"):
        shutil.rmtree(half_made, ignore_errors=True)


def _left_behind(target: Path, role: str) -> list[Path]:
    """Folders of savers that no longer run; another saver may be at work beside us."""
    stem = f".{target.name[:80]}.{role}-"
    found = [path for path in target.parent.iterdir() if path.name.startswith(stem)] if target.parent.is_dir() else []
    return sorted(path for path in found if not _is_running(path.name.removeprefix(stem).split("-")[0]))


def _is_running(process_id: str) -> bool:
    if not process_id.isdigit():
        return False
    try:
        os.kill(int(process_id), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _prefix(target: Path, role: str) -> str:
    return f".{target.name[:80]}.{role}-{os.getpid()}-"


def _exchange(temporary: Path, target: Path) -> None:
    """Give `temporary` the target's name and drop what had it."""
    if not target.exists():
        temporary.replace(target)
    elif _swap(temporary, target):
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        aside = Path(tempfile.mkdtemp(prefix=_prefix(target, "old"), dir=target.parent))
        target.replace(aside)
        try:
            temporary.replace(target)
        except BaseException:
            aside.replace(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def _swap(first: Path, second: Path) -> bool:
    """Swap two names in one system call; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(first.absolute()), os.fsencode(second.absolute())
    return renameat2(_CURRENT_FOLDER, names[0], _CURRENT_FOLDER, names[1], _RENAME_EXCHANGE) == 0
