"""The cluster of the person who types: whose, which namespace, and refusals in words that say what to do.

Reading goes through Berth's own client, at a person's pace. A credential plugin of the kubeconfig runs as it does for
kubectl; the operator itself refuses those.
"""

from __future__ import annotations

import asyncio
import difflib
import functools
import inspect
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from berth.kube.client import KubeClient

T = TypeVar("T")
Object = dict[str, Any]
_Command = Callable[..., Any]

COMPLETION_SECONDS = 2.0
LEADER_ATTEMPTS = 16
"""Of two replicas each answers with even odds: that all of these meet the standby has odds of 1 in 65,536."""
_SERVICE = re.compile("([a-z0-9][-a-z0-9]{0,62})/([a-z][-a-z0-9]{0,62})")
"""What status may say of a Service: nothing else becomes part of a path."""
UNKNOWN_KIND = ("404 page not found", "could not find the requested resource")
"""What an API server says of a kind that is not installed, and never of an object that is not there."""
_NAME = re.compile("[a-z0-9](?:[-.a-z0-9]{0,251}[a-z0-9])?")
"""What can be the name of an object."""
NEAR = 3
"""Names that are suggested where one is not found."""


@dataclass(frozen=True)
class Where:
    """What the options of every such command say."""

    kubeconfig: str
    context: str
    namespace: str

    def run(self, work: Callable[[Cluster], Awaitable[T]]) -> T:
        """The result of `work`; what goes wrong ends the command in words for a person."""
        from kubernetes.aio.client import ApiClient

        from berth.kube import auth
        from berth.kube.client import KubeClient

        async def main() -> T:
            configuration = await auth.configuration(self.kubeconfig, self.context, plugins=True)
            async with ApiClient(configuration) as api:
                namespace = self.namespace or auth.namespace(self.kubeconfig, self.context) or "default"
                if not _NAME.fullmatch(namespace):
                    raise Told(f"{namespace!r} cannot be a namespace: names are of a-z, 0-9 and -")
                return await work(Cluster(KubeClient(api, user_agent="kubectl-berth"), namespace))

        with explained():
            return asyncio.run(main())


def bundled(
    keyword: str, make: Callable[..., Any], *options: Callable[[_Command], _Command]
) -> Callable[[_Command], _Command]:
    """A decorator that adds `options`; the command gets `make` of their values as its argument `keyword`."""
    names = list(inspect.signature(make).parameters)

    def decorate(command: _Command) -> _Command:
        @functools.wraps(command)
        def gather(*arguments: Any, **given: Any) -> Any:
            made = make(**{name: given.pop(name) for name in names})
            return command(*arguments, **given, **{keyword: made})

        decorated: _Command = gather
        for option in options:
            decorated = option(decorated)
        return decorated

    return decorate


def _where(kubeconfig: str | None, context: str, namespace: str) -> Where:
    path = kubeconfig or str(Path.home() / ".kube" / "config")
    in_pod = not kubeconfig and not Path(path).exists() and "KUBERNETES_SERVICE_HOST" in os.environ
    return Where("" if in_pod else path, context, namespace)


cluster_options = bundled(
    "where",
    _where,
    click.option("--context", default="", help="Context of the kubeconfig."),
    click.option("--kubeconfig", envvar="KUBECONFIG", help="By default ~/.kube/config."),
    click.option("-n", "--namespace", default="", help="By default that of the context."),
)
"""Adds --kubeconfig, --context and --namespace; the command gets them as `where`."""
form_option = click.option(
    "-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", show_default=True
)


