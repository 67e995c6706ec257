"""README.md of an output, from which `datasets.load_dataset(OUTPUT)` knows which of its files are which table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

from pipeline.records.columns import with_classes
from pipeline.records.faces import CLIP_LABEL_SCHEMA, EXAMPLE_SCHEMA, FRAME_SCHEMA, SHOT_SCHEMA, TRACK_SCHEMA
from pipeline.records.vocabulary import EMOTIONS

HEADING = "Made by emotion-pipeline. Labels and probabilities are a model's guess from pictures."
LIMITS = (
    "A label says what a face looks like to a model or an annotator, not what a person feels. Error rates differ"
    " between groups of people and with light, pose and size of the face; small, turned and covered faces are missed."
)
INTENDED_USE = (
    "Research on, and statistics of, how emotions are shown in video, with consent or another legal ground of the"
    " people in it."
)
FORBIDDEN_USE = (
    "Decisions about a person; watching people at work or in schools, which the European Union's AI Act forbids;"
    " telling who somebody is. People elsewhere have to be told."
)


def lines_on_use() -> list[str]:
    """The end of every card: limits, intended and forbidden use."""
    parts = (("Limits", LIMITS), ("Intended use", INTENDED_USE), ("Forbidden use", FORBIDDEN_USE))
    return [line for title, words in parts for line in ("", f"## {title}", "", words)]


@dataclass(frozen=True)
class CardTable:
    """A table of an output. files: the pattern of its files, by split. images: names of its columns of pictures."""

    name: str
    schema: pa.Schema
    files: Mapping[str, str]
    images: tuple[str, ...] = ()


def examples_card(splits: Iterable[str]) -> bytes:
    """Of an output of preprocessing whose examples are in these splits, `unsplit` among them."""
    files = {split: f"examples/{split}/*.parquet" for split in splits}
    return card_of([CardTable("examples", EXAMPLE_SCHEMA, files, images=("face_jpeg", "context_jpeg"))])


def labels_card(*, has_shots: bool = True, classes: tuple[str, ...] = EMOTIONS) -> bytes:
    """Of the labels of one model. has_shots: whether there is a table of shots, which older labels have not. classes:
    of the model."""
    schemas = {"clips": CLIP_LABEL_SCHEMA, "tracks": TRACK_SCHEMA, "frames": FRAME_SCHEMA}
    if has_shots:
        schemas["shots"] = SHOT_SCHEMA
    return card_of(
        [  # A single split goes by this name.
            CardTable(name, with_classes(schema, classes), {"train": f"{name}/**/*.parquet"})
            for name, schema in schemas.items()
        ]
    )


def card_of(tables: list[CardTable]) -> bytes:
    """The file. The first table is the default one."""
    lines = ["---", "configs:"]
    for number, table in enumerate(tables):
        lines += [f"- config_name: {table.name}", *(["  default: true"] if number == 0 else []), "  data_files:"]
        for split, pattern in table.files.items():
            lines += [f"  - split: {split}", f'    path: "{pattern}"']
    lines.append("dataset_info:")
    for table in tables:
        lines += [f"- config_name: {table.name}", "  features:", *_features(table.schema, table.images, indent="  ")]
    origin = [
        "",
        "What it was made of, and its splits: `manifest.json`, `summary.json` and `config.yaml` beside this file.",
    ]
    return ("\n".join([*lines, "---", "", HEADING, *origin, *lines_on_use()]) + "\n").encode()


def _features(fields: pa.Schema | pa.StructType, images: tuple[str, ...], *, indent: str) -> Iterator[str]:
    for field in fields:
        yield f"{indent}- name: {field.name}"
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if pa.types.is_struct(kind):
            yield f"{indent}  struct:"
            yield from _features(kind, images, indent=f"{indent}  ")
        else:
            yield f"{indent}  dtype: {'image' if field.name in images else _NAMES.get(str(kind), str(kind))}"


_NAMES = {"float": "float32", "double": "float64"}
