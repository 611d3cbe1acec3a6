"""Robust Vision Transformers with the paper's attentions, as timm's models."""

import copy
import pickle

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn

import solvers
import vars_ode
from vars_ode import RobustVisionTransformer
from vars_ode.baselines import performer_attention
from vars_ode.dictionaries.random_features import log_features
from vars_ode.models import SCALES

ATTENTIONS = ("self-attention", "performer", "vars-s", "vars-d", "vars-sd")  # of the paper's comparison
PARAMETERS = {  # in millions, with 1000 classes at 224 x 224
    "self-attention": (8.65, 22.15, 86.22),
    "performer": (8.65, 22.15, 86.22),
    "vars-s": (10.15, 24.79, 84.44),
    "vars-d": (8.03, 20.57, 79.33),
    "vars-sd": (9.00, 22.97, 83.54),
}
NAMES = ["rvt_base", "rvt_base_plus", "rvt_small", "rvt_small_plus", "rvt_tiny", "rvt_tiny_plus"]


def small(
    attention: str = "self-attention", img_size: int | tuple[int, int] = 64, **options
) -> RobustVisionTransformer:
    return RobustVisionTransformer(img_size, (8, 8), (2, 1), (2, 4), 2.0, 10, attention=attention, **options).eval()


def own_parameters(model: nn.Module) -> float:
    return round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2)


def test_every_attention_has_a_row() -> None:
    assert tuple(PARAMETERS) == ATTENTIONS


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("scale", SCALES)
def test_parameter_counts(attention: str, scale: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(f"rvt_{scale}", attention=attention, revision="learned")
    assert own_parameters(model) == PARAMETERS[attention][list(SCALES).index(scale)]


def test_timm_lists_the_models() -> None:
    assert timm.list_models("rvt_*") == NAMES
    with torch.device("meta"):
        for name in NAMES:
            assert isinstance(timm.create_model(name, img_size=64), RobustVisionTransformer)
    with pytest.raises(ValueError, match="no published weights"):
        timm.create_model("rvt_tiny", pretrained=True)


def test_create_model_passes_options_on() -> None:
    model = timm.create_model("rvt_tiny", attention="vars-d", solver="rk4", num_classes=10, img_size=224)
    layers = [module for module in model.modules() if isinstance(module, vars_ode.VARSAttention)]
    assert len(layers) == 12
    assert all(isinstance(layer.solver, solvers.RK4) for layer in layers)
    with torch.no_grad():
        assert model(torch.randn(1, 3, 224, 224)).shape == (1, 10)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("img_size", [64, (48, 96)])
def test_any_image_size(attention: str, img_size: int | tuple[int, int]) -> None:
    model = small(attention, img_size)
    with torch.no_grad():
        for height, width in ((64, 64), (48, 96), (96, 48), (70, 133), (32, 32)):
            logits = model(torch.randn(1, 3, height, width))
            assert logits.shape == (1, 10)
            assert logits.isfinite().all()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_features_heads_and_intermediates(attention: str) -> None:
    model = small(attention)
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        features = model.forward_features(image)
        assert features.shape == (2, 32, 2, 3)
        assert model.forward_head(features, pre_logits=True).shape == (2, 32)
        torch.testing.assert_close(model.forward_head(features), model(image))
        final, maps = model.forward_intermediates(image)
        assert [tuple(kept.shape) for kept in maps] == [(2, 16, 4, 6), (2, 32, 2, 3)]
        torch.testing.assert_close(final, features)
        (last,) = model.forward_intermediates(image, indices=1, output_fmt="NHWC", intermediates_only=True)
        torch.testing.assert_close(last.permute(0, 3, 1, 2), features)
        model.reset_classifier(7)
        assert model.get_classifier().out_features == model(image).shape[1] == 7
        model.reset_classifier(0, global_pool="")
        assert model(image).shape == (2, 6, 32)


@pytest.mark.parametrize("attention", ["self-attention", "vars-s", "vars-sd"])
def test_features_only(attention: str) -> None:
    model = timm.create_model("rvt_tiny", attention=attention, features_only=True, img_size=64)
    assert model.feature_info.channels() == [192, 384]
    assert model.feature_info.reduction() == [16, 32]
    maps = model(torch.randn(1, 3, 64, 96))
    assert [tuple(kept.shape) for kept in maps] == [(1, 192, 4, 6), (1, 384, 2, 3)]


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_gradient_checkpointing_changes_nothing(attention: str) -> None:
    model = small(attention, revision="learned")
    image = torch.randn(2, 3, 64, 64)
    gradients = []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        model(image).square().mean().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_no_weight_decay() -> None:
    names = small("vars-sd", revision="learned").no_weight_decay()
    assert names == {f"stages.{block}.attn.learned.factor" for block in ("0.blocks.0", "0.blocks.1", "1.blocks.0")}
    model = small("vars-s")
    assert len(model.no_weight_decay()) == 6
    groups = create_optimizer_v2(model, opt="adamw", weight_decay=0.05).param_groups
    exempt = {id(parameter) for group in groups if group["weight_decay"] == 0 for parameter in group["params"]}
    assert id(model.stages[0].blocks[0].attn.kernel) in exempt


def test_revisions_are_settings_of_one_layer() -> None:
    paper, learned = (small("vars-d", revision=revision).stages[0].blocks[0].attn for revision in ("paper", "learned"))
    assert (paper.field.threshold, learned.field.threshold) == ("soft", "gelu")
    assert not paper.dictionary.normalize_queries
    assert learned.dictionary.normalize_queries
    assert paper.t1 == learned.t1 == 5
    assert isinstance(paper.solver, solvers.Euler)
    layer = small("vars-sd", revision="learned", normalize_queries=False, num_steps=3, sparsity=0.1, num_features=6)
    layer = layer.stages[0].blocks[0].attn
    assert (layer.t1, layer.sparsity, layer.dictionary.num_templates) == (3, 0.1, 12)
    assert not layer.dictionary.dynamic.normalize_queries
    assert small("vars-s", revision="paper").stages[0].blocks[0].attn.revision == "paper"
    assert small("vars-s", revision="corrected").stages[0].blocks[0].attn.revision == "corrected"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "linear"}, "unknown attention 'linear'; choose one of softmax, performer"),
        ({"revision": "newest"}, "unknown revision"),
        ({"revision": "corrected"}, 'is for attention="vars-s"'),
        ({"solver": "rk4"}, "attention='softmax' has no option 'solver'"),
        ({"attention": "vars-d", "slover": "rk4"}, "has no option 'slover'; valid options: .*solver, adjoint, until"),
        ({"attention": "vars-s", "learned": "factor"}, "has no option 'learned'; valid options: grid, num_filters"),
        ({"attention": "vars-d", "num_steps": 3, "t1": 3.0}, "give one of them"),
        ({"attention": "vars-d", "num_steps": 0}, "num_steps"),
        ({"attention": "performer", "attn_drop_rate": 0.1}, "PerformerAttention has no use for attn_drop=0.1"),
        ({"attention": "vars-d", "position_scaling": True}, "multiplies softmax logits"),
        ({"base_dims": (8,)}, "one entry per stage"),
        ({"base_dims": (8, 9)}, "multiple of the one before"),
        ({"img_size": 4}, "leaves no token"),
        ({"img_size": (1, 2, 3)}, "img_size must be"),
        ({"patch_size": 6}, "multiple of 4"),
        ({"num_classes": -1}, "num_classes"),
        ({"global_pool": "max"}, "global_pool"),
    ],
)
def test_wrong_arguments_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RobustVisionTransformer(
            **{"img_size": 64, "base_dims": (8, 8), "depths": (1, 1), "num_heads": (2, 4), **options}
        )


