import numpy as np
import pytest
import torch
from PIL import Image

from setwise.data import IMAGE_EXTENSIONS, images
from setwise.data.folders import scan
from setwise.data.images import decode, decode_all, fits_in_memory
from setwise.errors import DataError

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK", "RGB"])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image = Image.fromarray(GREY)
    (image.convert("RGB").convert(mode) if mode != "LA" else image.convert("LA")).save(path)
    decoded = decode(path)
    assert decoded.shape == (3, 6, 8)
    assert decoded.dtype == torch.uint8
    if mode in ("L", "RGB", "RGBA", "LA", "CMYK"):
        assert (decoded.int() - torch.from_numpy(GREY).int()).abs().max() <= 1


def test_16_bit_images_keep_their_upper_8_bits(tmp_path):
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "image.png")
    assert torch.equal(decode(tmp_path / "image.png"), torch.from_numpy(GREY).expand(3, -1, -1))


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_of_32_bits_are_refused_rather_than_black(tmp_path, kind):
    Image.fromarray((GREY / 255).astype(kind)).save(tmp_path / "image.tif")
    with pytest.raises(DataError, match=r"image.tif cannot be read as an image \(its pixels are numbers of 32 bits"):
        decode(tmp_path / "image.tif")


def test_a_palette_with_transparency_converts_without_a_warning(tmp_path, recwarn):
    image = Image.fromarray(GREY).convert("P")
    image.info["transparency"] = bytes(range(256))
    image.save(tmp_path / "image.png")
    assert decode(tmp_path / "image.png").shape == (3, 6, 8)
    assert not recwarn.list


def test_a_truncated_image_is_named(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "half.jpg")
    content = (tmp_path / "half.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"half.jpg cannot be read as an image \(.*truncated"):
        decode(tmp_path / "half.jpg")


def test_threads_decode_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "THREADED_PIXELS", 1)
    paths = []
    for number in range(20):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(GREY + number).save(paths[-1])
    decoded = decode_all([*paths, tmp_path / "none.png"])
    assert all(torch.equal(decoded[number], decode(paths[number])) for number in range(20))
    assert isinstance(decoded[20], DataError)


def test_auto_keeps_small_sets_in_memory_and_large_ones_in_files(tmp_path, monkeypatch):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    paths = [tmp_path / "a.png"] * 10
    monkeypatch.setattr(images, "MEMORY_BYTES", 10 * GREY.size * 3)
    assert fits_in_memory(paths, "auto")
    monkeypatch.setattr(images, "MEMORY_BYTES", 10 * GREY.size * 3 - 1)
    assert not fits_in_memory(paths, "auto")
    assert fits_in_memory(paths, "memory")


def test_the_public_extensions_are_those_that_training_reads(tmp_path):
    for number, extension in enumerate(IMAGE_EXTENSIONS):
        for name in (f"{number}{extension}", f"{number}{extension.upper()}", f"{number}{extension}.txt"):
            (tmp_path / "cat").mkdir(exist_ok=True)
            (tmp_path / "cat" / name).write_bytes(b"x")
    found, ignored = scan(tmp_path)
    assert (len(found["cat"]), ignored) == (2 * len(IMAGE_EXTENSIONS), len(IMAGE_EXTENSIONS))
    assert all(extension == extension.lower() and extension.startswith(".") for extension in IMAGE_EXTENSIONS)
