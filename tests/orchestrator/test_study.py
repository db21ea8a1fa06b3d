"""Studies: every bad one is refused in one line that names rule, value and remedy; good ones survive YAML unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.catalogue import CATALOGUE
from methods.parts.files import write_text
from orchestrator.dry import dry_run
from orchestrator.folder import RunFolder, dump_study
from orchestrator.prepare import prepare
from orchestrator.run import run
from orchestrator.study import IN_PYTHON, FewShotTask, Study, StudyError, load_study
from search_spaces.domains import Choice, Float, Int, UserError

SIMCLR: dict[str, Any] = {"data": "digits", "methods": ["simclr"]}


def refused(**fields: Any) -> str:
    with pytest.raises(UserError) as caught:
        Study(**fields)
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, ["data", "data: digits"]),
        ({"data": 3}, ["data", "got 3"]),
        ({"data": []}, ["data: must be a path", "got []"]),
        ({"data": np.zeros((50, 60))}, ["data: must be a path", "array"]),
        ({"data": "digits", "methods": ["simclt"]}, ["simclt", "did you mean simclr?"]),
        ({"data": "digits", "methods": "qqqq"}, ["qqqq", "known are"]),
        ({"data": "digits", "methods": []}, ["at least one method", "labelwise methods"]),
        ({"data": "digits", "methods": ["simclr", "simclr"]}, ["once", "simclr twice"]),
        ({"data": "digits", "methods": [3]}, ["methods.0:", "got 3"]),
        ({"data": "digits", "methods": ["simclr", "mae"], "trials": 1}, ["at least the number of methods, 2", "got 1"]),
        ({"data": "digits", "search": {"simclt.lr": 0.1}}, ["simclt", "did you mean simclr?"]),
        ({**SIMCLR, "trials": 0}, ["trials", "greater than or equal to 1", "got 0"]),
        ({**SIMCLR, "trials": "8"}, ["trials", "integer", "got '8'"]),
        ({**SIMCLR, "trials": 8.0}, ["trials", "integer", "got 8.0"]),
        ({**SIMCLR, "epochs": True}, ["epochs", "integer", "got True"]),
        ({**SIMCLR, "trails": 8}, ["trails is not a field", "did you mean trials?"]),
        ({**SIMCLR, "self": 8}, ["self is not a field"]),
        ({**SIMCLR, "selection": {"tops": 2}}, ["selection.tops", "did you mean top?"]),
        ({**SIMCLR, "selection": {"seeds": 0}}, ["selection.seeds", "got 0"]),
        ({**SIMCLR, "selection": 3}, ["selection", "got 3"]),
        ({**SIMCLR, "labels": 1}, ["labels", "got 1"]),
        ({**SIMCLR, "labels": "al"}, ["labels", "'all'", "got 'al'"]),
        ({**SIMCLR, "labels": True}, ["labels", "got True"]),
        ({**SIMCLR, "test": 1.5}, ["test share", "between 0 and 1", "got 1.5"]),
        ({**SIMCLR, "validation": 0.6}, ["validation", "at most 0.5", "got 0.6", "leave it out"]),
        ({**SIMCLR, "validation": "half"}, ["validation", "number", "got 'half'"]),
        ({**SIMCLR, "imbalance": 0.5, "labels": 40}, ["imbalance", "at least 1", "got 0.5"]),
        ({**SIMCLR, "imbalance": True, "labels": 40}, ["imbalance", "number", "got True"]),
        ({**SIMCLR, "imbalance": 10}, ["imbalance needs a number of labels", "labels: all"]),
        ({**SIMCLR, "mismatch": 0.8, "labels": 40}, ["mismatch", "between 0 and 0.75", "got 0.8"]),
        ({**SIMCLR, "mismatch": 0.5}, ["mismatch needs a number of labels", "labels: all"]),
        ({**SIMCLR, "mismach": 0.5}, ["mismach is not a field", "did you mean mismatch?"]),
        ({**SIMCLR, "task": "few_shot", "validation": 0.3}, ["classification", "got 0.3", "few_shot.validation"]),
        ({**SIMCLR, "task": "few_shot", "labels": 40, "mismatch": 0.0}, ["mismatch belongs", "got 0.0", "leave it out"]),
        ({**SIMCLR, "test": 1}, ["test", "got 1"]),
        ({**SIMCLR, "encoder": "resnet_smal"}, ["encoder: resnet_smal", "did you mean resnet_small?"]),
        ({**SIMCLR, "vit_encoder": "vit_tyni"}, ["vit_encoder: vit_tyni", "did you mean vit_tiny?"]),
        ({**SIMCLR, "protocol": "linea"}, ["linea is not a protocol", "did you mean linear?"]),
        ({**SIMCLR, "protocol": {"linear": {"heed": 1}}}, ["linear.heed", "did you mean head?"]),
        ({**SIMCLR, "protocol": {"linear": 3}}, ["protocol linear", "mapping", "got 3"]),
        ({**SIMCLR, "protocol": {"linear": {}, "knn": {}}}, ["one name", "knn"]),
        ({**SIMCLR, "protocol": ["linear"]}, ["protocol", "got ['linear']"]),
        ({**SIMCLR, "search": [1]}, ["search", "got [1]"]),
        ({**SIMCLR, "search": {1: 2}}, ["search", "string", "got 1"]),
        ({**SIMCLR, "search": {"simclr.temprature": 1}}, ["search.simclr.temprature", "did you mean simclr.temperature?"]),
        ({**SIMCLR, "search": {"simclr.temperature": 1e9}}, ["search.simclr.temperature", "from 0.001 to 1000", "1000000000"]),
        ({**SIMCLR, "search": {"simclr.temperature": {"low": 0.1, "high": 1e9}}}, ["search.simclr.temperature", "1000000000"]),
        ({**SIMCLR, "search": {"simclr.temperature": {"low": 0.1, "hihg": 1}}}, ["hihg", "did you mean high?"]),
        ({**SIMCLR, "search": {"simclr.temperature": None}}, ["search.simclr.temperature", "None"]),
        ({**SIMCLR, "search": {"simclr.batch_size": "big"}}, ["search.simclr.batch_size", "whole number", "'big'"]),
        ({**SIMCLR, "search": {"mae.mask_ratio": 0.5}}, ["mae is not among this study's methods"]),
        ({**SIMCLR, "search": {"simcrl.lr": 0.5}}, ["search.simcrl.lr", "did you mean simclr?"]),
        ({**SIMCLR, "search": {"*.mask_ratio": 0.5}}, ["search.*.mask_ratio matches no knob"]),
        ({**SIMCLR, "seed": -1}, ["seed", "got -1"]),
        ({**SIMCLR, "size": 2}, ["size", "got 2"]),
        ({**SIMCLR, "workers": 0}, ["workers", "got 0"]),
        ({**SIMCLR, "slots": 0}, ["slots", "got 0"]),
        ({**SIMCLR, "precision": "fp16"}, ["precision", "got 'fp16'"]),
        ({**SIMCLR, "on_bad_image": "ignore"}, ["on_bad_image", "'refuse' or 'skip'", "got 'ignore'"]),
        ({**SIMCLR, "task": "few-shot"}, ["task", "few_shot", "got 'few-shot'"]),
        ({**SIMCLR, "task": "few_shot", "protocol": "linear"}, ["few_shot", "got linear", "leave protocol out"]),
        ({**SIMCLR, "objective": "accuracy"}, ["objective", "function in Python", "got 'accuracy'"]),
        ({**SIMCLR, "few_shot": {"ways": 1}}, ["few_shot.ways", "got 1"]),
        ({**SIMCLR, "few_shot": {"way": 5}}, ["few_shot.way", "did you mean ways?"]),
        ({**SIMCLR, "few_shot": {"validation": 1.0}}, ["few_shot.validation", "got 1.0"]),
        ({**SIMCLR, "reduction": 0}, ["reduction", "got 0"]),
        (
            {**SIMCLR, "stop": {"embeding_sd": {"below": 0.1}}},
            ["stop.embeding_sd is not a health signal", "did you mean embedding_sd?"],
        ),
        ({**SIMCLR, "stop": {"mask_rate": {}}}, ["stop.mask_rate", "a limit needs a bound, such as {below: 0.05}", "got {}"]),
        (
            {**SIMCLR, "stop": {"mask_rate": {"below": 0.5, "above": 0.2}}},
            ["stop.mask_rate", "below must not exceed above", "got {'below': 0.5, 'above': 0.2}"],
        ),
        ({**SIMCLR, "task": "few_shot", "imbalance": 10.0}, ["imbalance belongs to task classification", "got 10.0"]),
        ({**SIMCLR, "stop": {"mask_rate": {"blow": 0.1}}}, ["stop.mask_rate.blow", "did you mean below?"]),
        ({**SIMCLR, "stop": {"mask_rate": {"below": "x"}}}, ["stop.mask_rate.below", "number", "got 'x'"]),
        ({**SIMCLR, "stop": {"mask_rate": {"below": float("nan")}}}, ["stop.mask_rate.below", "finite", "got nan"]),
        ({**SIMCLR, "stop": {"mask_rate": {"below": 0.1, "epochs": 0}}}, ["stop.mask_rate.epochs", "got 0"]),
        ({**SIMCLR, "stop": {"mask_rate": 0.1}}, ["stop.mask_rate", "got 0.1"]),
        ({**SIMCLR, "stop": ["mask_rate"]}, ["stop", "got ['mask_rate']"]),
    ],
)
def test_a_bad_study_is_refused_in_one_line(fields: dict[str, Any], words: list[str]) -> None:
    text = refused(**fields)
    assert all(word in text for word in words), text


@pytest.mark.parametrize("protocol", ["calibration", {"robustness": {"kind": "fgsm"}}])
def test_an_error_is_not_maximised(protocol: Any, tmp_path: Path) -> None:
    study = Study(**SIMCLR, protocol=protocol)
    for start in (lambda: run(study, tmp_path / "run"), lambda: dry_run(study, tmp_path / "run")):
        with pytest.raises(StudyError, match=r"an error, which the search would maximise; .* lambda score: -score\.value"):
            start()
    assert list(tmp_path.iterdir()) == []
    Study(**SIMCLR, protocol=protocol, objective=lambda score: -score.value).check_objective()
    Study(**SIMCLR, protocol="predict").check_objective()


def test_an_objective_that_stayed_in_its_script_is_asked_for(tmp_path: Path) -> None:
    """A run folder's study can be read, but a search that goes on without its objective would maximise something else."""
    kept = Study(**yaml.safe_load(dump_study(Study(**SIMCLR, objective=lambda score: score.low))))
    with pytest.raises(StudyError, match=r"objective is a function .* resume\(DIR, study=study\)"):
        run(kept, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_heading_without_lines_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("data: digits\nmethods: [simclr]\nsearch:\n  # simclr.lr: 0.01\nselection:\nstop:\n")
    assert load_study(path).resolved() == Study(data="digits", methods=["simclr"], name="study").resolved()


def test_every_refusal_is_a_study_error() -> None:
    with pytest.raises(StudyError):
        Study(data="digits", methods=["nope"])
    with pytest.raises(StudyError):
        Study(**SIMCLR, search={"simclr.lr": -1.0})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: [digits", ["must be plain YAML", "line"]),
        ("data: digits\n\tmethods: [simclr]", ["must be plain YAML", "line 2"]),
        ("data: *nowhere", ["must be plain YAML", "nowhere"]),
        ("- data\n- digits", ["mapping of study fields", "list"]),
        ("digits", ["mapping of study fields", "str"]),
        ("", ["mapping of study fields", "NoneType"]),
        ("data: digits\n3: 4", ["words", "got 3"]),
        ("data: 2020-01-01", ["data: must be a path", "datetime.date(2020, 1, 1)"]),
        ("data: digits\ntrials: 2020-01-01", ["trials", "integer", "datetime.date"]),
        ("data: 2020-13-45", ["must be plain YAML", "month"]),
        ("data: digits\nepochs: 1e1", ["epochs", "integer", "'1e1'"]),
        ("data: digits\nmethods: simclr, moco", ["simclr, moco is not a method"]),
        ("data: digits\nseed: on", ["seed", "integer", "True"]),
        ("data: !!python/object/apply:os.system ['touch {marker}']", ["must be plain YAML", "line 1", "os.system"]),
        ("data: !!python/object/new:os.system ['touch {marker}']", ["must be plain YAML", "os.system"]),
        ("!!python/object/apply:subprocess.check_output [[touch, '{marker}']]", ["must be plain YAML", "subprocess"]),
        ("data: !!python/name:os.system", ["must be plain YAML", "os.system"]),
        ("data: !code x", ["must be plain YAML", "!code"]),
    ],
)
def test_a_bad_file_is_refused_in_one_line_and_runs_no_code(tmp_path: Path, text: str, words: list[str]) -> None:
    marker = tmp_path / "ran"
    file = tmp_path / "bad.yaml"
    file.write_text(text.replace("{marker}", str(marker)), encoding="utf-8")
    with pytest.raises(StudyError) as caught:
        load_study(file)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value
    assert not marker.exists()


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "deep.yaml"
    file.write_text("data: " + "[" * 400, encoding="utf-8")
    with pytest.raises(StudyError, match="must be plain YAML"):
        load_study(file)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "binary.yaml"
    file.write_bytes(b"\x89PNG\xff\xfe\x00")
    with pytest.raises(StudyError, match="cannot be read"):
        load_study(file)


