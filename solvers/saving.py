"""Which states a stepping solve keeps, and how states between two steps are interpolated."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

_SAME_TIME = 1e-12  # relative to the grid: a saved time this close to a step is that step


@dataclass(frozen=True)
class SavePlan:
    """Positions in the saved trajectory by step: made once from the grid, with no tensor involved.

    Attributes:
        save_at: what was asked for: None, "steps", or times.
        at_step: grid index -> positions of the saved trajectory that are exactly this state.
        inside: step -> (position, fraction of the step) of states between this step's ends.
    """

    save_at: tuple[float, ...] | Literal["steps"] | None
    at_step: dict[int, list[int]]
    inside: dict[int, list[tuple[int, float]]]

    @classmethod
    def on_grid(cls, save_at: tuple[float, ...] | Literal["steps"] | None, grid: list[float]) -> "SavePlan":
        at_step: dict[int, list[int]] = {}
        inside: dict[int, list[tuple[int, float]]] = {}
        if isinstance(save_at, tuple):
            direction = -1.0 if grid[-1] < grid[0] else 1.0
            keys = [direction * t for t in grid]
            tolerance = _SAME_TIME * max(1.0, abs(grid[0]), abs(grid[-1]))
            n = 0
            for position, time in enumerate(
                save_at
            ):  # both are sorted in the direction of integration, so one pass is enough
                while n < len(grid) and keys[n] < direction * time - tolerance:
                    n += 1
                if n < len(grid) and abs(grid[n] - time) <= tolerance:
                    at_step.setdefault(n, []).append(position)
                elif n < len(grid):  # later than the grid: `assemble` takes the last state
                    fraction = (time - grid[n - 1]) / (grid[n] - grid[n - 1])
                    inside.setdefault(n - 1, []).append((position, fraction))
        return cls(save_at, at_step, inside)

    def needs_end_rate(self, step: int, interpolation: str) -> bool:
        return interpolation == "hermite" and step in self.inside

    def extra_evals(self, num_steps: int, interpolation: str) -> int:
        """Evaluations for interpolation that no later step reuses: the one at the end of the last step."""
        return int(self.needs_end_rate(num_steps - 1, interpolation))

    def record(
        self,
        saved: dict[int, Tensor],
        step: int,
        dt: float,
        y: Tensor,
        y_next: Tensor,
        rate: Tensor,
        rate_next: Tensor | None,
    ) -> None:
        """Add to `saved` what lies inside or at the end of `step`."""
        if self.save_at == "steps":
            saved[step + 1] = y_next
            return
        for position, fraction in self.inside.get(step, ()):
            if rate_next is None:
                saved[position] = torch.lerp(y, y_next, fraction)
            else:
                saved[position] = hermite(fraction, dt, y, y_next, rate, rate_next)
        for position in self.at_step.get(step + 1, ()):
            saved[position] = y_next

    def assemble(self, saved: dict[int, Tensor], y0: Tensor, y1: Tensor, grid: list[float]) -> tuple[Tensor, Tensor]:
        """Times (saved,) and states (saved, batch, ...). Times after every sample has stopped hold the last state."""
        if self.save_at is None:
            return torch.tensor(grid[-1:], dtype=y1.dtype, device=y1.device), y1[None]
        if self.save_at == "steps":
            times = grid[: len(saved) + 1]
            states = [y0, *(saved[n + 1] for n in range(len(saved)))]
        else:
            times = list(self.save_at)
            starts = set(self.at_step.get(0, ()))
            states = [y0 if position in starts else saved.get(position, y1) for position in range(len(times))]
        return torch.tensor(times, dtype=y1.dtype, device=y1.device), torch.stack(states)


def hermite(fraction: float, dt: float, y: Tensor, y_next: Tensor, rate: Tensor, rate_next: Tensor) -> Tensor:
    """Cubic Hermite interpolant through both ends of a step and their rates: local error O(dt^4)."""
    s, r = fraction, 1.0 - fraction
    return (1 + 2 * s) * r * r * y + s * s * (3 - 2 * s) * y_next + s * r * r * dt * rate - s * s * r * dt * rate_next
