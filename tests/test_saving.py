"""A saved model comes back as it was: layers, settings, precision; and what is refused, with which words."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models import VisionTransformer
from torch import Tensor, nn

import solvers
import vars_ode
from vars_ode import CheckpointError, ModelSpec, load_checkpoint, load_pretrained, save_checkpoint, save_pretrained
from vars_ode.checkpoints import folder as folders
from vars_ode.checkpoints.checksum import checksum
from vars_ode.data import fashion_mnist
from vars_ode.models import vars_layers
from vars_ode.saving import shipped

NAMES = vars_ode.available_attentions()
NANO = {"embed_dim": 16, "depth": 2, "num_heads": 2}
RVT = {"img_size": 64, "base_dims": (8, 8), "depths": (2, 1), "num_heads": (2, 4), "mlp_ratio": 2.0, "num_classes": 5}


def nano(attention: str = "vars-d", **options: Any) -> nn.Module:
    return ModelSpec("vit_nano_patch4_28", attention, options, model_options=NANO).build()


def rvt(attention: str = "vars-d", **options: Any) -> nn.Module:
    return vars_ode.RobustVisionTransformer(**RVT, attention=attention, **options)


def rich(attention: str = "vars-d", **options: Any) -> nn.Module:
    """A model of timm's with what its constructor can do, as far as the attention goes along."""
    shape = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 7}
    shape |= {"init_values": 0.1, "mlp_ratio": 3.0, "drop_path_rate": 0.1, "proj_drop_rate": 0.1, "drop_rate": 0.2}
    shape |= {"qkv_bias": False, "pre_norm": True, "norm_layer": "rmsnorm", "act_layer": "silu", "no_embed_class": True}
    if attention == "vars-s":
        shape |= {"class_token": False, "global_pool": "avg"}
        options = {"grid": (4, 6), **options}
    else:
        shape |= {"reg_tokens": 2}
    if attention not in ("vars-s", "performer"):
        shape |= {"qk_norm": True, "scale_attn_norm": True, "attn_drop_rate": 0.1}
    if attention.startswith("vars-sd"):
        options = {"dictionary": vars_ode.StaticDynamic((4, 6), num_prefix_tokens=3), **options}
    layer = vars_ode.attention_layer(attention, **options)
    return timm.create_model("vit_tiny_patch16_224", attn_layer=layer, **shape)


MODELS = {"nano": nano, "rvt": rvt, "rich": rich}


def images(model: nn.Module) -> Tensor:
    inner = getattr(model, "_orig_mod", model)
    size = inner.patch_embed.img_size if hasattr(inner, "patch_embed") else inner.config["img_size"]
    channels = next(layer.in_channels for layer in inner.modules() if isinstance(layer, nn.Conv2d))
    size = size if isinstance(size, tuple) else (size, size)
    like = next(model.parameters())
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0)).to(like.dtype)


def logits(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return model(inputs)


def assert_same(loaded: nn.Module, model: nn.Module) -> None:
    """Bit for bit, and in all that its representation and settings tell."""
    assert not loaded.training
    model.eval()
    inputs = images(model)
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))
    assert repr(loaded) == repr(model)
    assert settings(loaded) == settings(model)
    ours, theirs = loaded.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in theirs)


def settings(model: nn.Module) -> dict[str, dict[str, Any]]:
    return {name: layer.settings() for name, layer in vars_layers(model).items()}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", solvers.SolverWarning)
        yield


@pytest.mark.parametrize("attention", NAMES)
@pytest.mark.parametrize("kind", MODELS)
def test_round_trip(kind: str, attention: str, tmp_path: Path) -> None:
    model = MODELS[kind](attention)
    if vars_layers(model):
        vars_ode.set_solver(model, solvers.RK4(num_steps=3), t1=2.5, sparsity=0.1, rate=0.05, initial="zero")
    state = torch.get_rng_state()
    save_pretrained(model, tmp_path / "saved")
    assert_same(load_pretrained(tmp_path / "saved"), model)
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("model.pth", "alone.safetensors"):
        save_checkpoint(tmp_path / name, model)
        loaded, report = load_checkpoint(tmp_path / name)
        assert_same(loaded, model)
        assert report.layout == "vars-ode"


