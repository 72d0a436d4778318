"""What a stranger's video may cost a server. Light, since the help of `cfer serve` imports it."""

from __future__ import annotations

from dataclasses import dataclass

from cfer.options import check_at_least

MOST_FRAMES_A_SECOND = 60


@dataclass(frozen=True)
class Limits:
    """What one video may cost.

    Attributes:
        megabytes: of the file.
        seconds: of the video.
        pixels: of a picture, both as it is coded and as it is shown.
        frames: of the video.
        upload_seconds: for the file to arrive.
        work_seconds: from the file's arrival to the answer, not counting the wait for a reader.
        memory_megabytes: for the work, in addition to what the model takes.
    """

    megabytes: int = 64
    seconds: int = 60
    pixels: int = 4096 * 2304
    frames: int = 60 * MOST_FRAMES_A_SECOND
    upload_seconds: int = 120
    work_seconds: int = 120
    memory_megabytes: int = 2000

    @classmethod
    def of(cls, max_megabytes: int, max_seconds: int, time_limit: int, memory_limit: int) -> Limits:
        """The limits that the options of these names set; InputError: one is less than 1."""
        check_at_least(
            1,
            max_megabytes=max_megabytes,
            max_seconds=max_seconds,
            time_limit=time_limit,
            memory_limit=memory_limit,
        )
        return cls(
            megabytes=max_megabytes,
            seconds=max_seconds,
            frames=max_seconds * MOST_FRAMES_A_SECOND,
            work_seconds=time_limit,
            memory_megabytes=memory_limit,
        )
