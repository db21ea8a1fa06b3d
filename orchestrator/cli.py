"""The command line: thin words over the Python API. Errors are one line; the exit code is 0 only on success."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from search_spaces.domains import UserError

BEGAN = time.time()
"""When the command began: budgets of minutes count from here."""

app = typer.Typer(
    name="labelwise",
    help="Which label-efficient method, with which hyperparameters, works best on your images, and how good will it be?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

STUDY = Annotated[str, typer.Argument(help="A study file (YAML), or the name of a ready-made study such as 'demo'.")]
DIRECTORY = Annotated[Path, typer.Argument(help="A run folder.")]
SETTINGS = Annotated[list[str] | None, typer.Option("--set", help="key=value: replaces a field of the study; repeatable.")]
ADDRESS = Annotated[str | None, typer.Option(help="Address of a running Ray cluster; by default this machine.")]

IMPORTS = Annotated[
    list[str] | None,
    typer.Option("--import", metavar="MODULE", help="Allows code of your own that the study names, MODULE:Name; repeatable."),
]


@app.command(epilog="Example: labelwise run demo --out runs/first --set trials=8 --set search.simclr.temperature=0.2")
def run(
    study: STUDY,
    out: Annotated[Path | None, typer.Option(help="The run folder; it must not exist yet.")] = None,
    settings: SETTINGS = None,
    address: ADDRESS = None,
    imports: IMPORTS = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, estimate the time, run nothing.")] = False,
) -> None:
    """Runs a study: searches, judges the finalists by folds, tests them once, and writes the run folder."""
    from orchestrator.study import load_study

    given = list(settings or []) + ([f"address={address}"] if address else [])
    loaded = load_study(study, given, imports or ())
    if dry_run:
        from orchestrator.dry import dry_run as estimate

        typer.echo(estimate(loaded, out))
        return
    from orchestrator.run import run as run_study

    _conclude(run_study(loaded, out, quiet=False, began=BEGAN))


@app.command(epilog="Example: labelwise resume runs/demo --trials 40")
def resume(
    directory: DIRECTORY,
    trials: Annotated[int | None, typer.Option(help="Trials in all: more than before lets the search go on.")] = None,
    imports: IMPORTS = None,
) -> None:
    """Goes on with an interrupted study, or gives a finished one more trials."""
    from orchestrator.folder import RunFolder
    from orchestrator.run import resume as resume_study

    study = RunFolder.open(directory).load_study(imports) if imports else None
    _conclude(resume_study(directory, trials, study, quiet=False, began=BEGAN))


@app.command(epilog="Example: labelwise leaderboard runs/demo --json")
def leaderboard(
    directory: DIRECTORY,
    as_json: Annotated[bool, typer.Option("--json", help="Rows as JSON.")] = False,
    imports: IMPORTS = None,
) -> None:
    """Prints the leaderboard of a run folder, finished or not, and what may be said of a winner."""
    from orchestrator.engine.history import History
    from orchestrator.engine.journal import read_journal
    from orchestrator.folder import RunFolder
    from orchestrator.outputs.board import board
    from orchestrator.result import read_leaderboard

    frame = read_leaderboard(directory, RunFolder.open(directory).load_study(imports) if imports else None)
    if as_json:
        typer.echo(frame.to_json(orient="records", indent=2))
    else:
        console = Console()
        console.print(board(frame))
        folder = RunFolder.open(directory)
        if History(read_journal(folder.storage)).chosen is not None:
            # More trials reopen the choice; until they end the file tells of the last one.
            _say_verdict(console, folder)


@app.command(epilog="Example: labelwise report runs/demo")
def report(directory: DIRECTORY, imports: IMPORTS = None) -> None:
    """Writes report.html, leaderboard.csv and the Optuna storage of a run folder anew, from its journal."""
    from orchestrator.engine.history import History
    from orchestrator.engine.journal import read_journal
    from orchestrator.finish import write_outputs
    from orchestrator.folder import RunFolder
    from orchestrator.prepare import prepare

    folder = RunFolder.open(directory)
    study = folder.load_study(imports or ())
    write_outputs(prepare(study, weights=False), folder, History(read_journal(folder.storage)))
    typer.echo(folder.path / folder.REPORT)


@app.command(epilog="Example: labelwise predict runs/demo path/to/images --out predictions.csv")
def predict(
    directory: DIRECTORY,
    images: Annotated[Path, typer.Argument(help="A folder or zip of images.")],
    out: Annotated[Path | None, typer.Option(help="CSV file; standard output by default.")] = None,
    abstain: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Leaves blank the share of images it is least sure of, such as 0.1."),
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(metavar="LEAST", help="Leaves blank the images below this confidence, such as 0.9.")
    ] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="A further column for each class, p:CLASS.")] = False,
    imports: IMPORTS = None,
) -> None:
    """Classifies images by the winner: file, class, calibrated confidence. After a few-shot study: file and embedding.

    A class that is left blank is for a person to say.
    """
    from orchestrator.folder import RunFolder
    from orchestrator.predict import predict as predict_images
    from orchestrator.predict import told

    if imports:
        # The winner may be of a class of one's own, which must be there before its model is read.
        RunFolder.open(directory).load_study(imports)
    found = predict_images(directory, images, abstain=abstain, confidence=confidence, probabilities=probabilities)
    if abstain is not None or confidence is not None:
        typer.echo(told(found), err=True)
    text = found.to_csv(index=False)
    if out is None:
        typer.echo(text, nl=False)
    else:
        from methods.parts.files import write_text

        write_text(out, text)
        typer.echo(out)


@app.command(epilog="Example: labelwise export runs/demo --format onnx --out winner.onnx")
def export(
    directory: DIRECTORY,
    format: Annotated[str, typer.Option(help="onnx, torch (a torch.export program) or safetensors (weights).")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="The file; by default model.SUFFIX in the run folder.")] = None,
    imports: IMPORTS = None,
) -> None:
    """Writes the winner to one file that runs without labelwise: uint8 images in, probabilities and embedding out."""
    from orchestrator.export import export as export_winner

    made = export_winner(directory, format, out, imports or ())
    typer.echo(f"{made.path}\n{made.checked}")


@app.command(epilog="Example: labelwise oneshot runs/omniglot path/to/all_runs --out answers.csv")
def oneshot(
    directory: DIRECTORY,
    runs: Annotated[Path, typer.Argument(help="A folder or zip of runs: training/, test/ and class_labels.txt in each.")],
    out: Annotated[Path | None, typer.Option(help="CSV file of every answer: run, file, answer, truth.")] = None,
) -> None:
    """The winner's error on a fixed list of one-shot runs, laid out as Omniglot's one-shot classification task."""
    from methods.parts.files import write_text
    from orchestrator.oneshot import one_shot

    score = one_shot(directory, runs)
    if out is not None:
        write_text(out, score.answers.to_csv(index=False))
    typer.echo(score.describe())


@app.command(epilog="Example: labelwise methods simclr")
def methods(
    name: Annotated[str | None, typer.Argument(help="One method; all by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The catalogue as JSON.")] = False,
) -> None:
    """The catalogue: families, papers, knobs with ranges and sources."""
    from methods.catalogue import CATALOGUE, method
    from orchestrator.describe import catalogue_json, knob_table, method_table

    chosen = [method(name)] if name else list(CATALOGUE.values())
    if as_json:
        typer.echo(json.dumps(catalogue_json(chosen), indent=2))
    elif name:
        Console().print(f"{chosen[0].name} ({chosen[0].family}): {chosen[0].summary}\n{chosen[0].paper}", highlight=False)
        Console().print(knob_table(chosen[0]))
    else:
        Console().print(method_table(chosen))


@app.command(epilog="Example: labelwise train runs/demo --best --workers 2 --out trained")
def train(
    source: Annotated[str, typer.Argument(help="A run folder, or a study file.")],
    out: Annotated[Path, typer.Option(help="Folder for encoder and predictor; it must not exist yet.")],
    best: Annotated[bool, typer.Option("--best", help="Insist on a run folder's winner; refuse a study file.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Workers that train together by Ray Train.")] = 1,
    address: ADDRESS = None,
    imports: IMPORTS = None,
) -> None:
    """Trains one configuration across workers and exports encoder and predictor.

    Of a run folder its winner, of a study file its first method at the defaults or fixed values.
    """
    from orchestrator.train import train as train_one

    typer.echo(train_one(source, best, workers, out, address, imports or ()))


@app.command(epilog="Example: labelwise submit study.yaml --address http://head:8265")
def submit(
    study: STUDY,
    address: Annotated[str, typer.Option(help="Address of the cluster's job server, http://HEAD:8265.")],
    settings: SETTINGS = None,
    out: Annotated[Path | None, typer.Option(help="The run folder, on storage that the whole cluster sees.")] = None,
    imports: IMPORTS = None,
) -> None:
    """Runs a study on a Ray cluster as a job, and follows its log."""
    from orchestrator.submit import submit as submit_study

    raise typer.Exit(submit_study(study, address, list(settings or []), out, imports or ()))


@app.command(epilog="Example: labelwise schema > study.schema.json")
def schema() -> None:
    """The study file's JSON Schema, for editors and programs."""
    from orchestrator.choices import NAMES
    from orchestrator.study.schema import study_schema

    typer.echo(json.dumps(study_schema(NAMES), indent=2))


