"""Any text the CRD admits, in any field: pods stay restricted, ours stays ours, the text turns up only where it may."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from berth.core.render import group_template, render_pods
from tests.unit.render import cases
from tests.unit.render.restricted import violations

HOSTILE = (
    "$(id)",
    "`id`",
    "; rm -rf /",
    "$(BERTH_POD_IP)",
    "' || true #",
    '"\n- name: x',
    "{{ .Values }}",
    "\u202e",
    "--drain",
)

free_text = st.one_of(
    st.sampled_from(HOSTILE), st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60)
)
dns_name = st.from_regex("[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
segment = st.from_regex("[A-Za-z0-9_][-A-Za-z0-9_.]{0,12}", fullmatch=True)
label_value = st.from_regex("([A-Za-z0-9]([-A-Za-z0-9_.]{0,20}[A-Za-z0-9])?)?", fullmatch=True)
user_key = st.builds(
    "example.com/{}".format, st.from_regex("[A-Za-z0-9]([-A-Za-z0-9_.]{0,20}[A-Za-z0-9])?", fullmatch=True)
)
variable_name = st.from_regex("[A-Z_][A-Z0-9_]{0,12}", fullmatch=True).map("MY_{}".format)

sources = st.one_of(
    st.builds(
        lambda claim, path: {"persistentVolumeClaim": {"claimName": claim, "path": "/".join(path)}},
        dns_name,
        st.lists(segment, min_size=1, max_size=4),
    ),
    st.builds(
        lambda owner, name, revision, secret: {
            "huggingFace": {"repository": f"{owner}/{name}", "revision": revision, "tokenSecretName": secret}
        },
        segment.map("o{}".format),
        segment.map("n{}".format),
        segment.map("r{}".format),
        dns_name,
    ),
)
pods = st.fixed_dictionaries(
    {},
    optional={
        "labels": st.dictionaries(user_key, label_value, max_size=3),
        "annotations": st.dictionaries(user_key, free_text, max_size=3),
        "env": st.dictionaries(variable_name, free_text, max_size=3).map(
            lambda found: [{"name": name, "value": value} for name, value in found.items()]
        ),
        "tolerations": st.lists(
            st.builds(lambda key, value: {"key": key, "value": value}, user_key, label_value), max_size=2
        ),
        "priorityClassName": dns_name,
        "schedulerName": dns_name,
        "runtimeClassName": dns_name,
        "imagePullSecrets": dns_name.map(lambda name: [{"name": name}]),
        "resources": st.fixed_dictionaries({"requests": st.fixed_dictionaries({"cpu": st.integers(1, 99)})}),
    },
)


@st.composite
def specs(draw: st.DrawFn) -> cases.Manifest:
    backend = draw(st.sampled_from(["pytorch", "tensorrt", "simulated"]))
    source = draw(sources)
    tensor, pipeline = draw(st.sampled_from([(1, 1), (4, 1), (8, 2)]))
    if backend == "tensorrt" and "persistentVolumeClaim" not in source:
        source = cases.CLAIM
    launchers = [cases.SSH] if backend == "tensorrt" else [cases.SSH, {"launcher": "Ray"}]
    engine = {"multiNode": draw(st.sampled_from(launchers))}
    return cases.spec(backend, source, tensor, pipeline, pod=draw(pods), engine=engine)


def strings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every string of a manifest with its path; keys of maps count as well."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{path}.<key>", key
            yield from strings(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner, f"{path}[]")
    elif isinstance(value, str):
        yield path, value


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(specs())
def test_pods_stay_restricted_and_ours_whatever_the_user_writes(content: cases.Manifest) -> None:
    made = cases.template(content)
    plain = cases.template(cases.spec(made.backend, cases.CLAIM, *_shape(made), engine=content["engine"]))
    for pod, bare in zip(cases.pods(made), cases.pods(plain), strict=True):
        assert violations(pod) == []
        ours = {key: value for key, value in bare["metadata"]["labels"].items() if "hash" not in key}
        assert ours.items() <= pod["metadata"]["labels"].items()
        variables = pod["spec"]["containers"][0]["env"]
        assert len({variable["name"] for variable in variables}) == len(variables)
        for variable in bare["spec"]["containers"][0]["env"]:
            if variable["name"] != "HF_HUB_OFFLINE":
                assert variable in variables
        assert pod["spec"]["containers"][0]["command"] == ["python3", "-m", "berth.engine.launcher"]
        json.dumps(pod)


def _shape(made: Any) -> tuple[int, int]:
    return made.allocation.tensor_parallel, made.allocation.pipeline_parallel


MARK = "zq7{}zq"
ALLOWED = {
    "label": r"\.metadata\.labels\..*",
    "label-key": r"\.metadata\.labels\.<key>",
    "annotation": r"\.metadata\.annotations\..*",
    "env": r"\.spec\.containers\[\]\.env\[\]\.value",
    "env-name": r"\.spec\.containers\[\]\.(env\[\]\.name|args\[\])",
    "claim": r"\.spec\.volumes\[\]\.persistentVolumeClaim\.claimName",
    "path": r"\.data\.models__tensorrt_llm__1__model\.yaml",
    "repository": r"\.data\.models__tensorrt_llm__1__model\.yaml",
    "revision": r"\.data\.models__tensorrt_llm__1__model\.yaml",
    "token": r"\.spec\.containers\[\]\.env\[\]\.valueFrom\.secretKeyRef\.name",
    "ssh": r"\.spec\.volumes\[\]\.secret\.secretName",
    "priority": r"\.spec\.priorityClassName",
    "scheduler": r"\.spec\.schedulerName",
    "runtime": r"\.spec\.runtimeClassName",
    "pull": r"\.spec\.imagePullSecrets\[\]\.name",
    "toleration": r"\.spec\.tolerations\[\]\.key",
    "image": r"\.(spec\.containers\[\]\.image|metadata\.annotations\.berth\.dev/image)",
}


def test_each_text_of_the_user_reaches_only_the_fields_it_is_meant_for() -> None:
    """Every text field carries a mark of its own; a mark found anywhere but where it may be is an injection to come."""
    mark = {kind: MARK.format(kind.replace("-", "")) for kind in ALLOWED}
    claim = {"persistentVolumeClaim": {"claimName": mark["claim"], "path": mark["path"]}}
    hub = {
        "huggingFace": {
            "repository": f"owner/{mark['repository']}",
            "revision": mark["revision"],
            "tokenSecretName": mark["token"],
        }
    }
    additions = {
        "labels": {f"example.com/{mark['label-key']}": mark["label"]},
        "annotations": {"example.com/note": mark["annotation"]},
        "env": [{"name": mark["env-name"], "value": mark["env"]}],
        "tolerations": [{"key": mark["toleration"], "operator": "Exists"}],
        "priorityClassName": mark["priority"],
        "schedulerName": mark["scheduler"],
        "runtimeClassName": mark["runtime"],
        "imagePullSecrets": [{"name": mark["pull"]}],
    }
    engine = {"multiNode": {"launcher": "SSH", "sshSecretName": mark["ssh"]}}
    image = f"registry.example/{mark['image']}:1"
    seen = set()
    for backend, source in (("pytorch", claim), ("pytorch", hub), ("tensorrt", claim), ("simulated", claim)):
        made = cases.template(cases.spec(backend, source, 8, 2, engine=engine, pod=additions), image=image)
        for manifest in [*cases.everything(made), *cases.of_deployment(made)]:
            for path, text in strings(manifest):
                for kind, found in mark.items():
                    if found in text:
                        seen.add(kind)
                        assert re.fullmatch(ALLOWED[kind], path), f"{kind} in {manifest['kind']}{path}"
    assert seen == set(ALLOWED)


@given(st.sampled_from(HOSTILE) | free_text)
def test_an_environment_variable_keeps_its_text_and_never_becomes_one_of_ours(value: str) -> None:
    found = cases.deployment(cases.spec("pytorch", cases.CLAIM, 2, pod={"env": [{"name": "MY_TEXT", "value": value}]}))
    made = group_template(found, found.spec.fixed_allocations[0], cases.pool(), cases.IMAGE, cases.ENGINE_FILES)
    (pod,) = render_pods(made, cases.group(made))
    values = {variable["name"]: variable.get("value") for variable in pod["spec"]["containers"][0]["env"]}
    assert values.pop("MY_TEXT") == value
    assert values["PYTHONPATH"] == "/opt/berth/lib"
