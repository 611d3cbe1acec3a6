"""Filters over a whole grid of tokens, as spectra: the arithmetic under convolutional templates.

A spectrum is the half-plane of `torch.fft.rfft2` with norm "ortho", (..., H, W // 2 + 1), complex. Multiplying by it
is a circular convolution, and multiplying by its conjugate the adjoint one.
"""

import functools

import torch
from torch import Tensor
from torch.autograd import forward_ad

from vars_ode.grids import Grid

DENSE_LIMIT = 256  # tokens up to which two matrix products beat torch's FFT of many small maps, on a CPU


def to_spectrum(maps: Tensor) -> Tensor:
    """Maps (..., H, W), float32 or float64, to spectra (..., H, W // 2 + 1)."""
    height, width = maps.shape[-2:]
    if not _is_dense(maps, height * width):
        return torch.fft.rfft2(maps, norm="ortho")
    forward, _ = _dense_transform(height, width, maps.dtype, maps.device)
    parts = maps.flatten(-2) @ forward
    return torch.view_as_complex(parts.unflatten(-1, (height, width // 2 + 1, 2)))


def to_maps(spectrum: Tensor, grid: Grid) -> Tensor:
    """Spectra (..., H, W // 2 + 1) to maps (..., H, W) on `grid` = (H, W); what no real map has is dropped."""
    height, width = grid
    if not _is_dense(spectrum, height * width):
        return torch.fft.irfft2(spectrum, s=grid, norm="ortho")
    _, inverse = _dense_transform(height, width, spectrum.real.dtype, spectrum.device)
    parts = torch.view_as_real(spectrum.resolve_conj()).flatten(-3)
    return (parts @ inverse).unflatten(-1, grid)


def _is_dense(values: Tensor, tokens: int) -> bool:
    """Whether to multiply by matrices; not while traced, where they would have to be part of the graph."""
    small = values.device.type == "cpu" and tokens <= DENSE_LIMIT
    return small and type(values) is Tensor and not torch.compiler.is_compiling()


@functools.lru_cache(maxsize=32)
def _dense_transform(height: int, width: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The transform and its inverse as real matrices, (H W, H (W // 2 + 1) 2) and back."""
    half = (height, width // 2 + 1)
    with torch.inference_mode(False), torch.no_grad():  # what is cached must serve later backward passes as well
        maps = torch.eye(height * width, dtype=torch.float64, device=device).view(-1, height, width)
        forward = torch.view_as_real(torch.fft.rfft2(maps, norm="ortho")).flatten(1)
        parts = torch.eye(2 * half[0] * half[1], dtype=torch.float64, device=device).view(-1, *half, 2)
        inverse = torch.fft.irfft2(torch.view_as_complex(parts), s=(height, width), norm="ortho").flatten(1)
        return forward.to(dtype), inverse.to(dtype)


def can_project_in_place(filters: Tensor, code: Tensor) -> bool:
    """Whether `project_in_place` serves these values: nothing asks for derivatives or batches them from outside."""
    height, width = code.shape[-2:]
    if height % 2 or not _is_dense(code, height * width):
        return False
    recorded = torch.is_grad_enabled() and (filters.requires_grad or code.requires_grad)
    wrapped = any(torch._C._functorch.is_functorch_wrapped_tensor(values) for values in (filters, code))
    dual = any(forward_ad.unpack_dual(values).tangent is not None for values in (filters, code))
    return not (recorded or wrapped or dual)


@torch.no_grad()
def project_in_place(filters: Tensor, code: Tensor) -> Tensor:
    """A (A^H a) for spectra A (channels, r, H, W // 2 + 1) and maps a (batch, channels, r, H, W), without a graph.

    The same as transforming, multiplying and transforming back, but faster: rows n and n + H / 2 enter the even
    frequencies by their sum and the odd ones by their difference, which halves the products, and the images take turns
    in buffers that stay in the processor's cache.
    """
    channels, count, height, columns = filters.shape
    width = code.shape[-1]
    forward, inverse = _folded_transform(height, width, code.dtype, code.device)
    filters = torch.cat([filters[..., 0::2, :], filters[..., 1::2, :]], -2)  # frequencies of one parity, then the other
    adjoint = filters.conj().resolve_conj()
    maps, half = channels * count, height * width // 2
    folded = code.new_empty(2, maps, inverse.shape[-1])
    parts = code.new_empty(maps, 2, forward.shape[-1])
    spectrum = torch.view_as_complex(parts.view(channels, count, height, columns, 2))
    explained = torch.empty_like(spectrum[:, :1])
    result = torch.empty_like(code, memory_format=torch.contiguous_format)
    for image, out in zip(code.contiguous(), result, strict=True):
        top, bottom = image.view(maps, 2, half).unbind(1)
        for parity, fold in enumerate((torch.add, torch.sub)):
            halves = folded[parity, :, :half]
            torch.mm(fold(top, bottom, out=halves), forward[parity], out=parts[:, parity])
        torch.sum(spectrum.mul_(adjoint), 1, keepdim=True, out=explained)
        torch.mul(filters, explained, out=spectrum)
        for parity in range(2):
            torch.mm(parts[:, parity], inverse[parity], out=folded[parity])
        even, odd = folded[..., :half].unbind(0)
        top, bottom = out.view(maps, 2, half).unbind(1)
        torch.add(even, odd, out=top)
        torch.sub(even, odd, out=bottom)
    return result


@functools.lru_cache(maxsize=32)
def _folded_transform(height: int, width: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Per parity of the row frequency: (2, H W / 2, H (W // 2 + 1)) and back, the latter with zero columns appended.

    The zeros round its width up to what processors multiply at once.
    """
    forward, inverse = _dense_transform(height, width, dtype, device)
    half, rows = height * width // 2, (height, width // 2 + 1, 2)
    with torch.inference_mode(False), torch.no_grad():
        forward, inverse = forward[:half].unflatten(1, rows), inverse[:, :half].unflatten(0, rows)
        to = torch.stack([forward[:, parity::2].flatten(1) for parity in range(2)])
        back = torch.stack([inverse[parity::2].flatten(0, 2) for parity in range(2)])
        return to, torch.nn.functional.pad(back, (0, -half % 16))


def hermitian(spectrum: Tensor, grid: Grid) -> Tensor:
    """The spectrum of the real filters that a stored spectrum acts as.

    In the columns of frequency 0 and W / 2, which hold both members of every conjugate pair, freely learned values need
    not belong to a real filter.
    """
    return to_spectrum(to_maps(spectrum, grid))


def mirrored(spectrum: Tensor, grid: Grid) -> Tensor:
    """In the columns of frequency 0 and W / 2 the conjugate of the value at minus the frequency; elsewhere as it is.

    Half the sum of both is what `hermitian` gives.
    """
    other = spectrum.flip(-2).roll(1, -2).conj()
    columns = torch.zeros(spectrum.shape[-1], dtype=torch.bool, device=spectrum.device)
    columns[0] = True
    if grid[1] % 2 == 0:
        columns[-1] = True
    return torch.where(columns, other, spectrum)


def resample(spectrum: Tensor, grid: Grid, new_grid: Grid) -> Tensor:
    """The same periodic filters on another grid: frequencies, in cycles per image, are kept; new ones are zero."""
    if new_grid == grid:
        return spectrum
    full = torch.fft.fft2(to_maps(spectrum, grid), norm="ortho")
    for axis, size in ((-2, new_grid[0]), (-1, new_grid[1])):
        full = _resample_axis(full, size, axis)
    return to_spectrum(torch.fft.ifft2(full, norm="ortho").real)


def _resample_axis(full: Tensor, size: int, axis: int) -> Tensor:
    """Crop or pad the frequencies along one axis of a full spectrum; a Nyquist value stands for both its signs."""
    old = full.shape[axis]
    if size == old:
        return full
    kept = min(old, size)
    positive, negative = (kept + 1) // 2, (kept - 1) // 2  # frequencies 0, 1, ... and ..., -2, -1
    pieces = [full.narrow(axis, 0, positive)]
    tail = [full.narrow(axis, old - negative, negative)]
    if kept % 2 == 0:
        nyquist = (full.narrow(axis, kept // 2, 1) + full.narrow(axis, old - kept // 2, 1)) / 2
        pieces.append(nyquist)
        if size > old:
            tail.insert(0, nyquist)
    gap = list(full.shape)
    gap[axis] = size - sum(piece.shape[axis] for piece in (*pieces, *tail))
    return torch.cat([*pieces, full.new_zeros(gap), *tail], axis)


@torch.no_grad()
def hermitian_norm(spectrum: Tensor) -> Tensor:
    """|k k^H|_2 over the frequencies: max_f sum_r |k_r(f)|^2, for spectra (channels, r, H, W // 2 + 1): (channels,)."""
    return _squares(spectrum.detach()).sum(1).amax((-2, -1))


@torch.no_grad()
def real_part_norm(spectrum: Tensor) -> Tensor:
    """max_f |Re(k k^H)|_2, the bound of the authors' code: the imaginary part is dropped, up to half the norm with it.

    Re(k k^H) = p p^T + q q^T for k = p + i q has rank two, so its norm is that of a 2 x 2 matrix.
    """
    p, q = spectrum.detach().real, spectrum.detach().imag
    pp, qq, pq = (product.sum(1) for product in (p * p, q * q, p * q))
    return ((pp + qq) / 2 + (((pp - qq) / 2).square() + pq.square()).sqrt()).amax((-2, -1))


def _squares(spectrum: Tensor) -> Tensor:
    return torch.view_as_real(spectrum).square().sum(-1)
