"""`TextToImage`: the Ray Serve deployment that holds the model. A thin shim over the engine."""

import asyncio
import functools
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import ray
from ray import serve
from ray._private.utils import get_num_cpus
from ray.serve import Application, metrics

from app.autoscaling import GROWS_AT, PICTURES, by_pictures, places_for_large, places_taken
from app.schemas import Capabilities, GeneratedImage, ImageRequest, Progress, Update
from app.settings import Settings

MEASURED_STEPS = 4
BATCH_SIZES = [1, 2, 4, 8, 16, 32, 64]


class Counts:
    """What the denoiser did, for Prometheus and for whoever asks."""

    def __init__(self) -> None:
        self.rows = 0
        self._rows = metrics.Counter("imagine_denoiser_rows", "Rows that the denoiser computed")
        self._sizes = metrics.Histogram("imagine_batch_size", "Requests that shared a call of the denoiser", boundaries=BATCH_SIZES)

    def add(self, requests: int, rows: int) -> None:
        self.rows += rows
        self._rows.inc(rows, {})
        self._sizes.observe(requests, {})


class TextToImage:
    """A replica is up once its model is loaded and has made a picture."""

    def __init__(self, settings: Settings) -> None:
        from app.engine import checkpoint  # with torch, which only replicas need: whoever builds the application need not load it
        from app.engine.engine import ImageEngine

        if settings.device == "cuda" and not ray.get_gpu_ids():
            raise RuntimeError("device=cuda, but Ray gave this replica no GPU")
        loaded = checkpoint.load(
            settings.model,
            device=settings.device,
            dtype=settings.dtype,
            revision=settings.revision,
            compile_repeated_blocks=settings.compile_repeated_blocks,
        )
        self._counts = counts = Counts()
        self._places = settings.max_batch_size
        self._making = 0  # pictures
        self._asked = 0  # pictures of the job that came last
        self._engine = ImageEngine(
            loaded,
            max_batch_size=settings.max_batch_size,
            max_pixels=settings.max_pixels,
            version=settings.version,
            cpu_threads=settings.cpu_threads if settings.device == "cpu" else None,  # Ray would leave it as few as it gave CPUs
            on_batch=lambda batch: counts.add(batch.requests, batch.rows),
        )
        self._engine.warm_up()
        self._capabilities = self._engine.capabilities.limited(settings.max_num_inference_steps)
        self._rate = self._measured_rate()
        self._threads = ThreadPoolExecutor(settings.max_batch_size**2, thread_name_prefix="generate")  # a job may have as many pictures

    async def check_health(self) -> None:
        """Serve replaces a replica for which this raises."""
        await asyncio.to_thread(self._engine.check_health)

    async def introduction(self) -> tuple[Capabilities, float]:
        """What it can do, and the pixel-steps a second of a picture of its own size, alone."""
        return self._capabilities, self._rate

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve asks for it, and hands it to the policy."""
        return {PICTURES: places_taken(self._making, self._asked, self._places)}

    async def denoiser_rows(self) -> int:
        """Rows that the denoiser has computed since the start. A cancelled request adds none after its current step."""
        return self._counts.rows

    async def tasks(self) -> int:
        """Tasks of this replica's event loop, this one included: whether something was left behind."""
        return len(asyncio.all_tasks())

    async def generate(self, requests: Sequence[ImageRequest], timeout_s: float | None = None) -> list[GeneratedImage]:
        """Make images together, a thread each. A cancelled call keeps its place until all are out, within one step.

        Raises `DeadlinePassed` after `timeout_s`.
        """
        self._asked = len(requests)
        cancel = threading.Event()
        work = [self._start(request, None, cancel, timeout_s=timeout_s) for request in requests]
        try:
            return list(await asyncio.gather(*map(asyncio.shield, work)))
        finally:
            await _end(work, cancel)
            work.clear()  # the error of one leads to this frame, which would keep the pictures of the others

    async def stream(self, requests: Sequence[ImageRequest], previews: bool, timeout_s: float | None = None) -> AsyncGenerator[Update]:
        """Every step of every image as it is done, and each image once it is. Closing the stream stops the work like cancelling does."""
        told: asyncio.Queue[Update | None] = asyncio.Queue()
        self._asked = len(requests)
        loop, cancel = asyncio.get_running_loop(), threading.Event()

        def tell(index: int, progress: Progress) -> None:
            loop.call_soon_threadsafe(told.put_nowait, Update(index, progress))

        work = [
            self._start(request, functools.partial(tell, index), cancel, previews=previews, timeout_s=timeout_s)
            for index, request in enumerate(requests)
        ]
        for future in work:
            future.add_done_callback(lambda future: told.put_nowait(None))
        left = dict(enumerate(work))
        try:
            while left:
                update = await told.get()
                if update is not None:
                    yield update
                    continue
                for index in [index for index, future in left.items() if future.done()]:
                    yield Update(index, await left.pop(index))
        finally:
            await _end(work, cancel)
            work.clear()  # as in `generate`
            left.clear()
            del future

    def _start(
        self,
        request: ImageRequest,
        on_progress: Callable[[Progress], None] | None,
        cancel: threading.Event,
        *,
        previews: bool = False,
        timeout_s: float | None = None,
    ) -> asyncio.Future[GeneratedImage]:
        generate = functools.partial(self._engine.generate, request, on_progress, cancel, previews=previews, timeout_s=timeout_s)
        future = asyncio.get_running_loop().run_in_executor(self._threads, generate)
        self._making += 1
        future.add_done_callback(self._made_one)
        return future

    def _made_one(self, future: asyncio.Future[GeneratedImage]) -> None:
        self._making -= 1

    def _measured_rate(self) -> float:
        """Of a picture with a few steps, so that the first estimates are of the right size."""
        request = ImageRequest(prompt="how fast", num_inference_steps=MEASURED_STEPS, seed=0).resolved(self._engine.capabilities)
        start = time.monotonic()
        self._engine.generate(request)
        return request.pixel_steps / (time.monotonic() - start)


