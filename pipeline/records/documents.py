"""Parses what users and strangers wrote (JSON, YAML, XML, Parquet, safetensors) in bounded memory.

Its errors are one line, and none quotes the file: a service may have been pointed at one that its user must not see.
"""

from __future__ import annotations

import functools
import io
import json
import re
import struct
import xml.etree.ElementTree as ET
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any
from xml.parsers import expat

from pipeline.records.vocabulary import UsageError

# Of JSON and YAML that people write; parsed they take some 30 times as much.
MAX_TEXT_BYTES = 2**22
# Ours have a depth of 6. json and yaml would go to a thousand, and what walks through it later would not.
MAX_DEPTH = 32
# Of a safetensors file: 0.1 KB a tensor.
MAX_TENSOR_HEADER_BYTES = 2**23
# Decoded rows of one Parquet or Arrow file; those that this package writes have less than a tenth. What is packed more
# than 64 to one, which ours are not, is bounded by the first number.
FREE_TABLE_BYTES, MAX_TABLE_BYTES = 2**29, 2**32


class DocumentError(UsageError):
    """A file is not what it should be; the message names the file, the place in it, and never quotes it."""


def parse_json(content: bytes, what: str, *, max_bytes: int = MAX_TEXT_BYTES) -> Any:
    """The value of a JSON text.

    what: names the file in errors. Raises DocumentError for what is no JSON, too long, or too deep.
    """
    _check_length(content, what, max_bytes)
    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        raise DocumentError(f"{what} is not JSON (line {error.lineno}, column {error.colno})") from None
    except UnicodeDecodeError as error:
        raise DocumentError(f"{what} is not JSON (byte {error.start} is not UTF-8)") from None
    except RecursionError:
        raise _too_deep(what) from None
    except ValueError:
        raise DocumentError(f"{what} is not JSON (a number has too many digits)") from None
    _check_depth(value, what)
    return value


def parse_yaml(content: bytes, what: str, *, max_bytes: int = MAX_TEXT_BYTES) -> Any:
    """The value of a YAML text; dates in it are texts.

    what: names the file in errors. Raises DocumentError for what is no YAML, too long or too deep, and for aliases:
    a few of these stand for billions of values.
    """
    import yaml  # The help of a job does without.

    _check_length(content, what, max_bytes)
    own = _yaml_loader()
    try:
        depth = 0
        for event in yaml.parse(content, Loader=own):
            if isinstance(event, yaml.AliasEvent):
                line = event.start_mark.line + 1
                raise DocumentError(f"{what}, line {line}: aliases (*name) are not read; write the value out")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    raise _too_deep(what)
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
        loader = own(content)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise DocumentError(f"{what} is not YAML{f' (line {mark.line + 1})' if mark else ''}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise DocumentError(f"{what} is not YAML (it is no text)") from None
    except DocumentError:
        raise
    except (ValueError, OverflowError):
        raise DocumentError(f"{what} is not YAML (a number in it is none)") from None


@functools.cache
def _yaml_loader() -> Any:
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):
        """SafeLoader without dates, which no setting is."""

    resolvers = Loader.yaml_implicit_resolvers.items()
    dates = "tag:yaml.org,2002:timestamp"
    Loader.yaml_implicit_resolvers = {first: [pair for pair in pairs if pair[0] != dates] for first, pairs in resolvers}
    return Loader


