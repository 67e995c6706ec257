"""Clips of two splits that look alike: a perceptual hash of each clip's first example in, pairs of paths out."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import imagehash
from PIL import Image

from pipeline.faces.crops import decode_image
from pipeline.ledger.snapshot import Snapshot
from pipeline.records.faces import Example

NAME = "look-alikes.csv"
OF_CLIP = ("clip_id", "path", "split", "label")
COLUMNS = (*OF_CLIP, *(f"like_{name}" for name in OF_CLIP), "bits_apart")
# Of 64 bits. Two hashes so near have one of their four parts of 16 bits alike, by which they are found.
MAX_BITS_APART = 3
# A hash with fewer bits set, or with fewer not set, is that of a picture without a pattern: a fade, a wall.
MIN_BITS = 6
# More pictures than this are not compared: pairs grow with the square.
MAX_CLIPS = 2_000_000

_PAIRS = """
with looks as (
    select ('0x' || l.frame_hash)::ubigint as hash, p.split, min(p.path) as path, arg_min(p.clip_id, p.path) as clip_id,
        arg_min(p.label, p.path) as label
    from planned p join latest l using (clip_id)
    where l.frame_hash is not null and l.num_examples > 0 and p.split is not null group by all),
parts as (
    select *, unnest([0, 1, 2, 3]) as part from looks where bit_count(hash) between $min_bits and 64 - $min_bits),
keyed as (select *, (hash >> (16 * part)) & 65535 as key from parts)
select distinct a.clip_id, a.path, a.split, a.label, b.clip_id as like_clip_id, b.path as like_path,
    b.split as like_split, b.label as like_label, bit_count(xor(a.hash, b.hash)) as bits_apart
from keyed a join keyed b using (part, key)
where a.split <> b.split and a.split <> 'train' and bit_count(xor(a.hash, b.hash)) <= $max_bits
order by bits_apart, a.path, b.path
"""


@dataclass(frozen=True, kw_only=True)
class LookAlikes:
    """Pairs of clips of two splits that look alike, as rows of COLUMNS; is_whole: whether all clips were compared."""

    rows: Sequence[Sequence[str | int | None]]
    is_whole: bool = True

    @property
    def num_clips(self) -> int:
        """How many clips of validation and test look like one of another split."""
        return len({row[0] for row in self.rows})

    def csv_bytes(self) -> bytes:
        """A line a pair."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([COLUMNS, *self.rows])
        return text.getvalue().encode()


def frame_hash(example: Example) -> str:
    """The difference hash of an example's context, 64 bits in hexadecimal: near for pictures that look alike."""
    return str(imagehash.dhash(Image.fromarray(decode_image(example.context_jpeg))))


def look_alikes(snapshot: Snapshot) -> LookAlikes:
    """The pairs among the clips of a finished output. Of clips of one split with one hash the first stands for all."""
    database = snapshot.settle("planned", "latest").database
    if database.value("select count(*) from latest where frame_hash is not null") > MAX_CLIPS:
        return LookAlikes(rows=(), is_whole=False)
    rows = database.rows(_PAIRS, min_bits=MIN_BITS, max_bits=MAX_BITS_APART)
    return LookAlikes(rows=[[row[name] for name in COLUMNS] for row in rows])
