"""Hugging Face Accelerate, as a training uses it: processes, precision, compilation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from vars_ode.training.recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator

PRECISIONS = {"bfloat16": "bf16", "float16": "fp16"}


def accelerator_for(
    recipe: Recipe, device: str, trackers: list[str] | None = None, folder: Path | None = None
) -> Accelerator:
    """An Accelerator for a recipe, in the processes that torchrun or `accelerate launch` started, or in this one.

    Args:
        recipe: whose precision and compilation it has.
        device: the kind of device, "cpu" or "cuda".
        trackers: names of Accelerate's trackers, such as "tensorboard".
        folder: theirs.

    Raises:
        ValueError: a precision that the device does not have, or an Accelerator of other settings in this process.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs

    if recipe.amp and recipe.amp_dtype == "float16" and device == "cpu":
        raise ValueError("amp_dtype='float16' (fp16) scales the loss on a GPU; on the CPU take 'bfloat16'")
    return Accelerator(
        device_placement=False,  # `fit` trains on the device the model is on
        mixed_precision=PRECISIONS[recipe.amp_dtype] if recipe.amp else "no",
        cpu=device == "cpu",
        dynamo_backend=recipe.torchcompile or "no",
        log_with=trackers,
        project_dir=folder,
        # A drawn horizon may leave parameters of the attention out.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def release(accelerator: Accelerator, prepared: nn.Module) -> None:
    """Take what Accelerate put around a model off again."""
    model: Any = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False, keep_torch_compile=False)
    vars(model).pop("_is_accelerate_prepared", None)  # or else the next training would take it for wrapped


def forget(accelerator: Accelerator) -> None:
    """End an Accelerator: a process has one state for all of them, and would refuse one with another precision."""
    from accelerate.state import AcceleratorState

    accelerator.free_memory()
    AcceleratorState._reset_state(reset_partial_state=False)
