"""TIFF files of every kind of number, written by tifffile, with the levels that a person sees."""

import io

import numpy as np
import tifffile

from tests.data.odd_images import OddImage, grey_picture, in_colour, over_white, picture, saved


def _written(values: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def deep_tiffs() -> list[OddImage]:
    """Grey and colour numbers of 8 to 64 bits in both byte orders, packed or compressed, planes together or apart."""
    colour, grey = picture(), grey_picture()
    low, high = float(grey.min()), float(grey.max())
    own_range = in_colour(np.floor((grey - low) * (255 / (high - low)) + 0.5))
    numbers = {
        "uint16": (grey.astype(np.uint16) * 257, grey),
        "uint32": (grey.astype(np.uint32) * 16843009, own_range[..., 0]),
        "int8": ((grey.astype(np.int16) - 128).astype(np.int8), own_range[..., 0]),
        "int16": (grey.astype(np.int16) * 100 - 12000, own_range[..., 0]),
        "int32": (grey.astype(np.int32) * 257, grey),
        "float16": ((grey / 255).astype(np.float16), grey),
        "float32": ((grey / 255).astype(np.float32), grey),
        "float64": (grey / 255, grey),
    }
    files = []
    for kind, (values, shown) in numbers.items():
        for order in "<>":
            for compression in (None, "lzw", "zlib"):
                for photometric in ("minisblack", "miniswhite"):
                    name = f"tiff_{kind}_{'little' if order == '<' else 'big'}_{compression}_{photometric}.tif"
                    data = _written(values, byteorder=order, compression=compression, photometric=photometric)
                    seen = shown if photometric == "minisblack" else 255 - shown.astype(np.float64)
                    files.append(OddImage(name, data, in_colour(seen), 0.1 if kind == "float16" else 0.0))
    alpha = np.full_like(grey, 255)
    alpha[:5] = 0
    alpha[5:9] = 100
    for bits, factor, kind in ((8, 1, np.uint8), (16, 257, np.uint16)):
        deep, deep_grey, clear = (part.astype(kind) * kind(factor) for part in (colour, grey, alpha))
        for order in "<>":
            for compression in (None, "zlib"):
                for planes in ("contig", "separate"):
                    how = {"byteorder": order, "compression": compression, "planarconfig": planes}
                    name = f"tiff_{{}}_{bits}_{'little' if order == '<' else 'big'}_{compression}_{planes}.tif"

                    def stored(values: np.ndarray, planes: str = planes) -> np.ndarray:
                        return values if planes == "contig" else np.ascontiguousarray(np.moveaxis(values, -1, 0))

                    files += [
                        OddImage(name.format("rgb"), _written(stored(deep), photometric="rgb", **how), colour),
                        OddImage(name.format("rgba"), _written(stored(np.dstack([deep, clear])), photometric="rgb",
                                 extrasamples=["unassalpha"], **how), over_white(colour, alpha), 0.6),
                        OddImage(name.format("grey_alpha"), _written(stored(np.dstack([deep_grey, clear])),
                                 photometric="minisblack", extrasamples=["unassalpha"], **how),
                                 over_white(in_colour(grey), alpha), 0.6),
                    ]  # fmt: skip
    twelve = grey.astype(np.uint16) * 16
    shown = in_colour(np.floor(twelve.astype(np.float64) * 255 / 4095 + 0.5))
    packed = _written(twelve, bitspersample=12, photometric="minisblack")
    colors = np.stack([np.arange(256), 255 - np.arange(256), np.full(256, 7)]).astype(np.uint16)
    seen = colors.T[grey].astype(np.uint8)
    return [
        *files,
        OddImage("tiff_12_packed.tif", packed, shown),
        OddImage("tiff_palette_16_bits.tif", _written(grey, photometric="palette", colormap=colors * 257), seen),
        OddImage("tiff_palette_8_bits.tif", _written(grey, photometric="palette", colormap=colors), seen),
        OddImage("tiff_bilevel.tif", _written(grey > 110, photometric="minisblack"),
                 in_colour((grey > 110) * np.uint8(255))),
        OddImage("tiff_tiles.tif", _written(grey.astype(np.uint16) * 257, tile=(16, 16), byteorder=">",
                 photometric="miniswhite", compression="lzw"), in_colour(255 - grey)),
        OddImage("tiff_predictor.tif", _written(grey.astype(np.uint16) * 257, predictor=True, compression="zlib",
                 photometric="minisblack", byteorder=">"), in_colour(grey)),
        OddImage("tiff_float_predictor.tif", _written((grey / 255).astype(np.float32), predictor=True,
                 compression="zlib", photometric="minisblack"), in_colour(grey)),
        OddImage("tiff_bigtiff.tif", _written(grey.astype(np.uint16) * 257, bigtiff=True, photometric="minisblack"),
                 in_colour(grey)),
        OddImage("tiff_zstd.tif", _written(colour, compression="zstd", photometric="rgb"), colour),
    ]  # fmt: skip


def _without_a_strip(data: bytes, tag: str) -> bytes:
    """A file whose second strip has the offset or the byte count 0, where both are stored as 32 bits."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        entry = file.pages[0].tags[tag]
        size = entry.dtype.value  # 3 are numbers of 16 bits, 4 of 32
        width = {3: 2, 4: 4}[size]
        at = entry.valueoffset + width
    return data[:at] + bytes(width) + data[at + width :]


def damaged_tiffs() -> list[OddImage]:
    """Files of kinds that tifffile reads, cut or with a hole."""
    noise = np.random.default_rng(0).integers(0, 65536, (60, 80, 3), np.uint16)
    files = []
    for compression in (None, "lzw", "zlib"):
        whole = _written(
            noise, photometric="rgb", planarconfig="contig", compression=compression, byteorder=">", rowsperstrip=7
        )
        files.append(OddImage(f"tiff_16_{compression}_cut.tif", whole[: len(whole) * 6 // 10], reason="damaged"))
        if compression:
            hole = whole[: len(whole) // 2] + bytes(500) + whole[len(whole) // 2 + 500 :]
            files.append(OddImage(f"tiff_16_{compression}_hole.tif", hole, reason="damaged"))
    eight = saved((noise >> 8).astype(np.uint8), "TIFF", compression="tiff_lzw")
    files.append(OddImage("tiff_8_lzw_hole.tif", eight[:4000] + bytes(500) + eight[4500:], reason="damaged"))
    kinds = {
        "planes_apart": _written(np.moveaxis(noise, 2, 0), photometric="rgb", planarconfig="separate", rowsperstrip=20),
        "miniswhite": _written(noise[..., 0], photometric="miniswhite", rowsperstrip=20),
        "uint32": _written(noise[..., 0].astype(np.uint32), photometric="minisblack", rowsperstrip=20),
    }
    for kind, whole in kinds.items():
        files.append(OddImage(f"tiff_{kind}_cut.tif", whole[: len(whole) * 6 // 10], reason="damaged"))
        for tag in ("StripOffsets", "StripByteCounts"):
            files.append(OddImage(f"tiff_{kind}_no_{tag}.tif", _without_a_strip(whole, tag), reason="1 without pixels"))
    five = _written(np.zeros((9, 9, 5), np.uint8), photometric="minisblack", planarconfig="contig")
    files.append(OddImage("tiff_five_channels.tif", five, reason="It has 5 channels that are no colours"))
    return files
