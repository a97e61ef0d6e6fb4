"""A pytest plugin: what imports mem0's SQLiteManager after it gets ours.

python -m pytest -p tests.programs.in_mem0s_place mem0/tests/memory/test_storage.py
"""

import mem0.memory.storage

from async_history.blocking import BlockingHistoryManager

mem0.memory.storage.SQLiteManager = BlockingHistoryManager
