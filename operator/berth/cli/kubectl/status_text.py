"""`kubectl berth status` for people: does it serve, where, how well, and what happened last. Pure.

What is unknown is `-`, never 0. What was predicted, what was measured, and what is live stand apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from berth.cli.output import age, duration, table
from berth.core import conditions as c
from berth.core.placement.tell import describe
from berth.core.requests import spoken
from berth.core.timestamps import unix_seconds

Document = Mapping[str, Any]
UNKNOWN: Final = "-"
_URL_COLUMN: Final = 56
_HEAD: Final = 14
_BAD_WHEN_TRUE: Final = (
    c.STALLED,
    c.DEGRADED,
    c.DISRUPTED,
    c.EVACUATIONS_FROZEN,
    c.FOREIGN_PDB_OVERLAP,
    c.PLACEMENT_OUTDATED,
    c.REPLICAS_IGNORED,
)
_BAD_WHEN_FALSE: Final = (
    c.ACCEPTED,
    c.PLACED,
    c.AVAILABLE,
    c.METRICS_AVAILABLE,
    c.OBJECTIVES_MET,
    c.AVAILABILITY_TARGET_MET,
    c.LOSS_TOLERATED,
)


def lines(deployment: Document, now: float, live: Document | None = None, currency: str = "") -> Iterator[str]:
    """The screen; `live` is what the operator's page says of this deployment, `now` in Unix seconds."""
    name, status = deployment["metadata"]["name"], deployment.get("status") or {}
    if not status:
        yield f"{name}  not looked at yet: is the operator running?"
        return
    head = f"{name}  {_standing(status)}"
    yield f"{head.ljust(_URL_COLUMN - 2)}  {status['url']}" if "url" in status else head
    message = (status.get("summary") or {}).get("message", "Ready")
    if message != "Ready":
        yield _line("state", message)
    yield from _placement(name, status, currency)
    yield from _move(status, now)
    yield from _objectives(deployment)
    yield from _live(live)
    yield from _groups(status, now, live)
    attention = list(_attention(status))
    spread = (status.get("spread") or {}).get("message")
    if spread and not any(line.endswith(f": {spread}") for line in attention):
        yield f"  {spread}"
    yield from _happened(status, now)
    yield from attention


def _line(head: str, words: str) -> str:
    return f"  {head.ljust(_HEAD - 2)}{words}"


def _standing(status: Document) -> str:
    """`serving  (2 of 2 groups, 1 needed)`."""
    conditions = {each["type"]: each["status"] for each in status.get("conditions") or ()}
    word = {"True": "serving", "False": "not serving"}.get(conditions.get(c.AVAILABLE, ""), "unknown")
    if conditions.get(c.ACCEPTED) == "False":
        word += ", not accepted"
    ready, _, wanted = str((status.get("summary") or {}).get("ready", "")).partition("/")
    needed = status.get("needed")
    return f"{word}  ({ready or UNKNOWN} of {wanted or UNKNOWN} groups, {UNKNOWN if needed is None else needed} needed)"


def _placement(name: str, status: Document, currency: str) -> Iterator[str]:
    placement = status.get("placement") or {}
    allocation = next(iter(placement.get("allocations") or ()), None)
    if allocation is None:
        yield _line("placement", UNKNOWN)
        return
    split = f"tp{allocation.get('tensorParallel', 1)} pp{allocation.get('pipelineParallel', 1)}"
    gpus = allocation.get("tensorParallel", 1) * allocation.get("pipelineParallel", 1) * allocation.get("groups", 1)
    parts = [allocation["pool"], allocation.get("precision", allocation["variant"]), split, f"{gpus} GPUs"]
    if "costPerHour" in placement:
        parts.append(f"{placement['costPerHour']} {currency}/h" if currency else f"{placement['costPerHour']} per hour")
    if "costPerMillionOutputTokens" in placement:
        price = f"{placement['costPerMillionOutputTokens']} {currency}".rstrip()
        parts.append(f"{price} per 1M output tokens")
    yield _line("placement", "  ".join(parts))
    reason = placement.get("reason", "")
    if "limitedBy" in placement:
        reason += f"; limited by {placement['limitedBy']}"
    yield _line("because", f"{reason}     (kubectl berth explain {name})")


def _move(status: Document, now: float) -> Iterator[str]:
    current = (status.get("moves") or {}).get("current")
    if current:
        sides = [describe(side[0]) for side in (current.get("from"), current.get("to")) if side]
        left = unix_seconds(current.get("deadline"))
        until = f", given up in {age(left - now)}" if left is not None and left > now else ""
        yield _line("move", f"{' -> '.join(sides)}: {current.get('phase', '-')} since {_ago(current, now)}{until}")


