import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from app import png
from app.schemas import Facts, GeneratedImage, ImageRequest

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))


def facts(prompt: str = "a red heart", negative_prompt: str = "") -> Facts:
    asked = ImageRequest(
        prompt=prompt, negative_prompt=negative_prompt, width=64, height=64, num_inference_steps=20, guidance_scale=3, seed=7
    )
    return Facts(
        request=asked, model="tiny", revision="abc", pipeline="P", scheduler="EulerDiscreteScheduler", dtype="float32", device="cpu",
        versions={"torch": "2"},
    )  # fmt: skip


@pytest.mark.parametrize("prompt", ["a red heart", "ein schönes Herz ❤️", "قلب أحمر", "two\nlines", "NUL \0 inside", "Steps: 3, Seed: 4"])
def test_pixels_and_facts_come_back_as_they_went_in(prompt: str) -> None:
    image, read = png.decode(png.encode(PICTURE, facts(prompt)))
    assert read == facts(prompt)
    assert np.array_equal(np.asarray(image), np.asarray(PICTURE))


def test_the_same_image_and_facts_give_the_same_bytes() -> None:
    assert png.encode(PICTURE, facts()) == png.encode(PICTURE, facts())


def test_the_parameters_text_has_the_form_other_tools_read() -> None:
    text = Image.open(BytesIO(png.encode(PICTURE, facts(negative_prompt="blue")))).info["parameters"]
    assert text.splitlines() == [
        "a red heart",
        "Negative prompt: blue",
        "Steps: 20, Sampler: EulerDiscreteScheduler, CFG scale: 3.0, Seed: 7, Size: 64x64, Model: tiny, Model hash: abc",
    ]


def without_facts() -> bytes:
    file = BytesIO()
    PICTURE.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(("data", "said"), [(b"no image", "no image"), (without_facts(), "not made here")])
def test_other_bytes_are_refused_with_the_reason(data: bytes, said: str) -> None:
    with pytest.raises(png.NotOurPNG, match=said):
        png.decode(data)


def damaged(data: bytes, random: np.random.Generator) -> bytes:
    """One chunk has other bytes in it and a checksum that fits them, or another name, or is there twice."""
    chunks, place = [], 8
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        chunks.append((data[place + 4 : place + 8], bytearray(data[place + 8 : place + 8 + length])))
        place += 12 + length
    chosen = random.integers(len(chunks))
    name, body = chunks[chosen]
    for place in random.integers(len(body), size=2) if body else []:
        body[place] = random.integers(256)
    names = (
        [name] * 4
        + [name for name, _ in chunks]
        + [b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"tEXt", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"gAMA"]
    )
    chunks[chosen] = (names[random.integers(len(names))], body[: random.integers(len(body) + 1)] if random.random() < 0.3 else body)
    chunks.insert(random.integers(1, len(chunks)), chunks[random.integers(1, len(chunks))])
    return data[:8] + b"".join(struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of what it can do without
def test_whatever_the_bytes_they_are_a_picture_or_refused() -> None:
    random, data = np.random.default_rng(0), png.encode(PICTURE, facts())
    refused = 0
    for _ in range(1000):
        try:
            png.decode(damaged(data, random))
        except png.NotOurPNG:
            refused += 1
    assert 100 < refused < 1000


def test_one_picture_can_be_looked_at_from_many_threads_at_once() -> None:
    noise = Image.effect_noise((512, 512), 100).convert("RGB")
    data = png.encode(noise, facts())
    meet = threading.Barrier(8)

    def look(made: GeneratedImage) -> bool:
        meet.wait(10)
        return made.image.convert("RGB").tobytes() == noise.tobytes()

    with ThreadPoolExecutor(8) as threads:
        for _ in range(5):
            assert all(threads.map(look, [GeneratedImage(data, facts())] * 8))
