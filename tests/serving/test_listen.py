"""The socket of the server: what it hands on to the connections, and where it cannot be."""

import socket

import pytest

from scaletot_jax.errors import ConfigError
from scaletot_jax.serving.cli import listen


def test_a_body_does_not_wait_for_the_acknowledgement_of_its_head():
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()) as asking:
        answering, _ = listening.accept()
        with answering:
            assert answering.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        asking.close()


def test_a_taken_port_is_refused_by_name():
    with listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"):
            listen("127.0.0.1", port)
