"""`APIIngress`: the deployment on CPU that speaks HTTP, and puts the routes together.

There is one of it: its queue is the only one, so that positions, waits and refusals are true of the whole service.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace

from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from app.routes import doors, errors, health, imagine, metrics, openai, openai_edits, replay, stream
from app.routes.admission import Line, Ticket
from app.routes.backend import Backend, Job
from app.routes.coalescing import Coalescing
from app.routes.estimate import Rates, work_of
from app.routes.replicas import Replicas
from app.schemas import Capabilities, DeadlinePassed, GeneratedImage, ImageRequest, Queued, Update
from app.settings import Settings

logger = logging.getLogger("ray.serve")

SPARE_REQUESTS = 1000  # that share a picture, ask for none or are on their way to a refusal, all at once
MOST_BEFORE_THE_DOOR = 1000  # that wait in Serve's proxy once there are more, before it turns them away without asking
COME_BACK_IN_S = 5.0
NOT_NOW = (RayError, RayServeException, KeyError, TimeoutError)  # what asking Serve raises while it starts, changes or has lost something
SECONDS_BETWEEN_TRIES = 1.0
SECONDS_BETWEEN_COUNTS = 5.0  # of replicas
LONGEST_COUNT_S = 5.0
LEAST_SHARE_AT_WORK = 0.75  # of the time that a replica was asked for, but for what asking it takes
ASKING_S = 0.05


@serve.ingress()
class APIIngress:
    """The `Backend` of the routes: it asks the model's replicas."""

    def __init__(self, model: DeploymentHandle, settings: Settings) -> None:
        self._model = model
        self._settings = settings
        self._metrics = metrics.Metrics()
        self._replicas = Replicas(model, settings.max_tries, self._metrics.retried)
        self._capabilities: Capabilities | None = None
        self._line: Line | None = None
        # Not the event loop's own few threads, which encode pictures: they would all wait for a controller that does not answer.
        self._counting = ThreadPoolExecutor(1, "counting")
        self._count: asyncio.Future[int] | None = None
        self._learning = asyncio.get_running_loop().create_task(self._learn())

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(self, self._settings, self._metrics)

    async def tasks(self) -> int:
        """Tasks of this replica's event loop, this one included: whether something was left behind."""
        return len(asyncio.all_tasks())

    async def ready(self) -> bool:
        try:
            return self._capabilities is not None and await self._running_replicas() > 0
        except NOT_NOW:
            return False

    async def capabilities(self) -> Capabilities:
        if self._capabilities is None:
            raise errors.NotReady
        return self._capabilities

    async def run(self, job: Job) -> AsyncGenerator[Queued | Update]:
        if self._line is None or self._capabilities is None:
            raise errors.NotReady
        if self._settings.log_prompts:
            logger.info("asked for %s", [request.model_dump(mode="json", exclude_none=True) for request in job.requests])
        began, done, at_work = time.monotonic(), False, True
        work = sum(work_of(request, self._capabilities) for request in job.requests)
        ticket = self._line.enter(work, len(job.requests), job.seconds_left)
        try:
            async with aclosing(wait_for_turn(self._line, ticket, job)) as outlooks:
                async for outlook in outlooks:
                    yield outlook
            waited = time.monotonic() - began
            asked, took = time.monotonic(), 0.0
            async with aclosing(self._replicas.run(job)) as updates:
                async for update in updates:
                    if isinstance(update.payload, GeneratedImage):
                        took = max(took, sum(update.payload.timings.values()))
                    yield self._with_wait(update, waited)
            done, at_work = True, was_at_work(took, time.monotonic() - asked)
        finally:
            self._line.leave(ticket, done=done, at_work=at_work)

    def _with_wait(self, update: Update, waited: float) -> Update:
        """The queue here is as much a part of the phase `queue` as the one in the replica."""
        if not isinstance(update.payload, GeneratedImage):
            return update
        timings = update.payload.timings | {"queue": update.payload.timings.get("queue", 0.0) + waited}
        self._metrics.took(timings)
        return replace(update, payload=replace(update.payload, timings=timings))

    async def _learn(self) -> None:
        """A replica answers only once its model has made a picture. After that, how many there are and what they can do is looked at for
        ever: a new ingress may be up before the replicas of its own version are."""
        while True:
            try:
                if self._line is None:
                    self._capabilities, rate = await self._model.introduction.remote()
                    self._line = self._new_line(*measure_of(self._capabilities, rate))
                self._line.changed_replicas(await self._running_replicas())
                self._follow(*await asyncio.wait_for(self._model.introduction.remote(), SECONDS_BETWEEN_COUNTS))
            except TimeoutError:  # all replicas are full, or gone
                pass
            except NOT_NOW as error:
                if self._line is not None:
                    logger.warning("the replicas could not be counted: %s", error)
            except Exception:  # nobody else would see it, and it must go on: without an answer no request is ever let in
                logger.exception("the replicas could not be asked")
            await asyncio.sleep(SECONDS_BETWEEN_TRIES if self._line is None else SECONDS_BETWEEN_COUNTS)

    def _follow(self, capabilities: Capabilities, rate: float) -> None:
        """The first replica that answered may have been of the version before, whose model had another size and speed."""
        if self._line is not None and capabilities != self._capabilities:
            self._line.changed_model(*measure_of(capabilities, rate))
        self._capabilities = capabilities

    def _new_line(self, native_work: float, rate: float) -> Line:
        return Line(
            batch=self._settings.max_batch_size,
            rates=Rates(rate),
            native_work=native_work,
            max_queued=self._settings.max_queued_requests,
            max_queue_s=self._settings.max_queue_s,
        )

    async def _running_replicas(self) -> int:
        """Counted once for all who ask meanwhile. Raises one of `NOT_NOW`, and `TimeoutError`."""
        if self._count is None or self._count.done():
            name = serve.get_replica_context().app_name
            self._count = asyncio.get_running_loop().run_in_executor(self._counting, running_replicas, name, self._model.deployment_name)
        return await asyncio.wait_for(asyncio.shield(self._count), LONGEST_COUNT_S)


