"""The proofs' command on digits and a second of training: it resumes, shares its tables, and what it writes is true."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from methods import CATALOGUE, EncoderSpec, Method, Training, TrainSettings
from methods.data.records import TrainData
from methods.parts.framed import FramedEncoder
from methods.training import Fidelity
from search_spaces.domains import build

PROOFS = Path(__file__).parent


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The command's modules, which are scripts beside this file and no package."""
    monkeypatch.syspath_prepend(PROOFS)
    return SimpleNamespace(
        rows=importlib.import_module("rows"),
        tables=importlib.import_module("tables"),
        run=importlib.import_module("run"),
    )


def made(proofs: SimpleNamespace, name: str, seed: int, value: float, table: str = "digits", budget: float = 20.0) -> object:
    """A row as the command would write it, with this score."""
    key = proofs.tables.key_of(table, name, 40, seed, budget, {})
    return proofs.rows.Row(key, "resnet_small", 503984, 20.5, 1000 + seed, 1, "torch 2", "x86_64", {"test": value})


def test_it_trains_resumes_and_searches_on_validation_labels(
    proofs: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[str, bool, int]] = []
    ended: list[Training] = []

    def spied(method: Method, config: object, data: TrainData, settings: TrainSettings) -> Training:
        seen.append((method.name, settings.encoder.name == "resnet_small", int((data.label >= 0).sum())))
        ended.append(Training(method, config, data, settings))
        return ended[-1]

    monkeypatch.setattr(proofs.run, "Training", spied)
    monkeypatch.setitem(proofs.tables.TABLES, "digits", dataclasses.replace(proofs.tables.TABLES["digits"], draws=1))
    words = ["digits", "--seconds", "0.05", "--threads", "1", "--out", str(tmp_path), "--rows", "supervised strong", "vat"]
    proofs.run.main([*words, "--seeds", "1"])
    assert [labels for _, _, labels in seen] == [20, 20, 20, 40, 40], "a search trains on half of the labels, a row on all"
    rates = {row.key.knobs for row in proofs.rows.read(tmp_path, "digits-search")}
    assert len(rates) == len(proofs.tables.RATES)
    (strong, vat) = proofs.rows.read(tmp_path, "digits")
    assert strong.key.knobs in rates, "the yardstick has one of the rates that were tried"
    assert '"augmentation": "strong"' in strong.key.knobs
    assert '"eps": ' in vat.key.knobs
    assert (vat.key.labels, vat.key.budget, vat.threads) == (40, 0.05, 1)
    assert vat.images > 0
    assert {training.settings.top for training in ended} == {Fidelity("seconds", 0.05)}
    assert all(training.done.amount >= 0.05 for training in ended)
    assert vat.seconds == round(ended[-1].done.amount, 3)
    # Killed in the middle of a write: the torn row is trained again, the others are not.
    path = tmp_path / "digits.csv"
    path.write_bytes(path.read_bytes()[:-9])
    assert proofs.rows.read(tmp_path, "digits") == [strong]
    seen.clear()
    proofs.run.main([*words, "--seeds", "1"])
    assert [name for name, _, _ in seen] == ["vat"]
    assert [row.key for row in proofs.rows.read(tmp_path, "digits")] == [strong.key, vat.key]
    text = (tmp_path / "README.md").read_text()
    assert "## digits, 40 labels, 0.05 s" in text
    assert "too few runs" in text
    assert (tmp_path / "tables.svg").read_text().startswith("<svg")
    capsys.readouterr()


def test_an_untrained_encoder_frames_where_its_row_says_so(proofs: SimpleNamespace) -> None:
    data = proofs.run.digits(40, 0).train
    for name, framed in (("untrained conv4", False), ("untrained conv4, framed", True)):
        knobs = json.loads(proofs.tables.key_of("fewshot", name, 0, 0, 1.0, {}).knobs)
        model = proofs.run.untrained(data, EncoderSpec("conv4"), 0, **knobs)
        assert isinstance(model.encoder, FramedEncoder) is framed


def test_every_row_can_be_trained_from_what_its_key_says(proofs: SimpleNamespace) -> None:
    for table, declared in proofs.tables.TABLES.items():
        for name, entry in declared.rows.items():
            for chosen in entry.grid or ({},):
                knobs = json.loads(proofs.tables.key_of(table, name, 0, 0, 1.0, chosen).knobs)
                assert {**entry.knobs, **chosen}.items() <= knobs.items()
                if entry.method != proofs.tables.UNTRAINED:
                    build(CATALOGUE[entry.method].config, knobs)


