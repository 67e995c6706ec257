-- Every question about a run, by name. Tables: plan (a row a planned clip or segment, in order), entries, shards and
-- outcomes (of committed units), outcome_defaults (one row: a clip that is not finished), given (today's clips).

-- name: views
create or replace view waiting as select p.* from plan p anti join entries using (unit);
create or replace view replaced as select distinct replaces as clip_id from plan where replaces is not null;

-- name: view_stored
create or replace view shards_by_name as
select path, regexp_extract(path, '^[^/]+/[^/]+/(g\d{3,}-u\d{6,})-[0-9a-f]+\.parquet$', 1) as unit from stored;

-- name: add_listed
insert into listed by name select unit, num_bytes from given_rows anti join listed using (unit, num_bytes);

-- name: add_entries
-- Of entries (given_rows) those that are listed with these bytes and were not read yet. Raises where one is not whole,
-- before it adds any.
create or replace temp table read as
select *, case
    when e.unit is distinct from unit then error('it is no entry of unit ' || unit)
    when coalesce(json_type(e.facts), '') <> 'OBJECT' then error('it has no facts')
    when e.shards is null or list_contains([s.path is null or s."table" is null or s.rows is null or s.bytes is null
        or s.sha256 is null for s in e.shards], true) then error('its shards are not whole')
    when e.outcomes is null or list_contains([o.clip_id is null or o.path is null for o in e.outcomes], true)
        then error('its outcomes are not whole')
    when list_contains([not coalesce(is_state(o.state), false) for o in e.outcomes], true)
        then error('it has a state that is none') end as fault
from (select unit, num_bytes, entry_of(decode(entry)) as e
    from given_rows semi join listed using (unit, num_bytes) anti join entries using (unit));
insert into entries by name select unit, num_bytes, e.facts::varchar as facts from read;
insert into shards by name select unit, place - 1 as place, s.*
from (select unit, unnest(e.shards) as s, generate_subscripts(e.shards, 1) as place from read);
insert into outcomes by name select unit, o.* from (select unit, unnest(e.outcomes) as o from read);

-- name: settle_repeated
-- Rows of the plan beside which there are others of the same whole clip. By hashes first: most clips have one row.
create or replace table repeated as
with seen as (select hash(split_part(clip_id, '.', 1)) as h from plan group by h having count(*) > 1),
    beside as (
    select ordinal, unit, clip_id, split_part(clip_id, '.', 1) as whole from plan
    where hash(split_part(clip_id, '.', 1)) in (from seen))
select ordinal, unit, clip_id, ordinal > min(ordinal) over (partition by whole) as is_later,
    ordinal < max(ordinal) over (partition by clip_id) as is_superseded from beside;

-- name: settle_unfinished
create or replace table unfinished as
select unit, clip_id, path from waiting anti join (select ordinal from repeated where is_superseded) using (ordinal);

-- name: settle_latest_parts
create or replace view latest_parts as
with ended as (
    select o.* from outcomes o anti join (select unit, clip_id from repeated where is_superseded) using (unit, clip_id)
    union all by name
    select d.* replace (u.clip_id as clip_id, u.path as path), u.unit from unfinished u, outcome_defaults d)
select e.* replace (
    if(r.clip_id is null or e.state = 'forgotten', e.state, 'changed') as state,
    if(r.clip_id is null or e.state = 'forgotten', e.reason, 'replaced') as reason,
    if(r.clip_id is null or e.state = 'forgotten', e.detail, 'other bytes lie at its path now; they are an input of their own') as detail)
from ended e left join replaced r on r.clip_id = split_part(e.clip_id, '.', 1);

-- name: settle_joined
-- One row for each clip that was cut, from its segments: retryable while one is, else done if any gave examples. Segments
-- past the file's end, which a header made that claims too much, decide only if there are no others. {picked} combines
-- each column as it is declared.
create or replace table joined as
with parts as (
    select *, split_part(clip_id, '.', 1) as whole, split_part(clip_id, '.', 2)::bigint as number,
        coalesce(reason in ('range_past_end', 'no_frames'), false) as is_absent
    from latest_parts where contains(clip_id, '.')),
    real as (select *, not is_absent or bool_and(is_absent) over (partition by whole) as is_real from parts),
    ranked as (
    select *, number + 1000000 * case when not is_real then 9 else coalesce(
        list_position(['retryable', 'changed', 'done', 'quarantined', 'no_face'], state), 8) end as rank from real),
    summed as (
    select whole as clip_id, {picked}, arg_min(unit, number) as unit,
        count_if(is_real and state = 'quarantined') as num_failed, count_if(is_real) as num_real,
        arg_min(reason || ': ' || coalesce(detail, 'None'), rank) filter (is_real and state = 'quarantined') as failed,
        arg_min_null(detail, rank) as first_detail
    from ranked group by whole)
select * exclude (num_failed, num_real, failed, first_detail), if(num_failed = 0, first_detail,
    num_failed || ' of ' || num_real || ' segments are quarantined, the first: ' || failed) as detail
from summed;

-- name: settle_latest
-- One row for each input. A clip that was cut and has a unit of its own has its outcome there.
create or replace table joined_alone as
select * from joined anti join (select clip_id from latest_parts where not contains(clip_id, '.')) using (clip_id);
create or replace view latest as
select * from latest_parts where not contains(clip_id, '.') union all by name select * from joined_alone;

-- name: settle_planned
create or replace view planned as
select * exclude (unit, generation) replace (
    split_part(clip_id, '.', 1) as clip_id, nullif(same_as, clip_id) as same_as,
    if(contains(clip_id, '.'), null, start_pts_seconds) as start_pts_seconds,
    if(contains(clip_id, '.'), null, end_pts_seconds) as end_pts_seconds)
from plan anti join (select ordinal from repeated where is_later) using (ordinal);

-- name: recognise
-- A file that could not be seen today, or whose store gives no hash, is the input that was planned at its address. One
-- of another size, or that is there after all, takes that one's place.
create or replace table given as
with stands as (
    select p.*, coalesce(l.state = 'quarantined' and l.reason = 'missing', false) as was_missing
    from planned p anti join replaced using (clip_id) left join latest l using (clip_id)),
    unsure as (select * from given where not has_content),
    own as (select g.clip_id, p.clip_id as planned_id from unsure g join stands p using (clip_id)),
    others as (
    select g.clip_id, p.clip_id as planned_id
    from (select * from unsure anti join own using (clip_id)) g
    join (select * from stands where clip_id not in (select planned_id from own)) p on p.path = g.path
        and p.start_pts_seconds is not distinct from g.start_pts_seconds
        and p.end_pts_seconds is not distinct from g.end_pts_seconds
    qualify count(*) over (partition by g.clip_id) = 1 and count(*) over (partition by p.clip_id) = 1),
    matched as (
    select m.clip_id, p.* exclude (clip_id), p.clip_id as planned_id, g.content_id <> '' or (
        not p.was_missing and (p.size_bytes = g.size_bytes or p.size_bytes = 0 or g.size_bytes = 0)) as is_same
    from (from own union all from others) m join unsure g using (clip_id) join stands p on p.clip_id = m.planned_id)
select g.* replace (
    case when m.is_same then m.planned_id when m.is_same is null then g.clip_id
        else left(sha256(g.clip_id || ' ' || g.size_bytes), 20) end as clip_id,
    if(m.is_same, m.content_id, g.content_id) as content_id,
    if(m.is_same, m.size_bytes, g.size_bytes) as size_bytes, if(m.is_same, m.split, g.split) as split)
from given g left join matched m on not g.has_content and m.clip_id = g.clip_id;

-- name: replaced_with_rows
-- Planned clips that other bytes replaced, and of which rows are still in shards.
select distinct o.clip_id from outcomes o join replaced r on r.clip_id = split_part(o.clip_id, '.', 1)
where o.num_examples > 0;

-- name: substitute
create or replace table given as
with whole as (select distinct split_part(clip_id, '.', 1) as clip_id from parts)
select * from given anti join whole using (clip_id)
union all by name
select p.*, g.modified_seconds, g.is_split_given, g.reading_key, g.has_content
from parts p join given g on g.clip_id = split_part(p.clip_id, '.', 1);

-- name: find_gone
create or replace table gone as
select p.* from planned p
anti join (select split_part(clip_id, '.', 1) as clip_id from given) using (clip_id)
anti join replaced using (clip_id);

-- name: find_new
-- What no plan has. A split is decided once: what the input gives no split follows planned bytes that are the same (of
-- members of archives that were not read on both sides: that are likely to be), then its planned group (or planned bytes
-- of a clip of its group), then the input whose path it has and that is gone. Other bytes at the path of an input that
-- is gone replace it.
create or replace table new as
with fresh as materialized (
    select *, told_bytes(content_id, bytes_id, url) as told, likeness_of(bytes_id, url) as likeness,
        is_md5(bytes_id) as is_read
    from given anti join planned p on p.clip_id = split_part(given.clip_id, '.', 1)),
    today as (select distinct split_part(clip_id, '.', 1) as clip_id, bytes_id from given where is_md5(bytes_id)),
    members as (
    select p.* replace (coalesce(t.bytes_id, p.bytes_id) as bytes_id)
    from (
        select clip_id, url, size_bytes, bytes_id, split, ordinal from planned semi join fresh using (size_bytes)
        where starts_with(url, 'archive://') or bytes_id is not null) p
    left join today t using (clip_id) anti join replaced r on r.clip_id = p.clip_id),
    same as materialized (
    select bytes, size_bytes, arg_min(split, ordinal) as split
    from (
        select content_id as bytes, size_bytes, split, ordinal from planned anti join replaced using (clip_id)
        union all by name
        select bytes_id as bytes, size_bytes, split, ordinal from members where is_md5(bytes_id))
    semi join (select unnest(told) as bytes, size_bytes from fresh) using (bytes, size_bytes) group by all),
    likely as (
    select likeness, size_bytes, is_md5(bytes_id) as is_read, arg_min(split, ordinal) as split
    from (select *, likeness_of(bytes_id, url) as likeness from members)
    semi join fresh using (likeness, size_bytes) group by all),
    alike as materialized (
    select f.clip_id, coalesce(
        any_value(s.split order by s.bytes = f.told[1]), any_value(l.split order by l.is_read)) as split
    from fresh f
    left join same s on s.bytes in (f.told[1], f.told[2]) and s.size_bytes = f.size_bytes
    left join likely l on l.likeness = f.likeness and l.size_bytes = f.size_bytes and not (l.is_read and f.is_read)
    group by f.clip_id),
    kin as (
    select group_name, coalesce(
        (select arg_min(p.split, p.ordinal) from planned p where p.group_name = f.group_name),
        arg_min(s.split, f.clip_id)) as split
    from fresh f left join alike s using (clip_id) where group_name is not null group by group_name)
select g.* exclude (told, likeness, is_read) replace (
    if(coalesce(g.is_split_given, true) or g.split is null, coalesce(o.split, g.split),
        coalesce(s.split, k.split, o.split, g.split)) as split),
    o.clip_id as replaces
from fresh g
left join alike s on s.clip_id = g.clip_id
left join kin k on k.group_name = g.group_name
left join (select * from gone qualify row_number() over (
        partition by path, start_pts_seconds, end_pts_seconds order by ordinal desc) = 1) o on o.path = g.path
    and o.start_pts_seconds is not distinct from if(contains(g.clip_id, '.'), null, g.start_pts_seconds)
    and o.end_pts_seconds is not distinct from if(contains(g.clip_id, '.'), null, g.end_pts_seconds);

-- name: find_retried
-- Also a clip whose bytes were others when it was read, and are again those that were planned.
create or replace table retried as
with failed as (
    select unit, clip_id, reason from outcomes where state = 'retryable' or (
        state = 'changed' and reason = 'other_bytes'
        and split_part(clip_id, '.', 1) in (select clip_id from given where has_content))),
    again as (
    select o.unit, o.clip_id, o.reason from failed o semi join (
        select arg_max(unit, ordinal) as unit, clip_id from plan
        semi join failed using (clip_id) group by clip_id)
    using (unit, clip_id)),
    live as (
    select p.* replace (if(a.reason = 'original_changed', null, p.same_as) as same_as)
    from plan p join again a using (unit, clip_id)
    where split_part(clip_id, '.', 1) not in (select clip_id from replaced))
select l.* exclude (unit, ordinal, generation), g.reading_key
from live l left join given g on g.clip_id = split_part(l.clip_id, '.', 1);

-- name: choose
drop table if exists chosen;
alter table new rename to chosen;
insert into chosen by name select * from retried;

-- name: choose_again
create or replace table chosen as
select * exclude (unit, ordinal, generation), null::double as modified_seconds, true as is_split_given,
    '' as reading_key, false as has_content
from plan semi join (select min(ordinal) as ordinal from plan group by clip_id) using (ordinal)
where clip_id in (select unnest($ids));

-- name: relabelled
select p.path from planned p join given g on g.clip_id = p.clip_id
where p.label is distinct from g.label or (p.split is distinct from g.split and p.replaces is null
    and coalesce(g.is_split_given, true)) order by p.ordinal;

-- name: sort_for_units
-- Groups of one split; first what is a unit by itself (a segment, a clip that joins some), then the others. Members of
-- one compressed stream follow one another; all else goes by id, which mixes the classes.
create or replace table sorted as
select * exclude (grp, alone, reading_key, has_content, is_split_given), grp, alone from (
    select *, if(same_as is not null, 'copies', coalesce(split, 'unsplit')) as grp,
        contains(clip_id, '.') or coalesce(same_as = clip_id, false) as alone from chosen)
order by grp, alone desc, reading_key, clip_id;

-- name: number_units
-- Of each group the first row, how many clips are a unit, and the number of the first. From the row $tail on, the last
-- that actors will do, units are smaller, so that all actors end at about the same time.
create or replace table numbered as
with groups as (select alone, min(rowid) as first, count(*) as rows from sorted group by grp, alone),
pieces as (
    select first, least(rows, greatest($tail - first, 0)) as rows, if(alone, 1, $size) as size from groups
    union all
    select greatest(first, $tail), least(rows, greatest(first + rows - $tail, 0)), if(alone, 1, $tail_size) from groups)
select *, (coalesce(sum((rows + size - 1) // size) over (
    order by first rows between unbounded preceding and 1 preceding), 0))::bigint as before from pieces where rows > 0;

-- name: num_units
select coalesce(max(before + (rows + size - 1) // size), 0) from numbered;

-- name: rows_of_generation
select min(first + greatest($start - before, 0) * size) as low,
    max(least(first + rows, first + ($end - before) * size)) - 1 as high
from numbered where before < $end and before + (rows + size - 1) // size > $start;

-- name: generation
select s.* exclude (grp, alone, modified_seconds),
    $name || printf('%06d', n.before + (s.rowid - n.first) // n.size - $start) as unit
from sorted s asof join numbered n on s.rowid >= n.first where s.rowid between $low and $high order by s.rowid;

-- name: pending
-- Planned units without an entry, and today's addresses of their clips where they are others.
create or replace table pending as select ordinal, unit, clip_id, same_as from waiting;
create or replace table moved as
select w.ordinal, any_value(g.url) as url
from waiting w join given g on split_part(g.clip_id, '.', 1) = split_part(w.clip_id, '.', 1) where g.url <> w.url
group by w.ordinal;

-- name: pending_units
create or replace table pending_units as
with found as (
    select unit, min(ordinal) as first, case when bool_or(same_as = clip_id) then 'joins'
        when any_value(same_as) is not null then 'copies' else 'compute' end as kind
    from pending group by unit)
select unit, kind, row_number() over (partition by kind order by first) - 1 as place from found order by kind, place;

-- name: pending_counts
select count(distinct unit) as units, count(*) as parts, count(*) filter (contains(clip_id, '.')) as segments,
    count(distinct hash(split_part(clip_id, '.', 1))) as clips
from pending semi join (select unit from pending_units where list_contains($kinds, kind)) using (unit);

-- name: pending_rows
select p.* replace (coalesce(m.url, p.url) as url), u.kind, r.clip_id is not null as is_replaced
from plan p join (
    select unit, kind from pending_units where list_contains($kinds, kind) and place >= $start and place < $end) u
using (unit) left join moved m using (ordinal)
left join replaced r on r.clip_id = split_part(p.clip_id, '.', 1) order by p.ordinal;

-- name: unaccounted
-- Units whose entry does not have exactly the clips that were planned for it, told by their number and hashes.
with planned_rows as (
    select unit, count(*) as rows, sum(hash(clip_id)) as hashes from plan semi join entries using (unit) group by unit),
    found as (select unit, count(*) as rows, sum(hash(clip_id)) as hashes from outcomes group by unit)
select unit from planned_rows p full join found f using (unit)
where p.rows is distinct from f.rows or p.hashes is distinct from f.hashes order by unit;

-- name: lost_shards
select s.unit, s.path, s.bytes, f.bytes as stored from shards s left join stored f using (path)
where f.bytes is distinct from s.bytes order by s.unit, s.path;

-- name: miscounted_units
-- The first table of a unit has a row for each of its examples.
with first as (select unit, arg_min(rows, place) as rows from shards group by unit),
    counted as (select unit, sum(num_examples)::bigint as examples from outcomes group by unit)
select unit, rows, coalesce(examples, 0) as examples from first left join counted using (unit)
where rows <> coalesce(examples, 0) order by unit;

-- name: done_twice
with done as (select clip_id, hash(clip_id) as h from outcomes where state = 'done'),
    seen as (select h from done group by h having count(*) > 1)
select o.clip_id from (select clip_id from done where h in (from seen)) o
anti join replaced r on r.clip_id = split_part(o.clip_id, '.', 1) group by o.clip_id having count(*) > 1 order by 1;

-- name: without_state
select clip_id from planned anti join latest using (clip_id) order by clip_id;

-- name: foreign_shards
-- Parquet files that readers of the whole folder would count, and that no entry names. Not those of units that an
-- actor may be about to commit.
select f.path from stored f anti join shards using (path)
where f.path like '%.parquet' and f.path not in (select path from shards_by_name semi join waiting using (unit))
order by f.path;

-- name: orphans
-- What an attempt left that was not the first; names that no worker gives are not ours to delete.
select path from shards_by_name anti join shards using (path) semi join entries using (unit) order by path;

-- name: not_planned
select distinct path from given where hash(split_part(clip_id, '.', 1)) not in (select hash(clip_id) from planned) order by 1;

-- name: ended_now
-- The inputs of which units brought something that had no entry when this run began.
with now as (
    select unit from entries anti join old_entries using (unit) semi join (select unit from plan where same_as is null)
    using (unit))
select l.state, l.reason, count(*) as count from latest l
where l.unit in (from now) or l.clip_id in (
    select split_part(clip_id, '.', 1) from latest_parts where contains(clip_id, '.') and unit in (from now))
group by all;

-- name: peak_memory
select max((facts::json ->> 'peak_child_memory_bytes')::bigint) from entries;

-- name: to_list
-- Of the inputs the first by path, the first of those that are not done, what somebody may act on before the others,
-- and the named ones.
select * from latest where list_contains($ids, clip_id)
or clip_id in (select clip_id from latest order by path, clip_id limit $most)
or clip_id in (
    select clip_id from latest where state <> 'done' order by state = 'no_face', reason, path, clip_id limit $most)
order by path, clip_id;

-- name: night_figures
-- What the units of each night add up to, by day. Sums are of decimals: alike in whatever order the rows lie.
with units as (
    select unit, f.* from (select unit, from_json(facts, '{"day": "VARCHAR", "labelled_clips": "BIGINT",
        "faces": "BIGINT", "entropy_sum": "DOUBLE", "emotion_share_sums": ["DOUBLE"]}') as f from entries)
    where f.day is not null),
    shares as (
    select day, place, sum(share::decimal(30, 12))::double as total from (
        select day, unnest(emotion_share_sums) as share, generate_subscripts(emotion_share_sums, 1) as place from units)
    group by all)
select day, labelled_clips, faces, entropy_sum, emotion_share_sums, clips, frames, faceless_frames, core_seconds,
    decode_integrity
from (select day, sum(labelled_clips)::bigint as labelled_clips, sum(faces)::bigint as faces,
    sum(entropy_sum::decimal(30, 12))::double as entropy_sum from units group by day)
left join (select day, list(total order by place) as emotion_share_sums from shares group by day) using (day)
left join (select day, count(*) as clips, sum(num_frames)::bigint as frames,
    sum(num_faceless_frames)::bigint as faceless_frames, sum(seconds::decimal(30, 6))::double as core_seconds,
    sum(decode_integrity::decimal(30, 12))::double / count(decode_integrity) as decode_integrity
    from outcomes join units using (unit) group by day) using (day)
order by day;

-- name: kin
-- The planned clips whose results hang together with the named whole clips': segments, what joins them, copies.
with parts as (
    select p.*, coalesce(nullif(same_as, clip_id), split_part(clip_id, '.', 1)) as original from plan p
    semi join (select min(ordinal) as ordinal from plan group by clip_id) using (ordinal))
select * exclude (original, unit, ordinal, generation, replaces) from parts
where original in (select original from parts where split_part(clip_id, '.', 1) in (select unnest($ids)))
order by ordinal;

-- name: copies
-- Planned copies without a row, each with the outcome of its original and the shard of that one's label.
select w.unit, w.clip_id, w.path, w.same_as, o.state, o.reason, o.stage, o.path as original_path, e.unit as original_unit,
    (select s.path from shards s where s.unit = o.unit and s."table" = 'clips') as shard
from waiting w left join latest o on o.clip_id = w.same_as left join entries e on e.unit = o.unit
where w.same_as is not null and w.same_as <> w.clip_id order by w.ordinal;

-- name: find_night
-- Of the given clips that are not planned what a model has to do. A clip with the bytes of a planned one is a copy, and
-- of several new ones with the same bytes the first leads. Only $limit contents are new. A planned clip at whose path
-- other bytes lie is nobody's original: it will be replaced.
create or replace table displaced as
select distinct p.clip_id from (select * from planned anti join given using (clip_id)) p
join given g on g.has_content and g.path = p.path and g.start_pts_seconds is not distinct from p.start_pts_seconds
    and g.end_pts_seconds is not distinct from p.end_pts_seconds;
create or replace table night as
with unknown as (
    select rowid as row, clip_id, path, start_pts_seconds, end_pts_seconds, modified_seconds, {content} as content
    from given anti join planned using (clip_id)),
    seen as (
    select p.content, arg_min(p.clip_id, p.ordinal) as original
    from (select *, {content} as content from planned anti join displaced using (clip_id) where same_as is null) p
    semi join unknown using (content) join latest l using (clip_id)
    where l.state <> 'changed' and not (l.state = 'quarantined' and coalesce(l.stage, '') = 'fetch') group by all),
    found as (
    select u.row, u.clip_id, u.content, s.original, s.original is not null as is_copy, row_number() over (
            order by path, coalesce(start_pts_seconds, 0), coalesce(end_pts_seconds, 'inf'::double), clip_id) as place,
        not is_copy and coalesce(modified_seconds < $since, false) as is_old
    from unknown u left join seen s using (content)),
    led as (
    select *, min(place) filter (not is_copy and not is_old) over (partition by content) as leader,
        coalesce(leader = place, false) as leads from found),
    counted as (
    select *, leads and count_if(leads) over (order by place) <= coalesce($limit, count(*) over ()) as is_new from led)
select c.row, c.is_copy, c.original, c.is_old, c.is_new,
    coalesce(not c.is_copy and c.leader < c.place and l.is_new, false) as follows, l.clip_id as leader_id
from counted c left join counted l on l.place = c.leader;

-- name: night_counts
with left_over as (
    select l.reason, p.same_as from latest l join planned p using (clip_id) where l.state = 'retryable')
select (select count(*) from given) - count(*) as num_known, count(*) filter (is_new) as num_new,
    count(*) filter (is_copy or follows) as num_copies, count(*) filter (is_old and not follows) as num_older,
    count(*) filter (not is_copy and not is_new and not follows and not is_old) as num_later,
    (select count(*) from left_over where same_as is not null) as num_copies_left,
    (select count(*) from left_over where same_as is null and reason <> 'not_finished') as num_retryable,
    (select count(*) from left_over where same_as is null and reason = 'not_finished') as num_cut_off
from night;

-- name: choose_night
-- What is known, new or a copy; and planned clips whose bytes lie under another name now, where they are to be read.
create or replace table elsewhere as
with gone as (
    select *, {content} as content from planned anti join displaced using (clip_id) where same_as is null
    and clip_id not in (select clip_id from given) and clip_id not in (select clip_id from replaced)),
    places as (
    select content, first(url order by path, coalesce(start_pts_seconds, 0), coalesce(end_pts_seconds, 'inf'::double),
        clip_id) as url
    from (select *, {content} as content from given) semi join gone using (content) group by content)
select g.* exclude (ordinal, replaces, content) replace (p.url as url) from gone g join places p using (content);
update given set same_as = if(n.is_copy, n.original, n.leader_id) from night n
where n.row = given.rowid and (n.is_copy or n.follows);
delete from given where rowid in (select row from night where not (is_copy or is_new or follows));
insert into given by name select *, false as has_content, '' as reading_key from elsewhere;
