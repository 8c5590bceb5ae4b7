"""What the demonstration shows is what was measured."""

from __future__ import annotations

import io

import pytest

from berth.local.demo import report, trace
from berth.local.demo.client import Outcome
from berth.local.demo.trace import Request
from berth.local.screen import Screen

REQUEST = Request(0.0, 100, 11)


def outcome(**values: float | str | None) -> Outcome:
    return Outcome(REQUEST, **{"sent": 1.0, "first": 1.5, "last": 2.5, "tokens": 11, **values})  # type: ignore[arg-type]


def test_the_packaged_slice_is_two_minutes_of_real_requests_with_their_source() -> None:
    requests = trace.requests()
    assert len(requests) == 694
    assert [request.at for request in requests] == sorted(request.at for request in requests)
    assert trace.LENGTH - 2 < requests[-1].at < trace.LENGTH
    assert max(request.input_tokens for request in requests) == 14050
    assert "CC-BY 4.0" in trace.SLICE.read_text().splitlines()[1]


def test_times_are_those_of_a_user_who_watches() -> None:
    seen = outcome()
    assert seen.time_to_first_token == pytest.approx(0.5)
    assert seen.time_per_output_token == pytest.approx(0.1)
    assert outcome(first=None, last=None, tokens=0).time_to_first_token is None
    assert outcome(tokens=1).time_per_output_token is None


@pytest.mark.parametrize(
    ("values", "share", "expected"), [([], 50, None), ([3.0], 95, 3.0), (list(range(1, 101)), 95, 95), ([1, 2], 50, 1)]
)
def test_percentiles_are_by_nearest_rank(values: list[float], share: float, expected: float | None) -> None:
    assert report.percentile(values, share) == expected


def test_the_table_names_what_is_wanted_and_leaves_the_unknown_open() -> None:
    lines = report.latency_table([("before", [outcome(), outcome()]), ("after", [])], (1.5, 0.05))
    assert [line.split() for line in lines] == [
        ["REQUESTS", "TTFT", "P50", "TTFT", "P95", "TPOT", "P50", "TPOT", "P95"],
        ["before", "2", "500ms", "500ms", "100ms", "100ms"],
        ["after", "0", "-", "-", "-", "-"],
        ["objective", "1.5s", "50ms"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_what_clients_noticed_counts_every_request_once() -> None:
    seen = [outcome(), outcome(broken_at=2.0, resumed_at=2.4), outcome(error="gone"), outcome(broken_at=2.0, error="x")]
    assert report.noticed(seen) == (
        "4 requests: 1 answered at the first attempt, 1 sent again and answered "
        "(tokens came again after 400ms at worst), 2 failed"
    )


H100 = {"pool": "h100", "precision": "fp8", "tensorParallel": 2, "pipelineParallel": 1, "groups": 3}


def test_a_placement_is_a_line_and_what_is_unknown_is_left_out() -> None:
    assert report.choice(H100, {"costPerHour": "17.94"}) == "h100 fp8 tp2, 3 groups on 6 GPUs, 17.94 $/h"
    assert report.choice({**H100, "pipelineParallel": 2, "groups": 1}, {}) == "h100 fp8 tp2 pp2, 1 group on 4 GPUs"


def test_the_runner_up_comes_before_reasons_and_the_chosen_one_not_at_all() -> None:
    def candidate(pool: str, **fields: str | bool) -> dict[str, object]:
        return {"allocations": [{**H100, "pool": pool}], **fields}

    candidates = [
        candidate("first", chosen=True),
        candidate("second", costPerHour="20.00"),
        candidate("third"),
        candidate("fourth", rejected="too slow"),
        candidate("fifth", rejected="too small"),
    ]
    assert report.others(candidates, 2) == [
        "next best: second fp8 tp2, 3 groups on 6 GPUs, 20.00 $/h",
        "not fourth fp8: too slow",
    ]
    assert report.others([candidate("first", chosen=True, rejected="no room")], 2) == []


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_a_bar_is_drawn_over_itself_on_a_terminal_and_is_a_line_elsewhere() -> None:
    terminal, file = Terminal(), io.StringIO()
    for out in (terminal, file):
        screen = Screen(out)
        screen.bar(0.25, "a quarter")
        screen.bar(1.01, "all")
        screen.step("done")
    assert terminal.getvalue().endswith("s  ✓ done\n")
    assert "\r\x1b[K           [########################] 100%  all" in terminal.getvalue()
    assert file.getvalue().splitlines()[0] == "           [######..................]  25%  a quarter"
    assert file.getvalue().splitlines()[1].endswith("s  + done")  # an encoding that nobody named has no ticks
