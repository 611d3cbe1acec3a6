"""A training from settings to a folder with a saved model: what `vars-ode train` does."""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from solvers.checks import one_of
from vars_ode.building import ModelSpec
from vars_ode.data import Preprocessing
from vars_ode.environment import environment
from vars_ode.files import claim_folder, write_atomically, write_csv, write_json
from vars_ode.models import set_solver, training_settings
from vars_ode.saving import load_checkpoint, save_pretrained
from vars_ode.training.accelerating import accelerator_for, forget
from vars_ode.training.checkpoints import Checkpoints
from vars_ode.training.config import TrainingConfig, every, resolved
from vars_ode.training.loop import Epoch, Training, Update
from vars_ode.training.sources import Sources, open_sources, prepare
from vars_ode.training.validation import Validation

SETTINGS, LOG, SOLVES, SUMMARY = "training.yaml", "log.csv", "solves.csv", "summary.json"
CHECKPOINTS, BEST, AVERAGE = "checkpoints", "best", "ema"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """What a training ended with.

    Attributes:
        folder: with model.safetensors of the last epoch, best/ and ema/.
        history: a record per epoch.
        test: accuracy on the test images, by "last", "best" and "ema".
    """

    folder: Path
    history: list[Epoch]
    test: dict[str, float]


def train(given: Mapping[str, Any], out: Path, command: str = "", received: list[int] | None = None) -> Trained:
    """Train a model as told and save it, or go on with a training that was interrupted.

    Args:
        given: settings of `TrainingConfig` and `Recipe` by name.
        out: the folder: new, or of the same training.
        command: how to repeat it, for the record.
        received: filled with the number of a signal that asked it to stop.

    Raises:
        ValueError: settings, data or a folder that cannot be used; the message says which.
        DivergedError, StoppedError, UnreadablePicture: as `Training` raises them.
    """
    first = TrainingConfig.from_dict({key: value for key, value in given.items() if key != "lr"})
    device = first.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no GPU for device='cuda'; leave it out, or give cpu")
    sources = open_sources(first)
    config = resolved(given, len(sources.train), _processes(device) * first.recipe.grad_accum_steps)
    _check_trackers(config.log_with)
    accelerator = accelerator_for(config.recipe, device, list(config.log_with) or None, out)
    try:
        if accelerator.is_main_process:
            _open(out, config)
        accelerator.wait_for_everyone()
        torch.manual_seed(config.seed)
        model = build(config, sources)
        model.to(accelerator.device)
        return _Run(config, out, model, sources, accelerator, command, _Signals(received)).run()
    finally:
        forget(accelerator)


class _Run:
    """A training in its folder."""

    def __init__(
        self,
        config: TrainingConfig,
        out: Path,
        model: nn.Module,
        sources: Sources,
        accelerator: Any,
        command: str,
        stop: _Signals,
    ) -> None:
        self.config, self.out, self.model, self.accelerator = config, out, model, accelerator
        self.command = command
        self.preprocessing = Preprocessing.of(model)
        self.data = prepare(sources, config, self.preprocessing)
        updates, minutes = every(config.checkpoint_every)
        self.stop = stop
        self.bar: Any = None
        self.training = Training(
            model,
            self.data.train,
            config.recipe,
            seed=config.seed,
            augment=self.data.augment,
            progress=self._progress if accelerator.is_main_process else None,
            on_epoch=self._on_epoch,
            validation=self._measure(self.data.validation),
            workers=config.workers,
            skip_unreadable=config.skip_unreadable,
            accelerator=accelerator,
            checkpoints=Checkpoints(out / CHECKPOINTS, accelerator, updates, minutes),
            asked_to_stop=self.stop.asked,
        )

    def run(self) -> Trained:
        if self.config.log_with:
            self.accelerator.init_trackers("vars-ode", config=_scalars(self.config.as_dict()))
        with self.stop.listening():
            try:
                history = self.training.run()
            finally:
                if self.bar is not None:
                    self.bar.close()
                if self.config.log_with:
                    self.accelerator.end_training()
        test = self._finish(history)
        return Trained(self.out, history, test)

    def _measure(self, data: Dataset[Any] | None) -> Validation | None:
        config = self.config
        batch_size, workers, skip = config.validation_batch_size, config.workers, config.skip_unreadable
        return None if data is None else Validation(data, batch_size, workers, skip)

    def _progress(self, update: Update) -> None:
        if self.bar is None:
            done, total = (update.number - 1) * update.images, update.total * update.images
            self.bar = tqdm(total=total, initial=done, unit=" images", unit_scale=True, desc="training", disable=None)
        self.bar.update(update.images)
        self.bar.set_postfix(loss=f"{update.loss:.3f}", refresh=False)

    def _on_epoch(self, record: Epoch) -> None:
        if self.config.log_with:
            self.accelerator.log({k: v for k, v in record.items() if k != "epoch"}, step=record["epoch"])
        if not self.accelerator.is_main_process:
            return
        logger.info("%s", self._sentence(record))
        write_csv(self.out / LOG, self.training.history)
        write_csv(self.out / SOLVES, self.training.solves)
        if self.data.validation is not None and _score(record) >= max(map(_score, self.training.history)):
            save_pretrained(self._best_of(record), self.out / BEST)

    def _sentence(self, record: Epoch) -> str:
        parts = [f"epoch {record['epoch'] + 1} of {self.config.recipe.epochs}: loss {record['loss']:.4f}"]
        names = {"validation_accuracy": "held-out images", "ema_validation_accuracy": "by the averaged weights"}
        values: Mapping[str, Any] = record
        parts += [f"{text} {100 * values[name]:.1f} %" for name, text in names.items() if name in values]
        return ", ".join([*parts, f"{record['images_per_second']:.0f} images/s"])

    def _best_of(self, record: Epoch) -> nn.Module:
        """The weights that the score is of."""
        ema = self.training.ema
        better = ema is not None and record["ema_validation_accuracy"] >= record["validation_accuracy"]
        return ema.module if ema is not None and better else self.model

    def _finish(self, history: list[Epoch]) -> dict[str, float]:
        """Save what was trained, and measure it on the test images once."""
        models: dict[str, nn.Module] = {"last": self.model}
        main = self.accelerator.is_main_process
        if main:
            save_pretrained(self.model, self.out)
        if self.training.ema is not None:
            models["ema"] = self.training.ema.module
            if main:
                save_pretrained(models["ema"], self.out / AVERAGE)
        self.accelerator.wait_for_everyone()
        if self.data.validation is not None:
            best, _ = load_checkpoint(self.out / BEST)
            models["best"] = best.to(self.accelerator.device)
        test = {}
        measure = self._measure(self.data.test)
        if measure is not None:
            test = {name: measure.accuracy(model, self.accelerator) for name, model in models.items()}
        if main:
            summary = {"test": test, "epochs": history, "command": self.command, "versions": environment()}
            write_json(self.out / SUMMARY, summary)
        self.accelerator.wait_for_everyone()
        return test


