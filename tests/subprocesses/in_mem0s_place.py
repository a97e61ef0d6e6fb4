"""A pytest plugin that puts our classes in place of mem0's Memory, AsyncMemory and SQLiteManager.

MEM0_TELEMETRY=False python -m pytest -p tests.subprocesses.in_mem0s_place mem0/tests/memory
"""

import mem0
from mem0.memory import main, storage

from async_history.blocking import BlockingHistoryManager
from async_history.mem0 import AsyncMemory, Memory

mem0.Memory = main.Memory = Memory
mem0.AsyncMemory = main.AsyncMemory = AsyncMemory
storage.SQLiteManager = main.SQLiteManager = BlockingHistoryManager
