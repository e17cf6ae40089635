"""Identical requests in flight, through Serve, which would stop what a request has begun once its caller leaves."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import requests
from PIL import Image

from app.client import ImagineClient
from app.schemas import ImageRequest
from tests.cluster.test_serving import ROWS_OF_A_STEP
from tests.cluster.test_worst_day import LARGE, LONG, connected, get, grows
from tests.engine.together import pixels
from tests.eventually import eventually


def test_identical_requests_share_one_generation_and_the_first_one_may_leave(
    client: ImagineClient, denoiser_rows: Callable[[], int]
) -> None:
    asked = LONG | LARGE | {"num_inference_steps": 100}
    expected = pixels(client.generate(ImageRequest.model_validate(asked)).image)
    before, under_way = denoiser_rows(), grows(denoiser_rows, ROWS_OF_A_STEP)
    with ThreadPoolExecutor(3) as threads:
        with connected(client, get("/imagine", **asked)):
            eventually(under_way)
            answers = threads.map(
                lambda form: requests.get(f"{client.base_url}/imagine", asked | {"format": form}, timeout=120), ("png", "png", "webp")
            )
            eventually(grows(denoiser_rows, 40 * ROWS_OF_A_STEP))
        pictures = [Image.open(BytesIO(answer.content)) for answer in answers]
    assert denoiser_rows() - before == asked["num_inference_steps"] * ROWS_OF_A_STEP
    assert [picture.format for picture in pictures] == ["PNG", "PNG", "WEBP"]
    assert max(np.abs(pixels(picture) - expected).max() for picture in pictures[:2]) <= 1
