"""Both HTTP edges with nothing between them: what one side sends is what the other side sees, to the byte."""

from __future__ import annotations

import asyncio
import gzip
import socket

import pytest

from daemon.upstream import READ_BUFFER_BYTES
from tests.daemon.raw_http import (
    BUFFER_BYTES,
    Peer,
    Script,
    a_client,
    a_provider,
    a_relay,
    answering,
    recording,
    run,
    until,
    until_still,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"

both_loops = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


def exchange(script: Script, request: bytes, expected: bytes) -> None:
    """One request through the relay; the whole answer, byte for byte."""

    async def scenario() -> None:
        async with a_provider(script) as provider, a_relay(provider.url) as relay, a_client(relay.port) as client:
            await client.send(request)
            assert await client.exactly(len(expected)) == expected

    run(scenario())


@both_loops
def test_request_with_odd_headers_reaches_the_provider_as_sent(loop: str) -> None:
    async def scenario() -> None:
        seen: list[tuple[bytes, bytes]] = []
        async with a_provider(recording(seen, OK)) as provider, a_relay(provider.url) as relay:
            async with a_client(relay.port) as client:
                await client.send(
                    b"POST /v1//a/%2F/../b%20c?q=%41&& HTTP/1.1\r\nHoSt: perdure\r\nX-oDD: 1\r\nx-odd: 2\r\nB: \r\n"
                    b"Connection: keep-alive, x-mine\r\nX-Mine: hop\r\nProxy-Authorization: no\r\nTE: trailers\r\n"
                    b"cookie: a=1; b=2\r\nCONTENT-length: 5\r\nX-UTF: \xc3\xbc\r\nX-oDD: 3\r\n\r\n\x00\xff\r\nz"
                )
                await client.exactly(len(OK))
            host = provider.url.removeprefix("http://").encode()
            head = (
                b"POST /v1//a/%2F/../b%20c?q=%41&& HTTP/1.1\r\nHost: " + host + b"\r\nX-oDD: 1\r\nX-oDD: 2\r\nB: \r\n"
                b"cookie: a=1; b=2\r\nCONTENT-length: 5\r\nX-UTF: \xc3\xbc\r\nX-oDD: 3\r\n\r\n"
            )
            assert seen == [(head, b"\x00\xff\r\nz")]

    run(scenario(), loop)


@both_loops
def test_answer_with_odd_head_reaches_the_client_as_sent(loop: str) -> None:
    head = (
        b"HTTP/1.1 529 Sorry, Over~loaded \xe9\r\nset-cookie: a=1\r\nSet-Cookie: b=2\r\nX-LATIN: \xfc\r\n"
        b"retry-AFTER: 7\r\nContent-Length: 3\r\nserver: them\r\n"
    )

    async def scenario() -> None:
        answer = head + b"Keep-Alive: timeout=5\r\nConnection: keep-alive, X-Hop\r\nx-hop: 1\r\n\r\nabc"
        async with (
            a_provider(answering(answer)) as provider,
            a_relay(provider.url) as relay,
            a_client(relay.port) as client,
        ):
            await client.send(GET)
            assert await client.exactly(len(head) + 5) == head + b"\r\nabc"

    run(scenario(), loop)


@pytest.mark.parametrize(
    ("request_bytes", "answer", "expected"),
    [
        pytest.param(
            b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n",
            id="head",
        ),
        pytest.param(GET, b"HTTP/1.1 204 None\r\nX: 1\r\n\r\n", b"HTTP/1.1 204 None\r\nX: 1\r\n\r\n", id="204"),
        pytest.param(
            GET,
            b"HTTP/1.1 304 Same\r\nContent-Length: 7\r\nETag: w\r\n\r\n",
            b"HTTP/1.1 304 Same\r\nContent-Length: 7\r\nETag: w\r\n\r\n",
            id="304",
        ),
        pytest.param(
            GET,
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + OK,
            OK,
            id="interim answers",
        ),
        pytest.param(
            GET,
            b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
            id="redirect",
        ),
        pytest.param(
            GET,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            id="chunked",
        ),
        pytest.param(
            b"GET / HTTP/1.0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nabc",
            id="chunked to HTTP/1.0",
        ),
    ],
)
def test_answer_of_every_framing_arrives_whole(request_bytes: bytes, answer: bytes, expected: bytes) -> None:
    async def scenario() -> None:
        async with (
            a_provider(answering(answer)) as provider,
            a_relay(provider.url) as relay,
            a_client(relay.port) as client,
        ):
            # A second request tells that nothing was left over after the first answer.
            again = b" HTTP/1.0" not in request_bytes
            await client.send(request_bytes * 2 if again else request_bytes)
            assert await client.exactly(len(expected)) == expected
            assert await client.exactly(len(expected)) == expected if again else await client.rest() == b""

    run(scenario())


def test_compressed_body_stays_compressed() -> None:
    body = gzip.compress(b"x" * 10_000, mtime=0)
    answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    exchange(answering(answer), b"GET / HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip, br\r\n\r\n", answer)


def test_header_of_60_kilobytes_passes_both_ways() -> None:
    big = b"X-Big: " + b"v" * 60_000 + b"\r\n"

    async def scenario() -> None:
        seen: list[tuple[bytes, bytes]] = []
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + big + b"\r\nok"
        async with (
            a_provider(recording(seen, answer)) as provider,
            a_relay(provider.url) as relay,
            a_client(relay.port) as client,
        ):
            await client.send(b"GET / HTTP/1.1\r\nHost: x\r\n" + big + b"\r\n")
            assert await client.exactly(len(answer)) == answer
        assert big in seen[0][0]

    run(scenario())


def test_thousand_headers_pass_both_ways() -> None:
    many = b"".join(b"X-%d: %d\r\n" % (number, number) for number in range(1_000))

    async def scenario() -> None:
        seen: list[tuple[bytes, bytes]] = []
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + many + b"\r\nok"
        async with (
            a_provider(recording(seen, answer)) as provider,
            a_relay(provider.url) as relay,
            a_client(relay.port) as client,
        ):
            await client.send(b"GET / HTTP/1.1\r\nHost: x\r\n" + many + b"\r\n")
            assert await client.exactly(len(answer)) == answer
        assert many in seen[0][0]

    run(scenario())


def test_cookies_of_one_client_are_not_sent_for_another() -> None:
    async def scenario() -> None:
        seen: list[tuple[bytes, bytes]] = []
        answer = b"HTTP/1.1 200 OK\r\nSet-Cookie: mine=1\r\nContent-Length: 0\r\n\r\n"
        async with a_provider(recording(seen, answer)) as provider, a_relay(provider.url) as relay:
            for _ in range(2):
                async with a_client(relay.port) as client:
                    await client.send(GET)
                    assert await client.exactly(len(answer)) == answer
        assert len(seen) == 2
        assert b"ookie" not in seen[1][0]

    run(scenario())


@both_loops
def test_stream_arrives_event_by_event(loop: str) -> None:
    async def scenario() -> None:
        seen_by_client = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for number in range(5):
                await peer.send(b"9\r\ndata: %d\n\n\r\n" % number)
                await seen_by_client.wait()
                seen_by_client.clear()
            await peer.send(b"0\r\n\r\n")

        async with a_provider(script) as provider, a_relay(provider.url) as relay, a_client(relay.port) as client:
            await client.send(GET)
            await client.head()
            for number in range(5):
                assert await client.chunk() == b"data: %d\n\n" % number
                seen_by_client.set()
            assert await client.chunk() == b""

    run(scenario(), loop)


@both_loops
def test_slow_client_stops_the_provider(loop: str) -> None:
    """The provider can push what the buffers on the way hold, and no more until the client reads."""
    kernel_buffer_bytes = 64 * 1024
    offered = 64 * 1024 * 1024

    async def scenario() -> None:
        pushed = 0

        async def script(peer: Peer) -> None:
            nonlocal pushed
            sock = peer.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, kernel_buffer_bytes)
            peer.writer.transport.set_write_buffer_limits(high=0)
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % offered)
            while pushed < offered:
                await peer.send(b"x" * kernel_buffer_bytes)
                pushed += kernel_buffer_bytes

        async with (
            a_provider(script) as provider,
            a_relay(provider.url) as relay,
            a_client(relay.port, buffer_bytes=1024) as client,
        ):
            await client.send(GET)
            await client.head()
            await until_still(lambda: pushed)
            # Ours is a few times READ_BUFFER_BYTES; most of it are the kernel's buffers of two connections.
            assert READ_BUFFER_BYTES < pushed < offered // 3, pushed
            received = 0
            while received < offered:
                received += len(await client.reader.read(BUFFER_BYTES))
            assert received == offered

    run(scenario(), loop)


