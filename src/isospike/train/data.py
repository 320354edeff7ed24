"""Labelled images of your folders, and how a batch of them is varied.

A folder holds one of these, each with a training and a test part:

- class folders: ``train/CLASS/*.png`` and ``test/CLASS/*.png`` (or ``.jpg``, ...);
- MNIST's files: ``train-images-idx3-ubyte.gz``, ``train-labels-idx1-ubyte.gz``, ``t10k-...``;
- two archives of arrays, ``*train.npz`` and ``*test.npz``: JPEG files end to end (``blob``), where
  each begins and the last ends (``offset``), their classes (``label``); or events
  (``x, y, p, t_us``, ``p`` of 0 or 1), where each recording begins and the last ends (``offset``),
  its class (``label``).
"""

import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils.data import Dataset

from isospike.errors import InputError, MissingExtraError, RangeError, ShapeError
from isospike.report.reading import read_file

Array = Shaped[np.ndarray, "..."]
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")


@dataclass(frozen=True)
class Part:
    """Images and their classes.

    Attributes:
        images: Bytes ``[count, channels, height, width]``, or ``[count, steps, channels, height,
            width]`` for events.
        labels: Class numbers ``[count]``.

    >>> part = Part(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    >>> len(part)
    4
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    """A data set.

    Attributes:
        name: Of its folder.
        classes: Names of the classes.
        train: To train on.
        test: To judge by.

    >>> part = Part(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    >>> Data("dots", ("no", "yes"), part, part).classes
    ('no', 'yes')
    """

    name: str
    classes: tuple[str, ...]
    train: Part
    test: Part


def load_data(folder: str | Path, *, steps: int = 4, skip_broken: bool = False) -> Data:
    """Read a data set.

    Args:
        folder: In one of the forms of the module's head.
        steps: Frames of a recording of events, of equal numbers of events each.
        skip_broken: Whether files that hold no image are left out of class folders.

    Returns:
        The data.

    Raises:
        InputError: There is no such folder, it has none of the forms, a part is empty, or a file
            is damaged; its name is in the message.
        ShapeError: Images differ in size, or the parts do.
        RangeError: A label is not one of the classes.
        MissingExtraError: Images in files without the package pillow.

    >>> data = load_data("cifar10")  # doctest: +SKIP
    >>> data.classes[:2]  # doctest: +SKIP
    ('airplane', 'automobile')
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"load_data needs a folder, got {str(folder)!r}. Name one that is there.")
    if (folder / "train").is_dir():
        names = sorted(p.name for p in (folder / "train").iterdir() if p.is_dir())
        parts = [_class_folders(folder / part, names, skip_broken) for part in ("train", "test")]
        return _check(Data(folder.name, tuple(names), *parts))
    if (first := sorted(folder.glob("train-images-idx3-ubyte*"))) and first:
        parts = [_idx(folder, part, first[0].suffix) for part in ("train", "t10k")]
    else:
        archives = [sorted(folder.glob(f"*{part}.npz")) for part in ("train", "test")]
        if [len(a) for a in archives] != [1, 1]:
            raise InputError(
                "load_data needs class folders, MNIST's files or two archives, got "
                f"{str(folder)!r} with none of them. See the help of isospike train."
            )
        parts = _archives([a[0] for a in archives], steps)
    count = int(max(part.labels.max() if len(part) else 0 for part in parts)) + 1
    return _check(Data(folder.name, tuple(map(str, range(count))), *parts))


def _check(data: Data) -> Data:
    for name, part in (("train", data.train), ("test", data.test)):
        if not len(part):
            raise InputError(
                f"load_data needs images in both parts, got none in {name} of {data.name!r}. Add "
                "some."
            )
        if len(part.images) != len(part):
            raise ShapeError(
                f"load_data needs a label for each image, got {len(part.images)} images and "
                f"{len(part)} labels in {name} of {data.name!r}. Get the files again."
            )
        low, high = int(part.labels.min()), int(part.labels.max())
        if low < 0 or high >= len(data.classes):
            raise RangeError(
                f"load_data needs labels from 0 to {len(data.classes) - 1}, got {low} to {high} in "
                f"{name} of {data.name!r}. Number the classes from 0."
            )
    if data.train.images.shape[1:] != data.test.images.shape[1:]:
        raise ShapeError(
            f"load_data needs parts of one size, got {tuple(data.train.images.shape[1:])} and "
            f"{tuple(data.test.images.shape[1:])}. Resize the images."
        )
    return data


