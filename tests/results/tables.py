"""What the proof tables hold, what each row must reach, and what is written from the rows: tables, figure, decision guide."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rows import Key, Row, read
from scipy import stats

from methods import CATALOGUE
from methods.parts.files import write_text
from orchestrator.outputs.plots import svg
from orchestrator.readme import README, between
from search_spaces.domains import build

HERE = Path(__file__).parent
UNTRAINED = "untrained"
SEARCH = "-search"
"""What stands behind a table's name where the rows of its search are kept."""

RATES = (0.008, 0.002, 0.032)
"""The supervised yardstick's learning rates, its default first: equal scores leave it at that."""

SHORT: dict[str, tuple[Mapping[str, object], ...]] = {
    **dict.fromkeys(("fixmatch", "uda", "noisy_student"), ({"mu": 1}, {"mu": 3}, {"mu": 1, "lr": 0.045})),
    "mean_teacher": ({"mu": 1}, {"mu": 3}, {"mu": 1, "lr": 0.045}, {"augmentation": "weak"}),
    "remixmatch": ({}, {"lr": 0.045}, {"lambda_u": 0.5, "lambda_rotation": 0.1}),
    "mixmatch": ({"augmentation": "weak"}, {"lambda_u": 10.0, "ramp": 1.0}, {}),
    **dict.fromkeys(("pi_model", "temporal_ensembling"), ({}, {"augmentation": "weak"})),
}
"""The same care for the rows that are to be clearly above it: in a short training steps may be worth more than pool images, and
larger ones be needed. And weak views for those that guess labels by what they look at, see ``LATE``."""

LATE = (
    "Weak views became candidates of mixmatch, pi_model, temporal_ensembling and mean_teacher only after rows with strong "
    "views had been tested on CIFAR-10, where mixmatch fell to chance; other rows were not offered them there."
)

STRONG_VIEWS = ("augmentation", "labelled_augmentation")
"""Whichever of these a method has is strong unless its grid says otherwise, since the better yardstick is augmented so."""


@dataclass(frozen=True)
class Bar:
    """What a row must reach on ``measure``.

    Attributes:
        measure: name of the score.
        baselines: rows of which the one with the higher mean is the yardstick; none where ``least`` is all that is asked.
        points: 0 asks for a paired difference whose interval is clear of zero, more also for a mean of as many points; None
            asks that the interval be not wholly below zero.
        least: mean to reach in itself, or None.
        shown: nothing is asked; the difference is shown.
    """

    measure: str
    baselines: tuple[str, ...]
    points: float | None = None
    least: float | None = None
    shown: bool = False


@dataclass(frozen=True)
class Entry:
    """A row of a table.

    Attributes:
        method: name in the catalogue; ``untrained`` for an encoder as it starts.
        encoder: what is trained.
        bar: what it must reach, or None for a baseline.
        knobs: values other than the catalogue's defaults.
        grid: further values, of which those are taken that score best on validation labels.
    """

    method: str
    encoder: str
    bar: Bar | None = None
    knobs: Mapping[str, object] = field(default_factory=dict)
    grid: tuple[Mapping[str, object], ...] = ()


@dataclass(frozen=True)
class Table:
    """A proof table.

    Attributes:
        data: what it is computed on, in words.
        labels: the label budget unless stated; 0 where it cannot be chosen.
        seconds, seeds: of training a run, and runs a row, unless stated.
        measures: of these the decision guide speaks, with the labels that each needs.
        rows: by name.
        draws: trainings whose mean validation score judges a candidate of a grid: several where half of 40 or 250 labels
            judge, which are noisy; one where thousands of labels or hundreds of episodes do, though its seed and speed are luck
            too.
        note: what a reader must know of how the rows came about; stands under the tables and under the guide.
    """

    data: str
    labels: int
    seconds: float
    seeds: int
    measures: Mapping[str, str]
    rows: Mapping[str, Entry]
    draws: int = 3
    note: str = ""


def _encoder(method: str, usual: str) -> str:
    return "vit_tiny" if CATALOGUE[method].encoder == "vit" else usual


