"""Dynamic batching: images that arrive one at a time are classified in batches, by one thread, in order of arrival."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class Batcher(Generic[Result]):
    """Collects waiting images into batches and returns to each caller its own result.

    Args:
        classify: Function from prepared images to the result of each; called in a separate thread, one call at a time.
        batch_size: Largest number of images per call.
        wait_seconds: Time that the first image of a batch waits for others, in seconds.
    """

    def __init__(
        self, classify: Callable[[list[Any]], Iterable[Result]], *, batch_size: int, wait_seconds: float
    ) -> None:
        self._classify, self._batch_size, self._wait_seconds = classify, batch_size, wait_seconds
        self._waiting: asyncio.Queue[tuple[Any, asyncio.Future[Result]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="classify")
        self._task: asyncio.Task[None] | None = None
        self.batches = 0

    def start(self) -> None:
        """Start the batcher in the running event loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop without waiting for the running batch; queued images are dropped."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def answer(self, image: Any) -> Result:
        """Return the result of one prepared image."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((image, future))
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next_batch()
            try:
                results = await loop.run_in_executor(self._thread, self._classify, [image for image, _ in batch])
            except Exception as error:  # any error of the network goes to the callers; the loop must continue
                answers: list[Any] = [error] * len(batch)
            else:
                answers = list(results)
            self.batches += 1
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():  # the caller has gone
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    async def _next_batch(self) -> list[tuple[Any, asyncio.Future[Result]]]:
        batch = [await self._waiting.get()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._wait_seconds):
                while len(batch) < self._batch_size:
                    batch.append(await self._waiting.get())
        return batch
