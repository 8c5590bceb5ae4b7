"""What one of several installations looks at."""

from __future__ import annotations

from typing import Any

from berth.controller.shard import Shard
from berth.controller.world import deployment_key
from berth.core.selectors import Selector

KEY = deployment_key("ns", "llama")


def labelled(team: str) -> dict[str, Any]:
    return {"metadata": {"namespace": "ns", "name": "llama", "labels": {"team": team}}}


def test_without_a_selector_everything_is_ours() -> None:
    shard = Shard(Selector())
    assert shard.takes({"metadata": {"name": "x"}})
    assert shard.told(KEY, labelled("ads"), gone=False)
    assert shard.told(KEY, labelled("ads"), gone=True)


def test_what_is_not_ours_is_looked_at_once_to_let_it_go() -> None:
    shard = Shard(Selector.parse("team=search"))
    assert shard.told(KEY, labelled("search"), gone=False)
    assert not shard.ignores(KEY)
    assert shard.told(KEY, labelled("ads"), gone=False)
    assert shard.ignores(KEY)
    assert not shard.told(KEY, labelled("ads"), gone=False)
    assert shard.told(KEY, labelled("search"), gone=False)
    assert not shard.ignores(KEY)


def test_one_of_others_that_is_gone_is_forgotten() -> None:
    shard = Shard(Selector.parse("team=search"))
    shard.told(KEY, labelled("ads"), gone=False)
    assert not shard.told(KEY, labelled("ads"), gone=True)
    assert not shard.ignores(KEY), "another of that name may be ours"
