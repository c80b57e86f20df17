"""Find pictures that show the same photograph: mirrored, turned, cropped, framed, colour-graded or recompressed.

A small grey copy of every picture is viewed in many ways: whole, in crops, turned a little, mirrored and in quarter turns.
Two pictures are candidates if one view of the first resembles the whole of the second (the cosine of two grids of 8 x 8 cells).
A candidate counts only if the fine detail agrees too. The two are aligned, each pixel is normalised by its local mean and
deviation, and the two must correlate in nearly all parts of the picture, many of them with corners: along one outline,
objects of one kind agree. They must also agree better than the closest pictures of the data set that are not copies;
pictures that agree with dozens of others, such as X-rays or cells of the same kind, are not copies. The few pairs that are left
are read again at 160 pixels, aligned exactly and compared everywhere (:mod:`finetune.data.exact_alignment`).

``tests/benchmarks/planted_copies.py`` measures which copies are found, and how many pairs are found wrongly.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the name that torch's own pages use)

from finetune.data.exact_alignment import SIDE, Comparison, compare, scaled_picture

# N = pictures, P = pairs, S = side of a small copy, V = ways to look at a picture

# above this number of pictures the comparison of all pairs would take minutes
MOST_PICTURES = 25_000
# pictures with a shorter side below this have no fine detail, in pixels
LEAST_SIDE = 32

# pixels of the shorter side with which likely pairs are read again
READ_AT_LEAST = SIDE

# pictures of 100 kB that are kept while likely pairs are compared
_MOST_KEPT = 512

_SIDE = 64
_CELLS = 8
# closest pictures of each picture that are compared in detail
_NEIGHBOURS = 5
_LEAST_RESEMBLANCE = 0.8
# correlation of the fine detail of two copies: of the whole, and the median of its parts, which is also above that of close
# pictures by some deviations
_LEAST_CORRELATION = 0.5
_LEAST_AGREEMENT = 0.88
_DEVIATIONS = 4.0
_MOST_AGREEMENT = 0.97
# parts with corners that have to agree, of 144 (one rectangle has 16), and share of the parts that may be unlike, as under a logo
_LEAST_CORNERS = 20
_MOST_UNLIKE = 0.15
# pictures with fewer corners, such as icons and letters, have to agree everywhere or be the same
_MANY_CORNERS = 50
_LEAST_AGREEMENT_OF_FEW = 0.98
_MOST_UNLIKE_OF_FEW = 0.02
_LEAST_WHOLE = 0.99
# share of the pixels with fine texture, and of unlike parts, with which pictures of few corners are compared exactly all the same
_LEAST_TEXTURE = 0.05
_MOST_UNLIKE_OF_TEXTURED = 0.25
# correlation that all parts of two copies reach at 160 pixels, and all small parts of two drawings
_LEAST_OF_ALL = 0.7
_LEAST_OF_SMALL = 0.75
# the same of small parts of a drawing and the same one, and the most that their pixels differ, of 255
_LEAST_OF_SAME, _MOST_DIFFERENT = 0.9, 5.0
# parts with corners, of 361, that these and mirrored and turned pictures need: many letters and arrows are others mirrored
_LEAST_EXACT_CORNERS = 120
# a pair that correlates less before it is aligned in detail is not aligned
_LEAST_BEFORE = 0.3
# pairs that are aligned in detail: where all pictures are close, more would take minutes
_MOST_ALIGNED = 10_000
# more pictures that agree with one another are of one kind; the second number is for data sets of one kind, where close
# pictures agree as well as copies do
_MOST_OF_ONE = (60, 3)
# mean square of the detail from which a part counts
_LEAST_DETAIL = 0.02
# correlation from which a part agrees, and lesser eigenvalue from which its detail runs in two directions
_LEAST_PART = 0.75
_LEAST_CORNER = 0.02
# pictures whose 8-bit values deviate less have no structure to compare
_LEAST_DEVIATION = 3.0
# shifts that are tried when two pictures are aligned, in pixels of the small copy
_SHIFT = 6
_BLOCK = 512
# pictures that are looked at together, so that what is multiplied stays in the processor's cache
_ROWS = 8
# side of the parts in which the fine detail is compared, in pixels of the small copy
_PART = 8


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Pairs of pictures that show one photograph.

    Args:
        pairs: Rows of each pair, the smaller first.
        agreement: Median correlation of the parts of each pair, up to 1.
        threshold: Agreement from which pairs count in this data set.
        of_one_kind: Number of pictures that agree with so many others that they are of one kind, and no copies are told.
    """

    pairs: list[tuple[int, int]]
    agreement: list[float]
    threshold: float
    of_one_kind: int = 0

    @property
    def uncertain(self) -> bool:
        """Tell whether close pictures of this data set agree as well as copies do, as photographs of solar cells."""
        return self.threshold == _MOST_AGREEMENT


