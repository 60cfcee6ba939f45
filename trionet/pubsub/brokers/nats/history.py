"""What the broker asks of JetStream: that the streams are there, where topics stand, and what came behind a position.

Offsets of a topic are sequence numbers of its stream, which it shares with other topics; so they have gaps. Whether
nothing is missing behind a position P is proved by one of these, and denied if none of them holds:

- the topic's message at P is still there: streams drop a topic's oldest messages first, so all behind it are, too
- the stream has dropped nothing behind P from its beginning, and no more than the topic keeps came behind P; streams
  keep one more, so then none of them was dropped either

That is why a stream keeps messages for longer (`remember`) than the topic's history is said to last: a topic that was
silent for hours is known to have been. What is older than the limits say is left out when it is read.
Sources: the JetStream wire API (ADR-1), direct gets (ADR-31: batches and last messages of many subjects, from server
2.11 on).
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import trio

from trionet.errors import BrokerDown, BrokerError, printable
from trionet.pubsub.broker import PAGE
from trionet.pubsub.brokers.nats.link import Link
from trionet.pubsub.brokers.nats.protocol import Message, header, parse_status, read_object
from trionet.pubsub.brokers.nats.publications import PENDING, SEQUENCE, SUBJECT, UP_TO, number, read_stored
from trionet.pubsub.brokers.nats.streams import Stream, seconds
from trionet.pubsub.publication import HistoryPage, Position, Publication

__all__ = ["JetStream", "State"]

LEAST: Final = (2, 11)  # version of the server
BATCH_BYTES: Final = 8 * 2**20  # of one answer; a page that is larger comes in several
AT_ONCE: Final = 500  # topics whose last messages are asked for at once; the server answers for 1,024 at most


LAG: Final = 0.02  # seconds after which a replica may have what the leader had before

NOT_FOUND: Final = 10059  # err_code: there is no such stream
NOT_ENABLED: Final = {10039, 10076}  # for this account, on this server
DIFFERENT: Final = 10058  # there is one, configured otherwise


class State(NamedTuple):
    """A stream at a moment: sequences of the first message it has and of the last it ever had."""

    first: int
    last: int


class JetStream:
    """JetStream behind one `Link`. Methods raise `BrokerDown`, or `BrokerError` with what the server said."""

    def __init__(self, link: Link, domain: str = "") -> None:
        self._link = link
        self._api = f"$JS.{domain}.API" if domain else "$JS.API"
        self.ahead = 0.0  # seconds by which the server's clock is before ours

    async def there(self) -> str:
        """Why it cannot be used here; "" if it can."""
        version = str(self._link.info.get("version", ""))
        if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < LEAST:
            return f"server {version} is older than {LEAST[0]}.{LEAST[1]}"
        try:
            await self._call("INFO", {})
        except BrokerDown:
            if self._link.lost.is_set() or self._link.info.get("jetstream"):
                raise  # it is not ready yet
            return "JetStream is not enabled"
        except BrokerError as error:
            return str(error)
        return ""

    async def _call(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        message = await self._link.request(f"{self._api}.{what}", json.dumps(body).encode())
        if parse_status(message.headers)[0] == 503:  # nobody has subscribed to that subject
            raise BrokerDown("JetStream does not answer: it is not enabled, or has no leader at present")
        answer = read_object(message.payload)
        error = answer.get("error")
        if error:
            text = f"JetStream: {printable(str(error.get('description')))}"
            number = error.get("err_code", 0)
            passing = error.get("code") == 503 and number not in NOT_ENABLED
            raise BrokerDown(text) if passing else _ApiError(text, number)
        return answer

    # --------------------------------------------------------------- streams

    async def provide(self, stream: Stream, config: dict[str, Any], creation: dict[str, Any]) -> None:
        """Have `stream` configured like `config`: made with `creation` besides, or changed if need be."""
        full = {"name": stream.name, **config, **creation}
        try:
            answer = await self._call(f"STREAM.INFO.{stream.name}", {})
        except _ApiError as error:
            if error.number != NOT_FOUND:
                raise
            try:
                answer = await self._call(f"STREAM.CREATE.{stream.name}", full)
            except _ApiError as again:
                if again.number != DIFFERENT:
                    raise
                answer = await self._call(f"STREAM.INFO.{stream.name}", {})  # another process was faster
        found = answer["config"]
        if any(found.get(name) != value for name, value in config.items()):
            answer = await self._call(f"STREAM.UPDATE.{stream.name}", {**found, **config})
        self._read(answer)
        stream.epoch = _epoch(answer)

    async def state(self, stream: Stream) -> State:
        """Of a stream, as its leader has it. Raises `BrokerDown` if it is not the one that was provided."""
        try:
            answer = await self._call(f"STREAM.INFO.{stream.name}", {})
        except _ApiError as error:
            raise BrokerDown(str(error)) from None
        if _epoch(answer) != stream.epoch:
            raise BrokerDown(f"the stream {stream.name} was made anew")
        return self._read(answer)

    def _read(self, answer: dict[str, Any]) -> State:
        if "ts" in answer:
            self.ahead = seconds(answer["ts"]) - time.time()
        state = answer["state"]
        return State(state["first_seq"], state["last_seq"])

    # ---------------------------------------------------------------- topics

    async def publish(self, stream: Stream, topic: str, data: bytes, headers: dict[str, str]) -> int:
        """Returns the sequence number, when the message is in the stream."""
        answer = await self._link.request(stream.subject(topic), data, headers)
        if (
            parse_status(answer.headers)[0] == 503
        ):  # nobody takes it: the stream was deleted, or has no leader
            self._link.fail(f"the stream {stream.name} has gone")
            raise BrokerDown(f"the stream {stream.name} has gone")
        found = read_object(answer.payload)
        error = found.get("error")
        if error:
            text = f"JetStream: {printable(str(error.get('description')))}"
            raise BrokerDown(text) if error.get("code") == 503 else BrokerError(text)
        return int(found["seq"])

    async def tops(self, stream: Stream, topics: Iterable[str], least: int = 0) -> dict[str, int]:
        """Sequences of the last messages of topics; those that have none are left out.

        `least`: the answer must know the stream up to this one.
        """
        found: dict[str, int] = {}
        waiting = list(topics)
        patience = 100
        while waiting:
            asked = waiting[:AT_ONCE]
            body = {"multi_last": [stream.subject(topic) for topic in asked], "batch": AT_ONCE}
            messages, pending, upto = await self._get(stream, body)
            if upto is not None and upto < least:  # a replica has answered that is behind
                patience -= 1
                if not patience:
                    raise BrokerDown(f"the replicas of {stream.name} stay behind")
                await trio.sleep(LAG)
                continue
            for message in messages:
                subject = header(message.headers, SUBJECT).decode()
                found[stream.topic(subject)] = number(message.headers, SEQUENCE)
            left = [topic for topic in asked if topic not in found] if pending else []
            waiting = left + waiting[AT_ONCE:]
        return found

    async def page(
        self, stream: Stream, topic: str, since: Position | None, limit: int, known: int = 0
    ) -> HistoryPage:
        """See `Broker.history`. `known`: up to this sequence nothing came behind `since`."""
        if since is None:
            return await self._newest(stream, topic, limit)
        if since.epoch != stream.epoch:
            return HistoryPage([], await self._top(stream, topic), complete=False)
        found, pending = await self._behind(stream, topic, max(since.offset, 1), limit + 1)
        standing = bool(found) and found[0].offset == since.offset
        if standing:
            del found[0]
        pending += len(found[limit:])
        del found[limit:]
        if found:
            complete = self._within_limits(stream, found, pending) == found and (
                standing or await self._untouched(stream, since, known)
            )
            top = await self._top(stream, topic) if pending else found[-1].position
        elif standing:
            complete, top = True, since
        else:
            last = (await self.tops(stream, [topic])).get(topic)
            complete = last is None and await self._untouched(stream, since, known)
            top = since if complete else await self._top(stream, topic)
        if not complete:
            return HistoryPage([], top, complete=False)
        return HistoryPage(_chained(found, since.offset), top, complete=True, more=pending > 0)

    async def _newest(self, stream: Stream, topic: str, limit: int) -> HistoryPage:
        found: deque[Publication] = deque(maxlen=limit)
        begin, pending = 1, 1
        while pending:
            batch, pending = await self._behind(stream, topic, begin, PAGE)
            found.extend(batch)
            begin = batch[-1].offset + 1 if batch else begin
        top = found[-1].position if found else await self._top(stream, topic)
        kept = self._within_limits(stream, list(found), 0)
        return HistoryPage(_chained(kept, 0), top, complete=True)

    async def _top(self, stream: Stream, topic: str) -> Position:
        """Where the topic stands; if nothing of it is known, behind all there is."""
        state = await self.state(stream)
        return Position(stream.epoch, (await self.tops(stream, [topic], state.last)).get(topic, state.last))

    async def _untouched(self, stream: Stream, since: Position, known: int) -> bool:
        """Whether the stream has dropped nothing from its beginning behind `since`, or behind what is `known`."""
        state = await self.state(stream)
        if since.offset > state.last:  # of a future that was lost, or of a liar
            return False
        return state.first <= max(since.offset, known) + 1 or state.last <= known

    async def _behind(
        self, stream: Stream, topic: str, begin: int, most: int
    ) -> tuple[list[Publication], int]:
        """Messages of a topic from a sequence on, and how many there are behind them."""
        body = {"seq": begin, "next_by_subj": stream.subject(topic), "batch": most}
        messages, pending, _ = await self._get(stream, body)
        found = [
            read_stored(topic, stream.epoch, message.headers, message.payload, 0) for message in messages
        ]
        return found, pending

    async def _get(self, stream: Stream, body: dict[str, Any]) -> tuple[list[Message], int, int | None]:
        """A direct get: messages, how many more there are, and up to where who answered knows the stream."""
        asked = json.dumps({**body, "max_bytes": BATCH_BYTES}).encode()
        messages = await self._link.collect(f"{self._api}.DIRECT.GET.{stream.name}", asked)
        end = messages.pop()
        status, text = parse_status(end.headers)
        if status == 404:  # there are none
            return [], 0, None
        if status == 503:
            raise BrokerDown(f"the stream {stream.name} has gone")
        if status != 204:
            raise BrokerError(f"JetStream: {status} {printable(text)}")
        upto = number(end.headers, UP_TO, -1)
        return messages, number(end.headers, PENDING), upto if upto >= 0 else None

    def _within_limits(self, stream: Stream, found: list[Publication], pending: int) -> list[Publication]:
        """Those of them that the topic's history still has. `pending`: so many are behind them."""
        limits = stream.limits
        assert limits is not None
        oldest = time.time() + self.ahead - limits.age
        size = 0
        for index, publication in reversed(list(enumerate(found))):
            size += len(publication.data)
            if publication.at < oldest or size > limits.size or len(found) - index + pending > limits.count:
                return found[index + 1 :]
        return found


class _ApiError(BrokerError):
    """JetStream refuses."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.number = number


def _epoch(answer: dict[str, Any]) -> str:
    """Of the stream that an answer of the API tells of: another one for each that is made."""
    return blake2b(str(answer.get("created")).encode(), digest_size=4).hexdigest()


def _chained(found: list[Publication], previous: int) -> list[Publication]:
    """The same, each knowing the one before it."""
    chained = []
    for publication in found:
        chained.append(publication._replace(previous=previous))
        previous = publication.offset
    return chained
