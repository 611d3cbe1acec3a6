"""The Square attack: random search on the logits alone, without gradients, so that a masked gradient is no protection.

Andriushchenko, Croce, Flammarion and Hein, *Square Attack: a query-efficient black-box adversarial attack via random
search*, ECCV 2020, arXiv 1912.00049. At every query a square of the perturbation is drawn anew, and kept where the
margin f_y(x) - max_{k != y} f_k(x) becomes smaller. Squares shrink as queries go by.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Generator, Tensor, nn

from vars_ode.measuring import evaluation_mode
from vars_ode.robustness._common import check_attack, check_classes, check_images, check_labels, check_logits
from vars_ode.robustness.norms import ball
from vars_ode.robustness.randomness import check_indices, image_generator

__all__ = ["square"]

_ROUNDING = 1e-5  # of margins in float32
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries


def square(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float = 1 / 255,
    num_queries: int = 5000,
    seed: int = 0,
    indices: Tensor | Sequence[int] | None = None,
    *,
    norm: str = "linf",
    first_share: float = 0.8,
) -> Tensor:
    """The Square attack, without targets.

    Args:
        model: maps (batch, channels, height, width) in [0, 1] to logits (batch, classes). Needs no gradient.
        images: (batch, channels, height, width), floating-point in [0, 1]. Not changed.
        labels: (batch,) int64, the true classes.
        eps: radius of the ball, on the [0, 1] scale.
        num_queries: forward passes per image at most; an image that is misclassified needs no more. 5,000 as in
            AutoAttack.
        seed: an image's numbers depend on the seed and its index alone.
        indices: (batch,) int64, the images' positions in the whole data set; None for 0, 1, ..., batch - 1.
        norm: of the ball, "linf" or "l2".
        first_share: p, the part of the image that the first squares cover. 0.8 as in AutoAttack.

    Returns:
        The images of smallest margin that were found: same shape, dtype and device, in [0, 1] and within eps.

    Raises:
        ValueError: for wrong images, labels, eps, norm, number of queries or share.
        RuntimeError: where logits are not finite.
    """
    check_images(images, "square")
    check_labels(labels, images, "square")
    check_attack("square", eps=eps, num_queries=num_queries)
    if not 0 < first_share <= 1:
        raise ValueError(f"square got first_share={first_share!r}; expected a part of the image in (0, 1].")
    ball(norm)
    places = check_indices(indices, images.shape[0], "square")
    generators = [image_generator(seed, "square", 0, place) for place in places]
    with torch.no_grad(), evaluation_mode(model):
        margins = _margins(model, images, labels)
        search = _Search(model, images.detach(), labels, eps, _L2(eps) if norm == "l2" else _Linf(eps))
        search.run(margins, generators, num_queries, first_share)
        return search.found


class _Linf:
    """Perturbations of +-eps: stripes at first, then squares of one sign per channel."""

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def first(self, images: Tensor, generators: Sequence[Generator]) -> Tensor:
        channels, _, width = images.shape[1:]
        signs = [_signs(torch.rand(channels, 1, width, generator=generator)) for generator in generators]
        return self.eps * torch.stack(signs).to(images).expand_as(images).clone()

    def changed(self, delta: Tensor, side: int, generators: Sequence[Generator]) -> Tensor:
        channels, height, width = delta.shape[1:]
        side = min(side, height, width)
        draws = torch.stack([torch.rand(2 + channels, generator=generator) for generator in generators])
        window = _Window(draws[:, 0], draws[:, 1], side, height, width)
        signs = self.eps * _signs(draws[:, 2:]).to(delta)[..., None, None]
        same = (window.of(delta) == signs).flatten(1).all(1).view(-1, 1, 1, 1)
        return window.put(delta, torch.where(same, -signs, signs))  # a square that changes nothing is turned round

    def applied(self, images: Tensor, delta: Tensor) -> Tensor:
        return (images + delta).clamp(0, 1)

    def kept(self, images: Tensor, found: Tensor, delta: Tensor) -> Tensor:
        return delta


class _L2:
    """Perturbations of norm eps, whose mass moves from one square to another."""

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def first(self, images: Tensor, generators: Sequence[Generator]) -> Tensor:
        channels, height, width = images.shape[1:]
        side = max(1, min(height, width) // 5)
        rows, columns = height // side, width // side
        delta = torch.zeros_like(images)
        top, left = ((size - count * side) // 2 for size, count in ((height, rows), (width, columns)))
        for place, generator in enumerate(generators):
            for row in range(rows):
                for column in range(columns):
                    signs = _signs(torch.rand(channels, 1, 1, generator=generator))
                    y, x = top + row * side, left + column * side
                    bump = _turned(_bump(side), torch.rand((), generator=generator))
                    delta[place, :, y : y + side, x : x + side] = (signs * bump).to(images)
        return delta

    def changed(self, delta: Tensor, side: int, generators: Sequence[Generator]) -> Tensor:
        channels, height, width = delta.shape[1:]
        side = min(max(side, 3) | 1, height, width)
        draws = torch.stack([torch.rand(5 + channels, generator=generator) for generator in generators])
        bumps = _turned(_bump(side), draws[:, 4, None, None])[:, None].to(delta)
        gains, loses = (_Window(draws[:, i], draws[:, i + 1], side, height, width) for i in (0, 2))
        mine, theirs = gains.of(delta), loses.of(delta)
        emptied = loses.put(delta, torch.zeros_like(theirs))
        # The squared norm of both squares together, counted once where they overlap.
        both = mine.square().sum((2, 3)) + loses.of(delta).square().sum((2, 3))
        both -= (gains.of(delta).square() - gains.of(emptied).square()).sum((2, 3))
        spare = (self.eps**2 - delta.square().sum((1, 2, 3))).clamp_min(0)[:, None] / channels
        tiny = torch.finfo(delta.dtype).tiny
        old = mine / _norm(mine).clamp_min(max(tiny, 1e-10))
        new = bumps * _signs(draws[:, 5:]).to(delta)[..., None, None] + old
        new = new / _norm(new).clamp_min(max(tiny, 1e-10)) * (spare + both).clamp_min(0).sqrt()[..., None, None]
        return gains.put(emptied, new)

    def applied(self, images: Tensor, delta: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True)
        return (images + delta * (self.eps / length.clamp_min(torch.finfo(delta.dtype).tiny))).clamp(0, 1)

    def kept(self, images: Tensor, found: Tensor, delta: Tensor) -> Tensor:
        return found - images  # what was cut off at [0, 1] is free for the next square


class _Search:
    """The best images so far."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, eps: float, moves: _Linf | _L2) -> None:
        self.model, self.images, self.labels, self.moves, self.eps = model, images, labels, moves, eps
        self.found = images.clone()

    def run(self, margins: Tensor, generators: Sequence[Generator], num_queries: int, first_share: float) -> None:
        active = (margins > 0).nonzero().flatten()
        if not len(active) or self.eps == 0:
            return
        own = [generators[place] for place in active.tolist()]
        delta = self.moves.first(self.images[active], own)
        self.found[active] = self.moves.applied(self.images[active], delta)
        best = _margins(self.model, self.found[active], self.labels[active])
        delta = self.moves.kept(self.images[active], self.found[active], delta)
        area = self.images.shape[-2] * self.images.shape[-1]
        for query in range(1, num_queries):
            left = best > 0
            if not left.any():
                return
            if not left.all():
                own = [generator for generator, stays in zip(own, left.tolist(), strict=True) if stays]
                active, delta, best = active[left], delta[left], best[left]
            side = max(1, round(math.sqrt(_share(first_share, query / num_queries) * area)))
            changed = self.moves.changed(delta, side, own)
            tried = self.moves.applied(self.images[active], changed)
            margins = _margins(self.model, tried, self.labels[active])
            better = margins < best - _ROUNDING  # so that a square without effect is judged alike in any batch
            best = torch.where(better, margins, best)
            mask = better.view(-1, 1, 1, 1)
            self.found[active] = torch.where(mask, tried, self.found[active])
            delta = torch.where(mask, self.moves.kept(self.images[active], tried, changed), delta)


