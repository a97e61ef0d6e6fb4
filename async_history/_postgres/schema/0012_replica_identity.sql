-- Version 12. While a publication of all tables covers this one, its row can be changed only if logical
-- replication can identify it. It has no primary key.
ALTER TABLE owners_state REPLICA IDENTITY FULL;