def test_a_table_without_yardstick_is_judged_by_what_it_must_reach(proofs: SimpleNamespace) -> None:
    entry = proofs.tables.TABLES["clip"].rows["clip"]
    key = proofs.tables.key_of("clip", "clip", 0, 0, 60.0, {})
    for value, met in ((0.09, "yes"), (0.08, "no")):
        rows = tuple(
            proofs.rows.Row(
                dataclasses.replace(key, seed=s), "conv4", 9, 60.0, 9, 1, "v", "m", {proofs.tables.NEW_LOOKS: value}
            )
            for s in range(3)
        )
        line = proofs.tables.Line("clip", rows)
        assert proofs.tables.judged(line, entry.bar, None, 3) == ("mean at least 8.33%", met)
        assert proofs.tables.judged(proofs.tables.Line("clip", rows[:2]), entry.bar, None, 3)[1] == "too few runs"


def test_labels_are_put_apart(proofs: SimpleNamespace) -> None:
    assert proofs.tables.apart([0.1, 0.11, 0.5], 0.05) == pytest.approx([0.1, 0.15, 0.5])
    assert proofs.tables.apart([0.2, 0.98, 0.99], 0.05) == pytest.approx([0.2, 0.95, 1.0])
    assert proofs.tables.apart([], 0.05) == []


def test_a_row_is_read_as_it_was_written(proofs: SimpleNamespace, tmp_path: Path) -> None:
    rows = [made(proofs, name, seed, 0.5 + seed / 8) for name in ("fixmatch", "uda") for seed in range(2)]
    for row in rows:
        proofs.rows.append(tmp_path, row)
    assert proofs.rows.read(tmp_path, "digits") == rows
    other = proofs.rows.Row(**{**vars(rows[0]), "scores": {"probe": 0.5}})
    with pytest.raises(ValueError, match="other columns"):
        proofs.rows.append(tmp_path, other)
    assert proofs.rows.read(tmp_path, "digits") == rows


@pytest.mark.parametrize("cut", range(0, 400, 37))
def test_a_torn_line_is_left_out_and_cut_off(proofs: SimpleNamespace, tmp_path: Path, cut: int) -> None:
    """Wherever the last write was torn, header included, the whole rows before it stay and the next row is whole."""
    first, second = made(proofs, "fixmatch", 0, 0.5), made(proofs, "fixmatch", 1, 0.625)
    proofs.rows.append(tmp_path, first)
    path = proofs.rows.path_of(tmp_path, "digits")
    whole = path.read_bytes()
    path.write_bytes(whole[: min(cut, len(whole) - 1)])
    assert proofs.rows.read(tmp_path, "digits") == []
    proofs.rows.append(tmp_path, first)
    path.write_bytes(path.read_bytes() + whole.splitlines(keepends=True)[1][:cut])
    assert proofs.rows.read(tmp_path, "digits")[:1] == [first]
    proofs.rows.append(tmp_path, second)
    assert [r for r in proofs.rows.read(tmp_path, "digits") if r != first] == [second]


def test_what_another_process_has_claimed_is_left_to_it(proofs: SimpleNamespace, tmp_path: Path) -> None:
    keys = [proofs.tables.key_of("digits", "fixmatch", 40, seed, 20.0, {}) for seed in range(2)]
    script = (
        f"import sys; sys.path.insert(0, {str(PROOFS)!r})\n"
        "from pathlib import Path; from rows import Key, claim\n"
        f"with claim(Path({str(tmp_path)!r}), {keys[0]!r}) as mine:\n"
        "    print(mine, flush=True); sys.stdin.read()\n"
    )
    trained: list[int] = []

    def train(key: object) -> object:
        trained.append(key.seed)  # type: ignore[attr-defined]
        return made(proofs, "fixmatch", key.seed, 0.5)  # type: ignore[attr-defined]

    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        assert proofs.rows.fill(tmp_path, keys, train) == []
        assert trained == [1]
        other.kill()
    # A claim dies with its process.
    assert proofs.rows.fill(tmp_path, keys, train, wait=True) == []
    assert trained == [1, 0]
    assert proofs.rows.fill(tmp_path, keys, train) == []
    assert trained == [1, 0], "what is there is not trained again"


