"""VARS-S: the arithmetic in the Fourier domain, the layer, and what it does better than the original."""

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import solvers
from vars_ode import VARSConvAttention, fourier
from vars_ode.bench.vars_s import vars_s
from vars_ode.convolutional import ConvolutionGram

GRIDS = [(4, 4), (4, 5), (5, 4), (7, 3), (1, 6), (17, 16)]


def layer_and_tokens(grid: tuple[int, int] = (4, 5), channels: int = 6, **options) -> tuple[VARSConvAttention, Tensor]:
    layer = VARSConvAttention(channels, grid, **options).double()
    return layer, torch.randn(2, grid[0] * grid[1], channels, dtype=torch.float64)


def dense(gram, shape: tuple[int, ...]) -> Tensor:
    """The Gram of channel 0 as a matrix."""
    size = torch.Size(shape[2:]).numel()
    code = torch.zeros(size, *shape[1:], dtype=torch.float64)
    code[:, 0] = torch.eye(size, dtype=torch.float64).view(size, *shape[2:])
    return (gram @ code)[:, 0].flatten(1).T


@pytest.mark.parametrize("grid", GRIDS)
def test_transforms_are_those_of_torch(grid: tuple[int, int]) -> None:
    maps = torch.randn(3, *grid, dtype=torch.float64)
    spectrum = torch.fft.rfft2(maps, norm="ortho")
    torch.testing.assert_close(fourier.to_spectrum(maps), spectrum)
    torch.testing.assert_close(fourier.to_maps(spectrum, grid), maps)
    free = torch.randn(spectrum.shape, dtype=torch.complex128)  # of no real map
    torch.testing.assert_close(fourier.to_maps(free, grid), torch.fft.irfft2(free, s=grid, norm="ortho"))


def test_transform_cached_in_inference_mode_serves_a_backward_pass() -> None:
    fourier._dense_transform.cache_clear()
    with torch.inference_mode():
        fourier.to_spectrum(torch.randn(2, 3, 3))
    maps = torch.randn(2, 3, 3, requires_grad=True)
    fourier.to_maps(fourier.to_spectrum(maps), (3, 3)).sum().backward()
    torch.testing.assert_close(maps.grad, torch.ones_like(maps))


