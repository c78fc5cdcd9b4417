"""Two processes with half of the work each end where one with all of it does: SFT, RL, text,
evaluation."""

from contextlib import nullcontext

import pytest
import torch

from tests.training.test_distributed import run_in
from vla.config import ConfigError, load
from vla.config.processes import launcher_conflicts
from vla.interrupt import StopRequest
from vla.training.distributed import SINGLE_PROCESS, merge_shards, shard_rows
from vla.training.synchronization import OtherProcessFailed, propagate_errors, share_stop


class Two:
    """One of two processes, as far as sharing rows goes; the other one says `other` whenever it is
    asked."""

    device, num_processes, is_main = torch.device("cpu"), 2, False

    def __init__(self, rank: int, other=None):
        self.rank, self.other = rank, other

    def process_rng(self, *names):
        return nullcontext()

    def wait(self):
        return None

    def gather(self, value):
        return [value, self.other] if self.rank == 0 else [self.other, value]

    def reduce_sum(self, value):
        return value + self.other


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("learners")
    run_in(2, folder, "two_learners.py")
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("stage", ["sft", "rl", "text"])
def test_two_processes_reach_the_weights_of_one(learned: list[dict], stage: str):
    first, second, alone = (
        learned[0]["shared"][stage],
        learned[1]["shared"][stage],
        learned[0]["alone"][stage],
    )
    for name, weight in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], weight, rtol=1e-4, atol=1e-5)
    before = learned[0]["alone"]["sft"]
    assert stage != "rl" or any(
        not torch.allclose(weight, before[name]) for name, weight in alone.items()
    )


def test_numbers_are_those_of_the_whole(learned: list[dict]):
    """But what no sum can tell: extremes, and the gap to the acting policy, are each process's
    own."""
    own = {"ratio_min", "ratio_max", "logprob_gap_max", "logprob_gap_mean"}
    shared_numbers, alone = learned[0]["shared"]["metrics"], learned[0]["alone"]["metrics"]
    for name in alone.keys() - own:
        assert shared_numbers[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-6), name
    assert alone["num_trajectories"] == 24
    assert alone["step_kl"] == pytest.approx(0.05, rel=0.2)


def test_an_evaluation_is_shared_and_known_to_all(learned: list[dict]):
    first, second, alone = learned[0]["shared"], learned[1]["shared"], learned[0]["alone"]
    assert first["evaluation"] == second["evaluation"] == alone["evaluation"]
    assert alone["evaluation"]["items"]["id"] == [1, 2, 3, 4, 5, 6, 7]
    assert (
        first["shared draw"] == second["shared draw"]
    )  # what a process drew for itself left the others' draws alone


def test_shares_are_put_together_again():
    shares = [shard_rows(list("abcde"), Two(rank)) for rank in (0, 1)]
    assert shares == [["a", "c", "e"], ["b", "d"]]
    assert merge_shards(shares) == list("abcde")
    assert merge_shards([["a"]]) == ["a"]


def test_an_error_in_one_process_ends_all():
    with (
        pytest.raises(OtherProcessFailed, match="process 1 of 2: the disk is full"),
        propagate_errors(Two(0, "the disk is full")),
    ):
        pass
    with pytest.raises(FloatingPointError, match="mine"), propagate_errors(Two(0)):
        raise FloatingPointError("mine")
    with propagate_errors(Two(0)):
        pass
    with pytest.raises(KeyError), propagate_errors(SINGLE_PROCESS):
        raise KeyError


def test_a_stop_in_one_process_stops_all():
    assert share_stop(StopRequest(), Two(0, 1.0)).requested
    assert not share_stop(StopRequest(), Two(0, 0.0)).requested
    assert share_stop(StopRequest(requested=True), Two(0, 0.0)).requested
    alone = StopRequest()
    assert share_stop(alone, SINGLE_PROCESS) is alone


def test_what_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(
        ConfigError, match=r"rl.num_start_states \(32\) must be a multiple .* \(3\).*: 33 is"
    ):
        load(["rl.num_start_states=32"])
    with pytest.raises(
        ConfigError, match=r"sft.batch_size \(2\) is less than the number of processes \(3\)"
    ):
        load(["rl.num_start_states=33", "sft.batch_size=2"])
    with pytest.raises(
        ConfigError, match=r"recap.num_rounds \(1\) runs in one process, and there are 3"
    ):
        load(["rl.num_start_states=33", "recap.num_rounds=1"])
    with pytest.raises(ConfigError, match=r"text=control runs in one process, and there are 3"):
        load(["mode=text", "text=control", "rl.num_start_states=33"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert load(["rl.num_start_states=32"]).mode == "robot"


def test_a_launcher_that_starts_one_process_in_place_of_many_is_named():
    launched = {"ACCELERATE_USE_CPU": "True", "MASTER_PORT": "29500"}
    assert "use torchrun --nproc_per_node" in launcher_conflicts(launched)[0]
    assert launcher_conflicts({**launched, "WORLD_SIZE": "2"}) == []
    assert launcher_conflicts({}) == []
