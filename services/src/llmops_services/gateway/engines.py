"""Which engine answers: the one with the fewest answers under way among those that live and serve the model.

An engine that fails before the first byte of its answer costs nobody anything: the next one is asked, and the failed one is
asked last until its `GET /v1/models` answers again. That call is made every few seconds anyway: it tells which models an engine
serves, so that a request for a new adapter only goes where it is loaded. It also finds an engine that hangs: when nothing has come
from it, on any connection, through two calls in a row, another one is asked what waits for it (a busy one may miss a single call).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import orjson

from llmops_api.programs import Env
from llmops_services.gateway.connection import EngineLost
from llmops_services.gateway.errors import ApiError, unavailable
from llmops_services.gateway.exchange import Answer, ConnectionPool
from llmops_services.gateway.limits import LIMITS, Limits

log = logging.getLogger(__name__)

PROBE_SECONDS = 5.0
"""Between two looks at an engine that is well."""
EAGER_SECONDS = 0.25
"""Between two looks at an engine that does not serve a wanted model yet, and the first wait after a failure."""
BACK_OFF_SECONDS = 8.0
"""The longest wait before a dead engine is looked at again."""
PROBE_TIMEOUT_SECONDS = 5.0

_turns = itertools.count()


class Engine:
    """One engine: how many answers it has under way, which models it serves, and whether it lives."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        limits: Limits,
        changed: Callable[[], None],
        hangs: Callable[[Engine], None],
    ) -> None:
        self.url = url
        self.connections = ConnectionPool(url, api_key=api_key, limits=limits)
        self.outstanding = 0
        self.turn = 0
        self.up = False
        self.models: frozenset[str] = frozenset()
        self.wanted: frozenset[str] = frozenset()
        self.failure = "not looked at yet"
        self._failures = 0
        self._silent_since: float | None = None
        self._changed, self._hangs = changed, hangs
        self._closed = False
        self._poke = asyncio.Event()
        self._task = asyncio.create_task(self._watch(), name=f"engine {url}")

    def serves(self, model: str) -> bool:
        """Whether the engine lives and lists the model."""
        return self.up and model in self.models

    def failed(self, why: str) -> None:
        """Asked last from now on, until a probe succeeds; that is made the later the more answers in a row have failed."""
        self.failure = why
        if self.up:
            log.warning("engine %s is down: %s", self.url, why)
            self.up = False
            self._failures += 1
            self._changed()
            self._poke.set()

    def answered(self) -> None:
        """It answered a chat."""
        self._failures, self._silent_since = 0, None

    def lacks(self, model: str) -> None:
        """It answered that it does not know the model (a restart may have lost an adapter)."""
        if model in self.models:
            log.warning("engine %s no longer serves %s", self.url, model)
            self.models -= {model}
            self._changed()
            self._poke.set()

    def want(self, models: frozenset[str]) -> None:
        """Look often until all of these are served."""
        if models != self.wanted:
            self.wanted = models
            self._poke.set()

    def taken(self) -> None:
        """An answer is under way."""
        self.outstanding += 1
        self.turn = next(_turns)

    def released(self) -> None:
        """An answer has ended."""
        self.outstanding -= 1
        if self._closed and not self.outstanding:
            self._task.cancel()

    def close(self) -> None:
        """Answers under way go on; as long as there are any, the engine is looked at."""
        self._closed = True
        self.connections.close()
        if not self.outstanding:
            self._task.cancel()

    async def _watch(self) -> None:
        while True:
            self._poke.clear()
            await self._probe()
            self.connections.close_unused(older_than=LIMITS.idle_seconds)
            if self.up:
                await self._poked(PROBE_SECONDS if self.wanted <= self.models else EAGER_SECONDS)
            if not self.up:
                seconds = min(BACK_OFF_SECONDS, EAGER_SECONDS * 2 ** min(self._failures, 8))
                await asyncio.sleep(seconds * random.uniform(0.8, 1.2))  # noqa: S311

    async def _poked(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._poke.wait()
        except TimeoutError:
            pass

    async def _probe(self) -> None:
        now = asyncio.get_running_loop().time
        began = now()
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
                with await self.connections.request("GET", "/v1/models") as answer:
                    body = await answer.whole()
            if answer.status != 200:
                raise EngineLost(f"/v1/models answers {answer.status}")
            models = frozenset(str(card["id"]) for card in orjson.loads(body)["data"])
        except (EngineLost, TimeoutError, ValueError, KeyError, TypeError) as error:
            why = str(error) or f"no answer in {PROBE_TIMEOUT_SECONDS} s"
            self._failures += 1
            if self.up:
                log.warning("engine %s is down: %s", self.url, why)
            self.up, self.failure = False, why
            self._changed()
            silent = isinstance(error, TimeoutError) or (isinstance(error, EngineLost) and error.silent)
            if not silent or self.connections.heard_since(began):
                self._silent_since = None
            else:
                self._silent_since = self._silent_since or now()
                if now() - self._silent_since >= PROBE_TIMEOUT_SECONDS:
                    self._hangs(self)
            return
        self._silent_since = None
        if not self.up:
            log.info("engine %s is up and serves %s", self.url, ", ".join(sorted(models)))
        if not self.up or models != self.models:
            self.up, self.models, self.failure = True, models, ""
            self._changed()


class Engines:
    """All engines of the configurations in use, one `Engine` an address; outlives a change of the configuration."""

    def __init__(self, *, api_key: str | None = None, limits: Limits = LIMITS) -> None:
        self._api_key, self._limits = api_key, limits
        self._engines: dict[str, Engine] = {}
        self.changed = asyncio.Event()
        """Set whenever an engine came, went, or serves other models; whoever waits on it clears it."""

    def use(self, wanted: dict[str, set[str]]) -> None:
        """Keep exactly these engines (models wanted of each, by address)."""
        for url in [url for url in self._engines if url not in wanted]:
            self._engines.pop(url).close()
        for url, models in wanted.items():
            if url not in self._engines:
                self._engines[url] = Engine(
                    url,
                    api_key=self._api_key,
                    limits=self._limits,
                    changed=self.changed.set,
                    hangs=self._ask_elsewhere,
                )
            self._engines[url].want(frozenset(models))

    def of(self, urls: Iterable[str]) -> tuple[Engine, ...]:
        """The engines of these addresses, which `use` has named."""
        return tuple(self._engines[url] for url in dict.fromkeys(urls))

    def up(self) -> int:
        """How many live."""
        return sum(engine.up for engine in self._engines.values())

    def _ask_elsewhere(self, silent: Engine) -> None:
        """End what waits for an engine, when there is another one to be asked: `ask` goes on with that."""
        others = (engine for engine in self._engines.values() if engine is not silent)
        if any(not other.wanted.isdisjoint(other.models) for other in others if other.up):
            ended = silent.connections.cut("it hangs")
            if ended:
                log.warning("engine %s hangs: its %d answers under way are given up", silent.url, ended)

    def __len__(self) -> int:
        return len(self._engines)

    def close(self) -> None:
        """Close all."""
        self.use({})


def pick(engines: Iterable[Engine], model: str, tried: set[Engine]) -> Engine | None:
    """The next engine to ask: one that serves the model, with the fewest answers under way, in turn among equals; those
    that seem down come last, because being asked is also the fastest way to find out that they are back.
    """
    left = [engine for engine in engines if engine not in tried]
    return min(left, key=lambda e: (not e.serves(model), e.outstanding, e.turn), default=None)


@dataclass
class Reply:
    """What an engine answers: `first` is all of the body when `complete`, else its first piece and `answer` has the rest."""

    answer: Answer
    first: bytes
    complete: bool

    @property
    def status(self) -> int:
        """The HTTP status, below 500."""
        return self.answer.status


async def ask(
    engines: tuple[Engine, ...], model: str, body: bytes, headers: Mapping[str, str], *, stream: bool
) -> Reply:
    """Send a chat to the best engine, to the next one when that fails before anything of its answer could be passed on: the
    first byte of a stream, all of another answer. Close the reply's `answer`. Raises `ApiError` 503 when no engine answers.
    """
    tried: set[Engine] = set()
    without_model = 0
    while (engine := pick(engines, model, tried)) is not None:
        tried.add(engine)
        engine.taken()
        try:
            answer = await engine.connections.request("POST", "/v1/chat/completions", body, headers)
        except EngineLost as error:
            engine.released()
            engine.failed(str(error))
            continue
        except BaseException:
            engine.released()
            raise
        answer.on_close = engine.released
        status = answer.status
        if status >= 500 or status in (401, 403, 404):
            answer.close()
            if status == 404:
                without_model += 1
                engine.lacks(model)
            elif status < 500:
                log.error(
                    "engine %s refuses the gateway's key (%d): correct %s", engine.url, status, Env.ENGINE_API_KEY
                )
            else:
                engine.failed(f"it answered {status}")
            continue
        streamed = stream and status == 200
        try:
            first = await (answer.read() if streamed else answer.whole())
        except EngineLost as error:
            answer.close()
            engine.failed(str(error))
            continue
        except BaseException:
            answer.close()
            raise
        engine.answered()
        return Reply(answer, first, complete=not streamed)
    raise no_engine(len(engines), without_model, model)


def no_engine(count: int, without_model: int, model: str) -> ApiError:
    """All `count` engines have been asked in vain."""
    if without_model == count and count:
        return unavailable(f"No engine serves the model {model} at the moment. Try again.", "model_not_loaded")
    return unavailable(f"None of the {count} engines of this service answers at the moment. Try again.", "no_engine")
