"""I/O primitives on Trio; they know no protocol.

Read `poller` (who is readable), `pool` (who may run), `connection` (one peer), `engine` (the three joined),
then `wheel` (deadlines), `listener` and `gate` (accepting).
"""
