"""Networks of other makers as encoders: torchvision's, timm's, ONNX files and modules of one's own; and what is refused."""

from __future__ import annotations

import copy
import sys
import urllib.error
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from methods.catalogue import CATALOGUE
from methods.parts.encoders import EncoderSpec, build_encoder, can_be_saved, load_encoder, origin_of, save_encoder, start_of
from methods.parts.pair import PairEncoder
from methods.testing.cases import case_of
from methods.training import Training, TrainSettings
from search_spaces.domains import UserError

FAMILIES = {
    "resnet18": "fc",
    "mobilenet_v3_small": "classifier.3",
    "efficientnet_b0": "classifier.1",
    "regnet_y_400mf": "fc",
    "densenet121": "classifier",
    "shufflenet_v2_x0_5": "fc",
    "convnext_tiny": "classifier.2",
    "swin_t": "head",
    "vit_b_32": "heads.head",
}
"""One network a family, and the name of its last linear layer."""


def _build(name: str, shape: tuple[int, int, int] = (3, 32, 32), width: float = 1, **spec: Any) -> Any:
    return build_encoder(EncoderSpec(name, **spec), shape, (0.4,) * shape[0], (0.2,) * shape[0], width)


def _images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _refused(match: str, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(UserError, match=match) as error:
        _build(*args, **kwargs)
    assert "\n" not in str(error.value)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_torchvisions_networks_give_what_their_classifier_sees(name: str) -> None:
    encoder = _build(f"torchvision/{name}", init="none").eval()
    theirs = models.get_model(name, weights=None).eval()
    theirs.load_state_dict({**theirs.state_dict(), **{k.removeprefix("net."): v for k, v in encoder.net.state_dict().items()}})
    seen: list[Tensor] = []
    theirs.get_submodule(FAMILIES[name]).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images, size = _images(2, 3, 32, 32), encoder.shown.size
    assert size == ((224, 224) if name in ("swin_t", "vit_b_32") else (160, 160))
    x = F.interpolate(images.float() / 255, size, mode="bilinear", antialias=True)
    theirs((x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
    z, maps = encoder(images), encoder.maps(images)
    torch.testing.assert_close(z, seen[0], rtol=1e-3, atol=1e-4)
    assert z.shape == (2, encoder.dim)
    assert tuple(maps) == encoder.layers
    assert len(maps) >= 2
    assert all(m.dim() == 4 and len(m) == 2 and min(m.shape[2:]) > 1 for m in maps.values())
    places = [m.shape[2] for m in maps.values()]
    assert places == sorted(places, reverse=True)
    held = [id(p) for modules in encoder.parts().values() for module in modules for p in module.parameters()]
    assert sorted(held) == sorted(id(p) for p in encoder.parameters())


@torch.no_grad()
def test_maps_of_tokens_and_of_channels_last_are_turned() -> None:
    """Where a map's channels lie is checked by its mean over places, which the networks' own next step takes."""
    vit = _build("torchvision/vit_b_32", init="none").eval()
    last = vit.maps(_images(2, 3, 32, 32))["encoder.layers.encoder_layer_11"]
    tokens: list[Tensor] = []
    vit.net.encoder.ln.register_forward_pre_hook(lambda module, inputs: tokens.append(inputs[0]))
    vit(_images(2, 3, 32, 32))
    torch.testing.assert_close(last.flatten(2).transpose(1, 2), tokens[0][:, 1:])
    swin = _build("torchvision/swin_t", init="none").eval()
    last = swin.maps(_images(2, 3, 32, 32))["features.7"]
    z = swin.net.norm(last.permute(0, 2, 3, 1)).mean((1, 2))
    torch.testing.assert_close(z, swin(_images(2, 3, 32, 32)), rtol=1e-4, atol=1e-4)


def _cache(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, state: Any) -> Path:
    """A file where torch keeps what it downloads, and no network."""

    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service\nnot known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder))
    place = folder / "checkpoints" / Path(models.get_model_weights(name)["DEFAULT"].url).name
    place.parent.mkdir(exist_ok=True)
    if state is not None:
        torch.save(state, place)
    return place


def test_weights_come_from_torchs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    state = models.mobilenet_v3_small(weights=None).state_dict()
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}  # as old files are
    _cache(monkeypatch, tmp_path, "mobilenet_v3_small", state)
    encoder = _build("torchvision/mobilenet_v3_small", (1, 28, 28))
    assert torch.equal(encoder.net.classifier[0].weight, state["classifier.0.weight"])
    assert encoder.origin == "ImageNet (IMAGENET1K_V1), torchvision's mobilenet_v3_small (BSD-3-Clause)"
    assert start_of(EncoderSpec("torchvision/mobilenet_v3_small")) == encoder.origin
    encoder.train()
    assert torch.equal(encoder(_images(4, 1, 28, 28)), encoder(_images(4, 1, 28, 28))), "no dropout"
    save_encoder(tmp_path / "e.pt", encoder)
    loaded = load_encoder(tmp_path / "e.pt")
    with torch.no_grad():
        assert torch.equal(loaded(_images(2, 1, 28, 28)), encoder.eval()(_images(2, 1, 28, 28)))
    assert loaded.origin == encoder.origin


