"""What `solvers.solve` costs: fixed steps beside a loop written by hand, error control beside the libraries for it."""

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
END = 5.0
RTOL, ATOL = 1e-4, 1e-6  # the solvers' own defaults


@dataclass(frozen=True)
class SolverRow:
    """A solve by `solvers.solve` and by others.

    Attributes:
        solver: its name.
        problems, templates, width: how many problems and of what size.
        beside: what is compared with: a loop by hand, or the faster of the libraries called directly.
        solve_us, beside_us: microseconds of both.
        ratio, gradients_ratio: of the two; the latter with gradients, for fixed steps.
        error, beside_error: relative, |a - a(t1)|_2 / |a(t1)|_2, the worst of the problems; under error control.
    """

    solver: str
    problems: int
    templates: int
    width: int
    beside: str
    solve_us: float
    beside_us: float
    ratio: float
    gradients_ratio: float | None = None
    error: float | None = None
    beside_error: float | None = None


def solver(repeats: int = 100, adaptive_repeats: int = 15) -> list[SolverRow]:
    """48 problems of 64 templates and 32 channels, and 8 of 16 and 8, from a code of zero to t1 = 5; float32.

    Euler takes five steps; the others control their error at rtol 1e-4 and atol 1e-6. The runs take turns, and medians
    of processor time are reported: runs this short are told apart from what else the machine does only without the
    waits for it.
    """
    fixed = [_fixed_row(*size, repeats) for size in SIZES]
    return [*fixed, *(row for size in SIZES for row in _adaptive_rows(size, adaptive_repeats))]


def _problem(problems: int, templates: int, width: int) -> tuple[Tensor, ReconstructionArgs]:
    args = reconstruction_args(problems, features=templates, head_dim=width, rate="power", dtype=torch.float32)
    return torch.zeros_like(args.drive), args


def _fixed_row(problems: int, templates: int, width: int, repeats: int) -> SolverRow:
    y0, args = _problem(problems, templates, width)
    leaves = args._replace(drive=args.drive.clone().requires_grad_(), gram=args.dense_gram.clone().requires_grad_())
    torch.testing.assert_close(_solved(y0, args), _by_hand(y0, args))
    with torch.no_grad():
        solved, by_hand = _medians([partial(run, y0, args) for run in (_solved, _by_hand)], repeats)
    gradients = _medians([partial(_backward, run, y0, leaves) for run in (_solved, _by_hand)], repeats)
    size = (problems, templates, width)
    times = (1e3 * solved, 1e3 * by_hand, solved / by_hand)
    return SolverRow("euler", *size, "a loop by hand", *times, gradients[0] / gradients[1])


def _medians(runs: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Milliseconds of processor time of runs that take turns."""
    turns = [[processor_time(run)[1] for run in runs] for _ in range(repeats)]
    return [statistics.median(times) for times in zip(*turns, strict=True)]


def _solved(y0: Tensor, args: ReconstructionArgs) -> Tensor:
    return solvers.solve(ProximalFlow(), y0, END, "euler", args).y1


def _by_hand(a: Tensor, args: ReconstructionArgs) -> Tensor:
    threshold = args.rate * args.sparsity
    for _ in range(5):
        a = soft_threshold(torch.addcmul(a, args.rate, args.drive - args.dense_gram @ a), threshold)
    return a


def _backward(run: Callable[..., Tensor], y0: Tensor, args: ReconstructionArgs) -> None:
    torch.autograd.grad(run(y0, args).square().sum(), (args.drive, args.dense_gram))


def _adaptive_rows(size: tuple[int, int, int], repeats: int) -> list[SolverRow]:
    y0, args = _problem(*size)
    with torch.no_grad():
        end = _reference(y0, args)
        return [_adaptive_row(name, size, y0, args, end, repeats) for name in _HAVE]


def _adaptive_row(
    name: str, size: tuple[int, int, int], y0: Tensor, args: ReconstructionArgs, end: Tensor, repeats: int
) -> SolverRow:
    chosen = solvers.get(name, rtol=RTOL, atol=ATOL)
    runs: dict[str, Callable[[], Tensor]] = {"solve": lambda: solvers.solve(ProximalFlow(), y0, END, chosen, args).y1}
    runs |= {library: partial(_LIBRARIES[library], name, y0, args) for library in _HAVE[name]}
    errors = {run: _error(call(), end) for run, call in runs.items()}  # which warms up
    times = dict(zip(runs, _medians(list(runs.values()), repeats), strict=True))
    best = min(_HAVE[name], key=times.__getitem__)
    ratio = times["solve"] / times[best]
    return SolverRow(
        name,
        *size,
        best,
        1e3 * times["solve"],
        1e3 * times[best],
        ratio,
        error=errors["solve"],
        beside_error=errors[best],
    )


def _reference(y0: Tensor, args: ReconstructionArgs) -> Tensor:
    exact = ReconstructionArgs(*(part.double() for part in (args.drive, args.dense_gram, args.rate, args.sparsity)))
    return solvers.solve(ProximalFlow(), y0.double(), END, solvers.RK4(num_steps=500), exact).y1


def _error(y1: Tensor, end: Tensor) -> float:
    return float(((y1 - end).flatten(1).norm(dim=1) / end.flatten(1).norm(dim=1)).max())


def _torchode(name: str, y0: Tensor, args: ReconstructionArgs) -> Tensor:
    import torchode  # imported late, as it takes longer than all else here

    field, flat = ProximalFlow(), y0.flatten(1)
    term = torchode.ODETerm(lambda t, y: field(t, y.view(y0.shape), args).flatten(1))
    method = {"dopri5": torchode.Dopri5, "tsit5": torchode.Tsit5}[name](term=term)
    adjoint = torchode.AutoDiffAdjoint(method, torchode.IntegralController(atol=ATOL, rtol=RTOL, term=term))
    start, end = (flat.new_full(flat.shape[:1], t) for t in (0.0, END))
    return adjoint.solve(torchode.InitialValueProblem(flat, start, end)).ys[:, -1].view(y0.shape)


def _torchdiffeq(name: str, y0: Tensor, args: ReconstructionArgs) -> Tensor:
    import torchdiffeq

    field, times = ProximalFlow(), torch.tensor([0.0, END])
    states: Tensor = torchdiffeq.odeint(lambda t, y: field(t, y, args), y0, times, rtol=RTOL, atol=ATOL, method=name)
    return states[-1]


_LIBRARIES: dict[str, Callable[..., Tensor]] = {"torchode": _torchode, "torchdiffeq": _torchdiffeq}
_HAVE = {
    "bosh3": ["torchdiffeq"],
    "dopri5": ["torchode", "torchdiffeq"],
    "tsit5": ["torchode"],
    "dopri8": ["torchdiffeq"],
}
