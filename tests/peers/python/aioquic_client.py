"""HTTP/3 with aioquic, as far as the tests want it: requests side by side, early, and on the move."""

import asyncio
from urllib.parse import urlsplit

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted
from aioquic.quic.packet import QuicProtocolVersion


class Answer:
    """What came of one answer so far."""

    def __init__(self):
        self.status, self.body = None, bytearray()
        self.ended = asyncio.get_running_loop().create_future()


class Client(QuicConnectionProtocol):
    """One connection."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.http, self.answers, self.alpn = None, {}, None
        self.held = None  # a list: what comes is kept there, unread

    def datagram_received(self, data, addr):
        if self.held is None:
            super().datagram_received(data, addr)
        else:
            self.held.append((data, addr))

    def read_held(self):
        """Reads what was held, and from now on what comes."""
        held, self.held = self.held, None
        for datagram in held:
            self.datagram_received(*datagram)

    def quic_event_received(self, event):
        if isinstance(event, HandshakeCompleted):
            self.alpn = event.alpn_protocol
        if isinstance(event, ConnectionTerminated):
            for answer in self.answers.values():
                if not answer.ended.done():
                    answer.ended.set_exception(ConnectionError(str(event)))
        if self.http is None:
            self.http = H3Connection(self._quic)
        for part in self.http.handle_event(event):
            answer = self.answers.get(getattr(part, "stream_id", None))
            if answer is None:
                continue
            if isinstance(part, HeadersReceived) and answer.status is None:
                answer.status = int(dict(part.headers)[b":status"])
            elif isinstance(part, DataReceived):
                answer.body += part.data
            if part.stream_ended and not answer.ended.done():
                answer.ended.set_result(None)

    def ask(self, url, fields):
        """Sends a request; its answer comes by and by."""
        if self.http is None:
            self.http = H3Connection(self._quic)
        parts = urlsplit(url)
        stream = self._quic.get_next_available_stream_id()
        head = {":method": "GET", ":scheme": "https", ":authority": parts.netloc, ":path": parts.path}
        fields = {**head, "user-agent": "aioquic", **fields}
        answer = self.answers[stream] = Answer()
        self.http.send_headers(
            stream, [(k.lower().encode(), v.encode()) for k, v in fields.items()], end_stream=True
        )
        self.transmit()
        return answer

    async def whole(self, answer):
        await answer.ended
        assert self.alpn == "h3", self.alpn
        return "HTTP/3", answer.status, bytes(answer.body)

    async def move(self):
        """Goes on from another port, as behind a NAT that has forgotten it."""
        loop = asyncio.get_running_loop()
        self._transport.close()
        await loop.create_datagram_endpoint(lambda: self, local_addr=("::", 0))


def configuration(ca, url):
    made = QuicConfiguration(
        is_client=True,
        alpn_protocols=H3_ALPN,
        server_name=urlsplit(url).hostname,
        max_data=16 << 20,
        max_stream_data=1 << 20,
    )
    made.load_verify_locations(ca)
    return made


def open_to(url, made, **named):
    parts = urlsplit(url)
    return connect(
        parts.hostname, parts.port, configuration=made, create_protocol=Client, **named
    )


async def fetch_version_2(ca, requests):
    """Begins with QUIC version 2 (RFC 9369), and goes on with version 1 as the server tells it to."""
    made = configuration(ca, requests[0][0])
    made.original_version = QuicProtocolVersion.VERSION_2
    whole, client = await fetch(ca, requests, made)
    assert client._quic._version == QuicProtocolVersion.VERSION_1
    return whole


async def fetch(ca, requests, made=None):
    """All requests at once."""
    url = requests[0][0]
    async with open_to(url, made or configuration(ca, url)) as client:
        answers = [client.ask(*request) for request in requests]
        return [await client.whole(answer) for answer in answers], client


async def fetch_early(ca, requests, gate):
    """Connects and leaves; then connects again and sends every request in the first flight. Nothing that
    comes is read before the file `gate` is there, so the handshake is not over until then."""
    url = requests[0][0]
    made = configuration(ca, url)
    tickets = asyncio.Queue()
    async with open_to(url, made, session_ticket_handler=tickets.put_nowait) as client:
        await client.ping()
        made.session_ticket = await tickets.get()
    async with open_to(url, made, wait_connected=False) as client:
        client.held = []
        answers = [client.ask(*request) for request in requests]
        while not gate.exists():
            await asyncio.sleep(0.001)
        client.read_held()
        whole = [await client.whole(answer) for answer in answers]
        assert client._quic.tls.session_resumed and client._quic.tls.early_data_accepted
        return whole


async def fetch_moving(ca, requests):
    """Each request in turn; while an answer comes, the port and the connection ID change, twice."""
    url, whole = requests[0][0], []
    async with open_to(url, configuration(ca, url)) as client:
        for request in requests:
            answer = client.ask(*request)
            for part in (500_000, 1_500_000):
                while len(answer.body) < part and not answer.ended.done():
                    await asyncio.sleep(0)
                assert not answer.ended.done(), "the answer was there before the move"
                await client.move()
                if part > 1_000_000:
                    client.change_connection_id()
                # What comes for the old port is lost; something has to come from the new one.
                await client.ping()
            whole.append(await client.whole(answer))
    return whole
