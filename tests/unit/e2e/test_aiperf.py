"""AIPerf's records are an account like that of any client: what it saw fail has failed."""

from __future__ import annotations

from typing import Any

from e2e.support.aiperf import request_of
from e2e.support.traffic import Account

METADATA = {"request_start_ns": 10_000_000_000, "request_end_ns": 12_000_000_000}
ANSWERED: dict[str, Any] = {
    "metadata": METADATA,
    "metrics": {
        "time_to_first_token": {"value": 250.0, "unit": "ms"},
        "http_req_chunks_received": {"value": 2, "unit": "count"},
        "inter_chunk_latency": {"value": [10.0, 0.0, 0.0], "unit": "ms"},
    },
    "error": None,
}
BROKEN: dict[str, Any] = {"metadata": METADATA, "error": {"code": 503, "type": "Service Unavailable", "message": ""}}


def test_an_answer_has_its_times_and_tokens() -> None:
    sent = request_of(ANSWERED)
    assert sent.answered
    assert (sent.sent, sent.first, sent.ended, sent.tokens) == (10.0, 10.25, 12.0, 4)


def test_an_error_is_a_failed_request_even_where_tokens_came() -> None:
    half = {**ANSWERED, "error": {"type": "ClientPayloadError", "message": "not completed"}}
    account = Account((request_of(ANSWERED), request_of(BROKEN), request_of(half)))
    assert [each.error != "" for each in account.requests] == [False, True, True]
    assert len(account.failed) == 2
    assert "503" in account.failed[0].error
