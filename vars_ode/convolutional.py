"""VARS-S: static templates, learned circular filters over the whole grid of tokens, in the Fourier domain."""

import math
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

import solvers
from solvers import SteadyState
from solvers.adjoints import Adjoint
from vars_ode import fourier
from vars_ode.fields import DYNAMICS, ReconstructionArgs, energy, kkt_residual
from vars_ode.fourier import Grid, to_maps, to_spectrum
from vars_ode.layer import Recurrence

REVISIONS = ("corrected", "paper")
INITIALIZATIONS = ("active", "authors")


class ConvolutionGram(NamedTuple):
    """G = A A^H per channel and frequency, applied as A (A^H a): of rank one, so that forming r x r products is waste.

    Attributes:
        filters: spectra k as (real, imaginary) pairs, (channels, r, H, W // 2 + 1, 2).
    """

    filters: Tensor

    def __matmul__(self, code: Tensor) -> Tensor:
        """Codes (batch, channels, r, H, W) to the same."""
        filters = torch.view_as_complex(self.filters)
        if fourier.can_project_in_place(filters, code):
            return fourier.project_in_place(filters, code)
        return analysis(filters, synthesis(filters, to_spectrum(code)), (code.shape[-2], code.shape[-1]))

    def resolvent(self, code: Tensor, rho: float) -> Tensor:
        """(G + rho I)^-1 a per frequency, by Woodbury's formula: (a - U (rho I + U^H U)^-1 U^H a) / rho, G = U U^H.

        U is k, once more for a conjugate pair of frequencies in one column, since codes are real.
        """
        grid = (code.shape[-2], code.shape[-1])
        filters = torch.view_as_complex(self.filters)
        pair = torch.stack([filters, fourier.mirrored(filters, grid)]) / math.sqrt(2)
        small = torch.einsum("icrhw,jcrhw->chwij", pair.conj(), pair)
        small = small + rho * torch.eye(2, dtype=small.dtype, device=small.device)
        explained = torch.stack([synthesis(part, to_spectrum(code)) for part in pair], -1)
        weights = torch.linalg.solve(small, explained[..., None])[..., 0]
        correction = sum(analysis(part, weights[..., index], grid) for index, part in enumerate(pair))
        return (code - correction) / rho


def analysis(filters: Tensor, signal: Tensor, grid: Grid) -> Tensor:
    """Phi^T V: spectra (batch, channels, H, W // 2 + 1) correlated with every template, (batch, channels, r, H, W)."""
    return to_maps(filters * signal.unsqueeze(2), grid)


def synthesis(filters: Tensor, code: Tensor) -> Tensor:
    """Phi a, as a spectrum: codes' spectra (batch, channels, r, ...) to (batch, channels, ...)."""
    adjoint = filters.conj().resolve_conj()
    total = adjoint[:, 0] * code[:, :, 0]
    for index in range(1, filters.shape[1]):  # without a temporary r times as large
        total = torch.addcmul(total, adjoint[:, index], code[:, :, index])
    return total


