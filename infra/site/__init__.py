"""A loopback image-search site that serves the demo corpus the way Baidu's image search and the web behind it do.

``python -m infra.site --catalogue FILE`` runs it. Its answers name pictures by a host that stays the same
(``infra.corpus.HOST``), so that URLs, keys and shards do not depend on the port it happens to listen on.
"""
