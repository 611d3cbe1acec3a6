"""Fields of the conformance suite: small problems with known solutions, and instruments."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

F64 = torch.float64


class Counted:
    """A field that counts its calls; attributes are those of the field inside."""

    def __init__(self, field: Callable[..., Tensor]) -> None:
        self.field = field
        self.calls = 0

    def __call__(self, t: Tensor, y: Tensor, args: Any) -> Tensor:
        self.calls += 1
        return self.field(t, y, args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.field, name)


class Linear:
    """y' = A y with args = A (batch, n, n); y(t) = expm(A t) y0. A = -I/2 + B, hence the linear rate."""

    linear_rate = 0.5

    def __call__(self, t: Tensor, y: Tensor, args: Tensor) -> Tensor:
        return (args @ y[..., None])[..., 0]

    @staticmethod
    def problem(batch: int = 2, n: int = 3) -> tuple[Tensor, Tensor]:
        """(y0, A)"""
        generator = torch.Generator().manual_seed(1)
        b = torch.randn(batch, n, n, dtype=F64, generator=generator) / n
        return torch.randn(batch, n, dtype=F64, generator=generator), b - 0.5 * torch.eye(n, dtype=F64)

    @staticmethod
    def exact(t: float, y0: Tensor, a: Tensor) -> Tensor:
        return (torch.linalg.matrix_exp(a * t) @ y0[..., None])[..., 0]


class Rational:
    """y' = -2 t y^2, y(t) = 1 / (1/y0 + t^2): smooth, non-linear, non-autonomous; c = 1 in -c y + (c y - 2 t y^2)."""

    linear_rate = 1.0

    def __call__(self, t: Tensor, y: Tensor, args: Any) -> Tensor:
        return -2 * t * y**2

    @staticmethod
    def exact(t: float, y0: Tensor, args: Any = None) -> Tensor:
        return 1 / (1 / y0 + t**2)


class Pull(nn.Module):
    """y' = gain tanh(W y + drive + bias) - y, W symmetric and small: a smooth contraction, y + f(y) included.

    args = {"drive": (batch, n), "shape": (gain (n,), {"bias": (n,)})}.
    """

    natural_step = 1.0
    linear_rate = 1.0
    contractive = True

    def __init__(self, n: int = 3, dtype: torch.dtype = F64) -> None:
        super().__init__()
        root = torch.randn(n, n, generator=torch.Generator().manual_seed(2), dtype=F64) / n
        self.weight = nn.Parameter((0.3 * (root + root.T)).to(dtype))

    def forward(self, t: Tensor, y: Tensor, args: Any) -> Tensor:
        gain, inner = args["shape"]
        return gain * torch.tanh((y[..., None, :] * self.weight).sum(-1) + args["drive"] + inner["bias"]) - y

    @staticmethod
    def leaves(batch: int = 2, n: int = 3, dtype: torch.dtype = F64) -> dict[str, Tensor]:
        """What gradients are taken of, beside the weight; `base` is the ancestor that drive and bias share."""
        generator = torch.Generator().manual_seed(3)
        return {
            "y0": torch.randn(batch, n, generator=generator, dtype=F64).to(dtype),
            "base": torch.randn(n, generator=generator, dtype=F64).to(dtype),
            "offset": torch.randn(batch, n, generator=generator, dtype=F64).to(dtype),
            "gain": (0.5 + 0.3 * torch.rand(n, generator=generator, dtype=F64)).to(dtype),
        }

    @staticmethod
    def args(leaves: dict[str, Tensor]) -> dict[str, Any]:
        drive = leaves["offset"] + 2 * leaves["base"]
        return {"drive": drive, "shape": (leaves["gain"] * 1.0, {"bias": leaves["base"].sin()})}


class Lasso(nn.Module):
    """a' = S(a - eta (G a - gain b); eta lam) - a, at rest at the minimisers of 1/2 a^T G a - gain b^T a + lam |a|_1.

    args = {"drive": b (batch, n), "gram": G (n, n), "rest": (lam (),)}.
    """

    natural_step = 1.0
    linear_rate = 1.0
    eta = 0.2

    def __init__(self, n: int = 3, dtype: torch.dtype = F64) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.8, 1.2, n, dtype=dtype))

    def forward(self, t: Tensor, a: Tensor, args: Any) -> Tensor:
        slope = (a[..., None, :] * args["gram"]).sum(-1) - self.gain * args["drive"]
        return self.prox(a - self.eta * slope, self.eta, args) - a

    def prox(self, v: Tensor, step: float, args: Any) -> Tensor:
        (lam,) = args["rest"]
        return v.sign() * (v.abs() - step * lam).clamp_min(0)

    def resolvent(self, v: Tensor, rho: float, args: Any) -> Tensor:
        shifted = args["gram"] + rho * torch.eye(v.shape[-1], dtype=v.dtype)
        return torch.linalg.solve(shifted, (self.gain * args["drive"] + rho * v)[..., None])[..., 0]

    @staticmethod
    def leaves(batch: int = 2, n: int = 3, dtype: torch.dtype = F64) -> dict[str, Tensor]:
        """What gradients are taken of, beside the gain; `base` is the ancestor that drive and lam share."""
        generator = torch.Generator().manual_seed(4)
        return {
            "y0": torch.randn(batch, n, generator=generator, dtype=F64).to(dtype),
            "base": torch.randn(n, generator=generator, dtype=F64).to(dtype),
            "offset": torch.randn(batch, n, generator=generator, dtype=F64).to(dtype),
            "root": torch.randn(n, n, generator=generator, dtype=F64).to(dtype),
        }

    @staticmethod
    def args(leaves: dict[str, Tensor]) -> dict[str, Any]:
        root, base = leaves["root"], leaves["base"]
        gram = root.T @ root + 0.3 * torch.eye(len(root), dtype=root.dtype)
        return {"drive": leaves["offset"] + 2 * base, "gram": gram, "rest": (1.3 * base.sin().mean().exp(),)}


def pull(batch: int = 2, n: int = 3, dtype: torch.dtype = F64) -> tuple[Pull, Tensor, dict[str, Any]]:
    """(field, y0, args)"""
    leaves = Pull.leaves(batch, n, dtype)
    return Pull(n, dtype), leaves["y0"], Pull.args(leaves)


def finite_differences(function: Callable[[], Tensor], leaf: Tensor, eps: float = 1e-6) -> Tensor:
    """d function() / d leaf, one central difference per element, in place so that nothing is copied or missed."""
    gradient = torch.empty_like(leaf)
    with torch.no_grad():
        for index in itertools.product(*map(range, leaf.shape)):
            kept = leaf[index].item()
            leaf[index] = kept + eps
            above = function()
            leaf[index] = kept - eps
            below = function()
            leaf[index] = kept
            gradient[index] = (above - below) / (2 * eps)
    return gradient


def slope(sizes: list[float], errors: list[float]) -> float:
    """Least-squares slope of log error over log size."""
    x, y = (torch.tensor(values, dtype=F64).log() for values in (sizes, errors))
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())
