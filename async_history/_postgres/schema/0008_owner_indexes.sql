-- Version 8. The records of an owner's scope, and of a cause, in order. Records without them have
-- no entries.
CREATE INDEX history_user_next8 ON history (user_id, seq) WHERE user_id IS NOT NULL;
CREATE INDEX history_agent_next8 ON history (agent_id, seq) WHERE agent_id IS NOT NULL;
CREATE INDEX history_run_next8 ON history (run_id, seq) WHERE run_id IS NOT NULL;
CREATE INDEX history_app_next8 ON history (app_id, seq) WHERE app_id IS NOT NULL;
CREATE INDEX history_cause_run_next8 ON history (cause_run_id, seq) WHERE cause_run_id IS NOT NULL;
CREATE INDEX history_cause_trace_next8 ON history (cause_trace_id, seq) WHERE cause_trace_id IS NOT NULL;
CREATE INDEX history_cause_request_next8 ON history (cause_request_id, seq) WHERE cause_request_id IS NOT NULL;
ALTER INDEX history_user_next8 RENAME TO history_user;
ALTER INDEX history_agent_next8 RENAME TO history_agent;
ALTER INDEX history_run_next8 RENAME TO history_run;
ALTER INDEX history_app_next8 RENAME TO history_app;
ALTER INDEX history_cause_run_next8 RENAME TO history_cause_run;
ALTER INDEX history_cause_trace_next8 RENAME TO history_cause_trace;
ALTER INDEX history_cause_request_next8 RENAME TO history_cause_request;
