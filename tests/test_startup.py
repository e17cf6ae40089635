"""Finding a port to serve at. That a failed start tells its log is tested with the notebook."""

import socket

from app import startup


def test_the_wanted_port_is_taken_if_it_is_free(free_port: int) -> None:
    assert startup.free_port(free_port) == free_port


def test_another_port_is_found_if_the_wanted_one_is_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        found = startup.free_port(taken)
        assert found != taken
        socket.create_server(("127.0.0.1", found)).close()