FEW_VISITS: dict[str, tuple[Mapping[str, object], ...]] = {
    "instance_discrimination": ({"loss": "softmax", "temperature": 0.1}, {}),
    "jigsaw": ({"grid": 2}, {}),
    "rotation_gan": ({"lr": 0.002}, {}),
}
"""For small images and a few visits to each, beside the catalogue's defaults."""


def _selfsup() -> dict[str, Entry]:
    points = {
        **dict.fromkeys(("simclr", "moco", "pirl", "cmc", "instance_discrimination"), 10.0),
        **dict.fromkeys(("byol", "barlow_twins", "vicreg", "dino"), 7.0),
        "rotation": 9.0,
        **dict.fromkeys(
            (
                "jigsaw", "relative_patch", "exemplar", "cpc", "deep_infomax", "bag_of_words", "colorization", "split_brain",
            ),
            5.0,
        ),
        **dict.fromkeys(("autoencoder", "denoising_autoencoder", "inpainting", "mae", "rotation_gan"), 2.0),
    }  # fmt: skip
    rows = {f"{UNTRAINED} {encoder}": Entry(UNTRAINED, encoder) for encoder in ("resnet_small", "vit_tiny")}
    for name, least in points.items():
        encoder = _encoder(name, "resnet_small")
        rows[name] = Entry(
            name, encoder, Bar("probe 10,000", (f"{UNTRAINED} {encoder}",), least), grid=FEW_VISITS.get(name, ())
        )
    return rows


def _switches() -> dict[str, Entry]:
    """S4's practical considerations, one switch at a time against simclr's defaults, and mae's mask ratio."""
    probe = "probe 10,000"
    switches: dict[str, Mapping[str, object]] = {
        "simclr": {},
        "simclr, not normalised": {"normalise": False},
        **{f"simclr, temperature {t:g}": {"temperature": t} for t in (0.05, 0.1, 0.2, 1.0)},
        **{f"simclr, head of {depth} layers": {"head_depth": depth} for depth in (0, 1, 3)},
        **{f"simclr, {n} negatives": {"negatives": n} for n in (8, 32, 128)},
    }
    masks = (0.1, 0.3, 0.5, 0.65, 0.75, 0.85, 0.9, 0.95)
    default = CATALOGUE["mae"].knobs()["mask_ratio"].default
    assert default in masks
    rows = {
        name: Entry("simclr", "resnet_small", Bar(probe, ("simclr",), shown=True) if knobs else None, knobs)
        for name, knobs in switches.items()
    }
    others = Bar(probe, (f"mae, mask ratio {default:g}",), shown=True)
    for ratio in masks:
        bar = None if ratio == default else others
        rows[f"mae, mask ratio {ratio:g}"] = Entry("mae", "vit_tiny", bar, {"mask_ratio": ratio})
    return rows


def _semisup() -> dict[str, Entry]:
    points: dict[str, float | None] = {
        "fixmatch": 5.0,
        **dict.fromkeys(("uda", "remixmatch", "mean_teacher", "noisy_student"), 0.0),
        **dict.fromkeys(
            (
                "mixup", "cutout", "pseudo_label", "entropy_minimization", "vat", "ladder", "pi_model", "temporal_ensembling",
                "mixmatch", "co_training", "s4l", "simclr_v2",
            )
        ),
    }  # fmt: skip
    yardsticks = {
        f"supervised {recipe}": Entry(
            "supervised", "resnet_small", knobs={"augmentation": recipe}, grid=tuple({"lr": rate} for rate in RATES)
        )
        for recipe in ("weak", "strong")
    }
    bars = {name: Bar("test", tuple(yardsticks), least) for name, least in points.items()}
    rows = {}
    for name, bar in bars.items():
        alike = {knob: "strong" for knob in STRONG_VIEWS if knob in CATALOGUE[name].knobs()}
        rows[name] = Entry(name, _encoder(name, "resnet_small"), bar, alike, SHORT.get(name, ()))
    return {**yardsticks, **rows}


FRAMED: Mapping[str, object] = {"framed": True}
"""Characters are put in the middle and at one size, for every row but the encoder that is the measure of that."""

