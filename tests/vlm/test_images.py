"""Loading images: every pixel mode as a viewer shows it; unusable files are refused by name."""

import hashlib
import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.vlm.images import (
    image_sha256,
    load_image,
    load_image_with_notes,
    pad_to_square,
)

WHERE = "prompts.jsonl, line 3"


def encode(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def gradient(width: int = 64, height: int = 48) -> Image.Image:
    """An image that compresses badly, so that cutting bytes off the file cuts pixels off."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def png(width: int, height: int, bits: int = 8, *, pixels: bytes | None = None) -> bytes:
    """An RGB PNG built by hand; without `pixels` it has a size and no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    body = b"" if pixels is None else chunk(b"IDAT", zlib.compress(pixels))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def pixel_of(data: bytes) -> tuple[int, ...]:
    image = load_image(data, where=WHERE)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def palette(colour: str, **options: object) -> bytes:
    return encode(Image.new("RGB", (2, 2), colour).convert("P"), **options)


def grey16(value: int) -> Image.Image:
    return Image.fromarray(np.full((2, 2), value, dtype=np.uint16))


# --- pixel modes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(encode(Image.new("RGB", (2, 2), (1, 2, 3))), (1, 2, 3), id="RGB"),
        pytest.param(encode(Image.new("L", (2, 2), 77)), (77, 77, 77), id="grey"),
        pytest.param(encode(Image.new("1", (2, 2), 1)), (255, 255, 255), id="bitmap"),
        pytest.param(palette("red"), (255, 0, 0), id="palette"),
        pytest.param(
            encode(Image.new("RGBA", (2, 2), (200, 0, 0, 0))), (255, 255, 255), id="transparent"
        ),
        pytest.param(
            encode(Image.new("RGBA", (2, 2), (0, 0, 0, 51))), (204, 204, 204), id="a fifth black"
        ),
        pytest.param(encode(Image.new("LA", (2, 2), (9, 0))), (255, 255, 255), id="grey and alpha"),
        pytest.param(
            encode(Image.new("P", (2, 2), 0), transparency=0), (255, 255, 255), id="palette key"
        ),
        pytest.param(
            encode(Image.new("RGB", (2, 2), (5, 5, 5)), transparency=(5, 5, 5)),
            (255, 255, 255),
            id="RGB key",
        ),
        pytest.param(
            encode(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "TIFF"), (255, 0, 0), id="CMYK"
        ),
        pytest.param(encode(grey16(65535)), (255, 255, 255), id="16-bit white"),
        pytest.param(encode(grey16(128 * 257)), (128, 128, 128), id="16-bit grey"),
        pytest.param(encode(grey16(1000), "TIFF"), (4, 4, 4), id="16-bit TIFF"),
        pytest.param(b"P5 1 1 65535\n\xff\xff", (255, 255, 255), id="16-bit PGM"),
        pytest.param(
            encode(Image.new("YCbCr", (8, 8), (128, 128, 128)), "JPEG"), (128,) * 3, id="YCbCr"
        ),
        pytest.param(
            encode(Image.new("RGB", (2, 2), (1, 2, 3)), "WEBP", lossless=True), (1, 2, 3), id="WEBP"
        ),
    ],
)
def test_every_mode_becomes_the_rgb_a_viewer_shows(data, expected):
    """51 / 255 = one fifth of black over white: 204. 16 bits scale by 257: 1000 / 257 = 3.9."""
    assert pixel_of(data) == expected


def test_a_cmyk_jpeg_keeps_its_colour():
    red, green, blue = pixel_of(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert red > 240
    assert max(green, blue) < 15


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixel_of(data) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, file_format: str):
    """Stored 32 x 16, upper left quarter white; a viewer shows it as EXIF 2.3 (tag 274) says."""
    image = Image.new("RGB", (32, 16))
    image.paste("white", (0, 0, 16, 8))
    exif = Image.Exif()
    exif[274] = orientation
    shown, notes = load_image_with_notes(encode(image, file_format, exif=exif), where=WHERE)
    assert notes == (() if orientation == 1 else ("exif-orientation",))
    turned = orientation > 4
    assert shown.size == ((16, 32) if turned else (32, 16))
    corner = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}[orientation]
    x, y = (shown.width - 1) * (corner[1] == "r"), (shown.height - 1) * (corner[0] == "b")
    assert min(shown.getpixel((x, y))) > 240
    assert max(shown.getpixel((shown.width - 1 - x, y))) < 15
    assert max(shown.getpixel((x, shown.height - 1 - y))) < 15


TURNED = b"II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00"
pillow_may_warn = pytest.mark.filterwarnings("ignore::UserWarning")


