"""The search page under Ray Serve: ``serve run ray_jobs.serve:search model=URI data=URI index=URI``.

It is the application of ``wukong serve`` (``wukong.serve``). With ``shards=1`` each replica holds model and index. With
more, the deployment ``search`` holds the model and asks the deployments ``shard-0``, ``shard-1`` and so on, each of
which holds shards of the index, a range of the pictures (``wukong.serve.router``). The index should be made before, so
that replicas find it: ``wukong serve`` does, or the first replica.

Which index is searched is the ``user_config`` of ``search``, by default ``model``, ``data`` and ``index`` of the
arguments. Ray Serve gives another one to the replicas that run (``reconfigure``), which load it beside the one that
they answer with. A question names the index that it is for, and a shard that has not loaded it does so then.
"""

import asyncio
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from ray_jobs import gpus
from wukong.errors import ConfigError, DataError
from wukong.serve import garbage

if TYPE_CHECKING:
    from torch import Tensor

    from wukong.serve.served_shard import Description, Item, LocalShard, Neighbours, Question, Ranked
    from wukong.serve.service import Service
    from wukong.serve.versions import Switch
    from wukong.store.manifest import Manifest

    _Opened = dict[int, LocalShard | DataError]

_NEEDED = ("model", "data", "index")
_SETTINGS = {"replicas": 1, "cpus": 2, "gpus": 0, "shards": 1, "shard_replicas": 1, "shard_cpus": 1.0, "memory": 0.0,
             "seconds": 3.0, "watch": 60.0}  # fmt: skip
"""The other arguments and their defaults; ``memory`` is in GiB, of each replica that holds an index."""
_NOT_THE_HEAD = {"ray.io/node-group": "!headgroup"}
"""Of nodes by KubeRay. The page needs the cores of the head, and a lost pod should not take page and shard at once."""
_ONGOING = 256
_FIRST_WITHIN, _LOADED_WITHIN = 60.0, 1_800.0
"""Seconds that the page waits for the shards to load the first index, and another one."""
_ASKED_AGAIN = 0.2
"""Seconds after which another replica of a shard is asked to load an index."""
_LOADED_AGAIN = 30.0
"""Seconds after which a shard that could not be loaded is loaded again, if it is asked."""
_KEPT = 2
"""Versions of an index that a shard keeps: the one that is searched, and the one that takes its place."""


def search(arguments: Mapping[str, Any]) -> serve.Application:
    """Make the Ray Serve application.

    Args:
        arguments: ``model``, ``data`` and ``index``, URIs that ``wukong serve`` takes and all replicas reach; perhaps
            ``replicas`` (1), ``cpus`` of each (2) and ``gpus`` of each (0; 1 encodes there, or does not start);
            ``shards`` (1), the deployments that hold the index, and with more ``shard_replicas`` of each (1) and
            ``shard_cpus`` of each (1); ``memory`` in GiB that each replica reserves that holds an index; ``seconds``
            (3) that an answer waits for a shard; ``watch`` (60), the seconds after which it is looked whether the data
            have changed, or never if 0.

    Raises:
        ConfigError: an argument is missing, unknown or out of range.
    """
    unknown = sorted(set(arguments) - {*_NEEDED, *_SETTINGS})
    missing = [name for name in _NEEDED if not arguments.get(name)]
    if unknown or missing:
        raise ConfigError(
            f"ray_jobs.serve:search lacks {missing} and does not know {unknown}: give model, data and index, and "
            f"perhaps {', '.join(_SETTINGS)}"
        )
    source = {name: str(arguments[name]) for name in _NEEDED}
    given = {name: type(default)(arguments.get(name, default)) for name, default in _SETTINGS.items()}
    shards = int(given["shards"])
    if shards < 1:
        raise ConfigError(f"shards: {shards} is too few: 1 holds the index in the replicas of the page")
    memory = {"memory": given["memory"] * 2**30} if given["memory"] else {}
    handles = [
        serve.deployment(
            Shards,
            name=f"shard-{number}",
            num_replicas=given["shard_replicas"],
            max_ongoing_requests=_ONGOING,
            health_check_period_s=2,
            ray_actor_options={"num_cpus": given["shard_cpus"], **memory, "label_selector": _NOT_THE_HEAD},
        ).bind(number, shards, given["shard_cpus"])
        for number in range(shards if shards > 1 else 0)
    ]
    return serve.deployment(
        serve.ingress()(Search),
        name="search",
        num_replicas=given["replicas"],
        max_ongoing_requests=_ONGOING,
        user_config=source,
        ray_actor_options={
            "num_cpus": given["cpus"], "num_gpus": given["gpus"], **({} if handles else memory)
        },
    ).bind({**given, **source}, *handles)  # fmt: skip


