"""Read the residuals of a video, and encode fixed-GOP bitstreams. It needs PyAV and NumPy alone."""

from cfer.codec.bitstream import MOTION_VECTOR_DTYPE, Bitstream, Gop, Residual, read_gops, residuals
from cfer.codec.encode import CodecSettings, encode, spelled_as_now
from cfer.codec.format import GRAY, MACROBLOCK, CodecError

__all__ = [
    "GRAY",
    "MACROBLOCK",
    "MOTION_VECTOR_DTYPE",
    "Bitstream",
    "CodecError",
    "CodecSettings",
    "Gop",
    "Residual",
    "encode",
    "read_gops",
    "residuals",
    "spelled_as_now",
]
