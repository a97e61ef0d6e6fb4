"""Benchmarks, one script for each question, with the peers in the same run.

For example: `python -m benchmarks.peers`. Shared modules: the records (`_records`), timing
(`_measure`) and reports (`_report`). The peers are in `_peers`, `_postgres_peers` and `_sql_peers`.
"""
