"""The way out: what is sent, what comes back, and whose fault it is when nothing does."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator
from typing import cast

import pytest

from daemon import upstream as module
from daemon.upstream import (
    SLICE_BYTES,
    Headers,
    UploadError,
    UpstreamCut,
    UpstreamInvalid,
    UpstreamTimeout,
    UpstreamUnreachable,
    end_to_end,
)
from tests.daemon.raw_http import Peer, a_provider, an_upstream, answering, recording, run, until, until_still

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

both_loops = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


def test_end_to_end_drops_what_is_about_the_connection() -> None:
    headers: Headers = [
        ("A", "1"),
        ("CONNECTION", "keep-alive, X-Mine"),
        ("x-mine", "1"),
        ("Keep-Alive", "5"),
        ("Proxy-Authenticate", "x"),
        ("te", "x"),
        ("Trailer", "x"),
        ("Upgrade", "h2c"),
        ("Content-Length", "1"),
        ("a", "2"),
    ]
    assert end_to_end(headers) == [("A", "1"), ("Content-Length", "1"), ("a", "2")]


def test_end_to_end_drops_a_length_beside_an_encoding() -> None:
    assert end_to_end([("Content-Length", "3"), ("Transfer-Encoding", "chunked")]) == []


async def _upload() -> AsyncIterator[bytes]:
    yield b"one"
    yield b"two"


@pytest.mark.parametrize(
    ("method", "headers", "body", "lines", "received"),
    [
        pytest.param("GET", [], None, [], b"", id="nothing"),
        pytest.param("GET", [("Host", "evil"), ("Expect", "100-continue")], None, [], b"", id="host and expect"),
        pytest.param("POST", [], b"{}", [b"Content-Length: 2"], b"{}", id="length added"),
        pytest.param(
            "POST",
            [("content-LENGTH", "99"), ("Z", "1")],
            b"{}",
            [b"content-LENGTH: 2", b"Z: 1"],
            b"{}",
            id="length corrected in place",
        ),
        pytest.param("POST", [("Content-Length", "0")], None, [b"Content-Length: 0"], b"", id="empty"),
        pytest.param("POST", [], _upload, [b"Transfer-Encoding: chunked"], b"onetwo", id="upload"),
        pytest.param(
            "POST", [("Content-Length", "6")], _upload, [b"Content-Length: 6"], b"onetwo", id="upload of known length"
        ),
        pytest.param("GET", [("X", "M\udcfcller")], None, ["X: Müller".encode()], b"", id="ISO 8859-1"),
    ],
)
def test_request_has_exactly_the_given_headers(
    method: str, headers: Headers, body: object, lines: list[bytes], received: bytes
) -> None:
    async def scenario() -> None:
        seen: list[tuple[bytes, bytes]] = []
        async with a_provider(recording(seen, OK)) as provider, an_upstream() as upstream:
            data = cast(bytes | None, body() if callable(body) else body)
            async with upstream.send(method, provider.url + "/x", headers, data) as reply:
                assert [part async for part in reply.chunks()] == [b"ok"]
            host = provider.url.removeprefix("http://").encode()
            head, got = seen[0]
            assert head.split(b"\r\n") == [method.encode() + b" /x HTTP/1.1", b"Host: " + host, *lines, b"", b""]
            assert got == received

    run(scenario())


@pytest.mark.parametrize("target", ["/", "", "/?", "/a?", "//x/../%2F%2f/./y?a=%20+b&&#f", "/ü?ü", "/x?u=http://y/@z"])
def test_target_is_sent_as_written(target: str) -> None:
    async def scenario() -> None:
        seen: list[tuple[bytes, bytes]] = []
        async with a_provider(recording(seen, OK)) as provider, an_upstream() as upstream:
            async with upstream.send("GET", provider.url + target, []):
                pass
            assert seen[0][0].split(b"\r\n")[0] == f"GET {target or '/'} HTTP/1.1".encode()

    run(scenario())


def test_large_body_is_sent_whole() -> None:
    body = bytes(range(256)) * (SLICE_BYTES // 64) + b"end"

    async def scenario() -> None:
        seen: list[tuple[bytes, bytes]] = []
        async with a_provider(recording(seen, OK)) as provider, an_upstream() as upstream:
            async with upstream.send("POST", provider.url, [], body):
                pass
            assert seen[0][1] == body

    run(scenario())


def test_connection_is_used_again_after_a_whole_answer() -> None:
    async def scenario() -> None:
        async with a_provider(answering(OK)) as provider, an_upstream() as upstream:
            for _ in range(3):
                async with upstream.send("POST", provider.url, [], b"{}") as reply:
                    assert b"".join([part async for part in reply.chunks()]) == b"ok"
            assert provider.connections == 1

    run(scenario())


@both_loops
def test_connection_that_the_provider_closed_meanwhile_is_not_used_again(loop: str) -> None:
    """The provider's FIN is in the kernel, but the event loop has not looked yet when the next request is sent."""

    async def scenario() -> None:
        running = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"

            async def serve_one() -> socket.socket:
                connection, _ = await running.sock_accept(listener)
                while b"{}" not in await running.sock_recv(connection, 65_536):
                    pass
                await running.sock_sendall(connection, OK)
                return connection

            async with an_upstream() as upstream:
                first = asyncio.create_task(serve_one())
                async with upstream.send("POST", url, [], b"{}") as reply:
                    assert b"".join([part async for part in reply.chunks()]) == b"ok"
                connection = await first
                second = asyncio.create_task(serve_one())
                await asyncio.sleep(0)
                connection.close()
                async with upstream.send("POST", url, [], b"{}") as reply:
                    assert reply.status == 200
                    assert b"".join([part async for part in reply.chunks()]) == b"ok"
                (await second).close()

    run(scenario(), loop)


