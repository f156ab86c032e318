"""Many parameters as one long tensor, so that an optimizer, a norm and an average are one call each instead of hundreds.

On a small network these calls, not their arithmetic, are a tenth of a training step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

ALIGNMENT = 64  # elements: no parameter shares a cache line, or a vector load, with another


class Flat(nn.Parameter):
    """The values of several parameters in one tensor, which shares memory with them, and so does its gradient.

    A change of one is a change of the other. Gradients are there from the start, zero: a backward pass adds to them, and
    `flat.grad.zero_()` clears them. Setting a parameter's `grad` or `data` to another tensor would break the tie.
    """

    parameters: list[nn.Parameter]
    starts: list[int]

    def split(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Views of a tensor like this one, an optimizer's state say, in the parameters' shapes and memory formats."""
        return [values.as_strided(p.shape, p.stride(), s) for p, s in zip(self.parameters, self.starts, strict=True)]


def flatten(parameters: Sequence[nn.Parameter], gradients: bool = True) -> Flat:
    """Move parameters of one dtype and device into one tensor. Each stays itself, with its memory format, as a view."""
    starts, end = [], 0
    for parameter in parameters:
        parameter.data = torch.empty_like(parameter).copy_(parameter.data)  # one that was a view now fills its memory
        starts.append(end)
        end += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
    flat = Flat(torch.zeros(end, dtype=parameters[0].dtype, device=parameters[0].device))
    flat.parameters, flat.starts = list(parameters), starts
    for parameter, values in zip(parameters, flat.split(flat.detach()), strict=True):
        parameter.data = values.copy_(parameter.data)
    if gradients:
        flat.grad = torch.zeros_like(flat)
        for parameter, gradient in zip(parameters, flat.split(flat.grad), strict=True):
            parameter.grad = gradient
    return flat


def parts(parameter: torch.Tensor, values: torch.Tensor) -> list[torch.Tensor]:
    """An optimizer's values for a parameter, as those of each that it stands for: several where it is a `Flat`."""
    if not isinstance(parameter, Flat):
        return [values]
    return parameter.split(values) if values.dim() else [values.clone() for _ in parameter.parameters]