@pillow_may_warn
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("exif", "expected"),
    [
        (TURNED + bytes(4), "exif-orientation"),
        (TURNED[:-4], "exif-unreadable"),
        (b"\x00\x08\x00\x02" + TURNED, "exif-unreadable"),
        (b"no TIFF header", "exif-unreadable"),
    ],
)
def test_exif_data_that_cannot_be_read_gives_no_orientation(
    file_format: str, exif: bytes, expected: str
):
    """Stored 32 x 16; the whole data says "turned by a quarter", so it is shown 16 x 32."""
    data = encode(Image.new("RGB", (32, 16)), file_format, exif=b"Exif\x00\x00" + exif)
    shown, notes = load_image_with_notes(data, where=WHERE)
    assert notes == (expected,)
    assert shown.size == ((16, 32) if expected == "exif-orientation" else (32, 16))


@pillow_may_warn
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP"]),
    st.binary(max_size=60) | st.binary(max_size=20).map(TURNED.__add__),
    st.integers(0, 60),
)
@settings(max_examples=80, deadline=None)
def test_no_exif_data_makes_an_intact_image_unusable(file_format: str, exif: bytes, cut: int):
    data = encode(Image.new("RGB", (32, 16)), file_format, exif=b"Exif\x00\x00" + exif[:cut])
    shown, _ = load_image_with_notes(data, where=WHERE)
    assert sorted(shown.size) == [16, 32]


def animation(file_format: str) -> bytes:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime")]
    options = {"save_all": True, "append_images": frames[1:], "lossless": True}
    return encode(frames[0], file_format, **options)


def upside_down_cmyk() -> bytes:
    exif = Image.Exif()
    exif[274] = 3
    return encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", exif=exif)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(encode(gradient()), (), id="RGB PNG"),
        pytest.param(encode(gradient(), "JPEG"), (), id="JPEG"),
        pytest.param(encode(Image.new("RGBA", (2, 2), (9, 9, 9, 255))), (), id="opaque alpha"),
        pytest.param(
            encode(Image.new("RGBA", (2, 2), (9, 9, 9, 254))), ("alpha-over-white",), id="alpha"
        ),
        pytest.param(
            encode(Image.new("P", (2, 2), 0), transparency=0),
            ("alpha-over-white", "palette"),
            id="palette key",
        ),
        pytest.param(palette("red"), ("palette",), id="palette"),
        pytest.param(encode(Image.new("1", (2, 2), 1)), ("grey",), id="bitmap"),
        pytest.param(encode(Image.new("L", (2, 2), 7)), ("grey",), id="grey"),
        pytest.param(
            encode(Image.new("LA", (2, 2), (9, 0))), ("alpha-over-white", "grey"), id="grey, alpha"
        ),
        pytest.param(encode(grey16(1000)), ("16-bit", "grey"), id="16-bit grey"),
        pytest.param(b"P5 1 1 65535\n\xff\xff", ("16-bit", "grey"), id="16-bit PGM"),
        pytest.param(
            png(1, 1, 16, pixels=b"\x00" + b"\x80\x01" * 3), ("16-bit",), id="16-bit colours"
        ),
        pytest.param(
            encode(Image.new("CMYK", (2, 2), (0, 9, 9, 0)), "TIFF"), ("cmyk",), id="CMYK TIFF"
        ),
        pytest.param(upside_down_cmyk(), ("exif-orientation", "cmyk"), id="turned CMYK JPEG"),
        pytest.param(encode(Image.new("LAB", (2, 2)), "TIFF"), ("lab",), id="LAB"),
        pytest.param(animation("GIF"), ("first-frame", "palette"), id="animated GIF"),
        pytest.param(animation("PNG"), ("first-frame",), id="animated PNG"),
        pytest.param(animation("WEBP"), ("first-frame",), id="animated WEBP"),
        pytest.param(animation("TIFF"), ("first-frame",), id="pages of a TIFF"),
    ],
)
def test_what_was_done_to_an_image_is_noted(data: bytes, expected: tuple[str, ...]):
    assert load_image_with_notes(data, where=WHERE)[1] == expected


def test_a_damaged_second_frame_does_not_affect_the_first():
    data = animation("GIF")
    second = data.rindex(b"\x2c")  # the last image descriptor
    for end in range(second, len(data)):
        image, notes = load_image_with_notes(data[:end], where=WHERE)
        assert image.getpixel((0, 0)) == (255, 0, 0)
        assert "palette" in notes
    assert "first-frame" in notes


def test_a_path_and_its_bytes_give_the_same_image(tmp_path: Path):
    path = tmp_path / "a picture.png"
    path.write_bytes(encode(gradient()))
    expected = np.asarray(gradient())
    for source in (path, str(path), path.read_bytes()):
        np.testing.assert_array_equal(np.asarray(load_image(source, where=WHERE)), expected)


def test_real_photographs_have_the_size_of_their_annotations(realdata: Path):
    folder = realdata / "refcoco_images"
    annotated = {
        row["image"]: (row["width"], row["height"])
        for row in json.loads((folder / "refs.json").read_text())
    }
    assert len(annotated) == 4
    for name, size in annotated.items():
        assert load_image(folder / name, where="refs.json").size == size