@dataclass(frozen=True)
class Version:
    """An index, and the model that it was made with, by their URIs."""

    model: str
    index: str


@dataclass(frozen=True)
class Refusal:
    """What a shard refuses (``RefusedError``), in an answer."""

    status: int
    reason: str


class Search:
    """The page and its API.

    Args:
        settings: the arguments of ``search``, all of them.
        shards: the handles of the shards; none to hold the index in this replica.
    """

    def __init__(self, settings: Mapping[str, Any], *shards: DeploymentHandle) -> None:
        self._settings, self._shards = settings, shards
        self._source: dict[str, str] = {name: settings[name] for name in _NEEDED}
        self._tasks: set[asyncio.Task[None]] = set()
        with garbage.kept():
            from wukong.serve.app import create_app
            from wukong.serve.metrics import Metrics
            from wukong.serve.versions import Switch, Watch

            self._switch = Switch(partial(create_app, metrics=Metrics()))
            self._watch = Watch(self._version, self._load, settings["watch"])

    def __serve_build_asgi_app__(self) -> "Switch":
        """Return the application; Ray Serve asks for it once."""
        return self._switch

    async def reconfigure(self, source: Mapping[str, str]) -> None:
        """Search another index: the first one before this replica answers, others while it goes on answering.

        Args:
            source: ``model``, ``data`` and ``index``, as far as they differ from the arguments.

        Raises:
            ConfigError: there is something else in it.
        """
        if unknown := sorted(set(source) - {*_NEEDED}):
            raise ConfigError(f"the user_config of the deployment search does not know {unknown}: it has {_NEEDED}")
        self._source = {name: source.get(name, self._settings[name]) for name in _NEEDED}
        if not self._switch.is_loaded:
            await self._watch.change(self._switch)
            work = self._watch(self._switch) if self._settings["watch"] else None
        else:
            work = self._watch.look(self._switch)
        if work is not None:
            task = asyncio.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _version(self) -> Hashable:
        from wukong.serve import start

        return *self._source.values(), *start.version(self._source["model"], self._source["data"])

    async def _load(self) -> "Service":
        """Load an index. If it is in shards, the first one answers before all have loaded theirs, others do not.

        Raises:
            DataError: it cannot be loaded, here or by a shard.
        """
        settings, source, is_first = self._settings, dict(self._source), not self._switch.is_loaded
        shards: list[RemoteShard] = []

        def connect(found: "Manifest") -> "Sequence[RemoteShard]":
            from wukong.serve import index

            version, held = Version(source["model"], found.uri), _held(index.shards(found), len(self._shards))
            for handle, numbers in zip(self._shards, held, strict=True):
                shards.extend(RemoteShard(handle, version, n, settings["shard_replicas"]) for n in numbers)
            return shards

        def load() -> "Service":
            from wukong.serve import start

            device = gpus.of_task() if settings["gpus"] else "cpu"
            return start.service(
                source["model"], source["data"], source["index"], device, cores=settings["cpus"], encodes=is_first,
                connect=connect if self._shards else None, seconds=settings["seconds"],
            )  # fmt: skip

        with garbage.kept():
            service = await asyncio.to_thread(load)
        within = _FIRST_WITHIN if is_first else _LOADED_WITHIN
        failed = [wrong for wrong in await asyncio.gather(*(each.load(within) for each in shards)) if wrong]
        if failed and not is_first:
            service.close()
            raise DataError(f"not all shards have loaded {source['data']}: {failed[0]}")
        return service


