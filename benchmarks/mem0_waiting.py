"""What do agents with a slow model gain: mem0's AsyncMemory, the same with more threads, and ours?

    python -m benchmarks.mem0_waiting [--quick] [--repeat 3] [--dir FOLDER]

100 agents repeatedly call `add(infer=True)`. The model answers after 0.3 s, embedder and vector
store after 5 ms, and nothing is computed: the result shows how many calls wait at the same time.
"""

import asyncio
import random
import time
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from benchmarks._measure import median, quiet_collector
from benchmarks._processes import PLAIN
from benchmarks._report import (
    Bar,
    as_json,
    each,
    options_parser,
    print_bars,
    rate,
    results_folder,
    work_folder,
    write_json,
)
from benchmarks.mem0 import OURS, InstantModels, InstantStore, memory_of

MORE_THREADS: Final = f"{PLAIN}, 128 threads"
_MODEL_S: Final = 0.3
_OTHERS_S: Final = 0.005


class WaitingStore(InstantStore):
    """A vector store that answers after 5 ms."""

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not callable(found) or name.startswith("_"):
            return found

        def answer(*arguments: Any, **options: Any) -> Any:
            time.sleep(_OTHERS_S)
            return found(*arguments, **options)

        return answer


class WaitingModels(InstantModels):
    """An embedder that answers after 5 ms, a model that answers after 0.3 s."""

    def embed_batch(self, texts: Sequence[str], *_: Any, **__: Any) -> list[list[float]]:
        time.sleep(_OTHERS_S)
        return super().embed_batch(texts)

    def embed(self, *_: Any, **__: Any) -> list[float]:
        time.sleep(_OTHERS_S)
        return super().embed()

    def generate_response(self, **options: Any) -> str:
        time.sleep(_MODEL_S)
        return super().generate_response(**options)


def measure(peer: str, agents: int, seconds: float, folder: Path) -> float:
    """Let agents add for some seconds; return the finished additions a second."""
    folder.mkdir()
    ended = 0

    async def agent(memory: Any, number: int, until: float) -> None:
        nonlocal ended
        while time.perf_counter() < until:
            await memory.add(f"I like tea, {ended}", user_id=f"u{number}")
            ended += 1

    async def work() -> float:
        if peer == MORE_THREADS:
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(128))
        async with memory_of(OURS if peer == OURS else PLAIN, folder) as memory:
            memory.vector_store = memory._entity_store = WaitingStore()
            memory.embedding_model = memory.llm = WaitingModels()
            await memory.history("nothing")  # opens the file
            begun = time.perf_counter()
            await asyncio.gather(*(agent(memory, n, begun + seconds) for n in range(agents)))
            return ended / (time.perf_counter() - begun)

    with quiet_collector():
        return asyncio.run(work())


def main(options: Namespace) -> None:
    """Measure, print, and write the results."""
    agents, seconds = (10, 0.1) if options.quick else (100, 10.0)
    found: dict[str, list[float]] = {PLAIN: [], MORE_THREADS: [], OURS: []}
    with work_folder(options.dir) as folder:
        for repetition in range(1 if options.quick else options.repeat):
            for peer in random.sample(sorted(found), 3):
                place = folder / f"{repetition}.{peer.replace(' ', '_')}"
                found[peer].append(measure(peer, agents, seconds, place))
        results = results_folder(options, folder)
        reached: list[Bar] = []
        for peer, limit in ((PLAIN, 8), (MORE_THREADS, 2.5)):
            ratios = [one / two for one, two in zip(found[OURS], found[peer], strict=True)]
            figures = f"{rate(median(found[OURS]))} / {rate(median(found[peer]))}; {each(ratios)}"
            name = f"{agents} agents, a model of {_MODEL_S} s: additions/s against {peer}"
            reached.append(Bar(name, limit, median(ratios), figures))
        print_bars(reached)
        write_json(
            results / "mem0_waiting.json",
            {"bars": [as_json(bar) for bar in reached], "additions_per_s": found},
        )


if __name__ == "__main__":
    main(options_parser(__doc__).parse_args())
