"""Publish and subscribe: topics, who listens to them, what was said on them, and how several processes share that.

    topics       names, patterns, and `TopicRules`: what a topic keeps
    hub          topic → subscribers in this process; one publication fans out to all of them
    history      what was published, by offset; `store` holds the histories, keys and members of all topics
    broker       the interface of an engine that processes share; `brokers/` has memory, local, redis, nats
    bus          joins hub and broker: reference counts, presence; `joining`: from history to live

Nothing here knows WebSockets: a hub is given the function that sends one message to many.
"""
