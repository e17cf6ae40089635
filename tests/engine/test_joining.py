"""Calls along the batch axis: what may be joined, and that everybody gets their own rows back."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.engine.joining import SharedMethod, run_joined, same_output


class Denoiser(nn.Module):
    """Takes what denoisers take; every row of its output depends on that row alone."""

    def forward(self, sample: Tensor, timestep: Any, extra: Any = None, scale: float = 1.0, return_dict: bool = True) -> tuple[Tensor]:  # noqa: ANN401
        total = sample * scale + timestep.view(-1, *(1,) * (sample.ndim - 1))
        if extra is not None:
            total = total + extra["text"].mean(dim=tuple(range(1, extra["text"].ndim))).view(-1, *(1,) * (sample.ndim - 1))
        return (total,)


MODULE = Denoiser()
SHARED = SharedMethod(MODULE)


def call(rows: int, timestep: object = 3, side: int = 4, **kwargs: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    generator = torch.Generator().manual_seed(rows)
    return (torch.randn(rows, 2, side, side, generator=generator), timestep), kwargs


def signature(*arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> list[object]:
    return [SHARED.describe(*one).signature for one in arguments]


def test_calls_that_differ_in_rows_timestep_and_values_are_joined_and_everybody_gets_their_own() -> None:
    calls = [call(2, torch.tensor(3)), call(1, torch.tensor(7.5)), call(2, 900)]
    described = [SHARED.describe(*one) for one in calls]
    assert len({one.signature for one in described}) == 1
    outputs = run_joined(MODULE, described)
    for ((sample, timestep), _), (output,) in zip(calls, outputs, strict=True):
        assert torch.allclose(output, sample + float(timestep))


def test_tensors_in_dictionaries_are_joined_too() -> None:
    calls = [call(rows, extra={"text": torch.randn(rows, 5, 6)}) for rows in (1, 3)]
    outputs = run_joined(MODULE, [SHARED.describe(*one) for one in calls])
    for (args, kwargs), output in zip(calls, outputs, strict=True):
        assert same_output(output, MODULE(args[0], torch.full((len(args[0]),), 3.0), **kwargs))


@pytest.mark.parametrize(
    "other",
    [
        call(2, side=6, scale=1.0, return_dict=True),
        call(2, scale=2.0, return_dict=True),
        call(2, scale=1.0, return_dict=True, extra={"text": torch.zeros(2, 5, 6)}),
        call(2, scale=1.0, return_dict=False),
    ],
    ids=["size", "a number", "a tensor more", "a flag"],
)
def test_calls_that_differ_in_anything_else_are_not_joined(other: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    one, same, two = signature(*[call(2, scale=1.0, return_dict=True)] * 2, other)
    assert one == same
    assert one != two


def test_a_tensor_without_the_batch_axis_must_have_equal_values() -> None:
    ids, same, different = torch.zeros(7, 3), torch.zeros(7, 3), torch.ones(7, 3)
    one, two, three = signature(call(2, extra=ids), call(2, extra=same), call(2, extra=different))
    assert one == two != three


def test_a_sample_that_is_a_list_cannot_be_joined() -> None:
    assert SHARED.describe(([torch.zeros(2, 4, 4)], torch.tensor(3)), {}).signature is None


def test_an_object_that_each_request_has_for_itself_cannot_be_joined() -> None:
    class Cache:
        pass

    assert signature(call(2, extra=Cache())) == [None]


def test_outputs_are_the_same_up_to_rounding_only() -> None:
    output = (torch.randn(2, 3), "text")
    assert same_output(output, (output[0] + 1e-6, "text"))
    assert not same_output(output, (output[0] + 0.1, "text"))
    assert not same_output(output, (output[0].T, "text"))