@pytest.mark.parametrize("method", ["POST", "GET", "PUT", "DELETE"])
def test_request_that_may_have_been_processed_is_not_sent_twice(method: str) -> None:
    """The provider reads the second request on a reused connection and hangs up without a word."""

    async def scenario() -> None:
        requests: list[bytes] = []

        async def script(peer: Peer) -> None:
            requests.append((await peer.request())[1])
            await peer.send(OK)
            requests.append((await peer.request())[1])
            peer.close()

        async with a_provider(script) as provider, an_upstream() as upstream:
            async with upstream.send(method, provider.url, [], b"1") as reply:
                assert b"".join([part async for part in reply.chunks()]) == b"ok"
            with pytest.raises(UpstreamInvalid, match="hung up"):
                async with upstream.send(method, provider.url, [], b"2"):
                    pass
            assert requests == [b"1", b"2"]
            assert provider.connections == 1

    run(scenario())


@both_loops
def test_leaving_before_the_end_closes_the_providers_connection(loop: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")

    async def scenario() -> None:
        async with a_provider(script) as provider, an_upstream() as upstream:
            async with upstream.send("GET", provider.url, []) as reply:
                assert await anext(reply.chunks()) == b"abc"
                assert provider.closed_by_client == 0
            await until(lambda: provider.closed_by_client == 1)

    run(scenario(), loop)


@both_loops
def test_leaving_does_not_wait_for_a_provider_that_reads_no_further(loop: str) -> None:
    """What is left of the request could never be written; an orderly close would keep its socket open."""

    def open_files() -> int:
        return len(os.listdir("/dev/fd"))

    async def scenario() -> None:
        async def script(peer: Peer) -> None:
            await peer.head()
            await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\n\r\n")
            await asyncio.Event().wait()

        sent = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal sent
            while True:
                yield b"x" * 64 * 1024
                sent += 1

        async with a_provider(script) as provider, an_upstream() as upstream:
            before = open_files()
            async with upstream.send("POST", provider.url, [], endless()) as reply:
                assert reply.status == 413
                await until_still(lambda: sent)
                assert open_files() == before + 2
            await until(lambda: open_files() == before + 1)

    run(scenario(), loop)


@both_loops
@pytest.mark.parametrize(
    ("answer", "reset"),
    [
        pytest.param(b"Content-Length: 9\r\n\r\nabc", False, id="length"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", False, id="chunks"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", True, id="chunks and reset"),
        pytest.param(b"X: y\r\n\r\nabc", True, id="close and reset"),
    ],
)
def test_answer_that_breaks_off_is_a_cut(loop: str, answer: bytes, reset: bool) -> None:
    async def scenario() -> None:
        read = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\n" + answer)
            await read.wait()
            if reset:
                handle = peer.writer.get_extra_info("socket")
                handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.reset()

        async with (
            a_provider(script) as provider,
            an_upstream() as upstream,
            upstream.send("GET", provider.url, []) as reply,
        ):
            chunks = reply.chunks()
            assert await anext(chunks) == b"abc"
            read.set()
            with pytest.raises(UpstreamCut):
                await anext(chunks)

    run(scenario(), loop)


def test_answer_with_broken_chunks_is_a_cut() -> None:
    async def scenario() -> None:
        read = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            await read.wait()
            await peer.send(b"not a length\r\n")

        async with (
            a_provider(script) as provider,
            an_upstream() as upstream,
            upstream.send("GET", provider.url, []) as reply,
        ):
            chunks = reply.chunks()
            assert await anext(chunks) == b"abc"
            read.set()
            with pytest.raises(UpstreamCut):
                await anext(chunks)

    run(scenario())


def test_answer_that_ends_with_its_connection_is_whole() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.0 200 OK\r\n\r\nabc")
        peer.close()

    async def scenario() -> None:
        async with (
            a_provider(script) as provider,
            an_upstream() as upstream,
            upstream.send("GET", provider.url, []) as reply,
        ):
            assert b"".join([part async for part in reply.chunks()]) == b"abc"

    run(scenario())


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + (b"X: " + b"y" * 60_000 + b"\r\n") * 20 + b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 50_000 + OK,
        b"HTTP/1.1 099 Odd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
)
def test_answer_that_is_not_http_is_invalid(answer: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)
        peer.close()

    async def scenario() -> None:
        async with a_provider(script) as provider, an_upstream() as upstream:
            with pytest.raises(UpstreamInvalid):
                async with upstream.send("POST", provider.url + "/?key=sk-secret", [], b"{}"):
                    pass

    run(scenario())


