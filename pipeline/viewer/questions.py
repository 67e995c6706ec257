"""What the pages ask of the table of clips: filters, pages of rows, counts. Every question is one query."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipeline.labels.source import Labels

MAX_ROWS = 200
MAX_CHOICES = 200
# Column -> where it is found, for those who sort.
SORTS = {
    "path": "c.path",
    "emotion": "c.emotion",
    "probability": "c.probability",
    "entropy": "c.mean_entropy",
    "agreement": "c.agreement",
    "persons": "c.num_tracks",
    "faces": "c.num_faces",
    "day": "c.day",
    "state": "c.state",
}
_EXACT = {"state": "c.state", "reason": "c.reason", "day": "c.day", "show": 'c."show"'}
_BETWEEN = {
    "min_persons": ("c.num_tracks", ">="),
    "max_persons": ("c.num_tracks", "<="),
    "min_entropy": ("c.mean_entropy", ">="),
    "max_entropy": ("c.mean_entropy", "<="),
    "min_agreement": ("c.agreement", ">="),
    "max_agreement": ("c.agreement", "<="),
}
# What is asked for where the model was too uncertain to say an emotion.
ABSTAINED = "abstained"
_ABSTAINED = "c.state = 'done' and c.emotion is null and c.num_faces > 0"
_ROW = (
    "c.clip_id, c.path, c.state, c.reason, c.emotion, c.probability, c.mean_entropy, c.agreement, c.num_tracks,"
    ' c.num_faces, c.day, c."show", c.same_as'
)


class BadQuestionError(ValueError):
    """A filter or an order that there is not; its text names it."""


class Questions:
    """Answers about the labels of one model, or of two of which the first leads.

    Not for several threads at once: DuckDB takes its turns, but a caller's tables may change between them.
    """

    def __init__(self, labels: Labels, other: Labels | None = None) -> None:
        self.labels, self.other = labels, other
        self.database = labels.database
        # Of both models: what the pages number emotions by.
        self.classes = tuple(dict.fromkeys((*labels.classes, *(other.classes if other else ()))))
        self.database.execute("create or replace table corrected (clip_id varchar, num bigint)")
        self.refresh()

    def refresh(self) -> None:
        """Take over what was read of the other model's clips since."""
        if self.other is not None:
            own = self.other.database.table("select clip_id, emotion, probability from clips")
            self.database.create("other", own.schema)
            self.database.insert("other", own)

    def set_corrected(self, counts: Mapping[str, int]) -> None:
        """How many corrections stand of each clip."""
        self.database.execute("delete from corrected")
        if counts:
            values = {"ids": list(counts), "nums": list(counts.values())}
            self.database.execute(
                "insert into corrected select unnest($ids::varchar[]), unnest($nums::bigint[])", **values
            )

    def summary(self) -> dict[str, Any]:
        """What the collection holds, and what its filters offer."""
        days = self.database.rows(
            "select day, count(*) as num from clips where day is not null group by day order by day desc limit $most",
            most=MAX_CHOICES,
        )
        shows = self.database.rows(
            'select "show", count(*) as num from clips where "show" <> \'\' group by 1 order by 2 desc, 1 limit $most',
            most=MAX_CHOICES,
        )
        reasons = self.database.rows(
            "select reason, count(*) as num from clips where reason is not null group by reason order by num desc"
        )
        return {
            "num_clips": self.database.value("select count(*) from clips"),
            "days": list(days),
            "shows": list(shows),
            "reasons": list(reasons),
        }

    def page(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """A page of rows that fit the filters, with the counts of all that fit. Raises BadQuestionError."""
        where, values = self._where(asked)
        size = min(_whole(asked, "size", 50), MAX_ROWS)
        start = _whole(asked, "start", 0)
        rows = self.database.rows(
            f"select {_ROW}, coalesce(k.num, 0) as num_corrections {self._other_columns()} from"
            f" (select * from clips c where {where} order by {_order(asked)} limit $size offset $start) c"
            f" left join corrected k on k.clip_id = c.clip_id {self._other_join()} order by {_order(asked)}",
            **values,
            size=max(size, 1),
            start=start,
        )
        return {"rows": [_json(row) for row in rows], "start": start, **self.counts(asked)}

    def counts(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """How many clips fit, by emotion and by state."""
        where, values = self._where(asked)
        found = list(
            self.database.rows(
                f"select emotion, state, {_ABSTAINED} as is_abstained, count(*) as num from clips c where {where}"
                " group by all",
                **values,
            )
        )
        emotions = dict.fromkeys(self.classes, 0)
        num_abstained = 0
        states: dict[str, int] = {}
        for row in found:
            if row["emotion"] is not None:
                emotions[row["emotion"]] += row["num"]
            elif row["is_abstained"]:
                num_abstained += row["num"]
            states[row["state"]] = states.get(row["state"], 0) + row["num"]
        total = sum(row["num"] for row in found)
        return {"total": total, "emotions": emotions, "num_abstained": num_abstained, "states": states}

    def drift(self, asked: Mapping[str, str]) -> list[dict[str, Any]]:
        """For each night, oldest first, how many of the clips that fit have each emotion."""
        where, values = self._where(asked)
        parts = ", ".join(f"count(*) filter (emotion = '{name}') as \"{name}\"" for name in self.classes)
        return list(
            self.database.rows(
                f"select day, count(*) as num, avg(mean_entropy) as mean_entropy, {parts} from clips c"
                f" where {where} and day is not null and emotion is not null group by day order by day",
                **values,
            )
        )

    def neighbours(self, asked: Mapping[str, str], clip_id: str) -> dict[str, str | None]:
        """The clips before and after one, in the order that is asked for, among the first 100,000 that fit."""
        where, values = self._where(asked)
        found = next(
            self.database.rows(
                f"with ranked as (select c.clip_id, row_number() over (order by {_order(asked)}) as place from clips c"
                f" where {where} qualify place <= 100000), here as (select place from ranked where clip_id = $here)"
                " select max(clip_id) filter (s.place = here.place - 1) as before,"
                " max(clip_id) filter (s.place = here.place + 1) as after from ranked s, here"
                " where abs(s.place - here.place) = 1",
                **values,
                here=clip_id,
            ),
            None,
        )
        return found or {"before": None, "after": None}

    def _other_columns(self) -> str:
        return "" if self.other is None else ", o.emotion as other_emotion, o.probability as other_probability"

    def _other_join(self) -> str:
        return "" if self.other is None else "left join other o on o.clip_id = c.clip_id"

    def _where(self, asked: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
        parts, values = ["true"], {}
        for name, column in _EXACT.items():
            if asked.get(name):
                parts.append(f"{column} = ${name}")
                values[name] = asked[name]
        if emotion := asked.get("emotion"):
            if emotion not in (*self.classes, ABSTAINED):
                names = ", ".join((*self.classes, ABSTAINED))
                raise BadQuestionError(f"emotion is {emotion!r}; give one of {names}")
            if emotion == ABSTAINED:
                parts.append(f"({_ABSTAINED})")
            else:
                parts.append("c.emotion = $emotion")
                values["emotion"] = emotion
        for name, (column, sign) in _BETWEEN.items():
            if asked.get(name):
                parts.append(f"{column} {sign} ${name}")
                values[name] = _number(asked, name)
        if asked.get("q"):
            parts.append("contains(lower(c.path), lower($q))")
            values["q"] = asked["q"]
        if corrected := asked.get("corrected"):
            if corrected not in ("yes", "no"):
                raise BadQuestionError(f"corrected is {corrected!r}; give yes or no")
            sign = "in" if corrected == "yes" else "not in"
            parts.append(f"c.clip_id {sign} (select clip_id from corrected)")
        if asked.get("differ"):
            if self.other is None:
                raise BadQuestionError("differ is asked, but there is one model")
            parts.append(
                "c.clip_id in (select a.clip_id from clips a join other b using (clip_id) where a.emotion <> b.emotion)"
            )
        return " and ".join(parts), values


def _order(asked: Mapping[str, str]) -> str:
    name = asked.get("sort") or "path"
    if name.removeprefix("-") not in SORTS:
        raise BadQuestionError(f"sort is {name!r}; give one of {', '.join(SORTS)}, with - before it for descending")
    direction = "desc" if name.startswith("-") else "asc"
    return f"{SORTS[name.removeprefix('-')]} {direction} nulls last, c.path, c.clip_id"


def _number(asked: Mapping[str, str], name: str) -> float:
    try:
        value = float(asked[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadQuestionError(f"{name} is {asked[name]!r}; give a number")
    return value


def _whole(asked: Mapping[str, str], name: str, default: int) -> int:
    text = asked.get(name) or str(default)
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise BadQuestionError(f"{name} is {text!r}; give a whole number from 0")
    return int(text)


def _json(row: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
