"""Clients: many WebSocket connections on one engine, none of which costs a task.

In the order to read them: `options`, `websocket` (the connection, its protocol), `dialing` (from a URL to a
descriptor), `opening` (from a descriptor to an open WebSocket), `client` (what users hold), `backoff` and
`reconnecting`.
"""
