"""Names of topics, patterns, and the rules that go by them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionet.errors import ConfigurationError, TopicError
from trionet.pubsub.broker import open_broker
from trionet.pubsub.topics import (
    HistoryLimits,
    TopicOptions,
    TopicRules,
    TopicSet,
    check_topic,
    is_pattern,
)


@pytest.mark.parametrize(
    "name", ["a", "mail:42", "news/eu/berlin", "ü/日本/🎉", "a[b]?^\\", "x" * 255, "ö" * 127 + "x"]
)
def test_names(name):
    """What may be a name is returned as it is."""
    assert check_topic(name) is name
    assert check_topic(name, pattern=True) is name


@pytest.mark.parametrize(
    "name, says",
    [
        ("", "at least one"),
        ("a b", "no space"),
        ("a\nb", "control"),
        ("a\x7f", "control"),
        ("a*b", r"no \*"),
        ("a/*", r"no \*"),
        ("\ud800", "control|UTF-8"),
        ("x" * 256, "255 bytes, not 256"),
        ("ö" * 128, "255 bytes, not 256"),
        (b"a", "not bytes"),
        (None, "not NoneType"),
    ],
)
def test_what_is_no_name_is_refused_with_a_reason(name, says):
    """Each fault is named."""
    with pytest.raises(TopicError, match=says):
        check_topic(name)


@pytest.mark.parametrize("pattern", ["*", "news/*", "a.b.*", "mail:*", "x" * 253 + "/*"])
def test_patterns(pattern):
    """A beginning that ends in a separator, or nothing, and a star."""
    assert check_topic(pattern, pattern=True) is pattern
    assert is_pattern(pattern)


@pytest.mark.parametrize("pattern", ["news*", "a**", "*a", "a*/*", "a /*", "x" * 254 + "/*"])
def test_what_is_no_pattern_is_refused(pattern):
    """A star elsewhere than behind a separator."""
    with pytest.raises(TopicError):
        check_topic(pattern, pattern=True)


def test_the_longest_rule_that_fits_holds():
    """An exact name before patterns, longer patterns before shorter ones, and what is usual if none fits."""
    options = [TopicOptions(history=HistoryLimits(count=count)) for count in range(1, 5)]
    rules = TopicRules(dict(zip(["a/*", "a/b/*", "a/b/c", "x:*"], options, strict=True)))
    found = [rules.of(topic) for topic in ("a/x", "a/b/x", "a/b/c", "x:", "y", "a", "a/b/c/d")]
    usual = TopicOptions()
    assert found == [options[0], options[1], options[2], options[3], usual, usual, options[1]]
    assert TopicRules({"*": options[0]}).of("anything") == options[0]
    assert dict(rules) == {
        "a/*": options[0],
        "a/b/*": options[1],
        "a/b/c": options[2],
        "x:*": options[3],
        "*": usual,
    }


def test_rules_are_checked():
    """Names and options of rules, and limits of histories."""
    with pytest.raises(TopicError):
        TopicRules({"a b": TopicOptions()})
    with pytest.raises(ConfigurationError, match="'a'"):
        TopicRules({"a": HistoryLimits()})
    for wrong in ({"count": 0}, {"size": 0}, {"age": 0}):
        with pytest.raises(ValueError, match="must be"):
            HistoryLimits(**wrong)


NAMES = st.sampled_from(["a", "a/b", "a/b/c", "b", "*", "a/*", "a/b/*", "b:*"])


@given(
    st.lists(st.tuples(st.booleans(), NAMES)), st.sampled_from(["a", "a/b", "a/b/c", "b", "b:x", "a/", ""])
)
def test_a_set_of_topics_wants_what_its_names_and_patterns_fit(steps, topic):
    """`TopicSet` is a set, and `wants` is what comparing with each of it would find."""
    topics = TopicSet()
    model = set()
    for add, name in steps:
        (topics.add if add else topics.discard)(name)
        (model.add if add else model.discard)(name)
    assert set(topics) == model
    assert len(topics) == len(model)
    assert all(name in topics for name in model)
    fits = (topic.startswith(name[:-1]) if is_pattern(name) else topic == name for name in model)
    assert topics.wants(topic) == any(fits)


def test_an_option_that_an_engine_does_not_have_is_named():
    """It is an error of the settings, which names the engine and the option."""
    with pytest.raises(
        ConfigurationError, match="memory broker: got an unexpected keyword argument 'replicas'"
    ):
        open_broker("memory", replicas=3)