def test_densenets_old_names_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = models.densenet121(weights=None).state_dict()
    old = {name.replace("norm1", "norm.1").replace("conv2", "conv.2"): value for name, value in state.items()}
    assert old.keys() != state.keys()
    _cache(monkeypatch, tmp_path, "densenet121", old)
    encoder = _build("torchvision/densenet121")
    name = "features.denseblock1.denselayer1.norm1.weight"
    assert torch.equal(encoder.net.get_parameter(name), state[name])


def test_weights_that_cannot_be_had_name_the_file_to_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = _cache(monkeypatch, tmp_path, "resnet18", None)
    _refused(
        rf"its weights in {tmp_path}/checkpoints .*not known.*{place.name} there.*or use init none", "torchvision/resnet18"
    )
    torch.save({"fc.weight": print}, place)
    _refused("which failed", "torchvision/resnet18")  # what would run code is not loaded


def test_names_that_are_no_encoder_are_refused() -> None:
    _refused("torchvision/resnet-18 is not an encoder; did you mean resnet18", "torchvision/resnet-18")
    _refused("torchvision/googlenet has no single feature output", "torchvision/googlenet")
    _refused("torchvision/squeezenet1_1 has no single feature output", "torchvision/squeezenet1_1")
    _refused("takes images of 224 x 224 pixels, got size 96; leave the size out", "torchvision/vit_b_32", init="none", size=96)
    _refused("torchvision/resnet18 comes in one width, got width 0.5", "torchvision/resnet18", init="none", width=0.5)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    torch.save(models.resnet34(weights=None).state_dict(), tmp_path / "w.pt")
    _refused(
        r"w\.pt does not fit this architecture: unknown net\.layer1\.2", "torchvision/resnet18", init=str(tmp_path / "w.pt")
    )
    state = models.resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "w.pt")
    begun = _build("torchvision/resnet18", init=str(tmp_path / "w.pt"))
    assert torch.equal(begun.net.conv1.weight, state["conv1.weight"])
    assert begun.origin == str(tmp_path / "w.pt")