VIEWS, STRONG = {"test_views": 9, "augmentation_strength": 2.0}, {"augmentation": "strokes", "rotations": True}
TAKEN: Mapping[str, object] = {**STRONG, "test_views": 9}
"""What prototypical's search chose; the others that average their embedding over views take it over."""

CHARACTERS: dict[str, tuple[Mapping[str, object], ...]] = {
    "prototypical": (VIEWS, TAKEN),
    "matching": (TAKEN, {**TAKEN, "temperature": 0.05}),
}
"""For new alphabets, judged by the training alphabet that validates. matching keeps its cosine: by euclidean distance
it is, with one shot, prototypical."""

PYRAMID = "conv4_pyramid"
MANY = {"mirrors": True, "ways": 60, "queries": 3, "tasks": 1}
PYRAMIDS: dict[str, tuple[Mapping[str, object], ...]] = {
    "prototypical": (TAKEN, {**TAKEN, **MANY, "temperature": 24.0, "exchange": True}),
    "matching": ({**TAKEN, "temperature": 0.05}, {**TAKEN, **MANY, "temperature": 0.05}),
    "maml": (),
}
"""The rows with a least mean, on a second encoder."""

LATER = (
    f"The rows with {PYRAMID} came after those with conv4 had been tested. This encoder, and the larger episodes that its "
    "grids offer, were found with the training alphabets alone, each left out in turn; one of them judged the grids."
)

CHEAP: dict[str, Mapping[str, object]] = {"reptile": {"test_steps": 10}}
"""With 50 steps, its default, testing takes longer than half an hour a model (2,400 tasks of new alphabets)."""


def _fewshot(measure: str, least: Mapping[str, float], characters: bool) -> dict[str, Entry]:
    names = (
        "prototypical", "matching", "maml", "finetune_baseline", "cosine_classifier", "siamese", "meta_sgd", "anil", "reptile",
        "selfsup_fewshot", "metric_learning",
    )  # fmt: skip
    untrained = f"{UNTRAINED} conv4"
    rows = {untrained: Entry(UNTRAINED, "conv4")}
    if characters:
        rows[f"{untrained}, framed"] = Entry(UNTRAINED, "conv4", knobs=FRAMED)
    bars = {name: Bar(measure, tuple(rows), 0.0, least.get(name)) for name in names}
    for name, bar in bars.items():
        grid = CHARACTERS.get(name, ()) if characters else ()
        own = CATALOGUE[name].knobs()
        taken = TAKEN if characters and not grid and TAKEN.keys() <= own.keys() else {}
        rows[name] = Entry(name, "conv4", bar, {**(FRAMED if characters else {}), **taken, **CHEAP.get(name, {})}, grid)
    if characters:
        yardstick = f"{UNTRAINED} {PYRAMID}, framed"
        rows[yardstick] = Entry(UNTRAINED, PYRAMID, knobs=FRAMED)
        for name, grid in PYRAMIDS.items():
            rows[f"{name} {PYRAMID}"] = Entry(name, PYRAMID, Bar(measure, (yardstick,), 0.0, least.get(name)), FRAMED, grid)
    return rows


ACROSS = "5-way 1-shot across"
NEW_LOOKS = "zero-shot, new looks"
LOOKS = 60
LEAST = {"prototypical": 0.95, "matching": 0.95, "maml": 0.90}

TABLES: dict[str, Table] = {
    "selfsup": Table(
        "20,000 CIFAR-10 images", 0, 120, 3, {"probe 10,000": "10,000 (probe)", "probe 250": "250 (probe)"}, _selfsup(), 1
    ),
    "switches": Table("20,000 CIFAR-10 images", 0, 120, 3, {}, _switches()),
    "clip": Table(
        "glyphs and their captions", 0, 60, 3, {}, {"clip": Entry("clip", "conv4", Bar(NEW_LOOKS, (), least=5 / LOOKS))}
    ),
    "semisup": Table("20,000 CIFAR-10 images", 250, 60, 5, {"test": "{labels}"}, _semisup(), 2, LATE),
    "digits": Table("digits", 40, 20, 5, {"test": "{labels}"}, _semisup()),
    "fewshot": Table("Omniglot, new alphabets", 0, 60, 3, {ACROSS: "1 a class, of 5"}, _fewshot(ACROSS, LEAST, True), 1, LATER),
    "fewshot_cifar": Table(
        "5 new CIFAR-10 classes", 0, 40, 3, {"5-way 1-shot": "1 a class, of 5"}, _fewshot("5-way 1-shot", {}, False), 1
    ),
}