class RemoteShard:
    """Asks a deployment of a shard as ``wukong.serve.served_shard.Shard`` is asked.

    Args:
        handle: its handle.
        version: the index that is searched.
        number: number of the shard in the index.
        replicas: how many replicas it has.
    """

    def __init__(self, handle: DeploymentHandle, version: Version, number: int, replicas: int) -> None:
        self._handle, self._version, self._number, self._replicas = handle, version, number, replicas

    async def load(self, within: float) -> str:
        """Have all replicas load the index; return what is wrong if they have not within some seconds, else nothing."""
        loaded: set[str] = set()
        try:
            async with asyncio.timeout(within):
                while len(loaded) < self._replicas:
                    loaded.add(await self._answer(self._handle.load.remote(self._version, self._number)))
                    await asyncio.sleep(_ASKED_AGAIN * (len(loaded) < self._replicas))
        except TimeoutError:
            return f"{len(loaded)} of {self._replicas} replicas of a shard have loaded it within {within:g} s"
        except DataError as error:
            return str(error)
        return ""

    async def describe(self) -> "Description":
        """Say what the shard holds."""
        answer: Description = await self._ask("describe")
        return answer

    async def search(self, question: "Question") -> "Ranked":
        """Find pictures for a text."""
        answer: Ranked = await self._ask("search", question)
        return answer

    async def near(self, picture: "Tensor", count: int) -> "Neighbours":
        """Find captions and pictures for an encoded picture."""
        answer: Neighbours = await self._ask("near", picture, count)
        return answer

    async def items(self, rows: Sequence[int]) -> "list[Item]":
        """Look up what is shown of some pictures."""
        answer: list[Item] = await self._ask("items", rows)
        return answer

    async def find(self, key: str) -> "Item | None":
        """Look up a picture by its key."""
        answer: Item | None = await self._ask("find", key)
        return answer

    async def vectors(self, row: int) -> "Tensor":
        """Read the stored vectors of a picture."""
        answer: Tensor = await self._ask("vectors", row)
        return answer

    async def _ask(self, method: str, *arguments: Any) -> Any:
        from wukong.crawl.uploads import RefusedError

        answer = await self._answer(self._handle.ask.remote(self._version, self._number, method, *arguments))
        if isinstance(answer, Refusal):
            raise RefusedError(answer.status, answer.reason)
        return answer

    async def _answer(self, response: DeploymentResponse[Any]) -> Any:
        """Wait for an answer.

        Raises:
            DataError: there is none, because the replica has ended, or is wrong in itself.
        """
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()  # else the replica goes on for nobody
            raise
        except RayTaskError as error:
            raise DataError(f"{type(error.cause).__name__}: {error.cause}") from error
        except (RayError, RayServeException) as error:
            raise DataError(f"its process gives no answer ({type(error).__name__})") from error


class Shards:
    """Shards of an index, a range of its pictures; one replica of those that have the same.

    Args:
        number: number of this range, from 0.
        of: how many ranges there are.
        cpus: processor cores to compute with; a part of one counts as one.
    """

    def __init__(self, number: int, of: int, cpus: float) -> None:
        self._number, self._of, self._cpus = number, of, cpus
        self._loaded: dict[Version, asyncio.Future[_Opened]] = {}

    async def load(self, version: Version, shard: int) -> str:
        """Load an index, if it is not loaded, and return the name of this replica."""
        await self._shard(version, shard)
        name: str = serve.get_replica_context().replica_tag
        return name

    async def ask(self, version: Version, shard: int, method: str, *arguments: Any) -> Any:
        """Answer as ``wukong.serve.served_shard.LocalShard`` does, whose method is named."""
        from wukong.crawl.uploads import RefusedError

        opened = await self._shard(version, shard)
        try:
            return await getattr(opened, method)(*arguments)
        except RefusedError as error:
            return Refusal(error.status, str(error))

    async def _shard(self, version: Version, shard: int) -> "LocalShard":
        loading = self._loaded.pop(version, None)
        if loading is None:
            while len(self._loaded) >= _KEPT:
                del self._loaded[next(iter(self._loaded))]
            loading = asyncio.ensure_future(asyncio.to_thread(self._open, version))
            loading.add_done_callback(partial(self._forget_failed, version))
        self._loaded[version] = loading  # the last: it was used last
        # Who asks may not wait so long; it is loaded all the same.
        opened = (await asyncio.shield(loading))[shard]
        if isinstance(opened, DataError):
            raise opened
        return opened

    def _open(self, version: Version) -> "_Opened":
        with garbage.kept():
            from wukong.serve import index, start
            from wukong.store import manifest

            numbers = _held(index.shards(manifest.load(version.index)), self._of)[self._number]
            return start.shards(version.model, version.index, numbers, max(1, int(self._cpus)))

    def _forget_failed(self, version: Version, loading: "asyncio.Future[_Opened]") -> None:
        """Have an index of which something could not be loaded loaded again, but not at each question."""
        wrong = loading.cancelled() or loading.exception() or DataError in map(type, loading.result().values())
        if wrong:
            asyncio.get_running_loop().call_later(_LOADED_AGAIN, self._loaded.pop, version, None)


def _held(shards: int, deployments: int) -> list[range]:
    """Return which shards of an index each deployment holds: ranges, of which the sizes differ by one at most."""
    if shards < deployments:
        raise DataError(f"the index has {shards} shards: start as many deployments of shards, or fewer")
    ends = [number * shards // deployments for number in range(deployments + 1)]
    return [range(*each) for each in pairwise(ends)]