class TimmNet(nn.Module):
    """As timm makes them: no classifier, and a configuration."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4))
        self.blocks = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1))
        self.pretrained_cfg = {"classifier": "head", "fixed_input_size": False}

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x)).mean((2, 3))


def _timm(monkeypatch: pytest.MonkeyPatch, weights: nn.Module | None) -> None:
    def create(name: str, pretrained: bool, num_classes: int) -> nn.Module:
        assert (name, num_classes) == ("tiny", 0)
        if pretrained and weights is None:
            raise ConnectionError("no\nroute")
        return weights if pretrained and weights is not None else TimmNet()

    timm: Any = ModuleType("timm")
    timm.is_model, timm.list_models, timm.create_model = lambda name: name == "tiny", lambda: ["tiny"], create
    config = {"input_size": (3, 64, 64), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    data: Any = ModuleType("timm.data")
    data.resolve_model_data_config = lambda net: config
    about: Any = ModuleType("timm.models")
    about.get_pretrained_cfg = lambda name: SimpleNamespace(hf_hub_id=f"timm/{name}.v1", license="apache-2.0")
    for module in (timm, data, about):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def test_timms_networks_and_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = TimmNet()
    _timm(monkeypatch, given)
    encoder = _build("timm/tiny").eval()
    assert encoder.origin == "timm's tiny, timm/tiny.v1 (apache-2.0)"
    assert (encoder.dim, encoder.layers, encoder.shown.size) == (6, ("stem", "blocks"), (32, 32))
    images = _images(2, 3, 32, 32)
    torch.testing.assert_close(encoder(images), given.eval()((images / 255 - 0.5) / 0.25), rtol=1e-4, atol=1e-4)
    torch.save({**given.state_dict(), "head.weight": torch.zeros(1)}, tmp_path / "w.pt")
    assert _build("timm/tiny", init=str(tmp_path / "w.pt")).dim == 6
    _refused("timm/tinny is not an encoder; did you mean tiny", "timm/tinny", init="none")
    _timm(monkeypatch, None)
    _refused("hub's cache or a download, which failed .no route.*or use init none", "timm/tiny")


def test_a_timm_name_without_timm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("timm", "timm.data", "timm.models"):
        monkeypatch.setitem(sys.modules, module, None)
    for init in (None, "none"):
        _refused(
            r"timm/resnet18 needs timm, which is not installed; pip install 'labelwise\[timm\]'", "timm/resnet18", init=init
        )


def test_safetensors_are_read_by_their_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = tmp_path / "w.safetensors"
    place.write_bytes(b"1")
    state = models.resnet18(weights=None).state_dict()
    reader: Any = ModuleType("safetensors.torch")
    reader.load_file = lambda path: state if path == str(place) else {}
    monkeypatch.setitem(sys.modules, "safetensors.torch", reader)
    assert torch.equal(_build("torchvision/resnet18", init=str(place)).net.conv1.weight, state["conv1.weight"])

    def broken(path: str) -> None:
        raise ValueError("header\ntoo small")

    reader.load_file = broken
    _refused("is not a safetensors file .header too small.; export it again", "torchvision/resnet18", init=str(place))
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    _refused(r"needs safetensors, .*pip install 'labelwise\[safetensors\]'", "torchvision/resnet18", init=str(place))


class Session:
    """An onnxruntime session on a "network" that averages over places; its file says the input's shape."""

    def __init__(self, graph: bytes, options: object, providers: list[str]) -> None:
        if not graph.startswith(b"shape:"):
            raise RuntimeError("INVALID\nPROTOBUF")
        self.shape = [int(n) if n.isdigit() else n for n in graph.decode().removeprefix("shape:").split(",")]

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="x", shape=self.shape)]

    def run(self, outputs: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        x = inputs["x"]
        assert all(own == given for own, given in zip(self.shape, x.shape, strict=True) if isinstance(own, int))
        return [x.mean((1, 2) if self.shape[3] == 3 else (2, 3))]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("onnxruntime")
    module.InferenceSession, module.SessionOptions = Session, SimpleNamespace
    monkeypatch.setitem(sys.modules, "onnxruntime", module)


@pytest.mark.parametrize("given", ["b,3,h,w", "b,3,48,48", "4,3,h,w", "b,48,48,3"])
@pytest.mark.usefixtures("runtime")
def test_an_onnx_file_is_a_frozen_encoder(given: str, tmp_path: Path) -> None:
    place = tmp_path / "net.onnx"
    place.write_text(f"shape:{given}")
    encoder = _build(str(place), (1, 28, 28))
    assert encoder.shown.size == ((48, 48) if "48" in given else (160, 160))
    images = _images(6, 1, 28, 28)
    z = encoder(images)
    assert z.shape == (6, 3) == (6, encoder.dim)
    expected = (F.interpolate(images / 255, encoder.shown.size, mode="bilinear").mean((2, 3)) - 0.485) / 0.229
    torch.testing.assert_close(z[:, :1], expected, rtol=1e-4, atol=1e-4)
    assert not list(encoder.parameters())
    for again in (copy.deepcopy(encoder), cloudpickle.loads(cloudpickle.dumps(encoder))):  # as Ray sends it
        assert torch.equal(again(images), z)
    save_encoder(tmp_path / "e.pt", encoder)
    place.unlink()
    loaded = load_encoder(tmp_path / "e.pt")
    assert torch.equal(loaded(images), z)
    assert loaded.origin == f"{place} (its licence is its maker's)"


@pytest.mark.usefixtures("runtime")
def test_onnx_files_that_do_not_serve_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "net.onnx"
    for text, match in (
        ("hello", r"net\.onnx: onnxruntime cannot read the file as a network .INVALID PROTOBUF.; export it again"),
        ("shape:b,5,h,w", r"must take 1 or 3 channels, \[B, C, H, W\], got an input"),
        ("shape:b,3", "must take 1 or 3 channels"),
    ):
        place.write_text(text)
        _refused(match, str(place))
    place.write_text("shape:b,3,48,48")
    _refused("takes images of 48 x 48 pixels, got size 64", str(place), size=64)
    _refused("has init of its own, got init 'none'; leave it out", str(place), init="none")
    _refused("comes in one width, got width 2", str(place), width=2)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    _refused(r"needs onnxruntime; pip install 'labelwise\[onnx\]'", str(place))


class Own(nn.Module):
    """A network of one's own with a kind of output to choose."""

    def __init__(self, output: str = "vector", channels: int = 3) -> None:
        super().__init__()
        self.output = output
        self.body = nn.Sequential(nn.Conv2d(channels, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 7, 3, 2, 1))

    def forward(self, x: Tensor) -> Any:
        x = self.body(x)
        return {"vector": x.mean((2, 3)), "map": x, "tokens": x.flatten(2), "dict": {"z": x}, "one": x.mean((0, 2, 3))[None]}[
            self.output
        ]


@pytest.mark.parametrize("output", ["vector", "map"])
def test_a_module_of_ones_own_is_an_encoder(output: str) -> None:
    own = Own(output)
    spec = EncoderSpec("", module=own)
    encoder: Any = build_encoder(spec, (3, 16, 16), (0.4, 0.5, 0.6), (0.2,) * 3)
    images = _images(2, 3, 16, 16)
    expected = own.body((images / 255 - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / 0.2).mean((2, 3))
    torch.testing.assert_close(encoder(images), expected, rtol=1e-4, atol=1e-5)
    assert (encoder.dim, encoder.layers) == (7, ("body.0", "body.2"))
    assert encoder(_images(2, 3, 24, 24)).shape == (2, 7)
    assert encoder.net is not own
    assert start_of(spec) == "the weights it was given with"
    for nameless in (encoder, PairEncoder(encoder, encoder, (0.5,) * 3, (0.2,) * 3, "halves")):
        with pytest.raises(UserError, match="built by name"):
            save_encoder("nowhere.pt", nameless)
        assert not can_be_saved(nameless)


@pytest.mark.parametrize(
    ("module", "spec", "match"),
    [
        (Own("tokens"), {}, r"must give one tensor \[B, D\] or \[B, D, h, w\] of floats, got a tensor \[2, 7, 64\]"),
        (Own("dict"), {}, "of floats, got dict; return the embedding"),
        (Own("one"), {}, "one embedding an image, got 1 of 2 images"),
        (Own(channels=1), {}, r"Own must take images \[B, 3, 16, 16\], but it failed on them .*channels"),
        (nn.Linear(9, 3), {}, r"Linear must take images \[B, 3, 16, 16\], but it failed"),
        (Own(), {"init": "none"}, "a module of your own has init of its own, got init 'none'; leave it out"),
        (Own(), {"size": 64}, "a module of your own has size of its own, got size 64; leave it out"),
    ],
)
def test_modules_that_do_not_serve_are_refused(module: nn.Module, spec: dict[str, Any], match: str) -> None:
    _refused(match, "", (3, 16, 16), module=module, **spec)


@pytest.mark.parametrize("name", ["supervised", "simclr", "fixmatch", "maml"])
def test_methods_train_a_module_of_ones_own(name: str) -> None:
    case = case_of(CATALOGUE[name])
    own = Own()
    before = copy.deepcopy(own.state_dict())
    settings = TrainSettings(1, EncoderSpec("", module=own), epoch_images=32, precision="fp32")
    training = Training(case.method, case.config(), case.data(), settings)
    assert training.train_epoch().finite
    learnt: Any = training.learner.encoder()
    net = next(part for part in learnt.modules() if isinstance(part, Own))
    assert not torch.equal(net.body[0].weight, before["body.0.weight"])
    assert torch.equal(own.body[0].weight, before["body.0.weight"]), "each training has a copy"


def test_an_exported_encoder_may_be_named_by_its_file(tmp_path: Path) -> None:
    encoder = _build("conv4")
    save_encoder(tmp_path / "best" / "encoder.pt", encoder)
    for place in (tmp_path, tmp_path / "best" / "encoder.pt"):
        begun = _build(str(place))
        assert torch.equal(begun.blocks[0][0].weight, encoder.blocks[0][0].weight)
        assert origin_of(begun) == str(tmp_path / "best" / "encoder.pt")
    _refused("is a file with weights of its own, got init 'none'; leave init out", str(tmp_path), init="none")
    torch.save(encoder.state_dict(), tmp_path / "state.pt")
    _refused("names no architecture; set encoder to its name and init to this file", str(tmp_path / "state.pt"))
    (tmp_path / "text.pt").write_text("hello")
    _refused(r"text\.pt is not a file of weights", str(tmp_path / "text.pt"))