# --- unusable files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"not an image at all", "not an image", id="text"),
        pytest.param(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image", id="EPS"
        ),
        pytest.param(encode(gradient())[:3000], "cannot be decoded", id="truncated PNG"),
        pytest.param(encode(gradient(), "JPEG")[:1500], "cannot be decoded", id="truncated JPEG"),
        pytest.param(encode(gradient(), "BMP")[:1500], "cannot be decoded", id="truncated BMP"),
        pytest.param(encode(gradient(), "WEBP")[:1500], "cannot be decoded", id="truncated WEBP"),
        pytest.param(encode(gradient())[:40], "damaged at its start", id="header only"),
        pytest.param(b"GIF89a" + bytes(7) + b";", "", id="GIF without a frame"),
        pytest.param(png(0, 5), "", id="zero width"),
        pytest.param(b"P6 0 0 255\n", "", id="zero size"),
        pytest.param(png(9_500, 9_500), "limit", id="above Pillow's warning"),
        pytest.param(png(30_000, 30_000), "limit", id="above Pillow's error"),
        pytest.param(
            encode(Image.new("F", (2, 2), 0.5), "TIFF"), "32-bit pixels", id="floating point"
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_unusable_data_is_refused_by_name(data: bytes, reason: str, tmp_path: Path):
    with pytest.raises(InputError) as error:
        load_image(data, where=WHERE)
    assert error.value.where == WHERE
    assert reason in error.value.what
    path = tmp_path / "broken.png"
    path.write_bytes(data)
    with pytest.raises(InputError) as error:
        load_image(path, where=WHERE)
    assert error.value.where == f"{WHERE}: {path}"
    assert error.value.fix


@pytest.mark.filterwarnings("error")
def test_a_decompression_bomb_is_refused_also_if_warnings_are_errors():
    with pytest.raises(InputError, match="limit"):
        load_image(png(9_500, 9_500), where=WHERE)


def test_a_missing_file_is_refused_by_its_path(tmp_path: Path):
    with pytest.raises(InputError, match="does not exist") as error:
        load_image(tmp_path / "gone.png", where=WHERE)
    assert str(tmp_path / "gone.png") in str(error.value)


def test_a_directory_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="a directory"):
        load_image(tmp_path, where=WHERE)


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="not a regular file"):
        load_image(tmp_path / "pipe.png", where=WHERE)


@pytest.mark.parametrize("name", ["a\0b.png", "x" * 5000])
def test_a_path_the_system_refuses_is_an_input_error(name: str):
    with pytest.raises(InputError):
        load_image(name, where=WHERE)


VALID_FILES = [
    encode(gradient(16, 12), file_format)
    for file_format in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000")
] + [palette("red"), encode(grey16(500)), encode(Image.new("RGBA", (9, 9)), "TIFF")]


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_files_load_or_raise_input_error(data):
    damaged = bytearray(data.draw(st.sampled_from(VALID_FILES)))
    places = st.integers(0, len(damaged) - 1)
    for at, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6)):
        damaged[at] = value
    end = data.draw(st.integers(0, len(damaged)))
    try:
        image = load_image(bytes(damaged[: end or None]), where=WHERE)
    except InputError:
        return
    assert image.mode == "RGB"


# --- padding and hashing -------------------------------------------------------------------------

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)


@pytest.mark.parametrize(
    ("size", "side", "corner"), [((4, 2), 4, (0, 1)), ((2, 5), 5, (1, 0)), ((5, 2), 5, (0, 1))]
)
def test_padding_centres_the_image_on_the_mean_colour(size, side, corner):
    """The released LLaVA: int(.48145466 * 255) = 122, 116, 104; offset (side - edge) // 2."""
    image = Image.new("RGB", size, "white")
    padded = np.asarray(pad_to_square(image, CLIP_MEAN))
    expected = np.full((side, side, 3), (122, 116, 104), dtype=np.uint8)
    x, y = corner
    expected[y : y + size[1], x : x + size[0]] = 255
    np.testing.assert_array_equal(padded, expected)


def test_a_square_image_is_not_padded():
    image = gradient(8, 8)
    np.testing.assert_array_equal(np.asarray(pad_to_square(image, CLIP_MEAN)), np.asarray(image))


def test_a_mean_colour_in_bytes_is_refused():
    with pytest.raises(ConfigError, match="from 0 to 1"):
        pad_to_square(Image.new("RGB", (4, 2)), (122, 116, 104))


def test_the_hash_is_sha256_in_hexadecimal():
    """FIPS 180-2, appendix B.1."""
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert image_sha256(b"abc") == expected
    assert image_sha256(b"") == hashlib.sha256().hexdigest()