async def wait_for_turn(line: Line, ticket: Ticket, job: Job) -> AsyncGenerator[Queued]:
    """Tells the outlook about once a second. Raises `DeadlinePassed`."""
    yield Queued(line.outlook(ticket).position, ticket.expected_wait_s)
    if ticket.started.is_set():
        return
    while not ticket.started.is_set():
        try:
            async with asyncio.timeout(max(min(stream.SECONDS_BETWEEN_SIGNS_OF_LIFE, job.seconds_left), 0)):
                await ticket.started.wait()  # not in `wait_for`, which may lose the caller's leaving if both come together
        except TimeoutError:
            if job.seconds_left <= 0:
                raise DeadlinePassed("the deadline passed in the queue") from None
            yield line.outlook(ticket)
    yield Queued(0, 0.0)


def was_at_work(took: float, seconds: float) -> bool:
    """Whether pictures that took so long were worked at for most of the `seconds` in which a replica was asked for them. Else it came up
    first, or another one died: nothing to learn from."""
    return took > LEAST_SHARE_AT_WORK * (seconds - ASKING_S)


def measure_of(capabilities: Capabilities, rate: float) -> tuple[float, float]:
    """The work of the model's own default picture, and how much work a second the replica's `rate` of pixel-steps is."""
    native = ImageRequest(prompt="-").resolved(capabilities)
    work = work_of(native, capabilities)
    return work, rate * work / native.pixel_steps


def running_replicas(application: str, deployment: str) -> int:
    running: int = serve.status().applications[application].deployments[deployment].replica_states.get("RUNNING", 0)
    return running


def api_ingress(model: Application, settings: Settings) -> Application:
    """The deployment. It asks for no CPU of its own: on a small machine the model's threads need them all."""
    deployment = serve.deployment(
        APIIngress,
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        # Waiting is done here, where it is counted and bounded: nobody should wait in Serve's own queue, which tells no times.
        max_queued_requests=MOST_BEFORE_THE_DOOR,
        backpressure_config={"retry_after_s": COME_BACK_IN_S},
        max_ongoing_requests=SPARE_REQUESTS + settings.max_queued_requests + settings.max_batch_size * (settings.max_replicas or 1),
        graceful_shutdown_timeout_s=settings.graceful_shutdown_timeout_s,
    )
    return deployment.bind(model, settings)


def build_api(backend: Backend, settings: Settings, counted: metrics.Metrics | None = None) -> FastAPI:
    """The HTTP interface over any backend. Its documentation page needs no network."""
    api = FastAPIOffline(
        title="Imagine",
        version=settings.version,
        description="A prompt becomes a picture.",
        exception_handlers=errors.HANDLERS,
        redirect_slashes=False,  # behind a proxy that ends TLS the redirect would lead out of it
    )
    shared = Coalescing(backend) if counted is None else Coalescing(backend, counted.coalesced)
    routers = [*(routes.router(shared, settings) for routes in (imagine, stream, replay, openai, openai_edits)), health.router(shared)]
    for router in routers:
        api.include_router(router)
    limits = {"max_body_bytes": settings.max_body_bytes, "max_picture_bytes": settings.max_picture_bytes}
    api.add_middleware(doors.Doors, version=settings.version, tokens=settings.tokens, **limits)
    if counted is not None:
        paths = [route.path for router in routers for route in router.routes if isinstance(route, APIRoute)]
        api.add_middleware(metrics.CountRequests, counted=counted, paths=paths)
    return api
