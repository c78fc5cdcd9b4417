"""Every kind of policy on the pretended device: acts, scores, learns. Prints one JSON object."""

import json
import sys
import traceback
import types
from itertools import cycle
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
tests = types.ModuleType("tests")  # another package of that name may be installed
tests.__path__ = [str(ROOT / "tests")]
sys.modules["tests"] = tests

from tests import pretended_device  # noqa: E402

DEVICE = pretended_device.enable()

import torch  # noqa: E402

from tests.models.tiny import tiny_observation  # noqa: E402
from tests.policies.kinds import KINDS, task_of  # noqa: E402
from vla.config import load  # noqa: E402
from vla.generation.sampling import Sampling  # noqa: E402
from vla.policies.text import TextPolicy  # noqa: E402
from vla.rl.algorithm_factory import make_algorithm  # noqa: E402
from vla.rl.algorithms import ALGORITHMS  # noqa: E402
from vla.rl.rollout import collect_responses  # noqa: E402
from vla.rl.update import UpdateSettings, update  # noqa: E402
from vla.text.tiny_language_model import tiny_language_model  # noqa: E402
from vla.training.optim import make_optimizer  # noqa: E402
from vla.types import Observation  # noqa: E402


def robot_policy(kind, frozen):
    torch.manual_seed(0)
    policy = task_of(kind)[0].policy
    with torch.no_grad():
        for parameter in policy.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    policy.to(DEVICE)
    if frozen:
        policy.freeze_prefix()
    return policy, tiny_observation([5, 2, 4, 1], padding=2)


def text_policy():
    model = tiny_language_model(["what is"], weight_scale=0.3)[0].to(DEVICE)
    mask = torch.arange(5) < torch.tensor([5, 3, 4])[:, None]
    tokens = torch.randint(3, 320, (3, 5)).masked_fill(~mask, 0)
    policy = TextPolicy(model, Sampling(top_k=30), 4, range(2, 40), 0, value_head=True)
    return policy, Observation({}, None, tokens.to(DEVICE), mask.to(DEVICE))


def exercise(policy, observation, is_robot, algorithm):
    """What a run does with a policy. Returns the gap of log-probabilities between drawing and
    scoring, and the copies and synchronisations of a decision."""
    pretended_device.counts.clear()
    decision = policy.act(observation)
    waits = pretended_device.total(pretended_device.WAIT)
    uploads = pretended_device.total(pretended_device.UPLOAD)
    policy.act(observation, greedy=True)
    gap = (policy.score(observation, decision.trace).logprobs - decision.logprobs).abs().max()
    policy.value(observation)
    if is_robot and policy.can_redraw:
        policy.redraw(observation, decision.trace, 2)
    if is_robot:
        actions, mask = torch.rand(4, 2, 1) * 3, torch.ones(4, 2, dtype=torch.bool)
        terms, counted = policy.imitation_terms(observation, actions, mask)
        (terms * counted).sum().backward()
    if algorithm is None:
        return {"gap": float(gap), "waits": waits, "uploads": uploads}
    rollout = collect_responses(policy, observation, 2, lambda decision, row: torch.rand(len(row)))
    learn(policy, rollout, algorithm)
    return {"gap": float(gap), "waits": waits, "uploads": uploads}


def learn(policy, rollout, name):
    """An update of the default settings of an algorithm, with everything that may be added."""
    algorithm = load([f"algorithm={name}"]).algorithm
    settings = UpdateSettings(1, 1, 8, 1.0, target_kl=1.0, importance_cap=2.0)
    metrics = update(
        policy,
        make_algorithm(**algorithm.model_dump()),
        rollout,
        make_optimizer(policy, "muon", 1e-3, 0.01, 1e-3),
        settings,
        generator=torch.Generator().manual_seed(0),
        ref_logprobs=rollout.logprobs,
    )
    assert metrics["num_optimizer_steps"] > 0


def main():
    cases = {kind: lambda kind=kind: robot_policy(kind, frozen=False) for kind in KINDS}
    cases |= {f"{kind}_frozen": lambda kind=kind: robot_policy(kind, frozen=True) for kind in KINDS}
    results = {}
    algorithms = cycle(ALGORITHMS)  # as many as there are kinds and text
    for name, make in {**cases, "text": text_policy}.items():
        algorithm = None if name.endswith("_frozen") else next(algorithms)
        try:
            results[name] = exercise(*make(), name != "text", algorithm)
        except Exception as error:
            where = [line for line in traceback.format_exc().splitlines() if "/vla/" in line]
            results[name] = {"error": f"{type(error).__name__}: {error}"[:500], "at": where[-1:]}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
