"""Training against the clock: how much time a stage has, and what the learning rate is at each moment of it."""

import time
from collections.abc import Iterator

from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

WARM_UP_STEPS = 100
LONGEST_STEP_S = 10.0  # anything longer was a pause
LARGEST_GRADIENT = 1.0  # norm


class Budget:
    """A stretch of time, shown as a progress bar. While the process is paused (Ctrl-Z, a laptop asleep) it does not run out."""

    def __init__(self, minutes: float, title: str) -> None:
        self._total = minutes * 60
        self._used = 0.0
        self._bar = tqdm(total=round(self._total), desc=title, unit="s", mininterval=5)

    @property
    def spent(self) -> float:
        """0 at the start, 1 at the end."""
        return min(self._used / self._total, 1.0)

    def steps(self) -> Iterator[int]:
        step = 0
        while self.spent < 1:
            start = time.monotonic()
            yield step
            step += 1
            self._used += min(time.monotonic() - start, LONGEST_STEP_S)
            self._bar.update(round(self._used) - self._bar.n)
        self._bar.close()

    def show(self, **figures: float) -> None:
        self._bar.set_postfix({name: f"{figure:.4g}" for name, figure in figures.items()})

    def rate(self, step: int, highest: float) -> float:
        """The learning rate rises over the first steps, then falls in a straight line to 0 at the end."""
        return highest * min((step + 1) / WARM_UP_STEPS, 1.0 - self.spent)


def descend(optimizer: Optimizer, loss: Tensor, learning_rate: float) -> None:
    """One step downhill, its gradient's norm limited."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([parameter for group in optimizer.param_groups for parameter in group["params"]], LARGEST_GRADIENT)
    optimizer.step()
