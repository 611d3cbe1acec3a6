"""Checkpoints of a training: written whole or not at all, checked when read, the last two kept."""

import json
import logging
import os
import re
import shutil
import time
from hashlib import blake2b
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from vars_ode.checkpoints.folder import as_safetensors, save_file
from vars_ode.files import fsync_folder, write_json

KEPT = 2
MANIFEST = "manifest.json"
POSITION = "position.json"
EMA = "ema.safetensors"
logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one training, in folders named by the number of updates that are done.

    A checkpoint is written into a folder of another name, with a manifest of sizes and checksums as its last file, and
    renamed when it is on the disk: a kill leaves the ones before.

    Args:
        folder: where they are; made at the first save.
        every_updates: updates from one to the next, beside the one at each epoch's end.
        every_minutes: minutes likewise.
        accelerator: Hugging Face's, which knows model, optimizer, scaler and processes.
    """

    def __init__(
        self, folder: Path, accelerator: Any, every_updates: int | None = None, every_minutes: float | None = None
    ) -> None:
        self.folder, self._accelerator = folder, accelerator
        self._every_updates, self._every_minutes = every_updates, every_minutes
        self._last = time.monotonic()

    def due(self, update: int) -> bool:
        """Whether one is to be written after so many updates, by count or by the clock of this process."""
        by_count = self._every_updates is not None and update % self._every_updates == 0
        minutes = (time.monotonic() - self._last) / 60
        return by_count or (self._every_minutes is not None and minutes >= self._every_minutes)

    def save(self, update: int, position: dict[str, Any], ema: nn.Module | None) -> None:
        """Write the state after so many updates; all processes call it.

        Raises:
            OSError: it cannot be written; what was there before is as it was.
        """
        final = self.folder / f"{update:08d}"
        partial = self.folder / f"{final.name}.partial"
        try:
            self._write(partial, position, ema)
            if self._accelerator.is_main_process:
                shutil.rmtree(final, ignore_errors=True)  # of a run that did not trust it and came by again
                os.replace(partial, final)
                fsync_folder(self.folder)
                self._prune()
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # torch's and safetensors' own kinds
            shutil.rmtree(partial, ignore_errors=True)
            kept = ", ".join(path.name for path in self.found()) or "none"
            raise OSError(
                f"the checkpoint after update {update} cannot be written to {self.folder} ({error}); earlier ones are "
                f"kept ({kept}): make room, and the same command goes on"
            ) from error
        self._accelerator.wait_for_everyone()
        self._last = time.monotonic()

    def _write(self, partial: Path, position: dict[str, Any], ema: nn.Module | None) -> None:
        main = self._accelerator.is_main_process
        if main:
            for leftover in self.folder.glob("*.partial"):
                shutil.rmtree(leftover)
            partial.mkdir(parents=True)
        self._accelerator.wait_for_everyone()
        self._accelerator.save_state(str(partial))
        self._accelerator.wait_for_everyone()
        if not main:
            return
        if ema is not None:
            save_file(as_safetensors(ema.state_dict()), partial / EMA)
        write_json(partial / POSITION, position)
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        for path in files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        write_json(partial / MANIFEST, {str(path.relative_to(partial)): _fingerprint(path) for path in files})

    def found(self) -> list[Path]:
        """The folders of checkpoints, the newest first."""
        folders = [path for path in self.folder.glob("*") if re.fullmatch(r"\d{8,}", path.name)]
        return sorted(folders, reverse=True)

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole; damaged ones are passed over with a warning."""
        for path in self.found():
            damage = damage_of(path)
            if damage is None:
                return path
            logger.warning("the checkpoint %s is passed over: %s", path, damage)
        return None

    def load(self, path: Path, ema: nn.Module | None) -> dict[str, Any]:
        """Put a checkpoint's state into model, optimizer, scaler and `ema`; its position."""
        self._accelerator.load_state(str(path))
        if ema is not None:
            ema.load_state_dict(safetensors.torch.load_file(path / EMA))
        position: dict[str, Any] = json.loads((path / POSITION).read_text(encoding="utf-8"))
        return position

    def _prune(self) -> None:
        for path in self.found()[KEPT:]:
            shutil.rmtree(path)


def damage_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None if its files are those that were written."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        for name, fingerprint in manifest.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != fingerprint["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {fingerprint['bytes']}"
            if _fingerprint(path) != fingerprint:
                return f"{name} is not as it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "blake2b": digest.hexdigest()}
