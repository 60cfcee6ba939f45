"""The hub: who gets what, in which order, at what cost. Subscribers are plain objects that keep what they get."""

from __future__ import annotations

import gc
import itertools
import tracemalloc

import pytest
import trio
import trio.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from trionet.errors import ConfigurationError, TopicError
from trionet.pubsub import hub as module
from trionet.pubsub.hub import Hub


class Peer:
    """A subscriber that keeps what it gets; `full`: it takes nothing."""

    __slots__ = ("full", "got", "name")

    def __init__(self, name=""):
        self.name = name
        self.got = []
        self.full = False

    def __repr__(self):
        return f"<Peer {self.name}>"


def send(peers, message):
    """Give `message` to all who take it, as `broadcast` does."""
    taken = 0
    for peer in peers:
        if not peer.full:
            peer.got.append(message)
            taken += 1
    return taken


def crowd(count):
    """Return so many peers."""
    return [Peer(n) for n in range(count)]


def hub_of(peers, topic="t", **options):
    """Return a hub in which all of `peers` have subscribed to `topic`."""
    hub = Hub(send, **options)
    for peer in peers:
        assert hub.subscribe(peer, topic)
    return hub


# ---------------------------------------------------- against a naive model


TOPICS = ["a", "x/1", "x/y/1"]
PATTERNS = ["*", "x/*"]
NAMES = st.sampled_from(TOPICS + PATTERNS)
COUNT = 40  # lists of 32 and fewer are kept in another way than those of more
PEERS = st.integers(0, COUNT - 1)


def fits(name, topic):
    """Whether who has subscribed to `name` gets what is published on `topic`."""
    return topic.startswith(name[:-1]) if name.endswith("*") else name == topic


class Turn:
    """Stands for whatever of Trio's is awaited: one turn of `Model.turn`."""

    Event = BusyResourceError = lowlevel = None

    def __await__(self):
        yield

    def wait(self):
        """An event."""
        return self

    checkpoint = wait

    def set(self):
        """Whoever waits is advanced by hand."""

    is_set = wait