class VARSConvAttention(Recurrence, nn.Module):
    """VARS-S: every channel's map of values is reconstructed by r learned templates at all their circular shifts.

    x -> Linear -> V; code a minimises 1/2 |V - Phi a|^2 + lam |a|_1 per channel, with G = A A^H per frequency;
    Phi a -> one more learned filter per channel -> BatchNorm -> Linear. Normalises its output, not its input.

    Args:
        dim: channels.
        grid: (height, width) of tokens that the filters are learned on. On other grids they are resampled, as
            periodic functions.
        num_filters: r, templates per channel.
        bias: whether the two projections have one.
        proj_drop: dropout on the output.
        revision: "corrected", or "paper" for the authors' arithmetic, whose step bound drops the imaginary part of the
            Gram (steps up to twice too long) and whose Gram lets templates be complex in two columns of the spectrum.
        initialization: "active" scales V so that an entry of the drive has a standard deviation of about 2 lam for
            inputs of unit variance; with "authors" no code of the first blocks of a model is active at lam = 3.5,
            and those blocks get no gradient.
        sparsity: lam; the authors' 3.5.
        threshold, dynamics, initial, adjoint, until: as in `VARSAttention`.
        rate: eta, a number, or "norm" for 1 / |G|_2 per channel, which the spectrum tells exactly.
        t1: horizon; three Euler steps, as the authors take, by default.
        solver: name or object.

    Raises:
        ValueError: an argument that states no layer; the message says what was expected.
    """

    def __init__(
        self,
        dim: int,
        grid: Grid = (14, 14),
        num_filters: int = 5,
        bias: bool = True,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        revision: str = "corrected",
        initialization: str = "active",
        sparsity: float = 3.5,
        threshold: str = "soft",
        dynamics: str = "proximal",
        rate: float | str = "norm",
        initial: str = "feedforward",
        t1: float = 3.0,
        solver: str | solvers.Solver = "euler",
        adjoint: str | Adjoint = "direct",
        until: SteadyState | None = None,
    ) -> None:
        super().__init__()
        solvers.checks.positive_int("dim", dim)
        solvers.checks.positive_int("num_filters", num_filters)
        solvers.checks.non_negative_number("sparsity", sparsity)
        if rate != "norm":
            _check_rate(rate)
        _check_choice("dynamics", dynamics, tuple(DYNAMICS))
        _check_choice("revision", revision, REVISIONS)
        _check_choice("initialization", initialization, INITIALIZATIONS)
        self.grid = _check_grid(grid)
        self.revision, self.initialization = revision, initialization
        self.sparsity, self.rate, self.initial = sparsity, rate, initial
        self.field = DYNAMICS[dynamics](threshold)
        self._set_solution(t1, solver, adjoint, until)

        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        half = (grid[0], grid[1] // 2 + 1, 2)
        self.v = nn.Linear(dim, dim, bias=bias, **factory)
        self.kernel = nn.Parameter(torch.empty(dim, num_filters, *half, **factory))
        self.output_kernel = nn.Parameter(torch.empty(dim, *half, **factory))
        self.norm = nn.BatchNorm2d(dim, **factory)
        self.proj = nn.Linear(dim, dim, bias=bias, **factory)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw filters and projections anew, as `initialization` says."""
        height, width, _ = self.kernel.shape[2:]
        power = math.prod(self.grid) / 2  # of a filter, over its half-plane of frequencies: the authors' norm
        with torch.no_grad():
            nn.init.normal_(self.kernel)
            self.kernel.mul_(math.sqrt(power) / self.kernel.square().sum((2, 3, 4), keepdim=True).sqrt())
        nn.init.normal_(self.output_kernel, std=0.02)
        nn.init.trunc_normal_(self.proj.weight, std=0.02)
        nn.init.trunc_normal_(self.v.weight, std=0.02)
        for layer in (self.v, self.proj):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        if self.initialization == "active":
            # The gain sits in V. In the filters it would enter the Gram squared and make S(b; lam) a poor start.
            gain = 2 * self.sparsity / math.sqrt(power / (height * width)) or 1.0
            std = gain * self.v.in_features**-0.5
            nn.init.trunc_normal_(self.v.weight, std=std, a=-2 * std, b=2 * std)
            with torch.no_grad():
                self.output_kernel[..., 0] += 1  # near the identity

    def forward(self, x: Tensor, grid: Grid | None = None) -> Tensor:
        """Attend.

        Args:
            x: tokens in row-major order, (batch, tokens, dim).
            grid: their (height, width). None: the layer's own grid, or else a square one.

        Returns:
            (batch, tokens, dim).
        """
        grid = self._layout(x, grid)
        args = self.problem(x, grid)
        with torch.autocast(x.device.type, enabled=False):
            code = self.field.code(self._integrate(args, x).y1, args)
            maps = to_maps(synthesis(self._filters(self.kernel, grid, code.dtype), to_spectrum(code)), grid)
            maps = to_maps(self._filters(self.output_kernel, grid, code.dtype) * to_spectrum(maps), grid)
        tokens = self.norm(maps.to(x.dtype)).flatten(2).transpose(1, 2)
        return self.proj_drop(self.proj(tokens))

    def solve(
        self, x: Tensor, save_at: Tensor | Literal["steps"] | None = None, grid: Grid | None = None
    ) -> solvers.Solution:
        """The solve itself: states are (batch, channels, r, height, width)."""
        return self._integrate(self.problem(x, grid), x, save_at)

    def problem(self, x: Tensor, grid: Grid | None = None) -> ReconstructionArgs:
        """The reconstruction problem that tokens (batch, tokens, dim) pose, one per image and channel."""
        grid = self._layout(x, grid)
        v = self.v(x).transpose(1, 2).unflatten(-1, grid)
        with torch.autocast(x.device.type, enabled=False):
            v = v.to(torch.promote_types(v.dtype, torch.float32))
            filters = self._filters(self.kernel, grid, v.dtype)
            drive = analysis(filters, to_spectrum(v), grid)
            gram = cast(Tensor, ConvolutionGram(torch.view_as_real(filters).contiguous()))  # a GramOperator
            return ReconstructionArgs(drive, gram, self._step_bound(filters), drive.new_full((), self.sparsity))

    def energy(self, x: Tensor, save_at: Tensor | Literal["steps"] = "steps") -> Tensor:
        """E along the solve, without the constant 1/2 |V|^2: (saved, batch, channels)."""
        args, codes = self._codes_along_solve(x, save_at)
        return torch.stack([energy(code, args).sum(-1) for code in codes])

    def kkt_residual(self, x: Tensor, save_at: Tensor | Literal["steps"] = "steps") -> Tensor:
        """Distance from the optimality conditions along the solve, in units of the drive: (saved, batch, channels)."""
        args, codes = self._codes_along_solve(x, save_at)
        return torch.stack([kkt_residual(code, args).amax(-1) for code in codes])

    def _codes_along_solve(
        self, x: Tensor, save_at: Tensor | Literal["steps"]
    ) -> tuple[ReconstructionArgs, list[Tensor]]:
        if self.field.threshold != "soft":
            raise ValueError(
                f'this layer\'s field descends no energy: threshold="{self.field.threshold}" is not the proximal '
                'operator of |a|_1; take threshold="soft"'
            )
        args = self.problem(x)
        states = self._integrate(args, x, save_at).ys
        return args, [self.field.code(state, args) for state in states]

    def _filters(self, kernel: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
        spectrum = torch.view_as_complex(kernel.to(dtype).contiguous())
        if self.revision == "corrected" and grid == self.grid:
            return fourier.hermitian(spectrum, grid)
        return fourier.resample(spectrum, self.grid, grid)

    def _step_bound(self, filters: Tensor) -> Tensor:
        """eta, (channels, 1, 1, 1), without gradient: it belongs to how the problem is solved."""
        if not isinstance(self.rate, str):
            return filters.real.new_full((), self.rate)
        norm = fourier.real_part_norm if self.revision == "paper" else fourier.hermitian_norm
        bound = norm(filters)
        return 1 / bound.clamp_min(torch.finfo(bound.dtype).eps)[:, None, None, None]

    def _layout(self, x: Tensor, grid: Grid | None) -> Grid:
        if x.ndim != 3 or x.shape[-1] != self.v.in_features or x.shape[1] == 0 or not x.is_floating_point():
            raise ValueError(
                f"expected floating point tokens (batch, tokens, {self.v.in_features}), at least one token, got "
                f"{x.dtype} of shape {tuple(x.shape)}"
            )
        tokens = x.shape[1]
        side = math.isqrt(tokens)
        if grid is None:
            grid = self.grid if tokens == math.prod(self.grid) else (side, side)
        if math.prod(grid) != tokens:
            raise ValueError(
                f"{tokens} tokens do not fill the grid {tuple(grid)}; give forward the grid they lie on, "
                "grid=(height, width). Class and register tokens have no place on it"
            )
        return (grid[0], grid[1])

    def extra_repr(self) -> str:
        return (
            f"grid={self.grid}, num_filters={self.kernel.shape[1]}, field={self.field}, sparsity={self.sparsity}, "
            f"rate={self.rate!r}, initial={self.initial!r}, t1={self.t1}, solver={self.solver}, "
            f"adjoint={self.adjoint}, revision={self.revision!r}"
        )


def _check_choice(name: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(valid)}")


def _check_rate(rate: float | str) -> None:
    if isinstance(rate, str):
        raise ValueError(f"unknown rate {rate!r}; give a number, or 'norm' for the reciprocal of the Gram's norm")
    solvers.checks.positive_number("rate", rate)


def _check_grid(grid: Grid) -> Grid:
    valid = isinstance(grid, tuple | list) and len(grid) == 2 and all(isinstance(side, int) for side in grid)
    if not valid or min(grid) < 1:
        raise ValueError(f"grid must be (height, width) in tokens, got {grid!r}")
    return (grid[0], grid[1])
