"""`berth estimate`: predictions for rows of published measurements."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from berth.estimator.rows import Prediction

ADDED = ("predicted", "low", "high", "verdict")
NEEDED = ("model", "gpu", "metric")
_NO_FIGURES = {"predicted": "", "low": "", "high": ""}
_TOO_MANY = "\0"  # not a column: why this row cannot be read
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CHUNK = 2000  # rows predicted together: fast enough, and memory stays small however long the file is


@click.command()
@click.option(
    "--rows",
    "source",
    required=True,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="CSV, or CSV.gz, of published measurements; - reads standard input.",
)
@click.option(
    "--out",
    "target",
    default="-",
    show_default=True,
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="Where to write the same rows with the columns added; - is standard output.",
)
def estimate(source: Path, target: Path) -> None:
    """Predict what published measurements should have found.

    Copies every row and adds predicted, low and high, in the unit of the row, and verdict: ok, marginal, does-not-fit
    or `unsupported: why`. The column `value` is never read. 80 % of published values lie between low and high.

    \b
    berth estimate --rows published_performance.csv --out predicted.csv
    """
    if str(source) != "-" and target.exists() and target.samefile(source):
        raise click.ClickException("--out: must not be the file that --rows reads")
    try:
        with _reader(source) as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or ())
            missing = [name for name in NEEDED if name not in columns]
            if missing:
                raise click.ClickException(
                    f"{source}: column {missing[0]} is missing: needs {', '.join(NEEDED)} at least"
                )
            with _writer(target) as out:
                writer = csv.DictWriter(out, [*(c for c in columns if c not in ADDED), *ADDED], lineterminator="\n")
                writer.writeheader()
                for rows in _chunks(reader):
                    writer.writerows(_predicted(rows))
    except BrokenPipeError:
        raise  # whoever reads has seen enough
    except (OSError, UnicodeDecodeError, EOFError, csv.Error) as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise click.ClickException(f"--out {target}: {error.strerror}") from None
        raise click.ClickException(f"{source}: cannot be read as CSV: {error}") from None


def _predicted(rows: list[dict[str, str]]) -> Iterator[Mapping[str, str]]:
    from berth.estimator.rows import predict_rows

    for row, prediction in zip(rows, predict_rows(rows), strict=True):
        longer = {} if row.get(_TOO_MANY) is None else {"verdict": f"unsupported: {row[_TOO_MANY]}", **_NO_FIGURES}
        own = {name: value for name, value in row.items() if name not in (*ADDED, _TOO_MANY)}
        yield {**own, **_cells(prediction), **longer}


def _cells(prediction: Prediction) -> dict[str, str]:
    figures = {name: getattr(prediction, name) for name in ("predicted", "low", "high")}
    cells = {name: "" if math.isnan(value) else f"{value:.6g}" for name, value in figures.items()}
    return {**cells, "verdict": prediction.verdict}


def _chunks(reader: csv.DictReader[str]) -> Iterator[list[dict[str, str]]]:
    chunk: list[dict[str, str]] = []
    for number, row in enumerate(reader, start=2):
        cells = {name: value or "" for name, value in row.items() if name is not None}
        if None in row:
            cells[_TOO_MANY] = f"row {number} has more cells than the header"
        chunk.append(cells)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


@contextmanager
def _reader(path: Path) -> Iterator[TextIO]:
    if str(path) == "-":
        yield io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", newline="")
    elif path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as text:
            yield text
    else:
        with path.open(encoding="utf-8-sig", newline="") as text:
            yield text


@contextmanager
def _writer(path: Path) -> Iterator[TextIO]:
    if str(path) == "-":
        yield sys.stdout
        return
    try:
        file = path.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise click.ClickException(f"--out {path}: {error.strerror}") from None
    with file:
        yield file
