from __future__ import annotations

import json
import re
from typing import Any

import pytest

from berth import labels
from berth.core.render import DeploymentRef, command, render_disruption_budget, render_pods, render_services, timing
from tests.unit.render import cases
from tests.unit.render.restricted import violations

every_case = pytest.mark.parametrize("name", cases.CASES)


def container(pod: cases.Manifest) -> Any:
    (only,) = pod["spec"]["containers"]
    return only


def environment(pod: cases.Manifest) -> dict[str, Any]:
    return {variable["name"]: variable.get("value", variable.get("valueFrom")) for variable in container(pod)["env"]}


def launched(pod: cases.Manifest) -> list[str]:
    """What the launcher starts."""
    arguments = container(pod)["args"]
    return arguments[arguments.index("--") + 1 :] if "--" in arguments else []


def option(argv: list[str], name: str) -> str:
    (found,) = {text.partition("=")[2] for text in argv if text.startswith(f"{name}=")}
    return found


def amount(text: str) -> int:
    number, unit = re.fullmatch("([0-9]+)([MG]i)", text).groups()  # type: ignore[union-attr]
    return int(number) * {"Mi": 2**20, "Gi": 2**30}[unit]


@every_case
def test_every_pod_passes_the_restricted_pod_security_standard(name: str) -> None:
    assert [violations(pod) for pod in cases.pods(cases.template(cases.CASES[name]))] == [[]] * cases.template(
        cases.CASES[name]
    ).members


def test_the_oracle_for_restricted_pods_refuses_what_the_standard_forbids() -> None:
    (pod,) = cases.pods(cases.template(cases.CASES["pytorch-claim"]))
    broken: list[tuple[tuple[Any, ...], Any]] = [
        (("spec", "hostNetwork"), True),
        (("spec", "securityContext"), {}),
        (("spec", "securityContext", "runAsUser"), 0),
        (("spec", "volumes", 0), {"name": "library", "hostPath": {"path": "/"}}),
        (("spec", "containers", 0, "securityContext", "privileged"), True),
        (("spec", "containers", 0, "securityContext", "allowPrivilegeEscalation"), True),
        (("spec", "containers", 0, "securityContext", "capabilities"), {"drop": ["ALL"], "add": ["IPC_LOCK"]}),
        (("spec", "containers", 0, "ports", 0, "hostPort"), 8000),
        (("spec", "containers", 0, "startupProbe", "httpGet", "host"), "example.com"),
    ]
    for path, value in broken:
        copy = json.loads(json.dumps(pod))
        place = copy
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        assert violations(copy), path


@every_case
def test_no_pod_runs_a_shell(name: str) -> None:
    for pod in cases.pods(cases.template(cases.CASES[name])):
        argv = [*container(pod)["command"], *container(pod)["args"]]
        hooks = [hook["exec"]["command"] for hook in container(pod).get("lifecycle", {}).values()]
        words = {
            word.rpartition("/")[2] for text in [*argv, *(w for hook in hooks for w in hook)] for word in text.split()
        }
        assert not words & {"sh", "bash", "dash", "ash", "zsh", "busybox", "env", "eval", "-c"}


@every_case
def test_nobody_but_the_canary_gate_says_that_a_pod_serves(name: str) -> None:
    assert all(labels.SERVING not in pod["metadata"]["labels"] for pod in cases.pods(cases.template(cases.CASES[name])))


@every_case
def test_everything_is_json_with_the_same_bytes_every_time(name: str) -> None:
    once, again = (json.dumps(cases.everything(cases.template(cases.CASES[name]))) for _ in range(2))
    assert once == again