def _names(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Deployments for the shell's completion; nothing at all where anything is wrong."""
    given = {name: context.params.get(name) or "" for name in ("kubeconfig", "context", "namespace")}
    try:
        found = _where(given["kubeconfig"] or os.environ.get("KUBECONFIG"), given["context"], given["namespace"]).run(
            lambda cluster: asyncio.wait_for(cluster.deployments(), COMPLETION_SECONDS)
        )
    except (click.ClickException, TimeoutError):
        return []
    return [name for each in found if (name := str(each["metadata"]["name"])).startswith(incomplete)]


deployment_argument = click.argument("name", shell_complete=_names)
"""Name of an LLMDeployment."""


class Cluster:
    """Objects as the person may see them, all in one namespace."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        self.client = client
        self.namespace = namespace

    async def deployment(self, name: str) -> Object:
        """Raises Unhelped with names near it where there is none of that name."""
        from berth.kube.errors import NotFound
        from berth.kube.kinds import LLM_DEPLOYMENT

        if not name:
            raise Told("name a deployment: kubectl get llmd lists them")
        if _NAME.fullmatch(name):
            with suppress(NotFound):
                return await self.client.get(LLM_DEPLOYMENT, self.namespace, name)
        listing = await self.client.list(LLM_DEPLOYMENT, self.namespace)  # says so where the kind is unknown
        known = [str(each["metadata"]["name"]) for each in listing.items]
        raise Told(_no_such(name, self.namespace, known))

    async def deployments(self, *, everywhere: bool = False) -> list[Object]:
        from berth.kube.kinds import LLM_DEPLOYMENT

        return list((await self.client.list(LLM_DEPLOYMENT, None if everywhere else self.namespace)).items)

    async def currency(self, pool: str) -> str:
        """Sign or word for the money of a pool; empty where the person may not read pools."""
        from berth.errors import BerthError
        from berth.kube.kinds import GPU_POOL

        try:
            found = await self.client.get(GPU_POOL, None, pool) if pool else {"spec": {}}
        except BerthError:
            return ""
        currency = str(found["spec"].get("currency", "USD"))
        return "$" if currency == "USD" else currency

    async def live(self, deployments: Iterable[Object], missing: list[str] | None = None) -> dict[str, Object]:
        """Live figures by UID, as far as they can be had; why not is added to `missing`."""
        from berth.errors import BerthError
        from berth.live import MOST_ASKED

        by_service: dict[tuple[str, str], list[str]] = {}
        for each in deployments:
            service = _SERVICE.fullmatch(str((each.get("status") or {}).get("live", "")))
            if service is not None:
                by_service.setdefault((service[1], service[2]), []).append(str(each["metadata"]["uid"]))
        if not by_service and missing is not None:
            missing.append("the operator serves none")
        told: dict[str, Object] = {}
        for (namespace, name), uids in by_service.items():
            try:
                for start in range(0, len(uids), MOST_ASKED):
                    answer = await self._ask_leader(namespace, name, uids[start : start + MOST_ASKED])
                    told |= {each["uid"]: each for each in answer["deployments"]}
            except BerthError as error:
                if missing is not None:
                    missing.append(str(error))
        return told

    async def _ask_leader(self, namespace: str, service: str, uids: list[str]) -> Object:
        """The proxy picks any replica of the operator, and only the leader measures: ask until it is that one."""
        from berth.errors import Transient
        from berth.kube.errors import TooManyRequests
        from berth.live import NOT_LEADING, PATH

        query = [("uid", uid) for uid in uids]
        for _ in range(LEADER_ATTEMPTS - 1):
            try:
                return await self.client.through_service(namespace, service, "live", PATH, query)
            except TooManyRequests:
                continue  # the client itself waits as long as it was asked to
            except Transient as error:
                if NOT_LEADING not in str(error):
                    raise
        return await self.client.through_service(namespace, service, "live", PATH, query)

    async def free_gpus(self, pool: str) -> int | None:
        """Free GPUs of a pool; None where the person may not read pools, or nobody counted."""
        from berth.errors import BerthError
        from berth.kube.kinds import GPU_POOL

        try:
            found = await self.client.get(GPU_POOL, None, pool) if pool else {}
        except BerthError:
            return None
        free = ((found.get("status") or {}).get("gpus") or {}).get("free")
        return int(free) if free is not None else None


def pool_of(deployment: Object) -> str:
    """Where it runs, empty if nowhere."""
    allocations = ((deployment.get("status") or {}).get("placement") or {}).get("allocations") or ()
    return str(allocations[0]["pool"]) if allocations else ""


class Told(Exception):
    """The message is all there is to say."""


def _no_such(name: str, namespace: str, known: list[str]) -> str:
    if not known:
        return f"there is no LLMDeployment in namespace {namespace}: choose another with -n"
    near = difflib.get_close_matches(name, known, NEAR, 0.4) or sorted(known)[:NEAR]
    more = f" (of {len(known)})" if len(known) > len(near) else ""
    return f"there is no LLMDeployment {name} in namespace {namespace}; there is {', '.join(near)}{more}"


@contextmanager
def explained() -> Iterator[None]:
    """Turns refusals of the API server into what the person can do about them."""
    from berth.errors import BerthError, Transient
    from berth.kube.errors import Forbidden, NotFound

    try:
        yield
    except Told as told:
        raise click.ClickException(str(told)) from None
    except Forbidden as error:
        role = "view" if error.verb in ("get", "list", "watch") else "edit"
        raise click.ClickException(
            f"you may not {error.verb} {error.resource} here: ask for the cluster's role {role} in the namespace, such "
            f"as kubectl create rolebinding NAME --clusterrole={role} --user=YOU -n NAMESPACE"
        ) from None
    except NotFound as error:
        if any(words in str(error) for words in UNKNOWN_KIND):
            raise click.ClickException(
                "this cluster does not know LLMDeployments: install Berth with helm install berth charts/berth -n "
                "berth-system --create-namespace, or kubectl apply --server-side -f manifests/install.yaml"
            ) from None
        raise click.ClickException(str(error)) from None
    except Transient as error:
        if " 401 " in str(error):
            raise click.ClickException(f"the API server does not know you: log in again ({error})") from None
        raise click.ClickException(f"the API server does not answer: {error}") from None
    except BerthError as error:
        raise click.ClickException(str(error)) from None


@asynccontextmanager
async def optional(missing: list[str], what: str) -> AsyncIterator[None]:
    """What the person may not read, or what is not there, is noted in `missing` and left out."""
    from berth.errors import BerthError

    try:
        yield
    except BerthError as error:
        missing.append(f"{what}: {error}")
