"""Load and check an image: RGB, upright, complete, or an error that names it.

Notes say what was done to a file; `perpo prepare` records them with every prompt: `first-frame` (of
an animation or a file with several pages), `exif-orientation` (turned or mirrored),
`exif-unreadable` (no orientation known, so the image is as it is stored), `16-bit` (reduced to 8
bits per channel), `alpha-over-white` (some pixel was not opaque), and the colours if they were not
RGB: `palette`, `grey`, `cmyk` or another of Pillow's modes in lower case.
"""

import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from perpo_pipeline.errors import ConfigError, InputError

# Formats of photographs and scans; none that needs another program (EPS starts Ghostscript).
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")

# What Pillow's decoders raise for damaged data, found with damaged files.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)

# How a stored image becomes upright, by EXIF orientation (Exif 3.0, tag 274).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow's mode -> note; a mode that is not listed is its own note.
_COLOUR_NOTES = {
    **dict.fromkeys(("RGB", "RGBA", "RGBX", "RGBa"), ""),
    **dict.fromkeys(("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"), "grey"),
    **dict.fromkeys(("P", "PA"), "palette"),
}


def load_image(source: str | Path | bytes, *, where: str) -> Image.Image:
    """Like `load_image_with_notes`, but only the image."""
    return load_image_with_notes(source, where=where)[0]


def load_image_with_notes(
    source: str | Path | bytes, *, where: str
) -> tuple[Image.Image, tuple[str, ...]]:
    """Load a whole image file, given by path or as bytes, as RGB in the way a viewer shows it.

    EXIF orientation is applied, so width and height are those of the upright image; EXIF data that
    cannot be read gives no orientation. Transparent pixels are put on white, 16-bit grey is scaled
    to 8 bits, only the first frame of an animation is read, and palette, grey and CMYK are
    converted; the notes say which of these were done.

    Raises InputError, naming `where` (the file and row that need the image) and the path, if the
    file is missing, a directory, empty, truncated, not an image, without pixels, or has more pixels
    than Pillow's limit against decompression bombs.
    """
    if not isinstance(source, bytes):
        where = where if str(source) in where else f"{where}: {source}"
        source = _read_file(Path(source), where)
    if not source:
        raise _unusable("the image file is empty", where)
    Image.init()  # loads the plugins; a build of Pillow may lack one
    formats = [name for name in IMAGE_FORMATS if name in Image.OPEN]
    try:
        with Image.open(io.BytesIO(source), formats=formats) as image:
            _check_pixels(image, where)
            # Check before the pixels are decoded: decoding turns a TIFF, and reduces colours with
            # 16 bits to 8.
            is_deep, orientation = _is_deep(image), _orientation(image)
            image.load()
            is_16_bit = _is_16_bit(image)  # the upright copy no longer knows its file format
            upright = image if orientation is None else _upright(image)
            rgb, is_blended = _to_rgb(upright, is_16_bit, where)
            colours = _COLOUR_NOTES.get(image.mode, image.mode.lower())
            notes = {
                "first-frame": _has_more_frames(image),
                "exif-orientation": orientation in _UPRIGHT,
                "exif-unreadable": orientation is None,
                "16-bit": is_16_bit or is_deep,
                "alpha-over-white": is_blended,
                colours: bool(colours),
            }
            return rgb, tuple(note for note, holds in notes.items() if holds)
    except UnidentifiedImageError as error:
        reason = f"it is not an image in one of {', '.join(formats)}, or is damaged at its start"
        raise _unusable(reason, where) from error
    except _DECODER_ERRORS as error:
        raise _unusable(f"the image cannot be decoded: {error}", where) from error


