"""Fractals of iterated function systems: their codes, the chaos game for a batch of images, and the point density.

Sources: Barnsley 1988 (the chaos game); Kataoka et al. 2020, "Pre-training without Natural Images" (FractalDB: an image
class is a code, an image a perturbation of it); Anderson and Farrell 2022, "Improving Fractal Pre-training" (codes from
singular values, which are contractive and look good without search; several coloured fractals on backgrounds).
"""

# B = images, K = classes, M = maps of a code (padded to MAPS), P = points that play side by side, H/W = pixels

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.pretraining.keyed import Draw, fold, uniforms

MAPS = 8  # at most; FractalDB draws two to eight
CHAINS = 768  # points that are iterated in parallel
BURN_IN = 12  # steps until a point counts as on the attractor; at these image sizes fewer bring it within a pixel
STEPS = 16  # steps that are drawn; CHAINS * STEPS points per image
_LOOKUP = 256  # resolution of a map's probability
_SEQUENCE_KEY = 20200530  # the random sequences are one constant table, because images differ by code and pose


@dataclass(frozen=True, kw_only=True)
class Codes:
    """Iterated function systems, one per class.

    Args:
        affine_KM6: Maps ``x' = a x + b y + e, y' = c x + d y + f`` in the order a, b, c, d, e, f.
        lookup_KL: Map that random byte ``l`` chooses, int64; probabilities are shares of this table.
        maps_K: Number of maps of each code, int64.
    """

    affine_KM6: Tensor
    lookup_KL: Tensor
    maps_K: Tensor

    def to(self, device: torch.device) -> "Codes":
        """Move the codes to another device."""
        return Codes(
            affine_KM6=self.affine_KM6.to(device), lookup_KL=self.lookup_KL.to(device), maps_K=self.maps_K.to(device)
        )

    def select(self, classes_B: Tensor) -> "Codes":
        """Return the codes of the given classes, in their order."""
        return Codes(
            affine_KM6=self.affine_KM6[classes_B], lookup_KL=self.lookup_KL[classes_B], maps_K=self.maps_K[classes_B]
        )


def uniform_codes(keys_K: Tensor) -> Codes:
    """Draw codes with entries uniform on [-1, 1], as FractalDB does; many diverge or fill too little.

    Args:
        keys_K: int64 keys, one per code.
    """
    draw = Draw(keys_K, 1, 1 + 6 * MAPS)
    maps_K = 2 + draw.integer(MAPS - 1)
    affine_KM6 = draw.several(6 * MAPS, -1.0, 1.0).view(-1, MAPS, 6)
    return _with_probabilities(affine_KM6, maps_K)


def singular_value_codes(keys_K: Tensor) -> Codes:
    """Draw codes from rotations and singular values, as Anderson and Farrell do.

    Each map is ``R(theta) diag(s1, s2) R(phi) diag(+-1, +-1)`` with ``1 >= s1 >= s2``. A weighted sum of the singular
    values, their sigma-factor ``sum(s1 + 2 s2)``, lies between ``(5 + M) / 2`` and ``(6 + M) / 2``, the range in which
    they found images neither sparse nor full. Here a first draw is scaled to meet the factor; they use a sequential
    sampler.

    Args:
        keys_K: int64 keys, one per code.
    """
    draw = Draw(keys_K, 2, 2 + 8 * MAPS)
    maps_K = 2 + draw.integer(MAPS - 1)
    factor_K = 0.5 * (5.0 + maps_K + draw.uniform())
    big_KM, ratio_KM = draw.several(MAPS, 0.25, 1.0), draw.several(MAPS, 0.15, 1.0)
    theta_KM, phi_KM = draw.several(MAPS, -math.pi, math.pi), draw.several(MAPS, -math.pi, math.pi)
    flips_KM2 = draw.several(2 * MAPS, -1.0, 1.0).view(-1, MAPS, 2).sign()
    shift_KM2 = draw.several(2 * MAPS, -1.0, 1.0).view(-1, MAPS, 2)

    used_KM = torch.arange(MAPS, device=keys_K.device) < maps_K[:, None]
    for _ in range(4):  # clamping at 0.98 removes part of the factor; repeating passes it to the other maps
        sum_K = (big_KM * (1.0 + 2.0 * ratio_KM) * used_KM).sum(1)
        big_KM = (big_KM * (factor_K / sum_K)[:, None]).clamp(0.05, 0.98)
    small_KM = big_KM * ratio_KM
    cos_t, sin_t, cos_p, sin_p = theta_KM.cos(), theta_KM.sin(), phi_KM.cos(), phi_KM.sin()
    a = (cos_t * big_KM * cos_p - sin_t * small_KM * sin_p) * flips_KM2[..., 0]
    b = (-cos_t * big_KM * sin_p - sin_t * small_KM * cos_p) * flips_KM2[..., 1]
    c = (sin_t * big_KM * cos_p + cos_t * small_KM * sin_p) * flips_KM2[..., 0]
    d = (-sin_t * big_KM * sin_p + cos_t * small_KM * cos_p) * flips_KM2[..., 1]
    affine_KM6 = torch.stack([a, b, c, d, shift_KM2[..., 0], shift_KM2[..., 1]], dim=-1)
    return _with_probabilities(affine_KM6, maps_K)


