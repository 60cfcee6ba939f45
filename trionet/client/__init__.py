"""Clients: many WebSocket connections on one engine, none of which costs a task.

In the order to read them: `options`, `websocket` (the connection, its protocol), `dialing` (from a URL to a
descriptor), `opening` (from a descriptor to an open WebSocket), `client` (what users hold), `backoff` and
`reconnecting`. On top of those the client of the bus: `following` (pure), `subscription`, `bus_requests`, `bus_link`
and `bus`.
"""
