"""Attacks: a table of them, what all have in common, and agreement with foolbox."""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import foolbox
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vars_ode.data import fashion_mnist
from vars_ode.robustness import Draws, autoattack, evaluate, fgsm, pgd, require_autoattack, square
from vars_ode.robustness.norms import BALLS

EPS = {"linf": 0.04, "l2": 0.8}


@dataclass(frozen=True)
class AttackCase:
    """An attack, and what is expected of it.

    Args:
        run: the attack.
        leaves: the part of right answers that it leaves at most.
        images: on how many.
        strength: by which eps is multiplied, for an attack that takes long where it fails.
        by_image: its random numbers belong to the images, whatever the batch.
    """

    run: Callable[..., Tensor]
    leaves: float
    images: int = 40
    strength: float = 1.0
    by_image: bool = True


def in_half_steps(model: nn.Module, images: Tensor, labels: Tensor, eps: float, **options) -> Tensor:
    return pgd(model, images, labels, eps, step_size=eps / 2 or 1.0, **options)


CASES = {
    # A new attack enters by a row.
    "fgsm": AttackCase(fgsm, 0.75),
    "pgd": AttackCase(in_half_steps, 0.75),
    "pgd with restarts": AttackCase(partial(in_half_steps, restarts=3, num_steps=2), 0.75),
    "square": AttackCase(partial(square, num_queries=200), 0.9),
    "autoattack": AttackCase(autoattack, 0.0, images=4, strength=20, by_image=False),
}
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
in_every_ball = pytest.mark.parametrize("norm", EPS)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A small convolutional network, trained for seconds."""
    torch.manual_seed(0)
    images, labels = (tensor[:1000] for tensor in fashion_mnist("train").tensors)
    layers = [nn.Conv2d(1, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 16, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)]
    network = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for start in range(0, 6000, 100):
        batch = slice(start % 1000, start % 1000 + 100)
        optimizer.zero_grad()
        F.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def right(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Images that the model gets right."""
    images, labels = fashion_mnist("test").tensors
    chosen = (model(images).argmax(1) == labels).nonzero().flatten()[:60]
    return images[chosen], labels[chosen]


def length(moved: Tensor, norm: str) -> Tensor:
    return torch.linalg.vector_norm(moved.flatten(1), ord=torch.inf if norm == "linf" else 2, dim=1)


def test_every_norm_is_attacked() -> None:
    assert EPS.keys() == BALLS.keys()


@every
@in_every_ball
def test_images_stay_in_the_ball_and_mislead(case: AttackCase, norm: str, model: nn.Module, right) -> None:
    images, labels = (tensor[: case.images] for tensor in right)
    before = images.clone()
    eps = case.strength * EPS[norm]
    found = case.run(model, images, labels, eps, norm=norm)
    assert (found.shape, found.dtype) == (images.shape, images.dtype)
    assert not found.requires_grad
    assert 0 <= found.min() <= found.max() <= 1
    assert length(found - images, norm).max() <= eps * (1 + 1e-5)
    assert (model(found).argmax(1) == labels).float().mean() <= case.leaves
    assert torch.equal(images, before)


@every
@in_every_ball
def test_numbers_belong_to_seed_and_image(case: AttackCase, norm: str, model: nn.Module, right) -> None:
    images, labels = (tensor[:6] for tensor in right)
    state = torch.get_rng_state()
    attack = partial(case.run, model, eps=case.strength * EPS[norm], norm=norm)
    together = attack(images, labels, **indices(case, range(6)))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(attack(images, labels, **indices(case, range(6))), together)
    if case.by_image:
        alone = attack(images[4:5], labels[4:5], **indices(case, [4]))
        assert (alone - together[4:5]).abs().max() < 1e-5


def indices(case: AttackCase, values) -> dict:
    return {} if case.run is fgsm else {"indices": list(values)}


@every
def test_nothing_moves_in_a_ball_of_no_size(case: AttackCase, model: nn.Module, right) -> None:
    images, labels = (tensor[:4] for tensor in right)
    for norm in EPS:
        assert torch.equal(case.run(model, images, labels, 0.0, norm=norm), images)


@every
@pytest.mark.parametrize(
    ("options", "message"),
    [({"eps": -1.0}, "eps=-1"), ({"eps": float("nan")}, "eps=nan"), ({"norm": "l3"}, "unknown norm 'l3'")],
)
def test_refusals(case: AttackCase, options: dict, message: str, model: nn.Module, right) -> None:
    with pytest.raises(ValueError, match=message):
        case.run(model, right[0][:2], right[1][:2], **{"eps": 0.1, **options})


@every
def test_the_mode_of_every_module_is_put_back(case: AttackCase, right) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 10))
    network[2].eval()
    case.run(network, right[0][:3], right[1][:3], 0.01 * case.strength)
    assert [module.training for module in network] == [True, True, False]


FOOLBOX = {
    ("fgsm", "linf"): foolbox.attacks.FGSM(),
    ("fgsm", "l2"): foolbox.attacks.FGM(),
    ("pgd", "linf"): foolbox.attacks.LinfPGD(abs_stepsize=0.01, steps=7, random_start=False),
    ("pgd", "l2"): foolbox.attacks.L2PGD(abs_stepsize=0.2, steps=7, random_start=False),
}