# Rows of one table, label budget and training time are compared with each other.


@dataclass(frozen=True)
class Line:
    """All runs of a row: its name, and its knobs, since rows of other knobs are other rows."""

    name: str
    rows: tuple[Row, ...]

    def scores(self, measure: str) -> dict[int, float]:
        """Percent by seed."""
        return {row.key.seed: 100 * row.scores[measure] for row in self.rows}

    def mean(self, measure: str) -> float:
        return float(np.mean(list(self.scores(measure).values())))

    def spread(self, measure: str) -> str:
        values = list(self.scores(measure).values())
        return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")

    def knobs(self) -> str:
        """Those that the row states or chooses, and those that differ from the catalogue's defaults of today."""
        key = self.rows[0].key
        entry = TABLES[key.table.removesuffix(SEARCH)].rows.get(self.name)
        if entry is None or entry.method == UNTRAINED:
            return ""
        usual = vars(build(CATALOGUE[entry.method].config, {}))
        stated = {*entry.knobs, *(name for values in entry.grid for name in values)}
        given = json.loads(key.knobs)
        return ", ".join(f"{name} {value}" for name, value in given.items() if name in stated or usual.get(name) != value)


@dataclass(frozen=True)
class Gap:
    """Paired difference to a baseline in points, with its 95% t-interval (infinite for one pair)."""

    baseline: str
    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:+.1f}" + (f" [{self.low:+.1f}, {self.high:+.1f}]" if self.n > 1 else "")


def gap(line: Line, lines: Sequence[Line], measure: str, baselines: Iterable[str]) -> Gap | None:
    """``line`` against the best of the baselines, over the seeds that both have; None where there are none."""
    rivals = [other for other in lines if other.name in baselines]
    if not rivals:
        return None
    base = max(rivals, key=lambda other: other.mean(measure))
    own, others = line.scores(measure), base.scores(measure)
    paired = np.array([own[seed] - others[seed] for seed in sorted(own) if seed in others])
    if not len(paired):
        return None
    half = math.inf
    if len(paired) > 1:
        half = float(stats.t.ppf(0.975, len(paired) - 1) * paired.std(ddof=1) / math.sqrt(len(paired)))
    mean = float(paired.mean())
    return Gap(base.name, mean, mean - half, mean + half, len(paired))


def judged(line: Line, bar: Bar, found: Gap | None, seeds: int) -> tuple[str, str]:
    """The bar in words, and whether it is met; fewer runs than the table asks for say neither yes nor no."""
    if bar.shown:
        return "", ""
    asked = []
    if bar.least is not None:
        asked.append(f"mean at least {100 * bar.least:.3g}%")
    if bar.baselines and bar.points is None:
        asked.append("not below")
    elif bar.baselines:
        asked.append(f"at least {bar.points:+.0f}, clear of zero" if bar.points else "above, clear of zero")
    if (bar.baselines and found is None) or min(found.n if found else seeds, len(line.rows)) < seeds:
        return ", ".join(asked), "too few runs"
    met = bar.least is None or line.mean(bar.measure) >= 100 * bar.least
    if found is not None:
        met = met and (found.high >= 0 if bar.points is None else found.low > 0 and found.mean >= bar.points)
    return ", ".join(asked), "yes" if met else "no"


@dataclass(frozen=True)
class Group:
    """Rows that may be compared: of one table, label budget and training time."""

    table: str
    labels: int
    budget: float
    lines: tuple[Line, ...]

    @property
    def title(self) -> str:
        labels = f", {self.labels:,} labels" if self.labels else ""
        return f"{self.table}{labels}, {self.budget:g} s"


