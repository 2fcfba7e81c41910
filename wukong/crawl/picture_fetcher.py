"""A fetcher for the user's own images (``own_files``): it reads files, and fetches the URLs among them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from wukong.crawl.fetch import DEFAULT_OPTIONS, Fetcher, RequestOptions
from wukong.crawl.own_files import read_picture
from wukong.crawl.transport import Response


class PictureFetcher(Fetcher):
    """A fetcher that also reads files."""

    @asynccontextmanager
    async def get(self, url: str, options: RequestOptions = DEFAULT_OPTIONS) -> AsyncIterator[Response]:
        """Read a file, or fetch a URL; see ``Fetcher.get``. The response of a file has the status 0.

        Raises:
            FetchError: there is no such file, or it is too large; or ``Fetcher.get`` raised it.
        """
        if url.startswith(("http://", "https://")):
            async with super().get(url, options) as response:
                yield response
            return
        async with self._in_flight:
            max_bytes = options.max_bytes or self._config.max_bytes
            held = await self._room.take(max_bytes)
            try:
                body = await asyncio.to_thread(read_picture, url, max_bytes)
                held.shrink(len(body))
                response = Response(url, body=body)
                if options.watch is not None and body:
                    options.watch()(response)
                yield response
            finally:
                held.release()
