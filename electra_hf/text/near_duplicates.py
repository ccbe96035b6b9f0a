"""Near-duplicates: documents most of whose words stand in the same order in another document, found by MinHash.

How similar two documents are is Jaccard's measure: of the shingles (five words in a row) that either has, the share
that both have. The least value of a hash over all shingles of a document is the same in two documents with a
probability that equals their similarity. Several such values make a band, and documents with an equal band are linked.
Of a cluster, which is all that links join, the first document in the order of the corpus stays.

The method is that of datatrove's MinhashDedup steps (where bands are buckets). They are not used: of a cluster they
keep whichever document their order of reading leads to, the number of tasks must be a multiple of that of the bands,
and their signatures take three times as long.
"""

from math import log, log1p

import numpy as np
import xxhash
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from electra_hf.text.exclusion import spelled_words

LOWEST, HIGHEST = 0.3, 0.95  # below, chance begins to link other documents; above, hardly a band is left
WORDS = 5  # in a shingle; a character is a word in scripts without blanks
HASHES = 128  # for a document, at most
AT_A_TIME = 4096  # shingles: a long document must not fill the memory
# Two numbers for each hash h -> a * h + b (modulo 2**64), with odd a. numpy promises that RandomState never changes.
FACTORS, SUMMANDS = np.random.RandomState(1).randint(0, 2**64, (2, HASHES), dtype=np.uint64) | np.uint64(1)


def shape_of_bands(similarity: float) -> tuple[int, int]:
    """How many bands, and of how many hashes each, link half of the pairs that have this similarity.

    A pair of similarity s is linked with a probability of 1 - (1 - s**hashes)**bands. Of the shapes with at most
    `HASHES` hashes in all, the longest bands part similar pairs from others most sharply.
    """
    shapes = [(round(log(0.5) / log1p(-(similarity**hashes))), hashes) for hashes in range(1, HASHES)]
    return max((shape for shape in shapes if shape[0] * shape[1] <= HASHES), key=lambda shape: shape[1])


def shingles_of(text: str) -> set[str]:
    """The runs of `WORDS` words, without punctuation and case; a text with fewer words is one shingle, or none."""
    words = spelled_words(text)
    return {" ".join(words[at : at + WORDS]) for at in range(max(len(words) - WORDS, 0) + 1)} - {""}


def bands_of(text: str, bands: int, hashes: int) -> np.ndarray:
    """The bands of a text, (bands,) uint64: an equal one links documents. One without words has none, (0,) uint64."""
    shingles = shingles_of(text)
    if not shingles:
        return np.empty(0, np.uint64)
    values = np.fromiter((xxhash.xxh3_64_intdigest(one.encode()) for one in shingles), np.uint64, len(shingles))
    factors, summands = FACTORS[: bands * hashes], SUMMANDS[: bands * hashes]
    least = [
        (values[start : start + AT_A_TIME, None] * factors + summands).min(axis=0)
        for start in range(0, len(values), AT_A_TIME)
    ]
    signature = np.min(least, axis=0).reshape(bands, hashes)
    # Seeded by its number, so that a band equals only the same one of another document.
    digests = [xxhash.xxh3_64_intdigest(band.tobytes(), seed=number) for number, band in enumerate(signature)]
    return np.array(digests, np.uint64)


def link(bands: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Link the texts with an equal band to the first of them: (2, links) uint64, of the first and of another.

    `bands` and `texts` (N,) uint64: a band, and the number of the text that has it.
    """
    order = np.lexsort((texts, bands))  # begins with its last key: by band, and equal bands by text
    bands, texts = bands[order], texts[order]
    is_new = np.append(True, bands[1:] != bands[:-1])[: len(bands)]
    firsts = texts[is_new].repeat(np.diff(np.flatnonzero(np.append(is_new, True))))
    return np.stack([firsts, texts])[:, ~is_new]


def cluster(links: np.ndarray) -> np.ndarray:
    """Follow the links: (2, M) uint64, the first text of a cluster and another one, whose numbers rise.

    `links` (2, N) uint64: the numbers of two texts, which are those of their order in the corpus.
    """
    if not links.size:
        return links
    texts, ends = np.unique(links, return_inverse=True)
    ends = tuple(ends.reshape(2, -1))
    graph = coo_array((np.ones(len(ends[0]), bool), ends), shape=(len(texts), len(texts)))
    _, clusters = connected_components(graph, directed=False)
    # The numbers of the clusters are scipy's affair. The texts are in order: where a cluster turns up is its first.
    _, where = np.unique(clusters, return_index=True)
    firsts = texts[where[clusters]]
    return np.stack([firsts, texts])[:, firsts != texts]