def test_large_heads_after_each_other_are_not_one_too_large() -> None:
    async def scenario() -> None:
        big = b"HTTP/1.1 200 OK\r\nX: " + b"y" * 60_000 + b"\r\nContent-Length: 2\r\n\r\nok"
        async with a_provider(answering(big)) as provider, an_upstream() as upstream:
            for _ in range(2 * module.HEAD_BYTES_MAX // len(big)):
                async with upstream.send("POST", provider.url, [], b"{}") as reply:
                    assert b"".join([part async for part in reply.chunks()]) == b"ok"
            assert provider.connections == 1

    run(scenario())


def test_upload_whose_source_fails_is_no_fault_of_the_provider() -> None:
    class Torn(UploadError):
        pass

    async def upload() -> AsyncIterator[bytes]:
        yield b"one"
        raise Torn

    async def scenario() -> None:
        async with a_provider(answering(OK)) as provider, an_upstream() as upstream:
            with pytest.raises(Torn):
                async with upstream.send("POST", provider.url, [], upload()):
                    pass

    run(scenario())


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:{port}/?key=sk-secret", ": Connection refused"),
        ("http://no-such-host.invalid/", ": Name or service not known|: Temporary failure"),
        ("nonsense", "not a valid address"),
    ],
)
def test_provider_that_can_not_be_connected_to_is_unreachable(url: str, said: str) -> None:
    async def scenario() -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            async with an_upstream() as upstream:
                with pytest.raises(UpstreamUnreachable, match=said) as raised:
                    async with upstream.send("GET", url.format(port=unused.getsockname()[1]), []):
                        pass
        assert "sk-secret" not in str(raised.value)

    run(scenario())


def test_plain_provider_at_a_tls_address_is_unreachable() -> None:
    async def script(peer: Peer) -> None:
        await peer.exactly(1)
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        peer.close()

    async def scenario() -> None:
        async with a_provider(script) as provider, an_upstream() as upstream:
            with pytest.raises(UpstreamUnreachable):
                async with upstream.send("GET", provider.url.replace("http", "https"), []):
                    pass

    run(scenario())


@pytest.mark.parametrize("body", [None, b"x" * 16 * 1024 * 1024])
def test_provider_that_stays_silent_is_a_timeout(body: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It never reads the large body either, so that the request is never wholly sent."""
    monkeypatch.setattr(module, "CONNECT_LIMIT_SECONDS", 0.1)

    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as never_accepts:
            async with an_upstream(silence_limit_seconds=0.05) as upstream:
                with pytest.raises(UpstreamTimeout):
                    async with upstream.send("POST", f"http://127.0.0.1:{never_accepts.getsockname()[1]}", [], body):
                        pass

    run(scenario())


def test_silence_in_mid_answer_is_a_cut() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")

    async def scenario() -> None:
        async with (
            a_provider(script) as provider,
            an_upstream(silence_limit_seconds=0.05) as upstream,
            upstream.send("GET", provider.url, []) as reply,
        ):
            chunks = reply.chunks()
            assert await anext(chunks) == b"abc"
            with pytest.raises(UpstreamCut):
                await anext(chunks)

    run(scenario())


def test_silence_limit_is_longer_than_any_clients_own() -> None:
    assert module.SILENCE_LIMIT_SECONDS > 600