class Model(RuleBasedStateMachine):
    """Subscriptions come and go, publications are on their way, `run` sends slice by slice when it is let.

    The model has a set of names for each peer, and for each publication those who are to get it: whoever had a name
    that fits when it was published, and has been without one at no time since.
    """

    def __init__(self):
        super().__init__()
        self.peers = crowd(COUNT)
        module.trio = Turn  # `run` is advanced by hand
        Turn.Event, Turn.lowlevel = Turn, Turn()
        self.first, self.last = [], []
        self.hub = Hub(
            send, slice=4, max_behind=3, max_topics=4, on_first=self.first.append, on_last=self.last.append
        )
        self.names = [[] for _ in self.peers]  # of each peer, the oldest first
        self.wanted = []  # of each publication: (topic, peers that have it, or are to get it)
        self.start()

    def start(self):
        """`run` is a coroutine that is advanced by hand: each `send` is a turn of Trio's scheduler."""
        self.runner = self.hub.run()
        self.runner.send(None)

    def teardown(self):
        """Finish all, and compare."""
        self.runner.close()
        module.trio = trio
        self.check_messages()

    @rule(times=st.integers(1, 8))
    def turn(self, times):
        """Let `run` send some slices."""
        for _ in range(times):
            if self.hub.statistics().behind:
                self.runner.send(None)

    @rule(again=st.booleans())
    def stop(self, again):
        """`run` is cancelled: what is under way is finished. It may be started again."""
        self.runner.close()
        assert self.hub.statistics().behind == 0
        self.check_messages()
        if again:
            self.start()

    @rule(peers=st.lists(PEERS, min_size=1, max_size=20), name=NAMES)
    def subscribe(self, peers, name):
        for peer in peers:
            names = self.names[peer]
            if name in names or len(names) < 4:
                assert self.hub.subscribe(self.peers[peer], name) is (name not in names)
                if name not in names:
                    names.append(name)
            else:
                with pytest.raises(TopicError):
                    self.hub.subscribe(self.peers[peer], name)

    @initialize(name=NAMES, count=st.integers(5, COUNT))
    def begin(self, name, count):
        self.subscribe(range(count), name)

    @rule(name=NAMES)
    def subscribe_all(self, name):
        self.subscribe(range(COUNT), name)

    @rule(step=st.integers(1, 4), name=NAMES)
    def unsubscribe_some(self, step, name):
        self.unsubscribe(range(0, COUNT, step), name)

    @rule(peers=st.lists(PEERS, min_size=1, max_size=20), name=NAMES)
    def unsubscribe(self, peers, name):
        for peer in peers:
            names = self.names[peer]
            assert self.hub.unsubscribe(self.peers[peer], name) is (name in names)
            if name in names:
                names.remove(name)
                self.lost(peer)

    @rule(peers=st.lists(PEERS, min_size=1, max_size=5))
    def forget(self, peers):
        for peer in peers:
            assert list(self.hub.forget(self.peers[peer])) == self.names[peer]
            self.names[peer] = []
            self.lost(peer)

    def lost(self, peer):
        """It may have left the subscribers of publications that are under way."""
        for message, (topic, wanted) in enumerate(self.wanted):
            left = not any(fits(name, topic) for name in self.names[peer])
            if left and peer in wanted and message not in self.peers[peer].got:
                wanted.discard(peer)

    @rule(topic=st.sampled_from(TOPICS), exclude=st.none() | PEERS, times=st.integers(1, 6))
    def publish(self, topic, exclude, times):
        for _ in range(times):
            wanted = {
                peer
                for peer, names in enumerate(self.names)
                if peer != exclude and any(fits(name, topic) for name in names)
            }
            assert self.hub.wanted(topic) or not wanted
            self.wanted.append((topic, wanted))
            out = None if exclude is None else self.peers[exclude]
            assert self.hub.publish(topic, len(self.wanted) - 1, exclude=out) == len(wanted)

    def check_messages(self):
        """All who should have a publication have it, once, and those of a topic in order; nobody else has."""
        seen = [set() for _ in self.wanted]
        for number, peer in enumerate(self.peers):
            newest = {}
            for message in peer.got:
                topic, wanted = self.wanted[message]
                assert number in wanted
                assert newest.get(topic, -1) < message
                newest[topic] = message
                seen[message].add(number)
        for (_, wanted), got in zip(self.wanted, seen, strict=True):
            assert wanted == got

    @invariant()
    def check_tables(self):
        """Who has subscribed to what, and the numbers."""
        present = {name for names in self.names for name in names}
        assert set(self.hub) == present
        for name in present:
            members = {self.peers[n] for n, names in enumerate(self.names) if name in names}
            assert set(self.hub.subscribers(name)) == members
            assert self.hub.count(name) == len(self.hub.subscribers(name)) == len(members)
        for peer, names in zip(self.peers, self.names, strict=True):
            assert list(self.hub.topics(peer)) == names
        statistics = self.hub.statistics()
        assert statistics.subscriptions == sum(map(len, self.names))
        assert statistics.subscribers == sum(map(bool, self.names))
        assert statistics.topics == len(present)
        assert statistics.delivered == sum(len(peer.got) for peer in self.peers)
        assert sorted(self.first) == sorted(self.last + list(present))


Model.TestCase.settings = settings(max_examples=settings.default.max_examples // 2, stateful_step_count=20)
TestModel = Model.TestCase


# ------------------------------------------------------------ order, slices


async def test_a_big_fan_out_lets_others_run():
    """After each slice every other task has its turn, and the first slice is sent before `publish` returns."""
    peers = crowd(1000)
    hub = hub_of(peers, slice=100)
    seen = []

    async def other():
        while not peers[-1].got:
            seen.append(sum(len(peer.got) for peer in peers))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hub.run)
        await trio.testing.wait_all_tasks_blocked()
        assert hub.publish("t", "m") == 1000
        assert [len(peer.got) for peer in peers] == [1] * 100 + [0] * 900
        await other()
        nursery.cancel_scope.cancel()
    # Trio runs those who are ready in any order, so that two slices may follow each other; never three.
    assert all(later - earlier <= 200 for earlier, later in itertools.pairwise([100, *seen, 1000]))
    assert hub.statistics().behind == 0


