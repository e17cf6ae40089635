"""The gallery saved as PNG files, and loaded from them."""

import errno
import json
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from app import png
from app.engine.engine import ImageEngine
from app.explorer import PromptExplorer
from app.schemas import ImageRequest
from tests.explorer.conftest import finished


@pytest.fixture
def filled(panel: PromptExplorer, tmp_path: Path) -> PromptExplorer:
    """Two pictures of the same prompt and seed that differ in guidance, saved."""
    panel.form.lock.value = True
    for guidance in (1.0, 4.0):
        panel.form.guidance_scale.value = guidance
        panel.generate()
        finished(panel)
    panel.history.folder.value = str(tmp_path / "kept")
    panel.history.save_button.click()
    return panel


def save_again(path: Path, to: Path, settings: dict[str, object], **facts: object) -> None:
    """With other settings and facts in it."""
    image = Image.open(path)
    told = json.loads(image.info[png.FACTS_CHUNK])
    chunks = PngInfo()
    chunks.add_itxt(png.FACTS_CHUNK, json.dumps(told | facts | {"request": told["request"] | settings}))
    image.save(to, pnginfo=chunks)


def test_saved_pictures_are_back_in_another_panel_with_their_settings(filled: PromptExplorer, engine: ImageEngine) -> None:
    assert filled.history.said == f"2 pictures in {filled.history.folder.value}"
    other = PromptExplorer(engine)
    other.history.folder.value = filled.history.folder.value
    other.history.load_button.click()
    assert other.images == filled.images
    other.gallery.tiles[1].button.click()
    other.gallery.use.click()
    assert other.form.request() == filled.images[1].facts.request


def test_saving_again_and_loading_again_double_nothing(filled: PromptExplorer) -> None:
    filled.history.save()
    filled.history.load()
    assert len(filled.images) == 2
    assert len(list(Path(filled.history.folder.value).iterdir())) == 2


def test_files_that_were_not_made_here_are_counted_and_left_out(filled: PromptExplorer, engine: ImageEngine) -> None:
    folder = Path(filled.history.folder.value)
    Image.new("RGB", (8, 8)).save(folder / "other.png")
    (folder / "broken.png").write_bytes(engine.generate(ImageRequest(prompt="a star", num_inference_steps=1)).png[:500])
    filled.history.load()
    assert filled.history.said == "2 pictures loaded; 2 more could not be read, or were not made here"


def test_a_file_whose_settings_were_taken_out_is_counted_and_left_out(filled: PromptExplorer) -> None:
    folder = Path(filled.history.folder.value)
    save_again(min(folder.glob("*.png")), folder / "less.png", {"guidance_scale": None})
    filled.history.load()
    assert filled.history.said == "2 pictures loaded; 1 more could not be read, or were not made here"


def test_a_picture_of_a_newer_service_is_loaded_without_the_facts_that_are_unknown_here(filled: PromptExplorer) -> None:
    folder = Path(filled.history.folder.value)
    save_again(min(folder.glob("*.png")), folder / "newer.png", {"mood": "calm"}, more=1)
    filled.history.load()
    assert filled.history.said == "3 pictures loaded"


def test_a_folder_that_is_not_there_or_cannot_be_made_is_said(panel: PromptExplorer, tmp_path: Path) -> None:
    panel.history.folder.value = str(tmp_path / "nowhere")
    panel.history.load()
    assert panel.history.said == f"There is no folder {tmp_path / 'nowhere'}."
    (tmp_path / "file").touch()
    panel.history.folder.value = str(tmp_path / "file")
    panel.history.save()
    assert panel.history.said.startswith("Could not write to")


def test_a_full_gallery_loses_nothing_to_a_folder_that_holds_more(
    filled: PromptExplorer, engine: ImageEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("gallery", "history"):
        monkeypatch.setattr(f"app.explorer.{module}.MOST_KEPT", 3)
    before = filled.images
    for seed in range(3):
        made = engine.generate(ImageRequest(prompt="a star", num_inference_steps=1, seed=seed))
        (Path(filled.history.folder.value) / f"{seed}.png").write_bytes(made.png)
    filled.history.load()
    assert filled.history.said == "3 pictures loaded; the 2 oldest found no room, which is for 3"
    assert [image.facts.request.seed for image in filled.images[:1]] == [2]
    assert filled.images[1:] == before


def test_a_disk_that_is_full_leaves_no_half_picture(filled: PromptExplorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "small"
    filled.history.folder.value = str(folder)

    def full(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    filled.history.save()
    assert filled.history.said == f"Could not write to {folder}: No space left on device."
    assert list(folder.iterdir()) == []


def test_a_picture_that_was_painted_over_another_says_so(filled: PromptExplorer) -> None:
    folder = Path(filled.history.folder.value)
    save_again(min(folder.glob("*.png")), folder / "edited.png", {}, edit={"image_sha256": "0" * 64, "strength": 0.5})
    filled.history.load()
    filled.gallery.tiles[0].button.click()
    assert "another picture, strength 0.5" in filled.gallery.facts.value
    filled.gallery.tiles[1].button.click()
    assert "another picture" not in filled.gallery.facts.value
