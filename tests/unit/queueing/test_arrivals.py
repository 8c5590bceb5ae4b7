import numpy as np
import pytest

from berth.estimator.arrivals import closed_requests, open_requests
from berth.estimator.traffic import TokenLengths, TrafficProfile

PROFILE = TrafficProfile(TokenLengths(1155, 4083, 14050), TokenLengths(211, 451, 1024), 5.4, peak_output_to_mean=0.64)


def test_requests_have_the_rate_and_the_lengths_of_the_profile() -> None:
    requests = open_requests(PROFILE, 3.0, 12_000, seed=1)

    assert len(requests.arrival) / requests.arrival[-1] == pytest.approx(3, rel=0.03)
    assert requests.prompt.mean() == pytest.approx(1155, rel=0.01)
    assert requests.output.mean() == pytest.approx(211, rel=0.01)
    assert np.percentile(requests.prompt, 95) == pytest.approx(4083, rel=0.01)
    assert np.all(np.diff(requests.arrival) >= 0)
    assert np.all(requests.reserved == requests.prompt + 1024)


def test_busy_minutes_show_in_rate_and_lengths() -> None:
    requests = open_requests(PROFILE, 4.0, 12_000, seed=1)
    twentieth = (requests.arrival // (3000 / 20)).astype(int)
    counts = np.bincount(twentieth, minlength=20)[:20]
    busiest = twentieth == counts.argmax()

    assert counts.max() / counts.mean() == pytest.approx(1.49, rel=0.08)
    assert requests.prompt[busiest].mean() > 1.15 * 1155
    assert requests.output[busiest].mean() < 0.75 * 211


def test_every_rate_sees_the_same_requests_on_another_clock() -> None:
    slow, fast = (open_requests(PROFILE, rate, 2000, seed=3) for rate in (1.0, 7.0))

    assert np.array_equal(slow.prompt, fast.prompt)
    assert np.allclose(slow.arrival, 7 * fast.arrival)


def test_another_seed_draws_other_requests() -> None:
    one, other = (open_requests(PROFILE, 1.0, 500, seed=seed) for seed in (1, 2))

    assert len(one.prompt) != len(other.prompt) or not np.array_equal(one.prompt, other.prompt)


def test_closed_clients_come_at_once_and_the_rest_follow() -> None:
    requests = closed_requests(PROFILE, clients=8, count=100, seed=1)

    assert np.all(requests.arrival[:8] == 0)
    assert np.all(np.isinf(requests.arrival[8:]))


def test_cached_prompts_leave_at_least_one_token_to_compute() -> None:
    profile = TrafficProfile(TokenLengths(2, 3, 4), TokenLengths(10, 20, 30), 1.0, cached_input_fraction=0.99)
    requests = open_requests(profile, 1.0, 200, seed=1)

    assert np.all(requests.cached < requests.prompt)