def small_copies(rows: npt.NDArray[np.int64], read: Callable[[int], Tensor], *, threads: int = 1) -> Tensor:
    """Return a small grey copy of each picture, uint8 (N, S, S).

    Args:
        rows: Rows of the pictures.
        read: Function that reads the picture of a row, uint8 (C, H, W).
        threads: Number of threads that may read at once.
    """
    with ThreadPoolExecutor(threads) as pool:
        copies = list(pool.map(lambda row: _small(read(int(row))), rows))
    return torch.stack(copies) if copies else torch.zeros(0, _SIDE, _SIDE, dtype=torch.uint8)


def near_duplicates(
    rows: npt.NDArray[np.int64], small_NSS: Tensor, read: Callable[[int], Tensor], *, threads: int = 1
) -> Copies:
    """Return the pairs of pictures that show one photograph in different bytes.

    Args:
        rows: Rows to compare, of different contents, at most ``MOST_PICTURES``.
        small_NSS: Small copy of each, from :func:`small_copies`; the pictures themselves have at least ``LEAST_SIDE``.
        read: Function that reads the picture of a row again, uint8 (C, H, W), with at least ``READ_AT_LEAST`` pixels if it has
            them; called for likely pairs alone.
        threads: Number of threads that may read at once.
    """
    if len(rows) < 2:
        return Copies(pairs=[], agreement=[], threshold=_LEAST_AGREEMENT)
    structured = small_NSS.flatten(1).float().std(dim=1, correction=0) >= _LEAST_DEVIATION
    rows, small_NSS = rows[structured.numpy()], small_NSS[structured]
    if len(rows) < 2:
        return Copies(pairs=[], agreement=[], threshold=_LEAST_AGREEMENT)
    pairs_P2, ways_P = _candidates(small_NSS)
    agreement = _agreements(small_NSS, pairs_P2, ways_P)
    threshold = _threshold(pairs_P2[:, 0], agreement.parts_P, len(rows))
    agrees = (agreement.correlation_P >= _LEAST_CORRELATION) & (agreement.parts_P >= threshold)
    rich = agrees & agreement.is_rich(_correlations(small_NSS, pairs_P2))
    textured = (_texture(small_NSS) >= _LEAST_TEXTURE)[pairs_P2].all(dim=1)
    few = agrees & ~rich & textured & (agreement.unlike_P <= _MOST_UNLIKE_OF_TEXTURED)
    few &= threshold < _MOST_AGREEMENT  # in a set of one kind, other pictures agree as well
    kind = _of_one_kind(pairs_P2[rich].numpy(), len(rows), most=_MOST_OF_ONE[threshold == _MOST_AGREEMENT])
    # each pair once, as the first is mapped to the second or the other way, whichever agrees better
    best: dict[tuple[int, int], int] = {}
    for place in torch.nonzero(rich | few)[:, 0].tolist():
        one, other = sorted(pairs_P2[place].tolist())
        before = best.get((one, other))
        if (
            not kind[one]
            and not kind[other]
            and (before is None or agreement.correlation_P[place] > agreement.correlation_P[before])
        ):
            best[one, other] = place

    # pictures of one series stand in many pairs
    @lru_cache(maxsize=_MOST_KEPT)
    def picture(row: int) -> Tensor:
        return scaled_picture(read(int(rows[row])))

    def confirmed(place: int) -> bool:
        one, other = map(picture, pairs_P2[place].tolist())
        exact = compare(one, other, agreement.map_P23[place], negative=bool(agreement.negative_P[place]))
        return proves_a_copy(exact, rich=bool(rich[place]))

    with ThreadPoolExecutor(threads) as pool:
        proved = pool.map(confirmed, best.values())
        found = sorted((pair, place) for (pair, place), is_copy in zip(best.items(), proved, strict=True) if is_copy)
    return Copies(
        pairs=[(int(rows[one]), int(rows[other])) for (one, other), _ in found],
        agreement=[float(agreement.parts_P[place]) for _, place in found],
        threshold=threshold,
        of_one_kind=int(kind.sum()),
    )