@pytest.mark.parametrize("kind", MODELS)
def test_the_description_is_plain_and_complete(kind: str) -> None:
    model = MODELS[kind]("vars-sd-dictionary", threshold="soft", dynamics="lca", num_features=6)
    spec = ModelSpec.of(model)
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.as_dict(), allow_nan=False))) == spec
    assert spec.attention == "vars-sd-dictionary"
    assert spec.attention_options.items() >= {"dynamics": "lca", "num_features": 6}.items()
    assert spec.model == {"nano": "vit_nano_patch4_28", "rvt": "robust_vision_transformer"}.get(
        kind, "vit_tiny_patch16_224"
    )
    assert spec.layers["*"].keys() == set(vars_ode.layer.SETTINGS)  # also defaults, which may change


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("vit_base_patch16_clip_224", "softmax"),  # norm before the blocks
        ("vit_base_patch16_siglip_224", "softmax"),  # pooled by attention
        ("vit_giant_patch14_reg4_dinov2", "softmax"),  # layer scale, registers, a gated MLP
        ("vit_base_r50_s16_224", "softmax"),  # a convolutional stem
        ("vit_base_mci_224", "softmax"),  # one of several layers
        ("deit_tiny_distilled_patch16_224", "softmax"),  # two heads
        ("vit_base_patch16_xp_224", None),  # blocks that compute attention themselves
        ("vit_dlittle_patch16_reg1_gap_256", None),  # an attention of timm's without a name here
    ],
)
def test_models_of_timm_as_they_are(name: str, attention: str | None) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, depth=2, num_classes=3)
    spec = ModelSpec.of(model)
    assert (spec.model, spec.attention, spec.num_classes) == (name, attention, 3)
    assert spec.model_options == {"depth": 2}  # and no more than what differs


OBJECTS = {
    "euler": {"solver": solvers.Euler(num_steps=2)},
    "adaptive": {"solver": solvers.Dopri5(rtol=1e-2, atol=1e-3, max_steps=77)},
    "scipy": {"solver": solvers.Scipy(method="RK45", rtol=1e-3)},
    "equilibrium": {
        "solver": solvers.Nesterov(max_steps=7),
        "t1": float("inf"),
        "until": solvers.SteadyState(rtol=1e-2, atol=1e-3, max_steps=9),
        "adjoint": solvers.Implicit(max_steps=11, restart=4),
    },
    "anderson": {"solver": solvers.Anderson(max_steps=5)},
}


@pytest.mark.parametrize("changes", OBJECTS.values(), ids=OBJECTS)
@pytest.mark.parametrize("kind", ["nano", "rvt"])
def test_solver_objects_with_their_options(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model = MODELS[kind]()
    vars_ode.set_solver(model, **changes)
    save_pretrained(model, tmp_path)
    assert_same(load_pretrained(tmp_path), model)


@pytest.mark.parametrize("kind", MODELS)
def test_one_layer_that_was_changed(kind: str, tmp_path: Path) -> None:
    model = MODELS[kind]()
    (name, *_), last = list(vars_layers(model)), list(vars_layers(model))[-1]
    vars_ode.set_solver(model, "heun", t1=3.0, match=last)
    before = settings(model)
    assert before[name] != before[last]
    save_pretrained(model, tmp_path)
    assert settings(load_pretrained(tmp_path)) == before
    assert_same(load_pretrained(tmp_path), model)


def test_a_solver_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True)
    class Mine(solvers.Euler):
        flavour: str = "plain"

    model = nano()
    vars_ode.set_solver(model, Mine(num_steps=2, flavour="sweet"))
    with pytest.raises(ValueError, match=r"solver: Mine\(.*no registered solver; register it under a name"):
        save_pretrained(model, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    for names in ("_classes", "_aliases"):
        registry = solvers.catalogue._registry
        monkeypatch.setattr(registry, names, dict(getattr(registry, names)))
    solvers.register("mine", Mine)
    save_pretrained(model, tmp_path / "saved")
    assert_same(load_pretrained(tmp_path / "saved"), model)
    del solvers.catalogue._registry._classes["mine"]
    with pytest.raises(CheckpointError, match=r"config\.json describes no model.*unknown solver 'mine'"):
        load_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["nano", "rvt"])
