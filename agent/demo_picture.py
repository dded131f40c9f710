"""The demo's work: tone mapping and a bilateral filter over the tiles of a photograph, and its NumPy reference.

Each tile carries a border of `RADIUS` pixels, so that tiles are independent and merge without seams. The recorded
program mixes array operations (linearise, tone-map) with one CUDA C++ stencil kernel.

Sources: global tone operator of Reinhard et al., "Photographic tone reproduction for digital images" (2002), eq. 4;
bilateral filter of Tomasi and Manduchi (1998).
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import coppermesh.exec.xp as xp  # noqa: PLR0402 - a namespace module, as users import it
from coppermesh.exec.kernels import RawKernel
from coppermesh.exec.recorder import Array

RADIUS = 3
SPATIAL_SIGMA = 2.0
RANGE_SIGMA = 0.12
WHITE = 1.2
"""Smallest luminance that maps to pure white."""
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)
_BLOCK = 16

BILATERAL_SOURCE = r"""
extern "C" __global__
void bilateral(const float* __restrict__ image, float* __restrict__ result,
               int height, int width, int radius, float spatial, float range)
{
    int x = blockIdx.x * blockDim.x + threadIdx.x;
    int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;

    int stride = width + 2 * radius;
    const float* centre = image + 3 * ((y + radius) * stride + x + radius);
    float sum[3] = {0.0f, 0.0f, 0.0f};
    float total = 0.0f;
    for (int dy = -radius; dy <= radius; ++dy) {
        for (int dx = -radius; dx <= radius; ++dx) {
            const float* pixel = centre + 3 * (dy * stride + dx);
            float distance = 0.0f;
            for (int c = 0; c < 3; ++c) {
                float difference = pixel[c] - centre[c];
                distance += difference * difference;
            }
            float weight = expf(-(dx * dx + dy * dy) * spatial - distance * range);
            for (int c = 0; c < 3; ++c) sum[c] += weight * pixel[c];
            total += weight;
        }
    }
    float* out = result + 3 * (y * width + x);
    for (int c = 0; c < 3; ++c) out[c] = sum[c] / total;
}
"""


@dataclass(frozen=True)
class Tile:
    """One tile: where it goes (`top`, `left`, `height`, `width`) and its pixels with border, (h+2r, w+2r, 3) uint8."""

    top: int
    left: int
    height: int
    width: int
    pixels: np.ndarray


def load_photograph() -> np.ndarray:
    """The photograph `coffee.png` of scikit-image's wheel, (400, 600, 3) uint8. Raises ImportError without it."""
    import skimage
    from PIL import Image

    path = Path(skimage.__file__).parent / "data" / "coffee.png"
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def save_picture(path: Path, image: np.ndarray) -> None:
    """Write a (h, w, 3) float32 image with values 0 to 1 as PNG."""
    from PIL import Image

    Image.fromarray(np.round(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)).save(path, format="PNG")


def split(image: np.ndarray, rows: int, columns: int) -> list[Tile]:
    """Cut a (h, w, 3) image into rows x columns tiles with borders; edges are repeated outside the picture."""
    padded = np.pad(image, ((RADIUS, RADIUS), (RADIUS, RADIUS), (0, 0)), mode="edge")
    tops = np.linspace(0, image.shape[0], rows + 1, dtype=int)
    lefts = np.linspace(0, image.shape[1], columns + 1, dtype=int)
    tiles = []
    for top, bottom in pairwise(tops):
        for left, right in pairwise(lefts):
            pixels = padded[top : bottom + 2 * RADIUS, left : right + 2 * RADIUS]
            tiles.append(Tile(int(top), int(left), int(bottom - top), int(right - left), pixels))
    return tiles


def merge(tiles: list[Tile], results: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `split`: (h, w, 3) float32."""
    image = np.empty(shape, dtype=np.float32)
    for tile, result in zip(tiles, results, strict=True):
        image[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] = result
    return image


def record_tile(tile: Tile) -> Array:
    """The lazy (height, width, 3) float32 result of one tile."""
    kernel = RawKernel(BILATERAL_SOURCE, "bilateral")
    toned = _tone_map(xp, xp.asarray(tile.pixels), xp.asarray(_LUMINANCE))
    result: Array = xp.zeros((tile.height, tile.width, 3), dtype=xp.float32)
    grid = (-(-tile.width // _BLOCK), -(-tile.height // _BLOCK))
    scalars = (np.int32(tile.height), np.int32(tile.width), np.int32(RADIUS))
    kernel(grid, (_BLOCK, _BLOCK), (toned, result, *scalars, _spatial(), _range()))
    return result


def reference(image: np.ndarray) -> np.ndarray:
    """The same picture by NumPy alone, whole and untiled, (h, w, 3) float32."""
    padded = np.pad(image, ((RADIUS, RADIUS), (RADIUS, RADIUS), (0, 0)), mode="edge")
    toned = _tone_map(np, padded, _LUMINANCE)
    height, width = image.shape[:2]
    centre = toned[RADIUS : RADIUS + height, RADIUS : RADIUS + width]
    total = np.zeros((height, width, 1), dtype=np.float32)
    result: np.ndarray = np.zeros_like(centre)
    for dy in range(-RADIUS, RADIUS + 1):
        for dx in range(-RADIUS, RADIUS + 1):
            pixel = toned[RADIUS + dy : RADIUS + dy + height, RADIUS + dx : RADIUS + dx + width]
            distance = np.sum((pixel - centre) ** 2, axis=2, keepdims=True)
            weight = np.exp(-np.float32(dx * dx + dy * dy) * _spatial() - distance * _range())
            result += weight * pixel
            total += weight
    return result / total


def _tone_map(namespace: Any, pixels: Any, luminance_weights: Any) -> Any:
    """Linear light, Reinhard's operator on luminance, back to display values; the same code for `xp` and NumPy."""
    linear = (namespace.astype(pixels, namespace.float32) / np.float32(255.0)) ** np.float32(2.2)
    luminance = namespace.sum(linear * luminance_weights, axis=-1, keepdims=True)
    exposed = luminance * np.float32(1.3)
    mapped = exposed * (1 + exposed / np.float32(WHITE * WHITE)) / (1 + exposed)
    toned = linear * mapped / namespace.maximum(luminance, namespace.asarray(np.float32(1e-6)))
    return namespace.clip(toned, 0.0, 1.0) ** np.float32(1 / 2.2)


def _spatial() -> np.float32:
    return np.float32(1 / (2 * SPATIAL_SIGMA**2))


def _range() -> np.float32:
    return np.float32(1 / (2 * RANGE_SIGMA**2))