async def test_topics_take_turns():
    """A small publication does not wait for a big one of another topic, and big ones share the time."""
    many, more, one = crowd(100), crowd(100), Peer()
    hub = hub_of(many, "many", slice=10)
    for peer in more:
        hub.subscribe(peer, "more")
    hub.subscribe(one, "one")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hub.run)
        await trio.testing.wait_all_tasks_blocked()
        hub.publish("many", 1)
        hub.publish("more", 2)
        hub.publish("one", 3)
        assert one.got == [3]
        for _ in range(8):
            await trio.lowlevel.checkpoint()
        counts = [sum(len(peer.got) for peer in peers) for peers in (many, more)]
        assert max(counts) < 100
        assert abs(counts[0] - counts[1]) <= 10
        nursery.cancel_scope.cancel()


async def test_whoever_publishes_faster_than_it_is_sent_pays():
    """At most `max_behind` publications of a topic are on their way; `wait_room` returns when there are fewer."""
    peers = crowd(50)
    hub = hub_of(peers, slice=10, max_behind=3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hub.run)
        await trio.testing.wait_all_tasks_blocked()
        await hub.wait_room()
        for n in range(10):
            hub.publish("t", n)
            assert hub.statistics().behind <= 3
        with trio.fail_after(5):
            await hub.wait_room()
        assert hub.statistics().behind == 2
        assert peers[-1].got == list(range(8))
        nursery.cancel_scope.cancel()
    assert all(peer.got == list(range(10)) for peer in peers)


async def test_without_run_all_is_sent_at_once():
    """A hub that nobody runs sends a publication entirely before `publish` returns."""
    peers = crowd(1000)
    hub = hub_of(peers, slice=10)
    hub.publish("t", "m")
    assert all(peer.got == ["m"] for peer in peers)


async def test_one_runner():
    """A second `run` is an error."""
    hub = Hub(send)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hub.run)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await hub.run()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("count", [15, 60])
async def test_what_a_subscriber_may_do_while_it_is_sent_to(count):
    """It may leave, subscribe others, and publish if there are slices: the rest gets each message once, in order."""
    peers = crowd(count)

    def meddle(members, message):
        for peer in members:
            if message == 0 and peer.name % 3 == 0:
                hub.unsubscribe(peer, "t")
            if message == 0 and peer.name == 1:
                hub.subscribe(late, "t")
                if count > hub.slice:
                    hub.publish("t", 1)
            peer.got.append(message)
        return len(members)

    late = Peer("late")
    hub = Hub(meddle, slice=20)
    for peer in peers:
        hub.subscribe(peer, "t")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hub.run)
        await trio.testing.wait_all_tasks_blocked()
        hub.publish("t", 0)
        while hub.statistics().behind:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    for peer in peers:
        if peer.name % 3:
            assert peer.got == [0, 1][: 1 + (count > 20)]
    assert late.got == [1] * (count > 20)


async def test_a_pattern_keeps_what_the_topic_loses():
    """Who leaves a topic while a publication is under way, and has a pattern of it, gets it."""
    peers = crowd(30)
    hub = hub_of(peers, "x/1", slice=10)
    for peer in peers[::2]:
        hub.subscribe(peer, "x/*")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hub.run)
        await trio.testing.wait_all_tasks_blocked()
        hub.publish("x/1", "m")
        for peer in peers[20:]:
            hub.unsubscribe(peer, "x/1")
        nursery.cancel_scope.cancel()
    assert [len(peer.got) for peer in peers[20:]] == [1, 0] * 5


