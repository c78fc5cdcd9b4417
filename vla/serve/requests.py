"""What a client may ask of a served policy: one robot's observation, checked before it joins a batch of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


class BadRequest(ValueError):
    """An observation that the policy cannot be asked with; the message names the entry and what it should be."""


@dataclass(frozen=True)
class Going:
    """What a robot is doing while it asks: the actions [n, A] that it would execute from now on, and how many of them
    it will have executed when the answer comes.
    """

    plan: np.ndarray
    late: int


@dataclass(frozen=True)
class Shown:
    """Rows of several clients, as `vla.data.observations.Observer` takes them; `going` is None where one waits."""

    images: Mapping[str, np.ndarray]
    proprio: np.ndarray
    instruction: Sequence[str]
    going: Sequence[Going | None] = ()


Parts = tuple[dict[str, np.ndarray], np.ndarray, str, Going | None]
"""One observation: images by camera, state, prompt, what goes on."""


@dataclass(frozen=True)
class Expected:
    """What every observation must hold: uint8 pictures [size, size, 3] by camera, `state` of so many numbers, `prompt`.

    A picture may come as "front", "images/front", "observation/front" or inside "images"; `state` and `prompt` alike.
    There may be `going/plan` [n, action_size] and `going/late` besides (`Going`).
    """

    cameras: tuple[str, ...]
    image_size: int
    state_size: int
    action_size: int | None = None

    def read(self, message: Any) -> Parts:
        """The parts of one observation. Raises BadRequest."""
        if not isinstance(message, Mapping):
            raise BadRequest(f"an observation is a mapping, this is a {type(message).__name__}")
        flat = flattened(message)
        images = {camera: self._image(camera, find(flat, camera, message)) for camera in self.cameras}
        state = np.asarray(find(flat, "state", message), dtype=np.float32)
        if state.shape != (self.state_size,) or not np.isfinite(state).all():
            raise BadRequest(f"state must be {self.state_size} finite numbers, this has shape {list(state.shape)}")
        prompt = find(flat, "prompt", message)
        if not isinstance(prompt, str):
            raise BadRequest(f"prompt must be text, this is a {type(prompt).__name__}")
        return images, state, prompt, self._going(flat)

    def _going(self, flat: Mapping[str, Any]) -> Going | None:
        if "going/plan" not in flat:
            return None
        plan, late = np.asarray(flat["going/plan"], dtype=np.float32), flat.get("going/late")
        if plan.ndim != 2 or plan.shape[1] != (self.action_size or plan.shape[1]) or not np.isfinite(plan).all():
            raise BadRequest(f"going/plan must be finite [n, {self.action_size}], this has shape {list(plan.shape)}")
        if not isinstance(late, int | np.integer) or not 0 <= late <= len(plan):
            raise BadRequest(
                f"going/late must be a whole number from 0 to the {len(plan)} of the plan, this is {late!r}"
            )
        return Going(plan, int(late))

    def _image(self, camera: str, value: Any) -> np.ndarray:
        image, size = np.asarray(value), self.image_size
        if image.dtype != np.uint8 or image.shape != (size, size, 3):
            raise BadRequest(
                f"{camera} must be uint8 [{size}, {size}, 3], this is {image.dtype} {list(image.shape)}: resize it "
                "on the client, as the policy was trained"
            )
        return image

    def join(self, parts: Sequence[Parts]) -> Shown:
        """Observations of several clients as rows."""
        _, states, prompts, going = zip(*parts, strict=True)
        images = {camera: np.stack([part[0][camera] for part in parts]) for camera in self.cameras}
        return Shown(images, np.stack(states), list(prompts), list(going))


def flattened(message: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as {"a/b": value}."""
    flat: dict[str, Any] = {}
    for key, value in message.items():
        name = f"{prefix}{key.decode() if isinstance(key, bytes) else key}"
        flat |= flattened(value, f"{name}/") if isinstance(value, Mapping) else {name: value}
    return flat


def find(flat: Mapping[str, Any], name: str, message: Mapping[Any, Any]) -> Any:
    """The entry whose last part is `name`."""
    found = [value for key, value in flat.items() if key == name or key.endswith(f"/{name}")]
    if len(found) != 1:
        there = ", ".join(sorted(flat)) or "nothing"
        problem = "missing" if not found else "there more than once"
        raise BadRequest(f"{name} is {problem}: the observation holds {there}")
    return found[0]
