"""Finding a port to serve at, and the way to it. That a failed start tells its log is tested with the notebook."""

import os
import socket

import pytest
from requests.utils import get_environ_proxies

from app import startup


@pytest.mark.parametrize(
    ("lower", "upper", "both"), [("example.org", "", "example.org,127.0.0.1"), ("", ".corp", ".corp,127.0.0.1"), ("*", "", "*")]
)
def test_what_is_served_here_is_asked_without_the_proxy_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, lower: str, upper: str, both: str
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", lower)
    monkeypatch.setenv("NO_PROXY", upper)
    for _ in range(2):
        startup._bypass_proxies()
    assert get_environ_proxies("http://127.0.0.1:8000") == {}
    assert bool(get_environ_proxies("http://elsewhere.example")) == (lower != "*")
    assert (os.environ["no_proxy"], os.environ["NO_PROXY"]) == (both, both)


def test_the_wanted_port_is_taken_if_it_is_free(free_port: int) -> None:
    assert startup.free_port(free_port) == free_port


def test_another_port_is_found_if_the_wanted_one_is_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        found = startup.free_port(taken)
        assert found != taken
        socket.create_server(("127.0.0.1", found)).close()