def proves_a_copy(exact: Comparison, *, rich: bool) -> bool:
    """Tell whether two pictures that were aligned exactly are copies.

    All parts have to agree. Photographs may differ in a few, as under a logo. Drawings of one series share their shapes, such as
    playing cards, flags or arrows: they have to be the same drawing, whole, the same way up and in the same colours.

    Measured with ``tests/benchmarks/planted_copies.py``, 200 copies of 50 kinds, before the rule for drawings and with it:
    among 700 photographs 178 of 46 kinds and 177 of 46; among 900 generated pictures 186 of 47 both times; among 700 drawings
    23 kinds and 7, since most of the kinds change colours, or mirror and turn. Besides, no pair of photographs either time.
    Among 10,834 drawings, stamps, solar cells and photographs, pairs of drawings fall from 247 to about 172. By eye, from
    thumbnails: two thirds are the same drawing, most others one shaded drawing in other colours, such as jigsaw pieces. A grid
    with a thick line across and one with it down mean different things. Flags, arrows, letters and hands that were taken for
    copies no longer are. A lower share of common colours finds fewer of the shaded ones and of the copies:

    | share | pairs of drawings changed in colour or turned, of 137 | kinds among generated pictures, photographs |
    |---|---|---|
    | 0.4 | 61 | 46, 45 |
    | 0.45 | 65 | 47, 46 |
    | 0.5 | 74 | 47, not measured |

    Args:
        exact: How they agree.
        rich: Whether the small copies agree in rich detail.
    """
    agrees = exact.least >= _LEAST_OF_ALL
    if exact.drawings:
        same = exact.least_small >= _LEAST_OF_SAME and exact.difference <= _MOST_DIFFERENT
        return agrees and same and exact.whole and not exact.turned
    if not exact.textured:
        agrees &= exact.least_small >= _LEAST_OF_SMALL
    if not rich:
        return agrees and exact.corners >= _LEAST_EXACT_CORNERS
    if exact.textured:
        return agrees or exact.unlike <= _MOST_UNLIKE
    return agrees and (not exact.turned or exact.corners >= _LEAST_EXACT_CORNERS)


def _texture(small_NSS: Tensor) -> Tensor:
    """Return the share of the pixels whose surroundings are neither flat nor an edge, (N,)."""
    around = _averages(3)
    shares = []
    for some in torch.split(small_NSS, _BLOCK):
        pixels = some.float()
        mean = around @ pixels @ around.T
        deviation = (around @ pixels**2 @ around.T - mean**2).clamp_min(0).sqrt()
        shares.append(((deviation > 1) & (deviation < 6)).float().mean(dim=(1, 2)))
    return torch.cat(shares)


