"""One process or many behind one face: where tensors live, in which precision, and how sums cross
processes.

A loss is a sum of terms whose weights are fixed over the global batch, so gradients are summed over
processes, never averaged. Many processes are started by `accelerate launch` or `torchrun`;
accelerate is loaded only then.

Torch's global generators are the same in every process (equal seeds, equal draws) but inside
`process_rng`.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vla.collectives import single_process
from vla.runtime import world_size
from vla.training.seed import derive_seed

Precision = Literal["auto", "fp32", "bf16"]
DeviceName = Literal["auto", "cpu", "cuda"]


@runtime_checkable
class Processes(Protocol):
    """What a training loop asks of the processes it runs in."""

    device: torch.device
    rank: int
    num_processes: int

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the person."""
        ...

    def reduce_sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes; the argument keeps its value."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """The values that the processes gave, in the order of their ranks; anything that
        pickles."""
        ...

    def process_rng(self, *names: str | int) -> AbstractContextManager[Any]:
        """Within the block torch's generators are this process's own, seeded by the run's last
        seed, its rank and these names (a purpose and a step, say); after it all go on where they
        were, alike.
        """
        ...

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of forward passes."""
        ...

    def wait(self) -> None:
        """Wait until every process is here."""
        ...


class SingleProcess:
    """The one process there is. `reduce_sum` is the core's own identity: nothing is added to a run
    on one machine."""

    rank = 0
    num_processes = 1
    is_main = True
    reduce_sum = staticmethod(single_process)

    def __init__(self, device: torch.device, bf16: bool):
        self.device, self.bf16 = device, bf16

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def process_rng(self, *names: str | int) -> AbstractContextManager[Any]:
        return nullcontext()

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def wait(self) -> None:
        return None


SINGLE_PROCESS = SingleProcess(torch.device("cpu"), bf16=False)
"""What functions run in that are told of no processes."""

COLLECTIVE_TIMEOUT = timedelta(days=1)
"""How long a process waits for the others: one of them may make demonstrations meanwhile. The
launcher ends all when one of them dies.
"""


class ManyProcesses:
    """This process among those that `accelerate launch` (or torchrun) started."""

    def __init__(self, device: DeviceName, precision: Precision):
        from accelerate import Accelerator, InitProcessGroupKwargs

        chosen = choose_device(device)
        bf16 = uses_bf16(precision, chosen)
        self.accelerator = Accelerator(
            cpu=chosen.type == "cpu",
            mixed_precision="bf16" if bf16 else "no",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT)],
        )
        self.device = self.accelerator.device
        self.rank = self.accelerator.process_index
        self.num_processes = self.accelerator.num_processes
        # before the interpreter takes its modules down: a communication thread that outlives them
        # aborts the process
        atexit.register(end_process_group)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def reduce_sum(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value.detach().to(self.device).clone(), "sum").to(
            value.device
        )

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.num_processes
        torch.distributed.all_gather_object(values, value)
        return values

    @contextmanager
    def process_rng(self, *names: str | int) -> Iterator[None]:
        seed = derive_seed(torch.initial_seed(), *names, "process", self.rank)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    def autocast(self) -> AbstractContextManager[Any]:
        return self.accelerator.autocast()

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()


def end_process_group() -> None:
    """Leave the group of processes, if this one is in any."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def init_processes(device: DeviceName, precision: Precision) -> Processes:
    """This process alone, or as one of those that a launcher started."""
    if world_size() > 1:
        return ManyProcesses(device, precision)
    chosen = choose_device(device)
    return SingleProcess(chosen, uses_bf16(precision, chosen))


def choose_device(device: DeviceName) -> torch.device:
    """The device of this process; ValueError when a GPU is asked for and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "train.device (cuda): no GPU is visible here; use train.device=cpu, or auto"
        )
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def uses_bf16(precision: Precision, device: torch.device) -> bool:
    """`auto` is bf16 on a GPU that has it and fp32 on a CPU, where elementwise bf16 is slower."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bf16"


@torch.no_grad()
def broadcast_weights(module: nn.Module, processes: Processes) -> None:
    """Give every process the weights and buffers of the main one."""
    if processes.num_processes == 1:
        return
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.copy_(
            processes.reduce_sum(tensor if processes.is_main else torch.zeros_like(tensor))
        )


def shard_rows(rows: Any, processes: Processes) -> Any:
    """The rows of a global list, array or tensor that this process handles: every
    `num_processes`-th."""
    return rows[processes.rank :: processes.num_processes]


def merge_shards(shares: Sequence[Any]) -> list[Any]:
    """The global list that `shard_rows` cut: what was made of its shares, in the order of the rows
    again."""
    total = sum(map(len, shares))
    return [shares[i % len(shares)][i // len(shares)] for i in range(total)]
