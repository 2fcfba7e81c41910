"""The benchmark's web server: images from memory over keep-alive HTTP/1.1, as fast as possible in Python.

``python server.py FOLDER ...`` prints its port and serves ``/NAME?anything`` on loopback until it is killed.
``/statistics`` returns the number of requests and the bytes of the answers.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import ClassVar


class Pictures(asyncio.Protocol):
    """One connection."""

    files: ClassVar[dict[bytes, bytes]] = {}
    requests = 0
    bytes = 0

    def connection_made(self, transport):
        self.transport = transport
        self.buffer = b""

    def data_received(self, data):
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            target = self.buffer.split(b" ", 2)[1]
            self.buffer = self.buffer[end + 4 :]
            self.answer(target.partition(b"?")[0])

    def answer(self, path):
        if path == b"/statistics":
            body = json.dumps({"requests": Pictures.requests, "bytes": Pictures.bytes}).encode()
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            return
        answer = self.files.get(path)
        if answer is None:
            self.transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        Pictures.requests += 1
        Pictures.bytes += len(answer)
        self.transport.write(answer)


async def main(folders: list[Path]) -> None:
    for path in (path for folder in folders for path in folder.iterdir()):
        body = path.read_bytes()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(body)
        Pictures.files[f"/{path.name}".encode()] = head + body
    server = await asyncio.get_running_loop().create_server(Pictures, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main([Path(name) for name in sys.argv[1:]]))
