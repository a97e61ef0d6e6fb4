"""One script a question, the peers in the same run: `python -m benchmarks.peers`, `.reads` …

Shared by them: what is recorded (`_records`), how it is timed (`_measure`), how it is told
(`_report`). The peers themselves are in `_peers` and `_postgres_peers`.
"""