def build(config: TrainingConfig, sources: Sources) -> nn.Module:
    """The model of a configuration: with fresh weights, or a saved one; with the classes of the data.

    Raises:
        ValueError: an unknown model or attention, or options that it does not take.
    """
    channels = config.in_chans or (1 if sources.embedded and config.init is None else None)
    own: dict[str, Any] = {"img_size": config.img_size, "in_chans": channels}
    own = {name: value for name, value in own.items() if value is not None}
    classes = config.num_classes or len(sources.classes)
    if classes < len(sources.classes):
        raise ValueError(f"the data have {len(sources.classes)} classes, got num_classes={classes}")
    dropout = {"drop_rate": config.drop, "drop_path_rate": config.drop_path}
    extra = {**{name: value for name, value in dropout.items() if value}, **config.model_kwargs}
    if config.init is not None:
        if config.attention is not None or config.attention_kwargs:
            raise ValueError("init brings its attention along; leave attention out, or use `vars-ode convert` before")
        model, _ = load_checkpoint(config.init, **own, **extra, num_classes=classes)
    else:
        spec = ModelSpec(
            str(config.model),
            config.attention,
            config.attention_kwargs,
            num_classes=classes,
            model_options=extra,
            **own,
        )
        model = spec.build()
    _set_solver(model, config)
    _record_preprocessing(model, config, sources)
    return model


def _set_solver(model: nn.Module, config: TrainingConfig) -> None:
    changes: dict[str, Any] = {} if config.adjoint is None else {"adjoint": config.adjoint}
    if config.solver is not None:
        changes |= training_settings(config.solver)
    if changes:
        set_solver(model, **changes)


def _record_preprocessing(model: nn.Module, config: TrainingConfig, sources: Sources) -> None:
    """What the images went through and how the classes are called, where a saved model keeps it."""
    found = Preprocessing.of(model)
    channels = found.input_size[0]
    changes: dict[str, Any] = {"mean": (0.0,) * channels, "std": (1.0,) * channels} if sources.embedded else {}
    for name in ("mean", "std", "crop_pct", "interpolation"):
        if getattr(config, name) is not None:
            changes[name] = getattr(config, name)
    replace(found, **changes).record_in(model)
    if getattr(model, "num_classes", None) == len(sources.classes):
        known: Any = model.pretrained_cfg
        known["label_names"] = sources.classes  # as timm's models have them, for who reads predictions


def _open(out: Path, config: TrainingConfig) -> None:
    """Claim the folder; settings that differ from those of a training that is there are refused."""
    record = out / SETTINGS
    if claim_folder(out, SETTINGS, "training"):
        try:
            differences = config.differences(yaml.safe_load(record.read_text(encoding="utf-8")))
        except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
            raise ValueError(f"{record} cannot be read ({error}); name another folder with --out") from error
        if differences:
            raise ValueError(
                f"{out} holds a training with other settings ({'; '.join(differences)}); name another folder with --out"
            )
        return
    text = yaml.safe_dump(config.as_dict(), sort_keys=False)
    write_atomically(record, lambda path: path.write_text(text, encoding="utf-8"))


def _check_trackers(names: Sequence[str]) -> None:
    """Accelerate leaves out a tracker that is not installed, without a word."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    for name in names:
        one_of("tracker", name, sorted(LOGGER_TYPE_TO_CLASS))
        if name not in {str(available) for available in get_available_trackers()}:
            raise ValueError(f"log_with={name!r} needs its package: pip install {name}")


def _processes(device: str) -> int:
    """How many there are; the first call in a process joins the others."""
    from accelerate import PartialState

    return int(PartialState(cpu=device == "cpu").num_processes)


def _score(record: Epoch) -> float:
    """By which the best epoch is chosen: on held-out images, of the weights or their average."""
    return max(record.get("validation_accuracy", 0.0), record.get("ema_validation_accuracy", 0.0))


class _Signals:
    """Whether the process was asked to stop, by SIGTERM (as a scheduler does) or Ctrl-C; a second one stops at once."""

    def __init__(self, received: list[int] | None = None) -> None:
        self.received = [] if received is None else received

    def asked(self) -> bool:
        return bool(self.received)

    @contextmanager
    def listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received.append(number)
        logger.warning("asked to stop: the state is saved after this update")


def _scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    """As trackers take them."""
    return {k: v if isinstance(v, bool | int | float | str) else json.dumps(v) for k, v in values.items()}