def test_no_such_study_names_the_ready_made_ones(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", "demoo"):
        with pytest.raises(StudyError, match=r"there is no study .*demo.*or images"):
            load_study(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("data: digits\nmethods: [simclr, mae]\n", encoding="utf-8")
    return path


def test_set_replaces_and_reaches_into_mappings(file: Path) -> None:
    given_ = (
        "trials=5",
        "labels=250",
        "selection.top=2",
        "selection.refit=false",
        "search.simclr.temperature=0.2",
        "search.*.batch_size={low: 64, high: 128}",
        "search.simclr.lr=1e-3",
        "data=a=b",
        "few_shot.ways=3",
        "methods=[simclr]",
        "test=0.25",
        "size=",
    )
    study = load_study(file, given_)
    assert (study.trials, study.labels, study.data, study.test, study.size) == (5, 250, "a=b", 0.25, None)
    assert (study.selection.top, study.selection.seeds, study.selection.refit) == (2, 1, False)
    assert study.few_shot.ways == 3
    space = study.space()
    assert space.methods == ("simclr",)
    assert space.override("simclr", "temperature") == 0.2
    assert space.override("simclr", "lr") == 1e-3
    assert space.override("simclr", "batch_size") == Int(64, 128, power_of_two=True)
    assert study.name == "mine"


def test_set_fills_an_empty_mapping(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("data: digits\nmethods: [simclr]\nsearch:\n", encoding="utf-8")
    assert load_study(path, ["search.simclr.temperature=0.2"]).space().override("simclr", "temperature") == 0.2


def test_the_last_setting_wins(file: Path) -> None:
    assert load_study(file, ["trials=5", "trials=6"]).trials == 6


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("trials", ["key=value", "'trials'"]),
        ("=3", ["key=value", "'=3'"]),
        ("", ["key=value"]),
        ("trials=[", ["--set trials", "plain YAML value", "'['"]),
        ("trials=!!python/object/apply:os.system ['true']", ["--set trials", "plain YAML value"]),
        ("trials=2020-13-45", ["--set trials", "plain YAML value"]),
        ("trials=many", ["trials", "integer", "'many'"]),
        ("trails=3", ["trails is not a field", "trials"]),
        ("data.x=3", ["data.x is not a field"]),
        ("selection.tops=3", ["selection.tops", "did you mean top?"]),
        ("search=3", ["search", "got 3"]),
        ("search.simclr.heat=3", ["search.simclr.heat"]),
    ],
)
def test_a_bad_setting_is_refused_in_one_line(file: Path, setting: str, words: list[str]) -> None:
    with pytest.raises(StudyError) as caught:
        load_study(file, [setting])
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


def test_setting_search_over_a_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("data: digits\nsearch: [1]\n", encoding="utf-8")
    with pytest.raises(StudyError, match="search"):
        load_study(path, ["search.simclr.lr=0.1"])


fields = st.fixed_dictionaries(
    {"data": st.sampled_from(["digits", "some/path", ["digits", "other"]])},
    optional={
        "test": st.sampled_from([None, 0.25, "test/path", ["a", "b"]]),
        "labels": st.one_of(st.just("all"), st.integers(4, 10**6)),
        "methods": st.lists(st.sampled_from(["simclr", "mae", "supervised", "moco"]), min_size=1, unique=True),
        "trials": st.integers(6, 10**6),
        "epochs": st.integers(1, 1000),
        "epoch_images": st.none() | st.integers(1, 10**7),
        "reduction": st.integers(1, 9),
        "selection": st.fixed_dictionaries({"top": st.integers(1, 9), "seeds": st.integers(1, 9), "refit": st.booleans()}),
        "seed": st.integers(0, 2**63 - 1),
        "size": st.none() | st.integers(4, 1024),
        "slots": st.none() | st.integers(1, 9),
        "address": st.none() | st.just("ray://head:10001"),
        "name": st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=20),
        "task": st.sampled_from(["classification", "few_shot"]),
        "few_shot": st.fixed_dictionaries(
            {"ways": st.integers(2, 20), "test_groups": st.lists(st.sampled_from(["a", "b"]), max_size=2)}
        ),
        "protocol": st.sampled_from([None, "knn", {"linear": {"head": "logistic"}}, {"linear": None}]),
        "earlier": st.lists(st.just("runs/other"), max_size=2),
        "search": st.dictionaries(
            st.sampled_from(["*.batch_size", "*.lr", "*.augmentation_strength"]),
            st.sampled_from([1, [1, 2], {"low": 1, "high": 2, "log": True}, {"choices": [1, 2]}]),
            max_size=1,
        ),
    },
)