class _Window:
    """A square per image, at places drawn from uniform numbers."""

    def __init__(self, top: Tensor, left: Tensor, side: int, height: int, width: int) -> None:
        offset = torch.arange(side)
        rows = (top * (height - side + 1)).long()[:, None] + offset
        columns = (left * (width - side + 1)).long()[:, None] + offset
        self._rows, self._columns = rows[:, None, :, None], columns[:, None, None, :]

    def of(self, images: Tensor) -> Tensor:
        return images[self._index(images)]

    def put(self, images: Tensor, values: Tensor) -> Tensor:
        made = images.clone()
        index = self._index(images)
        made[index] = values.expand_as(made[index])
        return made

    def _index(self, images: Tensor) -> tuple[Tensor, ...]:
        batch, channels = (torch.arange(size, device=images.device) for size in images.shape[:2])
        rows, columns = self._rows.to(images.device), self._columns.to(images.device)
        return batch.view(-1, 1, 1, 1), channels.view(1, -1, 1, 1), rows, columns


def _margins(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """(batch,) f_y - max of the others: negative where the model is misled."""
    logits = model(images)
    check_logits(logits, images, "square")
    check_classes(labels, logits, "square")
    own = logits.gather(1, labels[:, None])
    return (own[:, 0] - logits.scatter(1, labels[:, None], -torch.inf).amax(1)).float()


def _share(first: float, progress: float) -> float:
    """p: halved as the queries go by."""
    return first / 2 ** sum(10_000 * progress > after for after in _HALVED_AFTER)


def _signs(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0)


def _norm(windows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(windows, dim=(2, 3), keepdim=True)


@lru_cache(maxsize=64)
def _bump(side: int) -> Tensor:
    """(side, side) of norm 1: two pyramids of opposite sign, one above the other."""
    first = side // 2
    made = torch.cat([_pyramid(first, side), -_pyramid(side - first, side)])
    return made / made.norm()


def _turned(bump: Tensor, uniform: Tensor) -> Tensor:
    """Along an axis that uniform numbers choose."""
    return torch.where(uniform > 0.5, bump.T, bump)


def _pyramid(height: int, width: int) -> Tensor:
    """Nested rectangles around the middle, each of 1 / its number squared; norm 1."""
    made = torch.zeros(height, width)
    row, column = height // 2, width // 2
    for step in range(max(height // 2 + 1, width // 2 + 1)):
        rows = slice(max(row - step, 0), max(row + step + 1, 0))
        made[rows, max(column - step, 0) : column + step + 1] += 1 / (step + 1) ** 2
    return made / made.norm().clamp_min(torch.finfo(made.dtype).tiny)
