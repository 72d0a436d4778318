"""What decides the content of the shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cfer.errors import InputError
from cfer.options import check_at_least

if TYPE_CHECKING:
    from cfer.codec import CodecSettings

FaceNetwork = Literal["auto", "facenet", "facenet-casia", "dlib"]
# GOPs of 12 frames with the encoder's own motion search, as CoViAR has them (Wu et al., CVPR 2018),
# every frame encoded, in crops of 224 × 224, each once.
PAPER: dict[str, Any] = {"size": 224, "gop_size": 12, "gop_seconds": 0.0, "views": 1}


@dataclass(frozen=True)
class ExtractionSettings:
    """How a clip is cut, encoded and embedded."""

    # The comment on each field is its help text on the command line.
    size: int = 112  # side of the face crop, pixels, even
    gop_size: int = 3  # frames from one I-frame to the next, at least 2
    gop_seconds: float = 1.0  # of the video that a GOP stands for; 0: every frame is encoded
    quantizer: int | None = None  # fixed, 1 (finest) to 31; 4 where there is no bit rate
    bit_rate: int | None = None  # bits per second, in place of a quantizer
    motion_search: bool = True  # all motion vectors zero: residuals hold the whole change
    identity: FaceNetwork = "auto"  # frozen face network; auto: FaceNet if its weights can be had
    views: int = 4  # of each clip, in squares that differ a little; training takes one at a time
    native: bool = False  # also store what H.264 files themselves transmit of the face
    window_gops: int = 20  # a longer clip is cut into windows of this many GOPs
    clips_per_shard: int | None = None  # what a kill can lose; not given: some megabytes

    def __post_init__(self) -> None:
        if self.quantizer is None and self.bit_rate is None:
            # Given or not, it is one setting: settings are compared, and are part of digests.
            object.__setattr__(self, "quantizer", 4)

    def checked(self) -> ExtractionSettings:
        """Itself.

        Raises:
            InputError: a value that no clip can be encoded with, or two that exclude each other.
        """
        if self.size < 32 or self.size % 2:
            raise InputError(f"--size {self.size}: give an even number of pixels, 32 or more")
        if self.gop_size < 2:
            raise InputError(
                f"--gop-size {self.gop_size}: give 2 or more; a GOP of 1 has no residual"
            )
        check_at_least(
            1,
            views=self.views,
            window_gops=self.window_gops,
            clips_per_shard=self.clips_per_shard,
        )
        _ = self.codec
        return self

    @property
    def codec(self) -> CodecSettings:
        from cfer.codec import CodecSettings

        return CodecSettings(
            self.gop_size,
            self.quantizer,
            self.bit_rate,
            self.motion_search,
            gop_seconds=self.gop_seconds,
        )