@app.command(epilog="Example: labelwise journal runs/demo --json")
def journal(
    directory: DIRECTORY, as_json: Annotated[bool, typer.Option("--json", help="The events as a JSON list.")] = False
) -> None:
    """The events of a study in order, a line each: what was decided and what came of it."""
    from orchestrator.outputs.events import event_lines, event_rows

    rows = event_rows(directory)
    typer.echo(json.dumps(rows, indent=2) if as_json else "\n".join(event_lines(rows)))


@app.command(epilog="Example: labelwise check path/to/images --out checked")
def check(
    data: Annotated[str, typer.Argument(help="A folder, zip or .npz of images, or a known name, as in a study.")],
    out: Annotated[Path | None, typer.Option(help="Folder for lists and picture sheets; new or empty.")] = None,
    test: Annotated[str | None, typer.Option(help="Test images; by default those that the data brings.")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="A pretrained encoder, or none; by default lite0 where it is installed.")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable images out.")] = False,
) -> None:
    """Looks for likely label errors, near duplicates, leaks of test images and odd images. Changes nothing of the data."""
    from orchestrator.care.check import check as check_data
    from orchestrator.care.sentences import summary

    def say(text: str) -> None:
        typer.echo(text, err=True)

    found = check_data(data, out, test=test, encoder=encoder, on_bad_image="skip" if skip_bad else "refuse", say=say)
    typer.echo("\n".join(summary(found)))
    if out is not None:
        typer.echo(f"lists and picture sheets: {out}")


