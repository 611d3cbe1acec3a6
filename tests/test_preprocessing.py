"""What becomes of pictures: as timm does it, kept with the model, and undone nowhere."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from demo_cases import TINY
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import nn

import vars_ode
from vars_ode.analysis.subjects import find_classifier
from vars_ode.data import Preprocessing
from vars_ode.models import RobustVisionTransformer, vars_layers
from vars_ode.saving import load_pretrained, save_pretrained

SMALL_RVT = {"img_size": 32, "num_classes": 5, "base_dims": (8,), "depths": (1,), "num_heads": (2,)}
BUILDERS = {
    "rvt": lambda: timm.create_model("rvt_small", attention="vars-d", **SMALL_RVT),
    "rvt-class": lambda: RobustVisionTransformer(attention="vars-d", **SMALL_RVT),
    "timm": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=1, num_classes=5, attn_layer=vars_ode.attention_layer("vars-d")
    ),
    "study": lambda: TINY.build("vars-d", 0),
}


def picture(width: int = 70, height: int = 50, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch16_clip_224", "mixer_b16_224", "rvt_tiny"])
def test_the_input_is_the_one_of_timm(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    found, theirs = Preprocessing.of(model), resolve_data_config(model=model)
    expected = create_transform(**theirs)(picture(300, 260))
    images = found.transform()(picture(300, 260))
    assert 0 <= images.min() < images.max() <= 1
    assert torch.allclose(found.normalize(images[None])[0], expected, atol=1e-6)
    assert torch.equal(found.normalized(nn.Identity())(images[None]), found.normalize(images[None]))


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS.keys())
def test_what_is_recorded_comes_back_with_the_saved_model(build, tmp_path: Path) -> None:
    model = build()
    channels, *size = Preprocessing.of(model).input_size
    recorded = Preprocessing((channels, *size), (0.3,), (0.2,), 0.95, "bilinear", "squash")
    recorded.record_in(model)
    assert Preprocessing.of(model) == recorded
    save_pretrained(model, tmp_path)
    assert Preprocessing.of(load_pretrained(tmp_path)) == recorded
    vars_ode.save_checkpoint(tmp_path / "one.pt", model)
    assert Preprocessing.of(vars_ode.load_checkpoint(tmp_path / "one.pt")[0]) == recorded
    assert find_classifier(tmp_path, "fashion-mnist", 2).model.mean.flatten().tolist() == pytest.approx(recorded.mean)


def test_models_of_one_name_do_not_share_what_is_recorded() -> None:
    first, second = BUILDERS["rvt"](), BUILDERS["rvt"]()
    before = Preprocessing.of(second)
    before.unnormalized().record_in(first)
    assert Preprocessing.of(second) == before != Preprocessing.of(first)


def test_models_of_a_study_take_the_images_as_they_are(tmp_path: Path) -> None:
    plan = TINY.from_dict({**TINY.as_dict(), "model": "rvt_small", "model_options": {**SMALL_RVT, "in_chans": 1}})
    model = plan.build("vars-d", 0)
    assert Preprocessing.of(model) == Preprocessing((1, 32, 32), (0.0,), (1.0,), 1.0)
    assert Preprocessing.of(model).normalized(model) is model
    save_pretrained(model, tmp_path)
    assert find_classifier(tmp_path, "fashion-mnist", 2).model.__class__ is RobustVisionTransformer


def test_a_model_that_says_nothing_takes_the_values_as_they_are() -> None:
    assert Preprocessing.of(nn.Conv2d(1, 2, 3)) == Preprocessing((1, 224, 224), (0.0,), (1.0,))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_modes_of_pictures(mode: str, channels: int) -> None:
    transform = pickle.loads(pickle.dumps(Preprocessing((channels, 20, 24), (0,), (1,)).transform()))
    image = transform(picture(mode=mode))
    assert (image.shape, image.dtype) == ((channels, 20, 24), torch.float32)


def test_a_picture_of_the_right_size_stays_as_it_is() -> None:
    image = Preprocessing((3, 40, 40), crop_pct=1.0).transform()(picture(40, 40))
    assert torch.equal(
        (image * 255).round().to(torch.uint8), torch.from_numpy(np.array(picture(40, 40))).permute(2, 0, 1)
    )


def test_the_normalised_model_is_the_model_behind_a_normalisation() -> None:
    model = BUILDERS["timm"]().eval()
    wrapped = Preprocessing.of(model).normalized(model)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(wrapped(images), model((images - 0.5) / 0.5))
    assert not wrapped.training
    assert list(vars_layers(wrapped).values()) == list(vars_layers(model).values())
    assert wrapped.double()(images.double()).dtype == torch.float64
    assert wrapped.state_dict().keys() == {f"model.{key}" for key in model.state_dict()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_size": (3, 224)}, r"\(channels, height, width\)"),
        ({"input_size": (3, 0, 4)}, "height"),
        ({"mean": (0.1, 0.2)}, "a finite number per channel, 3 of them"),
        ({"std": (0.0,)}, "positive"),
        ({"crop_pct": 87.5}, "a part in"),
        ({"interpolation": "bicubicc"}, "did you mean 'bicubic'"),
        ({"crop_mode": "middle"}, "unknown crop_mode"),
    ],
)
def test_refusals(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing(**options)


def test_pictures_have_one_or_three_channels() -> None:
    with pytest.raises(ValueError, match="4 channels, and pictures have 1 or 3"):
        Preprocessing((4, 8, 8), (0,), (1,)).transform()
    with pytest.raises(ValueError, match="no convolution"):
        Preprocessing.of(nn.Linear(2, 2))
