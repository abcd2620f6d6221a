"""The page of ``interfuse serve --demo``, and what it is made of. Nothing of it comes from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict

from interfuse.serve.blocks import Block
from interfuse.serve.faults import ServiceError
from interfuse.serve.runtime import runtime_files

PAGE = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Settings(BaseModel):
    """What the page has to know.

    Attributes:
        runtime: Whether onnxruntime-web is there.
        models: Base blocks, ``NAME/VERSION``, whose ONNX browsers may have.
    """

    model_config = ConfigDict(frozen=True)

    runtime: bool
    models: tuple[str, ...]


class Demo:
    """The page's files.

    Args:
        models: ONNX of base blocks by address, whose parameters whoever opens the page gets.
        admit: Lets whoever asks in, or raises ServiceError.
        standing: Of an address, whether its block may still be used; raises ServiceError.
        runtime: The folder of onnxruntime-web.
    """

    def __init__(
        self,
        models: Mapping[str, bytes],
        admit: Callable[[Request], None],
        standing: Callable[[str, int], object],
        runtime: Path,
    ) -> None:
        self._models, self._admit, self._standing = models, admit, standing
        self._files = {path.name: path.read_bytes() for path in PAGE.iterdir() if path.suffix in _TYPES}
        self._runtime = runtime_files(runtime)

    @property
    def has_runtime(self) -> bool:
        """Whether base blocks can run in browsers."""
        return bool(self._runtime)

    def add_to(self, app: FastAPI) -> None:
        """Answer with the page at ``/``."""
        router = APIRouter(include_in_schema=False)
        router.get("/")(self.index)
        router.get("/page/settings.json")(self.settings)
        router.get("/page/models/{name}/{version}")(self.model)
        router.get("/page/ort/{file}")(self.runtime)
        router.get("/page/{file}")(self.file)
        app.include_router(router)

    async def index(self) -> Response:
        """The page."""
        return _file("index.html", self._files)

    async def file(self, file: str) -> Response:
        """A file of the page."""
        return _file(file, self._files)

    async def runtime(self, file: str) -> Response:
        """A file of onnxruntime-web."""
        return _file(file, self._runtime)

    async def settings(self, request: Request) -> Settings:
        """What the page has to know."""
        self._admit(request)
        return Settings(runtime=self.has_runtime, models=tuple(self._models))

    async def model(self, name: str, version: Annotated[int, InPath(ge=1)], request: Request) -> Response:
        """The ONNX of a base block."""
        self._admit(request)
        self._standing(name, version)
        found = self._models.get(f"{name}/{version}")
        if found is None:
            raise ServiceError("not_found", "this block is not handed out", "block")
        return Response(found, headers=_HEADERS, media_type="application/octet-stream")


def models_of(blocks: Mapping[tuple[str, int], Block]) -> dict[str, bytes]:
    """The ONNX of base blocks that have some. Modular blocks are handed to nobody."""
    return {
        block.address: block.onnx
        for block in blocks.values()
        if block.onnx is not None and block.artefact is not None and block.artefact.manifest.part == "base"
    }


def _file(name: str, files: Mapping[str, bytes]) -> Response:
    if name not in files:
        raise ServiceError("not_found", "the page has no such file")
    return Response(files[name], headers=_HEADERS, media_type=_TYPES[Path(name).suffix])
