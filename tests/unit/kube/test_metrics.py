from __future__ import annotations

from berth.metrics import Metrics


def test_two_applications_in_one_process_do_not_share_figures() -> None:
    first, second = Metrics(), Metrics()
    first.queue_depth(3)
    first.leading(True)
    assert b"berth_queue_depth 3.0\n" in first.render()
    assert b"berth_leader 1.0\n" in first.render()
    assert b"berth_queue_depth 0.0\n" in second.render()


def test_every_metric_is_ours_and_explained() -> None:
    for family in Metrics().registry.collect():
        assert family.name.startswith("berth_")
        assert family.documentation.endswith(".")
