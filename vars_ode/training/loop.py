"""Training a classifier: the loop, on Hugging Face Accelerate and timm's parts."""

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, TypedDict

import torch
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn
from torch.utils.data import Dataset

import solvers
from vars_ode.data import spread
from vars_ode.training.accelerating import accelerator_for, forget, release
from vars_ode.training.checkpoints import Checkpoints
from vars_ode.training.horizon import SolveOfUpdate
from vars_ode.training.images import Augmentation, Batch, Images, batches, told
from vars_ode.training.keyed import key, seeded
from vars_ode.training.optimization import check_classes, loss_for, mixer_for, optimizer_for, schedule_for
from vars_ode.training.order import Key, Order
from vars_ode.training.recipe import Recipe
from vars_ode.training.solve_log import SOLVE_FAILED, SolveLog, SolveRow, failures
from vars_ode.training.validation import Validation

PROBE_IMAGES = 32
logger = logging.getLogger(__name__)


class Epoch(TypedDict, total=False):
    """The record of one pass over the data, over all processes."""

    epoch: int
    loss: float
    train_accuracy: float  # of augmented images in training mode
    lr: float  # at its end
    skipped: int  # updates that were not finite
    unreadable: int  # images in whose place another one was taken
    seconds: float
    images_per_second: float
    validation_accuracy: float  # where images are held out
    ema_validation_accuracy: float  # likewise, of the averaged weights


class Update(NamedTuple):
    """What is told after each update."""

    number: int  # from 1
    total: int
    loss: float
    images: int  # of this update, over all processes


class DivergedError(RuntimeError):
    """The loss or its gradient became NaN or infinite."""


class StoppedError(RuntimeError):
    """The training was asked to stop, and its state is saved."""


def fit(model: nn.Module, data: Dataset[Any], recipe: Recipe, **options: Any) -> list[Epoch]:
    """Train `model` in place on the device it is on; a record per epoch.

    Arguments, options and errors are those of `Training`.
    """
    return Training(model, data, recipe, **options).run()