def _of_one_kind(pairs_P2: npt.NDArray[np.int64], pictures: int, *, most: int) -> npt.NDArray[np.bool_]:
    """Tell which pictures agree, directly or by way of others, with so many that they are of one kind, bool (N,)."""
    links = coo_array((np.ones(len(pairs_P2)), (pairs_P2[:, 0], pairs_P2[:, 1])), shape=(pictures, pictures))
    _, component = connected_components(links, directed=False)
    of_one_kind: npt.NDArray[np.bool_] = (np.bincount(component) > most)[component]
    return of_one_kind


def _small(image_CHW: Tensor) -> Tensor:
    grey = image_CHW.float().mean(dim=0)[None, None]
    return F.interpolate(grey, (_SIDE, _SIDE), mode="bilinear", antialias=True)[0, 0].round().to(torch.uint8)


def _ways() -> Tensor:
    """Return the ways to look at a picture, as affine maps from places in the view to places in the picture (V, 2, 3)."""
    crops = [(1.0, 1.0, 0.0, 0.0)]
    crops += [(s, s, 0.0, 0.0) for s in (0.92, 0.85, 0.75, 0.65)]
    crops += [(s, s, x * (1 - s), y * (1 - s)) for s in (0.85, 0.72) for x, y in itertools.product((-1, 1), repeat=2)]
    crops += [(0.8, 1.0, x, 0.0) for x in (-0.2, 0.2)] + [(1.0, 0.8, 0.0, y) for y in (-0.2, 0.2)]
    crops += [(0.77, 1.0, 0.0, 0.0), (1.0, 0.77, 0.0, 0.0)]
    whole = [torch.tensor([[w, 0.0, x], [0.0, h, y]]) for w, h, x, y in crops]
    for degrees, scale in ((5, 1.0), (10, 1.0), (5, 0.87), (12, 0.75)):
        for turn in (-degrees, degrees):
            cosine, sine = math.cos(math.radians(turn)), math.sin(math.radians(turn))
            whole.append(torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0]]) * scale)
    mirrored = torch.tensor([[-1.0, 0.0], [0.0, 1.0]])
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    ways = []
    for number, way in enumerate(whole):
        turns = range(4) if number < 4 else (0,)
        for turn in turns:
            for mirror in (False, True):
                matrix = way[:, :2] @ torch.linalg.matrix_power(quarter, turn)
                ways.append(torch.cat([matrix @ mirrored if mirror else matrix, way[:, 2:]], dim=1))
    return torch.stack(ways)


def _looked_at(small_NSS: Tensor, way_23: Tensor, side: int) -> Tensor:
    """Return pictures as looked at in one way, or each in its own, float (N, side, side)."""
    pixels = small_NSS[:, None].float()
    maps = way_23[None] if way_23.ndim == 2 else way_23
    places = F.affine_grid(maps, [len(maps), 1, side, side], align_corners=False).expand(len(pixels), -1, -1, -1)
    seen: Tensor = F.grid_sample(pixels, places, mode="bilinear", padding_mode="border", align_corners=False)[:, 0]
    return seen


def _grids(small_NSS: Tensor, way_23: Tensor) -> Tensor:
    """Return the cells of pictures as looked at in one way, centred and of length 1, (N, 64)."""
    seen = _looked_at(F.avg_pool2d(small_NSS[:, None].float(), 2)[:, 0], way_23, 2 * _CELLS)
    cells = F.avg_pool2d(seen[:, None], 2)[:, 0].flatten(1)
    return F.normalize(cells - cells.mean(dim=1, keepdim=True), dim=1)