@app.command(epilog="Example: labelwise doctor")
def doctor(address: ADDRESS = None) -> None:
    """What this machine or cluster can run, and what is missing."""
    from cluster.doctor import examine

    findings = examine(address)
    view = Table(box=None, pad_edge=False)
    for column in ("", "what", "found", "remedy"):
        view.add_column(column)
    for finding in findings:
        view.add_row(finding.status, finding.name, finding.value, finding.remedy)
    Console().print(view)
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(1)


def _conclude(result: Any) -> None:
    from orchestrator.outputs.board import board

    frame = result.leaderboard()
    console = Console()
    console.print(board(frame))
    _say_verdict(console, result.run)
    console.print(f"\nReport       {result.folder / 'report.html'}", highlight=False, soft_wrap=True)
    console.print(f"TensorBoard  tensorboard --logdir {result.folder / 'tensorboard'}", highlight=False, soft_wrap=True)
    console.print(f"Use it       labelwise predict {result.folder} IMAGES", highlight=False, soft_wrap=True)
    if result.best is None:
        raise UserError(f"no trial finished; the reasons stand in {result.folder / 'leaderboard.csv'}")


def _say_verdict(console: Console, folder: Any) -> None:
    if folder.exists(folder.VERDICT):
        for sentence in folder.read_text(folder.VERDICT).splitlines():
            # Only a terminal has a width; in a file or pipe a sentence is a line.
            console.print(sentence, highlight=False, soft_wrap=not console.is_terminal)


def main() -> None:
    """Entry point. A user's mistake is one line on stderr and exit code 2; Ctrl-C is 130."""
    from cluster import ClusterError

    try:
        app(standalone_mode=False)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except typer.Abort:
        sys.exit(130)
    except (UserError, ClusterError) as error:
        print(f"labelwise: {error}", file=sys.stderr)
        sys.exit(130 if type(error).__name__ == "Interrupted" else 2)
    except KeyboardInterrupt:
        print("labelwise: interrupted; 'labelwise resume DIR' goes on with a run folder", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not _click_error(error):
            raise


def _click_error(error: Exception) -> bool:
    """Prints and exits for a mistake in the command line itself."""
    show = getattr(error, "show", None)
    if show is None:
        return False
    show()
    sys.exit(getattr(error, "exit_code", 2))
