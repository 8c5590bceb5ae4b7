"""The environment and the command line of a container, as Kubernetes defines them.

Sources: literal values, ConfigMap and Secret keys, the pod's own fields; `$(NAME)` is replaced by an earlier variable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from berth.local.kubelet.objects import Missing, References

_REFERENCE: Final = re.compile(r"\$(\$|\(([^)]*)\))")
_SUBSCRIPT: Final = re.compile(r"metadata\.(labels|annotations)\['([^']*)'\]")


async def container_environment(
    container: Mapping[str, Any], pod: Mapping[str, Any], addresses: Mapping[str, str], references: References
) -> dict[str, str]:
    """`envFrom` and `env`, resolved. `addresses` holds `podIP` and `hostIP`. Raises Missing."""
    values: dict[str, str] = {}
    for source in container.get("envFrom") or ():
        values |= await _all_keys(source, references)
    for variable in container.get("env") or ():
        if "valueFrom" in variable:
            value = await _value(variable["valueFrom"], pod, addresses, references)
        else:
            value = expand(variable.get("value", ""), values)
        if value is not None:
            values[variable["name"]] = value
    return values


def expand(text: str, values: Mapping[str, str]) -> str:
    """`$(NAME)` becomes the value, if there is one; `$$` is a dollar that starts no reference."""

    def replacement(match: re.Match[str]) -> str:
        return "$" if match[1] == "$" else values.get(match[2], match[0])

    return _REFERENCE.sub(replacement, text)


def expand_all(words: Sequence[str], values: Mapping[str, str]) -> list[str]:
    return [expand(word, values) for word in words]


def field(path: str, pod: Mapping[str, Any], addresses: Mapping[str, str]) -> str:
    """The downward API. Raises Missing for a field that it does not have."""
    if match := _SUBSCRIPT.fullmatch(path):
        return str((pod["metadata"].get(match[1]) or {}).get(match[2], ""))
    fields = {
        "metadata.name": pod["metadata"]["name"],
        "metadata.namespace": pod["metadata"]["namespace"],
        "metadata.uid": pod["metadata"]["uid"],
        "spec.nodeName": pod["spec"]["nodeName"],
        "spec.serviceAccountName": pod["spec"].get("serviceAccountName", ""),
        "status.podIP": addresses["podIP"],
        "status.podIPs": addresses["podIP"],
        "status.hostIP": addresses["hostIP"],
        "status.hostIPs": addresses["hostIP"],
    }
    if path not in fields:
        raise Missing(f"local nodes do not know the field {path}: use one of {', '.join(fields)}")
    return str(fields[path])


async def _all_keys(source: Mapping[str, Any], references: References) -> dict[str, str]:
    prefix = source.get("prefix", "")
    found: dict[str, bytes] = {}
    if named := source.get("configMapRef"):
        found = await references.config_map(named["name"], optional=named.get("optional", False))
    elif named := source.get("secretRef"):
        found = await references.secret(named["name"], optional=named.get("optional", False))
    return {prefix + key: value.decode(errors="replace") for key, value in found.items()}


async def _value(
    source: Mapping[str, Any], pod: Mapping[str, Any], addresses: Mapping[str, str], references: References
) -> str | None:
    if "fieldRef" in source:
        return field(source["fieldRef"]["fieldPath"], pod, addresses)
    for kind, read in (("configMapKeyRef", references.config_map), ("secretKeyRef", references.secret)):
        if named := source.get(kind):
            optional = named.get("optional", False)
            found = await read(named["name"], optional=optional)
            if named["key"] in found:
                return found[named["key"]].decode(errors="replace")
            if optional:
                return None
            what = "ConfigMap" if kind == "configMapKeyRef" else "Secret"
            raise Missing(f"couldn't find key {named['key']} in {what} {pod['metadata']['namespace']}/{named['name']}")
    raise Missing(f"local nodes do not know the source {', '.join(source)} of environment variables")
