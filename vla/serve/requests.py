"""What a client may ask of a served policy: one robot's observation, checked before it joins a
batch of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_DEPTH, MAX_KEYS, MAX_KEY_BYTES = 4, 64, 64
"""Mappings inside mappings, keys of all of them together, and bytes of a key."""
MAX_NUMBER = 1e9
"""Numbers of a state or a plan lie between its negative and this: far beyond every unit, far within
float32."""


class BadRequest(ValueError):
    """An observation that the policy cannot be asked with; the message names the entry and what it
    should be."""


@dataclass(frozen=True)
class ExecutingPlan:
    """What a robot is doing while it asks: the actions [n, A] that it would execute from now on,
    and how many of them it will have executed when the answer comes.
    """

    plan: np.ndarray
    late: int


@dataclass(frozen=True)
class ObservationBatch:
    """Rows of several clients, as `vla.data.observations.Observer` takes them; `going` is None
    where one waits."""

    images: Mapping[str, np.ndarray]
    proprio: np.ndarray
    instruction: Sequence[str]
    going: Sequence[ExecutingPlan | None] = ()


Parts = tuple[dict[str, np.ndarray], np.ndarray, str, ExecutingPlan | None]
"""One observation: images by camera, state, prompt, what goes on."""


@dataclass(frozen=True)
class ExpectedObservation:
    """What every observation must hold: uint8 pictures [size, size, 3] by camera, `state` of so
    many numbers, `prompt`.

    A picture may come as "front", "images/front", "observation/front" or inside "images"; `state`
    and `prompt` alike. There may be `going/plan` [n, action_size] and `going/late` besides
    (`ExecutingPlan`). `encode` turns a prompt into tokens and raises ValueError for one that the policy has
    no room for, so that no such prompt reaches a batch.
    """

    cameras: tuple[str, ...]
    image_size: int
    state_size: int
    action_size: int | None = None
    encode: Callable[[str], object] | None = None
    max_prompt_bytes: int = 4096

    @property
    def num_bytes(self) -> int:
        """How long a message may have to be, a little more than its arrays and its prompt."""
        pictures = len(self.cameras) * self.image_size**2 * 3
        return pictures + 8 * self.state_size + self.max_prompt_bytes + MAX_KEYS * MAX_KEY_BYTES

    def read(self, message: Any) -> Parts:
        """The parts of one observation. Raises BadRequest."""
        if not isinstance(message, Mapping):
            raise BadRequest(f"an observation is a mapping, this is a {type(message).__name__}")
        flat = flatten_message(message)
        images = {camera: self._image(camera, find_entry(flat, camera)) for camera in self.cameras}
        state = parse_finite("state", find_entry(flat, "state"), (self.state_size,))
        prompt = self._prompt(find_entry(flat, "prompt"))
        return images, state, prompt, self._going(flat)

    def _prompt(self, prompt: Any) -> str:
        if not isinstance(prompt, str):
            raise BadRequest(f"prompt must be text, this is a {type(prompt).__name__}")
        # The tokenizer takes time for every character, so bytes are bounded first.
        if len(prompt.encode()) > self.max_prompt_bytes:
            raise BadRequest(
                f"prompt must be at most {self.max_prompt_bytes} bytes, this is {len(prompt.encode())}"
            )
        if self.encode is not None:
            try:
                self.encode(prompt)
            except ValueError as error:
                raise BadRequest(f"prompt: {error}") from None
        return prompt

    def _going(self, flat: Mapping[str, Any]) -> ExecutingPlan | None:
        if "going/plan" not in flat:
            return None
        plan, late = (
            parse_finite("going/plan", flat["going/plan"], (None, self.action_size)),
            flat.get("going/late"),
        )
        if not isinstance(late, int | np.integer) or not 0 <= late <= len(plan):
            found = late if isinstance(late, int | np.integer) else f"a {type(late).__name__}"
            raise BadRequest(
                f"going/late must be a whole number from 0 to the {len(plan)} of the plan, this is {found}"
            )
        return ExecutingPlan(plan, int(late))

    def _image(self, camera: str, value: Any) -> np.ndarray:
        size = self.image_size
        expected = f"{camera} must be uint8 [{size}, {size}, 3]"
        if not isinstance(value, np.ndarray):
            raise BadRequest(f"{expected}, this is a {type(value).__name__}")
        if value.dtype != np.uint8 or value.shape != (size, size, 3):
            raise BadRequest(
                f"{expected}, this is {value.dtype} {list(value.shape)}: resize it on the client by the rule that the "
                "policy spec calls `resize`"
            )
        return value

    def join(self, parts: Sequence[Parts]) -> ObservationBatch:
        """Observations of several clients as rows."""
        _, states, prompts, going = zip(*parts, strict=True)
        images = {camera: np.stack([part[0][camera] for part in parts]) for camera in self.cameras}
        return ObservationBatch(images, np.stack(states), list(prompts), list(going))


def parse_finite(name: str, value: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    """Numbers of that shape (None: any size) as float32. Raises BadRequest."""
    numbers = " x ".join("n" if size is None else str(size) for size in shape)
    expected = f"{name} must be {numbers} finite numbers"
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unequal lengths
        raise BadRequest(f"{expected}, this is a list of unequal lists") from None
    if array.dtype.kind not in "biuf":
        raise BadRequest(f"{expected}, this is a {type(value).__name__}")
    matches = [wanted in (None, size) for wanted, size in zip(shape, array.shape, strict=False)]
    if array.ndim != len(shape) or not all(matches):
        raise BadRequest(f"{expected}, this has shape {list(array.shape)}")
    if not (np.abs(array.astype(np.float64)) <= MAX_NUMBER).all():
        raise BadRequest(f"{expected} of at most {MAX_NUMBER:.0e}, some of these are not")
    return array.astype(np.float32)


def flatten_message(message: Mapping[Any, Any]) -> dict[str, Any]:
    """Nested mappings as {"a/b": value}. Raises BadRequest for more, longer or deeper keys than an
    observation has: a name is as long as all the keys above it, so the work is their product.
    """
    flat: dict[str, Any] = {}
    num_keys, levels = 0, [("", message, 1)]
    while levels:
        prefix, mapping, depth = levels.pop()
        num_keys += len(mapping)
        if num_keys > MAX_KEYS:
            raise BadRequest(f"an observation has at most {MAX_KEYS} keys, this has more")
        for key, value in mapping.items():
            name = prefix + key_text(key)
            if name in flat:
                raise BadRequest(f"{name} is there more than once")
            if not isinstance(value, Mapping):
                flat[name] = value
            elif depth == MAX_DEPTH:
                raise BadRequest(
                    f"an observation has mappings at most {MAX_DEPTH} deep, this has more"
                )
            else:
                levels.append((f"{name}/", value, depth + 1))
    return flat


def key_text(key: Any) -> str:
    """A key as text. Raises BadRequest."""
    raw = key.encode() if isinstance(key, str) else key
    if not isinstance(raw, bytes) or len(raw) > MAX_KEY_BYTES:
        raise BadRequest(
            f"a key of an observation is a text of at most {MAX_KEY_BYTES} bytes, one of these is not"
        )
    return raw.decode(errors="backslashreplace")


def find_entry(flat: Mapping[str, Any], name: str) -> Any:
    """The entry whose last part is `name`."""
    found = [value for key, value in flat.items() if key == name or key.endswith(f"/{name}")]
    if len(found) != 1:
        there = ", ".join(sorted(flat)) or "nothing"
        problem = "missing" if not found else "there more than once"
        raise BadRequest(f"{name} is {problem}: the observation holds {there}")
    return found[0]
