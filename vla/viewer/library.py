"""The recorded episodes of a run: listed from their files, and replayed on demand."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from vla.data.episode_recording import EpisodeRecording, list_recordings, load_recording
from vla.files.reading import DamagedFile, JsonMapping, JsonObject
from vla.viewer.payload import (
    ReplayedEpisode,
    episode_actions,
    episode_payload,
    episode_summaries,
    failure_payload,
)


@runtime_checkable
class Replayer(Protocol):
    """A replayer of episodes from simulator settings, seeds and actions
    (`vla.viewer.episodes.Replayer`).

    Without `render` no image is drawn.
    """

    def __call__(
        self,
        settings: JsonMapping,
        seeds: Sequence[int],
        actions: Sequence[np.ndarray],
        render: bool = True,
    ) -> Sequence[ReplayedEpisode]: ...


@dataclass
class EpisodeLibrary:
    """The recorded episodes of a run.

    `spec` is the action spec of its `policy.json`.
    """

    run: Path
    replayer: Replayer
    spec: JsonMapping
    recordings: dict[Path, EpisodeRecording] = field(default_factory=dict)
    reasons: dict[str, dict[str, str] | None] = field(default_factory=dict)
    left_out: dict[Path, str] = field(default_factory=dict)

    def refresh(self) -> None:
        """Load recordings written since the last call; report a damaged one once."""
        for path in list_recordings(self.run):
            if path not in self.recordings and path not in self.left_out:
                try:
                    self.recordings[path] = load_recording(path)
                except DamagedFile as error:
                    self.left_out[path] = str(error)
                    count = len(self.left_out)
                    print(
                        f"left out, {count} of {count + len(self.recordings)} recordings so far: "
                        f"{error}",
                        file=sys.stderr,
                    )

    def recording_name(self, path: Path) -> str:
        """The name of a recording in its episodes' ids: its path without the suffix."""
        return path.relative_to(self.run).with_suffix("").as_posix()

    def summaries(self) -> list[JsonObject]:
        """A summary of every episode, those of the newest recordings first."""
        self.refresh()
        return [
            summary
            for path, recording in reversed(self.recordings.items())
            for summary in episode_summaries(recording, self.recording_name(path))
        ]

    def episode(self, identity: str) -> JsonObject:
        """The payload that plays one episode.

        Raises KeyError for an unknown id.
        """
        recording, name, i = self._find(identity)
        (replay,) = self.replayer(
            recording.sim, [int(recording.seed[i])], [episode_actions(recording)[i]]
        )
        return episode_payload(recording, name, i, replay, self.spec)

    def failure(self, identity: str) -> dict[str, str] | None:
        """The reason of a failure, replayed once without images; None for a success.

        Raises KeyError for an unknown id.
        """
        recording, _, i = self._find(identity)
        if identity not in self.reasons:
            (replay,) = self.replayer(
                recording.sim,
                [int(recording.seed[i])],
                [episode_actions(recording)[i]],
                render=False,
            )
            self.reasons[identity] = failure_payload(replay)
        return self.reasons[identity]

    def _find(self, identity: str) -> tuple[EpisodeRecording, str, int]:
        """The recording of an episode, its name, and the episode's number in it.

        Raises KeyError for an unknown id.
        """
        name, _, number = identity.rpartition("/")
        path = self.run / f"{name}.safetensors"
        if (
            path not in self.recordings
            or not number.isdigit()
            or int(number) >= len(self.recordings[path].seed)
        ):
            raise KeyError(identity)
        return self.recordings[path], name, int(number)

    def list_episodes(self) -> JsonObject:
        """The page's list: a summary of every episode, and the faults of damaged recordings."""
        return {"list": self.summaries(), "left_out": list(self.left_out.values())}

    def page_data(self, limit: int) -> JsonObject:
        """The first `limit` episodes with their payloads, for a standalone page."""
        listing = self.list_episodes()
        summaries = listing["list"][:limit]
        return {
            **listing,
            "list": summaries,
            "details": {summary["id"]: self.episode(summary["id"]) for summary in summaries},
        }
