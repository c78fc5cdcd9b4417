"""Checkpoints of LeRobot's own policies (ACT, diffusion, SmolVLA ...) in our evaluations."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from vla.data.demonstrations import check_action_spec
from vla.files.reading import KEYS, read_json
from vla.finite_checks import check_finite
from vla.interop.lerobot.episode_tracking import EpisodeTrackingObserver
from vla.types import ActionScores, Decision, Observation, Trace

IMAGES, STATE, ACTION = "observation.images.", "observation.state", "action"
DETERMINISTIC = ("act",)
"""Policies that act deterministically; all others sample, and have no greedy decoding."""
INSIDE = ("", "pretrained_model", "checkpoints/last/pretrained_model")
"""Subfolders that are searched for a checkpoint."""


def lerobot_folder(folder: Path) -> Path | None:
    """The checkpoint of a LeRobot policy in `folder`, if there is one that is not ours."""
    for inside in INSIDE:
        found = folder / inside / "config.json"
        if found.is_file() and not (found.parent / "policy.json").exists():
            values = read_json(found, finite=False)
            return found.parent if {"type", "input_features"} <= values.keys() else None
    return None


@dataclass(frozen=True)
class CheckpointSpec:
    """Declaration of a checkpoint: kind, cameras {name: (h, w)}, sizes of state and action.

    `dataset` is the folder of its training data where it still exists.
    """

    kind: str
    cameras: Mapping[str, tuple[int, int]]
    state_size: int
    action_size: int
    dataset: Path | None

    def settings(self) -> list[str]:
        """Our settings of a simulation that shows what the policy wants to see."""
        sizes = {size for shape in self.cameras.values() for size in shape}
        if len(sizes) != 1:
            raise ValueError(
                f"its cameras are {dict(self.cameras)} pixels: sim draws all of them square and "
                "of one size"
            )
        told = [f"sim.cameras=[{','.join(self.cameras)}]", f"sim.image_size={sizes.pop()}"]
        return told if self.dataset is None else [*told, f"data.path={self.dataset}"]

    def check(self, action_spec: Mapping[str, Any], proprio_size: int) -> None:
        """Hold it against a simulation; ValueError names the field that differs. LeRobot writes no
        action spec: where its dataset still stands, that one's is taken.
        """
        names = list(action_spec["names"])
        if self.action_size != len(names):
            raise ValueError(
                f"action: the policy decides {self.action_size} numbers, the simulation takes "
                f"{names}"
            )
        if self.state_size not in (0, proprio_size):
            raise ValueError(
                f"{STATE}: the policy wants {self.state_size} numbers, the simulation has "
                f"{proprio_size}"
            )
        stated = None if self.dataset is None else self.dataset / "meta" / "action_spec.json"
        if stated is not None and stated.exists():
            check_action_spec(read_json(stated), action_spec, f"the dataset {self.dataset}")


class FeatureShape(TypedDict):
    """A feature of a checkpoint."""

    __pydantic_config__ = KEYS  # type: ignore[misc]
    shape: list[int]


class CheckpointConfig(TypedDict):
    """Required keys of the config.json of a checkpoint."""

    __pydantic_config__ = KEYS  # type: ignore[misc]
    type: str
    input_features: dict[str, FeatureShape]
    output_features: dict[str, FeatureShape]


class TrainingDataset(TypedDict):
    """Required keys of the dataset in train_config.json."""

    __pydantic_config__ = KEYS  # type: ignore[misc]
    root: NotRequired[str | None]


class TrainConfig(TypedDict):
    """Required keys of train_config.json."""

    __pydantic_config__ = KEYS  # type: ignore[misc]
    dataset: NotRequired[TrainingDataset]


def read_checkpoint_spec(folder: Path) -> CheckpointSpec:
    """Read it from config.json, and the dataset from train_config.json."""
    path = folder / "config.json"
    values = read_json(path, CheckpointConfig, finite=False)
    shapes = {
        name: f["shape"]
        for name, f in {**values["input_features"], **values["output_features"]}.items()
    }
    cameras = {
        n.removeprefix(IMAGES): tuple(shape[-2:])
        for n, shape in shapes.items()
        if n.startswith(IMAGES)
    }
    trained = folder / "train_config.json"
    root = (
        read_json(trained, TrainConfig, finite=False).get("dataset", {}).get("root")
        if trained.exists()
        else None
    )
    dataset = Path(root) if root and (Path(root) / "meta" / "info.json").exists() else None
    state, action = (int(shapes[name][0]) if name in shapes else 0 for name in (STATE, ACTION))
    return CheckpointSpec(values["type"], cameras, state, action, dataset)  # type: ignore[arg-type]


@dataclass
class LeRobotPolicy:
    """A policy of LeRobot that acts for rows which begin and end at different times.

    Its queues (past observations, actions still to come) are kept for every place and put together
    again for rows that are equally far into theirs. `block` actions are handed out at once: those
    it would execute without looking.
    """

    policy: Any
    before: Any
    after: Any
    observer: EpisodeTrackingObserver
    block: int
    temperature: float = 1.0
    memory: dict[int, tuple[int, dict[str, list[Tensor]]]] = field(default_factory=dict)

    def forget(self) -> None:
        """Clear the queues of all rows."""
        self.memory = {}

    @torch.no_grad()
    def act(self, observation: Observation, *, greedy: bool = False) -> Decision:
        """Actions [B, block, A] in physical units. It decodes as it does: `greedy` makes no
        difference."""
        rows = observation.tokens.tolist()
        kept = [self._kept(place, episode) for place, episode, _ in rows]
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, queues in enumerate(kept):
            alike[tuple(len(queue) for queue in queues.values())].append(i)
        actions: list[Tensor] = [torch.empty(0)] * len(rows)
        for members in alike.values():
            decided, queues = self._decide(observation, members, [kept[i] for i in members])
            for number, i in enumerate(members):
                actions[i] = decided[number]
                own = {name: [entry[number] for entry in queue] for name, queue in queues.items()}
                self.memory[rows[i][0]] = (rows[i][1], own)
        nothing = torch.zeros(len(rows), 1)
        check_finite("actions", torch.stack(actions))
        return Decision(torch.stack(actions), {}, nothing, nothing.bool())

    def score(self, observation: Observation, trace: Trace) -> ActionScores:
        """Raises ValueError: LeRobot's policies cannot say how likely what they did was."""
        raise ValueError(
            "a policy of LeRobot can be evaluated, not trained by RL: it has no log-probabilities"
        )

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        return self.policy.parameters()

    def _kept(self, place: int, episode: int) -> dict[str, list[Tensor]]:
        known = self.memory.get(place)
        return known[1] if known is not None and known[0] == episode else {}

    def _decide(
        self,
        observation: Observation,
        members: list[int],
        kept: Sequence[Mapping[str, list[Tensor]]],
    ) -> tuple[Float[Tensor, "b block A"], dict[str, list[Tensor]]]:
        """The next actions of some rows whose queues are equally long, and their queues after
        it."""
        self.policy.reset()
        for name, queue in policy_queues(self.policy).items():
            queue.extend(
                torch.stack(entries)
                for entries in zip(*(own.get(name, []) for own in kept), strict=True)
            )
        batch = self.before(self._batch(observation, members))
        with positive_crops():
            decided = [self.policy.select_action(batch)]
        following = next(
            (q for name, q in policy_queues(self.policy).items() if ACTION in name), deque()
        )
        decided += [following.popleft() for _ in range(self.block - 1)]
        actions = torch.stack([self.after(action).float().cpu() for action in decided], dim=1)
        return actions, {name: list(queue) for name, queue in policy_queues(self.policy).items()}

    def _batch(self, observation: Observation, members: list[int]) -> dict[str, Any]:
        """Rows as LeRobot's environments give them."""
        rows = torch.tensor(members)
        images = {
            IMAGES + n: image[rows].movedim(-1, 1).float() / 255
            for n, image in observation.images.items()
        }
        assert observation.proprio is not None
        texts = [self.observer.texts[number] for number in observation.tokens[rows, 2].tolist()]
        return {**images, STATE: observation.proprio[rows], "task": texts}