# --- groups -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("tensor", "pipeline", "per_node", "members"),
    [
        (1, 1, 8, 1),
        (8, 1, 8, 1),
        (2, 2, 4, 1),
        (8, 2, 8, 2),
        (4, 4, 8, 2),
        (2, 2, 2, 2),
        (2, 3, 4, 3),
        (4, 6, 8, 3),
        (1, 6, 4, 2),
    ],
)
def test_a_copy_takes_one_pod_or_as_few_whole_nodes_as_its_stages_divide_into(
    tensor: int, pipeline: int, per_node: int, members: int
) -> None:
    made = cases.template(cases.spec("pytorch", cases.CLAIM, tensor, pipeline), gpusPerNode=per_node)
    gpus = [int(container(pod)["resources"]["limits"]["nvidia.com/gpu"]) for pod in cases.pods(made)]
    assert made.members == members
    assert gpus == [tensor * pipeline // members] * members
    assert all(count <= per_node and count % tensor == 0 for count in gpus)


def test_a_group_of_one_pod_restarts_in_place_and_larger_ones_never() -> None:
    assert [pod["spec"]["restartPolicy"] for pod in cases.pods(cases.template(cases.CASES["pytorch-claim"]))] == [
        "Always"
    ]
    several = cases.pods(cases.template(cases.CASES["pytorch-ray-claim"]))
    assert [pod["spec"]["restartPolicy"] for pod in several] == ["Never", "Never"]


def test_only_the_first_member_leads() -> None:
    pods = cases.pods(cases.template(cases.CASES["pytorch-ray-claim"]))
    assert [pod["metadata"]["labels"][labels.MEMBER] for pod in pods] == [labels.LEADER, labels.WORKER]
    assert [option(container(pod)["args"], "--role") for pod in pods] == ["leader", "worker"]


def test_members_have_names_that_the_group_service_resolves_before_they_are_ready() -> None:
    made = cases.template(cases.CASES["pytorch-ray-claim"])
    manifests = cases.everything(made)
    (service,) = (manifest for manifest in manifests if manifest["kind"] == "Service")
    leader, worker = (manifest for manifest in manifests if manifest["kind"] == "Pod")
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["clusterIP"] == "None"
    for pod in (leader, worker):
        assert pod["spec"]["hostname"] == pod["metadata"]["name"]
        assert pod["spec"]["subdomain"] == service["metadata"]["name"]
        assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    address = f"{leader['spec']['hostname']}.{leader['spec']['subdomain']}"
    assert option(container(worker)["args"], "--leader") == address
    assert f"--address={address}:6379" in launched(worker)


def test_the_next_incarnation_resolves_none_of_the_last_ones_names() -> None:
    made = cases.template(cases.CASES["pytorch-ray-claim"])
    first, second = (
        cases.render_pods(made, cases.stored(cases.render_replica_group(made, made.reference, 0, number)))
        for number in (7, 8)
    )
    for old, new in zip(first, second, strict=True):
        for field in ("hostname", "subdomain"):
            assert old["spec"][field] != new["spec"][field]


def test_pods_take_image_and_config_map_from_their_group_not_from_this_release() -> None:
    old = cases.template(cases.CASES["pytorch-claim"])
    replica_group = cases.group(old)
    new = cases.template(cases.CASES["pytorch-claim"], image="registry.example/tritonserver:27.01")
    assert render_pods(new, replica_group) == render_pods(old, replica_group)


def test_pods_belong_to_their_replica_group() -> None:
    made = cases.template(cases.CASES["simulated-several-pods"])
    replica_group = cases.group(made)
    for pod in render_pods(made, replica_group):
        (owner,) = pod["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == (
            "ReplicaGroup",
            replica_group["metadata"]["uid"],
            True,
        )


# --- scheduling -------------------------------------------------------------------------------------------------------
def test_planned_pods_are_pinned_and_larger_groups_wait_until_all_are_there() -> None:
    pods = cases.pods(cases.template(cases.CASES["pytorch-ray-claim"]), ["node-b", "node-a"])
    for pod, node in zip(pods, ("node-b", "node-a"), strict=True):
        terms = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        (field,) = terms["nodeSelectorTerms"][0]["matchFields"]
        assert field == {"key": "metadata.name", "operator": "In", "values": [node]}
        assert pod["spec"]["schedulingGates"] == [{"name": labels.SCHEDULING_GATE}]
    (alone,) = cases.pods(cases.template(cases.CASES["pytorch-claim"]))
    assert "affinity" in alone["spec"]
    assert "schedulingGates" not in alone["spec"]


def test_pods_without_a_plan_are_left_to_the_scheduler_which_spreads_the_leaders() -> None:
    content = cases.spec("pytorch", cases.CLAIM, 8, 2, replicaGroups={"spread": {"whenUnsatisfiable": "Require"}})
    leader, worker = cases.pods(cases.template(content), ())
    for pod in (leader, worker):
        assert not {"affinity", "schedulingGates"} & set(pod["spec"])
        assert pod["spec"]["nodeSelector"] == cases.H100["nodeSelector"]
    (constraint,) = leader["spec"]["topologySpreadConstraints"]
    assert constraint["whenUnsatisfiable"] == "DoNotSchedule"
    assert constraint["labelSelector"]["matchLabels"].items() <= leader["metadata"]["labels"].items()
    assert "topologySpreadConstraints" not in worker["spec"]


def test_a_plan_must_name_a_node_per_member() -> None:
    with pytest.raises(ValueError, match="1 planned nodes for 2 members"):
        cases.pods(cases.template(cases.CASES["pytorch-ray-claim"]), ["node-a"])


def test_silent_nodes_are_tolerated_without_limit_whatever_else_is_tolerated() -> None:
    """The first toleration that matches a taint decides for how long."""
    (pod,) = cases.pods(cases.template(cases.CASES["pytorch-everything"]))
    for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
        first = next(
            t for t in pod["spec"]["tolerations"] if t.get("key") in (None, key) and t["effect"] == "NoExecute"
        )
        assert "tolerationSeconds" not in first


# --- life cycle -------------------------------------------------------------------------------------------------------
@every_case
def test_a_stop_in_good_order_is_never_cut_short(name: str) -> None:
    for pod in cases.pods(cases.template(cases.CASES[name])):
        arguments, grace = container(pod)["args"], pod["spec"]["terminationGracePeriodSeconds"]
        hook = container(pod)["lifecycle"]["preStop"]["exec"]["command"]
        exit_timeout = int(option(arguments, "--exit-timeout"))
        needed = int(option(hook, "--timeout")) + int(option(arguments, "--drain-timeout")) + exit_timeout
        assert needed + 5 <= grace
        if pod["metadata"]["labels"][labels.MEMBER] == labels.LEADER:
            assert int(option(launched(pod), "--exit-timeout-secs")) < exit_timeout


def test_a_connection_outlives_the_longest_answer_that_began_on_it() -> None:
    made = cases.template(cases.spec("pytorch", cases.CLAIM, replicaGroups={"drainTimeout": "20m"}))
    (pod,) = cases.pods(made)
    assert int(option(launched(pod), "--grpc-max-connection-age-grace")) >= 20 * 60 * 1000
    assert 0 < int(option(launched(pod), "--grpc-max-connection-age")) <= 5 * 60 * 1000


def test_the_drain_lasts_as_long_as_the_longest_answer_may_take() -> None:
    def drain(content: cases.Manifest) -> int:
        return timing.drain_seconds(cases.deployment(content).spec)

    assert drain(cases.spec("pytorch", cases.CLAIM)) == 77  # 1.5 x 1024 tokens x 50 ms
    assert drain(cases.spec("pytorch", cases.CLAIM, replicaGroups={"drainTimeout": "90s"})) == 90
    no_objective = cases.spec("pytorch", cases.CLAIM)
    del no_objective["objectives"]
    assert drain(no_objective) == 300


@every_case
def test_probes_ask_the_launcher_which_knows_whether_tokens_come_out(name: str) -> None:
    for pod in cases.pods(cases.template(cases.CASES[name])):
        (port,) = (port["containerPort"] for port in container(pod)["ports"] if port["name"] == "launcher")
        assert port == labels.PORT_LAUNCHER
        paths = {
            kind: container(pod)[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")
        }
        assert paths == {"startup": "/startupz", "readiness": "/readyz", "liveness": "/livez"}
        assert all(container(pod)[f"{kind}Probe"]["httpGet"]["port"] == "launcher" for kind in paths)


def test_downloads_get_more_time_to_start_than_volumes() -> None:
    on_volume, download = (
        container(cases.pods(cases.template(cases.CASES[f"pytorch-{kind}"]))[0]) for kind in ("claim", "hub")
    )
    assert on_volume["startupProbe"]["failureThreshold"] < download["startupProbe"]["failureThreshold"]


# --- weights ----------------------------------------------------------------------------------------------------------
def test_weights_on_a_claim_are_read_only_and_the_hub_is_out_of_reach() -> None:
    (pod,) = cases.pods(cases.template(cases.CASES["pytorch-claim"]))
    volume = next(volume for volume in pod["spec"]["volumes"] if volume["name"] == "weights")
    mount = next(mount for mount in container(pod)["volumeMounts"] if mount["name"] == "weights")
    assert volume["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    assert mount["readOnly"] is True
    assert environment(pod)["HF_HUB_OFFLINE"] == "1"


def test_a_hub_token_is_a_reference_to_the_users_secret() -> None:
    (pod,) = cases.pods(cases.template(cases.CASES["pytorch-hub"]))
    assert environment(pod)["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert "HF_HUB_OFFLINE" not in environment(pod)


@pytest.mark.parametrize("name", ["simulated-claim", "simulated-hub"])
def test_the_simulated_engine_needs_neither_weights_nor_secrets(name: str) -> None:
    (pod,) = cases.pods(cases.template(cases.CASES[name]))
    assert {volume["name"] for volume in pod["spec"]["volumes"]} == {"library", "repository", "shm", "tmp"}
    assert "HF_TOKEN" not in environment(pod)


# --- commands ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["pytorch-claim", "tensorrt-claim", "tensorrt-one-gpu"])
def test_one_pod_runs_one_triton_whose_engine_spawns_its_ranks(name: str) -> None:
    (pod,) = cases.pods(cases.template(cases.CASES[name]))
    argv = launched(pod)
    assert argv[0] == command.TRITON
    assert argv.count(command.TRITON) == 1


def test_over_ssh_every_pod_offers_its_gpus_and_the_key_is_the_users() -> None:
    leader, *workers = cases.pods(cases.template(cases.CASES["pytorch-ssh-claim"]))
    argv = launched(leader)
    hosts = argv[argv.index("--host") + 1].split(",")
    assert hosts == [f"{pod['spec']['hostname']}.{pod['spec']['subdomain']}:8" for pod in (leader, *workers)]
    assert argv[argv.index("-n") + 1] == "16"
    for pod in (leader, *workers):
        secret = next(volume["secret"] for volume in pod["spec"]["volumes"] if volume["name"] == "ssh")
        assert secret["secretName"] == "group-ssh"
        assert pod["spec"]["securityContext"]["fsGroup"] == 10001
    assert {launched(pod)[0] for pod in workers} == {"/usr/sbin/sshd"}


def test_ranks_on_other_pods_get_the_environment_but_not_the_leaders_address() -> None:
    leader, *_ = cases.pods(cases.template(cases.CASES["tensorrt-ssh-claim"]))
    argv = launched(leader)
    handed_on = {argv[index + 1] for index, word in enumerate(argv) if word == "-x"}
    assert set(environment(leader)) - handed_on == {"BERTH_POD_IP"}


@pytest.mark.parametrize("name", ["pytorch-ssh-claim", "tensorrt-ssh-claim"])
def test_what_trtllm_llmapi_launch_splits_at_blanks_has_none(name: str) -> None:
    leader, *_ = cases.pods(cases.template(cases.CASES[name]))
    argv = launched(leader)
    started = argv[argv.index("trtllm-llmapi-launch") + 1 :]
    assert started[0] == command.TRITON
    assert all(re.fullmatch(r"[-A-Za-z0-9/=_.,]+", word) for word in started)


def test_workers_of_the_simulated_engine_only_join() -> None:
    leader, worker = cases.pods(cases.template(cases.CASES["simulated-several-pods"]))
    assert launched(leader)[0] == command.TRITON
    assert launched(worker) == []


# --- amounts ----------------------------------------------------------------------------------------------------------
def test_shared_memory_grows_with_the_gpus_that_talk_through_it() -> None:
    def size(made: Any) -> int:
        (pod, *_) = cases.pods(made)
        (volume,) = (volume["emptyDir"] for volume in pod["spec"]["volumes"] if volume["name"] == "shm")
        assert volume["medium"] == "Memory"
        return amount(volume["sizeLimit"])

    sizes = [size(cases.template(cases.spec("pytorch", cases.CLAIM, *shape))) for shape in ((1,), (2,), (8,), (8, 2))]
    assert sizes == sorted(set(sizes))
    assert sizes[0] >= 2 * 2**30


def test_requests_follow_the_gpus_unless_the_user_says_otherwise() -> None:
    (pod,) = cases.pods(cases.template(cases.spec("pytorch", cases.CLAIM, 4)))
    assert container(pod)["resources"] == {
        "limits": {"nvidia.com/gpu": "4"},
        "requests": {"cpu": "12", "memory": "128Gi", "nvidia.com/gpu": "4"},
    }
    (pod,) = cases.pods(
        cases.template(cases.spec("pytorch", cases.CLAIM, 4, pod={"resources": {"limits": {"memory": "64Gi"}}}))
    )
    assert container(pod)["resources"]["requests"]["memory"] == "64Gi"


# --- deployment -------------------------------------------------------------------------------------------------------
def test_services_select_leaders_that_serve_by_the_deployments_uid() -> None:
    reference = DeploymentRef("llama-70b", "serving", "uid-1")
    plain, headless = render_services(reference)
    selector = {labels.DEPLOYMENT_UID: "uid-1", labels.MEMBER: labels.LEADER, labels.SERVING: "true"}
    assert plain["spec"]["selector"] == headless["spec"]["selector"] == selector
    assert "clusterIP" not in plain["spec"]
    assert headless["spec"]["clusterIP"] == "None"
    assert [(port["name"], port["port"]) for port in plain["spec"]["ports"]] == [("http", 8000), ("grpc", 8001)]


def test_the_disruption_budget_can_never_be_met_by_pods() -> None:
    budget = render_disruption_budget(DeploymentRef("llama-70b", "serving", "uid-1"))["spec"]
    assert budget["minAvailable"] == 2**31 - 1
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    assert budget["selector"] == {"matchLabels": {labels.DEPLOYMENT_UID: "uid-1"}}
