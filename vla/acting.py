"""A loaded policy: images, state and an instruction in, actions in physical units out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from vla.rl.protocols import Policy
    from vla.types import Observation


@dataclass(frozen=True)
class PolicyInput:
    """Checked inputs of n rows, one for each robot.

    Attributes:
        images: uint8 [n, h, w, 3] by camera.
        proprio: float32 [n, s].
        instruction: n sentences.
        place: int [n], the number of the row.
        episode: int [n], the number of the episode in each row; no two episodes share one.
    """

    images: Mapping[str, np.ndarray]
    proprio: np.ndarray
    instruction: Sequence[str]
    place: np.ndarray
    episode: np.ndarray


@dataclass
class LoadedPolicy:
    """A policy that acts for one robot or for several at once.

    A policy decides on a chunk of actions. `act` returns its actions one by one, `act_chunk` the
    whole chunk. `reset` begins new episodes and drops the rest of their chunks.

    Attributes:
        cameras: names of the cameras that `images` must hold.
        image_size: height and width in pixels, by camera.
        state_names: the name of every number of `state`.
        action_names: the name of every dimension of an action.
        greedy: True takes the most likely decision, False samples one.
    """

    policy: Policy
    observe: Callable[[PolicyInput], Observation]
    image_size: Mapping[str, tuple[int, int]]
    state_names: Sequence[str]
    action_names: Sequence[str]
    greedy: bool = True
    _pending: dict[int, deque[np.ndarray]] = field(default_factory=dict)
    _episode: dict[int, int] = field(default_factory=dict)
    _num_episodes: int = 0

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self.image_size)

    def reset(self, rows: Sequence[int] | np.ndarray | None = None) -> None:
        """Begin new episodes in `rows` (row numbers, or a boolean mask); None: in all rows."""
        chosen = np.asarray([*self._episode] if rows is None else rows)
        numbers = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        for row in numbers.astype(int).tolist():
            self._pending.pop(row, None)
            self._episode.pop(row, None)

    def act(
        self,
        images: Mapping[str, np.ndarray],
        state: np.ndarray | Sequence[float],
        instruction: str | Sequence[str],
    ) -> np.ndarray:
        """Return the next action, float32 [A]; [B, A] for a batch.

        Args:
            images: uint8 [h, w, 3] by camera, RGB; [B, h, w, 3] for a batch.
            state: float [s], the proprioceptive state; [B, s] for a batch.
            instruction: a sentence; a list of B for a batch.

        Raises:
            ValueError: a camera is missing or unknown; a shape or type is wrong; the state is not
                finite.
        """
        rows, single = self._read(images, state, instruction)
        waiting = [row for row in range(len(rows.place)) if not self._pending.get(row)]
        if waiting:
            for row, chunk in zip(waiting, self._decide(take_rows(rows, waiting)), strict=True):
                self._pending[row] = deque(chunk)
        actions = np.stack([self._pending[row].popleft() for row in range(len(rows.place))])
        return actions[0] if single else actions

    def act_chunk(
        self,
        images: Mapping[str, np.ndarray],
        state: np.ndarray | Sequence[float],
        instruction: str | Sequence[str],
    ) -> np.ndarray:
        """Return a whole chunk, float32 [H, A]; [B, H, A] for a batch. Arguments as for `act`."""
        rows, single = self._read(images, state, instruction)
        chunks = self._decide(rows)
        return chunks[0] if single else chunks

    def _decide(self, rows: PolicyInput) -> np.ndarray:
        decision = self.policy.act(self.observe(rows), greedy=self.greedy)
        return decision.action.float().cpu().numpy()

    def _read(
        self,
        images: Mapping[str, np.ndarray],
        state: np.ndarray | Sequence[float],
        instruction: str | Sequence[str],
    ) -> tuple[PolicyInput, bool]:
        """Check the inputs; return them as rows, with True where they are of a single robot."""
        if set(images) != set(self.cameras):
            raise ValueError(
                f"images has the cameras {sorted(images)}, the policy needs {sorted(self.cameras)}"
            )
        single = isinstance(instruction, str)
        sentences = [instruction] if isinstance(instruction, str) else list(instruction)
        if not sentences or not all(isinstance(text, str) for text in sentences):
            raise ValueError("instruction must be a sentence, or a list of one per row")
        size = len(sentences)
        checked_images = {
            name: self._picture(name, images[name], size, single) for name in self.cameras
        }
        values = np.asarray(state, dtype=np.float32)
        expected = (len(self.state_names),) if single else (size, len(self.state_names))
        if values.shape != expected:
            raise ValueError(
                f"state has the shape {list(values.shape)}, {list(expected)} is expected: "
                f"{', '.join(self.state_names)}"
            )
        if not np.isfinite(values).all():
            raise ValueError("state holds NaN or infinite numbers: check the sensors of the robot")
        place = np.arange(size)
        rows = PolicyInput(
            checked_images, values.reshape(size, -1), sentences, place, self._episodes(size)
        )
        return rows, single

    def _picture(self, name: str, picture: np.ndarray, size: int, single: bool) -> np.ndarray:
        height, width = self.image_size[name]
        values = np.asarray(picture)
        expected = (height, width, 3) if single else (size, height, width, 3)
        if values.dtype != np.uint8 or values.shape != expected:
            raise ValueError(
                f"images[{name!r}] is {values.dtype} {list(values.shape)}, uint8 {list(expected)} "
                "(height, width, RGB) is expected: resize it, and keep 0 to 255"
            )
        return values.reshape(size, height, width, 3)

    def _episodes(self, size: int) -> np.ndarray:
        """Episode numbers of the rows; a new row gets the next number."""
        for row in range(size):
            if row not in self._episode:
                self._episode[row] = self._num_episodes
                self._num_episodes += 1
        return np.array([self._episode[row] for row in range(size)], dtype=np.int64)


def take_rows(rows: PolicyInput, numbers: Sequence[int]) -> PolicyInput:
    """Select rows by number."""
    chosen = list(numbers)
    return PolicyInput(
        {name: picture[chosen] for name, picture in rows.images.items()},
        rows.proprio[chosen],
        [rows.instruction[i] for i in chosen],
        rows.place[chosen],
        rows.episode[chosen],
    )
