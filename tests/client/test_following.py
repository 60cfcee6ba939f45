"""What a client of the bus takes for new, against a model of the server: random losses, gaps, and lost pasts."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionet.client.following import Following, State, Verdict
from trionet.pubsub.publication import Position

TOPIC = "t"


class Server:
    """One topic. Connections are replaced, `kept` publications recovered, and the past is lost now and then."""

    def __init__(self, kept, *, sparse, conflate):
        self.kept, self.sparse, self.conflate = kept, sparse, conflate
        self.epoch, self.top = "1", 0
        self.everything = []  # (epoch, offset, previous, by our client for the others)
        self.keys = {}
        self.connect()

    def connect(self):
        """A new connection: nothing of the old one arrives any more."""
        self.requests, self.messages = deque(), deque()
        self.subscribed = False
        self.answering = None

    def publish(self, jump=0, *, mine=False, drop=False):
        """Publish; whoever is subscribed is sent it, unless it is left out."""
        previous, self.top = self.top, self.top + 1 + (jump if self.sparse else 0)
        self.everything.append((self.epoch, self.top, previous, mine))
        if self.subscribed and not mine and not drop:
            self.messages.append(self.message(self.everything[-1]))
        return Position(self.epoch, self.top)

    @staticmethod
    def message(entry, **more):
        _, offset, previous, _ = entry
        message = {"type": "message", "topic": TOPIC, "offset": offset, **more}
        return message if previous == offset - 1 else {**message, "previous": previous}

    def forget(self):
        """The engine has lost its past."""
        self.epoch, self.top = str(int(self.epoch) + 1), 0
        if self.subscribed:
            self.messages.append({"type": "reset", "topic": TOPIC, "epoch": self.epoch, "offset": 0})

    def step(self):
        """Go on with the requests, one at a time: what is published is acknowledged a step later."""
        if self.answering is not None:
            self.messages.append(self.answering)
            self.answering = None
        elif self.requests:
            request = self.requests.popleft()
            getattr(self, "do_" + request["type"])(request)

    def do_publish(self, request):
        if request["key"] not in self.keys:
            self.keys[request["key"]] = self.publish(1, mine=True)
        position = self.keys[request["key"]]
        self.answering = {"type": "published", "key": request["key"], **position._asdict()}

    def do_unsubscribe(self, request):
        self.subscribed = False

    def do_subscribe(self, request):
        assert not self.subscribed
        self.subscribed = True
        since = request.get("since")
        past = [entry for entry in self.everything if entry[0] == self.epoch]
        lost = past[: -self.kept]
        recovered = None
        start = self.top
        if since is not None:
            recovered = since["epoch"] == self.epoch and (not lost or lost[-1][1] <= since["offset"])
            start = since["offset"] if recovered else start
        answer = {"type": "subscribed", "id": request["id"], "topic": TOPIC, "conflated": self.conflate}
        self.messages.append({**answer, "epoch": self.epoch, "offset": start, "recovered": recovered})
        self.messages += [self.message(entry, replay=True) for entry in past if entry[1] > start]


class Client:
    """What a client does around a `Following`. `segments`: where each begins, and what was new in it."""

    def __init__(self, server):
        self.server = server
        self.following = Following(TOPIC)
        self.serial = 0
        self.pending = {}
        self.segments = []
        self.lost = 0
        self.ask()

    def ask(self):
        if self.following.state is State.IDLE:
            self.serial += 1
            self.server.requests.append(self.following.ask(self.serial))

    def give_back(self):
        """Its buffer is full, say."""
        if self.following.state is not State.IDLE:
            self.server.requests.append({"type": "unsubscribe"})
            self.following.idle()

    def publish(self):
        self.serial += 1
        request = self.pending[self.serial] = {"type": "publish", "key": self.serial}
        self.server.requests.append(request)

    def reconnect(self):
        """What was not acknowledged is published again, before anything else."""
        self.server.connect()
        self.following.idle()
        self.server.requests.extend(self.pending.values())
        self.ask()

    def begin(self):
        self.segments.append((self.following.position, []))

    def step(self):
        if not self.server.messages:
            return
        message = self.server.messages.popleft()
        if message["type"] == "published":
            del self.pending[message["key"]]
            self.following.published(Position(message["epoch"], message["offset"]))
        elif message["type"] == "subscribed":
            begun = self.following.subscribed(message)
            if begun is not None and (begun.broken or not begun.again):
                self.lost += begun.broken
                self.begin()
        elif message["type"] == "reset":
            if self.following.reset(message):
                self.lost += 1
                self.begin()
        else:
            verdict = self.following.judge(message)
            if verdict is Verdict.NEW:
                self.segments[-1][1].append(message["offset"])
            elif verdict is Verdict.GAP:
                self.give_back()
                self.ask()


OPERATIONS = st.one_of(
    st.tuples(st.sampled_from(["publish", "publish", "drop"]), st.integers(0, 2)),
    st.tuples(st.sampled_from(["server", "client"]), st.integers(0, 9)),
    st.tuples(st.sampled_from(["mine", "cut"]), st.just(0)),
    st.tuples(st.sampled_from(["give_back", "ask", "forget"]), st.just(0)),
)


def act(server, client, name, number):
    """Do one thing."""
    if name in {"publish", "drop"}:
        server.publish(number, drop=name == "drop")
    elif name == "mine":
        client.publish()
    elif name in {"server", "client"}:
        for _ in range(number + 1):
            (server if name == "server" else client).step()
    elif name == "cut":
        client.reconnect()
    elif name == "forget":
        server.forget()
    else:
        getattr(client, name)()


def settle(server, client):
    """Bring everything to its end: one more publication shows whether the last ones were left out."""
    for _ in range(2):
        client.ask()
        while server.requests or server.messages or server.answering is not None:
            server.step()
            client.step()
        server.publish()
    while server.messages:
        client.step()
        while server.requests or server.answering is not None:
            server.step()
    assert client.following.state is State.LIVE
    assert not client.pending


@pytest.mark.parametrize("sparse", [False, True], ids=["contiguous", "sparse"])
@given(st.lists(OPERATIONS, max_size=60), st.sampled_from([2, 5, 1000]))
def test_nothing_twice_nothing_missing_from_one_reset_to_the_next(sparse, operations, kept):
    """Between two resets what is new is what others published, all of it, in order; and the end is reached."""
    server = Server(kept, sparse=sparse, conflate=False)
    client = Client(server)
    for name, number in operations:
        act(server, client, name, number)
    settle(server, client)
    assert client.following.position == (server.epoch, server.top)
    for start, new in client.segments:
        end = new[-1] if new else start.offset
        between = [
            offset
            for epoch, offset, _, mine in server.everything
            if epoch == start.epoch and start.offset < offset <= end and not mine
        ]
        assert new == between
    if kept == 1000 and not any(name == "forget" for name, _ in operations):
        assert client.lost == 0


@given(st.lists(OPERATIONS, max_size=60))
def test_a_conflated_topic_has_gaps_and_is_not_asked_for_them(operations):
    """Offsets only grow, the last one comes, and gaps cost no request."""
    server = Server(1000, sparse=False, conflate=True)
    client = Client(server)
    for name, number in operations:
        act(server, client, name, number)
    settle(server, client)
    assert client.following.position == (server.epoch, server.top)
    for _, new in client.segments:
        assert new == sorted(set(new))
    given_back = sum(name in {"cut", "give_back", "ask"} for name, _ in operations)
    asked = client.serial - sum(name == "mine" for name, _ in operations)
    assert asked <= 1 + given_back + 2


def test_messages_of_an_earlier_subscription_are_none_of_ours():
    """After a gap what is still on its way is left alone, until the server answers our latest request."""
    following = Following(TOPIC)
    following.ask(1)
    assert following.judge({"topic": TOPIC, "offset": 1}) is Verdict.STRAY
    following.idle()
    following.ask(2)
    late = {"type": "subscribed", "id": 1, "topic": TOPIC, "epoch": "e", "offset": 0, "recovered": None}
    assert following.subscribed(late) is None
    assert not following.reset({"epoch": "e", "offset": 3})
    assert following.subscribed({**late, "id": 2}).position == ("e", 0)
    assert following.judge({"topic": TOPIC, "offset": 1}) is Verdict.NEW
    assert following.judge({"topic": TOPIC, "offset": 1}) is Verdict.SEEN


def test_an_epoch_nobody_told_of_is_a_gap():
    """Offsets of two epochs are not compared: the server is asked what happened."""
    following = Following(TOPIC, Position("e", 5))
    request = following.ask(1)
    assert request["since"] == {"epoch": "e", "offset": 5}
    following.subscribed({"id": 1, "epoch": "e", "offset": 5, "recovered": True})
    assert following.judge({"topic": TOPIC, "epoch": "f", "offset": 6}) is Verdict.GAP
    assert following.judge({"topic": TOPIC, "epoch": "e", "offset": 6}) is Verdict.NEW


def test_where_nobody_counts_everything_is_new():
    """A topic without history has no position, and a pattern's topics are not counted either."""
    for topic in (TOPIC, "t*"):
        following = Following(topic)
        following.ask(1)
        begun = following.subscribed({"id": 1, "recovered": None})
        assert (begun.position, begun.broken) == (None, False)
        assert following.judge({"topic": TOPIC}) is Verdict.NEW
        assert following.judge({"topic": TOPIC}) is Verdict.NEW
        following.idle()
        assert "since" not in following.ask(2)
        assert following.subscribed({"id": 2, "recovered": None}).broken