@pytest.mark.parametrize("old", GRIDS)
def test_resampled_filters_do_to_upsampled_maps_what_they_did_before(old: tuple[int, int]) -> None:
    new = (2 * old[0] + 1, 3 * old[1])
    kernel = fourier.to_spectrum(torch.randn(old, dtype=torch.float64))
    band_limited = fourier.to_spectrum(torch.randn(old, dtype=torch.float64))
    if old[1] % 2 == 0:
        band_limited[:, -1] = 0
    if old[0] % 2 == 0:
        band_limited[old[0] // 2] = 0
    finer = fourier.resample(band_limited, old, new)
    expected = fourier.resample(kernel * band_limited, old, new)
    torch.testing.assert_close(fourier.resample(kernel, old, new) * finer, expected)
    torch.testing.assert_close(fourier.resample(fourier.resample(kernel, old, new), new, old), kernel)


@pytest.mark.parametrize("revision", ["corrected", "paper"])
def test_gram_is_symmetric_positive_and_inverted_by_its_resolvent(revision: str) -> None:
    layer, x = layer_and_tokens(revision=revision)
    args, _ = layer.problem(x)
    matrix = dense(args.gram, args.drive.shape)
    torch.testing.assert_close(matrix, matrix.T)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-9
    code = torch.randn_like(args.drive)
    torch.testing.assert_close(args.gram.resolvent(args.gram @ code + 0.7 * code, 0.7), code)


@pytest.mark.parametrize("grid", [*GRIDS, (14, 14), (2, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gram_without_a_graph_is_that_with_one(grid: tuple[int, int], dtype: torch.dtype) -> None:
    """Values for inference come by another arithmetic than those for training, with freely learned spectra too."""
    gram = ConvolutionGram(torch.randn(6, 5, grid[0], grid[1] // 2 + 1, 2, dtype=dtype))
    code = torch.randn(3, 6, 5, *grid, dtype=dtype).transpose(0, 1).contiguous().transpose(0, 1)  # strided
    recorded = gram @ code.clone().requires_grad_()
    for guard in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with guard():
            plain = gram @ code
        assert not plain.requires_grad
        torch.testing.assert_close(plain, recorded.detach(), atol=1e-4 if dtype == torch.float32 else 1e-12, rtol=0)


def test_gram_under_transforms_of_functions() -> None:
    gram = ConvolutionGram(torch.randn(3, 2, 4, 3, 2, dtype=torch.float64))
    code, tangent = torch.randn(2, 2, 3, 2, 4, 4, dtype=torch.float64)
    expected = gram @ tangent  # linear: its own derivative
    torch.testing.assert_close(torch.func.jvp(lambda a: gram @ a, (code,), (tangent,))[1], expected)
    torch.testing.assert_close(torch.func.vjp(lambda a: gram @ a, code)[1](tangent)[0], expected)
    batched = torch.func.vmap(lambda a: (gram @ a[None])[0])(tangent)
    torch.testing.assert_close(batched, expected)
    with forward_ad.dual_level():
        dual = gram @ forward_ad.make_dual(code, tangent)
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, expected)


def test_gram_is_that_of_the_templates() -> None:
    """b = Phi^T V and G = Phi^T Phi for one and the same real Phi, whatever values the filters have learned."""
    layer, x = layer_and_tokens()
    args, _ = layer.problem(x)
    tokens = 20
    impulses = torch.eye(tokens, dtype=torch.float64).view(tokens, 1, 4, 5).expand(-1, 6, -1, -1)
    filters = torch.view_as_complex(args.gram.filters)
    phi = fourier.to_maps(filters * fourier.to_spectrum(impulses).unsqueeze(2), layer.grid)[:, 0].flatten(1)
    torch.testing.assert_close(phi.T @ phi, dense(args.gram, args.drive.shape))
    v = layer.v(x).transpose(1, 2)[:, 0]
    torch.testing.assert_close(v @ phi, args.drive[:, 0].flatten(1))


@pytest.mark.parametrize("grid", GRIDS[:5])
def test_step_bound_is_the_norm_of_the_gram(grid: tuple[int, int]) -> None:
    layer, x = layer_and_tokens(grid)
    args, _ = layer.problem(x)
    norm = torch.linalg.eigvalsh(dense(args.gram, args.drive.shape)).max()
    torch.testing.assert_close(1 / args.rate[0].squeeze(), norm)


def test_the_papers_step_bound_is_below_the_norm() -> None:
    kernel = torch.randn(50, 5, 8, 5, dtype=torch.complex128)
    ratio = fourier.real_part_norm(kernel) / fourier.hermitian_norm(kernel)
    assert ratio.max() < 0.99
    assert ratio.min() >= 0.5
    products = (kernel[:, :, None] * kernel[:, None].conj()).real.permute(0, 3, 4, 1, 2)
    torch.testing.assert_close(fourier.real_part_norm(kernel), torch.linalg.eigvalsh(products).amax((1, 2, 3)))


def test_energy_never_rises_and_equilibrium_is_optimal() -> None:
    layer, x = layer_and_tokens(t1=200.0)
    with torch.no_grad():
        energies = layer.energy(x)
        assert energies.shape[1:] == (2, 6)
        assert (energies.diff(dim=0) <= 1e-9).all()
        layer.solver = solvers.Nesterov(max_steps=5000, rtol=0.0, atol=1e-12)
        assert layer.kkt_residual(x, save_at=None).max() < 1e-9


@pytest.mark.parametrize("solver", solvers.available())
@pytest.mark.parametrize("dynamics", ["proximal", "lca"])
def test_every_solver_works(solver: str, dynamics: str) -> None:
    layer, x = layer_and_tokens((3, 4), 2, solver=solver, dynamics=dynamics, num_filters=2)
    relaxation = solvers.get(solver).reaches_equilibrium
    reference, _ = layer_and_tokens((3, 4), 2, solver="dopri5", dynamics=dynamics, num_filters=2)
    reference.load_state_dict(layer.state_dict())
    if relaxation:
        reference.solver = solvers.Nesterov(max_steps=10000, rtol=0.0, atol=1e-12)
    with torch.no_grad():
        exact, found = reference.solve(x), layer.solve(x)
        assert layer(x).shape == x.shape
    # one step of dt = 1 per unit of time is coarse; relaxation methods stop at their own tolerance
    assert (found.y1 - exact.y1).abs().max() < 0.3 * exact.y1.abs().max()


@pytest.mark.parametrize("adjoint", ["direct", "checkpointed"])
def test_gradients(adjoint: str) -> None:
    layer, x = layer_and_tokens((2, 3), 3, adjoint=adjoint, num_filters=2)
    layer.eval()
    names, values = zip(*layer.named_parameters(), strict=True)

    def output(*parameters: Tensor) -> Tensor:
        named = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(layer, named, (x[:1],))

    # The step bound carries no gradient by design, so it is held still.
    layer.rate = 0.05
    assert torch.autograd.gradcheck(output, values, eps=1e-7, atol=1e-4)


def test_other_grids_and_half_precision() -> None:
    layer = VARSConvAttention(6, (4, 5))
    assert layer(torch.randn(1, 42, 6), grid=(6, 7)).shape == (1, 42, 6)
    assert layer(torch.randn(2, 9, 6)).shape == (2, 9, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 20, 6)).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="do not fill the grid"):
        layer(torch.randn(2, 7, 6))
    with pytest.raises(ValueError, match="expected floating point tokens"):
        layer(torch.randn(2, 20, 5))


def test_compiled_layer_agrees_and_leaves_the_cached_transforms_alone() -> None:
    layer, x = layer_and_tokens()
    fourier._dense_transform.cache_clear()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": (4,)}, "grid must be"),
        ({"revision": "ours"}, "unknown revision"),
        ({"initialization": "none"}, "unknown initialization"),
        ({"rate": "gershgorin"}, "unknown rate"),
        ({"dynamics": "sde"}, "unknown dynamics"),
        ({"initial": "one"}, "unknown initial"),
        ({"sparsity": -1.0}, "sparsity"),
    ],
)
def test_wrong_arguments_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VARSConvAttention(6, **options)


@pytest.mark.parametrize("initialization", ["active", "authors"])
def test_initialization_decides_whether_codes_are_active(initialization: str) -> None:
    layer = VARSConvAttention(32, (8, 8), initialization=initialization)
    with torch.no_grad():
        code = layer.solve(torch.randn(4, 64, 32)).y1
    share = (code != 0).double().mean()
    assert 0.05 < share < 0.6 if initialization == "active" else share == 0


def test_benchmark_runs() -> None:
    rows = vars_s(batch=1, grid=(4, 4), channels=4, repeats=1)
    assert [row.part for row in rows] == ["product per frequency", "Gram, with transforms", "three steps"]
    assert all(row.applied_ms > 0 and row.einsum_ms > 0 and row.matmul_ms > 0 for row in rows)


@pytest.mark.parametrize("context", [{"is_causal": True}, {"attn_mask": torch.ones(2, 1, 1, 20, dtype=torch.bool)}])
@pytest.mark.parametrize("method", ["forward", "problem", "solve", "energy", "kkt_residual", "attention_map"])
def test_masks_are_refused(method: str, context: dict[str, object]) -> None:
    layer, tokens = layer_and_tokens()
    with pytest.raises(ValueError, match="no mask can be applied"):
        getattr(layer, method)(tokens, **context)


def test_a_sparsity_too_small_for_the_weights_to_follow() -> None:
    layer = VARSConvAttention(6, grid=(4, 5), sparsity=5e-324)
    assert layer.v.weight.std() > 0.1
