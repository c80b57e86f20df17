"""Embeddings on disk: ``.npz`` or Parquet, written block by block, and opened without reading the features.

``numpy.load`` opens the ``.npz``. Its array ``features`` is stored uncompressed, at an offset that numpy can map into
memory; the other columns are compressed. In both formats ``about`` is JSON: an array of one text, or the entry ``finetune``
in Parquet's metadata.
"""

import json
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from finetune.atomic_files import atomic_path
from finetune.errors import UserError, first_line
from finetune.inference.prediction_table import check_file
from finetune.safe_files import check_regular, need, parse_json
from finetune.terminal import encodable

# N = images, D = features

Features = npt.NDArray[np.floating[Any]]

SUFFIXES = (".npz", ".parquet")
FORMAT = 1
_TEXTS = ("path", "label", "split", "content")
_FIELDS = ("paths", "labels", "splits", "contents")
_METADATA = b"finetune"
_ROWS = 8192
# largest number of bytes read at once from a text column (four per character), and from the metadata
_LARGEST_READ = 16 * 2**20
_LARGEST_ABOUT = 64 * 2**20
# equal rows in a Parquet file take almost no bytes, but their features in memory do
_MOST_BYTES = 2**40
# keys of the metadata and their types; embeddings from other sources may lack any of them
_ABOUT: dict[str, type | tuple[type, ...]] = {
    "model": (dict, type(None)),
    "stage": (str, type(None)),
    "stages": (list, type(None)),
    "reading": (dict, type(None)),
    "precision": (str, type(None)),
    "normalize": (bool, type(None)),
    "whitening": (dict, type(None)),
    "classes": (list, type(None)),
    "multi_label": (bool, type(None)),
    "data": (dict, str, type(None)),
    "fingerprint": (str, type(None)),
    "skipped": (int, type(None)),
}
# header of an archive member that may exceed 4 GB: fixed header, name, and sizes before the data
_MEMBER_HEADER, _MEMBER_SIZES = 30, 20
# features start at a multiple of this in the file, as they would in memory; .npy headers keep the same alignment
_ALIGN = 64
# id of the extra field with which Android archives pad their members
_PADDING = 0xD935


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some rows that are written to a file or read from one.

    Args:
        paths: Absolute path of each image, or the stable name of an image that is not a file.
        labels: Class of each image, empty for none; several are joined by ``|``.
        splits: ``train``, ``val``, ``test`` or empty.
        contents: BLAKE2b digest of each file's bytes, 32 hexadecimal digits.
        features: Features (N, D).
    """

    paths: Sequence[str]
    labels: Sequence[str]
    splits: Sequence[str]
    contents: Sequence[str]
    features: Features


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredEmbeddings:
    """An open file of embeddings.

    Args:
        features: (N, D), mapped from the file; for a Parquet file they are complete once all blocks have been read.
        blocks: Rows in blocks; can be read once.
        metadata: Origin of the features; plain JSON values.
    """

    features: Features
    blocks: Iterator[Block]
    metadata: Mapping[str, Any]


def check_embeddings_path(path: Path, *, name: str) -> None:
    """Check that embeddings can be written to a path.

    Raises:
        UserError: The suffix is unknown, the path is a folder, or the Parquet library is missing.
    """
    check_file(path, suffixes=SUFFIXES, name=name)


def check_embeddings_file(path: str | Path) -> Path:
    """Check that a file of embeddings exists, by its name only, and return its path.

    Raises:
        UserError: The file is missing, or its suffix is unknown.
    """
    full = Path(path).expanduser()
    if not os.path.lexists(full):
        raise UserError(
            f"EMBEDDINGS='{path}': no such file. Make one with: finetune embed RUN IMAGES --output FILE.npz"
        )
    check_regular(full, name=f"EMBEDDINGS='{path}'")
    check_embeddings_path(full, name="EMBEDDINGS")
    return full


def write_embeddings(path: Path, blocks: Iterable[Block], *, metadata: Mapping[str, Any]) -> int:
    """Write blocks atomically; memory use does not grow with their number.

    Returns:
        Number of rows.
    """
    check_embeddings_path(path, name="--output")
    metadata = {"format": FORMAT, **metadata}
    with atomic_path(path) as part:
        return (_write_npz if path.suffix == ".npz" else _write_parquet)(part, blocks, metadata)


@contextmanager
def open_embeddings(path: Path) -> Iterator[StoredEmbeddings]:
    """Open a file; its rows are checked as they are read, and its features at the end.

    Raises:
        UserError: The file is missing, damaged, or not a file of embeddings.
    """
    check_embeddings_file(path)
    try:
        with (_open_npz if path.suffix == ".npz" else _open_parquet)(path) as stored:
            if len(stored.features) and 0 in stored.features.shape[1:]:
                raise ValueError("Its features have no columns.")
            yield stored
            _check_finite(stored.features)
    except UserError:
        raise
    # raised by a damaged archive, header, JSON text or Parquet file (ArrowException is a ValueError or an OSError)
    except (
        *(ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile, struct.error, zlib.error),
        *(NotImplementedError, AttributeError, RuntimeError, MemoryError, AssertionError),
    ) as error:
        why = first_line(error)
        raise UserError(
            f"EMBEDDINGS='{path}': cannot be read as finetune embeddings. {why} Make them again with: finetune embed"
        ) from error


def _check_finite(features: Features) -> None:
    """Check that all features are finite: a row with NaN or infinity would be the nearest image of every query, or of none."""
    for start in range(0, len(features), _ROWS):
        sound = np.isfinite(features[start : start + _ROWS]).all(axis=1)
        if not sound.all():
            raise ValueError(f"Row {start + int(np.flatnonzero(~sound)[0])} holds features that are not finite.")


def _described(text: str | bytes, path: Path) -> Mapping[str, Any]:
    metadata = parse_json(text, dict, name=f"EMBEDDINGS='{path}'")
    if type(metadata.get("format")) is not int:
        raise UserError(f"EMBEDDINGS='{path}': is not a file of finetune embeddings.")
    if metadata["format"] > FORMAT:
        raise UserError(
            f"EMBEDDINGS='{path}': format {metadata['format']} is newer than this program reads ({FORMAT}). Upgrade."
        )
    name = f"EMBEDDINGS='{path}'"
    need(metadata, {key: kind for key, kind in _ABOUT.items() if key in metadata}, name=name)
    classes = metadata.get("classes") or []
    if not all(isinstance(label, str) for label in classes) or len(set(classes)) != len(classes):
        raise UserError(f"{name}: damaged. Its classes must be different names.")
    if metadata.get("reading") is not None:
        # imports torch, so it comes after the checks that report a wrong path
        from finetune.inference.decode_options import recorded_options

        recorded_options(metadata["reading"], channels=3, name=name)
    return metadata


def _write_npz(part: Path, blocks: Iterable[Block], metadata: Mapping[str, Any]) -> int:
    """Write columns to temporary files first, because text widths and the number of rows are known only at the end.

    ``numpy.savez`` takes whole arrays, so that all texts would be in memory at the greatest width; and it does not align its
    members, while the features here start at a multiple of 64 bytes and can be mapped by numpy.
    """
    with ExitStack() as stack:
        features, *texts = [stack.enter_context(tempfile.TemporaryFile(dir=part.parent)) for _ in ("features", *_TEXTS)]
        count, widths, dim, dtype = 0, [1] * len(_TEXTS), 0, np.dtype(np.float32)
        for block in blocks:
            count, (_, dim), dtype = count + len(block.features), block.features.shape, block.features.dtype
            features.write(np.ascontiguousarray(block.features).tobytes())
            for number, name in enumerate(_FIELDS):
                column = [encodable(text) for text in getattr(block, name)]
                widths[number] = max(widths[number], *map(len, column))
                texts[number].write(json.dumps(column).encode() + b"\n")
        archive = stack.enter_context(zipfile.ZipFile(part, "w"))
        info = zipfile.ZipInfo("features.npy")
        padding = -(_MEMBER_HEADER + _MEMBER_SIZES + len(info.filename) + 4) % _ALIGN
        info.extra = struct.pack("<HH", _PADDING, padding) + bytes(padding)
        with _member(archive, info, (count, dim), dtype) as member:
            features.seek(0)
            shutil.copyfileobj(features, member, 2**22)
        for name, file, width in zip(_TEXTS, texts, widths, strict=True):
            info = zipfile.ZipInfo(f"{name}.npy")
            info.compress_type = zipfile.ZIP_DEFLATED
            with _member(archive, info, (count,), np.dtype(f"<U{width}")) as member:
                file.seek(0)
                for line in file:
                    member.write(np.array(json.loads(line), f"<U{width}").tobytes())
        about = np.array(json.dumps(metadata, ensure_ascii=False))
        with _member(archive, zipfile.ZipInfo("about.npy"), (), about.dtype) as member:
            member.write(about.tobytes())
    return count


@contextmanager
def _member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Iterator[IO[bytes]]:
    """Open an array of the archive for writing, after its header."""
    with archive.open(info, "w", force_zip64=True) as member:
        description = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(member, description)
        yield member


@contextmanager
def _open_npz(path: Path) -> Iterator[StoredEmbeddings]:
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        names = {f"{name}.npy" for name in ("features", "about", *_TEXTS)}
        if missing := sorted(names - set(archive.namelist())):
            raise UserError(
                f"EMBEDDINGS='{path}': is not a file of finetune embeddings. It lacks {', '.join(missing)}."
            )
        if archive.getinfo("about.npy").file_size > _LARGEST_ABOUT:
            raise ValueError("Its record is too large.")
        with archive.open("about.npy") as member:
            _, dtype = _read_header(member, kinds="U")
            metadata = _described(str(np.frombuffer(member.read(_LARGEST_ABOUT), dtype)[0]), path)
        features = _map_features(archive, file, path)
        columns = [_texts(archive, f"{name}.npy", len(features)) for name in _TEXTS]
        blocks = (
            Block(**dict(zip(_FIELDS, texts, strict=True)), features=features) for texts in zip(*columns, strict=True)
        )
        yield StoredEmbeddings(features=features, blocks=blocks, metadata=metadata)


def _read_header(file: IO[bytes], *, kinds: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read shape and dtype of an array; refuse dtypes with Python objects."""
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if fortran or dtype.kind not in kinds or dtype.itemsize == 0:
        raise ValueError(f"An array has the unexpected type {dtype}.")
    return shape, dtype