@pytest.mark.parametrize("count", [30, 100])
async def test_who_leaves_meanwhile_takes_nobodys_place(count):
    """Some who have a publication already, and some who do not, leave while it is under way: the others get it."""
    peers = crowd(count)
    hub = hub_of(peers, slice=10)
    leaving = [*peers[3:7], *peers[14:17]]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hub.run)
        await trio.testing.wait_all_tasks_blocked()
        hub.publish("t", 1)
        for peer in leaving:
            hub.unsubscribe(peer, "t")
        hub.publish("t", 2)
        nursery.cancel_scope.cancel()
    assert [peer.got for peer in leaving] == [[1]] * 4 + [[]] * 3
    assert all(peer.got == [1, 2] for peer in peers if peer not in leaving)


async def test_a_crowd_that_leaves_a_topic_that_is_behind():
    """All leave while many publications are on their way: that is noted once for each, and then forgotten."""
    peers = crowd(100)
    hub = hub_of(peers, slice=10)
    late = Peer("late")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hub.run)
        await trio.testing.wait_all_tasks_blocked()
        for n in range(20):
            hub.publish("t", n)
        for peer in peers[1:]:
            hub.forget(peer)
        hub.subscribe(late, "t")
        hub.publish("t", 20)
        [line] = hub._fan_outs.values()
        assert len(line.left) == 99
        while len(line) > 1:
            await trio.lowlevel.checkpoint()
        assert not line.left
        nursery.cancel_scope.cancel()
    assert peers[0].got == list(range(21))
    assert all(peer.got == [0] for peer in peers[1:10])
    assert not any(peer.got for peer in peers[10:])
    assert late.got == [20]


def test_what_was_not_taken_is_counted():
    """A subscriber that takes nothing is left out, and stays subscribed."""
    peers = crowd(3)
    hub = hub_of(peers)
    peers[1].full = True
    assert hub.publish("t", "m") == 3
    statistics = hub.statistics()
    assert (statistics.published, statistics.delivered, statistics.left_out) == (1, 2, 1)
    assert hub.count("t") == 3


def test_who_comes_back_to_a_long_topic():
    """Leaving and coming back, with publications between, loses and doubles nothing."""
    peers = crowd(100)
    hub = hub_of(peers)
    for n in range(50):
        hub.unsubscribe(peers[7], "t")
        assert hub.count("t") == 99
        if n % 2:
            hub.publish("t", n)
        hub.subscribe(peers[7], "t")
        hub.publish("t", -n)
    assert peers[7].got == [-n for n in range(50)]
    assert len(peers[8].got) == 75


class Name(str):
    """A topic that is not exactly a str."""

    __slots__ = ()


def test_a_topic_may_be_a_subclass_of_str():
    """An enumeration of topics, say: its members are taken for the text they are."""
    hub, peer = Hub(send), Peer()
    assert hub.subscribe(peer, Name("abc"))
    assert not hub.has(peer, "ab")
    assert not hub.unsubscribe(peer, "ab")
    assert hub.subscribe(peer, "ab")
    assert hub.forget(peer) == ("abc", "ab")


@pytest.mark.parametrize("options", [{"slice": 0}, {"max_topics": 0}, {"max_behind": 0}])
def test_options(options):
    """Limits are at least 1."""
    with pytest.raises(ConfigurationError):
        Hub(send, **options)


@pytest.mark.parametrize("topic", ["", "a b", "a*", "x*", "*/a", "a\n", "n" * 256, "é" * 128, b"t", None])
def test_names(topic):
    """What is no topic and no pattern is refused, and leaves nothing behind."""
    hub = Hub(send)
    with pytest.raises(TopicError):
        hub.subscribe(Peer(), topic)
    assert len(hub) == 0
    assert hub.statistics().subscribers == 0


# ------------------------------------------------------------------- cost


class Counted(Hub):
    """A hub whose table of topics counts how often it is looked at."""

    def __init__(self):
        super().__init__(send)

        class Topics(dict):
            looks = 0

            def get(self, key, default=None):
                Topics.looks += 1
                return super().get(key, default)

            def __iter__(self):
                raise AssertionError("somebody goes through all topics")

            items = values = keys = __iter__

        self._topics = Topics()


