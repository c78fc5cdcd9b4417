"""The recorded episodes of a run: listed at once, lived again when someone wants to see one, new
ones found."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vla.data.episode_recording import EpisodeRecording, list_recordings, load_recording
from vla.files.reading import DamagedFile
from vla.viewer.payload import (
    ReplayedEpisode,
    episode_actions,
    episode_payload,
    episode_summaries,
    failure_payload,
)


@runtime_checkable
class Replayer(Protocol):
    """Lives episodes again, from the settings of their simulation, seeds and actions
    (`vla.viewer.episodes.Replayer`); without `render` no picture is drawn.
    """

    def __call__(
        self,
        settings: Mapping[str, Any],
        seeds: Sequence[int],
        actions: Sequence[np.ndarray],
        render: bool = True,
    ) -> Sequence[ReplayedEpisode]: ...


@dataclass
class EpisodeLibrary:
    """What there is to see of a run. `spec` is what its actions mean (`policy.json`)."""

    run: Path
    replayer: Replayer
    spec: Mapping[str, Any]
    recordings: dict[Path, EpisodeRecording] = field(default_factory=dict)
    reasons: dict[str, dict[str, str] | None] = field(default_factory=dict)
    left_out: dict[Path, str] = field(default_factory=dict)

    def refresh(self) -> None:
        """Find recordings that were written since; one that is damaged is left out, counted, and
        named once."""
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
        """How a recording is called in the identity of its episodes: its path without the
        suffix."""
        return path.relative_to(self.run).with_suffix("").as_posix()

    def summaries(self) -> list[dict[str, Any]]:
        """A line for every episode, those of the newest recordings first."""
        self.refresh()
        return [
            line
            for path, found in reversed(self.recordings.items())
            for line in episode_summaries(found, self.recording_name(path))
        ]

    def episode(self, identity: str) -> dict[str, Any]:
        """All there is to play one; KeyError when there is none of that name."""
        recording, name, i = self._find(identity)
        (lived,) = self.replayer(
            recording.sim, [int(recording.seed[i])], [episode_actions(recording)[i]]
        )
        return episode_payload(recording, name, i, lived, self.spec)

    def failure(self, identity: str) -> dict[str, str] | None:
        """Why one failed; KeyError when there is none of that name. Lived again once, unseen."""
        recording, _, i = self._find(identity)
        if identity not in self.reasons:
            (lived,) = self.replayer(
                recording.sim,
                [int(recording.seed[i])],
                [episode_actions(recording)[i]],
                render=False,
            )
            self.reasons[identity] = failure_payload(lived)
        return self.reasons[identity]

    def _find(self, identity: str) -> tuple[EpisodeRecording, str, int]:
        """The recording that holds an episode, its name, and the episode's number in it; KeyError
        when none does."""
        name, _, number = identity.rpartition("/")
        path = self.run / f"{name}.safetensors"
        if (
            path not in self.recordings
            or not number.isdigit()
            or int(number) >= len(self.recordings[path].seed)
        ):
            raise KeyError(identity)
        return self.recordings[path], name, int(number)

    def list_episodes(self) -> dict[str, Any]:
        """What the page lists: a line for every episode, and why each recording that is left out
        is."""
        return {"list": self.summaries(), "left_out": list(self.left_out.values())}

    def page_data(self, limit: int) -> dict[str, Any]:
        """The first `limit` episodes with all there is to play them, for a page that opens from
        disk."""
        found = self.list_episodes()
        lines = found["list"][:limit]
        return {
            **found,
            "list": lines,
            "details": {line["id"]: self.episode(line["id"]) for line in lines},
        }
