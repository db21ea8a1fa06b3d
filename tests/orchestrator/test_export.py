"""The winner in one file: what it answers in a process that has never heard of this package, and what cannot be exported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from orchestrator import Result, Study, run
from orchestrator.export import CLASSES, export, operation_of, portable
from orchestrator.prepare import prepare
from search_spaces.domains import UserError

ALONE = """
import sys
import numpy as np
images = np.load("images.npy")
if sys.argv[1] == "onnx":
    import onnxruntime
    session = onnxruntime.InferenceSession(sys.argv[2], providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    answers = session.run(names, {"images": images})
    about = session.get_modelmeta().custom_metadata_map["classes"]
else:
    import torch
    extra = {"classes.json": ""}
    program = torch.export.load(sys.argv[2], extra_files=extra)
    names, about = ["probabilities", "embedding"], extra["classes.json"]
    answers = [output.detach().numpy() for output in program.module()(torch.from_numpy(images))]
assert not {"methods", "orchestrator", "search_spaces"} & set(sys.modules), "it must need nothing of ours"
np.savez("answers.npz", about=about, **dict(zip(names, answers)))
"""


def study(method: str) -> Study:
    return Study(
        data="digits", size=12, labels=60, methods=[method], trials=1, epochs=1, epoch_images=64, encoder="conv4",
        precision="fp32",
    )  # fmt: skip


@pytest.fixture(scope="module", params=["knn_classifier", "supervised", "simclr"])
def finished(request: pytest.FixtureRequest, without_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A winner of each kind: a head of neighbours, a network trained whole, a probe on an encoder."""
    return run(study(request.param), tmp_path_factory.mktemp(request.param) / "run")


def asked(result: Result) -> Tensor:
    """uint8 [n, 3, H, W]: test images of the study in three equal channels."""
    test = prepare(result.run.load_study()).split.test
    assert test is not None
    return test.data.images.take(torch.from_numpy(test.index)).expand(-1, 3, -1, -1).contiguous()


@pytest.mark.parametrize("format", ["onnx", pytest.param("torch", marks=pytest.mark.long)])
def test_a_file_answers_as_the_winner_without_this_package(finished: Result, format: str, tmp_path: Path) -> None:
    made = export(finished.folder, format, tmp_path / "winner")
    x = asked(finished)
    with torch.no_grad():
        probabilities, embedding = portable(finished.winner())(x)
        # As the predictor itself answers.
        own = finished.winner().load_predictor()(x[:, :1]).softmax(1)
    torch.testing.assert_close(probabilities, own, atol=1e-4, rtol=0)
    np.save(tmp_path / "images.npy", x.numpy())
    code = [sys.executable, "-c", ALONE, format, str(made.path)]
    subprocess.run(code, cwd=tmp_path, check=True, capture_output=True, timeout=240)
    found = np.load(tmp_path / "answers.npz")
    assert found["probabilities"].shape == (len(x), 10)
    assert np.abs(found["probabilities"] - probabilities.numpy()).max() < 1e-4
    assert (found["probabilities"].argmax(1) == probabilities.numpy().argmax(1)).all()
    assert np.abs(found["embedding"] - embedding.numpy()).max() < 1e-3 * float(embedding.abs().max())
    assert json.loads(str(found["about"])) == [str(digit) for digit in range(10)]


def test_weights_are_written_for_whoever_rebuilds_the_network(finished: Result, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="the extra safetensors is not installed")
    export(finished.folder, "safetensors", tmp_path / "winner.safetensors")
    tensors = safetensors.load_file(tmp_path / "winner.safetensors")
    about = json.loads((tmp_path / "winner.json").read_text())
    assert {name.partition(".")[0] for name in tensors} == {"encoder", "head"}
    assert about[CLASSES] == [str(digit) for digit in range(10)]


def test_what_cannot_be_written_is_one_line(finished: Result, tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"mine")
    for given, words in (
        (("onx", tmp_path / "x"), "format must be one of onnx, torch, safetensors, got onx; did you mean onnx"),
        (("onnx", tmp_path / "taken"), "taken exists already; give another --out"),
        (("onnx", tmp_path / "none" / "x"), "is no folder; make it"),
    ):
        with pytest.raises(UserError) as caught:
            export(finished.folder, *given)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "taken").read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["taken"], "nothing half-written is left"


def test_a_run_without_a_winner_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        export(tmp_path, "onnx")
    assert "\n" not in str(caught.value)


def test_the_operation_that_cannot_be_exported_is_named() -> None:
    error = RuntimeError("failed to convert")
    error.__cause__ = ValueError("No ONNX function found for <OpOverload(op='aten._cdist_forward', overload='default')>")
    assert operation_of(error) == "operation aten._cdist_forward has no counterpart"
    assert operation_of(RuntimeError("something else.\nmore")) == "something else"