def _candidates(small_NSS: Tensor) -> tuple[Tensor, Tensor]:
    """Return the closest pictures of each one (P, 2), and the way to look at the first that resembles the second (P,)."""
    ways = _ways()
    whole = _grids(small_NSS, ways[0])
    looked = torch.stack([_grids(small_NSS, way) for way in ways])  # (V, N, 64)
    count = min(_NEIGHBOURS, len(small_NSS) - 1)
    pairs, chosen = [], []
    for ones in torch.split(torch.arange(len(small_NSS)), _ROWS):
        grids = looked[:, ones].flatten(0, 1)
        best = torch.cat(
            [(grids @ some.T).abs_().view(len(ways), len(ones), -1).amax(dim=0) for some in torch.split(whole, _BLOCK)],
            dim=1,
        )
        best[torch.arange(len(ones)), ones] = -1
        values, others = best.topk(count, dim=1)
        close = values >= _LEAST_RESEMBLANCE
        first = ones[:, None].expand_as(others)[close]
        second = others[close]
        by_way = torch.einsum("vpd,pd->vp", looked[:, first], whole[second]).abs()
        pairs.append(torch.stack([first, second], dim=1))
        chosen.append(by_way.argmax(dim=0))
    return torch.cat(pairs), torch.cat(chosen)


def _detail(seen_NSS: Tensor) -> Tensor:
    """Return each pixel normalised by its local mean and deviation."""
    fine, around = _averages(3), _averages(9)
    smooth = fine @ seen_NSS @ fine.T
    centred = smooth - around @ smooth @ around.T
    # adding 4 of 256 values keeps noise in flat areas small
    return centred / ((around @ centred**2 @ around.T).sqrt() + 4)