def _with_probabilities(affine_KM6: Tensor, maps_K: Tensor) -> Codes:
    """Set each map's probability to its share of the area: |det|, with a floor so that thin maps show (Barnsley)."""
    a, b, c, d = affine_KM6[..., :4].unbind(-1)
    used_KM = torch.arange(MAPS, device=affine_KM6.device) < maps_K[:, None]
    weight_KM = ((a * d - b * c).abs() + 0.02) * used_KM
    edges_KM = (weight_KM / weight_KM.sum(1, keepdim=True)).cumsum(1)
    bytes_L = (torch.arange(_LOOKUP, device=affine_KM6.device) + 0.5) / _LOOKUP
    lookup_KL = (bytes_L[None, :, None] > edges_KM[:, None, :]).sum(-1)
    return Codes(
        affine_KM6=affine_KM6, lookup_KL=torch.minimum(lookup_KL, maps_K[:, None] - 1).contiguous(), maps_K=maps_K
    )


def attractor(codes: Codes, *, chains: int = CHAINS, steps: int = STEPS) -> tuple[Tensor, Tensor]:
    """Compute points on the attractor of each code by the chaos game.

    Args:
        codes: Codes, one per image.
        chains: Number of points that are iterated in parallel.
        steps: Number of steps of each point that are kept.

    Returns:
        Points float32 (B, 2, P) with P = chains * steps, and a colour coordinate in [0, 1] (B, P) that encodes the maps
        a point last went through, the latest with the most weight (Draves and Reckase 2003, the flame algorithm).
    """
    device = codes.affine_KM6.device
    keys = torch.arange(BURN_IN + steps, device=device)
    bytes_TP = (uniforms(fold(keys, _SEQUENCE_KEY), chains) * _LOOKUP).long()
    batch = codes.affine_KM6.shape[0]
    affine_6BM = codes.affine_KM6.permute(2, 0, 1).contiguous()
    hue_BM = torch.arange(MAPS, device=device).float() / (codes.maps_K[:, None] - 1).clamp_min(1)
    x_BP = torch.zeros(batch, chains, device=device)
    y_BP, hue_BP = torch.zeros_like(x_BP), torch.zeros_like(x_BP)
    points, hues = [], []
    for step in range(BURN_IN + steps):
        chosen_BP = codes.lookup_KL[:, bytes_TP[step]]
        a, b, c, d, e, f = (part_BM.gather(1, chosen_BP) for part_BM in affine_6BM)
        x_BP, y_BP = a * x_BP + b * y_BP + e, c * x_BP + d * y_BP + f
        hue_BP = 0.5 * (hue_BP + hue_BM.gather(1, chosen_BP))
        if step >= BURN_IN:
            points.append(torch.stack([x_BP, y_BP], dim=1))
            hues.append(hue_BP)
    return torch.cat(points, dim=2), torch.cat(hues, dim=1)


def fitted(points_B2P: Tensor) -> Tensor:
    """Move and scale points so that the longer side of their bounding box spans [-1, 1].

    Args:
        points_B2P: Points, float32 (B, 2, P).
    """
    low_B2, high_B2 = points_B2P.amin(2), points_B2P.amax(2)
    half_B1 = (0.5 * (high_B2 - low_B2)).amax(1, keepdim=True).clamp_min(1e-6)
    return (points_B2P - 0.5 * (low_B2 + high_B2)[..., None]) / half_B1[..., None]


