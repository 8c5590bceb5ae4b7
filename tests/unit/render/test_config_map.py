from __future__ import annotations

import json
import re
from typing import Any

import pytest

from berth.controller.engine_files import engine_files
from berth.core.render import group_template, render_config_map, render_pods
from tests.unit.render import cases

MODEL_CONFIG = "models__tensorrt_llm__1__model.yaml"


def model_configuration(content: cases.Manifest) -> Any:
    return json.loads(render_config_map(cases.template(content))["data"][MODEL_CONFIG])


def mounted(pod: cases.Manifest, config_map: cases.Manifest) -> dict[str, str]:
    """What the container finds: text by path."""
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
    return {
        f"{mounts[volume['name']]}/{item['path']}": config_map["data"][item["key"]]
        for volume in pod["spec"]["volumes"]
        if "configMap" in volume
        for item in volume["configMap"]["items"]
    }


@pytest.mark.parametrize("name", cases.CASES)
def test_pods_mount_every_file_of_their_config_map_at_its_path(name: str) -> None:
    made = cases.template(cases.CASES[name])
    config_map = render_config_map(made)
    for pod in cases.pods(made):
        assert mounted(pod, config_map) == made.files
        maps = {volume["configMap"]["name"] for volume in pod["spec"]["volumes"] if "configMap" in volume}
        assert maps == {config_map["metadata"]["name"]}
    assert config_map["immutable"] is True


def test_the_engine_of_this_release_reaches_the_pod_whole() -> None:
    found = cases.deployment(cases.CASES["simulated-claim"])
    made = group_template(found, found.spec.fixed_allocations[0], cases.pool(), cases.IMAGE, engine_files())
    config_map = render_config_map(made)
    (pod,) = render_pods(made, cases.group(made))
    files = mounted(pod, config_map)
    assert set(engine_files()) < set(files)
    assert "/opt/berth/lib/berth/engine/contract.py" in files
    assert re.search(
        r"model_transaction_policy\s*{\s*decoupled:\s*true\s*}", files["/models/tensorrt_llm/config.pbtxt"]
    )
    assert all(re.fullmatch("[-._a-zA-Z0-9]{1,253}", key) for key in config_map["data"])
    # Room for the API server's limit of 1 MiB, names and metadata included.
    assert sum(len(key) + len(text.encode()) for key, text in config_map["data"].items()) < 900_000


def test_pytorch_gets_the_checkpoint_and_the_layout() -> None:
    content = model_configuration(cases.CASES["pytorch-claim"])
    assert content["engine"] == "tensorrt_llm"
    llm = content["llm"]
    assert llm["model"] == "/weights/llama-3.1-70b/fp8"
    assert (llm["backend"], llm["tensor_parallel_size"], llm["pipeline_parallel_size"]) == ("pytorch", 2, 1)
    assert (llm["max_batch_size"], llm["max_num_tokens"]) == (128, 8192)
    assert llm["kv_cache_config"]["dtype"] == "fp8"
    assert content["limits"] == {"max_input_tokens": 131072, "max_output_tokens": 1024}


def test_a_16_bit_kv_cache_is_left_to_the_checkpoint() -> None:
    content = cases.spec("pytorch", cases.CLAIM)
    del content["model"]["variants"][0]["kvPrecision"]
    assert model_configuration(content)["llm"]["kv_cache_config"]["dtype"] == "auto"


def test_a_hub_source_is_named_with_its_revision() -> None:
    llm = model_configuration(cases.CASES["pytorch-hub"])["llm"]
    assert (llm["model"], llm["revision"]) == ("example/Llama-3.1-70B-FP8", "0123abc")


def test_built_engines_keep_what_was_built_into_them() -> None:
    llm = model_configuration(cases.CASES["tensorrt-claim"])["llm"]
    assert llm["backend"] == "tensorrt"
    assert "enable_chunked_prefill" not in llm
    assert "dtype" not in llm["kv_cache_config"]


def test_ray_spans_the_nodes_with_as_many_gpus_on_each() -> None:
    content = model_configuration(cases.CASES["pytorch-ray-claim"])
    assert content["llm"]["orchestrator_type"] == "ray"
    assert content["llm"]["gpus_per_node"] == 8
    assert content["ray"] == {"port": 6379, "nodes": 2, "gpus_per_node": 8}
    assert "ray" not in model_configuration(cases.CASES["pytorch-claim"])


def test_the_longest_answer_is_left_to_the_engine_where_no_traffic_says_it() -> None:
    content = cases.spec("pytorch", cases.CLAIM)
    del content["traffic"]
    assert model_configuration(content)["limits"] == {"max_input_tokens": 131072}


def test_the_simulated_engine_knows_the_size_of_what_it_plays() -> None:
    """Llama 3.1 70B: 70.6 B parameters, 80 layers with 8 KV heads of 128."""
    content = model_configuration(cases.CASES["simulated-claim"])
    simulated = content["simulated"]
    assert content["engine"] == "simulated"
    assert simulated["parameters_b"] == pytest.approx(70.6, abs=0.1)
    assert simulated["active_parameters_b"] == simulated["parameters_b"]
    # FP8 body, 16 bit embedding and head of 128256 x 8192 each.
    assert simulated["weight_gib"] == pytest.approx((70.55e9 + 2 * 128256 * 8192) / 2**30, rel=0.002)
    assert simulated["kv_bytes_per_token"] == 2 * 80 * 8 * 128
    assert (simulated["gpu"], simulated["tensor_parallel"]) == ("H100-SXM-80", 2)


def test_a_mixture_of_experts_is_larger_than_what_one_token_touches() -> None:
    content = cases.spec("simulated", cases.CLAIM, 2)
    content["model"]["name"] = "mixtral-8x7b"
    simulated = model_configuration(content)["simulated"]
    assert simulated["parameters_b"] == pytest.approx(46.7, abs=0.1)
    assert simulated["active_parameters_b"] == pytest.approx(12.9, abs=0.1)