def test_a_row_that_fails_does_not_end_the_others(
    proofs: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [proofs.tables.key_of("digits", "fixmatch", 40, seed, 20.0, {}) for seed in range(3)]

    def train(key: object) -> object:
        if key.seed == 1:  # type: ignore[attr-defined]
            raise RuntimeError("no such luck")
        return made(proofs, "fixmatch", key.seed, 0.5)  # type: ignore[attr-defined]

    assert proofs.rows.fill(tmp_path, keys, train) == [keys[1]]
    assert "no such luck" in capsys.readouterr().err
    assert [row.key.seed for row in proofs.rows.read(tmp_path, "digits")] == [0, 2]


SCORES = {
    "supervised weak": (0.60, 0.62, 0.61, 0.63, 0.64),
    "supervised strong": (0.70, 0.72, 0.71, 0.73, 0.74),
    "fixmatch": (0.80, 0.81, 0.79, 0.82, 0.83),
    "uda": (0.71, 0.73, 0.70, 0.73, 0.74),
    "vat": (0.50, 0.51, 0.52, 0.50, 0.53),
    "mixmatch": (0.69, 0.73, 0.71, 0.72, 0.74),
}


def test_tables_judge_by_the_paired_difference_to_the_better_yardstick(proofs: SimpleNamespace, tmp_path: Path) -> None:
    for name, scores in SCORES.items():
        for seed, value in enumerate(scores):
            proofs.rows.append(tmp_path, made(proofs, name, seed, value))
    proofs.rows.append(tmp_path, made(proofs, "uda", 0, 0.99, budget=60.0))  # a pilot stands apart
    text = proofs.tables.markdown(tmp_path)
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in text.partition("## digits, 40 labels, 60 s")[0].splitlines()
        if line.startswith("| ")
    }
    paired = 100 * (np.array(SCORES["fixmatch"]) - np.array(SCORES["supervised strong"]))
    low, high = stats.ttest_1samp(paired, 0).confidence_interval(0.95)
    assert cells["fixmatch"][5] == f"{paired.mean():+.1f} [{low:+.1f}, {high:+.1f}]"
    assert cells["fixmatch"][4] == f"81.0 ± {100 * np.std(SCORES['fixmatch'], ddof=1):.1f}"
    assert {name: row[6:] for name, row in cells.items() if name in SCORES} == {
        "supervised weak": ["", "", ""],
        "supervised strong": ["", "", ""],
        "fixmatch": ["supervised strong", "at least +5, clear of zero", "yes"],
        "uda": ["supervised strong", "above, clear of zero", "no"],
        "vat": ["supervised strong", "not below", "no"],
        "mixmatch": ["supervised strong", "not below", "yes"],
    }
    guide = proofs.tables.guide(tmp_path)
    assert "| digits | 40 | 20 | `fixmatch` |" in guide
    assert "over supervised strong" in guide
    assert "| 60 |" not in guide, "one run is no ground for advice"


def test_the_guide_says_when_nothing_is_clearly_better(proofs: SimpleNamespace, tmp_path: Path) -> None:
    assert proofs.tables.guide(tmp_path) == proofs.tables.NO_ROW
    for name in ("supervised weak", "supervised strong", "uda"):
        for seed, value in enumerate(SCORES[name]):
            proofs.rows.append(tmp_path, made(proofs, name, seed, value))
    assert "| `supervised strong`: no row is clearly above it |" in proofs.tables.guide(tmp_path)


def test_a_row_of_other_knobs_is_another_row(proofs: SimpleNamespace, tmp_path: Path) -> None:
    """After a default has changed, old rows neither count as done nor mix with new ones."""
    new = made(proofs, "vat", 0, 0.5)
    old_key = proofs.rows.Key(**{**vars(new.key), "knobs": new.key.knobs.replace('"eps": ', '"eps": 1')})  # type: ignore[attr-defined]
    for row in (new, proofs.rows.Row(**{**vars(new), "key": old_key})):
        proofs.rows.append(tmp_path, row)
    (group,) = proofs.tables.groups(tmp_path)
    assert [line.name for line in group.lines] == ["vat", "vat"]
    assert group.lines[0].knobs() == "augmentation strong"
    assert re.fullmatch(r"augmentation strong, eps 1\d\.\d", group.lines[1].knobs())


def test_what_is_committed_is_what_the_rows_say(proofs: SimpleNamespace) -> None:
    remedy = "run 'python tests/results/run.py --tables'"
    readme = proofs.tables.README.read_text(encoding="utf-8")
    assert proofs.tables.with_guide(readme, PROOFS) == readme, remedy
    assert proofs.tables.markdown(PROOFS) == (PROOFS / "README.md").read_text(encoding="utf-8"), remedy
    assert (PROOFS / "tables.svg").exists() == bool(proofs.tables.groups(PROOFS)), remedy


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a table"),
        (["semisup"], "--data names the folder"),
        (["selfsup", "--data", ".", "--labels", "40"], "--labels is for semisup and digits"),
        (["digits", "--rows", "fixmtch"], "fixmtch is no row of digits"),
    ],
)
def test_mistakes_are_refused(
    proofs: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        proofs.run.main([*words, "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_what_other_rows_take_over_is_what_the_search_chose(proofs: SimpleNamespace) -> None:
    tables = proofs.tables
    tried = [row for row in proofs.rows.read(PROOFS, "fewshot-search") if row.key.method == "prototypical"]
    tried = [row for row in tried if row.key.budget == tables.TABLES["fewshot"].seconds]
    assert len(tried) == len(tables.CHARACTERS["prototypical"])
    best = max(tried, key=lambda row: row.scores["validation"])
    assert tables.TAKEN.items() <= json.loads(best.key.knobs).items()
