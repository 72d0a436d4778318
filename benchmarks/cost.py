"""What an extraction costs, from what its stages cost: time, machines, bytes, requests, money."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cfer.codec import CodecSettings
from cfer.video.pictures import windows

# Of the requests that an object store charges for (PUT and LIST; GET and HEAD), what a shard of
# --out takes, and what a clip as a source does, counted at a server.
PUTS_OF_A_SHARD, PUTS_OF_A_CLIP = 9, 0
GETS_OF_A_SHARD, GETS_OF_A_CLIP = 10, 6
# Each source is read for its digest, and then to be extracted.
READS_OF_A_SOURCE = 2


@dataclass(frozen=True)
class Clip:
    """What there is to do for one clip, on average.

    Attributes:
        frames: of the video.
        encoded: how many of them are encoded.
        windows: its rows in the shards; a long video is cut.
        bytes_in, bytes_out: of the video, and of its part of the shards and their records.
    """

    frames: float
    encoded: float
    windows: float
    bytes_in: float
    bytes_out: float

    def of_length(self, frames: int, settings: CodecSettings, window_frames: int) -> Clip:
        """The same kind of video, with so many frames."""
        spans = windows(frames, window_frames)
        encoded = sum(len(settings.encoded_frames(len(span))) for span in spans)
        return replace(
            self,
            frames=frames,
            encoded=encoded,
            windows=len(spans),
            bytes_in=self.bytes_in * frames / self.frames,
            bytes_out=self.bytes_out * encoded / self.encoded,
        )


@dataclass(frozen=True)
class Costs:
    """Measured costs.

    Attributes:
        frame: core-seconds to decode a frame of the video, and to crop it where it is encoded.
        window: core-seconds to find the face in a window.
        encoded: core-seconds to encode a frame and to read its residual.
        identity: core-seconds to embed an I-frame of a window.
        row: core-seconds to write a row of a shard.
        megabyte: core-seconds to hash a megabyte of a source.
        start: seconds until the first clip is begun, and after the last.
        shard: seconds that a worker takes for a shard besides all this: Ray, the store, waiting.
        driver: core-seconds of the process that plans and collects, per clip.
        driver_bytes: of its memory, per clip.
    """

    frame: float
    window: float
    encoded: float
    identity: float
    row: float
    megabyte: float
    start: float = 0.0
    shard: float = 0.0
    driver: float = 0.0
    driver_bytes: float = 0.0

    def clip_seconds(self, clip: Clip) -> float:
        """Core-seconds of a clip's own work."""
        return (
            self.frame * clip.frames
            + self.window * clip.windows
            + self.encoded * clip.encoded
            + self.identity * clip.windows
            + self.row * clip.windows
            + self.megabyte * clip.bytes_in / 1e6
        )

    def shard_seconds(self, clip: Clip, clips_per_shard: int) -> float:
        return clips_per_shard * self.clip_seconds(clip) + self.shard

    def job_seconds(self, clip: Clip, clips: int, clips_per_shard: int, workers: int) -> float:
        """How long one job takes: its workers are given a shard each, until there is none left."""
        shards = math.ceil(clips / clips_per_shard)
        turns = math.ceil(shards / workers)
        return self.start + turns * self.shard_seconds(clip, clips_per_shard)

    def fitted(
        self,
        clip: Clip,
        clips_per_shard: int,
        workers: int,
        shard_seconds: float,
        runs: Sequence[tuple[int, float]],
    ) -> Costs:
        """With the `shard` that makes a shard take a worker so long, and the mean `start` of runs
        (clips, seconds)."""
        turns = [math.ceil(math.ceil(clips / clips_per_shard) / workers) for clips, _ in runs]
        starts = [seconds - n * shard_seconds for n, (_, seconds) in zip(turns, runs, strict=True)]
        return replace(
            self,
            start=statistics.mean(starts),
            shard=shard_seconds - clips_per_shard * self.clip_seconds(clip),
        )


@dataclass(frozen=True)
class Assumptions:
    """What is not measured. The prices are assumptions, not quotations: give your own.

    Attributes:
        hours: within which it is to be done.
        cores: of a machine.
        core_hour: price of a core for an hour.
        puts, gets: price of 1,000 requests that write or list, and that read.
        gb_month: price of storing a GB for a month.
        driver_gb: memory that a job's driver may take.
    """

    hours: float = 24.0
    cores: int = 16
    core_hour: float = 0.05
    puts: float = 0.005
    gets: float = 0.0004
    gb_month: float = 0.023
    driver_gb: float = 16.0


@dataclass(frozen=True)
class Prediction:
    """What so many clips take; money in the currency of the prices."""

    clips: int
    jobs: int
    machines: int
    hours: float
    core_hours: float
    bytes_read: float
    bytes_out: float
    files: int
    puts: int
    gets: int
    money_cores: float
    money_requests: float
    money_storage_month: float

    @property
    def money(self) -> float:
        return self.money_cores + self.money_requests


def predict(
    costs: Costs, clip: Clip, clips: int, clips_per_shard: int, planned: int, given: Assumptions
) -> Prediction:
    """The machines that do it in time, and what that costs; machines are paid while they start.

    Args:
        clips_per_shard: of the runs that the costs are from. Much of `Costs.shard` is the machine's
            being shared, which larger shards don't spare: so the time is that of such shards.
        planned: clips that the job puts into a shard of a set of this size.
    """
    work = math.ceil(clips / clips_per_shard) * costs.shard_seconds(clip, clips_per_shard)
    shards = math.ceil(clips / planned)
    time_left = max(3600 * given.hours - costs.start, 1.0)
    machines = math.ceil(work / (given.cores * time_left))
    hours = (costs.start + work / (machines * given.cores)) / 3600
    core_hours = hours * machines * given.cores
    puts = shards * PUTS_OF_A_SHARD + clips * PUTS_OF_A_CLIP
    gets = shards * GETS_OF_A_SHARD + clips * GETS_OF_A_CLIP
    # A driver is one process: it can't do more than an hour's work in an hour.
    jobs = max(
        clips * costs.driver_bytes / (1e9 * given.driver_gb),
        clips * costs.driver / (3600 * hours),
    )
    return Prediction(
        clips=clips,
        jobs=max(1, math.ceil(jobs)),
        machines=machines,
        hours=hours,
        core_hours=core_hours,
        bytes_read=clips * clip.bytes_in * READS_OF_A_SOURCE,
        bytes_out=clips * clip.bytes_out,
        files=2 * shards,
        puts=puts,
        gets=gets,
        money_cores=core_hours * given.core_hour,
        money_requests=(puts * given.puts + gets * given.gets) / 1000,
        money_storage_month=clips * clip.bytes_out / 1e9 * given.gb_month,
    )
