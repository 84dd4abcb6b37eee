"""Attention of new tokens to those of their sequence that are kept in a cache.

The cache is made of blocks of BLOCK tokens. A sequence has a table of the blocks that it stands in, and sequences that
begin alike can have blocks in common (Kwon et al., "Efficient Memory Management for Large Language Model Serving with
PagedAttention", 2023). Within a block, keys and values of a head are panels (`panels.py`), so that scores and
mixtures are products with panels that need no packing:

  keys     as many panels as BLOCK tokens make; depth is the head's size, columns are tokens
  values   as many panels as the head's size makes; depth is BLOCK tokens, columns are the head's elements
"""

from .attention import weights_from_scores
from .jit import jit
from .packing import TILE_ROWS, TILE_VECTORS
from .panels import multiply_group, pack_group, rows_of_group
from .simd import lanes_of

BLOCK = 32  # tokens; a whole number of panels for every width of vectors


@jit(merge=True)
def keep_tokens(qkv, first_row, rows, heads, head, before, table, keys, values):
    """Put away keys and values of one head for `rows` new tokens of a sequence that has `before` tokens.

    qkv: flat, (N, 3C); keys, values: (blocks, heads, elements).
    """
    width = TILE_VECTORS * lanes_of(qkv)
    size = keys.shape[2] // BLOCK
    stride = 3 * heads * size
    for i in range(rows):
        at, token = (first_row + i) * stride + head * size, before + i
        block, place = table[token // BLOCK], token % BLOCK
        key, value = keys[block, head], values[block, head]
        into_keys = place // width * size * width + place % width
        for j in range(size):
            key[into_keys + j * width] = qkv[at + heads * size + j]
            value[(j // width * BLOCK + place) * width + j % width] = qkv[at + 2 * heads * size + j]


@jit(merge=True)
def _attend_group(qkv, first_row, rows, heads, head, seen, scale, table, keys, values, mixed,
                  packed, scores, partial_tile):
    """Up to TILE_ROWS new tokens of a sequence; the last of them sees `seen` tokens, itself included."""
    width = TILE_VECTORS * lanes_of(qkv)
    size, no_scales = keys.shape[2] // BLOCK, partial_tile[:0]
    group = rows_of_group(rows)
    pack_group(qkv, first_row * 3 * heads * size + head * size, 3 * heads * size, rows, size, group, packed, 0)
    across = (seen + width - 1) // width
    for panel in range(across):
        block, at = table[panel * width // BLOCK], panel * width % BLOCK // width * size * width
        multiply_group(group, packed, 0, keys[block, head], at, no_scales, 0, size, partial_tile, 0, True)
        for i in range(rows):
            into = scores[i * across * width + panel * width : i * across * width + (panel + 1) * width]
            for j in range(width):
                into[j] = partial_tile[i * width + j]
    for i in range(rows):
        at = i * across * width
        weights_from_scores(scores[at : at + seen], seen - rows + i + 1, scale)
    pack_group(scores, 0, across * width, rows, seen, group, packed, 0)
    for panel in range((size + width - 1) // width):
        for first in range(0, seen, BLOCK):
            value = values[table[first // BLOCK], head]
            multiply_group(group, packed, first * group, value, panel * BLOCK * width, no_scales, 0,
                           min(BLOCK, seen - first), partial_tile, 0, first == 0)
        n = min(width, size - panel * width)
        for i in range(rows):
            into = ((first_row + i) * heads + head) * size + panel * width
            for j in range(n):
                mixed[into + j] = partial_tile[i * width + j]


@jit(merge=True)
def attend_to_cache(qkv, first_row, rows, heads, head, before, scale, table, keys, values, mixed,
                    packed, scores, partial_tile):
    """One head of `rows` new tokens of a sequence: keep their keys and values, and mix what they see.

    qkv: flat, (N, 3C); mixed: flat, (N, C). keys, values: one layer's, (blocks, heads, elements). table: the blocks of
    the sequence, which has `before` tokens in them. Scratch for the longest sequence, rounded up to whole vectors:
    packed (TILE_ROWS * longest and two vectors more), scores (TILE_ROWS * longest), partial_tile.
    """
    keep_tokens(qkv, first_row, rows, heads, head, before, table, keys, values)
    for first in range(0, rows, TILE_ROWS):
        some = min(TILE_ROWS, rows - first)
        _attend_group(qkv, first_row + first, some, heads, head, before + first + some, scale, table, keys, values,
                      mixed, packed, scores, partial_tile)
