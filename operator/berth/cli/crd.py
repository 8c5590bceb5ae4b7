"""`berth crd`: writes, checks and compares the CustomResourceDefinitions."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "--output-dir",
    type=click.Path(file_okay=False, path_type=Path, allow_dash=True),
    default=Path("crds"),
    show_default=True,
    help="Folder of the CRDs; - prints them.",
)
@click.option("--check", is_flag=True, help="Write nothing; fail if the folder differs from what would be written.")
@click.option(
    "--check-compatible",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write nothing; fail on any change that breaks with the CRDs of an earlier release in DIR.",
)
def crd(output_dir: Path, check: bool, check_compatible: Path | None) -> None:
    """Write the CustomResourceDefinitions, generated from Berth's API types."""
    from berth.api.crd import files

    generated = files()
    if check:
        _check(generated, output_dir)
    if check_compatible is not None:
        _check_compatible(check_compatible)
    if check or check_compatible is not None:
        return
    if str(output_dir) == "-":
        click.echo("---\n".join(generated.values()), nl=False)
        return
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        for name, content in generated.items():
            (output_dir / name).write_text(content, encoding="utf-8")
            click.echo(f"wrote {output_dir / name}")
    except OSError as error:
        raise click.ClickException(f"--output-dir {output_dir}: {error.strerror}") from None


def _check(generated: dict[str, str], folder: Path) -> None:
    present = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.yaml"))}
    differing = sorted(name for name in present.keys() | generated.keys() if present.get(name) != generated.get(name))
    if differing:
        raise click.ClickException(f"{folder} is out of date ({', '.join(differing)}): run `berth crd`")


def _check_compatible(folder: Path) -> None:
    import yaml

    from berth.api.compatibility import breaks
    from berth.api.crd import RESOURCES, manifest

    current = {resource.file_name: manifest(resource) for resource in RESOURCES}
    released = sorted(folder.glob("*.yaml"))
    if not released:
        raise click.ClickException(f"{folder} holds no CRDs: name the folder of a release")
    found = []
    for path in released:
        if path.name not in current:
            found.append(f"{path.name} was removed")
        else:
            found += breaks(yaml.safe_load(path.read_text(encoding="utf-8")), current[path.name])
    if found:
        raise click.ClickException(f"breaks with {folder}:\n" + "\n".join(f"  {line}" for line in found))
