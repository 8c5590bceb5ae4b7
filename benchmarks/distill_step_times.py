"""Distils the simulated engine's step-time tables from published measurements, and checks the plant against them.

    python benchmarks/distill_step_times.py published_performance.csv [--write]

Per set-up (source, model, precision, GPU, tensor parallel) one non-negative least-squares fit over its rows:

    time per output token = a(B) + c * B * (input + output / 2) + (B - 1) / output * p(input)      B requests in flight
    time to first token   = a(1) + p(input)                                                        one request alone

with a and p free at every published B and input length, but rising. Rows whose requests would not all fit the KV
cache are left out: they measure queueing. Then the plant runs each row's closed loop, without noise, and its error is
printed.
Nothing is fitted to the estimator, and the estimator is not imported.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
from scipy.optimize import nnls

from berth.engine.engines import step_times
from berth.engine.engines.plant import Job, Plant, PlantConfig
from berth.engine.engines.step_times import Copy, StepTimes, Table

ABOUT = "Distilled by benchmarks/distill_step_times.py from the sources named; seconds and tokens"
OUTPUT = Path(step_times.__file__).with_name("step_times.json")


@dataclass(frozen=True)
class Setup:
    """What is distilled together: rows whose source starts with `source` and whose notes hold `runtime`."""

    source: str
    runtime: str
    model: str
    precision: str
    gpu: str
    gpu_name: str
    weight_gib: float
    kv_bytes_per_token: float
    tensor_parallel: tuple[int, ...]


# KV bytes per token = 2 * layers * KV heads * head size * bytes, from each model's published config.json.
SETUPS = (
    Setup("InferenceMAX", "", "Llama-3.1-70B", "fp8", "H100-SXM", "H100-SXM-80", 67.7, 163840, (2, 4, 8)),
    Setup("InferenceMAX", "trtllm", "Llama-3.1-70B", "fp8", "H200-SXM", "H200-SXM-141", 67.7, 163840, (1, 2, 4, 8)),
    Setup("NVIDIA AIC", "trtllm 1.0", "Llama-3.1-8B", "bf16", "H100-SXM", "H100-SXM-80", 15.0, 131072, (1, 2, 4, 8)),
    Setup("NVIDIA AIC", "trtllm 1.0", "Qwen3-32B", "fp8", "H100-SXM", "H100-SXM-80", 32.0, 131072, (1, 2, 4, 8)),
    Setup("NVIDIA AIC", "vllm 0.12", "Qwen3-32B", "bf16", "H100-SXM", "H100-SXM-80", 61.0, 262144, (2, 4, 8)),
    Setup("lmdeploy", "", "Llama-2-7B", "fp16", "A100-SXM", "A100-SXM-80", 12.6, 524288, (1,)),
    Setup("lmdeploy", "", "Llama-2-13B", "fp16", "A100-SXM", "A100-SXM-80", 24.2, 819200, (1,)),
    Setup("lmdeploy", "", "Llama-2-70B", "fp16", "A100-SXM", "A100-SXM-80", 128.5, 327680, (4,)),
    # Splitwise-sim's tables are of the same GPUs, but of a vLLM of 2023, up to twice slower than what runs today.
)
DERIVED = "Llama-2-70B fp16 A100-SXM-80 TP4"
RATIOS = "TensorRT-LLM docs v0.12.0 (max load)"
"""No source has A100 step times at other tensor parallelism: this one tells how throughput changes with it."""

EVENNESS = 0.05
PEAK_SHARE = 0.75
"""No prefill runs faster than this share of the data sheet's arithmetic; where rows hardly see prefill, this binds."""

Row = dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--write", action="store_true", help=f"write {OUTPUT.name}")
    arguments = parser.parse_args()
    with arguments.data.open() as file:
        every = list(csv.DictReader(file))
    rows = [row for row in every if usable(row)]
    tables, measured = [], {}
    for setup in SETUPS:
        for parallel in setup.tensor_parallel:
            chosen = [row for row in rows if belongs(row, setup, parallel)]
            table = fit(setup, parallel, chosen)
            tables.append(table)
            measured[table.name] = chosen
    tables += derive(tables, every)
    for table in tables:
        report(table, measured.get(table.name, []))
    if arguments.write:
        entries = ",\n".join(json.dumps(as_json(table)) for table in tables)
        OUTPUT.write_text(f'{{"about": "{ABOUT}",\n"tables": [\n{entries}\n]}}\n')