@settings(deadline=None, max_examples=60)
@given(fields)
def test_resolved_studies_survive_yaml(given_: dict[str, Any]) -> None:
    if "search" in given_ and "*.batch_size" in given_["search"]:
        given_["search"] = {"*.batch_size": 64}
    if given_.get("task") == "few_shot":
        given_.pop("protocol", None)  # It has but one.
    study = Study(**given_)
    plain = yaml.safe_load(dump_study(study))
    assert Study(**plain) == study
    assert set(plain) == set(Study.model_fields)


def test_labels_pool_and_validation_are_what_the_study_says() -> None:
    """The settings survive YAML, reach the split, and stand in the dry run's line of data with the figures drawn."""
    study = Study(data="digits", methods=["fixmatch"], labels=60, validation=0.25, imbalance=4, mismatch=0.5)
    assert Study(**yaml.safe_load(dump_study(study))) == study
    part = prepare(study).split
    drawn = np.bincount(part.budget().label)
    assert (len(part.validation), len(part.labelled), part.train.classes) == (15, 45, 6)
    assert drawn.max() / drawn.min() == pytest.approx(4, rel=0.3)
    said = study.task_object().describe(part)
    names = ", ".join(part.labelled.data.classes)
    assert f"{drawn.max()} of the most frequent class and {drawn.min()} of the rarest" in said
    assert f"6 classes are the task ({names}) and 50% of the unlabelled images are of others" in said
    assert "\n" not in said
    plain = prepare(Study(data="digits", methods=["fixmatch"], labels=60))
    assert "of the rarest" not in plain.task.describe(plain.split)


