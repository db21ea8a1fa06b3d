"""What report and ``best/config.yaml`` say of encoders: the size at which images are shown, and the views embedded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.plan import ResourcePlan
from cluster.storage import LocalStorage
from methods.data.records import Split
from methods.parts.encoders import EncoderSpec, build_encoder, save_encoder
from methods.protocols.contract import Trained
from methods.training.on_features import frozen_encoder
from orchestrator.engine.history import History
from orchestrator.engine.records import TrialSpec
from orchestrator.engine.selection import Division
from orchestrator.features import embedded, read_index
from orchestrator.folder import RunFolder
from orchestrator.outputs.encoders import encoder_rows
from orchestrator.outputs.export import encoder_facts
from orchestrator.outputs.report import write_report
from orchestrator.outputs.verdict import verdict
from orchestrator.prepare import Prepared
from orchestrator.study import Study

NET = "torchvision/mobilenet_v3_small"


@pytest.fixture
def prepared(make_split: Callable[..., Split]) -> Callable[..., Prepared]:
    split = make_split(4, 6, 5, 16)

    def make(**fields: Any) -> Prepared:
        study = Study(**{"data": "digits", "methods": ["linear_probe"], "init": "none", **fields})
        return Prepared(study, study.task_object(), study.scoring(), study.catalogue(), split, study.space(), Division(), 0.0)

    return make


def setup_of(prepared: Prepared, folder: Path) -> Any:
    return prepared.setup(LocalStorage(folder), ResourcePlan(1, 1.0, 0.0, 1, 1, 1.0, 0.0, 1))


def test_the_report_tells_at_which_size_and_of_which_views(prepared: Callable[..., Prepared], tmp_path: Path) -> None:
    study = prepared(encoder=NET)
    folder = RunFolder.create(tmp_path / "run", study.study)
    (before,) = encoder_rows(study, read_index(folder.storage))
    assert (before.label, before.line, before.shown, before.frozen) == ("", NET, "shown images of 160×160 pixels", "")
    embedded(setup_of(study, folder.path), study.split.test, 1, limit=1e-9, say=lambda line: None)
    write_report(folder, study, History(), verdict(History(), study.facts))
    text = (folder.path / "report.html").read_text()
    # In such a hurry the mirrored view goes first, then the size.
    assert f"Encoder {NET}, shown images of 96×96 pixels, frozen features of each image; seed 0." in text
    assert "<h2>Encoders</h2>" not in text


def test_what_trains_and_what_is_frozen_may_see_other_sizes(prepared: Callable[..., Prepared], tmp_path: Path) -> None:
    study = prepared(encoder=NET, methods=["linear_probe", "supervised"])
    made = embedded(setup_of(study, tmp_path), study.split.test, 1, limit=1e-9, say=lambda line: None)
    (row,) = encoder_rows(study, made.features)
    assert row.shown == "shown images of 160×160 pixels"
    assert row.frozen == "frozen features of each image at 96×96 pixels"


def test_compared_encoders_have_a_row_each(prepared: Callable[..., Prepared], tmp_path: Path) -> None:
    file = tmp_path / "net.pt"
    save_encoder(file, build_encoder(EncoderSpec("conv4"), (3, 16, 16), (0.5,) * 3, (0.5,) * 3))
    study = prepared(encoder=[NET, "conv4", str(file)], init=["own", "none"], methods=["supervised", "linear_probe"])
    rows = {row.label: row for row in encoder_rows(study, ())}
    assert list(rows) == [NET, f"{NET} from none", "conv4", str(file)]
    assert rows[NET].line.startswith(f"{NET}, starting from ImageNet")
    assert {label: row.shown for label, row in rows.items()} == {
        NET: "shown images of 160×160 pixels",
        f"{NET} from none": "shown images of 160×160 pixels",
        "conv4": "",
        str(file): "",
    }


def test_config_of_the_winner(prepared: Callable[..., Prepared], tmp_path: Path) -> None:
    study = prepared(encoder=NET)
    setup = embedded(setup_of(study, tmp_path), study.split.test, 1, limit=1e-9, say=lambda line: None)
    spec = TrialSpec("0", 0, "linear_probe", {}, 0)
    model = Trained(frozen_encoder(setup.encoder_for(spec), study.split.train))
    expected = {"name": NET, "weights": "none", "size": [96, 96], "views": ["image"]}
    assert encoder_facts(model, spec, setup) == expected
    # An encoder that was not resized, with both views.
    plain = dataclasses.replace(setup, encoder=EncoderSpec("conv4"), storage=LocalStorage(tmp_path / "other"), features=())
    plain = embedded(plain, None, 1, say=lambda line: None)
    model = Trained(frozen_encoder(plain.encoder_for(spec), study.split.train))
    assert encoder_facts(model, spec, plain) == {"name": "conv4", "weights": "none", "views": ["image", "mirrored"]}


def test_an_index_of_before_sizes_were_kept_is_read(prepared: Callable[..., Prepared], tmp_path: Path) -> None:
    study = prepared(encoder="conv4")
    setup = embedded(setup_of(study, tmp_path), None, 1, say=lambda line: None)
    text = (tmp_path / "features" / "index.json").read_text()
    assert '"size": null' in text
    (tmp_path / "features" / "index.json").write_text(text.replace(',\n    "size": null\n  }', "\n  }"))
    assert (tmp_path / "features" / "index.json").read_text() != text
    assert tuple(read_index(LocalStorage(tmp_path))) == setup.features
