"""The cluster of the person who types: whose, which namespace, and refusals in words that say what to do.

Reading goes through Berth's own client, at a person's pace. A credential plugin of the kubeconfig runs as it does for
kubectl; the operator itself refuses those.
"""

from __future__ import annotations

import asyncio
import difflib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from berth.kube.client import KubeClient

T = TypeVar("T")
Object = dict[str, Any]
_Command = Callable[..., Any]

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
                return await work(Cluster(KubeClient(api, user_agent="kubectl-berth"), namespace))

        with explained():
            return asyncio.run(main())


def cluster_options(command: _Command) -> _Command:
    """Adds --kubeconfig, --context and --namespace; the command gets them as `where`."""

    def gather(*arguments: Any, kubeconfig: str | None, context: str, namespace: str, **options: Any) -> Any:
        path = kubeconfig or str(Path.home() / ".kube" / "config")
        in_pod = not kubeconfig and not Path(path).exists() and "KUBERNETES_SERVICE_HOST" in os.environ
        return command(*arguments, where=Where("" if in_pod else path, context, namespace), **options)

    gather.__doc__, gather.__name__ = command.__doc__, command.__name__
    gather.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    decorated: _Command = gather
    for option in (
        click.option("--context", default="", help="Context of the kubeconfig."),
        click.option("--kubeconfig", envvar="KUBECONFIG", help="By default ~/.kube/config."),
        click.option("-n", "--namespace", default="", help="By default that of the context."),
    ):
        decorated = option(decorated)
    return decorated


class Cluster:
    """Objects as the person may see them, all in one namespace."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        self.client = client
        self.namespace = namespace

    async def deployment(self, name: str) -> Object:
        """Raises Unhelped with names near it where there is none of that name."""
        from berth.kube.errors import NotFound
        from berth.kube.kinds import LLM_DEPLOYMENT

        try:
            return await self.client.get(LLM_DEPLOYMENT, self.namespace, name)
        except NotFound:
            listing = await self.client.list(LLM_DEPLOYMENT, self.namespace)  # says so where the kind is unknown
            known = [str(each["metadata"]["name"]) for each in listing.items]
            raise Told(_no_such(name, self.namespace, known)) from None

    async def deployments(self, *, everywhere: bool = False) -> list[Object]:
        from berth.kube.kinds import LLM_DEPLOYMENT

        return list((await self.client.list(LLM_DEPLOYMENT, None if everywhere else self.namespace)).items)

    async def currency(self, pool: str) -> str:
        """Sign or word for the money of a pool; empty where the person may not read pools."""
        from berth.errors import BerthError
        from berth.kube.kinds import GPU_POOL

        try:
            found = await self.client.get(GPU_POOL, None, pool)
        except BerthError:
            return ""
        currency = str(found["spec"].get("currency", "USD"))
        return "$" if currency == "USD" else currency


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
    from berth.labels import GROUP

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
        if GROUP in str(error):
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
