-- Version 4. An id is unique by the key alone, for all writers: no look-up, no lock.
CREATE UNIQUE INDEX history_pkey_next4 ON history (id);
ALTER TABLE history DROP CONSTRAINT history_pkey;
ALTER TABLE history ADD CONSTRAINT history_pkey PRIMARY KEY USING INDEX history_pkey_next4;
