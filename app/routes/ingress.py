"""`APIIngress`: the deployment on CPU that speaks HTTP, and puts the routes together."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.middleware.base import RequestResponseEndpoint

from app.routes import errors, health, imagine, stream
from app.routes.backend import Backend
from app.schemas import Capabilities, GeneratedImage, ImageRequest, Progress

MAX_ONGOING_REQUESTS = 1000  # waiting is done here, where it can be counted and refused; Serve's default would hold requests at 5
SECONDS_BETWEEN_TRIES = 1.0


@serve.ingress()
class APIIngress:
    """The `Backend` of the routes: it asks the model's replicas."""

    def __init__(self, model: DeploymentHandle, version: str) -> None:
        self._model = model
        self._version = version
        self._capabilities: Capabilities | None = None
        self._learning = asyncio.get_running_loop().create_task(self._learn_capabilities())

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(self, self._version)

    async def ready(self) -> bool:
        if self._capabilities is None:
            return False
        status = await asyncio.to_thread(serve.status)
        application = status.applications[serve.get_replica_context().app_name]
        running: int = application.deployments[self._model.deployment_name].replica_states.get("RUNNING", 0)
        return running > 0

    async def capabilities(self) -> Capabilities:
        if self._capabilities is None:
            raise errors.NotReady
        return self._capabilities

    async def generate(self, request: ImageRequest) -> GeneratedImage:
        resolved = request.resolved(await self.capabilities())
        generated: GeneratedImage = await self._model.generate.remote(resolved)
        return generated

    async def stream(self, request: ImageRequest, previews: bool) -> AsyncIterator[Progress | GeneratedImage]:
        async for told in self._model.options(stream=True).stream.remote(request, previews):
            yield told

    async def _learn_capabilities(self) -> None:
        """A replica answers only once its model has made a picture."""
        while self._capabilities is None:
            try:
                self._capabilities = await self._model.capabilities.remote()
            except RayError:
                await asyncio.sleep(SECONDS_BETWEEN_TRIES)


def api_ingress(model: Application, version: str) -> Application:
    """The deployment. It asks for no CPU of its own: on a small machine the model's threads need them all."""
    deployment = serve.deployment(APIIngress, ray_actor_options={"num_cpus": 0}, max_ongoing_requests=MAX_ONGOING_REQUESTS)
    return deployment.bind(model, version)


def build_api(backend: Backend, version: str) -> FastAPI:
    """The HTTP interface over any backend. Its documentation page needs no network."""
    api = FastAPIOffline(title="Imagine", version=version, description="A prompt becomes a picture.", exception_handlers=errors.HANDLERS)
    api.include_router(imagine.router(backend))
    api.include_router(stream.router(backend))
    api.include_router(health.router(backend))

    @api.middleware("http")
    async def name_the_version(raw: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(raw)
        response.headers["X-Imagine-Version"] = version
        return response

    return api