def usable(row: Row) -> bool:
    return (
        row["metric"] in ("tpot_ms", "ttft_ms")
        and row["concurrency"].isdigit()
        and row["input_tokens"].isdigit()
        and row["output_tokens"].isdigit()
        and not {"OUTLIER", "ANOMALOUS"} & set(row["notes"].replace(";", " ").split())
    )


def belongs(row: Row, setup: Setup, parallel: int) -> bool:
    return (
        row["source"].startswith(setup.source)
        and setup.runtime in row["notes"]
        and row["model"] == setup.model
        and row["weights_precision"] == setup.precision
        and row["gpu"] == setup.gpu
        and row["tp"] == str(parallel)
        and row["pp"] == "1"
        and fits(row, copy_of(setup, parallel, row), setup.weight_gib)
    )


def copy_of(setup: Setup, parallel: int, row: Row) -> Copy:
    return Copy(float(row["params_b"]), setup.precision, setup.gpu_name, parallel, 1, setup.kv_bytes_per_token)


def fits(row: Row, copy: Copy, weight_gib: float) -> bool:
    batch, prompt, output = lengths(row)
    return batch * (prompt + output) <= step_times.kv_room(copy, weight_gib)


def lengths(row: Row) -> tuple[int, int, int]:
    return int(row["concurrency"]), int(row["input_tokens"]), int(row["output_tokens"])


def fit(setup: Setup, parallel: int, rows: list[Row]) -> Table:
    """Least squares in relative error; a and p as sums of non-negative rises between neighbouring knots."""
    batches = sorted({lengths(row)[0] for row in rows} | {1})
    prompts = sorted({lengths(row)[1] for row in rows if lengths(row)[1] > 1})
    scale = statistics.median(
        float(row["value"]) / 1000 / lengths(row)[1]
        for row in rows
        if row["metric"] == "ttft_ms" and lengths(row)[1] > 1
    )
    matrix, target = [], []
    for row in rows:
        if row["metric"] == "ttft_ms" and row["concurrency"] != "1":
            continue  # clients in lock-step send bursts; the time per output token has the prefill of the others in it
        batch, prompt, output = lengths(row)
        seconds = float(row["value"]) / 1000
        rise = [1.0 if knot <= batch else 0.0 for knot in batches]
        reach = [1.0 if knot <= prompt else 0.0 for knot in prompts]
        if row["metric"] == "tpot_ms":
            # lmdeploy published the median token's latency, which has no prefill in it.
            share = 0.0 if setup.source == "lmdeploy" else (batch - 1) / output
            equation = [*rise, batch * (prompt + output / 2) * 1e-6, *(share * r for r in reach)]
        else:
            equation = [*rise, 0.0, *reach]
        matrix.append([value / seconds for value in equation])
        target.append(1.0)
    used = len(target)
    for shorter, longer in pairwise(prompts):
        matrix.append(even_cost(prompts, shorter, longer, len(batches) + 1, scale))
        target.append(0.0)
    solution, _ = nnls(np.array(matrix), np.array(target))
    decode = tuple(zip(batches, np.cumsum(solution[: len(batches)]).tolist(), strict=True))
    copy = copy_of(setup, parallel, rows[0])
    fastest = 2e9 * copy.active_parameters_b / (PEAK_SHARE * 1e12 * step_times.flops(copy) * parallel)
    prefill = tuple(
        (prompt, max(seconds, fastest * prompt))
        for prompt, seconds in zip(prompts, np.cumsum(solution[len(batches) + 1 :]).tolist(), strict=True)
    )
    name = f"{setup.model} {setup.precision} {setup.gpu_name} TP{parallel}"
    source = f"{rows[0]['source']}: {rows[0]['source_address']}"
    times = StepTimes(decode, ((0.0, 0.0), *prefill), float(solution[len(batches)]) * 1e-6)
    return Table(name, copy, times, source, used)


def even_cost(prompts: list[int], shorter: int, longer: int, offset: int, scale: float) -> list[float]:
    """A weak wish for equal seconds per prompt token at two lengths: decides only where the rows do not."""
    return [0.0] * offset + [
        EVENNESS * ((knot <= shorter) / shorter - (knot <= longer) / longer) / scale for knot in prompts
    ]


