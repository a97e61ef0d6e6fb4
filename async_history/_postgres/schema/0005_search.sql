-- Version 5. Indexes with which a page costs the same in a history of any size: see
-- _postgres/reading/filters.py. The times in every chunk of positions, and in every span of it. The records
-- of each event, role and actor in order (NULL is not ordered). And the memories with records
-- without a time: none if this library wrote the history.
CREATE INDEX history_chunk_time_next5 ON history ((seq >> 16), occurred_at);
CREATE INDEX history_span_time_next5 ON history ((seq >> 10), occurred_at);
CREATE INDEX history_kind_next5 ON history (event, coalesce(role, ''), seq);
CREATE INDEX history_actor_next5 ON history (actor_id, event, coalesce(role, ''), seq) WHERE actor_id IS NOT NULL;
CREATE INDEX history_undated_next5 ON history (memory_id) WHERE occurred_at IS NULL;
DROP INDEX history_actor;
DROP INDEX history_time;
ALTER INDEX history_chunk_time_next5 RENAME TO history_chunk_time;
ALTER INDEX history_span_time_next5 RENAME TO history_span_time;
ALTER INDEX history_kind_next5 RENAME TO history_kind;
ALTER INDEX history_actor_next5 RENAME TO history_actor;
ALTER INDEX history_undated_next5 RENAME TO history_undated;
