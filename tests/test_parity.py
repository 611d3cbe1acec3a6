"""The authors' code, recorded as tensors: logits, the first attention layer and gradients of five models."""

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import vars_ode
from vars_ode.checkpoints.authors import translate

FILES = sorted((Path(__file__).parent / "parity").glob("*.safetensors"))
PRECISION = {torch.float32: 1e-5, torch.float64: 1e-9}


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
    # gradients were recorded in float32 alone
    assert relative(ours["input_grad"], recorded["input_grad"]) < 1e-5
    theirs, _ = translate({key[5:]: value for key, value in recorded.items() if key.startswith("grad.")})
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if name in theirs}
    assert gradients.keys() == theirs.keys()
    for name, gradient in gradients.items():
        assert relative(gradient, theirs[name]) < 1e-5, name


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
