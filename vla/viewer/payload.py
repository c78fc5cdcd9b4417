"""The data of the viewer's page: a summary of every recorded episode, and the payload that plays
it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vla.data.episode_recording import EpisodeRecording
from vla.files.reading import JsonMapping, JsonObject

FILM_QUALITY = 88
REACHED_VALUE = 0.5
"""Value above which a term of the task counts as reached."""


@runtime_checkable
class FailureReason(Protocol):
    """The reason of a failure (`sim.diagnosis.Reason`): a kind for statistics, and a sentence."""

    kind: str
    text: str


@runtime_checkable
class ReplayedEpisode(Protocol):
    """A replayed episode (`sim.replay.Replay`); sequences of T + 1 entries begin with the start."""

    instruction: str
    shapes: Sequence[object]
    poses: Sequence[np.ndarray]
    frames: Mapping[str, Sequence[np.ndarray]]
    hand: Sequence[object]
    commanded: Sequence[np.ndarray]
    opening: Sequence[float]
    held: object
    targets: Mapping[str, Sequence[object]]
    others: object
    terms: Mapping[str, Sequence[float]]
    reward: Sequence[float]
    decision: Sequence[int]
    success: bool
    reason: FailureReason | None


def episode_summaries(recording: EpisodeRecording, name: str) -> list[JsonObject]:
    """A summary of each episode of the recording `name`: the columns that the page lists and
    filters."""
    returns = np.bincount(recording.episode, recording.reward, minlength=len(recording.seed))
    return [
        {
            "id": f"{name}/{i}",
            "stage": recording.stage,
            "iteration": recording.iteration,
            "decoding": recording.decoding,
            "seed": int(recording.seed[i]),
            "group": int(recording.group[i]),
            "success": bool(recording.success[i]),
            "return": float(returns[i]),
            "num_decisions": int((recording.episode == i).sum()),
            "control_steps": int(recording.measures["control_steps"][i]),
            "reached": {
                n: float(v[i])
                for n, v in recording.measures.items()
                if n != "control_steps" and "/" not in n
            },
        }
        for i in range(len(recording.seed))
    ]


def episode_actions(recording: EpisodeRecording) -> list[np.ndarray]:
    """The actions of every episode, [decisions, H, A] each."""
    return [recording.action[recording.episode == i] for i in range(len(recording.seed))]


def episode_payload(
    recording: EpisodeRecording, name: str, i: int, replay: ReplayedEpisode, spec: JsonMapping
) -> JsonObject:
    """The payload that plays episode `i`.

    `faithful` is False where the replay has another outcome than the recording. The simulator has
    then changed, and the replay is not the recorded episode.
    """
    rows = np.flatnonzero(recording.episode == i)
    recorded = float(recording.reward[rows].sum())
    faithful = (
        replay.success == bool(recording.success[i]) and abs(sum(replay.reward) - recorded) < 1e-3
    )
    poses = np.stack(replay.poses).astype(np.float32)
    return {
        **episode_summaries(recording, name)[i],
        "instruction": replay.instruction,
        "faithful": faithful,
        "control_hz": spec["control_hz"],
        "names": list(spec["names"]),
        "shapes": [vars(shape) for shape in replay.shapes],
        "poses": encode_float32(poses),
        "num_bodies": poses.shape[1],
        "films": {
            camera: encode_film(np.stack(pictures)) for camera, pictures in replay.frames.items()
        },
        "hand": round_nested(replay.hand),
        "commanded": round_nested(replay.commanded),
        "opening": round_nested(replay.opening),
        "targets": {name: round_nested(places) for name, places in replay.targets.items()},
        "terms": {name: round_nested(values, 3) for name, values in replay.terms.items()},
        "why": failure_payload(replay),
        "reward": round_nested(replay.reward, 5),
        "decision": list(replay.decision),
        "decisions": decision_payloads(recording, rows, replay, spec),
    }


def failure_payload(replay: ReplayedEpisode) -> dict[str, str] | None:
    """The reason of a failed episode for the page; None for a success."""
    reason = replay.reason
    return None if reason is None else {"kind": reason.kind, "text": reason.text}


def decision_payloads(
    recording: EpisodeRecording, rows: np.ndarray, replay: ReplayedEpisode, spec: JsonMapping
) -> list[JsonObject]:
    """The numbers of each decision.

    `path` [H + 1, 3] holds the hand's positions if it followed the chunk.
    """
    begins = np.searchsorted(np.asarray(replay.decision), np.arange(len(rows)))
    payloads = []
    for number, row in enumerate(rows.tolist()):
        start = int(min(begins[number], len(replay.commanded) - 1))
        action = recording.action[row]
        payloads.append(
            {
                "step": start,
                "logprobs": round_nested(recording.logprobs[row].tolist(), 3),
                "chosen": recording.mask[row].astype(int).tolist(),
                "value": optional_row(recording.values, row),
                "advantage": optional_row(recording.advantages, row),
                "ratio": update_ratios(recording, row),
                "action": round_nested(action),
                "path": round_nested(
                    planned_path(action, np.asarray(replay.commanded[start]), spec)
                ),
                "chain": None
                if recording.chain is None
                else round_nested(recording.chain[row].tolist(), 3),
            }
        )
    return payloads


def update_ratios(recording: EpisodeRecording, row: int) -> list[float] | None:
    """The probability ratios of the sampled values, after over before the update."""
    if recording.logprobs_after is None:
        return None
    return round_nested(np.exp(recording.logprobs_after[row] - recording.logprobs[row]).tolist(), 4)


def optional_row(values: np.ndarray | None, row: int) -> list[float] | float | None:
    """A row of an array that not every recording has; None without."""
    if values is None:
        return None
    rounded = round_nested(values[row].tolist(), 4)
    return rounded[0] if isinstance(rounded, list) and len(rounded) == 1 else rounded


def planned_path(action: np.ndarray, commanded: np.ndarray, spec: JsonMapping) -> np.ndarray:
    """Hand positions [H + 1, 3] commanded by a chunk of actions [H, A], from the last commanded
    pose."""
    moves = np.clip(action, spec["low"], spec["high"])[:, :3]
    if tuple(spec["kinds"][:3]) != ("delta",) * 3:
        return np.concatenate([commanded[None, :3], moves])
    return commanded[:3] + np.concatenate([np.zeros((1, 3)), np.cumsum(moves, axis=0)])


def encode_float32(values: np.ndarray) -> str:
    """float32 numbers as base64."""
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode()


def round_nested(values: Any, digits: int = 4) -> Any:
    """Nested numbers with few digits; NaN becomes null."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if isinstance(values, list | tuple):
        return [round_nested(value, digits) for value in values]
    return None if values != values else round(float(values), digits)


def encode_film(pictures: np.ndarray) -> JsonObject:
    """uint8 [T, h, w, 3] as one WebP image of tiles, row by row, for random access in a browser."""
    from PIL import Image

    count, height, width, _ = pictures.shape
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    sheet = np.zeros((rows * columns, height, width, 3), np.uint8)
    sheet[:count] = pictures
    mosaic = (
        sheet.reshape(rows, columns, height, width, 3)
        .swapaxes(1, 2)
        .reshape(rows * height, columns * width, 3)
    )
    buffer = io.BytesIO()
    Image.fromarray(mosaic).save(buffer, format="WEBP", quality=FILM_QUALITY, method=3)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {
        "width": width,
        "height": height,
        "columns": columns,
        "data": f"data:image/webp;base64,{data}",
    }
