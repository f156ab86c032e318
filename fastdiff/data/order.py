"""Permutations and splits that stay the same on every machine, for every version of torch and NumPy.

`torch.randperm` and `numpy.random.Generator.permutation` may change between releases; the raw words of a NumPy bit
generator may not (NEP 19). So a permutation is the order that sorts one raw Philox word per element.
"""

from collections.abc import Sequence

import numpy as np
import torch


def permutation(count: int, seed: int, stream: int = 0) -> torch.Tensor:
    """A random order of 0..count-1, a function of (seed, stream) alone.

    Args:
        count: number of elements.
        seed, stream: the two words of the Philox key, each in 0 .. 2**64 - 1; an epoch is a stream.

    Returns:
        int64 [count].
    """
    words = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)).random_raw(count)
    return torch.from_numpy(np.argsort(words, kind="stable"))


def split_indices(
    fractions: Sequence[float], count: int, labels: torch.Tensor | None = None, seed: int = 0
) -> list[torch.Tensor]:
    """Cuts 0..count-1 into disjoint random parts, every class in the same proportion where labels are given.

    Element r (from 0) of the n in its class, in random order, gets the key (r + 1/2) / n. Sorting all elements by key
    spreads each class evenly, so cuts at the exact total sizes take its fraction of each class, give or take one.

    Args:
        fractions: the parts' shares, positive, summing to 1. Part i ends at round(count * sum(fractions[:i + 1])).
        count: number of elements.
        labels: int64 [count] or None.
        seed: in 0 .. 2**64 - 1.

    Returns:
        One sorted int64 tensor of indices for each fraction; a part may be empty where count is small.

    Raises:
        ValueError: the fractions are not positive or do not sum to 1.
    """
    ends = np.cumsum(fractions)
    if not len(ends) or min(fractions) <= 0 or abs(ends[-1] - 1) > 1e-9:
        raise ValueError(f"fractions must be positive and sum to 1, got {tuple(fractions)}")
    order = permutation(count, seed)
    classes = torch.zeros(count, dtype=torch.int64) if labels is None else labels[order]
    key = torch.empty(count, dtype=torch.float64)
    for label in classes.unique():
        members = (classes == label).nonzero().squeeze(1)
        key[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    spread = order[key.argsort(stable=True)]
    cuts = [round(count * float(end)) for end in ends[:-1]]
    return [part.sort().values for part in spread.tensor_split(cuts)]
