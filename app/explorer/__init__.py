"""A panel for Jupyter notebooks in which prompts are explored, on any `ImageSource`.

The notebook takes its names from here: `PromptExplorer`, and the pictures and charts that it shows besides.
"""

from app.explorer.load import chart, measure
from app.explorer.panel import PromptExplorer
from app.explorer.sheet import side_by_side

__all__ = ["PromptExplorer", "chart", "measure", "side_by_side"]
