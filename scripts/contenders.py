"""Other ways to serve the same checkpoint, for the benchmark: today's template, `@serve.batch`, and LitServe.

`python -m scripts.contenders PORT ROWS_FILE` runs LitServe. All count the denoiser's rows in a file, and answer `GET /imagine` or, as
LitServe does, `POST /imagine`.
"""

import asyncio
import io
import mmap
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import litserve
import torch
from fastapi import FastAPI, Response
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from app.engine import checkpoint

BATCH, BATCH_WAIT_S = 8, 0.05
ONGOING = 1000  # requests that Serve lets into a replica: what is left outside waits for a router that looks again every half second
THREADS = 2


class Rows:
    """A number in a file that several processes see."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 8)

    def add(self, rows: int) -> None:
        self._memory[:8] = struct.pack("q", self.value + rows)

    @property
    def value(self) -> int:
        value: int = struct.unpack("q", self._memory[:8])[0]
        return value


class Plain:
    """The stock pipeline. One size and one number of steps for all of a call."""

    def __init__(self, rows_file: Path) -> None:
        self.pipe = checkpoint.load("tiny").pipe
        self._one = ThreadPoolExecutor(1)  # a second thread that computes would slow the first one down
        torch.set_num_threads(THREADS)
        rows = Rows(rows_file)
        self.pipe.unet.register_forward_pre_hook(lambda module, args: rows.add(args[0].shape[0]))

    def make(self, asked: list[dict[str, Any]]) -> list[bytes]:
        side, steps = asked[0]["img_size"], asked[0]["num_inference_steps"]
        with torch.inference_mode():
            images = self.pipe(
                [one["prompt"] for one in asked],
                width=side,
                height=side,
                num_inference_steps=steps,
                guidance_scale=3.0,
                generator=[torch.Generator().manual_seed(one["seed"]) for one in asked],
            ).images
        return [_png(image) for image in images]

    def make_grouped(self, asked: list[dict[str, Any]]) -> list[bytes]:
        """Those of one size and number of steps in one call."""
        made: dict[int, bytes] = {}
        groups: dict[tuple[int, int], list[int]] = {}
        for index, one in enumerate(asked):
            groups.setdefault((one["img_size"], one["num_inference_steps"]), []).append(index)
        for indices in groups.values():
            made |= dict(zip(indices, self.make([asked[index] for index in indices]), strict=True))
        return [made[index] for index in range(len(asked))]


def _png(image: Any) -> bytes:  # noqa: ANN401
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=4)
    return file.getvalue()


class OneAtATime(Plain):
    """The template's shape: one picture at a time. What else comes waits in the replica, which so never idles."""

    async def generate(self, asked: dict[str, Any]) -> bytes:
        return (await asyncio.get_running_loop().run_in_executor(self._one, self.make, [asked]))[0]


class Batched(Plain):
    """The shape of Ray Serve's own batching."""

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=BATCH_WAIT_S)  # type: ignore[untyped-decorator]
    async def generate(self, asked: list[dict[str, Any]]) -> list[bytes]:
        return await asyncio.get_running_loop().run_in_executor(self._one, self.make_grouped, asked)


class Ingress:
    def __init__(self, model: DeploymentHandle) -> None:
        self._model = model

    def __serve_build_asgi_app__(self) -> FastAPI:
        api = FastAPI()

        @api.get("/imagine")
        async def imagine(prompt: str, seed: int, num_inference_steps: int, img_size: int) -> Response:
            asked = {"prompt": prompt, "seed": seed, "num_inference_steps": num_inference_steps, "img_size": img_size}
            return Response(await self._model.generate.remote(asked), media_type="image/png")

        return api


def application(kind: type[Plain], rows_file: Path) -> Application:
    model = serve.deployment(kind, name="Model", ray_actor_options={"num_cpus": THREADS}, max_ongoing_requests=ONGOING)
    ingress = serve.deployment(serve.ingress()(Ingress), name="Ingress", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=ONGOING)
    return ingress.bind(model.bind(rows_file))


class Lit(litserve.LitAPI):  # type: ignore[misc]  # has no type hints
    def __init__(self, rows_file: Path) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=BATCH_WAIT_S, api_path="/imagine")
        self._rows_file = rows_file

    def setup(self, device: str) -> None:
        self._plain = Plain(self._rows_file)

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        return request

    def predict(self, asked: list[dict[str, Any]]) -> list[bytes]:
        return self._plain.make_grouped(asked)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="image/png")


if __name__ == "__main__":
    litserve.LitServer(Lit(Path(sys.argv[2])), accelerator="cpu", workers_per_device=1, timeout=False).run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="error"
    )
