"""The service: blocks behind HTTP. What it takes, what it gives, and what it refuses is in its OpenAPI document."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from fastapi import FastAPI, Query, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from interfuse.artefacts import Answers, Artefact, Fusion, Owner, Part, TensorForm
from interfuse.data.inputs import Inputs, named, rows_of
from interfuse.errors import ConfigError
from interfuse.messages import Disclosure
from interfuse.serve import bodies
from interfuse.serve.access import Access
from interfuse.serve.batching import Batches
from interfuse.serve.blocks import LOOK, Block
from interfuse.serve.bodies import JSON, SAFETENSORS, JsonAnswer, JsonTensors
from interfuse.serve.demo import Demo, models_of
from interfuse.serve.faults import STATUS, Code, Fault, ServiceError
from interfuse.serve.limits import ServiceLimits
from interfuse.serve.metrics import Metrics
from interfuse.wire import NO_CODEC, Codec
from interfuse.wire.body import shown

T = TypeVar("T")
AT_ONCE = 64 << 10
"""Bytes of a body that are read or written where all requests are; those of a longer one are in a thread."""
_log = logging.getLogger(__name__)
_READ_ON = 4
"""A body that is too large is read on up to so many times the limit, since most clients read an answer only then."""
_PROMETHEUS = "text/plain; version=1.0.0; charset=utf-8"
_DESCRIPTION = """
A base block makes features of samples, a modular block makes scores of features. Two blocks fit if the `contract` of
both is the same. Tensors come and go as [safetensors](https://github.com/huggingface/safetensors), or as JSON with the
numbers row after row; the key of the contract travels with features: in JSON as `contract`, in a safetensors file
among the metadata. What is refused has a `code`.
"""
_OF_CODEC = "How features travel, such as fp16 or int8+zstd: each tensor then is the codec's bytes; for safetensors."
_BINARY: Mapping[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_SAMPLES = JsonTensors.model_json_schema(ref_template="#/components/schemas/{model}")
_SAMPLES.pop("$defs")
_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {JSON: {"schema": _SAMPLES}, SAFETENSORS: _BINARY}},
}


def _refusals(*codes: Code) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI document says of errors."""
    found: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        known = found.setdefault(STATUS[code], {"model": Fault, "description": ""})
        known["description"] = ", ".join(filter(None, (known["description"], f"`{code}`")))
        if STATUS[code] in (429, 503):
            known["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return found


_RUN = _refusals(*get_args(Code)) | {200: {"content": {SAFETENSORS: _BINARY}}}
_METRICS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

Name = Annotated[str, InPath(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Version = Annotated[int, InPath(ge=1, le=999_999_999)]


class _Said(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BlockFacts(_Said):
    """What is public of a block.

    Attributes:
        block: ``NAME/VERSION``.
        takes: What goes in, by name; ``shape`` is that of one sample. None of a block that was withdrawn earlier.
        contract: The key of ``fusion``, which travels with features.
        discloses: What its answers tell of the samples that go in.
        withdrawn: Why it does not answer any more.
    """

    block: str
    part: Part | None
    takes: Mapping[str, TensorForm] | None
    columns: tuple[str, ...] = ()
    ranges: Mapping[str, tuple[float, float]] = {}
    bounds: Mapping[str, tuple[float | None, float | None]] = {}
    fusion: Fusion | None
    contract: str | None
    answers: Answers | None
    discloses: Disclosure | None
    owner: Owner | None
    withdrawn: str | None


class Listing(_Said):
    """All blocks of a service."""

    blocks: Sequence[BlockFacts]


class Health(_Said):
    """Whether it runs, or can answer."""

    status: Literal["alive", "ready"]


class Memory:
    """Bytes of bodies that are held, of all requests together."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0

    def take(self, count: int) -> None:
        """Hold more.

        Raises:
            ServiceError: all together would be too many.
        """
        if self.held + count > self.most:
            raise ServiceError("busy", "too much is being read for others: try again", retry=1, closes=True)
        self.held += count

    def give_back(self, count: int) -> None:
        """Hold less."""
        self.held -= count


class Service:
    """Blocks, and everything that stands between them and whoever asks.

    Args:
        blocks: Each address once.
        origins: Of pages in browsers that may ask, such as ``https://app.example.org``.
        demo: For a page to look at, the folder of onnxruntime-web, which may lack; the page hands the ONNX of base
            blocks to whoever may ask.

    Raises:
        ConfigError: two blocks have one address, or none may answer.
    """

    _bodies: Executor
    """While the service runs."""

    def __init__(
        self,
        blocks: Sequence[Block],
        access: Access | None = None,
        limits: ServiceLimits | None = None,
        origins: Sequence[str] = (),
        demo: Path | None = None,
    ) -> None:
        self.blocks = {(block.name, block.version): block for block in blocks}
        if len(self.blocks) != len(blocks):
            raise ConfigError("two blocks have one name and version: serve them as NAME/VERSION")
        if not any(block.artefact is not None for block in blocks):
            raise ConfigError("no block is left to serve: " + "; ".join(f"{b.address} {b.withdrawn}" for b in blocks))
        self.limits, self.access, self.metrics = limits or ServiceLimits(), access or Access(), Metrics()
        self._memory, self._origins = Memory(self.limits.memory), tuple(origins)
        self.demo = None if demo is None else Demo(models_of(self.blocks), self._admit, self._good, demo)
        self._batches: dict[tuple[str, int], Batches] = {}
        self.metrics.memory.set_function(lambda: self._memory.held)
        for block in blocks:
            block.seen = time.monotonic()

    def application(self) -> FastAPI:
        """The service as an ASGI application."""
        app = FastAPI(
            title="interfuse",
            summary="Blocks of models that were trained together.",
            version="1",
            description=_DESCRIPTION,
            docs_url=None,
            redoc_url=None,
            lifespan=self._lifespan,
            redirect_slashes=False,
        )
        everywhere = _refusals(
            "unauthorised", "too_many_requests", "busy", "unknown_standing", "internal", "wrong_method", "malformed"
        )
        of_block = everywhere | _refusals("not_found", "wrong_parameter")
        app.get("/v1/blocks", response_model=Listing, responses=everywhere, summary="All blocks")(self.all_blocks)
        app.get("/v1/blocks/{name}/{version}", response_model=BlockFacts, responses=of_block, summary="One block")(
            self.one_block
        )
        app.post(
            "/v1/blocks/{name}/{version}",
            response_model=JsonAnswer,
            responses=_RUN,
            summary="What a block makes of samples",
            openapi_extra=_BODY,
        )(self.answer)
        app.get("/health", response_model=Health, responses=_refusals("busy", "malformed"))(self.health)
        app.get("/ready", response_model=Health, responses=_refusals("busy", "malformed"))(self.ready)
        app.get("/metrics", responses=everywhere | _METRICS, response_class=Response)(self.measured)
        if self.demo is not None:
            self.demo.add_to(app)
        app.add_exception_handler(ServiceError, self._refused)
        app.add_exception_handler(RequestValidationError, self._invalid)
        app.add_exception_handler(HTTPException, self._http)
        app.add_exception_handler(ClientDisconnect, self._gone)
        app.add_exception_handler(Exception, self._failed)
        app.add_middleware(_Measured, metrics=self.metrics)
        if self._origins:
            app.add_middleware(
                CORSMiddleware,
                allow_origins=self._origins,
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type"],
                expose_headers=["Retry-After"],
            )
        return app

    async def all_blocks(self, request: Request) -> Listing:
        """What can be asked here, and what fits together: blocks with the same ``contract`` do."""
        self._admit(request)
        return Listing(blocks=[_facts(block) for block in self.blocks.values()])

    async def one_block(self, name: Name, version: Version, request: Request) -> BlockFacts:
        """What is public of a block."""
        self._admit(request)
        return _facts(self._block(name, version))

    async def answer(
        self,
        name: Name,
        version: Version,
        request: Request,
        codec: Annotated[str, Query(max_length=64, description=_OF_CODEC)] = "none",
    ) -> Response:
        """Samples in, features out of a base block; features in, scores out of a modular block. The answer has the
        form of the request, JSON or safetensors."""
        self._admit(request)
        block = self._block(name, version)
        request.state.block = block.address
        artefact = block.good(time.monotonic())
        kind, wanted = _content_type(request), bodies.known_codec(codec)
        if wanted != NO_CODEC and (artefact.manifest.part != "base" or kind == JSON):
            raise ServiceError("wrong_parameter", "a codec is for features in safetensors", "codec")
        body, held = await self._body(request, self.limits.json_body if kind == JSON else self.limits.body)
        try:
            read = partial(self._read, body, kind, artefact)
            x = read() if len(body) <= AT_ONCE else await self._aside(read)
            del body, read
            found = await self._batches[name, version](x)
        finally:
            self._memory.give_back(held)
        self.metrics.rows.labels(block.address).inc(rows_of(x))
        said = partial(_response, block.address, artefact, found, kind, wanted)
        size = sum(tensor.nbytes for tensor in named(found).values())
        return said() if size <= AT_ONCE else await self._aside(said)

    async def health(self) -> Health:
        """Whether the process runs."""
        return Health(status="alive")

    async def ready(self) -> Health:
        """Whether a block can answer; 503 if none can."""
        now = time.monotonic()
        reasons = []
        for block in self.blocks.values():
            try:
                block.good(now)
                return Health(status="ready")
            except ServiceError as error:
                reasons.append(str(error))
        raise ServiceError("busy", "; ".join(reasons)[:1000], retry=30)

    async def measured(self, request: Request) -> Response:
        """Counts and times, as Prometheus reads them."""
        self._admit(request)
        for (name, version), batches in self._batches.items():
            self.metrics.waiting.labels(f"{name}/{version}").set(len(batches))
        return Response(self.metrics.text(), media_type=_PROMETHEUS)

    def _admit(self, request: Request) -> None:
        state = request.scope.get("state", {})
        if state.get("crowded"):
            raise ServiceError("busy", f"more than {self.limits.connections} connections", retry=1, closes=True)
        self.access.admit(
            request.headers.get("authorization"), state.get("certificate"), request.headers.get("host", "")
        )

    def _block(self, name: str, version: int) -> Block:
        found = self.blocks.get((name, version))
        if found is None:
            raise ServiceError(
                "not_found", f"no block {name}/{version} is served here: GET /v1/blocks lists them", "block"
            )
        return found

    def _good(self, name: str, version: int) -> Artefact:
        return self._block(name, version).good(time.monotonic())

    async def _body(self, request: Request, most: int) -> tuple[bytes, int]:
        """The body, and how many bytes of memory are held for it; none where it is refused.

        The limit is kept while it is read: what a header says of the length is only believed where it is too much.
        """
        pieces: list[bytes] = []
        held = size = 0
        try:
            declared = request.headers.get("content-length", "")
            if declared.isdecimal() and int(declared[:20]) > _READ_ON * most:
                raise _too_large(most)
            async with asyncio.timeout(self.limits.body_time):
                async for piece in request.stream():
                    size += len(piece)
                    if size > _READ_ON * most:
                        raise _too_large(most)
                    if size <= most:
                        self._memory.take(len(piece))
                        held += len(piece)
                        pieces.append(piece)
                    elif pieces:
                        pieces.clear()
            if size > most:
                raise _too_large(most)
        except TimeoutError:
            self._memory.give_back(held)
            message = f"the body was not there within {self.limits.body_time:g} seconds"
            raise ServiceError("slow_body", message, closes=True) from None
        except BaseException:
            self._memory.give_back(held)
            raise
        self.metrics.bytes.labels(request.state.block, "in").inc(size)
        return b"".join(pieces), held

    async def _aside(self, work: Callable[[], T]) -> T:
        """What takes a while, in a thread: everybody else is answered meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self._bodies, work)

    def _read(self, body: bytes, kind: str, artefact: Artefact) -> Inputs:
        """The samples of a body, under the right contract."""
        manifest = artefact.manifest
        if kind == JSON:
            received = bodies.read_json(body)
        else:
            received = bodies.read_safetensors(body, manifest.takes, self.limits.rows)
        fusion = manifest.fusion if manifest.part == "modular" else None
        bodies.contract_of(received.contract, None if fusion is None else fusion.key)
        return bodies.check(received.tensors, manifest.takes, self.limits.rows)

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        with (
            ThreadPoolExecutor(1, "interfuse-serve") as executor,
            ThreadPoolExecutor(2, "interfuse-bodies") as self._bodies,
        ):
            turn = asyncio.Lock()
            for address, block in self.blocks.items():
                if block.artefact is not None:
                    seen = self.metrics.batches.labels(block.address).observe
                    self._batches[address] = Batches(block.artefact, self.limits, executor, turn, seen)
            tasks = [asyncio.create_task(batches.work()) for batches in self._batches.values()]
            tasks += [asyncio.create_task(self._watch(block)) for block in self.blocks.values()]
            tasks.append(asyncio.create_task(self._watch_access()))
            try:
                yield {"limits": self.limits}
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, block: Block) -> None:
        """Look at a block, again and again."""
        said = block.withdrawn
        while True:
            await self._looked(block.refresh, time.monotonic())
            if block.withdrawn != said:
                said = block.withdrawn
                _log.warning("%s %s", block.address, said or "is good again")
            self.metrics.good.labels(block.address).set(block.may_answer(time.monotonic()))
            await asyncio.sleep(block.every)

    async def _watch_access(self) -> None:
        """Look at the keys, again and again."""
        while True:
            await self._looked(self.access.refresh)
            await asyncio.sleep(LOOK)

    async def _looked(self, look: Callable[..., None], *arguments: float) -> None:
        try:
            await asyncio.to_thread(look, *arguments)
        except Exception as error:  # of a registry's file system, whatever it is: what is not seen anew ages
            self.metrics.unreadable.inc()
            _log.warning("%s: %s", type(error).__name__, error)

    async def _refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, ServiceError)
        request.state.code = error.fault.code
        return Response(error.fault.model_dump_json(), error.status, error.headers, JSON)

    async def _invalid(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"][1:]))
        return await self._refused(request, ServiceError("wrong_parameter", str(first["msg"]), field))

    async def _http(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        known: dict[int, tuple[Code, str]] = {
            404: ("not_found", "there is no such address: /openapi.json lists all"),
            405: ("wrong_method", f"{shown(request.method)} is not for this address: /openapi.json says what is"),
        }
        code, message = known.get(error.status_code, ("malformed", "the request cannot be read"))
        found = await self._refused(request, ServiceError(code, message))
        if code == "wrong_method":
            routes = [route for route in request.app.routes if isinstance(route, Route)]
            here = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
            found.headers["Allow"] = ", ".join(sorted({method for route in here for method in route.methods or ()}))
        return found

    async def _gone(self, request: Request, error: Exception) -> Response:
        request.state.code = "gone"
        return Response(status_code=400)

    async def _failed(self, request: Request, error: Exception) -> Response:
        return await self._refused(request, ServiceError("internal", "the service failed; its log says why"))


class _Measured:
    """Counts every answer, and adds no header that could tell more."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, state = time.monotonic(), scope.setdefault("state", {})
        state |= {"block": "", "code": "ok"}

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.body":
                self._metrics.bytes.labels(state["block"], "out").inc(len(message.get("body", b"")))
            await send(message)

        self._metrics.underway.inc()
        try:
            await self._app(scope, receive, counted)
        except Exception:
            state["code"] = "internal"
            raise
        finally:
            self._metrics.underway.dec()
            self._metrics.requests.labels(state["block"], state["code"]).inc()
            self._metrics.seconds.labels(state["block"]).observe(time.monotonic() - begun)


def _response(address: str, artefact: Artefact, found: Inputs, kind: str, codec: Codec) -> Response:
    """The answer, in the form of the request."""
    tensors, fusion = named(found), artefact.manifest.fusion
    for one, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ServiceError("impossible", "what the block makes of these samples is not finite", one)
    contract = fusion.key if fusion is not None and artefact.manifest.part == "base" else None
    discloses = artefact.manifest.discloses
    if kind == JSON:
        said = JsonAnswer(block=address, discloses=discloses, contract=contract, tensors=bodies.as_json(found))
        return Response(said.model_dump_json(), media_type=JSON)
    metadata = {"block": address, "discloses": discloses.value}
    metadata |= {} if contract is None else {"contract": contract}
    return Response(bodies.as_safetensors(tensors, metadata, codec), media_type=SAFETENSORS)


def _facts(block: Block) -> BlockFacts:
    manifest = None if block.artefact is None else block.artefact.manifest
    if manifest is None:
        return BlockFacts(
            block=block.address,
            part=None,
            takes=None,
            fusion=None,
            contract=None,
            answers=None,
            discloses=None,
            owner=None,
            withdrawn=block.withdrawn,
        )
    return BlockFacts(
        block=block.address,
        part=manifest.part,
        takes=manifest.takes,
        columns=manifest.columns,
        ranges=manifest.ranges,
        bounds=manifest.bounds,
        fusion=manifest.fusion,
        contract=None if manifest.fusion is None else manifest.fusion.key,
        answers=manifest.answers,
        discloses=manifest.discloses,
        owner=manifest.owner,
        withdrawn=block.withdrawn,
    )


def _content_type(request: Request) -> str:
    found = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if found not in (JSON, SAFETENSORS):
        raise ServiceError("wrong_content_type", f"expected {JSON} or {SAFETENSORS}, found {shown(found) or 'none'}")
    if (coding := request.headers.get("content-encoding", "identity")) != "identity":
        raise ServiceError("wrong_content_type", f"a body is not coded as {shown(coding)}: send it as it is")
    return found


def _too_large(most: int) -> ServiceError:
    return ServiceError("too_large", f"a body of more than {most} bytes: send several requests", closes=True)