def _decode(packed: bytes, where: str) -> Array:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError(
            "load_data needs the package pillow to read images, got none. Install isospike[train]."
        ) from None
    try:
        with Image.open(io.BytesIO(packed)) as image:
            image.load()
            kind = "L" if image.mode in ("1", "L") else "RGB"
            pixels = np.asarray(image.convert(kind))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"load_data needs images, got {where}, which holds none ({error}). Remove it, or skip "
            "broken files."
        ) from None
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _class_folders(folder: Path, names: Sequence[str], skip_broken: bool) -> Part:
    images: list[Array] = []
    labels: list[int] = []
    if folder.is_dir():
        other = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name not in names)
        if other:
            raise InputError(
                f"load_data needs the same classes in both parts, got {other[0]!r} in {folder.name}"
                " alone. Add it to train."
            )
    for label, name in enumerate(names):
        for file in sorted(folder.glob(f"{name}/*")):
            if file.suffix.lower() not in ENDINGS:
                continue
            try:
                images.append(_decode(read_file(file, "load_data"), str(file)))
            except InputError:
                if not skip_broken:
                    raise
                continue
            labels.append(label)
            if images[-1].shape != images[0].shape:
                raise ShapeError(
                    f"load_data needs images of one size, got {images[0].shape} and "
                    f"{images[-1].shape} of {str(file)!r}. Resize them."
                )
    stacked = np.stack(images) if images else np.zeros((0, 1, 1, 1), np.uint8)
    return Part(torch.from_numpy(stacked), torch.tensor(labels, dtype=torch.long))


def _idx(folder: Path, part: str, ending: str) -> Part:
    def read(name: str, axes: int) -> Array:
        path = folder / f"{part}-{name}-idx{axes}-ubyte{ending}"
        try:
            packed = path.read_bytes()
            packed = gzip.decompress(packed) if ending == ".gz" else packed
            sizes = np.frombuffer(packed, ">u4", axes, 4)
            return np.frombuffer(packed, np.uint8, int(np.prod(sizes)), 4 + 4 * axes).reshape(sizes)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise InputError(
                f"load_data needs whole files of MNIST, got {str(path)!r} ({error}). Get it again."
            ) from None

    labels = torch.from_numpy(read("labels", 1).astype(np.int64))
    return Part(torch.from_numpy(read("images", 3).copy())[:, None], labels)