def test_wrong_images_are_refused() -> None:
    model = small()
    for shape in ((3, 64, 64), (1, 1, 64, 64), (1, 3, 8, 64)):
        with pytest.raises(ValueError, match="expected images"):
            model(torch.randn(shape))


@pytest.mark.parametrize("attention", ["vars-s", "vars-d", "vars-sd"])
@pytest.mark.parametrize("revision", ["paper", "learned"])
def test_no_dead_blocks_at_initialisation(attention: str, revision: str) -> None:
    """At the authors' sparsity some code is active in every block of a fresh model, in training and evaluation."""
    torch.manual_seed(1)
    model = RobustVisionTransformer(128, (16, 16), (4, 2), (4, 8), attention=attention, revision=revision)
    shares = []

    def measure(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        grid = {"grid": (8, 8) if inputs[0].shape[1] == 64 else (4, 4)} if attention == "vars-s" else {}
        problem, _ = layer.problem(inputs[0], **grid)
        shares.append((problem.drive.abs() > problem.sparsity).double().mean().item())

    for block in [block for stage in model.stages for block in stage.blocks]:
        block.attn.register_forward_pre_hook(measure)
    with torch.no_grad():
        for training in (False, True):
            model.train(training)(torch.randn(4, 3, 128, 128))
    assert len(shares) == 12
    assert min(shares) > 0.01


def test_with_the_authors_initialisation_first_blocks_are_dead() -> None:
    model = RobustVisionTransformer(64, (16,), (1,), (4,), attention="vars-s", initialization="authors")
    with torch.no_grad():
        tokens = model.stem(torch.randn(2, 3, 64, 64)).flatten(2).transpose(1, 2)
        assert (model.stages[0].blocks[0].attn.solve(tokens).y1 == 0).all()


def test_plus_models_start_as_softmax_and_take_other_sizes() -> None:
    plain, plus = small(), small(position_scaling=True)
    missing = plus.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert all(name.endswith("position_scale") for name in missing)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(plus(image), plain(image))
        assert plus(torch.randn(1, 3, 48, 96)).shape == (1, 10)


def test_performer_is_its_l1_normalised_map() -> None:
    q, k, v = torch.randn(3, 2, 2, 9, 4, dtype=torch.float64)
    projection = torch.randn(2, 4, 16, dtype=torch.float64)
    for normalize in (True, False):
        phi_q, phi_k = (log_features(x, projection, normalize).exp() for x in (q, k))
        weights = nn.functional.normalize(phi_q @ phi_k.transpose(-2, -1), p=1, dim=-1)
        torch.testing.assert_close(performer_attention(q, k, v, projection, normalize), weights @ v)
    huge = performer_attention(100 * q, 100 * k, v, projection, normalize=False)
    assert huge.isfinite().all()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_models_copy_pickle_and_train(attention: str) -> None:
    model = small(attention, drop_path_rate=0.1, proj_drop_rate=0.1)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(image)
        torch.testing.assert_close(copy.deepcopy(model)(image), expected)
        torch.testing.assert_close(pickle.loads(pickle.dumps(model))(image), expected)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model.train()(image), torch.tensor([0, 1]))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert losses[-1] < losses[0]
