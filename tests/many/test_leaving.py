"""A daemon that is told to stop: who had connected is answered, who asks is told, nobody waits longer than said."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from daemon.http_server import HttpServer, Incoming
from tests.clients import RawClient
from tests.daemon.raw_http import a_server, run
from tests.many.pooled import accepts
from tests.processes import DEADLINE_SECONDS, HOST, Gateway, eventually
from tests.provider import ScriptedProvider
from tests.system.turns import send_turn, take_turn

CONNECTIONS = 50
REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_drain_answers_connections_that_nobody_had_accepted_yet(loop: str) -> None:
    async def handler(incoming: Incoming) -> None:
        await incoming.respond(200, b"here", "text/plain")

    async def scenario() -> None:
        async with a_server(handler) as server:
            # The loop does not turn meanwhile: they are in the kernel's queue when the listener is closed.
            clients = [socket.create_connection((HOST, server.port)) for _ in range(CONNECTIONS)]
            for client in clients:
                client.sendall(REQUEST)
            await server.drain(idle_seconds=5, limit_seconds=5)
            answers = [_all_of(client) for client in clients]
        assert [answer.endswith(b"here") for answer in answers] == [True] * CONNECTIONS
        assert all(b"Connection: close" in answer for answer in answers)

    run(scenario(), loop)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_drain_waits_for_a_connection_that_was_accepted_in_this_very_turn(loop: str) -> None:
    async def handler(incoming: Incoming) -> None:
        await incoming.respond(200, b"here", "text/plain")

    async def scenario() -> None:
        server = HttpServer()
        await server.start(handler, host=HOST, port=0)
        client = socket.create_connection((HOST, server.port))
        drain = asyncio.create_task(server.drain(idle_seconds=5, limit_seconds=5))
        # It has said nothing yet, and is given the time of an idle connection.
        done, _ = await asyncio.wait([drain], timeout=0.1)
        assert not done
        client.sendall(REQUEST)
        await drain
        assert _all_of(client).endswith(b"here")

    run(scenario(), loop)


@pytest.mark.crash
def test_daemon_told_to_stop_while_it_stands_still_answers_everybody_who_had_connected() -> None:
    with ScriptedProvider() as provider, Gateway(provider) as gateway:
        gateway.start()
        gateway.pause("daemon")
        clients = [gateway.client() for _ in range(CONNECTIONS)]
        for number, client in enumerate(clients):
            send_turn(client, "messages", f"question {number}", session=f"session-{number}")
        gateway.terminate("daemon")
        gateway.resume("daemon")
        answers = [client.read() for client in clients]
        for client in clients:
            client.close()
        assert [(answer.status, answer.fault) for answer in answers] == [(200, "")] * CONNECTIONS
        assert gateway.wait_stopped("daemon") == 0
        assert [row.status for row in gateway.rows()] == ["complete"] * CONNECTIONS


@pytest.mark.crash
def test_daemon_that_gives_notice_says_so_and_serves_until_it_is_over() -> None:
    with ScriptedProvider() as provider, Gateway(provider, notice_seconds=600) as gateway:
        gateway.start()
        gateway.terminate("daemon")
        gateway.wait_status("unready")
        found = gateway.get("/readyz")
        assert found is not None
        assert (found[0], json.loads(found[1])["checks"]["daemon"]) == (503, "draining")
        with gateway.client() as client:
            answer = take_turn(client, "chat", "a balancer has not noticed yet", session="late")
        assert (answer.status, answer.complete, answer.header("connection")) == (200, True, "close")
        # A second signal ends the patience, also with balancers.
        gateway.terminate("daemon")
        assert gateway.wait_stopped("daemon") == 0
        assert not accepts(gateway.port)


@pytest.mark.crash
def test_daemon_without_notice_frees_its_address_while_a_stream_goes_on() -> None:
    with ScriptedProvider() as provider, Gateway(provider) as gateway:
        gateway.start()
        with RawClient(HOST, gateway.port, deadline_seconds=DEADLINE_SECONDS) as client:
            send_turn(client, "messages", "question hold:open", stream=True)
            assert client.read_until(b"content_block_delta")
            gateway.terminate("daemon")
            eventually(lambda: not accepts(gateway.port), what="the address is free")
            provider.release("open")
            assert client.read().complete
        assert gateway.wait_stopped("daemon") == 0


def _all_of(client: socket.socket) -> bytes:
    with client:
        client.settimeout(DEADLINE_SECONDS)
        return b"".join(iter(lambda: client.recv(65536), b""))