def parse_xml(content: bytes, what: str, *, max_bytes: int = MAX_TEXT_BYTES) -> ET.Element:
    """The root of an XML text.

    what: names the file in errors. Raises DocumentError for what is no XML, too long or too deep, or has a document
    type: the entities of one stand for any number of letters.
    """
    _check_length(content, what, max_bytes)
    depth = 0

    def start(*_: Any) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise _too_deep(what)

    def end(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    def doctype(*_: Any) -> None:
        raise DocumentError(f"{what} declares entities or a document type, which are not read")

    scanner = expat.ParserCreate()
    scanner.StartElementHandler, scanner.EndElementHandler, scanner.StartDoctypeDeclHandler = start, end, doctype
    try:
        scanner.Parse(content, True)
        return ET.fromstring(content)
    except (expat.ExpatError, ET.ParseError) as error:
        raise DocumentError(f"{what} is not XML (line {getattr(error, 'lineno', 0)})") from None
    except (LookupError, ValueError) as error:
        raise error if isinstance(error, DocumentError) else DocumentError(f"{what} is not XML") from None


def mapping_of(value: Any, known: Collection[str], what: str) -> dict[str, Any]:
    """A parsed value that is a mapping whose keys are all known. Raises DocumentError.

    An unknown key is quoted only where it is nearly a known one.
    """
    if not isinstance(value, Mapping):
        raise DocumentError(f"{what} has no fields; give lines such as {next(iter(sorted(known)), 'name')}: VALUE")
    unknown = [key for key in value if key not in known]
    for key in unknown:
        if isinstance(key, str) and (near := get_close_matches(key, known, 1, 0.75)):
            raise DocumentError(f"{what}: {key} is not known; did you mean {near[0]}?")
    if unknown:
        raise DocumentError(f"{what}: {len(unknown)} of its {len(value)} fields are not known; take them out")
    return dict(value)


def shown_value(value: Any, *, max_letters: int = 40) -> str:
    """A value of a file for an error: a number, a truth or a short word as it is, of others what they are."""
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**max_letters else "a number of many digits"
    if isinstance(value, str):
        is_plain = len(value) <= max_letters and re.fullmatch(r"[\w.,+:-]*", value)
        return repr(value) if is_plain else f"a text of {len(value)} letters"
    if isinstance(value, list | tuple) and len(value) <= 8 and not any(isinstance(each, list | dict) for each in value):
        return f"[{', '.join(shown_value(each) for each in value)}]"
    return {"list": "a list", "tuple": "a list", "dict": "an object"}.get(type(value).__name__, "no plain value")


def parquet_table(
    content: bytes,
    what: str,
    *,
    num_rows: int | None = None,
    columns: Collection[str] | None = None,
    max_bytes: int | None = None,
) -> Any:
    """The table of a Parquet file.

    A few bytes of Parquet can stand for any number of long values, so its footer is asked first, and it is read a few
    rows at a time.

    Args:
        num_rows: that it must have.
        columns: those of these names that it has; by default all.
        max_bytes: of the decoded rows; by default what its length makes likely.

    Raises:
        DocumentError: where it is no Parquet, has another number of rows, or decodes to more bytes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline.records.decoded_sizes import parquet_groups, written_bytes

    max_bytes = _likely_bytes(content) if max_bytes is None else max_bytes
    batches, num_bytes = [], 0
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        if num_rows is not None and file.metadata.num_rows != num_rows:
            raise DocumentError(f"{what} has {file.metadata.num_rows} rows, not {num_rows}")
        schema = file.schema_arrow
        if columns is not None:
            schema = pa.schema([each for each in schema if each.name in columns], metadata=schema.metadata)
        groups = parquet_groups(file, content, schema.names, max_bytes=max_bytes)
        if groups is None:
            raise _too_large(what, max_bytes)
        for number, num_at_once in groups:
            for batch in file.iter_batches(num_at_once, row_groups=[number], columns=schema.names):
                num_bytes += written_bytes(batch)
                if num_bytes > max_bytes:
                    raise _too_large(what, max_bytes)
                batches.append(batch)
        table = pa.Table.from_batches(batches, schema=schema)
        table.validate(full=True)
        return table
    except DocumentError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DocumentError(f"{what} is not Parquet ({_fault_of(error)})") from None


def arrow_table(content: bytes, what: str, *, max_bytes: int | None = None) -> Any:
    """The table of an Arrow file.

    max_bytes: of the decoded rows; by default what its length makes likely. Raises DocumentError where it is none, or
    decodes to more.
    """
    import pyarrow as pa

    from pipeline.records.decoded_sizes import arrow_sizes

    max_bytes = _likely_bytes(content) if max_bytes is None else max_bytes
    try:
        with pa.ipc.open_file(pa.BufferReader(content)) as reader:
            sizes = [*arrow_sizes(content)]
            if sum(sizes) > max_bytes:
                raise _too_large(what, max_bytes)
            if len(sizes) != reader.num_record_batches:
                raise DocumentError(f"{what} is not Arrow (its end tells of other batches than it has)")
        # What was looked at, and not what its end may point to.
        with pa.ipc.open_stream(pa.py_buffer(content).slice(8)) as stream:
            table = stream.read_all()
        table.validate(full=True)  # Else what its offsets point to may be any memory.
        return table
    except DocumentError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DocumentError(f"{what} is not Arrow ({_fault_of(error)})") from None


def check_tensor_header(content: bytes, what: str, *, size_bytes: int | None = None) -> None:
    """Raise DocumentError unless these are the first bytes of a safetensors file with a header of bearable length.

    size_bytes: of the whole file, where `content` is its start alone.
    """
    size_bytes = len(content) if size_bytes is None else size_bytes
    (length,) = struct.unpack("<Q", content[:8]) if len(content) >= 8 else (0,)
    if not 2 <= length <= size_bytes - 8 or content[8:9] != b"{":
        raise DocumentError(f"{what} is not safetensors")
    if length > MAX_TENSOR_HEADER_BYTES:
        raise DocumentError(f"{what}: its header claims {length} bytes; {MAX_TENSOR_HEADER_BYTES} are the most")


def read_at_most(stream: io.BufferedIOBase, max_bytes: int, what: str) -> bytes:
    """All that is in a stream. Raises DocumentError where it is more than this, having read no more than that."""
    parts, left = [], max_bytes + 1
    while left and (part := stream.read(min(left, 2**20))):
        parts.append(part)
        left -= len(part)
    if not left:
        raise too_long(what, max_bytes)
    return b"".join(parts)


def too_long(what: str, max_bytes: int) -> DocumentError:
    """What a file of more bytes than this is refused with."""
    told = f"{max_bytes / 2**20:.0f} MiB" if max_bytes >= 2**20 else f"{max_bytes} bytes"
    return DocumentError(f"{what} is longer than {told}, the most that is read of such a file")


def _likely_bytes(content: bytes) -> int:
    return min(MAX_TABLE_BYTES, max(FREE_TABLE_BYTES, 64 * len(content)))


def _fault_of(error: Exception) -> str:
    """Our own words, and of others the kind of the error: they quote the file."""
    return str(error) if type(error) is ValueError else type(error).__name__


def _too_large(what: str, max_bytes: int) -> DocumentError:
    return DocumentError(f"{what} decodes to more than {max_bytes / 2**20:.0f} MiB")


def _check_length(content: bytes, what: str, max_bytes: int) -> None:
    if len(content) > max_bytes:
        raise too_long(what, max_bytes)


def _too_deep(what: str) -> DocumentError:
    return DocumentError(f"{what} nests more than {MAX_DEPTH} deep")


def _check_depth(value: Any, what: str) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for each in level
            if isinstance(each, dict | list)
            for child in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    raise _too_deep(what)