def policy_queues(policy: Any) -> dict[str, deque[Tensor]]:
    """Queues of a policy between control steps: {name: deque of [B, ...] tensors}."""
    queues = {
        f"queues/{name}": queue for name, queue in (getattr(policy, "_queues", None) or {}).items()
    }
    own = getattr(policy, "_action_queue", None)
    return queues if own is None else {**queues, f"own/{ACTION}": own}


@contextmanager
def positive_crops() -> Iterator[None]:
    """LeRobot 0.6 shortens caches to a length, which transformers from 5.2x on takes only as a
    number to remove."""
    from transformers.cache_utils import DynamicLayer

    original = DynamicLayer.crop

    def crop(layer: Any, tokens: int) -> None:
        original(layer, min(0, tokens - layer.get_seq_length()) if tokens > 0 else tokens)

    DynamicLayer.crop = crop  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        DynamicLayer.crop = original  # type: ignore[method-assign, assignment]


def open_policy(
    folder: Path, max_steps: int, device: str
) -> tuple[LeRobotPolicy, EpisodeTrackingObserver]:
    """A checkpoint ready to act, in episodes of `max_steps` control steps.

    Raises ValueError where it averages over overlapping chunks, or its kind or its weights cannot
    be loaded.
    """
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(folder)
    config.device, config.pretrained_path = device, folder
    if getattr(config, "temporal_ensemble_coeff", None) is not None:
        raise ValueError(
            f"{folder} averages over chunks (temporal_ensemble_coeff): set it to null in its "
            "config.json"
        )
    try:
        policy = get_policy_class(config.type).from_pretrained(folder, config=config)
    except ImportError as error:
        raise ValueError(
            f"{folder} is of kind {config.type}, which needs more of LeRobot: {error}"
        ) from error
    move = {"device_processor": {"device": device}}
    before, after = make_pre_post_processors(
        config, pretrained_path=str(folder), preprocessor_overrides=move
    )
    # A policy with a history of observations needs every control step.
    block = (
        math.gcd(getattr(config, "n_action_steps", 1), max_steps) if config.n_obs_steps == 1 else 1
    )
    observer = EpisodeTrackingObserver()
    return LeRobotPolicy(policy.eval(), before, after, observer, block), observer