def groups(out: Path) -> list[Group]:
    """Every group that has rows, in the tables' order."""
    found = []
    for table, declared in TABLES.items():
        sets: dict[tuple[int, float], dict[tuple[str, str], list[Row]]] = {}
        for row in read(out, table):
            line = sets.setdefault((row.key.labels, row.key.budget), {})
            line.setdefault((row.key.method, row.key.knobs), []).append(row)
        order = list(declared.rows)
        for (labels, budget), by_name in sorted(sets.items()):
            lines = [Line(name, tuple(rows)) for (name, _), rows in by_name.items()]
            lines.sort(key=lambda line: order.index(line.name) if line.name in order else len(order))
            found.append(Group(table, labels, budget, tuple(lines)))
    return found


def table_lines(group: Group) -> Iterator[str]:
    """The group in Markdown: n, mean, sd, the difference to the baseline with its interval, and whether the bar is met."""
    measures = list(group.lines[0].rows[0].scores)
    heads = ("row", "knobs", "encoder (parameters)", "n", "seconds", *measures, "above baseline, 95%", "baseline", "bar", "met")
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    declared = TABLES[group.table]
    for line in group.lines:
        first = line.rows[0]
        entry = declared.rows.get(line.name)
        judgement = ["", "", "", ""]
        if entry is not None and entry.bar is not None:
            found = gap(line, group.lines, entry.bar.measure, entry.bar.baselines)
            judgement = [str(found or ""), found.baseline if found else "", *judged(line, entry.bar, found, declared.seeds)]
        seconds = np.mean([row.seconds for row in line.rows])
        size = f"{first.encoder} ({first.parameters / 1e6:.2f} M)"
        cells = [line.name, line.knobs(), size, str(len(line.rows)), f"{seconds:.0f}", *map(line.spread, measures), *judgement]
        yield f"| {' | '.join(cells)} |"


def computed_by(group: Group) -> str:
    """Versions, machine and threads of the group's rows."""
    rows = [row for line in group.lines for row in line.rows]
    return "; ".join(
        sorted({f"{row.versions}, {row.machine}, {row.threads} thread{'s' if row.threads > 1 else ''}" for row in rows})
    )


def searched(out: Path, table: str) -> Iterator[str]:
    """What was tried where knobs are chosen on validation labels: the mean score of every candidate."""
    tried: dict[tuple[str, int, float, str], list[Row]] = {}
    for row in read(out, table + SEARCH):
        tried.setdefault((row.key.method, row.key.labels, row.key.budget, row.key.knobs), []).append(row)
    for (name, labels, budget, _), rows in sorted(tried.items()):
        line = Line(name, tuple(rows))
        asked = f"{labels:,} labels, " if labels else ""
        yield f"- {name}, {asked}{budget:g} s, {line.knobs()}: {line.spread('validation')} (n {len(rows)})"


def markdown(out: Path) -> str:
    """All tables."""
    lines = ["# Proof tables", "", "Generated by `python tests/results/run.py --tables` from the CSV files beside it.", ""]
    found = groups(out)
    lines += ["![Score against training images drawn](tables.svg)" if found else "No row exists yet.", ""]
    for group in found:
        lines += [f"## {group.title}", ""]
        lines += [f"{TABLES[group.table].data}; scores in percent on test images. {computed_by(group)}.", ""]
        lines += [*table_lines(group), ""]
    for table, stated in TABLES.items():
        if stated.note and any(group.table == table for group in found):
            lines += [f"{table}: {stated.note}", ""]
        tried = list(searched(out, table))
        if tried:
            lines += [f"## {table}: chosen on validation images", "", *tried, ""]
    return "\n".join(lines)