@both_loops
def test_client_that_leaves_in_mid_stream_closes_the_provider_connection(loop: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")

    async def scenario() -> None:
        async with a_provider(script) as provider, a_relay(provider.url) as relay:
            async with a_client(relay.port) as client:
                await client.send(GET)
                await client.head()
                assert await client.chunk() == b"abc"
                assert provider.closed_by_client == 0
            await until(lambda: provider.closed_by_client == 1)

    run(scenario(), loop)


@both_loops
def test_client_that_leaves_before_the_answer_closes_the_provider_connection(loop: str) -> None:
    async def scenario() -> None:
        asked = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.request()
            asked.set()

        async with a_provider(script) as provider, a_relay(provider.url) as relay:
            async with a_client(relay.port) as client:
                await client.send(GET)
                await asked.wait()
            await until(lambda: provider.closed_by_client == 1)

    run(scenario(), loop)


@both_loops
@pytest.mark.parametrize(
    ("version", "framing", "sent", "expected"),
    [
        (b"1.1", b"Content-Length: 9", b"abc", b"abc"),
        (b"1.1", b"Transfer-Encoding: chunked", b"3\r\nabc\r\n", b"3\r\nabc\r\n"),
        (b"1.0", b"Content-Length: 9", b"abc", b"abc"),
        # Without a length or chunks an orderly end would be the proper one.
        (b"1.0", b"Transfer-Encoding: chunked", b"3\r\nabc\r\n", None),
    ],
)
def test_answer_cut_by_the_provider_is_cut_for_the_client(
    loop: str, version: bytes, framing: bytes, sent: bytes, expected: bytes | None
) -> None:
    async def scenario() -> None:
        seen_by_client = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n" + sent)
            await seen_by_client.wait()
            peer.close()

        async with a_provider(script) as provider, a_relay(provider.url) as relay, a_client(relay.port) as client:
            await client.send(b"GET / HTTP/" + version + b"\r\nHost: x\r\n\r\n")
            await client.head()
            seen_by_client.set()
            if expected is None:
                with pytest.raises(ConnectionResetError):
                    await client.rest()
            else:
                assert await client.rest() == expected

    run(scenario(), loop)


def test_garbage_from_the_provider_is_answered_502() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")

    async def scenario() -> None:
        async with a_provider(script) as provider, a_relay(provider.url) as relay, a_client(relay.port) as client:
            await client.send(GET)
            assert (await client.head()).startswith(b"HTTP/1.1 502 ")

    run(scenario())


def test_provider_that_refuses_connections_is_answered_502() -> None:
    async def scenario() -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            async with a_relay(f"http://127.0.0.1:{unused.getsockname()[1]}") as relay, a_client(relay.port) as client:
                await client.send(GET)
                assert (await client.head()).startswith(b"HTTP/1.1 502 ")

    run(scenario())


def test_upload_in_chunks_is_passed_on_as_it_comes() -> None:
    async def scenario() -> None:
        arrived = asyncio.Event()

        async def script(peer: Peer) -> None:
            assert b"Transfer-Encoding: chunked" in await peer.head()
            assert await peer.chunk() == b"one"
            arrived.set()
            assert await peer.chunked_body() == b"two"
            await peer.send(OK)

        async with a_provider(script) as provider, a_relay(provider.url) as relay, a_client(relay.port) as client:
            await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
            await arrived.wait()
            await client.send(b"3\r\ntwo\r\n0\r\n\r\n")
            assert await client.exactly(len(OK)) == OK

    run(scenario())


def test_upload_that_breaks_on_the_way_is_not_blamed_on_the_provider() -> None:
    async def scenario() -> None:
        arrived = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.head()
            assert await peer.chunk() == b"one"
            arrived.set()

        async with a_provider(script) as provider, a_relay(provider.url) as relay, a_client(relay.port) as client:
            await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
            await arrived.wait()
            await client.send(b"no length\r\n")
            answer = await client.rest()
            assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.") == 1
            await until(lambda: provider.closed_by_client == 1)

    run(scenario())
