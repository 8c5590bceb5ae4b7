"""Hook of mkdocs: pages that follow from the code, made while the site is built and kept nowhere else.

The API reference comes from the CRDs (which come from the models), conditions, alerts,
values and settings from where they are defined. Files of the repository that are pages as well (SECURITY.md, the
README of the chart) are shown as they are. Links to files that only a checkout has become plain text.
"""

from __future__ import annotations

import dataclasses
import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from berth.core.conditions import REASONS
from berth.settings import Settings, variable

ROOT: Final = Path(__file__).resolve().parents[1]
CHART: Final = ROOT / "charts" / "berth"
KINDS: Final = ("llmdeployments", "gpupools", "replicagroups")
COPIED: Final = {"security.md": "SECURITY.md", "changelog.md": "CHANGELOG.md"}
MOVED: Final = {source: page for page, source in COPIED.items()} | {"charts/berth/README.md": "reference/values.md"}
LINK: Final = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The navigation as mkdocs.yml has it, with what folders add to it and without what is not written yet."""
    docs = Path(config.docs_dir)
    generated = {*pages(), *COPIED}
    known = {page for section in config.nav or () for listed in section.values() for page in listed}
    nav = [
        {title: [page for page in listed if page in generated or (docs / page).exists()]}
        for section in config.nav or ()
        for title, listed in section.items()
    ]
    unlisted = sorted(path.name for path in docs.glob("*.md") if path.name not in known)
    designs = sorted(f"designs/{path.name}" for path in (docs / "designs").glob("*.md"))
    config.nav = [*nav, *([{"More": unlisted}] if unlisted else []), {"Design records": designs}, "changelog.md"]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    copied = {name: (ROOT / source).read_text() for name, source in COPIED.items()}
    for name, content in {**pages(), **copied}.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Links to files of a checkout that have no page become their name."""
    source = page.file.src_uri
    home = COPIED.get(source, f"docs/{source}")

    def mend(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(home), target))
        wanted = MOVED.get(path, path.removeprefix("docs/") if path.startswith("docs/") else "")
        if not wanted or files.get_file_from_path(wanted) is None:
            broken = path.startswith("docs/") and path.endswith(".md")  # left as it is: the strict build names it
            return match[0] if broken else f"`{text}`"
        return f"[{text}]({posixpath.relpath(wanted, posixpath.dirname(source) or '.')}{anchor})"

    return LINK.sub(mend, markdown)


def pages() -> dict[str, str]:
    """Generated pages by name."""
    return {
        "reference/api.md": api(),
        "reference/conditions.md": conditions(),
        "reference/alerts.md": alerts(),
        "reference/values.md": (CHART / "README.md").read_text(),
        "reference/settings.md": settings(),
    }


def api() -> str:
    """Every field of every kind."""
    lines = [
        "# API reference",
        "",
        "Group `berth.dev`, version `v1alpha1`; `kubectl explain llmd.spec` shows the same.",
    ]
    for plural in KINDS:
        crd = yaml.safe_load((ROOT / "crds" / f"berth.dev_{plural}.yaml").read_text())["spec"]
        schema = crd["versions"][0]["schema"]["openAPIV3Schema"]
        names = crd["names"]
        short = ", ".join(f"`{name}`" for name in names.get("shortNames", ()))
        lines += ["", f"## {names['kind']}", "", f"{crd['scope']}; short name {short}. {schema.get('description', '')}"]
        for part in ("spec", "status"):
            lines += ["", f"### {names['kind']} {part}", ""]
            lines += _table(("field", "type", "description"), _fields(schema["properties"][part], part))
            rules = list(_rules(schema["properties"][part], part))
            if rules:
                lines += ["", "Checked by the API server:", "", *(f"- `{where}`: {text}" for where, text in rules)]
    return "\n".join(lines) + "\n"


def _fields(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, str, str]]:
    required = set(schema.get("required", ()))
    for name, field in schema.get("properties", {}).items():
        here = f"{path}.{name}"
        mark = ", required" if name in required else ""
        yield f"`{here}`", _type(field) + mark, field.get("description", "")
        inner = field.get("items", field)
        if isinstance(field.get("additionalProperties"), dict):
            inner = field["additionalProperties"]
        yield from _fields(inner, here + ("[]" if "items" in field else ""))


def _type(field: Mapping[str, Any]) -> str:
    if "enum" in field:
        return " \\| ".join(f"`{value}`" for value in field["enum"])
    if field.get("x-kubernetes-int-or-string"):
        return "integer or string"
    kind = str(field.get("type", "any"))
    return f"list of {_type(field['items'])}" if kind == "array" else kind


def _rules(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
    for rule in schema.get("x-kubernetes-validations", ()):
        yield path + rule.get("fieldPath", ""), rule["message"]
    for name, field in schema.get("properties", {}).items():
        yield from _rules(field, f"{path}.{name}")
    if "items" in schema:
        yield from _rules(schema["items"], f"{path}[]")


def conditions() -> str:
    """Every reason a condition may carry."""
    rows = [(f"`{reason}`", meaning) for reason, meaning in sorted(REASONS.items())]
    head = "# Reasons of conditions\n\nStable words: alerts and scripts may rely on them.\n\n"
    return head + "\n".join(_table(("reason", "meaning"), rows)) + "\n"


def alerts() -> str:
    """Every alert with its expression."""
    lines = ["# Alerts", "", "In `charts/berth/files/alerts.yaml`; the value `metrics.alerts` makes a PrometheusRule."]
    for group in yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                labels, notes = rule["labels"], rule["annotations"]
                lines += ["", f"## {rule['alert']}", ""]
                lines += [f"**{labels['severity']}**, after {rule.get('for', 'no wait')}."]
                lines += ["", *(f"> {notes[part]}  " for part in ("summary", "description"))]
                lines += ["", "```promql", rule["expr"].strip(), "```"]
    return "\n".join(lines) + "\n"


def settings() -> str:
    """Every setting of the operator process."""
    rows = []
    for field in dataclasses.fields(Settings):
        about = field.metadata
        bounds = f"{about['low']:g} to {about['high']:g}" if about["low"] is not None else ""
        default = f"{field.default:g}" if isinstance(field.default, int | float) else f"`{field.default}`"
        rows.append((f"`{variable(field.name)}`", f"{default} {about['unit']}".strip(), bounds, about["description"]))
    head = "# Settings of the operator\n\nEnvironment variables; in the chart, values of `settings` in camelCase.\n\n"
    return head + "\n".join(_table(("variable", "default", "bounds", "meaning"), rows)) + "\n"


def _table(head: tuple[str, ...], rows: Any) -> list[str]:
    def line(cells: Any) -> str:
        return "| " + " | ".join(re.sub(r"(?<!\\)\|", r"\\|", " ".join(str(cell).split())) for cell in cells) + " |"

    return [line(head), "|" + "---|" * len(head), *map(line, rows)]
