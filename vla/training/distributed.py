"""Interface to one or many processes: device, all-reduce, gathered values and shards.

A loss is a sum of terms whose weights are fixed over the global batch. So gradients are summed over
processes, never averaged. `accelerate launch` or `torchrun` starts several processes; accelerate is
loaded only then.

Torch's global generators draw the same numbers in every process, except inside `process_rng`.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vla.collectives import single_process
from vla.devices import CPU, choose_device
from vla.runtime import world_size
from vla.training.seed import derive_seed


@runtime_checkable
class Processes(Protocol):
    """The processes of a training loop, from the point of view of one of them."""

    device: torch.device
    rank: int
    num_processes: int

    @property
    def is_main(self) -> bool:
        """True in the process that writes files and prints."""
        ...

    def reduce_sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes. The argument keeps its value."""
        ...

    def gather[T](self, value: T) -> list[T]:
        """The values of all processes, in order of rank; any value that pickles."""
        ...

    def process_rng(self, *names: str | int) -> AbstractContextManager[None]:
        """Give torch's generators a seed of this process within the block.

        The seed derives from torch's initial seed, `names` (e.g. a purpose and a step) and the
        rank. After the block the generators continue from their earlier, common state.
        """
        ...

    def wait(self) -> None:
        """Wait until every process has reached this call."""
        ...


class SingleProcess:
    """A run in a single process, without communication.

    `reduce_sum` is the identity of `vla.collectives`.
    """

    rank = 0
    num_processes = 1
    is_main = True
    reduce_sum = staticmethod(single_process)

    def __init__(self, device: torch.device):
        self.device = device

    def gather[T](self, value: T) -> list[T]:
        return [value]

    def process_rng(self, *names: str | int) -> AbstractContextManager[None]:
        return nullcontext()

    def wait(self) -> None:
        return None


SINGLE_PROCESS = SingleProcess(CPU)
"""Default of functions with an argument `processes`."""

COLLECTIVE_TIMEOUT = timedelta(days=1)
"""Longest wait for the other processes: the main one may collect demonstrations meanwhile. The
launcher ends all processes when one of them dies.
"""


class ManyProcesses:
    """One of several processes started by `accelerate launch` or torchrun."""

    def __init__(self, device: str):
        from accelerate import Accelerator, InitProcessGroupKwargs

        self.accelerator = Accelerator(
            cpu=choose_device(device).type == "cpu",
            mixed_precision="no",  # policies choose it (`vla.devices.autocast`)
            kwargs_handlers=[InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT)],
        )
        self.device = self.accelerator.device
        self.rank = self.accelerator.process_index
        self.num_processes = self.accelerator.num_processes
        # Leave the group before the interpreter unloads its modules: a communication thread that
        # outlives them aborts the process.
        atexit.register(end_process_group)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def reduce_sum(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value.detach().to(self.device).clone(), "sum").to(
            value.device
        )

    def gather[T](self, value: T) -> list[T]:
        values = [value] * self.num_processes  # overwritten in place, in order of rank
        torch.distributed.all_gather_object(values, value)
        return values

    @contextmanager
    def process_rng(self, *names: str | int) -> Iterator[None]:
        seed = derive_seed(torch.initial_seed(), *names, "process", self.rank)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()


def end_process_group() -> None:
    """Leave the process group, if this process is in one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def init_processes(device: str) -> Processes:
    """This process alone, or connected to the others that a launcher started.

    Raises:
        ValueError: the device (`train.device`) is not here.
    """
    return ManyProcesses(device) if world_size() > 1 else SingleProcess(choose_device(device))


@torch.no_grad()
def broadcast_weights(module: nn.Module, processes: Processes) -> None:
    """Copy the main process's weights and buffers to every process."""
    if processes.num_processes == 1:
        return
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.copy_(
            processes.reduce_sum(tensor if processes.is_main else torch.zeros_like(tensor))
        )


@runtime_checkable
class Sliceable[Rows](Protocol):
    """A list, range, array or tensor."""

    def __getitem__(self, rows: slice, /) -> Rows: ...


def shard_rows[Rows](rows: Sliceable[Rows], processes: Processes) -> Rows:
    """This process's rows of a global list, array or tensor: every `num_processes`-th."""
    return rows[processes.rank :: processes.num_processes]


def merge_shards[Row](shards: Sequence[Sequence[Row]]) -> list[Row]:
    """Merge the processes' shards in order of rank: the inverse of `shard_rows`."""
    total = sum(map(len, shards))
    return [shards[i % len(shards)][i // len(shards)] for i in range(total)]
