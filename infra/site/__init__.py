"""An image-search site on loopback that serves the demo corpus like Baidu's image search and the web.

``python -m infra.site --catalogue FILE`` runs it. The URLs in its answers have a constant host (``infra.corpus.HOST``),
so that URLs, keys and shards do not depend on the port on which it listens.
"""
