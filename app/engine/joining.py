"""Several calls of one function become one call along the batch axis, and its output becomes theirs again. Tensors, no threads."""

import hashlib
import inspect
from collections.abc import Callable, Hashable, MutableMapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # of the largest value; half precision rounds differently in every batch size
HALF_TOLERANCE = 5e-2
VALUES = (type(None), int, float, str, bytes, Enum, torch.dtype, torch.device)  # equal in two calls, they mean the same
NOT_IN_COMMON = object()


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments of one call. Calls with equal signatures can be joined; without a signature a call runs alone.

    Tensors of `rows` along their first dimension are joined, also those in dictionaries, lists and tuples.
    """

    named: dict[str, Any]
    rows: int
    signature: Hashable | None


class SharedMethod:
    """The method `name` of `module`, which all requests call. `alone` computes a single call, `together` those that are joined."""

    def __init__(
        self, module: nn.Module, name: str = "forward", *, alone: Callable[..., Any] | None = None, is_denoiser: bool = False
    ) -> None:
        self.module, self.is_denoiser = module, is_denoiser
        self.together: Callable[..., Any] = getattr(module, name)
        self.alone = alone or self.together
        self._parameters = inspect.signature(getattr(type(module), name).__get__(module))
        self._fingerprints: MutableMapping[Tensor, Hashable] = WeakTensorKeyDictionary()

    def describe(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """The first argument is the sample (rows, ...). A timestep that is one number becomes one per row, in single precision: schedulers
        count in different ones."""
        named = dict(self._parameters.bind(*args, **kwargs).arguments)
        named |= named.pop("kwargs", {})
        sample = next(iter(named.values()))
        rows = sample.shape[0] if isinstance(sample, Tensor) else 1
        timestep = named.get("timestep")
        if isinstance(sample, Tensor) and timestep is not None and not getattr(timestep, "ndim", 0):
            named["timestep"] = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).expand(rows)
        leaves, tree = tree_flatten(named)
        kinds = [self._kind(leaf, rows) for leaf in leaves] if isinstance(sample, Tensor) else [NOT_IN_COMMON]
        return Arguments(named, rows, None if NOT_IN_COMMON in kinds else (self, str(tree), *kinds))

    def _kind(self, leaf: object, rows: int) -> Hashable:
        """What two calls must have in common at this leaf."""
        if isinstance(leaf, torch.Generator):
            return torch.Generator  # autoencoders take one and leave it alone; one that draws from it changes when it is joined
        if not isinstance(leaf, Tensor):
            return leaf if isinstance(leaf, VALUES) else NOT_IN_COMMON  # a cache, say, which each request has for itself
        if _has_rows(leaf, rows):
            return leaf.dtype, leaf.device, tuple(leaf.shape[1:])
        if leaf not in self._fingerprints:  # once for each tensor object: reading a GPU's values makes it wait
            self._fingerprints[leaf] = (leaf.dtype, tuple(leaf.shape), hashlib.sha256(leaf.float().cpu().numpy().tobytes()).digest())
        return self._fingerprints[leaf]


def run_joined(forward: Callable[..., Any], calls: Sequence[Arguments]) -> list[Any]:
    """One call in place of many, whose signatures must be equal; everybody gets their own part of its output."""
    rows = [call.rows for call in calls]

    def join(*leaves: Any) -> Any:  # noqa: ANN401
        return torch.cat(leaves) if _has_rows(leaves[0], rows[0]) else leaves[0]  # (sum of rows, ...)

    outputs, tree = tree_flatten(forward(**tree_map(join, *(call.named for call in calls))))
    parts = [leaf.split(rows) if _has_rows(leaf, sum(rows)) else [leaf] * len(rows) for leaf in outputs]
    return [tree_unflatten(part, tree) for part in zip(*parts, strict=True)]


def _has_rows(leaf: object, rows: int) -> TypeGuard[Tensor]:
    return isinstance(leaf, Tensor) and leaf.shape[:1] == (rows,)


def same_output(one: object, other: object) -> bool:
    """Whether two outputs differ by no more than rounding."""
    pairs = zip(tree_flatten(one)[0], tree_flatten(other)[0], strict=True)
    return all(a.shape == b.shape and _close(a, b) if isinstance(b, Tensor) else a == b for a, b in pairs)


def _close(one: Tensor, other: Tensor) -> bool:
    largest = other.nan_to_num(posinf=0.0, neginf=0.0).abs().max().clamp(min=1e-6).item()
    return torch.allclose(one, other, rtol=0, atol=TOLERANCE.get(other.dtype, HALF_TOLERANCE) * largest, equal_nan=True)
