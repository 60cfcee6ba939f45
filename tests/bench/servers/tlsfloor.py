"""What TLS costs a Python server that does nothing else: one epoll loop over non-blocking `ssl.SSLSocket` objects.

tlsfloor.py PORT CERTIFICATE

It answers the first bytes of a connection with a 101, and then echoes WebSocket frames that come whole, one in a read.
It leaves out everything else: it is no server, only a bound.
"""

from __future__ import annotations

import base64
import gc
import hashlib
import resource
import select
import socket
import ssl
import sys

from websockets.speedups import apply_mask

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2])
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=65535)
listener.setblocking(False)
epoll = select.epoll()
epoll.register(listener, select.EPOLLIN)
connections, new = {}, set()


def serve(fd):
    sock = connections[fd]
    try:
        data = sock.recv(65536)
        if not data:
            drop(fd)
        elif fd in new:
            key = data.lower().partition(b"sec-websocket-key:")
            key = data[len(key[0]) + len(key[1]) :].split(b"\r\n")[0].strip()
            accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
            sock.send(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
            )
            new.discard(fd)
        else:
            head = 6 if data[1] < 254 else 8 if data[1] == 254 else 14
            payload = apply_mask(data[head:], data[head - 4 : head])
            sock.send(bytes((data[0], data[1] & 127)) + data[2 : head - 4] + payload)
    except ssl.SSLWantReadError:
        pass
    except OSError:
        drop(fd)


def drop(fd):
    epoll.unregister(fd)
    new.discard(fd)
    connections.pop(fd).close()


gc.disable()
while True:
    for fd, _ in epoll.poll(-1, 1024):
        if fd != listener.fileno():
            serve(fd)
            continue
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            continue
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        connections[sock.fileno()] = sock
        new.add(sock.fileno())
        epoll.register(sock.fileno(), select.EPOLLIN)