@pytest.mark.parametrize("patterns", [0, 2])
def test_a_publication_costs_what_its_subscribers_cost(patterns):
    """It looks up the topic and a pattern for each length, and allocates no more, however many topics there are."""
    hub, peers = Counted(), crowd(10)
    for peer in peers:
        hub.subscribe(peer, "a-topic")
    for n in range(patterns):
        hub.subscribe(peers[0], f"the{'m' * n}/*")
    costs = []
    for topics in (0, 10_000):
        for n in range(topics):
            hub.subscribe(Peer(), f"user:{n}")
        hub.publish("a-topic", "warm")
        type(hub._topics).looks = 0
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            hub.publish("a-topic", "m")
            costs.append((type(hub._topics).looks, tracemalloc.get_traced_memory()[1]))
        finally:
            tracemalloc.stop()
            gc.enable()
    assert costs[0][0] == costs[1][0] == 1 + patterns
    assert costs[1][1] <= costs[0][1] + 500


def test_leaving_a_long_topic_costs_little():
    """All of 20,000 leave one by one: the list is copied a few times for each halving, not for each of them."""
    peers = crowd(20_000)
    hub = hub_of(peers)
    copied = 0

    class Members(module._Members):
        __slots__ = ()

        def present(self):
            nonlocal copied
            copied += len(self)
            return Members(self.name, [member for member in self if member not in self.gone])

    hub._topics["t"] = members = Members("t", hub._topics["t"])
    original, module._Members = module._Members, Members
    try:
        for peer in peers:
            hub.forget(peer)
    finally:
        module._Members = original
    assert members is not None
    assert len(hub) == 0
    assert copied < 20 * 20_000


def traced(build):
    """Return what `build` made, and the bytes that Python's allocator gave for it and has not got back."""
    gc.collect()
    tracemalloc.start()
    try:
        made = build()
        gc.collect()
        return made, tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


#: 10,923 and 21,846: when the tables have just grown, and are emptiest.
SIZES = [10_000, 10_923, 21_846]


@pytest.mark.measured
@pytest.mark.parametrize("count", SIZES)
def test_bytes_of_a_subscription(count):
    """In a topic of many, both directions together, it takes at most 100 bytes, however full the tables are."""
    peers = crowd(count)
    hub, size = traced(lambda: hub_of(peers))
    assert hub.count("t") == count
    assert size / count <= 100


@pytest.mark.measured
@pytest.mark.parametrize("count", SIZES)
def test_bytes_of_a_topic_of_one(count):
    """With its name, and the subscriber's own entry, it takes at most 250 bytes."""
    peers = crowd(count)

    def build():
        hub = Hub(send)
        for n, peer in enumerate(peers):
            hub.subscribe(peer, f"mailbox:{n:08}")
        return hub

    hub, size = traced(build)
    assert len(hub) == count
    assert size / count <= 250


@pytest.mark.measured
def test_names_are_kept_once():
    """Each subscriber says the name anew, as it comes from the network: one of them is kept."""
    peers = crowd(10_000)

    def build():
        hub = Hub(send)
        for peer in peers:
            for name in (b"all", b"a-group-with-a-name-of-some-length"):
                hub.subscribe(peer, name.decode())
        return hub

    _, size = traced(build)
    assert size / 20_000 <= 75


@pytest.mark.measured
def test_those_who_left_leave_nothing():
    """All subscribe and leave, some topics stay: the hub is as small as it was, but for the size of its tables."""
    hub = Hub(send)
    peers = crowd(5000)
    for n, peer in enumerate(peers):
        for name in ("all", f"group:{n // 100}", f"user:{n}"):
            hub.subscribe(peer, name)
    for peer in peers:
        hub.forget(peer)
    assert not hub._topics
    assert not hub._of
    assert hub.statistics().subscriptions == 0