def _map_features(archive: zipfile.ZipFile, file: IO[bytes], path: Path) -> Features:
    info = archive.getinfo("features.npy")
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError("Its features are compressed; write it again with: finetune embed")
    file.seek(info.header_offset)
    local = file.read(30)
    file.seek(info.header_offset + 30 + sum(struct.unpack("<HH", local[26:30])))
    begin = file.tell()
    shape, dtype = _read_header(file, kinds="f")
    if (
        len(shape) != 2
        or min(shape) < 0
        or shape[0] * shape[1] * dtype.itemsize != info.file_size - (file.tell() - begin)
    ):
        raise ValueError("Its features do not have the size that their header states.")
    data_begins = file.tell()
    file.seek(begin)
    # mapped memory is not checked when it is read, as zipfile checks the members that it reads
    if _crc32(file, info.file_size) != info.CRC:
        raise ValueError("Its features have changed since they were written (their CRC differs).")
    if not shape[0] * shape[1]:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=data_begins, shape=shape)


def _crc32(file: IO[bytes], size: int) -> int:
    """Compute the checksum of the next bytes of a file."""
    found = 0
    while size > 0 and (part := file.read(min(size, _LARGEST_READ))):
        found, size = zlib.crc32(part, found), size - len(part)
    return found


def _texts(archive: zipfile.ZipFile, name: str, count: int) -> Iterator[list[str]]:
    """Yield the texts of a column in lists."""
    with archive.open(name) as member:
        shape, dtype = _read_header(member, kinds="U")
        if shape != (count,):
            raise ValueError(f"{name} and the features differ in their number of rows.")
        # a huge text width in a foreign file must not fill the memory
        step = max(1, min(_ROWS, _LARGEST_READ // dtype.itemsize))
        if dtype.itemsize > _LARGEST_READ:
            raise ValueError(f"{name} has texts of {dtype.itemsize // 4:,} characters.")
        for start in range(0, count, step):
            rows = min(step, count - start)
            yield np.frombuffer(member.read(rows * dtype.itemsize), dtype, count=rows).tolist()


def _write_parquet(part: Path, blocks: Iterable[Block], metadata: Mapping[str, Any]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema_metadata = {_METADATA: json.dumps(metadata, ensure_ascii=False).encode()}
    count, writer = 0, None
    try:
        for block in blocks:
            values = np.ascontiguousarray(block.features)
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
            columns = [pa.array([encodable(text) for text in getattr(block, name)], pa.string()) for name in _FIELDS]
            table = pa.table([*columns, vectors], names=[*_TEXTS, "features"]).replace_schema_metadata(schema_metadata)
            if writer is None:
                # features do not compress; texts do
                compression = dict.fromkeys(_TEXTS, "zstd")
                writer = pq.ParquetWriter(
                    part,
                    table.schema,
                    compression=compression,
                    use_dictionary=["label", "split"],
                    write_statistics=False,
                    write_page_checksum=True,
                )
            writer.write_table(table)
            count += len(values)
        if writer is None:
            schema = pa.schema([(name, pa.string()) for name in _TEXTS], metadata=schema_metadata)
            pq.write_table(schema.append(pa.field("features", pa.list_(pa.float32(), 0))).empty_table(), part)
    finally:
        if writer is not None:
            writer.close()
    return count


@contextmanager
def _open_parquet(path: Path) -> Iterator[StoredEmbeddings]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
        schema = file.schema_arrow
        if _METADATA not in (schema.metadata or {}):
            raise UserError(f"EMBEDDINGS='{path}': is not a file of finetune embeddings.")
        metadata = _described(schema.metadata[_METADATA], path)
        kind = schema.field("features").type
        if not pa.types.is_fixed_size_list(kind) or not pa.types.is_floating(kind.value_type):
            raise ValueError(f"Its features are {kind}, but must be lists of numbers of one length.")
        count, at = file.metadata.num_rows, 0
        if count * kind.list_size * kind.value_type.bit_width // 8 > _MOST_BYTES:
            raise ValueError(f"It claims to hold {count:,} rows of {kind.list_size:,} features.")
        features = scratch_array((count, kind.list_size), np.dtype(f"float{kind.value_type.bit_width}"))

        def blocks() -> Iterator[Block]:
            nonlocal at
            for batch in file.iter_batches(batch_size=_ROWS, columns=[*_TEXTS, "features"]):
                if nulls := [name for name in (*_TEXTS, "features") if batch.column(name).null_count]:
                    raise ValueError(f"Its columns have empty cells: {', '.join(nulls)}.")
                values = batch.column("features").flatten().to_numpy(zero_copy_only=False)
                features[at : at + len(batch)] = values.reshape(len(batch), kind.list_size)
                at += len(batch)
                texts = {field: batch.column(name).to_pylist() for field, name in zip(_FIELDS, _TEXTS, strict=True)}
                yield Block(**texts, features=features)

        yield StoredEmbeddings(features=features, blocks=blocks(), metadata=metadata)


def scratch_array(shape: tuple[int, int], dtype: npt.DTypeLike) -> Features:
    """Return an array to fill: in memory if small, else in a temporary file that vanishes once nothing refers to it."""
    size = shape[0] * shape[1] * np.dtype(dtype).itemsize
    if size < 64 * 2**20:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile() as file:
        os.truncate(file.fileno(), size)
        return np.memmap(file, dtype=dtype, mode="r+", shape=shape)
