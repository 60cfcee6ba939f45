"""Sans-I/O: bytes in, values out. No Trio, socket, clock or randomness below this folder.

Read `frames` (what a frame is), `messages` (frames to messages), `closing` (close codes), `handshake`
(the request that starts it all).
"""
