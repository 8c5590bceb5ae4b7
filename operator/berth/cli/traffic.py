"""`berth traffic`: turns a record of requests into `spec.traffic`."""

from __future__ import annotations

import csv
import gzip
import json
import math
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from berth.estimator.traffic import TrafficProfile

TIME, PROMPT, OUTPUT = "TIMESTAMP", "ContextTokens", "GeneratedTokens"
MOST_DAYS = 366
"""Days that a trace may span: minute by minute, a slip in a year would fill the memory."""
MOST_TOKENS = 10_000_000


@click.group()
def traffic() -> None:
    """Describe the requests that clients send."""


@traffic.command()
@click.option(
    "--trace",
    "path",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"CSV, or CSV.gz, with the columns {TIME}, {PROMPT} and {OUTPUT}; one row per request.",
)
@click.option(
    "--max-requested",
    type=click.IntRange(1, MOST_TOKENS),
    help="Largest max_tokens that clients ask for; by default the longest answer, up to a power of two.",
)
@click.option("-o", "--output", "form", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True)
def profile(path: Path, max_requested: int | None, form: str) -> None:
    """Print spec.traffic for the requests recorded in a trace."""
    import numpy as np

    from berth.estimator.trace import profile_of

    try:
        found_rows = sorted(rows(path))
        times, prompts, outputs = (
            (np.array(column) for column in zip(*found_rows, strict=True)) if found_rows else ([], [], [])
        )
        found = profile_of(np.asarray(times, dtype=float), np.asarray(prompts), np.asarray(outputs), max_requested)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    except (OSError, UnicodeDecodeError, EOFError, csv.Error) as error:
        raise click.ClickException(f"{path}: cannot be read as CSV: {error}") from None
    document = {"traffic": spec_of(found)}
    if form == "json":
        click.echo(json.dumps(document, indent=2))
        return
    import yaml

    click.echo(yaml.safe_dump(document, sort_keys=False, default_flow_style=None), nl=False)


def spec_of(found: TrafficProfile) -> dict[str, Any]:
    """`spec.traffic` of an open profile: quantities are strings, lengths whole tokens."""
    spec: dict[str, Any] = {
        "requestsPerSecond": f"{found.requests_per_second:.3g}",
        "inputTokens": {
            "mean": round(found.input_tokens.mean),
            "p95": round(found.input_tokens.p95),
            "p99": round(found.input_tokens.p99 or found.input_tokens.p95),
            "max": math.ceil(found.input_tokens.max),
        },
        "outputTokens": {
            "mean": round(found.output_tokens.mean),
            "p95": round(found.output_tokens.p95),
            "maxRequested": math.ceil(found.output_tokens.max),
        },
        "peakToMean": f"{found.peak_to_mean:.2f}",
    }
    if found.peak_input_to_mean is not None and found.peak_output_to_mean is not None:
        spec["peakInputToMean"] = f"{found.peak_input_to_mean:.2f}"
        spec["peakOutputToMean"] = f"{found.peak_output_to_mean:.2f}"
    return spec


def rows(path: Path) -> Iterator[tuple[float, int, int]]:
    """Seconds, prompt tokens, answer tokens of each row; `ValueError` names line and field of a bad one."""
    try:
        yield from _rows(path)
    except (UnicodeDecodeError, csv.Error, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: is no CSV file, plain or in gzip ({error}): give another one") from None


def _rows(path: Path) -> Iterator[tuple[float, int, int]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        missing = [column for column in (TIME, PROMPT, OUTPUT) if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path}, line 1: column {missing[0]} is missing: name the columns {TIME},{PROMPT},{OUTPUT}"
            )
        first: float | None = None
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            seconds = _seconds(where, row[TIME])
            first = seconds if first is None else first
            if abs(seconds - first) > MOST_DAYS * 86_400:
                raise ValueError(
                    f"{where}: {TIME} {row[TIME]!r} is more than {MOST_DAYS} days from the first one: "
                    "correct or remove the line"
                )
            yield seconds, _tokens(where, row, PROMPT), _tokens(where, row, OUTPUT)


def _seconds(where: str, text: str | None) -> float:
    try:
        moment = datetime.fromisoformat(str(text).strip())
    except ValueError:
        raise ValueError(
            f"{where}: {TIME} {text!r} is not a time such as 2023-11-16 18:15:46.68: correct or remove the line"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _tokens(where: str, row: dict[str, str | None], field: str) -> int:
    text = (row[field] or "").strip()
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:12]) <= MOST_TOKENS:
        raise ValueError(
            f"{where}: {field} {text!r} must be a whole number from 1 to {MOST_TOKENS}: correct or remove the line"
        )
    return int(text)
