"""Files and folders of results: files are written atomically, and folders with other content are refused."""

import csv
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Write a new file beside `path` by `write`, then rename it: readers see the old file or the new one, complete."""
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
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
        ValueError: it is a file, cannot be written to, or belongs to something else.
    """
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
