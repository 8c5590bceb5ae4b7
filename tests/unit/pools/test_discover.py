"""Pools proposed from node labels, and the command that shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from berth.api.gpupool import parse_gpupool
from berth.cli import main
from berth.core.discovery import LIST_PRICES, Price, discover, parse_prices, pool_name
from berth.core.pools import gpu_type_of
from berth.estimator.hardware import GPU_TYPES


def node(name: str, product: str | None, count: int = 8, **more: Any) -> dict[str, Any]:
    labels = {"nvidia.com/gpu.product": product, "nvidia.com/gpu.count": str(count)} if product else {}
    gpus = str(more.get("gpus", count))
    return {
        "kind": "Node",
        "metadata": {"name": name, "labels": {**labels, **more.get("labels", {})}},
        "spec": {"taints": more.get("taints", [])},
        "status": {
            "capacity": {"nvidia.com/gpu": gpus},
            "allocatable": {"nvidia.com/gpu": gpus},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


@pytest.mark.parametrize(
    ("product", "gpu"),
    [
        ("NVIDIA-H100-80GB-HBM3", "H100-SXM-80"),
        ("NVIDIA-H100-PCIe", "H100-PCIe-80"),
        ("NVIDIA-H100-NVL", "H100-NVL-94"),
        ("NVIDIA-H200", "H200-SXM-141"),
        ("NVIDIA-A100-SXM4-40GB", "A100-SXM-40"),
        ("A100-SXM4-40GB", "A100-SXM-40"),
        ("NVIDIA-A100-SXM4-80GB", "A100-SXM-80"),
        ("NVIDIA-A100-PCIE-40GB", "A100-PCIe-40"),
        ("NVIDIA-A100-80GB-PCIe", "A100-PCIe-80"),
        ("NVIDIA-L40S", "L40S-48"),
    ],
)
def test_maps_products_exactly(product: str, gpu: str) -> None:
    assert gpu_type_of({"nvidia.com/gpu.product": product}) == gpu


def test_one_pool_per_product_and_number_of_gpus() -> None:
    nodes = [
        node("h1", "NVIDIA-H100-80GB-HBM3"),
        node("h2", "NVIDIA-H100-80GB-HBM3"),
        node("a1", "NVIDIA-A100-SXM4-40GB", 8),
        node("a2", "NVIDIA-A100-SXM4-40GB", 4),
        node("a3", "A100-SXM4-40GB", 8),
        node("cpu", None, 0, gpus=0),
    ]
    found = discover(nodes)
    assert not found.left_out
    selectors = {p.manifest["metadata"]["name"]: p.manifest["spec"]["nodeSelector"] for p in found.pools}
    product = "nvidia.com/gpu.product"
    assert selectors == {
        "h100": {product: "NVIDIA-H100-80GB-HBM3"},
        "a100-40": {product: "A100-SXM4-40GB"},
        "a100-40-2-x4": {product: "NVIDIA-A100-SXM4-40GB", "nvidia.com/gpu.count": "4"},
        "a100-40-2-x8": {product: "NVIDIA-A100-SXM4-40GB", "nvidia.com/gpu.count": "8"},
    }
    for proposal in found.pools:
        parse_gpupool(proposal.manifest, known_fields_only=True)


def test_writes_gpu_link_price_and_toleration() -> None:
    gpu_taint = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
    team_taint = {"key": "team", "value": "ml", "effect": "NoSchedule"}
    found = discover([node("p", "NVIDIA-H100-PCIe", 2, taints=[gpu_taint, team_taint])])
    (pool,) = found.pools
    assert pool.manifest["spec"] == {
        "gpu": "H100-PCIe-80",
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-PCIe"},
        "resourceName": "nvidia.com/gpu",
        "gpusPerNode": 2,
        "interconnect": "PCIe",
        "pricePerGPUHour": LIST_PRICES["H100-PCIe-80"].per_gpu_hour,
        "currency": "USD",
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    }
    assert pool.notes == ("nodes have taint team=ml:NoSchedule: add a toleration if Berth may use them",)
    assert pool.price_source.startswith("list price of")


def test_a_price_that_nobody_knows_stays_open() -> None:
    (pool,) = discover([node("h", "NVIDIA-H200")], {}).pools
    assert "pricePerGPUHour" not in pool.manifest["spec"]
    assert pool.notes[0].startswith("no list price is known for H200-SXM-141")
    (priced,) = discover([node("h", "NVIDIA-H200")], {"H200-SXM-141": Price("4.20", "EUR", "PerNode")}).pools
    spec = priced.manifest["spec"]
    assert (spec["pricePerGPUHour"], spec["currency"], spec["billing"]) == ("4.20", "EUR", "PerNode")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (node("x", "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", 56), "is partitioned (MIG)"),
        (node("x", "Tesla-T4-SHARED", 4), "is shared between pods"),
        (node("x", "NVIDIA-Z9"), "is not a GPU type that Berth knows"),
        (node("x", None, 8), "has no label nvidia.com/gpu.product"),
        (node("x", "NVIDIA-H200", 0), "has no GPUs by label"),
        (node("x", "NVIDIA-H200", labels={"nvidia.com/gpu.memory": "70000"}), "has 68.4 GiB by label"),
    ],
)
def test_leaves_out_what_cannot_be_served_on_and_says_why(raw: dict[str, Any], reason: str) -> None:
    found = discover([raw])
    assert not found.pools
    assert reason in found.left_out["x"]


def test_says_when_no_device_plugin_offers_the_gpus() -> None:
    (pool,) = discover([node("a", "NVIDIA-H100-80GB-HBM3", gpus=0)]).pools
    assert pool.notes == ("a: GPUs are not offered as nvidia.com/gpu (no device plugin, or DRA)",)


def test_pool_names_are_short_and_unique() -> None:
    names = {gpu: pool_name(gpu) for gpu in GPU_TYPES}
    assert (names["H100-SXM-80"], names["A100-SXM-40"], names["A100-SXM-80"]) == ("h100", "a100-40", "a100-80")
    assert (names["H100-PCIe-80"], names["A100-PCIe-40"], names["L40S-48"]) == ("h100-pcie", "a100-pcie-40", "l40s")
    assert len(set(names.values())) == len(names)


def test_list_prices_are_of_known_types() -> None:
    assert set(LIST_PRICES) <= set(GPU_TYPES)
    assert all(price.source for price in LIST_PRICES.values())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "must map GPU types to prices"),
        ({"H100": 2}, "H100: not a known GPU type: use one of H100-SXM-80"),
        ({"H100-SXM-80": -1}, "above 0 and at most 100000, got -1"),
        ({"H100-SXM-80": True}, "got True"),
        ({"H100-SXM-80": "cheap"}, "got 'cheap'"),
        ({"H100-SXM-80": float("nan")}, "got nan"),
        ({"H100-SXM-80": {"price": 2}}, "unknown field price"),
        ({"H100-SXM-80": {"pricePerGPUHour": 2, "currency": "dollars"}}, "three capital letters"),
        (
            {"H100-SXM-80": {"pricePerGPUHour": 2, "billing": "PerWeek"}},
            "billing must be one of PerGPU, PerNode, Reserved",
        ),
    ],
)
def test_refuses_wrong_price_tables(table: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_prices(table)


# --- command ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def nodes_file(tmp_path: Path) -> str:
    path = tmp_path / "nodes.json"
    items = [node("h1", "NVIDIA-H100-80GB-HBM3"), node("t", "Tesla-T4-SHARED", 4)]
    path.write_text(json.dumps({"kind": "List", "items": items}))
    return str(path)


def test_command_shows_a_table(nodes_file: str) -> None:
    result = CliRunner().invoke(main, ["pools", "discover", "-f", nodes_file])
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "NAME   GPU           LINK     NODES   GPUS    PRICE/GPU/H   PRICE FROM",
        "h100   H100-SXM-80   NVLink   1       1 x 8   3.99 USD      list price of Lambda, 2026-09-20",
        "left out t: Tesla-T4-SHARED is shared between pods (time-slicing or MPS): turn sharing off",
    ]


def test_command_writes_manifests_to_apply(nodes_file: str, tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text('H100-SXM-80: "2.49"\n')
    arguments = ["pools", "discover", "-f", nodes_file, "--prices", str(prices)]
    as_yaml = CliRunner().invoke(main, [*arguments, "-o", "yaml"])
    as_json = CliRunner().invoke(main, [*arguments, "-o", "json"])
    (manifest,) = yaml.safe_load_all(as_yaml.stdout)
    assert json.loads(as_json.stdout)["items"] == [manifest]
    assert parse_gpupool(manifest, known_fields_only=True).spec.price_per_gpu_hour == "2.49"
    assert "left out t" in as_yaml.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "neither JSON nor YAML"),
        ("[" * 9000, "neither JSON nor YAML"),
        ("[]", "holds no list of nodes"),
        ('{"items": [{"kind": "Pod"}]}', "holds no list of nodes"),
        ('{"items": [7]}', "holds no list of nodes"),
        (
            '{"kind": "Node", "metadata": {"name": "n"}, "status": {"capacity": {"nvidia.com/gpu": "many"}}}',
            "node n, resource nvidia.com/gpu: 'many' is not a Kubernetes quantity",
        ),
    ],
)
def test_command_refuses_other_files_without_a_traceback(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "nodes"
    path.write_text(text)
    result = CliRunner().invoke(main, ["pools", "discover", "-f", str(path)])
    assert result.exit_code == 1
    assert message in result.stderr
    assert isinstance(result.exception, SystemExit)


def test_command_takes_a_single_node_and_names_the_table_that_is_wrong(tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("H100: 2\n")
    text = json.dumps(node("h", "NVIDIA-H200"))
    assert "h200" in CliRunner().invoke(main, ["pools", "discover", "-f", "-"], input=text).stdout
    result = CliRunner().invoke(main, ["pools", "discover", "-f", "-", "--prices", str(prices)], input=text)
    assert result.exit_code == 1
    assert "prices.yaml: H100: not a known GPU type" in result.stderr
