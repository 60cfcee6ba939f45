"""For handlers that want a task of their own: any Trio code, at the price of a task for each connection.

Order: _tasks ← stream, trio_websocket. The latter needs the extra ``trionet[trio-websocket]``.
"""
