"""VARS-S: static templates, learned circular filters over the whole grid of tokens, in the Fourier domain."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

import solvers
from solvers import SteadyState
from solvers.adjoints import Adjoint
from vars_ode import fourier, grids
from vars_ode.configured import configured
from vars_ode.dictionaries import ReadOut
from vars_ode.fields import DYNAMICS, ReconstructionArgs
from vars_ode.folding import fold_before
from vars_ode.fourier import to_maps, to_spectrum
from vars_ode.grids import Grid, known_number
from vars_ode.layer import ReconstructionLayer, check_tokens, refuse_unsupported, warn_of_nonfinite
from vars_ode.representation import tensor_repr

REVISIONS = ("corrected", "paper")
INITIALIZATIONS = ("active", "authors")


class ConvolutionGram(NamedTuple):
    """G = A A^H per channel and frequency, of rank one, and so applied as A (A^H a) without forming r x r products.

    Attributes:
        filters: spectra k as (real, imaginary) pairs, (channels, r, H, W // 2 + 1, 2).
        ridge: mu of A A^H + mu I, broadcasting against (channels, 1, 1, 1); None for zero.
    """

    filters: Tensor
    ridge: Tensor | None = None

    def __repr__(self) -> str:
        return tensor_repr(self)

    def __matmul__(self, code: Tensor) -> Tensor:
        """Codes (batch, channels, r, H, W) to the same."""
        filters = torch.view_as_complex(self.filters)
        if fourier.can_project_in_place(filters, code):
            projected = fourier.project_in_place(filters, code)
        else:
            projected = analysis(filters, synthesis(filters, to_spectrum(code)), (code.shape[-2], code.shape[-1]))
        return projected if self.ridge is None else torch.addcmul(projected, self.ridge, code)

    def shifted(self, mu: Tensor) -> "ConvolutionGram":
        """A A^H + mu I."""
        return self._replace(ridge=mu if self.ridge is None else self.ridge + mu)

    def resolvent(self, code: Tensor, rho: float) -> Tensor:
        """(G + rho I)^-1 a per frequency, by Woodbury's formula: (a - U (rho I + U^H U)^-1 U^H a) / rho, G = U U^H.

        U is k, once more for a conjugate pair of frequencies in one column, since codes are real.
        """
        grid = (code.shape[-2], code.shape[-1])
        filters = torch.view_as_complex(self.filters)
        pair = torch.stack([filters, fourier.mirrored(filters, grid)]) / math.sqrt(2)
        small = torch.einsum("icrhw,jcrhw->chwij", pair.conj(), pair)
        total = rho if self.ridge is None else rho + self.ridge  # (channels or 1, 1, 1, 1)
        diagonal = total if self.ridge is None else (rho + self.ridge)[..., None]
        small = small + diagonal * torch.eye(2, dtype=small.dtype, device=small.device)
        explained = torch.stack([synthesis(part, to_spectrum(code)) for part in pair], -1)
        weights = torch.linalg.solve(small, explained[..., None])[..., 0]
        correction = sum(analysis(part, weights[..., index], grid) for index, part in enumerate(pair))
        return (code - correction) / total


@dataclass(frozen=True)
class ConvolutionReadOut(ReadOut):
    """Phi a: codes (batch, channels, r, H, W) to values (batch, channels, tokens, 1), a channel being a head.

    Attributes:
        filters: spectra, (channels, r, H, W // 2 + 1).
        grid: (H, W).
    """

    filters: Tensor
    grid: Grid

    __repr__ = tensor_repr

    def __call__(self, code: Tensor) -> Tensor:
        dtype = torch.complex128 if code.dtype == torch.float64 else torch.complex64
        spectrum = synthesis(self.filters.to(dtype), to_spectrum(code))
        return to_maps(spectrum, self.grid).flatten(2)[..., None]


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


class VARSConvAttention(ReconstructionLayer):
    """VARS-S: the map of values of each channel is reconstructed by r learned templates and all their circular shifts.

    x -> Linear -> V; code a minimises 1/2 |V - Phi a|^2 + lam |a|_1 per channel, with G = A A^H per frequency;
    Phi a -> one more learned filter per channel -> BatchNorm -> Linear. It normalises its output instead of its input.

    Args:
        dim: channels.
        grid: (height, width) of tokens that the filters are learned on. For other grids they are resampled as periodic
            functions.
        num_filters: r, templates per channel.
        bias: whether the two projections have one.
        proj_drop: dropout on the output.
        revision: "corrected", or "paper" for the authors' arithmetic, whose step bound drops the imaginary part of the
            Gram (steps up to twice too long) and whose Gram lets templates be complex in two columns of the spectrum.
        initialization: "active" scales V so that the entries of the drive have a standard deviation of about 2 lam for
            inputs of unit variance; with "authors" all codes of the first blocks of a model are zero at lam = 3.5,
            and those blocks get no gradient.
        sparsity: lam; the authors' 3.5.
        threshold, dynamics, initial, adjoint, until, ridge: as in `VARSAttention`.
        rate: eta, a number, or "norm" for 1 / |G|_2 per channel, exact from the spectrum.
        t1: horizon; three Euler steps, as the authors take, by default.
        solver: name or object.
        num_heads, qkv_bias, proj_bias, qk_norm, scale_norm, attn_drop, norm_layer: arguments that timm's models pass to
            an attention. The number of heads has no effect, as each channel is a head; the biases are those of the two
            projections, `bias` where None; normalisation and dropout of an attention matrix are refused.

    Raises:
        ValueError: an argument that states no layer; the message says what was expected.
    """

    RATES = ("norm",)
    normalizes_output: ClassVar[bool] = True
    no_weight_decay_names: ClassVar[tuple[str, ...]] = ("kernel", "output_kernel")

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
        ridge: float = 0.0,
        num_heads: int | None = None,
        qkv_bias: bool | None = None,
        proj_bias: bool | None = None,
        qk_norm: bool = False,
        scale_norm: bool = False,
        attn_drop: float = 0.0,
        norm_layer: type[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        refuse_unsupported("VARSConvAttention", qk_norm=qk_norm, scale_norm=scale_norm, attn_drop=attn_drop)
        solvers.checks.positive_int("dim", dim)
        solvers.checks.positive_int("num_filters", num_filters)
        solvers.checks.one_of("dynamics", dynamics, DYNAMICS)
        solvers.checks.one_of("revision", revision, REVISIONS)
        solvers.checks.one_of("initialization", initialization, INITIALIZATIONS)
        self.grid = grid = grids.check_grid(grid)
        self.revision, self.initialization = revision, initialization
        self.field = DYNAMICS[dynamics](threshold)
        self.configure(
            solver=solver,
            t1=t1,
            sparsity=sparsity,
            rate=rate,
            initial=initial,
            adjoint=adjoint,
            until=until,
            ridge=ridge,
        )

        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        half = (grid[0], grid[1] // 2 + 1, 2)
        self.v = nn.Linear(dim, dim, bias=bias if qkv_bias is None else qkv_bias, **factory)
        self.kernel = nn.Parameter(torch.empty(dim, num_filters, *half, **factory))
        self.output_kernel = nn.Parameter(torch.empty(dim, *half, **factory))
        self.norm: nn.Module = nn.BatchNorm2d(dim, **factory)
        self.proj = nn.Linear(dim, dim, bias=bias if proj_bias is None else proj_bias, **factory)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    @classmethod
    def configured(cls, **options: Any) -> "type[VARSConvAttention]":
        """A subclass with other defaults; see `VARSAttention.configured`."""
        return configured(cls, options)

    def stated_options(self) -> dict[str, Any]:
        """What the constructor was told of the problem, as it stands; `settings` has the rest."""
        return {
            "grid": self.grid,
            "num_filters": self.kernel.shape[1],
            "revision": self.revision,
            "initialization": self.initialization,
            **self.field_options(),
        }

    def reset_parameters(self) -> None:
        """Initialise filters and projections, according to `initialization`."""
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
            # The gain is in V. In the filters it would enter the Gram squared and make S(b; lam) a poor initial state.
            gain = 2 * self.sparsity / math.sqrt(power / (height * width))
            if gain < torch.finfo(torch.float32).tiny:  # no sparsity, or less than weights can follow
                gain = 1.0
            std = gain * self.v.in_features**-0.5
            nn.init.trunc_normal_(self.v.weight, std=std, a=-2 * std, b=2 * std)
            with torch.no_grad():
                self.output_kernel[..., 0] += 1  # near the identity

    def forward(
        self, x: Tensor, grid: Grid | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Attend.

        Args:
            x: tokens in row-major order, (batch, tokens, dim).
            grid: their (height, width). None: that of the vision transformer of timm's that the layer is in, or else
                the layer's own, or a square one.
            attn_mask, is_causal: arguments that timm's models pass on; masks are refused.

        Returns:
            (batch, tokens, dim).
        """
        _refuse_masks(attn_mask, is_causal)
        grid = self._layout(x, grid)
        if self.training and len(x) * x.shape[1] == 1:
            raise ValueError(
                "batch normalisation has no statistics of a single token of a single image: train on larger batches, "
                "or call eval() first"
            )
        args, read_out = self.problem(x, grid=grid)
        with torch.autocast(x.device.type, enabled=False):
            solution = self._integrate(args, x)
            maps = read_out(self.field.code(solution.y1, args)).view(len(x), self.v.out_features, *grid)
            maps = to_maps(self._filters(self.output_kernel, grid, maps.dtype) * to_spectrum(maps), grid)
        tokens = self.norm(maps.to(x.dtype)).flatten(2).transpose(1, 2)
        output = self.proj(tokens)
        warn_of_nonfinite(self, x, output, solution)
        return self.proj_drop(output)

    def fold_norms(self) -> None:
        """Fold the BatchNorm of evaluation mode into the projection behind it, in place: for deployment."""
        self.norm = fold_before(self.norm, self.proj)

    def _project(self, x: Tensor) -> tuple[Tensor]:
        check_tokens(x, self.v.in_features, self.v.weight)
        return (self.v(x).transpose(1, 2)[..., None],)

    def _state_problem(  # type: ignore[override]
        self, *projected: Tensor, grid: Grid | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> tuple[ReconstructionArgs, ReadOut]:
        _refuse_masks(attn_mask, is_causal)
        (v,) = projected
        grid = self._grid(v.shape[2], grid)
        v = v.to(torch.promote_types(v.dtype, torch.float32))[..., 0].unflatten(-1, grid)
        filters = self._filters(self.kernel, grid, v.dtype)
        drive = analysis(filters, to_spectrum(v), grid)
        gram = ConvolutionGram(torch.view_as_real(filters).contiguous())
        rate = self._step_bound(filters)
        if self.ridge:
            gram, rate = gram.shifted(self.ridge / rate), rate / (1 + self.ridge)
        args = ReconstructionArgs(drive, gram, rate, drive.new_full((), self.sparsity))
        return args, ConvolutionReadOut(filters, grid)

    def _filters(self, kernel: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
        spectrum = torch.view_as_complex(kernel.to(dtype).contiguous())
        if self.revision == "corrected" and grid == self.grid:
            return fourier.hermitian(spectrum, grid)
        return fourier.resample(spectrum, self.grid, grid)

    def _step_bound(self, filters: Tensor) -> Tensor:
        """eta, (channels, 1, 1, 1), without gradient, as it is part of the method and not of the problem."""
        if not isinstance(self.rate, str):
            return filters.real.new_full((), self.rate)
        norm = fourier.real_part_norm if self.revision == "paper" else fourier.hermitian_norm
        bound = norm(filters)
        return 1 / bound.clamp_min(torch.finfo(bound.dtype).eps)[:, None, None, None]

    def _layout(self, x: Tensor, grid: Grid | None) -> Grid:
        check_tokens(x, self.v.in_features, self.v.weight)
        return self._grid(x.shape[1], grid)

    def _grid(self, tokens: int, grid: Grid | None) -> Grid:
        """The grid of a number of tokens: the one given, or the model's, or the layer's own, or a square."""
        tokens = known_number(tokens)
        side = math.isqrt(tokens)
        if grid is None and self.layout is not None and not self.layout.num_prefix_tokens:
            grid, _ = self.token_grid(tokens)
        if grid is None:
            grid = self.grid if tokens == math.prod(self.grid) else (side, side)
        grid = grids.check_grid(grid)
        if math.prod(grid) != tokens:
            raise ValueError(
                f"{tokens} tokens do not fill the grid {tuple(grid)}; give forward the grid they lie on, "
                "grid=(height, width). Class and register tokens are not supported"
            )
        return grid

    def extra_repr(self) -> str:
        return (
            f"grid={self.grid}, num_filters={self.kernel.shape[1]}, revision={self.revision!r}, {self._settings_repr()}"
        )


def _refuse_masks(attn_mask: Tensor | None, is_causal: bool) -> None:
    if attn_mask is not None or is_causal:
        raise ValueError("VARSConvAttention has filters over the whole grid, which no mask can be applied to")