def image_sha256(data: bytes) -> str:
    """The SHA-256 of an image file's bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def pad_to_square(image: Image.Image, mean_rgb: tuple[float, float, float]) -> Image.Image:
    """Put an RGB image in the centre of a square of the mean colour; a square stays as it is.

    `mean_rgb` is the image processor's `image_mean`, each in [0, 1], else ConfigError. If the edges
    differ by an odd number, the right or lower margin is wider, as in the frame `pad` of boxes.
    Source: `expand2square` of LLaVA, which also rounds the colour down.
    """
    if not all(0 <= channel <= 1 for channel in mean_rgb):
        raise ConfigError(f"the mean colour {mean_rgb} must be three numbers from 0 to 1")
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    red, green, blue = (int(channel * 255) for channel in mean_rgb)
    square = Image.new("RGB", (side, side), (red, green, blue))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def _unusable(reason: str, where: str) -> InputError:
    return InputError(reason, where=where, fix="replace the file, or remove the row from the data")


def _read_file(path: Path, where: str) -> bytes:
    try:
        if not path.exists():
            raise _unusable("the image file does not exist", where)
        if not path.is_file():  # reading a pipe or a device could wait forever
            kind = "a directory" if path.is_dir() else "not a regular file"
            raise _unusable(f"the image path is {kind}", where)
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise _unusable(f"the image file cannot be read: {error}", where) from error


def _check_pixels(image: Image.Image, where: str) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise _unusable(f"the image has no pixels ({width}x{height})", where)
    # Up to twice its limit Pillow only warns.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise _unusable(
            f"the image has {width}x{height} pixels, more than the limit of {limit}", where
        )


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether colours have 16 bits per channel, of which Pillow decodes the upper 8."""
    return image.format in ("PNG", "TIFF") and ";16" in str(image.tile)


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation, 1 if the file gives none; None if its EXIF data cannot be read."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DECODER_ERRORS:
        return None
    if found in _UPRIGHT:
        return int(found)
    return 1 if _is_readable_exif(image.info.get("exif")) else None


def _is_readable_exif(exif: object) -> bool:
    """Whether EXIF data has its header and all entries of its first directory (TIFF 6.0).

    Pillow reads as far as it can, and for some formats without an error.
    """
    if not isinstance(exif, bytes) or not exif:
        return True  # there is none, or it is a TIFF's own directory, which Pillow has read
    tiff = exif.removeprefix(b"Exif\x00\x00")
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(tiff[:4])
    if order is None:
        return False
    try:
        start = int(struct.unpack_from(f"{order}L", tiff, 4)[0])
        count = int(struct.unpack_from(f"{order}H", tiff, start)[0])
    except struct.error:
        return False
    return len(tiff) >= start + 2 + 12 * count


def _upright(image: Image.Image) -> Image.Image:
    """The decoded image as a viewer shows it; the EXIF data is not written again."""
    method = _UPRIGHT.get(_orientation(image) or 1)
    return image if method is None else image.transpose(method)


def _has_more_frames(image: Image.Image) -> bool:
    """Whether the file has a second frame; the check may move the image to that frame."""
    try:
        return bool(getattr(image, "is_animated", False))
    except _DECODER_ERRORS:
        return True  # the second frame is damaged, and not needed


def _is_16_bit(image: Image.Image) -> bool:
    """Whether grey values are 0 to 65535; Pillow may hold those of PNG and PGM in 32 bits."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _to_rgb(image: Image.Image, is_16_bit: bool, where: str) -> tuple[Image.Image, bool]:
    """The image as RGB, and whether a transparent pixel was put on white."""
    if is_16_bit:
        grey = np.asarray(image, dtype=np.float64) / 257  # 65535 -> 255
        return Image.fromarray(np.rint(grey).astype(np.uint8)).convert("RGB"), False
    if image.mode in ("I", "F"):
        raise _unusable("the image has 32-bit pixels, whose range is unknown", where)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        is_blended = bool(np.asarray(layer)[..., 3].min() < 255)
        return Image.alpha_composite(white, layer).convert("RGB"), is_blended
    return image.convert("RGB"), False
