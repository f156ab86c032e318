"""The sampling loop as a captured CUDA graph: one row of the table with its number in a tensor, replayed for each row.

All that a row reads or writes lies in buffers that stay: a replay launches the network, the noise and the step without the
host's work, which is what bounds small networks. Capturing costs two evaluations of the network, in which kernels are loaded
and tuned, and one pass of the host. A network that cannot be captured (it synchronises, or has branches on values) runs row
by row; one whose forward does more on the host than launch kernels (hooks, counters) needs graph=False, for a replay leaves
that out. The rows of a run share one shape: where some make noise or look back, all do, with coefficients of 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from fastdiff.diffusion.plan import Plan

LEAST_ROWS = 8  # where capturing pays
WARM_UP = 2


class GraphWalk:
    """`plan.Walk` on fixed buffers. x and x0 are overwritten by the next row."""

    def __init__(self, plan: Plan, x: torch.Tensor) -> None:
        self.plan, self.start = plan, x
        self.x = x.clone()
        self.x0, self.before = torch.zeros_like(x), torch.zeros_like(x)
        self.number = torch.zeros(1, dtype=torch.int64, device=x.device)
        self.noisy, self.memory = any(plan.noisy), max(plan.memory)

    @classmethod
    def of(cls, plan: Plan, x: torch.Tensor, graph: bool | None) -> GraphWalk | None:
        """A captured walk, or None where the loop is to go row by row. graph: see `run_sampler`.

        Raises ValueError for graph=True without CUDA, RuntimeError where it cannot be captured; with None it warns.
        """
        if graph is None:
            graph_wanted = x.is_cuda and len(plan.table) >= LEAST_ROWS
        elif graph and not x.is_cuda:
            raise ValueError(f"graph=True needs images on CUDA, got {x.device}")
        else:
            graph_wanted = graph
        if not graph_wanted or not x.numel():
            return None
        walk = cls(plan, x)
        try:
            walk.replay = captured(walk.row, walk.rewind)
        except RuntimeError as error:
            if graph:
                raise RuntimeError(f"graph=True: this network cannot be captured in a CUDA graph: {error}") from error
            warnings.warn(f"sampling without a CUDA graph, which could not be captured: {error}", stacklevel=3)
            return None
        return walk

    def row(self) -> None:
        """The row of `number`, and on to the next."""
        t, entry = (table.index_select(0, self.number)[0] for table in (self.plan.timesteps, self.plan.table))
        past = (self.x0, self.before)
        x, x0 = self.plan.step(self.x, past, t, entry, self.number, self.noisy, self.memory)
        self.before.copy_(self.x0)
        self.x0.copy_(x0)
        self.x.copy_(x)
        self.number.add_(1)

    replay: Callable[[], None] = row

    def rewind(self) -> None:
        self.x.copy_(self.start)
        self.x0.zero_()
        self.before.zero_()
        self.number.zero_()

    def __call__(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.replay()
        return self.x, self.x0

    def replace(self, x: torch.Tensor) -> torch.Tensor:
        return self.x.copy_(x)


def captured(work: Callable[[], None], rewind: Callable[[], None]) -> Callable[[], None]:
    """The replay of `work`, which has run before it was captured; rewind undoes what it did to its buffers."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            rewind()
            work()
        rewind()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay
