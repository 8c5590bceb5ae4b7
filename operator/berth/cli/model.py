"""`berth model`: the model catalogue, and models that are not in it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from berth.estimator.models import ModelSpec

_MOST_BYTES = 2**20


@click.group()
def model() -> None:
    """Models that Berth knows, and their memory."""


@model.command("list")
@click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table", show_default=True)
def list_models(output: str) -> None:
    """List the built-in models."""
    from berth.estimator.models import catalogue

    specs = list(catalogue().values())
    if output != "table":
        _print([_document(spec) for spec in specs], output)
        return
    click.echo(f"{'NAME':<24}{'PARAMETERS':>11}{'ACTIVE':>9}{'LAYERS':>8}{'KV/TOKEN':>11}{'CONTEXT':>10}")
    for spec in specs:
        active = spec.active_parameters + spec.embedding_parameters
        click.echo(
            f"{spec.name:<24}{_billions(spec.parameters):>11}{_billions(active):>9}{spec.layers:>8}"
            f"{spec.kv_bytes_per_token(2) / 1024:>7.0f} KiB{spec.max_context:>10}"
        )


@model.command()
@click.argument("name")
@click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table", show_default=True)
def show(name: str, output: str) -> None:
    """Show the geometry of a built-in model and what it weighs."""
    from berth.estimator.models import model as find

    try:
        spec = find(name)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    _show(spec, output)


@model.command("import")
@click.argument("config", type=click.File(encoding="utf-8"))
@click.option("--name", default="custom", show_default=True, help="Name to show it under.")
@click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table", show_default=True)
def import_config(config: Any, name: str, output: str) -> None:
    """Read a model's geometry from its Hugging Face config.json (CONFIG; - reads standard input).

    Shows what the planner will use, and the lines of spec.model that say so.
    """
    from berth.estimator.models import from_config

    try:
        text = config.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise ValueError("larger than 1 MiB: give the model's config.json")
        document = json.loads(text)
        if not isinstance(document, dict):
            raise ValueError("not a JSON object: give the model's config.json")
        spec = from_config(document, name)
    except (ValueError, RecursionError) as error:
        raise click.ClickException(f"{config.name}: {error}") from None
    architecture = _architecture(spec, str(document.get("model_type", "")))
    if output != "table":
        _print({**_document(spec), "architecture": architecture}, output)
        return
    _show(spec, output)
    if architecture is None:
        click.echo("\nspec.model.architecture cannot say this: the model has to join the catalogue")
        return
    click.echo("\nfor an LLMDeployment:")
    _print({"spec": {"model": {"name": name, "architecture": architecture}}}, "yaml")


def _architecture(spec: ModelSpec, family: str) -> dict[str, Any] | None:
    """The spec.model.architecture that means `spec`; None if there is none."""
    from berth.api.architecture import Architecture
    from berth.api.common import parse
    from berth.errors import InvalidSpec
    from berth.estimator.models import from_config

    keys: dict[str, Any] = {
        "hidden_size": spec.hidden,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "intermediate_size": spec.intermediate,
        "vocab_size": spec.vocab,
        "max_position_embeddings": spec.max_context,
        "tie_word_embeddings": spec.tied_embeddings,
    }
    if spec.experts:
        keys |= {"num_experts": spec.experts, "num_experts_per_tok": spec.experts_per_token}
    if spec.shared_intermediate:
        keys["shared_expert_intermediate_size"] = spec.shared_intermediate
    # The family decides what other keys leave open; it is said only where they do.
    for candidate in (keys, {**keys, "model_type": family}):
        try:
            parse(Architecture, candidate, known_fields_only=True)
            if from_config(candidate, spec.name) == spec:
                return candidate
        except (InvalidSpec, ValueError):
            continue
    return None


def _show(spec: ModelSpec, output: str) -> None:
    if output != "table":
        _print(_document(spec), output)
        return
    from berth.estimator.precision import PRECISIONS

    for key, value in asdict(spec).items():
        click.echo(f"{key.replace('_', ' '):<22}{value}")
    click.echo(f"{'parameters':<22}{_billions(spec.parameters)}")
    click.echo("\nPRECISION      WEIGHTS   KV/TOKEN")
    for precision in PRECISIONS.values():
        gigabytes = (spec.body_parameters * precision.weight_bytes + spec.embedding_parameters * 2) / 1e9
        kv = (
            f"{spec.kv_bytes_per_token(precision.kv_bytes) / 1024:>7.0f} KiB"
            if precision.kv_bytes >= 1
            else f"{'-':>11}"
        )
        click.echo(f"{precision.name:<12}{gigabytes:>7.1f} GB{kv}")


def _document(spec: ModelSpec) -> dict[str, Any]:
    return {**asdict(spec), "parameters": spec.parameters, "active_parameters": spec.active_parameters}


def _billions(parameters: int) -> str:
    return f"{parameters / 1e9:.1f}B"


def _print(document: Any, form: str) -> None:
    if form == "json":
        click.echo(json.dumps(document, indent=2))
        return
    import yaml

    click.echo(yaml.safe_dump(document, sort_keys=False), nl=False)
