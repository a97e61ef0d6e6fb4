"""The objects of mem0 that agno and LlamaIndex build and call for an agent.

async-history run -- python -m tests.subprocesses.mem0_frameworks agno|llama_index CONFIGURATION

It does not use this library itself. The configuration is mem0's, in JSON. Prints the answers.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

os.environ["MEM0_TELEMETRY"] = "False"  # mem0 reads it when it is imported


def agno(configuration: dict[str, Any]) -> list[str]:
    """Add a memory and delete all of a user's, with the tools of an agent."""
    from agno.run import RunContext
    from agno.tools.mem0 import Mem0Tools

    tools = Mem0Tools(configuration, user_id="ann", all=True)
    run = RunContext(run_id="r", session_id="s")
    return [tools.add_memory(run, "I like tea"), tools.delete_all_memories(run)]


def llama_index(configuration: dict[str, Any]) -> list[str]:
    """Put a message into an agent's memory, and return what it knows about a question."""
    from llama_index.core.llms import ChatMessage
    from llama_index.memory.mem0 import Mem0Memory

    memory = Mem0Memory.from_config(context={"user_id": "ann"}, config=configuration)
    memory.put(ChatMessage(role="user", content="I like tea"))
    return [str(message.content) for message in memory.get("tea?")]


FRAMEWORKS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "agno": agno,
    "llama_index": llama_index,
}

if __name__ == "__main__":
    _, name, configuration = sys.argv
    for answer in FRAMEWORKS[name](json.loads(configuration)):
        sys.stdout.write(f"{answer}\n")
