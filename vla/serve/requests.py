"""What a client may ask of a served policy: one robot's observation, checked before it joins a batch of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


class BadRequest(ValueError):
    """An observation that the policy cannot be asked with; the message names the entry and what it should be."""


@dataclass(frozen=True)
class Shown:
    """Rows of several clients, as `vla.data.observations.Observer` takes them."""

    images: Mapping[str, np.ndarray]
    proprio: np.ndarray
    instruction: Sequence[str]


@dataclass(frozen=True)
class Expected:
    """What every observation must hold: uint8 pictures [size, size, 3] by camera, `state` of so many numbers, `prompt`.

    A picture may come as "front", "images/front", "observation/front" or inside "images"; `state` and `prompt` alike.
    """

    cameras: tuple[str, ...]
    image_size: int
    state_size: int

    def read(self, message: Any) -> tuple[dict[str, np.ndarray], np.ndarray, str]:
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
        return images, state, prompt

    def _image(self, camera: str, value: Any) -> np.ndarray:
        image, size = np.asarray(value), self.image_size
        if image.dtype != np.uint8 or image.shape != (size, size, 3):
            raise BadRequest(
                f"{camera} must be uint8 [{size}, {size}, 3], this is {image.dtype} {list(image.shape)}: resize it "
                "on the client, as the policy was trained"
            )
        return image

    def join(self, parts: Sequence[tuple[dict[str, np.ndarray], np.ndarray, str]]) -> Shown:
        """Observations of several clients as rows."""
        images = {camera: np.stack([part[0][camera] for part in parts]) for camera in self.cameras}
        return Shown(images, np.stack([part[1] for part in parts]), [part[2] for part in parts])


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
