"""AutoAttack, from the package pyautoattack: two gradient attacks, FAB and Square, one after the other.

Croce and Hein, *Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks*, ICML
2020, arXiv 2003.01690.
"""

import importlib.util
import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import solvers
from vars_ode.measuring import evaluation_mode
from vars_ode.robustness._common import check_attack, check_images, check_labels
from vars_ode.robustness.randomness import check_indices

__all__ = ["MissingExtra", "autoattack", "require_autoattack"]

_NORMS = {"linf": "Linf", "l2": "L2"}
_TARGETS = 9  # classes that its targeted attacks aim at, beside the true one
VERSIONS = ("standard", "plus", "rand")


class MissingExtra(ValueError):
    """A package is not installed; the message names the extra that brings it."""


def require_autoattack() -> None:
    """Refuse with a `MissingExtra` where the package is not there, before anything is computed."""
    if importlib.util.find_spec("pyautoattack") is None:
        raise MissingExtra(
            "autoattack needs the package pyautoattack; install it with: pip install 'vars-ode[attacks]'"
        )


def autoattack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float = 1 / 255,
    seed: int = 0,
    indices: Tensor | Sequence[int] | None = None,
    *,
    norm: str = "linf",
    version: str = "standard",
) -> Tensor:
    """AutoAttack on a batch. It draws for the whole batch, so that its result depends on the batch.

    Args:
        model: maps (batch, channels, height, width) in [0, 1] to logits (batch, classes).
        images: (batch, channels, height, width), float32 in [0, 1]. Not changed.
        labels: (batch,) int64, the true classes.
        eps: radius of the ball, on the [0, 1] scale.
        seed: of the batch, together with the index of its first image.
        indices: (batch,) int64, the images' positions in the whole data set; None for 0, 1, ..., batch - 1.
        norm: of the ball, "linf" or "l2".
        version: "standard"; "plus" with more restarts; "rand" for a model that is random.

    Returns:
        Adversarial images where some attack was successful, and the images themselves elsewhere.

    Raises:
        MissingExtra: (a ValueError) the package is not installed.
        ValueError: for wrong images, labels, eps, norm or version, and for a model of fewer than ten classes, which
            "standard" and "plus" do not take.
    """
    require_autoattack()
    check_images(images, "autoattack")
    check_labels(labels, images, "autoattack")
    check_attack("autoattack", eps=eps)
    solvers.checks.one_of("norm", norm, _NORMS)
    solvers.checks.one_of("version", version, VERSIONS)
    places = check_indices(indices, images.shape[0], "autoattack")
    if not places or eps == 0:
        return images.detach().clone()
    from pyautoattack import AutoAttack

    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    # It seeds torch's global generators; the caller's stay as they were.
    with torch.inference_mode(False), torch.random.fork_rng(), evaluation_mode(model):
        images, labels = images.detach().clone(), labels.clone()
        with torch.no_grad():
            classes = model(images[:1]).shape[1]
        if version != "rand" and classes <= _TARGETS:
            raise ValueError(f"autoattack aims at {_TARGETS} classes beside the true one, and the model has {classes}")
        attack = AutoAttack(
            model, norm=_NORMS[norm], eps=eps, seed=seed + places[0], version=version, device=images.device
        )
        with torch.enable_grad():
            found, _ = attack.run_standard_evaluation(images, labels, batch_size=len(images))
    return found.detach()