def test_precision_comes_back(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = MODELS[kind]("vars-sd").to(dtype)
    save_pretrained(model, tmp_path)
    assert_same(load_pretrained(tmp_path), model)
    assert next(ModelSpec.of(model).build().parameters()).dtype == dtype


def test_mixed_precision_comes_back(tmp_path: Path) -> None:
    model = nano()
    model.head.double()
    save_pretrained(model, tmp_path)
    loaded = load_pretrained(tmp_path)
    assert {key: value.dtype for key, value in loaded.state_dict().items()} == {
        key: value.dtype for key, value in model.state_dict().items()
    }


def test_models_of_the_class_and_of_configured_layers(tmp_path: Path) -> None:
    layer = vars_ode.VARSAttention.configured(learned="factor", threshold="gelu", gated=True, attn_head_dim=6)
    model = VisionTransformer(28, 7, 1, 10, embed_dim=24, depth=2, num_heads=2, reg_tokens=1, attn_layer=layer)
    save_pretrained(model, tmp_path)
    loaded = load_pretrained(tmp_path)
    assert_same(loaded, model)
    assert not hasattr(loaded, "pretrained_cfg")
    assert ModelSpec.of(model).attention == "vars-d-factor"


def test_a_model_of_the_authors_eras(tmp_path: Path) -> None:
    for revision in ("paper", "learned"):
        model = rvt("vars-sd", revision=revision, num_steps=3)
        save_pretrained(model, tmp_path)
        assert_same(load_pretrained(tmp_path), model)
        assert load_pretrained(tmp_path).config == model.config


def test_layers_of_different_kinds(tmp_path: Path) -> None:
    model = nano("vars-d")
    for other in ("vars-s", "performer", "vars-sd-dictionary", "softmax"):
        model.blocks[1].attn = nano(other).blocks[1].attn
        save_pretrained(model, tmp_path)
        assert_same(load_pretrained(tmp_path), model)
        assert list(ModelSpec.of(model).others) == ["blocks.1.attn"]


def test_changes_that_have_a_name_are_read_off(tmp_path: Path) -> None:
    model = rich()
    model.reset_classifier(3, global_pool="avg")
    model.head_drop.p = 0.4
    save_pretrained(model, tmp_path)
    assert_same(load_pretrained(tmp_path), model)
    model = rvt()
    model.reset_classifier(0)
    save_pretrained(model, tmp_path)
    assert_same(load_pretrained(tmp_path), model)


@pytest.mark.parametrize(
    "options",
    [
        {"dynamic_img_size": True, "in_chans": 2, "num_classes": 0},
        {"global_pool": "map", "patch_drop_rate": 0.25, "pos_drop_rate": 0.1},
        {"final_norm": False, "pos_embed": "none", "weight_init": "jax", "proj_bias": False},
        {"global_pool": "max", "fc_norm": False, "scale_mlp_norm": True, "dynamic_img_pad": True, "img_size": (28, 20)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_arguments_are_read_off(options: dict[str, Any], tmp_path: Path) -> None:
    model = timm.create_model("vit_nano_patch4_28", attn_layer="vars-d", **NANO, **options)
    save_pretrained(model, tmp_path)
    assert_same(load_pretrained(tmp_path), model)


def test_data_configuration_comes_back(tmp_path: Path) -> None:
    overlay = {"mean": (0.1,), "std": (0.3,), "label_names": ["a", "b"]}
    model = timm.create_model("vit_nano_patch4_28", pretrained_cfg_overlay=overlay, num_classes=2, **NANO)
    save_pretrained(model, tmp_path)
    loaded = load_pretrained(tmp_path)
    assert loaded.pretrained_cfg["mean"] == (0.1,)
    assert loaded.pretrained_cfg["label_names"] == ("a", "b")


def test_shared_parameters_stay_shared(tmp_path: Path) -> None:
    model = nano()
    model.blocks[1].attn.proj = model.blocks[0].attn.proj
    model.blocks[1].norm1.weight = model.blocks[0].norm1.weight
    save_pretrained(model, tmp_path)
    loaded = load_pretrained(tmp_path)
    assert_same(loaded, model)
    assert len(list(loaded.parameters())) == len(list(model.parameters()))
    assert loaded.blocks[1].attn.proj.weight is loaded.blocks[0].attn.proj.weight
    loaded = load_checkpoint(tmp_path, num_classes=3)[0]
    assert loaded.blocks[1].norm1.weight is loaded.blocks[0].norm1.weight


def test_wrapped_models(tmp_path: Path) -> None:
    model = nano()
    save_pretrained(torch.compile(model, backend="eager"), tmp_path)
    assert_same(load_pretrained(tmp_path), model)


class _Own(nn.Module):
    def __init__(self, dim: int, **stated: Any) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, dim)


def _changed(change: Callable[[nn.Module], object]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = nano()
        change(model)
        return model

    return build


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "another model": (lambda: nn.Linear(2, 2), "a Linear cannot be described"),
    "eps": (
        _changed(lambda model: setattr(model.blocks[0].norm1, "eps", 1e-3)),
        r"blocks\.0\.norm1\.eps is 0\.001 in the model and 1e-06 in what its description builds",
    ),
    "dropout": (
        _changed(lambda model: setattr(model.blocks[1].mlp.drop2, "p", 0.5)),
        r"blocks\.1\.mlp\.drop2\.p is 0\.5",
    ),
    "activation": (
        _changed(lambda model: setattr(model.blocks[1].mlp, "act", nn.Tanh())),
        r"blocks\.1\.mlp\.act is a Tanh in the model and a GELU",
    ),
    "attention": (
        lambda: timm.create_model("vit_nano_patch4_28", attn_layer=_Own, **NANO),
        r"blocks\.0\.attn is a _Own, which no name stands for",
    ),
    "a layer more": (
        _changed(lambda model: setattr(model, "extra", nn.Linear(2, 2))),
        "extra is a Linear in the model and missing",
    ),
    "a wider layer": (
        _changed(lambda model: setattr(model.blocks[1], "mlp", timm.layers.Mlp(16, 48))),
        r"blocks\.1\.mlp\.fc1\.out_features is 48",
    ),
    "field": (
        _changed(lambda model: setattr(model.blocks[1].attn.dictionary, "normalize_queries", False)),
        r"normalize_queries is False in the model and True",
    ),
    "rvt": (
        lambda: (lambda model: (setattr(model.norm, "eps", 1e-3), model)[1])(rvt()),
        r"norm\.eps is 0\.001 in the model",
    ),
}


@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_described_is_refused(build: Callable[[], nn.Module], message: str, tmp_path: Path) -> None:
    model = build()
    with pytest.raises(ValueError, match=message):
        save_pretrained(model, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    save_checkpoint(tmp_path / "file.pth", model)  # the state dict alone
    other = build()
    _, report = load_checkpoint(tmp_path / "file.pth", other)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())
    assert report.layout in ("timm", "plain state dict")


# --- timm reads the same folder ---


@pytest.mark.parametrize("attention", NAMES)
def test_timm_reads_the_folder(attention: str, tmp_path: Path) -> None:
    model = rvt(attention)
    if vars_layers(model):
        vars_ode.set_solver(model, "rk4", sparsity=0.1)
    save_pretrained(model, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(logits(loaded, images(model)), logits(model.eval(), images(model)))


def test_timm_reads_a_vision_transformer(tmp_path: Path) -> None:
    plain = nano("vars-d")
    save_pretrained(plain, tmp_path / "plain")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'plain'}", pretrained=True).eval()
    assert torch.equal(logits(loaded, images(plain)), logits(plain.eval(), images(plain)))
    layer = vars_ode.attention_layer("vars-d", sparsity=0.1)
    for model in (
        rich("vars-d", sparsity=0.1),
        VisionTransformer(32, 8, 3, 7, embed_dim=24, depth=1, attn_layer=layer),
    ):
        save_pretrained(model, tmp_path / "options")
        loaded = timm.create_model(f"local-dir:{tmp_path / 'options'}", pretrained=True, attn_layer=layer).eval()
        assert torch.equal(logits(loaded, images(model)), logits(model.eval(), images(model)))
        with pytest.raises(AssertionError, match="Unknown attn_layer"):  # and not another function without a word
            timm.create_model(f"local-dir:{tmp_path / 'options'}", pretrained=True)


def test_timm_is_refused_what_it_cannot_say(tmp_path: Path) -> None:
    model = rvt(solver=solvers.RK4(num_steps=3))
    save_pretrained(model, tmp_path)
    with pytest.raises(ValueError, match="expected the name of a solver"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, solver=solvers.RK4(num_steps=3)).eval()
    assert torch.equal(logits(loaded, images(model)), logits(model.eval(), images(model)))


# --- the model card ---


def test_the_model_card(tmp_path: Path) -> None:
    model, card = nano(sparsity=0.125), tmp_path / "README.md"
    save_pretrained(model, tmp_path)
    text = card.read_text()
    assert text.startswith("---\nlibrary_name: vars-ode\ntags:\n")
    assert "# license:" in text
    for said in ("vit_nano_patch4_28", "vars-d", "sparsity 0.125", "vars_ode.load_pretrained("):
        assert said in text
    vars_ode.set_solver(model, sparsity=0.25)
    save_pretrained(model, tmp_path)
    assert "sparsity 0.25" in card.read_text()  # ours is kept up to date
    card.write_text("mine")
    save_pretrained(model, tmp_path)
    assert card.read_text() == "mine"
    save_pretrained(model, tmp_path, card={"license": "mit", "datasets": ["fashion_mnist"]})
    assert 'license: "mit"\ndatasets: ["fashion_mnist"]\n---' in card.read_text()
    save_pretrained(model, tmp_path, card="theirs")
    assert card.read_text() == "theirs"


# --- bad input ---


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_pretrained(nano("vars-sd"), folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def reseal(description: dict[str, Any], folder: Path) -> None:
    """Let the checksum of a description be right again."""
    with contextlib.suppress(SafetensorError):
        description["checksum"] = checksum(description, load_file(folder / "model.safetensors"))


def edit(folder: Path, **entries: Any) -> None:
    """Change entries of the description, or of the specification in it."""
    config = json.loads((folder / "config.json").read_text())
    for name, value in entries.items():
        target = config["vars_ode"]["spec"] if name in config["vars_ode"]["spec"] else config["vars_ode"]
        target[name] = value
    reseal(config["vars_ode"], folder)
    (folder / "config.json").write_text(json.dumps(config))


EDITS: dict[str, tuple[dict[str, Any], str]] = {
    "version": ({"format_version": 2}, "is of format version 2, and vars-ode .* reads 1"),
    "no version": ({"format_version": None}, "is of format version None"),
    "version of another type": ({"format_version": "1"}, "is of format version '1'"),
    "attention": ({"attention": "vars-x"}, "unknown attention 'vars-x'"),
    "attention's type": ({"attention": 3}, "attention cannot be 3"),
    "model": ({"model": "vit_nano"}, "there is no model 'vit_nano'"),
    "model's type": ({"model": ["a"]}, "a name under 'model'"),
    "solver": ({"layers": {"*": {"solver": {"solver": "rk5", "fields": {}}}}}, "unknown solver 'rk5'"),
    "solver's option": (
        {"layers": {"*": {"solver": {"solver": "rk4", "fields": {"steps": 3}}}}},
        "has no option 'steps'",
    ),
    "solver's nesting": ({"layers": {"*": {"solver": {"solver": "rk4"}}}}, "expected a number, a string, a list"),
    "settings of no layer": ({"layers": {"blocks.9.attn": {}}}, "settings for blocks.9.attn"),
    "an unknown setting": ({"layers": {"*": {"speed": 3}}}, "speed"),
    "sparsity's type": ({"layers": {"*": {"sparsity": "much"}}}, "sparsity must be a finite number"),
    "layers' type": ({"layers": ["a"]}, "layers must be a mapping"),
    "settings' type": ({"layers": {"*": 3}}, r"\* must be a mapping"),
    "options' type": ({"model_options": [1]}, "model_options must be a mapping"),
    "others' type": ({"others": {"blocks.0.attn": 3}}, "must be an attention's name and its options"),
    "option's type": ({"model_options": {"depth": "three"}}, "describes no model that can be built here: TypeError"),
    "an unknown option": ({"model_options": {"deep": 3}}, "describes no model that can be built here: .*deep"),
    "an assertion of timm's": ({"model_options": {"global_pool": "mean"}}, "describes no model.*AssertionError"),
    "size": ({"img_size": [1, 2, 3]}, r"img_size cannot be \(1, 2, 3\)"),
    "dtype": ({"dtype": "float8"}, "dtype cannot be 'float8'"),
    "specification's type": ({"spec": 3}, "must be a mapping, got 3"),
    "an unknown entry": ({"spec": {"model": "rvt_tiny", "weights": 3}}, "has the entries model, attention"),
    "weights that do not fit": (
        {"num_classes": 7},
        r"does not fit VisionTransformer: 2 of other shape: head\.weight is \(10, 16\) in the file and \(7, 16\)",
    ),
    "a huge model": ({"model_options": {**NANO, "embed_dim": 2_000_000}}, "does not fit VisionTransformer"),
    "shared": ({"shared": {"head.weight": "nothing"}}, "holds a damaged description: KeyError"),
    "checksum": ({"sha256": "0" * 64}, r"model\.safetensors is not the file that config\.json beside it describes"),
}


@pytest.mark.parametrize(("entries", "message"), EDITS.values(), ids=EDITS)
def test_bad_descriptions(entries: dict[str, Any], message: str, copy: Path) -> None:
    edit(copy, **entries)
    for load in (load_pretrained, load_checkpoint):
        with pytest.raises(CheckpointError, match=message) as caught:
            load(copy)
        assert str(copy) in str(caught.value)
        assert "\n" not in str(caught.value)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _pickle(path: Path) -> None:
    torch.save({}, path)
    edit(path.parent, sha256=folders._digest(path.read_bytes()))


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated weights": (lambda folder: _truncate(folder / "model.safetensors"), "is damaged or was replaced"),
    "one bit": (lambda folder: _flip(folder / "model.safetensors"), "is damaged or was replaced"),
    "a pickle": (lambda folder: _pickle(folder / "model.safetensors"), "is no safetensors file"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors is missing"),
    "no config": (lambda folder: (folder / "config.json").unlink(), r"is a folder without config\.json"),
    "truncated config": (lambda folder: _truncate(folder / "config.json"), r"config\.json is truncated or damaged"),
    "deep config": (lambda folder: (folder / "config.json").write_text("[" * 100_000), r"config\.json is truncated"),
    "a list": (
        lambda folder: (folder / "config.json").write_text("[1]"),
        "was not written by vars_ode.save_pretrained",
    ),
    "timm's config": (
        lambda folder: (folder / "config.json").write_text('{"architecture": "vit_tiny_patch16_224"}'),
        "was not written by vars_ode.save_pretrained",
    ),
}


@pytest.mark.parametrize(("damage", "message"), FILES.values(), ids=FILES)
def test_bad_files(damage: Callable[[Path], object], message: str, copy: Path) -> None:
    damage(copy)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_pretrained(copy)
    assert str(copy) in str(caught.value)


def test_a_mixture_of_two_saves_is_noticed(copy: Path, tmp_path: Path) -> None:
    save_pretrained(nano("vars-sd"), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", copy)
    with pytest.raises(CheckpointError, match="is damaged or was replaced"):
        load_pretrained(copy)
    model = nano("vars-sd")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="is damaged or was replaced"):
        load_checkpoint(copy, model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_paths(saved: Path, tmp_path: Path) -> None:
    whole = load_pretrained(saved)
    for path in (str(saved), saved / "model.safetensors", saved / "config.json"):
        assert_same(load_pretrained(path), whole)
        assert_same(load_checkpoint(path)[0], whole)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_pretrained(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="neither a folder of save_pretrained nor"):
        load_pretrained(saved / "README.md")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="file is a file; give save_pretrained a folder"):
        save_pretrained(whole, tmp_path / "file")
    alone = Path(shutil.copy(saved / "model.safetensors", tmp_path))
    with pytest.raises(CheckpointError, match=r"without config\.json"):
        load_pretrained(alone)
    assert_same(load_checkpoint(alone)[0], whole)  # its metadata has the description too
    with torch.device("meta"):
        empty = nano()
    with pytest.raises(ValueError, match="meta device"):
        save_pretrained(empty, tmp_path / "empty")


# --- interruptions ---


@pytest.mark.parametrize("step", range(1, 5))
def test_a_save_that_fails_leaves_old_or_new(step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = nano(), nano(sparsity=0.1)
    for earlier in (2, 3, 4):  # what one failure left must not harm the next
        folder = tmp_path / str(earlier)
        save_pretrained(old, folder)
        _fail_at(earlier, monkeypatch, lambda folder=folder: save_pretrained(new, folder))
        between = settings(load_pretrained(folder))
        assert between == settings(new if earlier == 4 else old)
        _fail_at(step, monkeypatch, lambda folder=folder: save_pretrained(rvt(), folder))
        after = load_pretrained(folder)
        finished = earlier == 4  # the next save first ends the one before, which takes a step
        assert isinstance(after, vars_ode.RobustVisionTransformer) is (step == 4 and not finished)
        if not isinstance(after, vars_ode.RobustVisionTransformer):
            assert settings(after) == between
        save_pretrained(old, folder)
        assert_same(load_pretrained(folder), old)
        assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def _fail_at(step: int, monkeypatch: pytest.MonkeyPatch, save: Callable[[], object]) -> None:
    """Let the given one of the renamings of a save fail."""
    calls = []
    replace = os.replace

    def failing(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == step:
            raise OSError("disk full")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        with pytest.raises(OSError, match="disk full"):
            save()


_SAVER = """
import sys, torch, vars_ode
torch.set_num_threads(1)
from vars_ode import ModelSpec
models = []
for index in range(2):
    spec = ModelSpec("vit_nano_patch4_28", "vars-d", {"sparsity": 0.1 * (index + 1)}, model_options={"depth": 1})
    model = spec.build()
    torch.nn.init.constant_(model.head.bias, 0.1 * (index + 1))
    models.append(model)
vars_ode.save_pretrained(models[0], sys.argv[1])
print("ready", flush=True)
for index in range(1, 10_000):
    vars_ode.save_pretrained(models[index % 2], sys.argv[1])
"""


def test_readers_and_kills_find_a_whole_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with subprocess.Popen([sys.executable, "-c", _SAVER, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            for _ in range(6):
                _assert_consistent(folder)
        finally:
            process.send_signal(signal.SIGKILL)
    _assert_consistent(folder)


def _assert_consistent(folder: Path) -> None:
    model = load_pretrained(folder)
    assert model.head.bias[0].item() == pytest.approx(next(iter(vars_layers(model).values())).sparsity)


# --- load_checkpoint ---


def test_layouts_are_told_apart(tmp_path: Path) -> None:
    parity = Path(__file__).parent / "parity" / "ista_vars_d_a.safetensors"
    assert load_checkpoint(parity)[1].layout == "authors"
    model = nano()
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    filled, report = load_checkpoint(tmp_path / "timm.pth", nano())
    assert report.layout == "timm"
    assert "authors" not in str(report)
    assert "timm" in str(report)
    assert torch.equal(filled.head.weight, model.head.weight)
    with pytest.raises(CheckpointError, match=r"timm vision transformer without a description.*give it as model="):
        load_checkpoint(tmp_path / "timm.pth")
    torch.save(rvt().state_dict(), tmp_path / "rvt.pth")
    assert load_checkpoint(tmp_path / "rvt.pth")[1].layout == "plain state dict"
    save_pretrained(model, tmp_path / "folder")
    assert load_checkpoint(tmp_path / "folder")[1].layout == "vars-ode"
    assert load_checkpoint(tmp_path / "folder", nano())[1].layout == "vars-ode"


@pytest.mark.parametrize("kind", ["nano", "rvt"])
def test_hints_change_a_described_model(kind: str, tmp_path: Path) -> None:
    model = MODELS[kind]("vars-d", num_features=6)
    vars_ode.set_solver(model, "rk4", t1=2.0)
    save_checkpoint(tmp_path / "model.pth", model)
    loaded, report = load_checkpoint(tmp_path / "model.pth", solver="heun", num_classes=3, adjoint="checkpointed")
    for layer in vars_layers(loaded).values():
        assert (layer.solver, layer.t1, layer.adjoint) == (solvers.Heun(), 2.0, solvers.Checkpointed())
    assert logits(loaded, images(model)).shape == (2, 3)
    assert any("head.weight" in line for line in report.ignored)
    stepped, _ = load_checkpoint(tmp_path / "model.pth", num_steps=4)
    assert {layer.t1 for layer in vars_layers(stepped).values()} == {4.0}


def test_hints_without_use_are_reported(tmp_path: Path) -> None:
    model = rvt("softmax")
    save_checkpoint(tmp_path / "described.pth", model)
    torch.save(model.state_dict(), tmp_path / "plain.pth")
    for path in (tmp_path / "described.pth", tmp_path / "plain.pth"):
        loaded, report = load_checkpoint(path, normalize_queries=False, num_steps=3, solver="rk4", num_heads=(2, 4))
        assert torch.equal(logits(loaded.eval(), images(model)), logits(model.eval(), images(model)))
        for name in ("normalize_queries", "num_steps", "solver"):
            assert any(line.startswith(f"{name}=") and "no use" in line for line in report.ignored)
        assert not any(line.startswith("num_heads") for line in report.ignored)


def test_files_of_the_first_version(tmp_path: Path) -> None:
    for learned in ("factor", "dictionary"):
        model = rvt(f"vars-d-{learned}", solver=solvers.RK4(num_steps=3)).eval()
        config = {**model.config, "attention": "vars-d", "learned": learned}
        config |= {"solver": {"solvers": "RK4", "fields": {"num_steps": 3, "dt": None}}}
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        metadata = {"format": "pt", "vars_ode": json.dumps(config)}
        save_file(state, tmp_path / "old.safetensors", metadata)
        plain = {**config, "depths": list(config["depths"])}
        torch.save({"format": "vars_ode", "model": state, "config": plain}, tmp_path / "old.pth")
        for name in ("old.safetensors", "old.pth"):
            loaded, report = load_checkpoint(tmp_path / name)
            assert_same(loaded, model)
            assert report.layout == "vars-ode"


def test_damaged_descriptions_in_files(tmp_path: Path) -> None:
    state = {name: tensor.contiguous() for name, tensor in nano().state_dict().items()}
    for text, message in (
        ("{", "holds a damaged description"),
        ("[1]", "is no mapping"),
        ('{"format_version": 9}', "9"),
    ):
        save_file(state, tmp_path / "file.safetensors", {"vars_ode": text})
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(tmp_path / "file.safetensors")
    torch.save({"format": "vars_ode", "model": state, "config": 3}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match="is no mapping"):
        load_checkpoint(tmp_path / "file.pth")


def test_the_reason_for_no_description_is_told(tmp_path: Path) -> None:
    model = nano()
    model.blocks[0].norm1.eps = 1e-3
    save_checkpoint(tmp_path / "file.pth", model)
    with pytest.raises(CheckpointError, match=r"without a description of it \(.*norm1\.eps is 0\.001.*model="):
        load_checkpoint(tmp_path / "file.pth")


def test_weights_alone_are_as_before(saved: Path) -> None:
    """The file is plain safetensors, which any reader takes."""
    model = nano("vars-sd")
    model.load_state_dict(load_file(saved / "model.safetensors"))


def test_a_saved_model_can_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    save_pretrained(ModelSpec().build(), tmp_path / "model")
    (tmp_path / "new").touch()
    modes = {path.stat().st_mode for path in [tmp_path / "new", *(tmp_path / "model").iterdir()]}
    assert len(modes) == 1


def test_models_that_come_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nano()
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path / "package")
    save_pretrained(model, tmp_path / "package" / "set" / "small")
    monkeypatch.chdir(tmp_path)
    assert vars_ode.list_pretrained() == ("set/small",)
    x = torch.rand(1, 1, 28, 28)
    assert torch.equal(load_pretrained("set/small")(x), model.eval()(x))
    with pytest.raises(FileNotFoundError, match="come with the package are set/small"):
        load_pretrained("set/other")
    other = nano()
    save_pretrained(other, tmp_path / "set" / "small")  # a folder of one's own goes first
    assert torch.equal(load_pretrained("set/small")(x), other.eval()(x))


@pytest.mark.parametrize("name", ["softmax", "vars-sd-coupling", "vars-sd-factor"])
def test_the_trained_models_that_come_with_the_package(name: str) -> None:
    assert f"fashion-mnist/{name}" in vars_ode.list_pretrained()
    model = load_pretrained(f"fashion-mnist/{name}")
    images, labels = fashion_mnist("test").tensors
    with torch.no_grad():
        share = (model(images[:200]).argmax(1) == labels[:200]).double().mean().item()
    assert share > 0.7  # trained, and not by chance
    assert model.training is False


def test_the_trained_models_are_small() -> None:
    folder = Path(vars_ode.__file__).parent / "pretrained"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 1.5e6
    for name in vars_ode.list_pretrained():
        card = (folder / name / "README.md").read_text(encoding="utf-8")
        assert "| clean |" in card
        assert "{" not in card.replace("```", "")  # every field is filled in
