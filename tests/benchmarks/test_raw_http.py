"""The load generator's reading of responses: where they end, and with which status."""

import asyncio

import pytest

from benchmarks.raw_http import Pool, Reply, connect, percentile, post, run

WHOLE = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 5\r\n\r\nsorry"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n8\r\ndata: a\n\r\n3\r\nend\r\n0\r\n\r\n"
)
CUT = CHUNKED[:-5]


async def start(response: bytes, piece_bytes: int) -> asyncio.Server:
    """A server that answers everything so, in pieces; it closes after what is cut."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            for begin in range(0, len(response), piece_bytes):
                writer.write(response[begin : begin + piece_bytes])
                await asyncio.sleep(0)
            if response == CUT:
                break
        writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", 0)


async def ask_twice(response: bytes, piece_bytes: int) -> tuple[Reply, Reply]:
    """Two requests on one connection."""
    async with await start(response, piece_bytes) as server:
        connection = await connect(server.sockets[0].getsockname()[1], keeps_data=True)
        first = await connection.ask(post("/", {}))
        second = await connection.ask(post("/", {}))
        connection.close()
        return first, second


@pytest.mark.parametrize("piece_bytes", [1, 7, 1000])
@pytest.mark.parametrize(("response", "status"), [(WHOLE, 429), (CHUNKED, 200)])
def test_a_response_ends_where_it_ends_however_it_arrives(
    response: bytes, status: int, piece_bytes: int
) -> None:
    for reply in run(ask_twice(response, piece_bytes)):
        assert reply.status == status
        assert reply.num_bytes == len(response)
        assert b"".join(reply.data) == response
        assert reply.sent < reply.ended


def test_a_connection_that_ends_early_has_no_status() -> None:
    async def ask() -> Reply:
        async with await start(CUT, 1000) as server:
            pool = Pool(server.sockets[0].getsockname()[1])
            return await pool.ask(post("/", {}))

    assert run(ask()).status == 0


def test_percentiles() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([float(n) for n in range(100)], 0.99) == 99.0
    assert percentile([], 0.5) == 0.0