def apart(heights: Sequence[float], least: float) -> list[float]:
    """Ascending heights moved as little upwards as puts ``least`` between neighbours, then down as far as they pass 1."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + least) if placed else height)
    for k in range(len(placed) - 1, -1, -1):
        placed[k] = min(placed[k], 1 - least * (len(placed) - 1 - k))
    return placed


def figure(out: Path) -> str:
    """Cost against quality: training images drawn in the time of a run, and score, a panel a group, as SVG."""
    found = groups(out)

    def draw(canvas: Figure) -> None:
        grid = canvas.subplots(len(found), 1, squeeze=False)[:, 0]
        for axes, group in zip(grid, found, strict=True):
            measure = next(iter(group.lines[0].rows[0].scores))
            ends = []
            for line in sorted(group.lines, key=lambda line: line.mean(measure)):
                values = list(line.scores(measure).values())
                mean, images = float(np.mean(values)), float(np.mean([row.images for row in line.rows]))
                if images:
                    spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
                    axes.errorbar(images, mean, yerr=spread, fmt="o", markersize=4, capsize=2)
                else:
                    axes.axhline(mean, color="0.6", linestyle="--", linewidth=1)
                ends.append((line.name, images, mean))
            axes.set(xscale="log", title=group.title, xlabel="training images drawn", ylabel=f"{measure}, percent")
            axes.margins(0.1)
            axes.grid(alpha=0.25)
            low, high = axes.get_ylim()
            places = apart([(mean - low) / (high - low) for _, _, mean in ends], 0.05)
            for (name, images, mean), place in zip(ends, places, strict=True):
                start = (images or axes.get_xlim()[1], mean)
                leader = {"arrowstyle": "-", "color": "0.75", "linewidth": 0.5}
                axes.annotate(
                    name, start, (1.03, place), textcoords="axes fraction", va="center", fontsize=7, arrowprops=leader
                )  # fmt: skip

    return svg(draw, 8, 4.2 * len(found))


GUIDE_BEGIN = "<!-- guide: generated by `python tests/results/run.py --tables`; the tests compare -->\n"
GUIDE_END = "<!-- end of guide -->"
NO_ROW = "No row exists yet: `python tests/results/run.py` trains them."


def guide(out: Path) -> str:
    """Which method at how many labels, as far as the rows tell. Pilots of one run are no ground for advice."""
    lines = []
    for group in groups(out):
        declared = TABLES[group.table]
        for measure, words in declared.measures.items():
            baselines = {name for entry in declared.rows.values() if entry.bar for name in entry.bar.baselines}
            usable = [line for line in group.lines if len(line.rows) > 1]
            rivals = [line for line in usable if line.name in declared.rows and line.name not in baselines]
            if not rivals:
                continue
            best = max(rivals, key=lambda line: line.mean(measure))
            entry = declared.rows[best.name]
            assert entry.bar is not None, "only baselines have no bar"
            found = gap(best, usable, measure, entry.bar.baselines)
            take = f"`{best.name}`"
            if found is not None and not found.low > 0:
                take = f"`{found.baseline}`: no row is clearly above it"
            cells = [
                declared.data, words.format(labels=f"{group.labels:,}"), f"{group.budget:g}", take,
                f"`{best.name}` {best.spread(measure)}", str(len(best.rows)), f"{found} over {found.baseline}" if found else "",
                str(len(rivals)),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    if not lines:
        return NO_ROW
    heads = ("data", "labels", "seconds a run", "take", "highest mean, test %", "n", "paired difference, 95%", "of rows")
    note = "The highest of many rows flatters itself: its figure and its lead are read off the test images that picked it."
    notes = dict.fromkeys(TABLES[group.table].note for group in groups(out))
    rest = [line for text in (note, *notes) if text for line in ("", text)]
    return "\n".join([f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *lines, *rest])


def with_guide(text: str, out: Path) -> str:
    """The project README's text with the guide of today's rows."""
    return between(text, GUIDE_BEGIN, GUIDE_END, guide(out))


def write_tables(out: Path) -> None:
    """The tables and the figure beside the rows; for the rows kept with this file, also the guide in the project's README."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "README.md", markdown(out))
    if groups(out):
        write_text(out / "tables.svg", figure(out))
    if out == HERE:
        write_text(README, with_guide(README.read_text(encoding="utf-8"), out))


def key_of(table: str, name: str, labels: int, seed: int, seconds: float, chosen: Mapping[str, object]) -> Key:
    """The key of a row with these knobs chosen beside those that its entry states."""
    entry = TABLES[table].rows[name]
    knobs = dict(entry.knobs)
    if entry.method != UNTRAINED:
        config = build(CATALOGUE[entry.method].config, {**entry.knobs, **chosen})
        knobs = {knob: getattr(config, knob) for knob in CATALOGUE[entry.method].knobs()}
    return Key(table, name, labels, seed, seconds, json.dumps(knobs))