def perturbed(codes: Codes, keys_B: Tensor, *, amount: float) -> Codes:
    """Scale the entries of each image's code slightly, which is how the images of a FractalDB class differ.

    Args:
        codes: Codes, one per image.
        keys_B: int64 keys, one per image.
        amount: Half-width of the factor's interval around one.
    """
    factor_BM6 = Draw(keys_B, 3, 6 * MAPS).several(6 * MAPS, 1.0 - amount, 1.0 + amount).view(-1, MAPS, 6)
    return Codes(affine_KM6=codes.affine_KM6 * factor_BM6, lookup_KL=codes.lookup_KL, maps_K=codes.maps_K)


def density(points_B2P: Tensor, values_BP: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Count the points on each pixel, and average their values.

    Args:
        points_B2P: Points in canvas coordinates, [-1, 1] with x to the right and y downwards; points outside are left
            out.
        values_BP: Values, one per point.
        size: Side of the square canvas in pixels.

    Returns:
        Counts and mean values, each float32 (B, H, W); a pixel without points has the value 0.
    """
    batch = points_B2P.shape[0]
    columns_BP, rows_BP = ((points_B2P + 1.0) * (0.5 * size)).floor().unbind(1)
    inside_BP = (columns_BP >= 0) & (columns_BP < size) & (rows_BP >= 0) & (rows_BP < size)
    # a divergent code gives infinities; they are outside the canvas and must not be converted to integers
    index_BP = torch.where(inside_BP, rows_BP * size + columns_BP, float(size * size)).long()
    counts = torch.zeros(batch, size * size + 1, device=points_B2P.device)
    sums = torch.zeros_like(counts)
    counts.scatter_add_(1, index_BP, torch.ones_like(values_BP))
    sums.scatter_add_(1, index_BP, values_BP)
    counts, sums = counts[:, :-1].view(batch, size, size), sums[:, :-1].view(batch, size, size)
    return counts, sums / counts.clamp_min(1.0)


def good_codes(keys_K: Tensor, *, singular_values: bool, attempts: int = 24, chunk: int = 512) -> Codes:
    """Return for each key its first candidate that neither diverges nor fills too little or too much of its box.

    Each class has its own candidates, so a borderline decision that another processor rounds differently changes that
    class alone.

    Args:
        keys_K: int64 keys, one per class.
        singular_values: Whether to draw Anderson and Farrell's codes; otherwise FractalDB's.
        attempts: Number of candidates of each class; the last is taken if none passes.
        chunk: Number of classes searched at once, which bounds the memory.
    """
    make = singular_value_codes if singular_values else uniform_codes
    kept = []
    for start in range(0, len(keys_K), chunk):
        keys = keys_K[start : start + chunk]
        codes = make(fold(keys, 0))
        accepted = _looks_good(codes)
        kept.append(codes)
        for attempt in range(1, attempts):
            if bool(accepted.all()):
                break
            missing = (~accepted).nonzero()[:, 0]
            candidates = make(fold(keys[missing], attempt))
            good = _looks_good(candidates)
            codes.affine_KM6[missing], codes.maps_K[missing] = candidates.affine_KM6, candidates.maps_K
            codes.lookup_KL[missing] = candidates.lookup_KL
            accepted[missing[good]] = True
    return Codes(
        affine_KM6=torch.cat([codes.affine_KM6 for codes in kept]),
        lookup_KL=torch.cat([codes.lookup_KL for codes in kept]),
        maps_K=torch.cat([codes.maps_K for codes in kept]),
    )


def _looks_good(codes: Codes) -> Tensor:
    """Test that codes are finite and cover between a tenth and three quarters of a 32-pixel canvas: bool (K,)."""
    points_B2P, hue_BP = attractor(codes, chains=256, steps=12)
    finite_B = points_B2P.isfinite().all(2).all(1) & (points_B2P.abs().amax((1, 2)) < 1e3)
    counts_BHW, _ = density(fitted(points_B2P.nan_to_num(0.0, 0.0, 0.0)), hue_BP, 32)
    share_B = (counts_BHW > 0).float().mean((1, 2))
    return finite_B & (share_B > 0.10) & (share_B < 0.75)
