"""The listener: reading requests, framing answers, refusing what is not HTTP, draining."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

import pytest

from daemon import http_server
from daemon.http_server import (
    HEAD_BYTES_MAX,
    HEADERS_MAX,
    BodyBroken,
    BodyTooLarge,
    CannotListen,
    ClientGone,
    HttpServer,
    Incoming,
)
from tests.daemon.raw_http import a_client, a_server, run, until

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def hello(incoming: Incoming) -> None:
    await incoming.respond(200, b"hello", "text/plain")


HELLO = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"


@pytest.mark.parametrize(
    ("sent", "target", "path"),
    [
        ("/a%2Fb/../c//d?x=%20&y", "/a%2Fb/../c//d?x=%20&y", "/a%2Fb/../c//d"),
        ("/?", "/?", "/"),
        ("http://host:80/v1/x?http://y/z", "/v1/x?http://y/z", "/v1/x"),
        ("http://host?q", "/?q", "/"),
        ("/x?u=http://host/", "/x?u=http://host/", "/x"),
    ],
)
def test_target_is_kept_as_sent(sent: str, target: str, path: str) -> None:
    async def scenario() -> None:
        seen: list[Incoming] = []

        async def handler(incoming: Incoming) -> None:
            seen.append(incoming)
            await hello(incoming)

        async with a_server(handler) as server, a_client(server.port) as client:
            await client.send(f"GET {sent} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await client.exactly(len(HELLO))
        assert (seen[0].target, seen[0].path) == (target, path)

    run(scenario())


def test_headers_are_kept_as_sent_and_found_in_any_case() -> None:
    async def scenario() -> None:
        seen: list[Incoming] = []

        async def handler(incoming: Incoming) -> None:
            seen.append(incoming)
            await hello(incoming)

        async with a_server(handler) as server, a_client(server.port) as client:
            await client.send(b"GET / HTTP/1.1\r\nhOST: x\r\nX-A: 1\r\nb: \xc3\xbc\r\nx-a: 2\r\n\r\n")
            await client.exactly(len(HELLO))
        assert seen[0].headers == [("hOST", "x"), ("X-A", "1"), ("b", "ü"), ("x-a", "2")]
        assert (seen[0].header("X-a"), seen[0].header("none")) == ("1", "")
        assert not seen[0].has_body

    run(scenario())


@pytest.mark.parametrize("framing", [b"Content-Length: 11", b"Transfer-Encoding: chunked"])
def test_body_over_the_limit_is_refused_and_the_connection_goes_on(framing: bytes) -> None:
    body = b"hello world" if b"11" in framing else b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"

    async def scenario() -> None:
        async def handler(incoming: Incoming) -> None:
            try:
                await incoming.read(10 if incoming.path == "/small" else 11)
            except BodyTooLarge:
                await incoming.respond(413, b"", "text/plain")
            else:
                await hello(incoming)

        async with a_server(handler) as server, a_client(server.port) as client:
            await client.send(b"POST /small HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n" + body)
            assert (await client.head()).startswith(b"HTTP/1.1 413 ")
            await client.send(b"POST /enough HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n" + body)
            assert await client.exactly(len(HELLO)) == HELLO

    run(scenario())


def test_client_that_waits_for_continue_is_told_to_go_on() -> None:
    async def scenario() -> None:
        async def handler(incoming: Incoming) -> None:
            await incoming.respond(200, await incoming.read(100), "text/plain")

        async with a_server(handler) as server, a_client(server.port) as client:
            await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
            assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
            await client.send(b"abc")
            await client.head()
            assert await client.exactly(3) == b"abc"

    run(scenario())


def test_pipelined_requests_are_answered_in_order() -> None:
    async def scenario() -> None:
        async def handler(incoming: Incoming) -> None:
            await incoming.respond(200, incoming.target.encode(), "text/plain")

        async with a_server(handler) as server, a_client(server.port) as client:
            await client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(100, 200)))
            for number in range(100, 200):
                await client.head()
                assert await client.exactly(4) == b"/%d" % number

    run(scenario())


def test_upgrade_that_is_declined_leaves_the_connection_usable() -> None:
    async def scenario() -> None:
        async def handler(incoming: Incoming) -> None:
            await incoming.respond(426 if incoming.header("upgrade") else 200, b"", "text/plain")

        async with a_server(handler) as server, a_client(server.port) as client:
            await client.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + GET)
            assert (await client.head()).startswith(b"HTTP/1.1 426 ")
            assert (await client.head()).startswith(b"HTTP/1.1 200 ")

    run(scenario())


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01 not HTTP at all\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon sk-secret\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nsk-secret\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"CONNECT host:443 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ],
)
def test_malformed_request_is_answered_400_and_not_logged(
    request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async def handler(incoming: Incoming) -> None:
            await incoming.read(1_000)
            await hello(incoming)

        async with a_server(handler) as server, a_client(server.port) as client:
            await client.send(request_bytes)
            answer = await client.rest()
            assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 ")), answer
            assert answer.count(b"HTTP/1.") == 1
            assert b"Traceback" not in answer
            assert b"sk-secret" not in answer

    caplog.set_level(logging.INFO)
    run(scenario())
    assert caplog.records == []


@pytest.mark.parametrize(
    "head",
    [
        b"X: " + b"sk-secret" * 10_000 + b"\r\n" + b"X: y\r\n" * 5_000_000,
        b"".join(b"X-%d: sk-secret\r\n" % number for number in range(2 * HEADERS_MAX)) + b"X: y\r\n" * 5_000_000,
        (b"X: " + b"sk-secret" * 7_000 + b"\r\n") * (HEADERS_MAX // 2),
    ],
    ids=["one header", "many headers", "many large headers"],
)
def test_head_that_is_too_large_is_answered_431_though_the_client_still_sends(
    head: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with a_server(hello) as server, a_client(server.port) as client:
            # Far more than is read of it: closed at once, or not read any more, the connection would break here.
            await client.send(b"GET / HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n")
            answer = await client.rest()
            assert answer.startswith(b"HTTP/1.0 431 ") and answer.count(b"HTTP/1.") == 1
            assert b"sk-secret" not in answer and str(HEAD_BYTES_MAX).encode() in answer

    caplog.set_level(logging.INFO)
    run(scenario())
    assert caplog.records == []


@pytest.mark.parametrize("body", [b"", b"5\r\nhello\r\n0\r\n\r\n"], ids=["no body", "body"])
def test_large_heads_after_each_other_are_not_one_too_large(body: bytes) -> None:
    framing = b"Transfer-Encoding: chunked\r\n" if body else b""
    request = b"POST / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 60_000 + b"\r\n" + framing + b"\r\n" + body

    async def scenario() -> None:
        async with a_server(hello) as server, a_client(server.port) as client:
            for _ in range(2 * HEAD_BYTES_MAX // len(request)):
                await client.send(request)
                assert await client.exactly(len(HELLO)) == HELLO

    run(scenario())


def test_body_that_stops_coming_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "SILENCE_LIMIT_SECONDS", 0.02)

    async def scenario() -> None:
        async def handler(incoming: Incoming) -> None:
            with pytest.raises(BodyBroken, match="nothing came"):
                await incoming.read(100)
            await incoming.respond(400, b"", "text/plain")

        async with a_server(handler) as server, a_client(server.port) as client:
            await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
            answer = await client.rest()
            assert answer.startswith(b"HTTP/1.1 400 ") and b"Connection: close" in answer

    run(scenario())


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost:"], ids=["nothing", "half a head"])
def test_connection_without_a_request_is_closed_in_time(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "IDLE_LIMIT_SECONDS", 0.02)

    async def scenario() -> None:
        async with a_server(hello) as server, a_client(server.port) as client:
            await client.send(sent)
            assert await client.rest() == b""

    run(scenario())


def test_answer_to_a_broken_body_reaches_a_client_that_still_sends() -> None:
    async def scenario() -> None:
        begun = asyncio.Event()

        async def handler(incoming: Incoming) -> None:
            try:
                async for _ in incoming.chunks():
                    begun.set()
            except BodyBroken:
                await incoming.respond(400, b"", "text/plain")

        async with a_server(handler) as server, a_client(server.port) as client:
            await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            await begun.wait()
            for _ in range(16):
                await client.send(b"no length\r\n" * 100_000)
            assert (await client.rest()).startswith(b"HTTP/1.1 400 ")

    run(scenario())


def test_body_whose_framing_breaks_on_the_way_is_answered_400(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        begun = asyncio.Event()
        parts: list[bytes] = []

        async def handler(incoming: Incoming) -> None:
            async for part in incoming.chunks():
                parts.append(part)
                begun.set()
            await hello(incoming)

        async with a_server(handler) as server, a_client(server.port) as client:
            await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            await begun.wait()
            await client.send(b"not a length\r\n")
            answer = await client.rest()
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert answer.count(b"HTTP/1.") == 1
        assert parts == [b"abc"]

    run(scenario())
    assert caplog.records == []


def test_write_to_a_client_that_left_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async def handler(incoming: Incoming) -> None:
            raise ClientGone

        async with a_server(handler) as server, a_client(server.port) as client:
            await client.send(GET)
            assert await client.rest() == b""

    run(scenario())
    assert caplog.records == []


def test_handler_that_raises_is_logged_once_and_answered_500(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async def handler(incoming: Incoming) -> None:
            raise KeyError("a bug")

        async with a_server(handler) as server, a_client(server.port) as client:
            await client.send(GET)
            answer = await client.rest()
            assert answer.startswith(b"HTTP/1.1 500 ")
            assert b"a bug" not in answer

    run(scenario())
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert caplog.records[0].exc_info is not None


def test_handler_that_returns_without_an_answer_is_a_bug_answered_500(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async def handler(incoming: Incoming) -> None:
            return

        async with a_server(handler) as server, a_client(server.port) as client:
            await client.send(GET)
            assert (await client.head()).startswith(b"HTTP/1.1 500 ")

    run(scenario())
    assert len(caplog.records) == 1


async def _raises(incoming: Incoming) -> None:
    raise KeyError("a bug")


async def _cuts(incoming: Incoming) -> None:
    incoming.cut()


async def _forgets(incoming: Incoming) -> None:
    return


@pytest.mark.parametrize("fails", [_raises, _cuts, _forgets])
def test_answer_that_is_not_ended_looks_cut(fails: Callable[[Incoming], object]) -> None:
    async def scenario() -> None:
        async def handler(incoming: Incoming) -> None:
            await incoming.start(200, "OK", [] if incoming.path == "/chunks" else [("Content-Length", "9")])
            await incoming.write(b"abc")
            await fails(incoming)  # type: ignore[misc]

        async with a_server(handler) as server:
            for path, body in ((b"/chunks", b"3\r\nabc\r\n"), (b"/length", b"abc")):
                async with a_client(server.port) as client:
                    await client.send(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
                    await client.head()
                    assert await client.rest() == body

    run(scenario())


def test_length_that_does_not_fit_the_body_is_an_error() -> None:
    async def scenario() -> None:
        errors: list[str] = []

        async def handler(incoming: Incoming) -> None:
            await incoming.start(200, "OK", [("Content-Length", "3")])
            try:
                if incoming.path == "/more":
                    await incoming.write(b"four")
                await incoming.write(b"ab")
                await incoming.end()
            except ValueError as error:
                errors.append(str(error))

        async with a_server(handler) as server:
            for path in (b"/more", b"/less"):
                async with a_client(server.port) as client:
                    await client.send(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
                    await client.head()
                    assert len(await client.rest()) < 3
        assert [error.split(" ")[1] for error in errors] == ["bytes", "bytes"]

    run(scenario())


def test_line_break_in_an_answers_header_is_never_sent(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async def handler(incoming: Incoming) -> None:
            await incoming.start(200, "OK", [("X", "a\r\nSet-Cookie: evil")])

        async with a_server(handler) as server, a_client(server.port) as client:
            await client.send(GET)
            assert b"evil" not in await client.rest()

    run(scenario())
    assert len(caplog.records) == 1


def test_client_that_leaves_cancels_the_handler_and_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        fates: list[type[BaseException]] = []

        async def handler(incoming: Incoming) -> None:
            await incoming.start(200, "OK", [])
            try:
                if incoming.path == "/writes":
                    while True:
                        await incoming.write(b"x" * 1_000)
                        await asyncio.sleep(0)
                await asyncio.Event().wait()
            except (asyncio.CancelledError, ClientGone) as fate:
                fates.append(type(fate))
                raise

        async with a_server(handler) as server:
            for path in (b"/waits", b"/writes"):
                async with a_client(server.port) as client:
                    await client.send(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
                    await client.head()
            await until(lambda: len(fates) == 2)
        assert fates[0] is asyncio.CancelledError

    run(scenario())
    assert caplog.records == []


def test_address_in_use_is_named_with_its_remedy() -> None:
    async def scenario() -> None:
        async with a_server(hello) as first:
            with pytest.raises(CannotListen, match=f"127.0.0.1:{first.port}: Address already in use; .*PERDURE_LISTEN"):
                await HttpServer().start(hello, host="127.0.0.1", port=first.port)

    run(scenario())


def test_passed_socket_is_listened_on() -> None:
    async def scenario() -> None:
        passed = socket.create_server(("127.0.0.1", 0))
        port = passed.getsockname()[1]
        server = HttpServer()
        await server.start(hello, host="ignored", port=1, listen_fd=passed.detach())
        assert server.port == port
        async with a_client(port) as client:
            await client.send(GET)
            assert await client.exactly(len(HELLO)) == HELLO
        await server.close()

    run(scenario())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_drain_answers_what_arrives_on_idle_connections_and_says_close(loop: str) -> None:
    async def scenario() -> None:
        async with a_server(hello) as server, a_client(server.port) as asks, a_client(server.port) as idle:
            for client in (asks, idle):
                await client.send(GET)
                assert await client.exactly(len(HELLO)) == HELLO
            drain = asyncio.create_task(server.drain(idle_seconds=0.3, limit_seconds=5))
            await until(lambda: server.shutting_down)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", server.port)
            await asks.send(GET)
            assert b"\r\nConnection: close\r\n" in await asks.head()
            assert await asks.rest() == b"hello"
            assert not drain.done()
            assert await idle.rest() == b""
            await drain

    run(scenario(), loop)


def test_drain_lets_an_active_answer_end_and_closes_after_it() -> None:
    async def scenario() -> None:
        go_on = asyncio.Event()

        async def handler(incoming: Incoming) -> None:
            await incoming.start(200, "OK", [])
            await incoming.write(b"abc")
            await go_on.wait()
            await incoming.end()

        async with a_server(handler) as server, a_client(server.port) as client, a_client(server.port) as idle:
            await client.send(GET)
            await client.head()
            drain = asyncio.create_task(server.drain(idle_seconds=0.01, limit_seconds=3600))
            assert await idle.rest() == b""
            assert not drain.done()
            go_on.set()
            assert await client.rest() == b"3\r\nabc\r\n0\r\n\r\n"
            await drain

    run(scenario())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_drain_cuts_at_its_limit_and_lets_the_handler_clean_up(loop: str) -> None:
    async def scenario() -> None:
        settled: list[str] = []

        async def handler(incoming: Incoming) -> None:
            await incoming.start(200, "OK", [])
            await incoming.write(b"abc")
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.01)
                settled.append(incoming.path)

        async with a_server(handler) as server, a_client(server.port) as client:
            await client.send(GET)
            await client.head()
            await server.drain(idle_seconds=0.01, limit_seconds=0.05)
            assert settled == ["/"]
            assert await client.rest() == b"3\r\nabc\r\n"

    run(scenario(), loop)


def test_drain_lets_a_slow_client_take_an_answer_that_was_written() -> None:
    body = b"x" * 16 * 1024 * 1024

    async def scenario() -> None:
        ended = asyncio.Event()

        async def handler(incoming: Incoming) -> None:
            await incoming.respond(200, body, "text/plain")
            ended.set()

        async with a_server(handler) as server, a_client(server.port, buffer_bytes=1024) as client:
            await client.send(GET)
            await client.head()
            drain = asyncio.create_task(server.drain(idle_seconds=0.01, limit_seconds=3600))
            received = 0
            while not ended.is_set():
                received += len(await client.reader.read(16 * 1024))
            # The handler is done, and the end of the answer is still in the server's buffer.
            for _ in range(100):
                await asyncio.sleep(0)
            assert received + len(await client.rest()) == len(body)
            await drain

    run(scenario())


def test_drain_with_no_connections_is_immediate() -> None:
    async def scenario() -> None:
        async with a_server(hello) as server:
            async with asyncio.timeout(5):
                await server.drain(idle_seconds=60, limit_seconds=60)

    run(scenario())