async def _end(work: Sequence[asyncio.Future[GeneratedImage]], cancel: threading.Event) -> None:
    """Returns once the threads are out, so that Serve does not give their place to somebody else before."""
    cancel.set()
    await asyncio.wait(work)
    for future in work:
        future.cancelled() or future.exception()  # looked at, or asyncio complains that nobody did


def actor_options(settings: Settings) -> dict[str, int | None]:
    """What each replica asks Ray for: a GPU, or the CPUs of its threads."""
    return {"num_gpus": 1} if settings.device == "cuda" else {"num_cpus": settings.cpu_threads}


def text_to_image(settings: Settings) -> Application:
    """The deployment, sized by decided settings, between two numbers of replicas.

    Its own queue has no bound: the ingress holds back what finds no place.
    """
    deployment = serve.deployment(
        TextToImage,
        ray_actor_options=actor_options(settings),
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "initial_replicas": settings.initial_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": GROWS_AT * places_for_large(settings.max_batch_size),
            "policy": {"policy_function": by_pictures},
        },
        max_ongoing_requests=settings.max_batch_size,  # the rest wait where another replica can take them
        graceful_shutdown_timeout_s=settings.graceful_shutdown_timeout_s,
        max_constructor_retry_count=2,
    )
    return deployment.bind(settings)


def missing(settings: Settings) -> str | None:
    """What the first replicas ask for and this cluster does not have: Serve would wait for that without a word."""
    here, replicas = ray.cluster_resources(), settings.first_replicas
    field = "initial_replicas" if settings.initial_replicas else "min_replicas"
    for option, resource in (("num_gpus", "GPU"), ("num_cpus", "CPU")):
        needed, there = replicas * (actor_options(settings).get(option) or 0), here.get(resource, 0)
        if needed > there:
            return f"{field}={replicas} with device={settings.device} needs {needed:g} {resource}s, and Ray has {there:g}"
    return None


def visible_cpus() -> int:
    """Of one node, as Ray counts them: it follows the limits of a container, which the machine's own count does not."""
    here = max(1, int(get_num_cpus()))
    if not ray.is_initialized():
        return here
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return min(here, max(nodes, default=0)) or here


def visible_gpus() -> int:
    """GPUs of the cluster if Ray is connected, else of this machine."""
    if ray.is_initialized():
        return int(ray.cluster_resources().get("GPU", 0))
    import torch

    return torch.cuda.device_count()
