"""What connections speak.

`base` (the interface), `line` (the smallest complete one, to be read first),
`websocket` (with `channel`, what handlers hold, and `registry`), `http` (plain requests on the same port).
"""