@pytest.mark.parametrize(("name", "norm"), FOOLBOX)
def test_as_foolbox(name: str, norm: str, model: nn.Module, right) -> None:
    images, labels = right
    theirs, _, fooled = FOOLBOX[name, norm](
        foolbox.PyTorchModel(model, bounds=(0, 1)), images, labels, epsilons=EPS[norm]
    )
    step = {"linf": 0.01, "l2": 0.2}[norm]
    attack = fgsm if name == "fgsm" else partial(pgd, step_size=step, num_steps=7, random_start=False)
    ours = attack(model, images, labels, EPS[norm], norm=norm)
    assert (ours - theirs).abs().max() < 1e-5
    assert torch.equal(model(ours).argmax(1) != labels, fooled)
    assert fooled.any()
    assert not fooled.all()


@in_every_ball
def test_starts_fill_the_ball(norm: str) -> None:
    images = torch.zeros(400, 1, 2, 2)
    start = BALLS[norm].start(images, 0, 0, range(400))
    lengths = length(start, norm)
    assert 0.95 < lengths.max() <= 1
    assert (lengths.sort().values ** 4 - torch.linspace(0, 1, 400)).abs().max() < 0.08  # uniform in 4 dimensions
    assert start.mean((0, 2, 3)).abs().max() < 0.06
    assert not torch.equal(BALLS[norm].start(images, 0, 1, range(400)), start)


def test_restarts_keep_the_first_that_misleads(model: nn.Module, right) -> None:
    images, labels = right
    options = {"eps": 0.02, "step_size": 0.01, "num_steps": 1}
    each = [model(pgd(model, images, labels, seed=0, **options)).argmax(1) != labels]
    best = pgd(model, images, labels, restarts=4, **options)
    fooled = model(best).argmax(1) != labels
    assert (fooled >= each[0]).all()
    first = pgd(model, images, labels, **options)
    assert torch.equal(best[each[0]], first[each[0]])
    assert (F.cross_entropy(model(best), labels, reduction="none")[~fooled] >= 0).all()
    with pytest.raises(ValueError, match="without a random start"):
        pgd(model, images, labels, restarts=2, random_start=False)


def test_more_queries_leave_fewer_and_smaller_margins(model: nn.Module, right) -> None:
    images, labels = right

    def margins(count: int) -> Tensor:
        logits = model(square(model, images, labels, 0.03, count))
        return logits.gather(1, labels[:, None])[:, 0] - logits.scatter(1, labels[:, None], -torch.inf).amax(1)

    few, many = margins(5), margins(150)
    assert (many <= few).all()
    assert (many < 0).sum() > (few < 0).sum()


def test_square_needs_no_gradient_and_leaves_errors_alone(model: nn.Module, right) -> None:
    class Masked(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return model(images.detach()).mul(4).round()  # no gradient

    images, labels = right
    found = square(Masked(), images, labels, 0.05, 100)
    assert (model(found).argmax(1) != labels).any()
    with pytest.raises(RuntimeError, match="no gradient reaches"):
        pgd(Masked(), images, labels)
    wrong = (labels + 1) % 10
    assert torch.equal(square(model, images, wrong, 0.05, 100), images)  # misclassified already


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 2, 3), (4, 9, 5)])
@in_every_ball
def test_square_on_odd_shapes(shape: tuple[int, ...], norm: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    images = torch.rand(5, *shape)
    labels = network(images).argmax(1).detach()
    found = square(network, images, labels, 0.2, 30, norm=norm)
    assert found.isfinite().all()
    assert length(found - images, norm).max() <= 0.2 * (1 + 1e-5)


def test_draws_average_the_gradient(right) -> None:
    images, labels = (tensor[:8] for tensor in right)
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(784, 10)) for _ in range(6)]
    drawn: list[int] = []

    def draw(number: int) -> nn.Module:
        drawn.append(number)
        return networks[number % 6]

    found = fgsm(networks[0], images, labels, 0.1, norm="l2", draws=Draws(draw, 6))
    leaf = images.clone().requires_grad_()
    total = sum(F.cross_entropy(network(leaf), labels, reduction="sum") for network in networks)
    (gradient,) = torch.autograd.grad(total, leaf)
    expected = images + 0.1 * gradient / torch.linalg.vector_norm(gradient, dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(found, expected.clamp(0, 1))
    drawn.clear()
    pgd(networks[0], images, labels, num_steps=3, restarts=2, draws=Draws(draw, 4))
    assert drawn == list(range(2 * 3 * 4))  # every step takes new ones
    with pytest.raises(ValueError, match="count=0"):
        Draws(draw, 0)


def test_autoattack_tells_its_extra_where_it_is_missing(model: nn.Module, right, monkeypatch) -> None:
    require_autoattack()
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'vars-ode\[attacks\]'"):
        autoattack(model, right[0][:2], right[1][:2])


def test_autoattack_takes_ten_classes(right) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 5))
    with pytest.raises(ValueError, match="9 classes beside the true one, and the model has 5"):
        autoattack(network, right[0][:2], torch.zeros(2, dtype=torch.int64))


def test_attacks_of_an_evaluation_get_the_indices(model: nn.Module, right) -> None:
    data = torch.utils.data.TensorDataset(*right)
    attacks = {"square": partial(square, eps=0.03, num_queries=20), "l2": partial(pgd, eps=0.5, norm="l2")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small, large = (list(evaluate(model, data, list(attacks), attacks=attacks, batch_size=b)) for b in (7, 60))
    assert small == large
