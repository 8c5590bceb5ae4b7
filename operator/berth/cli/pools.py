"""`berth pools`: GPUPools from what the nodes say about themselves."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from berth.cli.output import table

if TYPE_CHECKING:
    from berth.core.discovery import Discovery


@click.group()
def pools() -> None:
    """Work with GPU pools."""


@pools.command()
@click.option(
    "-f",
    "--filename",
    type=click.File(encoding="utf-8"),
    required=True,
    help="Output of `kubectl get nodes -o json` (or yaml); - reads standard input.",
)
@click.option(
    "--prices",
    type=click.File(encoding="utf-8"),
    help='Prices that replace the list prices, as YAML or JSON: `H100-SXM-80: "2.49"`, '
    "or with {pricePerGPUHour, currency, billing}.",
)
@click.option("-o", "--output", type=click.Choice(["table", "yaml", "json"]), default="table", show_default=True)
def discover(filename: Any, prices: Any, output: str) -> None:
    """Propose a GPUPool for each kind of GPU node.

    \b
    kubectl get nodes -o json | berth pools discover -f -
    kubectl get nodes -o json | berth pools discover -f - -o yaml | kubectl apply -f -
    """
    import yaml

    from berth.core.discovery import LIST_PRICES, parse_prices
    from berth.core.discovery import discover as propose

    table = dict(LIST_PRICES)
    try:
        if prices is not None:
            table |= parse_prices(_load(prices))
    except ValueError as error:
        raise click.ClickException(f"--prices {prices.name}: {error}") from None
    try:
        discovery = propose(_nodes(_load(filename)), table)
    except ValueError as error:
        raise click.ClickException(f"{filename.name}: {error}") from None

    manifests = [dict(pool.manifest) for pool in discovery.pools]
    if output == "yaml":
        click.echo(yaml.safe_dump_all(manifests, sort_keys=False), nl=False)
    elif output == "json":
        click.echo(json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}, indent=2))
    else:
        click.echo(_table(discovery), nl=False)
    for line in _remarks(discovery):
        click.echo(line, err=output != "table")


def _load(file: Any) -> Any:
    import yaml

    text = file.read()
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        try:
            return yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError):
            raise ValueError("this is neither JSON nor YAML") from None


def _nodes(document: Any) -> list[dict[str, Any]]:
    """The nodes of a List, or a single Node."""
    if isinstance(document, dict) and document.get("kind") == "Node":
        return [document]
    items = document.get("items") if isinstance(document, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) and item.get("kind") == "Node" for item in items):
        raise ValueError("this holds no list of nodes: pass the output of `kubectl get nodes -o json`")
    return items


def _table(discovery: Discovery) -> str:
    rows = [("NAME", "GPU", "LINK", "NODES", "GPUS", "PRICE/GPU/H", "PRICE FROM")]
    for pool in discovery.pools:
        spec = pool.manifest["spec"]
        price = f"{spec['pricePerGPUHour']} {spec['currency']}" if "pricePerGPUHour" in spec else "-"
        gpus = f"{len(pool.nodes)} x {spec['gpusPerNode']}"
        name = pool.manifest["metadata"]["name"]
        nodes = str(len(pool.nodes))
        rows.append((name, spec["gpu"], spec["interconnect"], nodes, gpus, price, pool.price_source or "-"))
    return "".join(f"{line}\n" for line in table(rows, gap="   ")) if discovery.pools else "no pools found\n"


def _remarks(discovery: Discovery) -> list[str]:
    notes = [f"{pool.manifest['metadata']['name']}: {note}" for pool in discovery.pools for note in pool.notes]
    return notes + [f"left out {name}: {reason}" for name, reason in sorted(discovery.left_out.items())]
