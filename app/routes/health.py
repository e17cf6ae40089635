"""Is the process alive, can it make pictures, and which. Monitors and load balancers may ask the first two with HEAD."""

from typing import Any

from fastapi import APIRouter

from app.routes.backend import Backend
from app.routes.errors import NotReady
from app.schemas import Capabilities, ErrorAnswer


def router(backend: Backend) -> APIRouter:
    routes = APIRouter()

    @routes.head("/healthz")
    @routes.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process that speaks HTTP is alive."""
        return {"status": "alive"}

    loading: dict[int | str, dict[str, Any]] = {503: {"model": ErrorAnswer, "description": "No replica has made a picture yet"}}

    @routes.head("/readyz", responses=loading)
    @routes.get("/readyz", responses=loading)
    async def readyz() -> dict[str, str]:
        """A replica has loaded the model and made a picture with it."""
        if not await backend.ready():
            raise NotReady
        return {"status": "ready"}

    @routes.get(
        "/capabilities",
        responses={
            401: {"model": ErrorAnswer, "description": "The service wants a token"},
            503: {"model": ErrorAnswer, "description": "No replica is up yet"},
        },
    )
    async def capabilities() -> Capabilities:
        """The model, its limits and its defaults."""
        return await backend.capabilities()

    return routes
