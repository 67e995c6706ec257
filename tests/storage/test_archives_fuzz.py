"""Mutants of archives: each is listed and read, or ends with a reason.

`make fuzz-archives N=200000` tries more of them than the suite does, and prints how they ended.
"""

import contextlib
import gzip
import io
import os
import tarfile
import time
import zipfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.storage.archives.listing import REASONS, list_members
from pipeline.storage.archives.members import kind_of, member_url
from pipeline.storage.archives.parts import ArchiveError
from pipeline.storage.archives.reading import MemberReader
from pipeline.storage.contents import is_md5, md5_of

NUM_MUTANTS = int(os.environ.get("FUZZ_ARCHIVES", "3000"))
CHANCE = np.random.default_rng(13)
FILES = {"one.mp4": CHANCE.bytes(300), "sub/two.avi": b"2" * 900, "empty.mkv": b"", f"{'n' * 150}/long.mp4": b"x"}

pytestmark = pytest.mark.timeout(7200)


def zip_of(files, **options):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", **options) as archive:
        for name, data in files.items():
            with archive.open(name, "w", force_zip64=name.startswith("sub")) as member:
                member.write(data)
    return sink.getvalue()


def tar_of(files, **options):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", **options) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(data), {"comment": "as it is"}
            archive.addfile(info, io.BytesIO(data))
    data = sink.getvalue().rstrip(b"\0")
    return data + bytes(-len(data) % 512 + 1024)  # two empty blocks are its end, and no more of them


def sources():
    stored, packed = zip_of(FILES), zip_of(FILES, compression=zipfile.ZIP_DEFLATED)
    gnu, pax = tar_of(FILES, format=tarfile.GNU_FORMAT), tar_of(FILES, format=tarfile.PAX_FORMAT)
    nested = {"inner.zip": packed, "inner.tar": gnu, "inner.tar.gz": gzip.compress(gnu), "after.mp4": b"after"}
    return [
        ("a.zip", stored), ("a.zip", packed), ("a.zip", zip_of(nested)), ("a.tar", gnu), ("a.tar", pax),
        ("a.tar", tar_of(nested)), ("a.tar.gz", gzip.compress(pax, mtime=0)),
        ("a.tar.gz", gzip.compress(tar_of(nested), mtime=0)),
        ("a.tar.zst", pa.compress(pax, codec="zstd", asbytes=True)),
    ]  # fmt: skip


def mutant_of(data, others, chance):
    data = bytearray(data)
    kind = ("bits", "bytes", "numbers", "cut", "splice", "zeros", "double", "sums")[chance.integers(8)]
    low, high = sorted(int(at) for at in chance.integers(0, len(data), 2))
    places = chance.integers(0, len(data), chance.integers(1, 8)).tolist()
    if kind == "bits":
        for at in places:
            data[at] ^= 1 << int(chance.integers(8))
    elif kind == "bytes":
        for at in places:
            data[at] = (0, 1, 0x20, 0x2F, 0x30, 0x37, 0x5C, 0x7F, 0x80, 0xFF)[chance.integers(10)]
    elif kind == "numbers":
        size = (2, 4, 8)[chance.integers(3)]
        value = (0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)[chance.integers(9)]
        data[low : low + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")
    elif kind == "cut":
        del data[high:]
    elif kind == "splice":
        data[low:] = others[chance.integers(len(others))][1][low:]
    elif kind == "zeros":
        data[low:high] = bytes(high - low)
    elif kind == "double":
        data[low:low] = data[low:high]
    else:  # a header of a tar with a field changed and a sum that fits again
        at = low // 512 * 512
        for place in chance.integers(0, 345, 3).tolist():
            if at + place < len(data) and not 148 <= place < 156:
                data[at + place] = int(chance.integers(256))
        block = data[at : at + 512]
        if len(block) == 512:
            data[at + 148 : at + 156] = f"{sum(block) - sum(block[148:156]) + 8 * 32:06o}\0 ".encode()
    return bytes(data)


def end_of(name, data, folder):
    """What the mutant ended as, in words."""
    told = {"size_bytes": len(data), "content_id": "id", "is_wanted": lambda _: True}
    unread = list_members(io.BytesIO(data), kind_of(name), **told)
    members = list_members(io.BytesIO(data), kind_of(name), is_read=lambda _: True, **told)
    assert [replace(each, bytes_id=None) for each in members] == [replace(each, bytes_id=None) for each in unread]
    reasons = {member.reason for member in members}
    assert reasons <= {None, *REASONS}
    assert all(member.detail for member in members if member.reason is not None)
    reader = MemberReader(lambda *_: io.BytesIO(data))
    for member in members[:6]:
        target = folder / "clip"
        target.unlink(missing_ok=True)
        with contextlib.suppress(ArchiveError):
            reader.copy(member_url("x", len(data), member, content_id=""), target, content_id=member.content_id)
            assert target.stat().st_size == member.size_bytes
            if is_md5(member.bytes_id or ""):
                assert md5_of(target) == member.bytes_id
    reader.close()
    return "read whole" if reasons <= {None} else ", ".join(sorted(reason for reason in reasons if reason))


@pytest.mark.lengthy
def test_mutants_of_archives_cost_themselves_alone(tmp_path):
    known, chance, ends, slowest = sources(), np.random.default_rng(17), Counter(), 0.0
    for name, data in known:
        assert end_of(name, data, tmp_path) == "read whole"
    for _ in range(NUM_MUTANTS):
        name, data = known[chance.integers(len(known))]
        mutant = mutant_of(data, known, chance)
        since = time.thread_time()
        ends[end_of(name, mutant, tmp_path)] += 1
        slowest = max(slowest, time.thread_time() - since)
    print(f"\n{ends.total()} mutants, the slowest took {slowest:.2f} s")
    for end, count in ends.most_common():
        print(f"{count:7d}  {end}")
    assert ends.total() == NUM_MUTANTS
    assert ends["read whole"] < NUM_MUTANTS
