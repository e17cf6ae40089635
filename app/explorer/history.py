"""The gallery kept as PNG files: they hold how they were made, so nothing else has to be written down."""

import hashlib
import os
import time
from html import escape
from pathlib import Path

import ipywidgets as widgets

from app import png
from app.explorer.fields import button, note, text
from app.explorer.gallery import MOST_KEPT, Gallery, file_name
from app.explorer.progress import pictures
from app.schemas import GeneratedImage

FOLDER = "pictures"
HINT = "Where the PNG files are, below the notebook's own folder"


class History(widgets.VBox):
    """Saves the pictures of `gallery` into a folder, and brings pictures from a folder back into it. `said` is what came of it."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery
        self.folder = text("folder", "Folder", FOLDER, HINT, lambda: None)
        self.save_button = button("Save all", self.save, hint="Write every picture of the gallery into the folder")
        self.load_button = button("Load", self.load, hint="Show the pictures of the folder in the gallery")
        self.status = widgets.HTML()
        self.status.add_class("imagine-status")
        actions = widgets.HBox([self.save_button, self.load_button, self.status])
        actions.add_class("imagine-actions")
        super().__init__([self.folder, note(HINT), actions])
        self.add_class("imagine-part")

    _said = ""

    @property
    def said(self) -> str:
        return self._said

    def save(self) -> None:
        try:
            folder = Path(self.folder.value).expanduser()
            folder.mkdir(parents=True, exist_ok=True)
            began, images = time.time_ns(), self._gallery.images  # others may be made meanwhile
            for number, image in enumerate(reversed(images)):
                path = folder / _name(image)
                if not path.exists():
                    _write(path, image.png, began + number)
        except (OSError, RuntimeError) as error:
            self._say(f"Could not write to {self.folder.value}: {_reason(error)}.")
        else:
            self._say(f"{pictures(len(images))} in {folder}")

    def load(self) -> None:
        try:
            folder = Path(self.folder.value).expanduser()
            if not folder.is_dir():
                self._say(f"There is no folder {folder}.")
                return
            files = sorted((path for path in folder.glob("*.png") if path.is_file()), key=lambda path: path.stat().st_mtime_ns)
        except (OSError, RuntimeError) as error:
            self._say(f"Could not read {self.folder.value}: {_reason(error)}.")
            return
        found = [image for path in files if (image := _read(path)) is not None]
        without_room = self._gallery.add(found)
        said = [f"{pictures(len(found) - without_room)} loaded"]
        said += [f"the {without_room} oldest found no room, which is for {MOST_KEPT}"] if without_room else []
        others = len(files) - len(found)
        said += [f"{others} more could not be read, or were not made here"] if others else []
        self._say("; ".join(said))

    def _say(self, said: str) -> None:
        self._said = said
        self.status.value = f'<span role="status">{escape(said)}</span>'


def _reason(error: Exception) -> str:
    """Also of a home folder that nobody has, which is no error of the disk."""
    return (isinstance(error, OSError) and error.strerror) or str(error).rstrip(".")


def _read(path: Path) -> GeneratedImage | None:
    """Nothing if it cannot be read, or was not made here."""
    try:
        data = path.read_bytes()
        facts = png.decode(data, unknown="ignore")[1]
    except (png.NotOurPNG, OSError):
        return None
    return None if png.settings_left_out(facts) else GeneratedImage(data, facts)


def _write(path: Path, data: bytes, modified_ns: int) -> None:
    """All of it or nothing. The time keeps their order, also where several are written in one tick of the disk's clock."""
    part = path.with_suffix(".part")
    try:
        part.write_bytes(data)
        os.utime(part, ns=(modified_ns, modified_ns))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _name(image: GeneratedImage) -> str:
    """The same picture has the same name, and others of the same prompt and seed have another."""
    return f"{file_name(image.facts.request).removesuffix('.png')}-{hashlib.sha256(image.png).hexdigest()[:8]}.png"
