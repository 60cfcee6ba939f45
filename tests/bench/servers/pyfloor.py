"""The pure-Python bound: one epoll loop, raw descriptors, no framework, an int in a set per connection.

pyfloor.py PORT echo|bcast [int|c]     int: masks with int.from_bytes, c: with websockets.speedups.apply_mask

It leaves out limits, UTF-8 checks, fragments, timeouts, handlers and errors: it is no server, only a bound.
"""

from __future__ import annotations

import base64
import gc
import hashlib
import os
import resource
import select
import socket
import sys

# 256 KiB reads carry 64 KiB messages twice as fast, but an mmap per read makes small ones unstable.
RS = int(os.environ.get("RS", "65536"))
port, BC, MASK = int(sys.argv[1]), sys.argv[2] == "bcast", sys.argv[3] if len(sys.argv) > 3 else "int"
_, h = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (h, h))
if MASK == "c":
    from websockets.speedups import apply_mask
else:
    fb = int.from_bytes

    def apply_mask(data, mask):
        n = len(data)
        return (fb(data, "little") ^ fb((mask * ((n + 3) >> 2))[:n], "little")).to_bytes(n, "little")


GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
ls = socket.socket()
ls.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
ls.bind(("127.0.0.1", port))
ls.listen(65535)
ls.setblocking(False)
ep = select.epoll()
lfd = ls.fileno()
ep.register(lfd, select.EPOLLIN)
new, opened, part, outb = set(), set(), {}, {}


def drop(fd):
    new.discard(fd)
    opened.discard(fd)
    part.pop(fd, 0)
    outb.pop(fd, 0)
    try:
        os.close(fd)
    except OSError:
        pass


def put(fd, data, write=os.write):
    if fd in outb:
        outb[fd] += data
        return
    try:
        n = write(fd, data)
    except BlockingIOError:
        n = 0
    except OSError:
        drop(fd)
        return
    if n != len(data):
        outb[fd] = bytearray(memoryview(data)[n:])
        ep.modify(fd, select.EPOLLOUT)


def shake(fd, data):
    if fd in part:
        data = part.pop(fd) + data
    e = data.find(b"\r\n\r\n")
    if e < 0:
        part[fd] = data
        return None
    key = None
    for line in data[:e].split(b"\r\n")[1:]:
        k, _, v = line.partition(b":")
        if k.lower() == b"sec-websocket-key":
            key = v.strip()
    if key is None:
        return drop(fd)
    acc = base64.b64encode(hashlib.sha1(key + GUID).digest())
    new.discard(fd)
    opened.add(fd)
    put(
        fd,
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + acc + b"\r\n\r\n",
    )
    if len(data) > e + 4:
        feed(fd, data[e + 4 :])


def feed(fd, data):
    if fd in part:
        p = part[fd]
        p += data
        n = len(p)
        l = p[1] & 127 if n > 1 else 0
        if n < 14:
            need = 6 + l if l < 126 else 14
        else:
            need = (
                6 + l
                if l < 126
                else 8 + (p[2] << 8 | p[3])
                if l == 126
                else 14 + int.from_bytes(p[2:10], "big")
            )
        if n < need:
            return None
        data = bytes(part.pop(fd))
    i, n, out = 0, len(data), None
    while n - i >= 6:
        l = data[i + 1]
        if l < 128:
            return drop(fd)
        l -= 128
        if l < 126:
            h = i + 6
        elif l == 126:
            h = i + 8
            if n < h:
                break
            l = data[i + 2] << 8 | data[i + 3]
        else:
            h = i + 14
            if n < h:
                break
            l = int.from_bytes(data[i + 2 : i + 10], "big")
        e = h + l
        if e > n:
            break
        b0 = data[i]
        pl = apply_mask(data[h:e], data[h - 4 : h])
        i = e
        op = b0 & 15
        if op < 3 or op == 9:
            if op == 9:
                b0 = 0x8A
            if l < 126:
                f = bytes((b0, l)) + pl
            elif l < 65536:
                f = bytes((b0, 126, l >> 8, l & 255)) + pl
            else:
                f = bytes((b0, 127)) + l.to_bytes(8, "big") + pl
            if BC and op < 3:
                for c in list(opened):
                    put(c, f)
            elif out is None:
                out = f
            else:
                out += f
        elif op == 8:
            put(fd, (out or b"") + bytes((0x88, l)) + pl)
            return drop(fd)
    if i < n:
        part[fd] = bytearray(data[i:]) if i else bytearray(data)
    if out is not None:
        put(fd, out)


def main(read=os.read, poll=ep.poll):
    gc.disable()
    while True:
        for fd, ev in poll(-1, 1024):
            if fd in opened:
                if ev & 4:
                    b = outb[fd]
                    try:
                        n = os.write(fd, b)
                    except OSError:
                        drop(fd)
                        continue
                    del b[:n]
                    if not b:
                        del outb[fd]
                        ep.modify(fd, 1)
                    continue
                try:
                    data = read(fd, RS)
                except OSError:
                    drop(fd)
                    continue
                if data:
                    feed(fd, data)
                else:
                    drop(fd)
            elif fd == lfd:
                for _ in range(256):
                    try:
                        c, _a = ls._accept()
                    except BlockingIOError:
                        break
                    new.add(c)
                    os.set_blocking(c, False)
                    s = socket.socket(fileno=c)
                    s.setsockopt(6, 1, 1)
                    s.detach()
                    ep.register(c, 1)
            elif fd in new:
                try:
                    data = read(fd, RS)
                except OSError:
                    drop(fd)
                    continue
                if data:
                    shake(fd, data)
                else:
                    drop(fd)


main()
