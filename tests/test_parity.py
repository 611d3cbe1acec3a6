"""The authors' code, recorded as tensors: logits, the first attention layer and gradients of five models."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import vars_ode
from vars_ode.checkpoints.authors import translate
from vars_ode.learned import LearnedFactor

FILES = sorted((Path(__file__).parent / "parity").glob("*.safetensors"))
PRECISION = {torch.float32: 1e-5, torch.float64: 1e-9}
# Gradients were recorded in float32 alone. Ours in float64 differ by the rounding of the recording, on any processor.
# Ours in float32 add their own: that of a norm's weight sums terms of 16 times the magnitude of what remains of them.
GRADIENT_PRECISION = {torch.float32: 5e-5, torch.float64: 1e-5}
# Eight roundings of float32, relative to the sum of the magnitudes of the terms.
SCALAR_PRECISION = 1e-6


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest deviation, relative to the largest magnitude."""
    return float((ours.detach() - theirs).abs().max() / theirs.abs().max())


def run(model: nn.Module, image: Tensor, whole_block: bool) -> dict[str, Tensor]:
    """Logits, what entered and left the first block's attention, and the gradients of mean(logits^2)."""
    seen = {}
    block = model.stages[0].blocks[0]

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.update(layer_input=inputs[0], layer_output=output)

    handle = (block if whole_block else block.attn).register_forward_hook(keep)
    image = image.clone().requires_grad_()
    logits = model(image)
    logits.square().mean().backward()
    handle.remove()
    return {"logits": logits, **seen, "input_grad": image.grad}


def test_every_attention_and_revision_is_here() -> None:
    names = {tuple(path.stem.split("_", 1)) for path in FILES}
    assert len(FILES) == 9
    assert {revision for revision, _ in names} == {"ista", "lista-raw", "lista"}


def spread(learned: LearnedFactor, inputs: tuple[Any, ...]) -> None:
    """Before the forward pass: every entry of the code gets a copy of each learned scalar."""
    for name in ("rate_scale", "sparsity_scale"):
        copies = getattr(learned, name).detach().expand(inputs[0].drive.shape)
        setattr(learned, name, nn.Parameter(copies.clone()))


def scalar_terms(path: Path, image: Tensor) -> dict[str, Tensor]:
    """In float64, the terms that each learned scalar's gradient is the sum of: one per entry of the code.

    The sum is down to 1/600 of its terms' magnitudes. A rounding of the terms is as many roundings of the sum, and they
    fall differently on every processor, so that only the magnitudes can say how close float32 has to come.
    """
    model = vars_ode.load_checkpoint(path)[0].double()
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, LearnedFactor)]
    for _, module in found:
        module.register_forward_pre_hook(spread)
    model(image.double()).square().mean().backward()
    return {f"{at}.{name}": scalar.grad for at, module in found for name, scalar in module.named_parameters()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_agrees_with_the_authors_code(path: Path, dtype: torch.dtype) -> None:
    recorded = load_file(path)
    model, report = vars_ode.load_checkpoint(path)
    assert report.layout == "authors"
    whole_block = "vars_s_" in path.name
    ours = run(model.to(dtype), recorded["image"].to(dtype), whole_block)
    suffix = "64" if dtype == torch.float64 else ""
    for name in ("logits", "layer_input", "layer_output"):
        if f"{name}{suffix}" in recorded:
            assert relative(ours[name], recorded[f"{name}{suffix}"]) < PRECISION[dtype], name
    assert relative(ours["input_grad"], recorded["input_grad"]) < GRADIENT_PRECISION[dtype]
    theirs, _ = translate({key[5:]: value for key, value in recorded.items() if key.startswith("grad.")})
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if name in theirs}
    assert gradients.keys() == theirs.keys()
    terms = scalar_terms(path, recorded["image"])
    for name, gradient in gradients.items():
        if name.endswith("_scale"):
            bound = SCALAR_PRECISION * terms[name].abs().sum()
            assert (gradient.double() - terms[name].sum()).abs() < bound, name
            assert (gradient - theirs[name]).abs() < bound, name
        else:
            assert relative(gradient, theirs[name]) < GRADIENT_PRECISION[dtype], name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_keys_alone_are_enough(path: Path, tmp_path: Path) -> None:
    """The authors' own layout, without metadata: what it does not tell is what the hints are for."""
    recorded = load_file(path)
    state = {f"module.{key[6:]}": value for key, value in recorded.items() if key.startswith("state.")}
    file = tmp_path / "checkpoint.pth"
    args = argparse.Namespace(model="rvt", lr=5e-4)
    torch.save({"model": state, "model_ema": state, "optimizer": {}, "epoch": 299, "args": args}, file)
    hints = {"normalize_queries": path.stem.startswith("lista_"), "num_heads": (2, 4)}
    model, report = vars_ode.load_checkpoint(file, **hints)
    with torch.no_grad():
        assert relative(model(recorded["image"]), recorded["logits"]) < 1e-5
    assert "optimizer" in report.ignored


def test_a_given_model_is_filled(tmp_path: Path) -> None:
    path = next(path for path in FILES if path.stem == "lista_vars_s_a")
    recorded = load_file(path)
    model = vars_ode.RobustVisionTransformer(
        64, (8, 8), (2, 1), (2, 4), 2.0, 10, attention="vars-s", revision="paper"
    ).eval()
    filled, _ = vars_ode.load_checkpoint(path, model)
    assert filled is model
    with torch.no_grad():
        assert relative(model(recorded["image"]), recorded["logits"]) < 1e-5


def test_one_image_gives_what_it_gives_in_a_batch() -> None:
    for path in FILES:
        image = load_file(path)["image"].double()
        model = vars_ode.load_checkpoint(path)[0].double()
        with torch.no_grad():
            torch.testing.assert_close(model(image[:1]), model(image)[:1], rtol=1e-9, atol=1e-9)
