"""`berth estimate` and `berth model` as people type them."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from berth.api.llmdeployment import parse_llmdeployment
from berth.cli import main
from berth.core.accept import resolve_model
from berth.estimator.models import from_config
from tests.support.samples import BASES, edit
from tests.unit.estimator.test_published import ROW

AUTO = BASES["llama-70b/LLMDeployment/llama-70b"]


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, arguments, input=stdin)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROW))
        writer.writeheader()
        writer.writerows([ROW, {**ROW, "gpu": "TPU", "value": "nan"}, {**ROW, "notes": 'a "quoted", note'}])
    return path


def test_rows_are_copied_and_four_columns_added(rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    result = run("estimate", "--rows", str(rows), "--out", str(out))
    assert (result.exit_code, result.output) == (0, "")
    before, after = (list(csv.DictReader(path.read_text().splitlines())) for path in (rows, out))
    assert [{k: v for k, v in row.items() if k in ROW} for row in after] == before
    assert list(after[0])[-4:] == ["predicted", "low", "high", "verdict"]
    assert float(after[0]["low"]) < float(after[0]["predicted"]) < float(after[0]["high"])
    assert after[1]["verdict"].startswith("unsupported: gpu: TPU")
    assert (after[1]["predicted"], after[1]["low"], after[1]["high"]) == ("", "", "")
    assert after[2]["notes"] == 'a "quoted", note'


def test_pipes_gzip_and_a_second_pass_work(rows: Path, tmp_path: Path) -> None:
    piped = run("estimate", "--rows", "-", stdin=rows.read_text())
    packed = tmp_path / "rows.csv.gz"
    packed.write_bytes(gzip.compress(rows.read_bytes()))
    assert run("estimate", "--rows", str(packed)).output == piped.output
    again = run("estimate", "--rows", "-", stdin=piped.output)
    assert list(csv.DictReader(io.StringIO(again.output))) == list(csv.DictReader(io.StringIO(piped.output)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "column model is missing"),
        (b"a,b\n1,2\n", "column model is missing"),
        (b"\xff\xfe\x00", "cannot be read as CSV"),
    ],
)
def test_a_file_that_is_no_table_of_measurements_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    result = run("estimate", "--rows", str(path))
    assert result.exit_code == 1
    assert words in result.output
    assert "Traceback" not in result.output


def test_a_row_that_does_not_match_the_header_disturbs_no_other(rows: Path) -> None:
    first, *rest = rows.read_text().splitlines()
    odd = [first, f"{rest[0]},too,many", "Llama-2-70B", *rest]
    result = run("estimate", "--rows", "-", stdin="\r\n".join(odd))
    after = list(csv.DictReader(io.StringIO(result.output)))
    assert result.exit_code == 0
    assert after[0]["verdict"] == "unsupported: row 2 has more cells than the header"
    assert after[1]["verdict"].startswith("unsupported: ")
    assert all(row["predicted"] == "" for row in after[:2])
    assert after[2:] == list(csv.DictReader(io.StringIO(run("estimate", "--rows", str(rows)).output)))


def test_a_byte_order_mark_is_no_part_of_the_first_column(rows: Path, tmp_path: Path) -> None:
    marked = b"\xef\xbb\xbf" + rows.read_bytes()
    packed = tmp_path / "marked.csv.gz"
    packed.write_bytes(gzip.compress(marked))
    plain = run("estimate", "--rows", str(rows)).output
    assert run("estimate", "--rows", str(packed)).output == plain
    assert run("estimate", "--rows", "-", stdin=marked.decode()).output == plain


def test_the_input_is_never_overwritten(rows: Path, tmp_path: Path) -> None:
    before = rows.read_bytes()
    assert "must not be the file" in run("estimate", "--rows", str(rows), "--out", str(rows)).output
    assert rows.read_bytes() == before
    assert "--out" in run("estimate", "--rows", str(rows), "--out", str(tmp_path / "no" / "out.csv")).output


def test_models_are_listed_shown_and_imported(tmp_path: Path) -> None:
    assert "llama-3.1-70b" in run("model", "list").output
    names = [entry["name"] for entry in json.loads(run("model", "list", "-o", "json").output)]
    assert {"llama-2-70b", "mixtral-8x22b", "qwen3-32b"} <= set(names)
    shown = run("model", "show", "meta-llama/Llama-3.1-70B-Instruct").output
    assert "141.1 GB" in shown
    assert "72.7 GB" in shown
    config = {
        "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 131072,
    }  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    imported = yaml.safe_load(run("model", "import", str(path), "--name", "llama-3.1-8b", "-o", "yaml").output)
    assert imported.pop("architecture").items() > config.items()
    assert imported == yaml.safe_load(run("model", "show", "llama-3.1-8b", "-o", "yaml").output)


SIZES = {"n_layer": 24, "n_embd": 2048, "n_head": 16, "vocab_size": 50000, "n_positions": 2048}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({**SIZES, "model_type": "gptj", "n_inner": 8192}, {"model_type": "gptj", "intermediate_size": 8192}),
        (
            {"text_config": {**SIZES, "num_experts": 8, "moe_top_k": 2, "moe_intermediate_size": 700}},
            {"num_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 700},
        ),
        ({**SIZES, "model_type": "falcon", "multi_query": True}, {"num_key_value_heads": 1, "model_type": "falcon"}),
        ({**SIZES, "model_type": "falcon", "parallel_attn": False, "new_decoder_architecture": False}, None),
        ({**SIZES, "vocab_size": 50_000_000}, None),
    ],
    ids=["other keys", "mixture in a wrapper", "one KV head", "beside each other or not", "beyond the bounds"],
)
def test_an_imported_model_is_shown_as_the_lines_of_a_deployment_that_mean_the_same(
    config: dict[str, Any], says: dict[str, Any] | None
) -> None:
    shown = run("model", "import", "-", "--name", "ours", stdin=json.dumps(config)).output
    if says is None:
        assert "spec.model.architecture cannot say this" in shown
        return
    written = yaml.safe_load(shown.split("for an LLMDeployment:\n")[1])["spec"]["model"]
    assert written["name"] == "ours"
    assert written["architecture"].items() >= says.items()
    deployment = parse_llmdeployment(
        edit(AUTO, {"spec.model.name": "ours", "spec.model.architecture": written["architecture"]})
    )
    assert resolve_model(deployment) == from_config(config, "ours")


@pytest.mark.parametrize(
    ("content", "words"),
    [("{}", "num_hidden_layers"), ("[1]", "not a JSON object"), ("{", "Expecting"), ("[" * 100_000, "")],
)
def test_a_bad_config_is_refused_in_words(content: str, words: str) -> None:
    result = run("model", "import", "-", stdin=content)
    assert result.exit_code == 1
    assert words in result.output
    assert "Traceback" not in result.output


def test_an_unknown_model_is_refused() -> None:
    result = run("model", "show", "gpt-9")
    assert result.exit_code == 1
    assert "berth model list" in result.output
