"""`TextToImage`: the Ray Serve deployment that holds the model. A thin shim over the engine."""

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

import ray
from ray import serve
from ray.serve import Application

from app.schemas import Capabilities, GeneratedImage, ImageRequest, Progress
from app.settings import Settings


class TextToImage:
    """A replica is up once its model is loaded and has made a picture."""

    def __init__(self, settings: Settings) -> None:
        import torch  # only replicas need it: whoever builds the application need not load it

        from app.engine import checkpoint
        from app.engine.engine import ImageEngine

        if settings.device == "cuda" and not ray.get_gpu_ids():
            raise RuntimeError("device=cuda, but Ray gave this replica no GPU")
        if settings.device == "cpu":
            torch.set_num_threads(settings.cpu_threads or 1)
        loaded = checkpoint.load(settings.model, device=settings.device, dtype=settings.dtype, revision=settings.revision)
        self._engine = ImageEngine(loaded, max_batch_size=settings.max_batch_size, max_pixels=settings.max_pixels, version=settings.version)
        self._engine.warm_up()
        self._threads = ThreadPoolExecutor(settings.max_batch_size, thread_name_prefix="generate")

    def check_health(self) -> None:
        """Serve replaces a replica for which this raises."""
        self._engine.check_health()

    async def capabilities(self) -> Capabilities:
        return self._engine.capabilities

    async def generate(self, request: ImageRequest) -> GeneratedImage:
        """Make one image in a thread. A cancelled call keeps its place until that thread is out, within one step."""
        cancel = threading.Event()
        work = self._start(request, None, cancel)
        try:
            return await asyncio.shield(work)
        finally:
            await _end(work, cancel)

    async def stream(self, request: ImageRequest, previews: bool) -> AsyncIterator[Progress | GeneratedImage]:
        """Every step as it is done, and last the image. Closing the stream stops the work like cancelling does."""
        told: asyncio.Queue[Progress | None] = asyncio.Queue()
        loop, cancel = asyncio.get_running_loop(), threading.Event()

        def tell(progress: Progress) -> None:
            loop.call_soon_threadsafe(told.put_nowait, progress)

        work = self._start(request, tell, cancel, previews=previews)
        work.add_done_callback(lambda work: told.put_nowait(None))
        try:
            while (progress := await told.get()) is not None:
                yield progress
            yield await work
        finally:
            await _end(work, cancel)

    def _start(
        self, request: ImageRequest, on_progress: Callable[[Progress], None] | None, cancel: threading.Event, *, previews: bool = False
    ) -> asyncio.Future[GeneratedImage]:
        generate = functools.partial(self._engine.generate, request, on_progress, cancel, previews=previews)
        return asyncio.get_running_loop().run_in_executor(self._threads, generate)


async def _end(work: asyncio.Future[GeneratedImage], cancel: threading.Event) -> None:
    """Returns once the thread is out, so that Serve does not give its place to somebody else before."""
    cancel.set()
    await asyncio.wait([work])


def text_to_image(settings: Settings) -> Application:
    """The deployment, sized by decided settings: a GPU or the CPUs of its threads each, between two numbers of replicas."""
    deployment = serve.deployment(
        TextToImage,
        ray_actor_options={"num_gpus": 1} if settings.device == "cuda" else {"num_cpus": settings.cpu_threads},
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.max_batch_size,  # a full batch each before another replica is worth its start
        },
        max_ongoing_requests=settings.max_batch_size,  # the rest wait where another replica can take them
        max_queued_requests=settings.max_queued_requests,
        graceful_shutdown_timeout_s=settings.graceful_shutdown_timeout_s,
        max_constructor_retry_count=2,
    )
    return deployment.bind(settings)


def visible_gpus() -> int:
    """GPUs of the cluster if Ray is connected, else of this machine."""
    if ray.is_initialized():
        return int(ray.cluster_resources().get("GPU", 0))
    import torch

    return torch.cuda.device_count()
