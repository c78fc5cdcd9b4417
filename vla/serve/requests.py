"""Requests to a policy server: one robot's observation, validated before it joins a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

MAX_DEPTH = 4
"""Nested mappings of an observation."""
MAX_KEYS = 64
"""Keys of all mappings of an observation together."""
MAX_KEY_BYTES = 64
MAX_NUMBER = 1e9
"""Largest magnitude of a number of a state or a plan: beyond every unit, well within float32."""


class BadRequest(ValueError):
    """An observation that the policy does not take; the message names the entry and its form."""


@dataclass(frozen=True)
class ExecutingPlan:
    """The actions [n, A] that a robot will execute from now on without an answer.

    `delay` is the number of them that it will have executed when the answer arrives.
    """

    actions: np.ndarray
    delay: int


@dataclass(frozen=True)
class ObservationBatch:
    """Observations of several clients as rows, in the form of `vla.data.observations.Observer`.

    `executing` is None for a client that waits for its answer.
    """

    images: Mapping[str, np.ndarray]
    proprio: np.ndarray
    instruction: Sequence[str]
    executing: Sequence[ExecutingPlan | None] = ()


ObservationParts = tuple[dict[str, np.ndarray], np.ndarray, str, ExecutingPlan | None]
"""One observation: images by camera, state, prompt, executing plan."""


@dataclass(frozen=True)
class ObservationSpec:
    """The form of an observation: uint8 images [size, size, 3] by camera, `state` and `prompt`.

    An image may come as "front", "images/front", "observation/front" or inside "images"; `state`
    and `prompt` alike. `going/plan` [n, action_size] and `going/late` are optional
    (`ExecutingPlan`). `encode` tokenizes a prompt and raises ValueError for one that is too long,
    so no such prompt reaches a batch.
    """

    cameras: tuple[str, ...]
    image_size: int
    state_size: int
    action_size: int | None = None
    encode: Callable[[str], object] | None = None
    max_prompt_bytes: int = 4096

    @property
    def num_bytes(self) -> int:
        """Upper bound of the bytes of a message with one observation."""
        pictures = len(self.cameras) * self.image_size**2 * 3
        return pictures + 8 * self.state_size + self.max_prompt_bytes + MAX_KEYS * MAX_KEY_BYTES

    def read(self, message: object) -> ObservationParts:
        """Read and validate the parts of one observation.

        Raises:
            BadRequest: An entry is missing, ambiguous or of another form.
        """
        if not isinstance(message, Mapping):
            raise BadRequest(f"an observation is a mapping, this is a {type(message).__name__}")
        flat = flatten_message(message)
        images = {camera: self._image(camera, find_entry(flat, camera)) for camera in self.cameras}
        state = parse_finite("state", find_entry(flat, "state"), (self.state_size,))
        prompt = self._prompt(find_entry(flat, "prompt"))
        return images, state, prompt, self._executing_plan(flat)

    def _prompt(self, prompt: object) -> str:
        if not isinstance(prompt, str):
            raise BadRequest(f"prompt must be text, this is a {type(prompt).__name__}")
        # The tokenizer takes time for every character, so bytes are bounded first.
        if len(prompt.encode()) > self.max_prompt_bytes:
            raise BadRequest(
                f"prompt must be at most {self.max_prompt_bytes} bytes, "
                f"this is {len(prompt.encode())}"
            )
        if self.encode is not None:
            try:
                self.encode(prompt)
            except ValueError as error:
                raise BadRequest(f"prompt: {error}") from None
        return prompt

    def _executing_plan(self, flat: Mapping[str, object]) -> ExecutingPlan | None:
        if "going/plan" not in flat:
            return None
        actions = parse_finite("going/plan", flat["going/plan"], (None, self.action_size))
        delay = flat.get("going/late")
        if not isinstance(delay, int | np.integer) or not 0 <= delay <= len(actions):
            value = delay if isinstance(delay, int | np.integer) else f"a {type(delay).__name__}"
            raise BadRequest(
                f"going/late must be a whole number from 0 to the {len(actions)} of the plan, "
                f"this is {value}"
            )
        return ExecutingPlan(actions, int(delay))

    def _image(self, camera: str, value: object) -> np.ndarray:
        size = self.image_size
        expected = f"{camera} must be uint8 [{size}, {size}, 3]"
        if not isinstance(value, np.ndarray):
            raise BadRequest(f"{expected}, this is a {type(value).__name__}")
        if value.dtype != np.uint8 or value.shape != (size, size, 3):
            raise BadRequest(
                f"{expected}, this is {value.dtype} {list(value.shape)}: resize it on the client "
                "by the rule `resize` of the policy spec"
            )
        return value

    def join(self, parts: Sequence[ObservationParts]) -> ObservationBatch:
        """Stack the observations of several clients as rows."""
        images, states, prompts, executing = zip(*parts, strict=True)
        stacked = {camera: np.stack([row[camera] for row in images]) for camera in self.cameras}
        return ObservationBatch(stacked, np.stack(states), list(prompts), list(executing))


def parse_finite(name: str, value: object, shape: tuple[int | None, ...]) -> np.ndarray:
    """Convert numbers to float32 of a shape (None: any size).

    Raises:
        BadRequest: They have another shape or kind, or are not finite.
    """
    numbers = " x ".join("n" if size is None else str(size) for size in shape)
    expected = f"{name} must be {numbers} finite numbers"
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unequal lengths
        raise BadRequest(f"{expected}, this is a list of unequal lists") from None
    if array.dtype.kind not in "biuf":
        raise BadRequest(f"{expected}, this is a {type(value).__name__}")
    matches = [fixed in (None, size) for fixed, size in zip(shape, array.shape, strict=False)]
    if array.ndim != len(shape) or not all(matches):
        raise BadRequest(f"{expected}, this has shape {list(array.shape)}")
    if not (np.abs(array.astype(np.float64)) <= MAX_NUMBER).all():
        raise BadRequest(f"{expected} of at most {MAX_NUMBER:.0e}, some of these are not")
    return array.astype(np.float32)


def flatten_message(message: Mapping[object, object]) -> dict[str, object]:
    """Flatten nested mappings to {"a/b": value}.

    Raises:
        BadRequest: There are more, longer or deeper keys than an observation has.
    """
    # A flat name is as long as all the keys above it, so unbounded keys would cost their product.
    flat: dict[str, object] = {}
    num_keys = 0
    levels: list[tuple[str, Mapping[object, object], int]] = [("", message, 1)]
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


def key_text(key: object) -> str:
    """Decode a key.

    Raises:
        BadRequest: It is neither text nor bytes, or too long.
    """
    raw = key.encode() if isinstance(key, str) else key
    if not isinstance(raw, bytes) or len(raw) > MAX_KEY_BYTES:
        raise BadRequest(
            f"a key of an observation is a text of at most {MAX_KEY_BYTES} bytes, "
            "one of these is not"
        )
    return raw.decode(errors="backslashreplace")


def find_entry(flat: Mapping[str, object], name: str) -> object:
    """The entry whose key, or the last part of it, is `name`.

    Raises:
        BadRequest: There is no such entry, or more than one.
    """
    matches = [value for key, value in flat.items() if key == name or key.endswith(f"/{name}")]
    if len(matches) != 1:
        keys = ", ".join(sorted(flat)) or "nothing"
        problem = "there more than once" if matches else "missing"
        raise BadRequest(f"{name} is {problem}: the observation holds {keys}")
    return matches[0]
