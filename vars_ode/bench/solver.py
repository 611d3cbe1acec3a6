"""What a fixed-step solve costs beside the same arithmetic as a loop written by hand."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import solvers
from vars_ode.bench.problem import reconstruction_args
from vars_ode.fields import ProximalFlow, ReconstructionArgs, soft_threshold
from vars_ode.measuring import processor_time

SIZES = ((48, 64, 32), (8, 16, 8))


@dataclass(frozen=True)
class SolverRow:
    """Microseconds of five Euler steps by `solvers.solve` and by hand; their ratio, and that with gradients."""

    problems: int
    templates: int
    width: int
    solve_us: float
    by_hand_us: float
    ratio: float
    gradients_ratio: float


def solver(repeats: int = 100) -> list[SolverRow]:
    """48 problems of 64 templates and 32 channels, and 8 of 16 and 8; float32.

    The runs take turns, and medians of processor time are reported: runs this short are told apart from what else the
    machine does only without the waits for it.
    """
    return [_row(*size, repeats) for size in SIZES]


def _row(problems: int, templates: int, width: int, repeats: int) -> SolverRow:
    args = reconstruction_args(problems, features=templates, head_dim=width, rate="power", dtype=torch.float32)
    leaves = args._replace(drive=args.drive.clone().requires_grad_(), gram=args.dense_gram.clone().requires_grad_())
    y0 = torch.zeros_like(args.drive)
    torch.testing.assert_close(_solved(y0, args), _by_hand(y0, args))
    with torch.no_grad():
        solved, by_hand = _medians([partial(run, y0, args) for run in (_solved, _by_hand)], repeats)
    gradients = _medians([partial(_backward, run, y0, leaves) for run in (_solved, _by_hand)], repeats)
    return SolverRow(
        problems, templates, width, 1e3 * solved, 1e3 * by_hand, solved / by_hand, gradients[0] / gradients[1]
    )


def _medians(runs: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Milliseconds of processor time of runs that take turns."""
    turns = [[processor_time(run)[1] for run in runs] for _ in range(repeats)]
    return [statistics.median(times) for times in zip(*turns, strict=True)]


def _solved(y0: Tensor, args: ReconstructionArgs) -> Tensor:
    return solvers.solve(ProximalFlow(), y0, 5.0, "euler", args).y1


def _by_hand(a: Tensor, args: ReconstructionArgs) -> Tensor:
    threshold = args.rate * args.sparsity
    for _ in range(5):
        a = soft_threshold(torch.addcmul(a, args.rate, args.drive - args.dense_gram @ a), threshold)
    return a


def _backward(run: Callable[..., Tensor], y0: Tensor, args: ReconstructionArgs) -> None:
    torch.autograd.grad(run(y0, args).square().sum(), (args.drive, args.dense_gram))