def _archives(paths: Sequence[Path], steps: int) -> list[Part]:
    both = [_read_archive(path) for path in paths]
    if any("blob" in arrays for arrays in both):
        return [_packed(arrays, path) for arrays, path in zip(both, paths, strict=True)]
    most = max(int(arrays[axis].max(initial=0)) for arrays in both for axis in "xy")
    side = -(-(most + 1) // 4) * 4  # one for both parts
    return [
        Part(_frames(arrays, path, steps, side), _labels(arrays))
        for arrays, path in zip(both, paths, strict=True)
    ]


def _labels(arrays: dict[str, Array]) -> Tensor:
    return torch.from_numpy(arrays["label"].astype(np.int64))


def _read_archive(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zlib.error, KeyError) as error:
        raise InputError(
            f"load_data needs an archive of arrays, got {str(path)!r} ({error}). Get it again."
        ) from None
    except Exception as error:  # noqa: BLE001  zipfile has errors of its own
        raise InputError(
            f"load_data needs a whole archive, got {str(path)!r} ({error}). Get it again."
        ) from None
    whole = {"label", "offset", "blob"} <= arrays.keys()
    if not whole and not {"label", "offset", *"xyp", "t_us"} <= arrays.keys():
        raise InputError(
            f"load_data needs arrays blob, offset and label, or x, y, p, t_us, offset and label, "
            f"got {', '.join(arrays) or 'none'} in {str(path)!r}. Write them under these names."
        )
    return arrays


def _spans(arrays: dict[str, Array]) -> list[tuple[int, int]]:
    """Where each image or recording begins and ends."""
    offset = arrays["offset"].tolist()
    return list(zip(offset[:-1], offset[1:], strict=True))


def _packed(arrays: dict[str, Array], path: Path) -> Part:
    """JPEG files of an archive."""
    blob = arrays["blob"].tobytes()
    images = [_decode(blob[a:b], f"image {i} of {path}") for i, (a, b) in enumerate(_spans(arrays))]
    for i, image in enumerate(images):
        if image.shape != images[0].shape:
            raise ShapeError(
                f"load_data needs images of one size, got {images[0].shape} and {image.shape} of "
                f"image {i} of {path}. Resize them."
            )
    stacked = np.stack(images) if images else np.zeros((0, 1, 1, 1), np.uint8)
    return Part(torch.from_numpy(stacked), _labels(arrays))


def _frames(arrays: dict[str, Array], path: Path, steps: int, side: int) -> Tensor:
    """Recordings as frames of counts: as many events in each of ``steps`` frames."""
    for name, most in (("x", side - 1), ("y", side - 1), ("p", 1)):
        values = arrays[name]
        if values.size and not 0 <= int(values.min()) <= int(values.max()) <= most:
            raise RangeError(
                f"load_data needs {name} from 0 to {most}, got {values.min()} to {values.max()} in "
                f"{str(path)!r}. Correct them there."
            )
    frames = []
    for a, b in _spans(arrays):
        order = a + np.argsort(arrays["t_us"][a:b], kind="stable")
        x, y, p = (arrays[name][order].astype(np.int64) for name in "xyp")
        frames.append(count_events(x, y, p, steps, (side, side)))
    kind = np.uint8 if max((int(f.max()) for f in frames), default=0) < 256 else np.int32
    stacked = np.stack(frames) if frames else np.zeros((0, steps, 2, side, side))
    return torch.from_numpy(stacked.astype(kind))


def count_events(x: Array, y: Array, p: Array, steps: int, size: tuple[int, int]) -> Array:
    """Events of a recording, in the order of time, as frames of counts: as many in each frame.

    Args:
        x: Columns.
        y: Rows.
        p: Polarities, 0 or 1.
        steps: Number of frames.
        size: Height and width.

    Returns:
        Counts ``[steps, 2, height, width]``.

    >>> count_events(*np.array([[0, 1], [0, 0], [1, 1]]), 2, (1, 2)).tolist()
    [[[[0, 0]], [[1, 0]]], [[[0, 0]], [[0, 1]]]]
    """
    frames = np.zeros((steps, 2, *size), np.int32)
    np.add.at(frames, (np.arange(len(x)) * steps // max(1, len(x)), p, y, x), 1)
    return frames


class Batches(Dataset[Any]):
    """Batches of a part: scaled, and varied for training.

    How an image is varied depends on the seed, the epoch and its number alone, so that a run that
    was interrupted, or shared by processes, sees the same images.

    Args:
        part: Images and classes.
        mean: Of each channel, subtracted.
        deviation: Of each channel, divided by.
        seed: Of the variation.
        shift: Pixels by which an image is moved at most, its edge mirrored; None for no variation.
        flip: Whether every other epoch mirrors an image.

    >>> part = Part(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    >>> batches = Batches(part, torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    >>> batches.scaled(torch.tensor([0, 1])).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        part: Part,
        mean: Tensor,
        deviation: Tensor,
        *,
        seed: int = 0,
        shift: int | None = None,
        flip: bool = True,
    ) -> None:
        self.part, self.seed, self.shift, self.flip, self.epoch = part, seed, shift, flip, 0
        self.mean, self.deviation = (x.view(-1, 1, 1) for x in (mean, deviation))

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """The images of these numbers as a batch."""
        at = torch.tensor(indices)
        images = self.scaled(at)
        if self.shift is not None:
            images = self._vary(images, np.array(indices, dtype=np.uint64))
        return {"pixel_values": images, "labels": self.part.labels[at]}

    def scaled(self, at: Tensor) -> Tensor:
        """The images of these numbers, scaled and not varied.

        Args:
            at: Their numbers.

        Returns:
            The images, as floats.
        """
        return self.part.images[at].float().sub_(self.mean).div_(self.deviation)

    def _vary(self, images: Tensor, indices: Array) -> Tensor:
        shift = int(self.shift or 0)
        first = _mix(indices + np.uint64(self.seed << 32))
        mirrored = (first + np.uint64(self.epoch)) % np.uint64(2) == 1
        draws = _mix(first + np.uint64(self.epoch + 1))
        span = np.uint64(2 * shift + 1)
        rows, columns = draws % span, draws // span % span
        height, width = images.shape[-2:]
        padded = torch.nn.functional.pad(images.flatten(1, -3), (shift,) * 4, mode="reflect")
        out = torch.empty_like(images.flatten(1, -3))
        for i, (row, column) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
            out[i] = padded[i, :, row : row + height, column : column + width]
        out = out.view(images.shape)
        if self.flip:
            at = torch.from_numpy(mirrored)
            out[at] = out[at].flip(-1)
        return out


def _mix(x: Array) -> Array:
    """Whole numbers of 64 bits as evenly distributed ones (SplitMix64)."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: Array = x ^ (x >> np.uint64(31))
        return mixed
