"""`compile_repeated_blocks`: the same pictures from compiled blocks, which are not compiled again for every batch size."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from torch._dynamo.utils import counters

from app.engine import checkpoint
from app.engine.checkpoint import CheckpointUnavailable
from app.engine.device import Batch
from app.engine.engine import ImageEngine
from app.schemas import ImageRequest
from tests.engine.families import small
from tests.engine.together import alone, most_shared, pixels, together

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


def saved(family: str, folder: Path) -> str:
    small(family).pipe.save_pretrained(folder)
    return str(folder)


def compiled_graphs() -> int:
    return counters["stats"]["unique_graphs"]


def requests(count: int, first: int, size: int) -> list[ImageRequest]:
    fields = {"num_inference_steps": 4, "guidance_scale": 5.0, "width": size, "height": size}
    return [ImageRequest.model_validate({"prompt": f"picture {seed}", "seed": seed} | fields) for seed in range(first, first + count)]


@needs_compiler
def test_compiled_blocks_make_the_same_pictures_and_are_compiled_at_the_start_for_all_batches_and_sizes(tmp_path: Path) -> None:
    model = saved("sd1", tmp_path)
    plain, batches = checkpoint.load(model), list[Batch]()
    engine = ImageEngine(checkpoint.load(model, compile_repeated_blocks=True), cpu_threads=1, on_batch=batches.append)
    try:
        before = compiled_graphs()
        engine.warm_up()
        compiled = compiled_graphs()
        for asked in (requests(5, 2, 64), requests(3, 7, 96)):
            made = [pixels(generated.image) for generated in together(engine, asked)]
            expected = [alone(plain, one) for one in asked]
            assert max(int(np.abs(one - other).max()) for one, other in zip(made, expected, strict=True)) <= 1
        assert (compiled > before, compiled_graphs(), most_shared(batches)) == (True, compiled, 5)
    finally:
        engine.close()


def test_a_denoiser_without_repeated_blocks_is_refused_with_its_name(tmp_path: Path) -> None:
    model = saved("sd3", tmp_path)
    with pytest.raises(CheckpointUnavailable, match="StableDiffusion3Pipeline has no repeated blocks to compile"):
        checkpoint.load(model, compile_repeated_blocks=True)
