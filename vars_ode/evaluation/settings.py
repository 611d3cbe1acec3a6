"""What the results of an evaluation depend on, beside the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import solvers
from vars_ode.data import BENCHMARKS, EMBEDDED
from vars_ode.models import parse_solves
from vars_ode.robustness.norms import ball

ATTACKS = ("fgsm", "pgd", "square", "autoattack")
MASKING, SMALL, CLEAN = "masking", "small", "clean"


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured.

    Args:
        data: the clean images: "fashion-mnist" (embedded); a folder with a subfolder of pictures per class, or with
            `test` or `val` in it; or a data set of timm's name, such as "torch/cifar10".
        data_dir, split: of a data set of timm's name: where it lies, and its part.
        conditions: "clean"; benchmarks ("imagenet-c", "imagenet-a", ...); "small", the corruptions for small images;
            corruptions by name; "fgsm", "pgd", "square", "autoattack"; "masking".
        trees: benchmark -> its folder. "imagenet-c" without one is made of the clean images.
        severities: of corruptions; all of them by default.
        images: how many of each set, evenly spread; all by default.
        seed: of noise and attacks.
        solver: how the layers are solved, as `vars_ode.models.parse_solves` reads it; as saved by default.
        eps: radius of the attacks' ball.
        norm: of the ball, "linf" or "l2".
        steps: of PGD.
        step_size: of PGD; half of eps by default, as in the paper.
        restarts: of PGD.
        queries: of Square.
        draws: of random features per step, in "masking"; 0 to leave that attack out.
        transfer: solves through which "masking" attacks too; by default the single-step limit and another solver.
        transfer_adjoints: adjoints through which it does, by name; by default another one where the model is solved to
            its equilibrium.
        frost: a folder with photographs of frost for ImageNet-C's; drawn by default.
        skip_unreadable: leave damaged pictures out, and count them.

    Raises:
        ValueError: a value that is none of these.
    """

    data: str = EMBEDDED
    conditions: tuple[str, ...] = (CLEAN,)
    trees: Mapping[str, str] = field(default_factory=dict)
    severities: tuple[int, ...] | None = None
    images: int | None = None
    seed: int = 0
    solver: str | None = None
    eps: float = 1 / 255
    norm: str = "linf"
    steps: int = 5
    step_size: float | None = None
    restarts: int = 1
    queries: int = 5000
    draws: int = 8
    transfer: str | None = None
    transfer_adjoints: tuple[str, ...] | None = None
    frost: str | None = None
    data_dir: str | None = None
    split: str = "validation"
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        if not self.conditions:
            raise ValueError("there are no conditions; name some, such as clean,pgd")
        for name in self.trees:
            solvers.checks.one_of("benchmark", name, BENCHMARKS)
            if name not in self.conditions:
                raise ValueError(f"a folder is given for {name}, which is not among the conditions; add it there")
        for name in ("steps", "restarts", "queries"):
            solvers.checks.positive_int(name, getattr(self, name))
        if self.draws:
            solvers.checks.positive_int("draws", self.draws)
        if self.images is not None:
            solvers.checks.positive_int("images", self.images)
        solvers.checks.non_negative_number("eps", self.eps)
        if self.step_size is not None:
            solvers.checks.positive_number("step_size", self.step_size)
        ball(self.norm)
        for name in self.transfer_adjoints or ():
            solvers.adjoints.get(name)
        for text in (self.solver, self.transfer):
            if text is not None:
                parse_solves(text)
        if self.solver is not None and len(parse_solves(self.solver)) != 1:
            raise ValueError(f'a model is evaluated under one solve, such as "euler@10", got solver={self.solver!r}')

    @property
    def length_of_steps(self) -> float:
        return self.step_size if self.step_size is not None else self.eps / 2 or 1.0

    def shared(self) -> dict[str, Any]:
        """What every result depends on, in JSON's types."""
        names = ("data", "data_dir", "split", "images", "seed", "solver", "skip_unreadable")
        return {name: getattr(self, name) for name in names}

    def as_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
