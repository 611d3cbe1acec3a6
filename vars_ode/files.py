"""Files and folders of results: files are written atomically, and folders with other content are refused."""

import csv
import errno
import hashlib
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_OLD = 24 * 3600.0  # seconds after which a temporary file is nobody's, wherever it was written
_SHOWN = 40  # letters of a long name that a message shows


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Write a new file beside `path` by `write`, then rename it: readers see the old file or the new one, complete.

    What an earlier write of this file left when it was killed is removed.

    Raises:
        ValueError: the file system has no names as long as that of `path`.
    """
    target = Path(os.path.realpath(path))
    check_name(target)
    _remove_stale(target)
    temporary = target.with_name(f".{_stem(target)}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # what the umask makes of a new file; safetensors writes for the owner alone
        write(temporary)
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(target.parent)


def check_name(path: Path) -> None:
    """A ValueError for a name, or a path, that is longer than the system's."""
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            longest = max(path.parts, key=lambda part: len(os.fsencode(part)))
            raise ValueError(
                f"{longest[:_SHOWN]!r}... is a name of {len(os.fsencode(longest))} bytes in a path of "
                f"{len(os.fsencode(path))}, longer than this file system has them (255, mostly): choose a shorter one"
            ) from None


def _stem(target: Path) -> str:
    """Of temporary files for `target`; short, as they need a name that is longer than its own."""
    return f"{target.name[:24]}.{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:8]}"


def _host() -> str:
    """A short name of this machine: process ids are its own."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


def _remove_stale(target: Path) -> None:
    """Remove temporary files for `target` whose writer was killed; those of other processes at work stay."""
    known = re.compile(rf"\.{re.escape(_stem(target))}\.(?P<host>\w+)-(?P<pid>\d+)-\w+\.tmp")
    former = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.tmp")  # without the process that wrote it
    for entry in os.scandir(target.parent) if target.parent.is_dir() else ():
        match = known.fullmatch(entry.name)
        if match is None and former.fullmatch(entry.name) is None:
            continue
        try:
            ended = match is not None and match["host"] == _host() and not _is_running(int(match["pid"]))
            if ended or time.time() - entry.stat().st_mtime > _OLD:
                os.unlink(entry.path)
        except OSError:  # gone meanwhile, or somebody else's
            continue


def _is_running(pid: int) -> bool:
    """Whether there may be such a process; only POSIX lets one ask without ending it."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def fsync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, after a rename; where the system lets a folder be opened."""
    if os.name == "posix":
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write JSON atomically."""
    text = json.dumps(content, indent=1)
    write_atomically(path, lambda target: target.write_text(text, encoding="utf-8"))


def write_csv(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, atomically. The columns are those of any row; without rows the file is empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))

    def write(target: Path) -> None:
        with target.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)


def claim_folder(folder: Path, marker: str, what: str) -> bool:
    """Make a folder for results. Returns whether it exists with earlier results, that is with the file `marker`.

    Args:
        folder: the path.
        marker: name of a file in every such folder.
        what: its content for the error message, such as "study".

    Raises:
        ValueError: it is a file, cannot be written to, has too long a name, or belongs to something else.
    """
    try:
        check_name(folder / marker)
    except ValueError as error:
        raise ValueError(f"cannot write the results: {error}, with --out") from None
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder with --out")
    try:
        if (folder / marker).is_file():
            return True
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty and holds no {what}; name a new folder with --out")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror}); name another folder with --out") from error
    return False