@cache
def _averages(width: int) -> Tensor:
    """Return the matrix that averages each pixel of a column with those around it, reflected at the ends, (S, S)."""
    rows = torch.eye(_SIDE)[None]
    return F.avg_pool1d(F.pad(rows, (width // 2, width // 2), mode="reflect"), width, stride=1)[0].T.contiguous()


@cache
def _means_of_parts(side: int) -> Tensor:
    """Return the matrix that averages parts of a column, each half over the next, (number of parts, side)."""
    return F.avg_pool1d(torch.eye(side)[None], _PART, stride=_PART // 2)[0].T.contiguous()


@dataclass(frozen=True, kw_only=True)
class _Agreement:
    """How well the pictures of pairs agree once they are brought to the same place.

    Args:
        correlation_P: Correlation of the fine detail of the whole.
        parts_P: Median correlation over the parts that show any detail.
        corners_P: Number of parts that agree and whose detail runs in two directions.
        unlike_P: Share of the parts that show any detail and do not agree.
        map_P23: Affine map from places in the second picture to places in the first, both from -1 to 1.
        negative_P: Whether one picture is the negative of the other, bool.
    """

    correlation_P: Tensor
    parts_P: Tensor
    corners_P: Tensor
    unlike_P: Tensor
    map_P23: Tensor
    negative_P: Tensor

    def is_rich(self, whole_P: Tensor) -> Tensor:
        """Tell for which pairs what agrees is rich enough, bool (P,).

        A plain ground, one outline or a letter agrees with many others, so pictures with few corners have to agree everywhere,
        or to be the same pixel by pixel.

        Measured with the kinds of ``tests/benchmarks/planted_copies.py``: 4 copies of each among 518 photographs of fruit, fish
        and flowers, most on a plain ground; and, by a script that is not kept, 2,050 icons, letters, shapes, drawings and tiles
        of drawings without a planted copy.

        | corners | or fewer with agreement, unlike | or correlation | photographs: copies, kinds, besides | others: pairs |
        |---|---|---|---|---|
        | 0, unlike up to 1 | | | 191, 48, 4 | 1,421 |
        | 0, unlike up to 0.15 | | | 188, 48, 0 | 890 |
        | 16 | | | 180, 48, 0 | 139 |
        | 50 | 20 with 0.98, 0.02 | | 176, 46, 0 | 36; 27 show one drawing with a change, 9 do not |
        | 50 | 20 with 0.98, 0.02 | 0.99 | 177, 47, 0 | 39 |

        Args:
            whole_P: Correlation of the pictures as they are.
        """
        everywhere = (self.parts_P >= _LEAST_AGREEMENT_OF_FEW) & (self.unlike_P <= _MOST_UNLIKE_OF_FEW)
        rich = (self.corners_P >= _MANY_CORNERS) | everywhere | (whole_P >= _LEAST_WHOLE)
        return (self.corners_P >= _LEAST_CORNERS) & (self.unlike_P <= _MOST_UNLIKE) & rich


def _correlations(small_NSS: Tensor, pairs_P2: Tensor) -> Tensor:
    """Return the correlation of the pictures of pairs as they are, (P,)."""
    pixels = small_NSS.flatten(1).float()
    centred = F.normalize(pixels - pixels.mean(dim=1, keepdim=True), dim=1)
    return torch.cat([(centred[some[:, 0]] * centred[some[:, 1]]).sum(dim=1) for some in torch.split(pairs_P2, _BLOCK)])


def _agreements(small_NSS: Tensor, pairs_P2: Tensor, ways_P: Tensor) -> _Agreement:
    """Return how well each pair agrees at the small shift, scale and turn where its fine detail correlates best."""
    ways, nudges = _ways(), list(_nudges())
    none = torch.zeros(len(pairs_P2))
    best = _Agreement(
        correlation_P=none,
        parts_P=none.clone(),
        corners_P=none.clone(),
        unlike_P=none.clone(),
        map_P23=torch.zeros(len(pairs_P2), 2, 3),
        negative_P=none.bool(),
    )

    def align(rows: Tensor, nudges: list[Tensor]) -> None:
        for some in torch.split(rows, _BLOCK) if len(rows) else ():
            pairs = pairs_P2[some]
            other = _Template(_detail(small_NSS[pairs[:, 1]].float()))
            for nudge in nudges:
                maps = ways[ways_P[some]].clone()
                maps[:, :, :2] = maps[:, :, :2] @ nudge
                now = _aligned(_detail(_looked_at(small_NSS[pairs[:, 0]], maps, _SIDE)), other, maps)
                better = now.correlation_P > best.correlation_P[some]
                for name in _Agreement.__annotations__:
                    getattr(best, name)[some[better]] = getattr(now, name)[better]

    align(torch.arange(len(pairs_P2)), nudges[:1])
    order = best.correlation_P.argsort(descending=True)
    align(order[: min(_MOST_ALIGNED, int((best.correlation_P >= _LEAST_BEFORE).sum()))], nudges[1:])
    return best


def _nudges() -> Iterator[Tensor]:
    """Yield small changes of scale and small turns, none first."""
    for scale, degrees in itertools.product((1.0, 0.94, 1.06), (0.0, -3.0, 3.0)):
        cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        yield torch.tensor([[cosine, -sine], [sine, cosine]]) * scale


class _Template:
    """The middle of pictures, which is looked for in others, with what does not depend on these.

    Args:
        detail_PSS: Fine detail of the pictures.
    """

    def __init__(self, detail_PSS: Tensor) -> None:
        middle = slice(_SHIFT, _SIDE - _SHIFT)
        self.middle_PSS = detail_PSS[:, middle, middle]
        self.energy_P11 = (self.middle_PSS**2).sum(dim=(1, 2), keepdim=True)
        inside = torch.zeros(_SIDE, _SIDE)
        inside[middle, middle] = 1
        self.inside = torch.fft.rfft2(inside).conj()
        self.spectrum = torch.fft.rfft2(detail_PSS * inside).conj()


def _aligned(one_PSS: Tensor, other: _Template, maps_P23: Tensor) -> _Agreement:
    """Return how well pairs agree at the shift where they correlate most; a picture and its negative agree too."""
    middle = slice(_SHIFT, _SIDE - _SHIFT)
    products = torch.fft.irfft2(torch.fft.rfft2(one_PSS) * other.spectrum, s=(_SIDE, _SIDE))
    energy = torch.fft.irfft2(torch.fft.rfft2(one_PSS**2) * other.inside, s=(_SIDE, _SIDE))
    norm = (energy.clamp_min(1e-6) * other.energy_P11).sqrt() + 1e-6
    shifts = torch.arange(-_SHIFT, _SHIFT + 1)
    near = (products / norm)[:, shifts][:, :, shifts].flatten(1)
    strongest = near.abs().argmax(dim=1, keepdim=True)
    value = near.gather(1, strongest)[:, 0]
    down = strongest[:, 0] // len(shifts) - _SHIFT
    right = strongest[:, 0] % len(shifts) - _SHIFT
    moved = _moved(one_PSS, down, right)
    shift_P21 = torch.stack([right, down], dim=1)[:, :, None] * 2 / _SIDE
    shifted = torch.cat([maps_P23[:, :, :2], maps_P23[:, :, 2:] + maps_P23[:, :, :2] @ shift_P21], dim=2)
    return _by_parts(value, moved[:, middle, middle], other.middle_PSS * value.sign()[:, None, None], shifted)


def _moved(pictures_PSS: Tensor, down_P: Tensor, right_P: Tensor) -> Tensor:
    """Return pictures moved by whole pixels, in a circle."""
    places = torch.arange(_SIDE)
    rows = ((places + down_P[:, None]) % _SIDE)[:, :, None].expand_as(pictures_PSS)
    columns = ((places + right_P[:, None]) % _SIDE)[:, None, :].expand_as(pictures_PSS)
    return pictures_PSS.gather(1, rows).gather(2, columns)


def _by_parts(correlation_P: Tensor, one_PSS: Tensor, other_PSS: Tensor, maps_P23: Tensor) -> _Agreement:
    """Compare pairs that lie at the same place part by part."""
    parts = _means_of_parts(one_PSS.shape[-1])

    def means(values_PSS: Tensor) -> Tensor:
        return (parts @ values_PSS @ parts.T).flatten(1)

    one, other = means(one_PSS**2), means(other_PSS**2)
    correlation = means(one_PSS * other_PSS) / ((one * other).sqrt() + 1e-3)
    shown = (one > _LEAST_DETAIL) | (other > _LEAST_DETAIL)
    # the lesser eigenvalue of the structure tensor (Shi and Tomasi 1994): an edge moved along itself looks the same, a
    # corner does not, so only detail in two directions tells one picture from another
    down, right = torch.gradient(other_PSS, dim=(1, 2))
    dd, rr, dr = means(down**2), means(right**2), means(down * right)
    lesser = (dd + rr - ((dd - rr) ** 2 + 4 * dr**2).sqrt()) / 2
    agrees = correlation >= _LEAST_PART
    return _Agreement(
        correlation_P=correlation_P.abs(),
        parts_P=correlation.masked_fill(~shown, math.nan).nanmedian(dim=1).values.nan_to_num(),
        corners_P=(shown & agrees & (lesser >= _LEAST_CORNER)).sum(dim=1).float(),
        unlike_P=(shown & ~agrees).sum(dim=1) / shown.sum(dim=1).clamp_min(1),
        map_P23=maps_P23,
        negative_P=correlation_P < 0,
    )


def _threshold(first_P: Tensor, agreement_P: Tensor, pictures: int) -> float:
    """Return the agreement from which pairs count: above that of the closest pictures that are not copies."""
    if not len(agreement_P):
        return _LEAST_AGREEMENT
    # the third-closest picture of most pictures is not a copy
    ordered = torch.full((pictures, _NEIGHBOURS), -1.0)
    place = torch.zeros(pictures, dtype=torch.int64)
    for row, value in zip(first_P.tolist(), agreement_P.tolist(), strict=True):
        ordered[row, place[row]] = value
        place[row] += 1
    third = ordered.sort(dim=1, descending=True).values[:, min(2, _NEIGHBOURS - 1)]
    third = third[third >= 0]
    if len(third) < 8:
        return _LEAST_AGREEMENT
    middle = float(third.median())
    deviation = 1.4826 * float((third - middle).abs().median())
    return min(max(_LEAST_AGREEMENT, middle + _DEVIATIONS * deviation), _MOST_AGREEMENT)