class Training:
    """A training that can be saved and continued, in one process or in several.

    Everything random depends on the seed and on what it is for: the order on the epoch, augmentation on epoch and
    image, mixing and horizon on the update, dropout on update and process. So a training that is continued from a
    checkpoint ends with the same bits as one that never stopped, and the number of processes changes its results by
    rounding alone (dropout, stochastic depth, BatchNorm and mixing per element apart, which see one process's images).

    Args:
        model: images (batch, channels, height, width) -> logits (batch, classes); trained in place on its device.
        data: a `TensorDataset` of (images, int64 labels), or a data set of (image, label), such as an ImageFolder with
            transforms.
        recipe: how.
        seed: of the order of the images, of the augmentation, of dropout and of random horizons.
        augment: applied to each batch of images, with a generator for each image.
        progress: called with an `Update` after each.
        on_epoch: called with each epoch's record.
        validation: images to measure after each epoch: a data set like `data`, or a `Validation`.
        workers: processes that read images.
        skip_unreadable: take the next image for one whose file cannot be read, and count it.
        accelerator: Hugging Face's, where it is to be another than the recipe's own.
        checkpoints: where and how often the state is saved; None for never.
        asked_to_stop: asked after each update; when it says so in one process, all save and raise `StoppedError`.

    Attributes:
        model: as given.
        ema: timm's average of the weights, None without.
        history: the records so far.
        solves: the rows of the solves so far.

    Raises:
        DivergedError: the loss or the gradient is not finite; the message says at which update.
        UnreadablePicture: the file of an image is damaged.
        ValueError: fewer images than a batch, labels that are not int64 classes of the model, or a recipe that asks
            for what model or device do not have.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset[Any],
        recipe: Recipe,
        *,
        seed: int = 0,
        augment: Augmentation | None = None,
        progress: Callable[[Update], object] | None = None,
        on_epoch: Callable[[Epoch], object] | None = None,
        validation: Dataset[Any] | Validation | None = None,
        workers: int = 0,
        skip_unreadable: bool = False,
        accelerator: Any = None,
        checkpoints: Checkpoints | None = None,
        asked_to_stop: Callable[[], bool] | None = None,
    ) -> None:
        self.model, self.recipe, self.seed = model, recipe, seed
        self._device = next(model.parameters()).device
        self._progress, self._on_epoch = progress, on_epoch
        self._workers, self._asked_to_stop = workers, asked_to_stop
        self._images = Images(data, seed, augment, "replace" if skip_unreadable else "stop")
        self._solve = SolveOfUpdate(model, recipe.horizon, seed)
        if validation is not None and not isinstance(validation, Validation):
            validation = Validation(validation)
        self._validation = validation
        self._classes: int | None = getattr(model, "num_classes", None)
        if recipe.mixes and self._classes is None:
            raise ValueError("mixup and cutmix need a model that tells its number of classes as model.num_classes")
        self._mixer, self._loss = mixer_for(recipe, self._classes or 0), loss_for(recipe)
        self._owned = accelerator is None
        self._accelerator = accelerator or accelerator_for(recipe, self._device.type)
        self._parts = self._accelerator.num_processes * recipe.grad_accum_steps
        try:
            self._order = Order(len(self._images), recipe.batch_size * self._parts, seed, recipe.aug_repeats)
            self._prepare()
        except BaseException:
            self._release(model)
            raise
        self._checkpoints = checkpoints
        self.history: list[Epoch] = []
        self.solves: list[SolveRow] = []
        self._done = self._first = 0  # updates, in all and before this process began
        self._sums = {"loss": 0.0, "correct": 0.0, "updates": 0, "skipped": 0, "unreadable": 0, "seconds": 0.0}

    def _prepare(self) -> None:
        """Put model and optimizer into the form that the recipe and the processes ask for."""
        recipe, model = self.recipe, self.model
        if recipe.grad_checkpointing:
            set_checkpointing: Any = getattr(model, "set_grad_checkpointing", None)
            if set_checkpointing is None:
                raise ValueError(f"a {type(model).__name__} has no set_grad_checkpointing; leave that out")
            set_checkpointing(True)
        if recipe.channels_last:
            model.to(memory_format=torch.channels_last)
        if recipe.sync_bn:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        optimizer = optimizer_for(model, recipe)
        self._schedule = schedule_for(optimizer, recipe, self._order.updates_per_epoch)
        decay, warmup = recipe.model_ema_decay, recipe.model_ema_warmup
        self.ema = ModelEmaV3(model, decay=decay, use_warmup=warmup) if recipe.model_ema else None
        self._prepared, self._optimizer = self._accelerator.prepare(model, optimizer)
        self._log = SolveLog(self.model, enabled=recipe.torchcompile is None)

    @property
    def updates(self) -> int:
        """How many there are in all."""
        return self.recipe.epochs * self._order.updates_per_epoch

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self._accelerator.is_main_process)

    def run(self) -> list[Epoch]:
        """Train to the end, from the newest checkpoint where there is one.

        Raises:
            StoppedError: it was asked to stop; the state is saved.
        """
        devices = [self._device] if self._device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):
                self._resume()
                self._first = self._done
                self._model_mode()
                stream = batches(self._images, self._looks(), self._workers, self._device.type == "cuda")
                while self._done < self.updates:
                    self._one_update(stream)
        finally:
            self._release(self._prepared)
        return self.history

    def _release(self, prepared: nn.Module) -> None:
        release(self._accelerator, prepared)
        if self._owned:
            forget(self._accelerator)

    def _model_mode(self) -> None:
        self._prepared.train()
        self._optimizer.zero_grad()
        self._schedule.step_update(self._done)

    def _looks(self) -> Iterator[Sequence[Key]]:
        """What this process reads, update by update and accumulation step by accumulation step."""
        accumulated, index = self.recipe.grad_accum_steps, self._accelerator.process_index
        for update in range(self._done, self.updates):
            for step in range(accumulated):
                yield self._order.update(update, index * accumulated + step, self._parts)

    def _one_update(self, stream: Iterator[Batch]) -> None:
        """One update with all that follows it: records, validation, checkpoint."""
        started, update = time.monotonic(), self._done
        with self._settings_of(update):
            loss, correct, unreadable = self._gradients(stream, update)
        norm = self._clip()
        asked = self._asked_to_stop is not None and self._asked_to_stop()
        due = self._checkpoints is not None and self.main and self._checkpoints.due(update + 1)
        told = torch.tensor([0, 0, 0, unreadable, asked, due], dtype=torch.float64, device=self._device)
        told[:3] = torch.stack([loss.double(), norm.double(), correct.double()])
        mean_loss, norm_sum, right, unreadable, asked, due = self._add_up(told).tolist()  # the one wait for the device
        mean_loss /= self._accelerator.num_processes
        self._step(update, mean_loss, norm_sum)
        self._sums["correct"] += right
        self._sums["unreadable"] += int(unreadable)
        self._sums["updates"] += 1
        self._sums["seconds"] += time.monotonic() - started
        if self._progress:
            self._progress(Update(self._done, self.updates, mean_loss, self.recipe.batch_size * self._parts))
        epoch_ended = self._done % self._order.updates_per_epoch == 0
        if epoch_ended:
            self._close_epoch(self._done // self._order.updates_per_epoch - 1)
        if self._checkpoints is not None and (epoch_ended or due or asked):
            self._checkpoints.save(self._done, self._position(), self.ema and self.ema.module)
        if asked:
            raise StoppedError(f"stopped after update {self._done} of {self.updates}")

    @contextmanager
    def _settings_of(self, update: int) -> Iterator[None]:
        """The solve of an update, counted; its failures are told once per epoch, other warnings at the first update."""
        with warnings.catch_warnings(), self._log.watching(), self._solve.at(update):
            if self.recipe.torchcompile is None:
                repeated = "" if update > self._first else SOLVE_FAILED  # "" matches all
                warnings.filterwarnings("ignore", repeated, solvers.SolverWarning)
            yield

    def _gradients(self, stream: Iterator[Batch], update: int) -> tuple[Tensor, Tensor, int]:
        """Backward passes of this process; its mean loss, correct answers and unreadable images."""
        steps, first = self.recipe.grad_accum_steps, self._accelerator.process_index * self.recipe.grad_accum_steps
        total, correct, unreadable = torch.zeros((), device=self._device), torch.zeros((), device=self._device), 0
        for step in range(steps):
            batch = told(next(stream))
            torch.manual_seed(key(self.seed, "dropout", update, first + step))
            last = step == steps - 1
            with nullcontext() if last else self._accelerator.no_sync(self._prepared):
                loss, right = self._loss_of(batch, update)
                self._accelerator.backward(loss / steps)
            total, correct = total + loss.detach() / steps, correct + right
            unreadable += len(batch.unreadable)
        return total, correct, unreadable

    def _loss_of(self, batch: Batch, update: int) -> tuple[Tensor, Tensor]:
        layout = torch.channels_last if self.recipe.channels_last else torch.contiguous_format
        images = batch.images.to(self._device, non_blocking=True, memory_format=layout)
        labels = batch.labels.to(self._device, non_blocking=True)
        target = labels
        if self._mixer is not None:
            check_classes(batch.labels, self._classes or 0)  # before they are mixed
            off = self.recipe.mixup_off_epoch
            self._mixer.mixup_enabled = not off or update // self._order.updates_per_epoch < off
            with seeded(self.seed, "mixup", update):
                images, target = self._mixer(images, labels)
        logits = self._logits(images, update)
        check_classes(batch.labels, logits.shape[1])
        return self._loss(logits.float(), target), (logits.detach().argmax(1) == labels).sum()

    def _logits(self, images: Tensor, update: int) -> Tensor:
        try:
            logits: Tensor = self._prepared(images)
        except ValueError as error:  # layers refuse tokens that are not finite, and cannot know why they are not
            if update == self._first or not bool(images.isfinite().all()):
                raise
            raise DivergedError(
                f"update {update} of epoch {update // self._order.updates_per_epoch} failed after others had passed "
                f"({error}): lower the learning rate (lr={self.recipe.lr})"
            ) from error
        return logits

    def _clip(self) -> Tensor:
        """Clip the gradients; their norm before."""
        recipe, parameters = self.recipe, list(self._prepared.parameters())
        by_norm = recipe.clip_grad is not None and recipe.clip_mode == "norm"
        norm: Tensor = self._accelerator.clip_grad_norm_(parameters, recipe.clip_grad if by_norm else math.inf)
        if recipe.clip_grad is not None and not by_norm:
            dispatch_clip_grad(parameters, recipe.clip_grad, recipe.clip_mode)
        return norm.detach()

    def _step(self, update: int, loss: float, norm: float) -> None:
        scaled = self._accelerator.scaler is not None  # which meets infinite gradients on purpose
        if math.isfinite(loss) and (math.isfinite(norm) or scaled):
            self._optimizer.step()
            self._sums["loss"] += loss
        else:
            self._refuse(update, "loss" if not math.isfinite(loss) else "norm of the gradient", loss, norm)
        self._optimizer.zero_grad()
        self._done += 1
        self._schedule.step_update(self._done)
        if self.ema is not None:
            self.ema.update(self.model, step=self._done)

    def _refuse(self, update: int, what: str, loss: float, norm: float) -> None:
        found = loss if what == "loss" else norm
        epoch = update // self._order.updates_per_epoch
        if self.recipe.nonfinite == "stop":
            raise DivergedError(
                f"the {what} became {found} at update {update} of epoch {epoch}; lower the learning rate (lr="
                f"{self.recipe.lr}), take a smaller rate or step in the attention's solver, or skip such updates"
            )
        logger.warning("update %d of epoch %d is skipped: the %s is %s", update, epoch, what, found)
        self._sums["skipped"] += 1

    # --- at the end of an epoch, and in a checkpoint ---

    def _close_epoch(self, epoch: int) -> None:
        sums, made = self._sums, self._sums["updates"] - self._sums["skipped"]
        seen = sums["updates"] * self.recipe.batch_size * self._parts
        record: Epoch = {
            "epoch": epoch,
            "loss": sums["loss"] / made if made else math.nan,
            "train_accuracy": sums["correct"] / seen,
            "lr": self._optimizer.param_groups[0]["lr"],
            "skipped": int(sums["skipped"]),
            "unreadable": int(sums["unreadable"]),
            "seconds": sums["seconds"],
            "images_per_second": seen / max(sums["seconds"], 1e-9),
        }
        if self._validation is not None:
            record["validation_accuracy"] = self._validation.accuracy(self.model, self._accelerator)
            if self.ema is not None:
                average = self._validation.accuracy(self.ema.module, self._accelerator)
                record["ema_validation_accuracy"] = average
        self._sums = dict.fromkeys(sums, 0)
        self.history.append(record)
        self._close_solves(epoch)
        if self._on_epoch:
            self._on_epoch(record)

    def _close_solves(self, epoch: int) -> None:
        images = self._images if self._validation is None else self._validation.images
        probed = spread(len(images), min(PROBE_IMAGES, len(images)))
        probe = told(images.__getitems__([Key(0, image, 0) for image in probed])).images  # the same in each epoch
        rows = self._log.close_epoch(epoch, self.model, probe.to(self._device), self._log.state(self._add_up))
        for sentence in failures(rows):
            logger.warning(sentence)
        self.solves += rows

    def _add_up(self, values: Tensor) -> Tensor:
        """Over all processes."""
        summed: Tensor = self._accelerator.reduce(values, "sum") if self._accelerator.num_processes > 1 else values
        return summed

    def _position(self) -> dict[str, Any]:
        """All of the state that is not in model, average, optimizer and scaler."""
        return {
            "update": self._done,
            "images_per_update": self.recipe.batch_size * self._parts,
            "history": self.history,
            "solves": self.solves,
            "sums": self._sums,
            "counts": self._log.state(self._add_up),
        }

    def _resume(self) -> None:
        found = self._checkpoints.newest() if self._checkpoints is not None and self.main else None
        if self._checkpoints is not None and self._accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            (found,) = broadcast_object_list([found])
        if self._checkpoints is None or found is None:
            return
        position = self._checkpoints.load(found, self.ema and self.ema.module)
        size = self.recipe.batch_size * self._parts
        if position["images_per_update"] != size:
            raise ValueError(
                f"{found} is of a training with {position['images_per_update']} images per update, and now there are "
                f"{size}; change the batch size with the number of processes"
            )
        self._done, self.history, self.solves = position["update"], position["history"], position["solves"]
        self._sums = position["sums"]
        if self.main:
            self._log.load(position["counts"], self._device)
        logger.info("going on after update %d of %d, from %s", self._done, self.updates, found)