@pytest.mark.parametrize(
    "domain",
    [
        Float(0.1, 1.0),
        Float(0.1, 1.0, log=True),
        Float(0.1, 0.5, log1m=True),
        Int(1, 3),
        Choice((0.1, 0.2)),
        Choice((1, 2)),
        0.25,
    ],
)
def test_domains_of_python_survive_yaml(domain: Any) -> None:
    study = Study(**SIMCLR, search={"simclr.temperature": domain})
    again = Study(**yaml.safe_load(dump_study(study)))
    assert again.space().override("simclr", "temperature") == study.space().override("simclr", "temperature")


def test_sizes_of_python_survive_yaml() -> None:
    for domain in (Int(64, 96), Int(64, 96, log=True), Int(64, 128, power_of_two=True)):
        study = Study(**SIMCLR, search={"simclr.batch_size": domain})
        assert Study(**yaml.safe_load(dump_study(study))).space().override("simclr", "batch_size") == domain


def test_own_methods_and_arrays_resolve_to_words() -> None:
    arrays = (np.zeros((4, 8, 8), np.uint8), np.zeros(4, np.int64))
    study = Study(data=arrays, methods=[CATALOGUE["simclr"], "mae"], objective=lambda score: score.value)
    plain = study.resolved()
    assert plain["methods"] == ["simclr", "mae"]
    assert plain["data"] == "(arrays given in Python)"
    assert plain["objective"] == IN_PYTHON
    assert set(study.catalogue()) == {"simclr", "mae"}


