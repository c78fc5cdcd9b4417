"""What the page of the viewer is given: a line for every recorded episode, and all there is to play
one."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vla.data.episode_recording import EpisodeRecording

FILM_QUALITY = 88
REACHED_VALUE = 0.5
"""A term of the task counts as reached above this."""


@runtime_checkable
class FailureReason(Protocol):
    """Why an episode failed (`sim.diagnosis.Reason`): a kind to count by, and a sentence."""

    kind: str
    text: str


@runtime_checkable
class ReplayedEpisode(Protocol):
    """An episode lived again (`sim.replay.Replay`); entries of T + 1 begin with the start."""

    instruction: str
    shapes: Any
    poses: Any
    frames: Any
    hand: Any
    commanded: Any
    opening: Any
    held: Any
    targets: Any
    others: Any
    terms: Any
    reward: Any
    decision: Any
    success: bool
    reason: FailureReason | None


def episode_summaries(recording: EpisodeRecording, name: str) -> list[dict[str, Any]]:
    """A line for each episode of the recording `name`: what the list shows and filters by."""
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
    recording: EpisodeRecording, name: str, i: int, lived: ReplayedEpisode, spec: Mapping[str, Any]
) -> dict[str, Any]:
    """All there is to play episode `i`. `faithful` is False where living it again came to another
    end: then the simulator is not the one that it was recorded in, and what is shown is not what
    happened.
    """
    rows = np.flatnonzero(recording.episode == i)
    recorded = float(recording.reward[rows].sum())
    faithful = (
        lived.success == bool(recording.success[i]) and abs(sum(lived.reward) - recorded) < 1e-3
    )
    poses = np.stack(lived.poses).astype(np.float32)
    return {
        **episode_summaries(recording, name)[i],
        "instruction": lived.instruction,
        "faithful": faithful,
        "control_hz": spec["control_hz"],
        "names": list(spec["names"]),
        "shapes": [vars(shape) for shape in lived.shapes],
        "poses": encode_float32(poses),
        "num_bodies": poses.shape[1],
        "films": {
            camera: encode_film(np.stack(pictures)) for camera, pictures in lived.frames.items()
        },
        "hand": round_nested(lived.hand),
        "commanded": round_nested(lived.commanded),
        "opening": round_nested(lived.opening),
        "targets": {name: round_nested(places) for name, places in lived.targets.items()},
        "terms": {name: round_nested(values, 3) for name, values in lived.terms.items()},
        "why": failure_payload(lived),
        "reward": round_nested(lived.reward, 5),
        "decision": list(lived.decision),
        "decisions": decision_payloads(recording, rows, lived, spec),
    }


def failure_payload(lived: ReplayedEpisode) -> dict[str, str] | None:
    """The reason of a failed episode for the page; None for a success."""
    found = lived.reason
    return None if found is None else {"kind": found.kind, "text": found.text}


def decision_payloads(
    recording: EpisodeRecording, rows: np.ndarray, lived: ReplayedEpisode, spec: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """What the policy thought at each decision. `path` is where the chunk would lead the hand, [H +
    1, 3]."""
    begins = np.searchsorted(np.asarray(lived.decision), np.arange(len(rows)))
    found = []
    for number, row in enumerate(rows.tolist()):
        start = int(min(begins[number], len(lived.commanded) - 1))
        action = recording.action[row]
        found.append(
            {
                "step": start,
                "logprobs": round_nested(recording.logprobs[row].tolist(), 3),
                "chosen": recording.mask[row].astype(int).tolist(),
                "value": optional_row(recording.values, row),
                "advantage": optional_row(recording.advantages, row),
                "ratio": update_ratios(recording, row),
                "action": round_nested(action),
                "path": round_nested(
                    planned_path(action, np.asarray(lived.commanded[start]), spec)
                ),
                "chain": None
                if recording.chain is None
                else round_nested(recording.chain[row].tolist(), 3),
            }
        )
    return found


def update_ratios(recording: EpisodeRecording, row: int) -> list[float] | None:
    """How much likelier each draw became through the update."""
    if recording.logprobs_after is None:
        return None
    return round_nested(np.exp(recording.logprobs_after[row] - recording.logprobs[row]).tolist(), 4)


def optional_row(values: np.ndarray | None, row: int) -> list[float] | float | None:
    """A row of what not every recording has."""
    if values is None:
        return None
    found = round_nested(values[row].tolist(), 4)
    return found[0] if isinstance(found, list) and len(found) == 1 else found


def planned_path(action: np.ndarray, commanded: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
    """Positions [H + 1, 3] that a chunk of actions [H, A] asks for, from where the hand was told to
    be."""
    moves = np.clip(action, spec["low"], spec["high"])[:, :3]
    if tuple(spec["kinds"][:3]) != ("delta",) * 3:
        return np.concatenate([commanded[None, :3], moves])
    return commanded[:3] + np.concatenate([np.zeros((1, 3)), np.cumsum(moves, axis=0)])


def encode_float32(values: np.ndarray) -> str:
    """float32 numbers as base64."""
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode()


def round_nested(values: Any, digits: int = 4) -> Any:
    """Numbers with few digits, nested as they were; NaN becomes null."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if isinstance(values, list | tuple):
        return [round_nested(value, digits) for value in values]
    return None if values != values else round(float(values), digits)


def encode_film(pictures: np.ndarray) -> dict[str, Any]:
    """uint8 [T, h, w, 3] as one picture of many tiles, row by row: any moment can be shown at
    once."""
    from PIL import Image

    count, height, width, _ = pictures.shape
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    sheet = np.zeros((rows * columns, height, width, 3), np.uint8)
    sheet[:count] = pictures
    joined = (
        sheet.reshape(rows, columns, height, width, 3)
        .swapaxes(1, 2)
        .reshape(rows * height, columns * width, 3)
    )
    written = io.BytesIO()
    Image.fromarray(joined).save(written, format="WEBP", quality=FILM_QUALITY, method=3)
    data = base64.b64encode(written.getvalue()).decode()
    return {
        "width": width,
        "height": height,
        "columns": columns,
        "data": f"data:image/webp;base64,{data}",
    }
