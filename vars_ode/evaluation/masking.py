"""Whether a model only seems robust because its gradient misleads the attack (gradient masking).

Athalye, Carlini and Wagner, *Obfuscated gradients give a false sense of security*, ICML 2018, arXiv 1802.00420: an
attack that needs no gradient, or has another model's, must not do better than the one with the true gradient. Soft
thresholds have regions of zero gradient, solvers and adjoints differ in the gradients they give, and random
features are one draw of many. So PGD is run

- with the gradient as it is (white-box),
- through other solves of the same weights, the smooth single-step limit among them,
- through other adjoints,
- with the gradient averaged over draws of the random features,

and Square beside it, and all are counted on the model as it is defended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from solvers.adjoints import Truncated
from vars_ode.baselines import PerformerAttention
from vars_ode.data import Preprocessing
from vars_ode.dictionaries.dynamic import DynamicTemplates
from vars_ode.dictionaries.random_features import gaussian_projection
from vars_ode.evaluation.settings import MASKING, EvaluationSettings
from vars_ode.evaluation.storage import Key
from vars_ode.layer import shared_copy
from vars_ode.models import parse_solves, vars_layers, with_solver
from vars_ode.models.solves import SINGLE_STEP
from vars_ode.robustness import Draws, Outcome, pgd

WHITE_BOX = "white-box"
Attack = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


def masking_attacks(
    model: nn.Module, preprocessing: Preprocessing, settings: EvaluationSettings, white_box: Attack
) -> Iterator[tuple[str, Attack, dict[str, Any]]]:
    """The attacks by gradient: name, attack, and what it depends on beside the settings of PGD.

    Args:
        model: the defended one, as it is solved; without VARS layers and random features only the first is left.
        preprocessing: of the model.
        settings: of the evaluation.
        white_box: PGD with its settings.
    """
    yield WHITE_BOX, white_box, {}
    for name, source in _sources(model, settings):
        classifier = preprocessing.normalized(source)
        _try_out(classifier, preprocessing)
        yield name, _through(classifier, white_box), {"through": name}
    if settings.draws and random_features(model):
        count = settings.draws

        def averaged(defended: nn.Module, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
            draws = Draws(lambda number: preprocessing.normalized(redrawn(model, settings.seed, number)), count)
            options: dict[str, Any] = {"step_size": settings.length_of_steps, "num_steps": settings.steps}
            options |= {"norm": settings.norm, "restarts": settings.restarts}
            options |= {"seed": settings.seed, "indices": indices}
            return pgd(defended, images, labels, settings.eps, draws=draws, **options)

        yield f"over {count} draws of features", averaged, {"draws": count}


def _through(source: nn.Module, attack: Attack) -> Attack:
    return lambda defended, images, labels, indices: attack(source, images, labels, indices)


def _sources(model: nn.Module, settings: EvaluationSettings) -> Iterator[tuple[str, nn.Module]]:
    """The same weights under other solves and adjoints, by name."""
    layers = vars_layers(model)
    if not layers:
        return
    for solve in parse_solves(settings.transfer or _default_transfer(model)):
        try:
            source = solve.apply(model)
            if not any(layer.solver.reaches_equilibrium for layer in vars_layers(source).values()):
                source = with_solver(source, adjoint="direct")  # that of an equilibrium does not fit
            yield f"through {solve.label}", source.eval()
        except ValueError:
            if settings.transfer is not None or solve.label != SINGLE_STEP:
                raise  # asked for; by default, a layer may have no single-step limit
    named = settings.transfer_adjoints
    for adjoint in _default_adjoints(model) if named is None else named:
        yield f"through the adjoint {adjoint}", with_solver(model, adjoint=adjoint).eval()


def _default_transfer(model: nn.Module) -> str:
    """The smooth limit, and a solver that the model does not have."""
    layer = next(iter(vars_layers(model).values()))
    finite = layer.t1 != float("inf") and not layer.solver.reaches_equilibrium
    time = f"{layer.t1:g}" if finite else "20"
    other = "euler" if type(layer.solver).__name__ != "Euler" else "rk4"
    return f"{SINGLE_STEP}; {other}@{time}"


def _default_adjoints(model: nn.Module) -> tuple[str, ...]:
    """Adjoints differ by more than rounding at equilibria alone."""
    layer = next(iter(vars_layers(model).values()))
    if not layer.solver.reaches_equilibrium:
        return ()
    return ("truncated",) if not isinstance(layer.adjoint, Truncated) else ("implicit",)


def _try_out(source: nn.Module, preprocessing: Preprocessing) -> None:
    """The gradient for one image: what cannot be attacked through is refused before hours of other attacks."""
    parameter = next(source.parameters())
    image = torch.zeros(1, *preprocessing.input_size, device=parameter.device, requires_grad=True)
    torch.autograd.grad(source(image).sum(), image)


def random_features(model: nn.Module) -> dict[str, DynamicTemplates | PerformerAttention]:
    """The parts of a model that have a random projection, by name."""
    found = model.named_modules()
    return {name: part for name, part in found if isinstance(part, DynamicTemplates | PerformerAttention)}


def redrawn(model: nn.Module, seed: int, number: int) -> nn.Module:
    """A copy that shares the parameters, with its random features drawn anew for the seed and the number."""
    copy = shared_copy(model)
    for name, part in random_features(copy).items():
        key = blake2b(repr((seed, "features", number, name)).encode(), digest_size=8).digest()
        heads, dim, features = part.projection.shape
        orthogonal = getattr(part, "orthogonal", False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(key, "little") >> 1)
            drawn = gaussian_projection(heads, dim, features, orthogonal, torch.device("cpu"))
        part.projection = drawn.to(part.projection)
    return copy


def masking_summary(outcomes: Mapping[Key, Outcome]) -> dict[str, Any] | None:
    """The attacks side by side, and warnings where another beats the white-box one; None without them.

    Returns:
        "table": rows with attack, accuracy, and for how many images it misleads the model where the white-box attack
        does not; last a row for all of them together. "warnings": sentences.
    """
    found = {key.condition: outcome for key, outcome in outcomes.items() if key.benchmark == MASKING}
    if WHITE_BOX not in found:
        return None
    white, table, warnings = found[WHITE_BOX], [], []
    for name, outcome in found.items():
        beyond = int((white.correct & ~outcome.correct).sum())
        table.append({"attack": name, "accuracy": outcome.accuracy, "only_by_this": beyond})
        if outcome.accuracy < white.accuracy:
            warnings.append(_warning(name, outcome, white, beyond))
    together = torch.stack([outcome.correct for outcome in found.values()]).all(0)
    beyond = int((white.correct & ~together).sum())
    table.append({"attack": "all together", "accuracy": float(together.float().mean()), "only_by_this": beyond})
    return {"table": table, "warnings": warnings}


def _warning(name: str, outcome: Outcome, white: Outcome, beyond: int) -> str:
    """What it means that another attack misleads more often than the white-box one, by a sign test on the images."""
    behind = int((~white.correct & outcome.correct).sum())
    chance = float(binomtest(beyond, beyond + behind, alternative="greater").pvalue)
    told = (
        f"the attack {name!r} leaves {100 * outcome.accuracy:.1f} % right and the white-box attack "
        f"{100 * white.accuracy:.1f} %"
    )
    if chance >= 0.05:
        return f"{told}, a difference that chance explains (sign test, p = {chance:.2f}); measure more images"
    return (
        f"{told}: the gradient is masked, or the white-box attack too weak (give it more steps or restarts). Its "
        "accuracy is no measure of robustness"
    )