def _objectives(deployment: Document) -> Iterator[str]:
    """Wanted, measured and predicted side by side."""
    wanted, status = deployment["spec"].get("objectives") or {}, deployment["status"]
    placement, availability = status.get("placement") or {}, status.get("availability") or {}
    measured, predicted = placement.get("measured") or {}, placement.get("predicted") or {}
    errors = placement.get("predictionError") or {}
    rows = [["objective", "wanted", "measured", "predicted", "error"]]
    for label, field, figure in (
        ("TTFT p95", "timeToFirstToken", "ttftP95"),
        ("TPOT p95", "timePerOutputToken", "tpotP95"),
    ):
        bound = (wanted.get(field) or {}).get("p95")
        cells = [str(source.get(figure, UNKNOWN)) for source in (measured, predicted)]
        rows.append([label, UNKNOWN if bound is None else duration(bound), *cells, _percent(errors.get(figure))])
    rate = [str((source.get("outputTokensPerSecond") or {}).get("mid", UNKNOWN)) for source in (measured, predicted)]
    if rate != [UNKNOWN, UNKNOWN]:
        rows.append(["tokens/s", UNKNOWN, *rate, UNKNOWN])
    limit = f"limited by {availability['limitedBy']}" if availability.get("limitedBy") else UNKNOWN
    target = str(wanted.get("availability", UNKNOWN))
    rows.append(["availability", target, UNKNOWN, str(availability.get("predicted", UNKNOWN)), limit])
    first, *others = rows
    yield from table([first, *([f"  {row[0]}", *row[1:]] for row in others)], indent="  ", gap="     ")


def _live(live: Document | None) -> Iterator[str]:
    if not live:
        return
    if not live.get("fresh"):
        yield _line("now", f"not measured: {live.get('problem') or 'nothing heard yet'}")
        return
    known = [
        f"{live[field]} {word}"
        for field, word in (
            ("requestsPerSecond", "req/s"),
            ("outputTokensPerSecond", "tok/s"),
            ("running", "running"),
            ("waiting", "waiting"),
        )
        if field in live
    ]
    latencies = [
        f"{word} p95 {live[field]}" for field, word in (("ttftP95", "TTFT"), ("tpotP95", "TPOT")) if field in live
    ]
    if known or latencies:
        yield _line("now", "   ".join([*known, *latencies]))


def _groups(status: Document, now: float, live: Document | None) -> Iterator[str]:
    groups: Sequence[Document] = status.get("groups") or ()
    if not groups:
        return
    yield "  groups"
    figures = {(each["name"], each.get("incarnation")): each for each in (live or {}).get("groups") or ()}
    rows = [_group(each, now, figures.get((each["name"], each.get("incarnation")), {})) for each in groups]
    yield from table(rows, indent="    ", gap="   ")
    told = sum((status.get("groupCounts") or {}).values())
    if told > len(groups):
        yield f"    and {told - len(groups)} more"


def _group(group: Document, now: float, live: Document) -> list[str]:
    nodes = ", ".join(group.get("nodes") or ()) or UNKNOWN
    cells = [group["name"], group.get("state", UNKNOWN), nodes, f"since {_ago(group, now)}"]
    if group.get("reason"):
        return [*cells, group["reason"]]
    figures = (
        ("outputTokensPerSecond", "{} tok/s"),
        ("running", "{} running"),
        ("waiting", "{} waiting"),
        ("kvUse", "KV {}"),
    )
    return cells + ([form.format(live.get(field, UNKNOWN)) for field, form in figures] if live else [])


def _happened(status: Document, now: float) -> Iterator[str]:
    last = status.get("lastFailover")
    if last:
        phases = [
            f"{word} after {last[field]}"
            for field, word in (
                ("trafficCutAfter", "traffic cut"),
                ("replacedAfter", "replaced"),
                ("restoredAfter", "serving"),
            )
            if field in last
        ]
        told = f"{last.get('group', '')}  {_ago(last, now, 'at')} ago  {last.get('reason', '')}"
        yield f"  last failure  {told}{': ' if phases else ''}{', '.join(phases)}"
    ended = next(iter((status.get("moves") or {}).get("recent") or ()), None)
    if ended:
        told = f"{ended.get('result', '-')}  {_ago(ended, now, 'finishedAt')} ago  {ended.get('reason', '')}"
        yield f"  last move     {told}".rstrip()
    request = status.get("request")
    if request:
        told = f"{request.get('result', '-')}  {_ago(request, now, 'at')} ago  {request.get('message', '')}"
        yield f"  last request  {spoken(request.get('text', '-'))}: {told}"


def _attention(status: Document) -> Iterator[str]:
    """Conditions that somebody should know of, in the words of the operator."""
    for each in status.get("conditions") or ():
        bad = _BAD_WHEN_TRUE if each["status"] == "True" else _BAD_WHEN_FALSE if each["status"] == "False" else ()
        if each["type"] in bad:
            yield f"  ! {each['type']}={each['status']}  {each['reason']}: {each.get('message', '')}"


def _ago(part: Document, now: float, field: str = "since") -> str:
    at = unix_seconds(part.get(field))
    return age(None if at is None else now - at)


def _percent(share: str | None) -> str:
    try:
        return f"{float(share):+.0%}" if share is not None else UNKNOWN
    except ValueError:
        return UNKNOWN