def test_paths_of_python_become_words(tmp_path: Path) -> None:
    assert Study(data=tmp_path, methods=["simclr"]).data == str(tmp_path)


@pytest.mark.parametrize(
    ("epochs", "reduction", "rungs"),
    [
        (10, 3, (1, 3, 10)),
        (20, 3, (2, 7, 20)),
        (6, 3, (2, 6)),
        (4, 3, (1, 4)),
        (1, 3, (1,)),
        (2, 3, (2,)),
        (9, 2, (1, 2, 4, 9)),
        (9, 1, (9,)),
        (27, 3, (1, 3, 9, 27)),
    ],
)
def test_rungs(epochs: int, reduction: int, rungs: tuple[int, ...]) -> None:
    found = Study(data="digits", epochs=epochs, reduction=reduction).rungs()
    assert found == rungs


def test_the_few_shot_task_shapes_its_protocol() -> None:
    study = Study(
        data="glyphs", task="few_shot", methods=["simclr"], few_shot=FewShotTask(ways=3, shots=2, queries=4, episodes=7)
    )
    protocol = study.scoring()
    assert protocol.name == "few_shot"
    assert (protocol.ways, protocol.shots, protocol.queries, protocol.episodes) == (3, 2, 4, 7)  # type: ignore[attr-defined]
    assert Study(data="digits").scoring().name == "predict"


def test_a_run_folder_holds_the_study_and_is_made_once(tmp_path: Path) -> None:
    study = Study(**SIMCLR, search={"simclr.temperature": [0.1, 0.2]}, name="mine")
    folder = RunFolder.create(tmp_path / "a" / "run", study)
    assert folder.load_study() == study
    with pytest.raises(StudyError, match="exists already"):
        RunFolder.create(tmp_path / "a" / "run", study)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StudyError, match=r"cannot be made: .*; give another --out"):
        RunFolder.create(tmp_path / "file" / "run", study)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "file", "run", "study.yaml"]


def test_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "one")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "two \ud800")
    assert path.read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]
