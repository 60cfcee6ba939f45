"""What an engine in one process keeps: histories that are never mistaken for others, keys, and members."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from trionet.pubsub.history import BASE, COST
from trionet.pubsub.publication import NOWHERE, Position, Publication
from trionet.pubsub.store import Change, Store
from trionet.pubsub.topics import HistoryLimits

KEEP = HistoryLimits()


def make(held: set[str] | None = None, **options: int) -> Store:
    """A store of epoch e."""
    return Store("e", (held or set()).__contains__, **options)


def put(store: Store, topic: str, data: bytes = b"x", now: float = 0.0, **options: str) -> Position:
    """Publish, and return where."""
    return store.publish(topic, data, KEEP, now, **options)[0]


def test_a_forgotten_topic_begins_above_where_it_ended():
    """Its offsets are not used twice, so a position from before is found incomplete."""
    store = make()
    put(store, "other")
    for _ in range(5):
        last = put(store, "t")
    store.expire(1000.0)
    assert len(store) == 0
    assert store.history("t", Position("e", 3), 10, 1000.0).complete is False
    assert store.history("t", last, 10, 1000.0).complete is True
    again = put(store, "t", now=1000.0)
    assert again.offset > last.offset
    assert put(store, "other", now=1000.0).offset == 6
    assert store.history("t", Position("e", 3), 10, 1000.0).complete is False


def test_a_topic_that_is_listened_to_keeps_its_place():
    """However much others are forgotten, who listens to it finds the next offset there."""
    held = {"t", "never"}
    store = make(held)
    start, empty = put(store, "t"), store.position("never")
    for _ in range(9):
        put(store, "gone")
    store.expire(1000.0)
    assert store.position("t") == start
    assert store.position("never") == empty
    assert store.history("never", empty, 10, 0.0).complete
    assert store.publish("never", b"", KEEP, 1000.0)[1] == Publication("never", b"", "e", 1, 0, 1000.0)
    assert put(store, "t", now=1000.0).offset == start.offset + 1
    put(store, "late")
    store.position("never2")
    held.clear()
    store.released("never")
    store.released("t")


def test_when_too_much_is_kept_the_topic_published_on_longest_ago_is_emptied():
    """The limit on all histories together counts what they cost besides their data; one that is listened to stays."""
    held = {"b"}
    each = 1000 + COST + BASE
    store = make(held, max_bytes=3 * each)
    for topic in "abc":
        put(store, topic, bytes(1000))
    assert store.size == 3 * each
    put(store, "a", bytes(100))  # a is the newest now, and b the oldest
    assert store.history("b", None, 10, 0.0).publications == []
    assert store.position("b") == ("e", 1)
    put(store, "d", bytes(1000))
    assert store.topics() == ["d", "a"]
    assert store.size == 2 * each + 100 + COST
    put(store, "a", bytes(5000))
    assert store.topics() == ["a"]
    assert store.position("b") == ("e", 1)


def test_many_topics_are_looked_at_in_turns():
    """`expire` takes some at a time, and comes round to all of them."""
    store = make()
    for number in range(25):
        put(store, f"{number}")
    for left in (15, 5, 0):
        store.expire(1000.0, budget=10)
        assert len(store) == left
    assert store.size == 0


def test_a_key_is_remembered_for_a_while():
    """By topic; the oldest go when there are too many, or after their time."""
    store = make(max_keys=3)
    first = put(store, "t", key="k")
    assert store.publish("t", b"", KEEP, 299.0, key="k") == (first, None)
    assert store.publish("u", b"", KEEP, 0.0, key="k")[1] is not None
    assert store.publish("t", b"", None, 0.0, key="n")[0] == NOWHERE
    assert store.publish("t", b"", None, 1.0, key="n") == (NOWHERE, None)
    again = put(store, "t", now=300.0, key="k")  # it was too long ago
    assert again.offset == first.offset + 1
    put(store, "v", key="k", now=301.0)
    assert store.publish("u", b"", KEEP, 2.0, key="k")[1] is not None  # pushed out
    assert store.publish("t", b"", KEEP, 301.0, key="k") == (again, None)
    store.expire(10_000.0)
    assert len(store._keys) == 0


def test_members_and_their_owners():
    """The first owner joins, the last leaves; who is refreshed stays, be it for a shorter time."""
    store = make()
    assert store.enter("t", "ann", "o1", b"i", 10.0) == Change("t", "join", "ann", b"i")
    assert store.enter("t", "ann", "o2", b"i", 10.0) is None
    assert store.refresh([("t", "ann", "o1"), ("t", "bob", "o1"), ("u", "ann", "o1")], 40.0) == [
        ("t", "bob", "o1"),
        ("u", "ann", "o1"),
    ]
    assert store.expire(9.9) == []
    assert store.expire(11.0) == []  # o2 has expired
    assert store.refresh([("t", "ann", "o2")], 40.0) == [("t", "ann", "o2")]
    assert store.members("t") == {"ann": b"i"}
    store.refresh([("t", "ann", "o1")], 15.0)
    assert store.expire(14.9) == []
    assert store.expire(16.0) == [Change("t", "leave", "ann", b"i")]
    assert store.leave("t", "ann", "o1") is None
    assert (store.members("t"), store.owners, store._members) == ({}, 0, {})
    store.expire(100.0)
    assert store._ends == {}


TOPICS = st.sampled_from("abc")
WHO = st.sampled_from(["ann", "bob"])
OWNERS = st.sampled_from(["1", "2"])


class Model(RuleBasedStateMachine):
    """A `Store` beside plain lists that keep everything for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.held: set[str] = set()
        self.store = Store("e", self.held.__contains__, max_bytes=12_000, max_keys=4, key_age=50.0)
        self.limits = HistoryLimits(count=4, size=3000, age=20.0)
        self.all: dict[str, list[Publication]] = {topic: [] for topic in "abc"}
        self.starts: dict[str, Position] = {}  # of those that are listened to
        self.keys: dict[tuple[str, str], tuple[Position, float]] = {}
        self.owners: dict[tuple[str, str, str], float] = {}

    @rule(topic=TOPICS, size=st.integers(0, 3500), key=st.sampled_from(["", "", "k", "l"]))
    def publish(self, topic, size, key):
        """Once for a key; behind what came before, with an offset that was never used."""
        position, publication = self.store.publish(topic, bytes(size), self.limits, self.now, key=key)
        known = self.keys.get((topic, key))
        if known is not None and publication is None:
            assert known == (position, known[1])
            assert known[1] > self.now
            return
        assert publication is not None
        if known is not None:
            assert known[1] <= self.now or len(self.keys) > 4
        before = self.all[topic]
        assert not before or publication.previous >= before[-1].offset
        if topic in self.held:
            assert publication.previous == self.starts[topic].offset
            self.starts[topic] = position
        before.append(publication)
        if key:
            self.keys.pop((topic, key), None)
            self.keys[topic, key] = position, self.now + 50.0

    @rule(topic=TOPICS, back=st.integers(-2, 6), limit=st.integers(1, 6))
    def history(self, topic, back, limit):
        """A page that says it is complete has everything behind the position; pages are never invented."""
        published = self.all[topic]
        offset = max(0, (published[-1].offset if published else 0) - back)
        page = self.store.history(topic, Position("e", offset), limit, self.now)
        behind = [publication for publication in published if publication.offset > offset]
        if page.complete:
            assert page.publications == behind[:limit]
            assert page.more == (len(behind) > limit)
        else:
            assert page.publications == []
        newest = self.store.history(topic, None, limit, self.now).publications
        assert newest == published[len(published) - len(newest) :]
        assert all(publication.at >= self.now - 20.0 for publication in newest)

    @rule(topic=TOPICS)
    def listen(self, topic):
        """Somebody listens: from now on its offsets go on without a jump."""
        if topic not in self.held:
            self.held.add(topic)
            self.starts[topic] = self.store.position(topic)

    @rule(topic=TOPICS)
    def release(self, topic):
        """Nobody listens any more."""
        self.held.discard(topic)
        self.starts.pop(topic, None)
        self.store.released(topic)

    @rule(topic=TOPICS, who=WHO, owner=OWNERS, ttl=st.integers(1, 40))
    def enter(self, topic, who, owner, ttl):
        """A join for the first owner."""
        fresh = not any(entry[:2] == (topic, who) for entry in self.owners)
        change = self.store.enter(topic, who, owner, b"", self.now + ttl)
        assert change == (Change(topic, "join", who, b"") if fresh else None)
        self.owners[topic, who, owner] = self.now + ttl

    @rule(topic=TOPICS, who=WHO, owner=OWNERS, ttl=st.integers(1, 40))
    def refresh(self, topic, who, owner, ttl):
        """Known or not."""
        entry = (topic, who, owner)
        assert self.store.refresh([entry], self.now + ttl) == ([] if entry in self.owners else [entry])
        if entry in self.owners:
            self.owners[entry] = self.now + ttl

    @rule(topic=TOPICS, who=WHO, owner=OWNERS)
    def leave(self, topic, who, owner):
        """A leave for the last owner."""
        known = self.owners.pop((topic, who, owner), None)
        last = known is not None and not any(entry[:2] == (topic, who) for entry in self.owners)
        change = self.store.leave(topic, who, owner)
        assert change == (Change(topic, "leave", who, b"") if last else None)

    @rule(seconds=st.integers(1, 30))
    def expire(self, seconds):
        """Whole seconds pass; who was not refreshed leaves."""
        self.now += seconds
        before = {entry[:2] for entry in self.owners}
        self.owners = {entry: expires for entry, expires in self.owners.items() if expires > self.now}
        gone = before - {entry[:2] for entry in self.owners}
        assert {(change.topic, change.member) for change in self.store.expire(self.now)} == gone

    @invariant()
    def adds_up(self):
        """The size is that of what is kept, within the limit; members are those who have owners."""
        lines = self.store._lines.values()
        assert self.store.size == sum(line.weight for line in lines)
        assert self.store.size <= 12_000
        assert self.store.owners == len(self.owners)
        for topic in "abc":
            assert set(self.store.members(topic)) == {who for name, who, _ in self.owners if name == topic}
        for topic, start in self.starts.items():
            assert self.store.position(topic) == start


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=settings.default.max_examples // 4, stateful_step_count=40)
TestModel.__doc__ = (
    "Random calls: nothing is delivered twice, invented, or missing from a page that is complete."
)
