"""Copies of objects share their words and are otherwise what was read."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from berth.kube.sharing import shared

SCALARS = st.none() | st.booleans() | st.integers() | st.text()
DOCUMENTS = st.dictionaries(
    st.text() | st.sampled_from(["kind", "name", "metadata"]),
    st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20),
)


@given(DOCUMENTS)
def test_nothing_changes(document: dict[str, Any]) -> None:
    assert shared(document) == document


def test_two_documents_have_their_keys_and_common_words_in_common() -> None:
    text = json.dumps({"status": {"conditions": [{"type": "Ready", "message": "one of its own"}]}})
    first, second = shared(json.loads(text)), shared(json.loads(text))
    (one,), (other,) = first["status"]["conditions"], second["status"]["conditions"]
    assert [id(key) for key in one] == [id(key) for key in other]
    assert one["type"] is other["type"]
    assert one is not other
