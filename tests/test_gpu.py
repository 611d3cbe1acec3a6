"""On CUDA: the same as on the CPU, for layers, solvers and adjoints; training steps, stopping, CUDA graphs."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import solvers
from vars_ode import RobustVisionTransformer, StaticDynamic, VARSAttention, VARSConvAttention
from vars_ode.bench.problem import reconstruction_args
from vars_ode.fields import ProximalFlow, ReconstructionArgs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

CUDA = torch.device("cuda")
LAYERS = {
    "dynamic": lambda: VARSAttention(16, 2),
    "static+dynamic": lambda: VARSAttention(16, 2, dictionary=StaticDynamic(grid=(3, 3))),
    "softmax": lambda: VARSAttention(16, 2, dictionary="softmax"),
    "convolutional": lambda: VARSConvAttention(16, grid=(3, 3)),
}
SMALL: dict[str, Any] = {
    "img_size": 64,
    "base_dims": (8, 8),
    "depths": (1, 1),
    "num_heads": (2, 4),
    "mlp_ratio": 2.0,
    "num_classes": 5,
}


def near(on_cuda: Tensor, on_cpu: Tensor, tolerance: float = 1e-8) -> None:
    assert on_cuda.device.type == "cuda"
    torch.testing.assert_close(on_cuda.cpu(), on_cpu, rtol=tolerance, atol=tolerance)


def problem(device: torch.device) -> tuple[Tensor, ReconstructionArgs]:
    """(y0, args) of three problems in float64, whose sizes of values differ."""
    args = reconstruction_args(batch=3, tokens=20, features=6, head_dim=4, rate="power", value_scale=0.3)
    drive = args.drive * torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64).view(3, 1, 1, 1)
    args = ReconstructionArgs(*(part.to(device) for part in (drive, args.dense_gram, args.rate, args.sparsity)))
    return torch.zeros_like(args.drive), args


@pytest.mark.parametrize("name", LAYERS)
def test_layers_agree_with_the_cpu(name: str) -> None:
    layer: nn.Module = LAYERS[name]().double()
    on_cuda = copy.deepcopy(layer).to(CUDA)
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    expected, found = layer(x), on_cuda(x.to(CUDA))
    near(found.detach(), expected.detach())
    expected.square().sum().backward()
    found.square().sum().backward()
    for ours, theirs in zip(on_cuda.parameters(), layer.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        near(ours.grad, theirs.grad, 1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_run_under_bfloat16_autocast(name: str) -> None:
    layer = LAYERS[name]().to(CUDA)
    x = torch.randn(2, 9, 16, device=CUDA, requires_grad=True)
    plain = layer(x)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        output = layer(x)
    output.float().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert (output - plain).norm() < 0.1 * plain.norm()


@pytest.mark.parametrize("name", solvers.available())
def test_solvers_agree_with_the_cpu(name: str) -> None:
    solutions = [
        solvers.solve(ProximalFlow(), y0, 3.0, name, args) for y0, args in (problem(CUDA), problem(torch.device("cpu")))
    ]
    near(solutions[0].y1, solutions[1].y1, 1e-4)  # error control may decide on a step by a last bit
    assert torch.equal(solutions[0].status.cpu(), solutions[1].status)


@pytest.mark.parametrize("adjoint", solvers.adjoints.available())
def test_adjoints_agree_with_the_cpu(adjoint: str) -> None:
    at_equilibrium = adjoint in ("implicit", "truncated")
    solver = solvers.Nesterov(max_steps=2000, rtol=0.0, atol=1e-10) if at_equilibrium else solvers.RK4(num_steps=6)
    gradients = []
    for device in (CUDA, torch.device("cpu")):
        y0, args = problem(device)
        drive = args.drive.clone().requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", solvers.SolverWarning)  # of the continuous adjoint, on a contractive field
            y1 = solvers.solve(ProximalFlow(), y0, 3.0, solver, args._replace(drive=drive), adjoint=adjoint).y1
            gradients += torch.autograd.grad(y1.square().sum(), drive)
    near(*gradients, 1e-4)


@pytest.mark.parametrize("attention", ["softmax", "performer", "vars-s", "vars-d", "vars-sd"])
def test_a_training_step(attention: str) -> None:
    model = RobustVisionTransformer(attention=attention, **SMALL).to(CUDA)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    images, labels = torch.randn(4, 3, 64, 64, device=CUDA), torch.arange(4, device=CUDA)
    loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    torch.optim.AdamW(model.parameters(), lr=1e-3).step()
    assert loss.isfinite()
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_a_fused_model_agrees() -> None:
    model = RobustVisionTransformer(attention="vars-d", **SMALL).to(CUDA).eval()
    images = torch.randn(2, 3, 64, 64, device=CUDA)
    with torch.no_grad():
        torch.testing.assert_close(model.fuse()(images), model(images), rtol=1e-2, atol=1e-3)  # of TF32, if it is on


def test_samples_stop_on_their_own_as_on_the_cpu() -> None:
    until = solvers.SteadyState(rtol=1e-4, atol=1e-6)
    found, expected = (
        solvers.solve(ProximalFlow(), y0, 500.0, "euler", args, until=until)
        for y0, args in (problem(CUDA), problem(torch.device("cpu")))
    )
    assert torch.equal(found.status.cpu(), expected.status)
    assert torch.equal(found.stats["num_steps"].cpu(), expected.stats["num_steps"])
    assert len(set(found.stats["num_steps"].tolist())) > 1


def test_at_most_one_synchronisation_per_step() -> None:
    """A step asks the host once whether a sample stops; beyond that there are those of the beginning and the end."""
    y0, args = problem(CUDA)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            solution = solvers.solve(ProximalFlow(), y0, 200.0, "euler", args, until=solvers.SteadyState(1e-30, 1e-30))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    steps = int(solution.stats["num_steps"].max())
    synchronisations = sum("synchronizing" in str(warning.message) for warning in caught)
    assert 0 < synchronisations <= steps + 20


@pytest.mark.parametrize("name", ["dynamic", "static+dynamic"])
def test_fixed_steps_in_a_cuda_graph(name: str) -> None:
    """torch.compile captures them: a solve that runs eagerly looks at its status in the end, which no graph can."""
    torch.compiler.reset()
    layer = LAYERS[name]().to(CUDA)
    graphed = torch.compile(layer, fullgraph=True, mode="reduce-overhead")
    with torch.no_grad():
        for _ in range(4):  # warm-up, capture, replays
            x = torch.randn(2, 9, 16, device=CUDA)
            torch.testing.assert_close(graphed(x).clone(), layer(x), rtol=1e-3, atol=1e-4)
