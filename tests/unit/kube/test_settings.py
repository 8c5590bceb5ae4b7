from __future__ import annotations

import dataclasses

import pytest

from berth.settings import InvalidSettings, Settings, variable


def test_without_environment_everything_has_its_default() -> None:
    settings = Settings.from_environment({"PATH": "/bin", "BERTH_": "x"})
    assert settings == Settings()
    assert settings.listen_address == ("127.0.0.1", 8080)


def test_values_are_read_by_type() -> None:
    environment = {"BERTH_WORKERS": "4", "BERTH_RESYNC": "30.5", "BERTH_NAMESPACE": "prod", "BERTH_LISTEN": "[::]:9000"}
    settings = Settings.from_environment(environment)
    assert (settings.workers, settings.resync, settings.namespace) == (4, 30.5, "prod")
    assert settings.listen_address == ("::", 9000)


def test_an_empty_value_means_the_default() -> None:
    assert Settings.from_environment({"BERTH_WORKERS": " "}).workers == Settings().workers


def test_all_bad_values_are_named_at_once_with_bounds_and_default() -> None:
    environment = {"BERTH_WORKERS": "0", "BERTH_RESYNC": "soon", "BERTH_API_BURST": "1.5", "BERTH_WATCH": "nan"}
    with pytest.raises(InvalidSettings) as caught:
        Settings.from_environment(environment)
    assert sorted(str(caught.value).splitlines()) == [
        "BERTH_API_BURST='1.5': must be a whole number (default 400)",
        "BERTH_RESYNC='soon': must be a number (default 120.0)",
        "BERTH_WATCH='nan': must be from 5 to 600 (default 15.0)",
        "BERTH_WORKERS='0': must be from 1 to 256 (default 16)",
    ]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"BERTH_LEASE_DURATION": "10"}, "BERTH_LEASE_RENEW_DEADLINE < BERTH_LEASE_DURATION must hold, not 2, 10, 10"),
        ({"BERTH_LEASE_RETRY": "11"}, "must hold, not 11, 10, 15"),
        ({"BERTH_CONTEXT": "x"}, "BERTH_CONTEXT needs BERTH_KUBECONFIG"),
        ({"BERTH_LISTEN": "8080"}, "BERTH_LISTEN='8080': must be host:port, such as 0.0.0.0:8080"),
        ({"BERTH_LISTEN": "localhost:http"}, "BERTH_LISTEN='localhost:http': must be host:port"),
        ({"BERTH_LISTEN": "localhost:70000"}, "must be host:port"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        Settings.from_environment(environment)
    assert message in str(caught.value)


def test_variables_that_kubernetes_injects_for_services_are_nobodys_setting() -> None:
    injected = {
        "BERTH_OPERATOR_SERVICE_HOST": "10.0.0.1",
        "BERTH_OPERATOR_PORT": "tcp://10.0.0.1:80",
        "BERTH_OPERATOR_PORT_80_TCP_ADDR": "10.0.0.1",
    }
    assert Settings.from_environment(injected) == Settings()
    for each in dataclasses.fields(Settings):
        name = variable(each.name)
        assert "_PORT" not in name
        assert not name.endswith("_SERVICE_HOST")


def test_every_setting_is_described_and_every_number_bounded() -> None:
    for each in dataclasses.fields(Settings):
        assert each.metadata["description"].endswith(".")
        if not isinstance(each.default, str):
            assert each.metadata["low"] <= each.default <= each.metadata["high"]
        if isinstance(each.default, float):
            assert each.metadata["unit"]