def derive(tables: list[Table], rows: list[Row]) -> list[Table]:
    """The A100 table at other tensor parallelism: scaled by the ratio of saturated throughput, 128-token prompts."""
    base = next(table for table in tables if table.name == DERIVED)
    throughput = {
        int(row["tp"]): float(row["value"])
        for row in rows
        if row["source"] == RATIOS and row["model"] == "Llama-2-70B" and row["gpu"] == "A100-SXM"
        if row["metric"] == "out_tok_s" and (row["input_tokens"], row["output_tokens"]) == ("128", "128")
    }
    return [
        Table(
            base.name.replace("TP4", f"TP{parallel}"),
            replace(base.copy, tensor_parallel=parallel),
            base.times.scaled(decode=ratio, context=4 / parallel, prefill=ratio, stages=1),
            f"{base.source}, x {ratio:.2f} = TP4 to TP{parallel} of {RATIOS}",
            base.rows + 2,
        )
        for parallel, ratio in ((parallel, throughput[4] / throughput[parallel]) for parallel in (2, 8))
    ]


def report(table: Table, rows: list[Row]) -> None:
    """One line: size of the steps, error of the plant against the rows (first tokens under load measure bursts)."""
    persistent = table.source.startswith("lmdeploy")
    errors = defaultdict(list)
    for row in rows:
        batch, prompt, output = lengths(row)
        if row["metric"] == "tpot_ms":
            if persistent:
                predicted = table.times.decode_seconds(batch, batch * (prompt + output / 2))
            else:
                predicted, _ = closed_loop(table.times, batch, prompt, output)
        elif batch == 1 and prompt > 1:
            _, predicted = closed_loop(table.times, batch, prompt, output)
        else:
            continue
        errors[row["metric"]].append(predicted * 1000 / float(row["value"]) - 1)
    shown = "  ".join(f"{metric} {summary(values)}" for metric, values in sorted(errors.items()))
    step = table.times.decode_seconds(16, 16 * 1024) * 1000
    print(
        f"{table.name:36} {table.rows:3} rows  16 x 1024: {step:5.1f} ms  "
        f"prefill 1024: {table.times.prefill_seconds(0, 1024) * 1000:5.1f} ms  {shown}"
    )


def summary(errors: Iterable[float]) -> str:
    values = sorted(errors)
    size = sorted(abs(value) for value in values)
    bias, middle, worst = statistics.median(values), statistics.median(size), size[int(0.9 * (len(size) - 1))]
    return f"bias {bias:+.0%} median {middle:.0%} p90 {worst:.0%}"


def closed_loop(times: StepTimes, batch: int, prompt: int, output: int) -> tuple[float, float]:
    """Median seconds per output token and to first token of `batch` clients that ask again at once, second round on.

    Lengths vary by 20 %, as in the published harnesses, or all clients would stay in lock-step for ever.
    """
    plant = Plant(PlantConfig(times, kv_tokens=10**9, max_batch_size=1024, noise=0.0))
    random = Random(1)
    clock = 0.0
    submitted: dict[int, float] = {}
    started: dict[int, float] = {}
    tokens: dict[int, int] = {}
    per_token: list[float] = []
    first_token: list[float] = []

    def ask(number: int) -> None:
        tokens[number] = random.randint(-(-4 * output // 5), output)
        submitted[number] = clock
        plant.submit(Job(number, random.randint(-(-4 * prompt // 5), prompt), tokens[number], tokens[number]))

    for number in range(batch):
        ask(number)
    while len(per_token) < batch:
        step = plant.begin()
        assert step is not None
        clock += step.seconds
        outcome = plant.complete(step)
        for number in outcome.first:
            started[number] = clock
            if number >= batch:
                first_token.append(clock - submitted[number])
        for number in outcome.finished:
            if number >= batch and tokens[number] > 1:
                per_token.append((clock - started[number]) / (tokens[number] - 1))
            ask(number + batch)
    return statistics.median(per_token), statistics.median(first_token)


def as_json(table: Table) -> dict[str, object]:
    def knots(pairs: Iterable[tuple[float, float]]) -> list[list[float]]:
        return [[int(x), float(f"{y:.4g}")] for x, y in pairs]

    return {
        "name": table.name,
        "copy": asdict(table.copy),
        "decode": knots(table.times.decode),
        "prefill": knots(table.times.prefill[1:]),
        "context": float(f"{table.times.context:.4g}"),
        "source": table.source,
        "rows": table.rows,
    }


if __name__ == "__main__":
    main()
