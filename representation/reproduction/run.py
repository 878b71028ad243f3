"""A reproduction: build the zoos, do the jobs in worker processes, draw, report. The same call resumes it.

>>> from representation.reproduction import reproduce
>>> state = reproduce(["table1", "figure5"], "smoke")
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from representation.reproduction.items import Item, Job, all_jobs, all_zoos, find_items
from representation.reproduction.job_costs import Speeds, job_memory
from representation.reproduction.report import write_report
from representation.reproduction.scales import find_scale
from representation.reproduction.state import Picture, ReproductionState, ZooState
from representation.reproduction.work import Workspace, do
from representation.training.memory import free_memory
from zootools.building.builder import build
from zootools.choices import STAGES, check_word
from zootools.engines.local import leave_with_parent
from zootools.errors import StorageError, WorkerError
from zootools.images.datasets import load_images
from zootools.images.shapes import has_images
from zootools.progress import duration
from zootools.spec import Images
from zootools.text import say

Task = tuple[Job, int, Sequence[str]]
"""A job, the seed, and the zoos that scores are transferred to."""
GPU_WORKERS = 8
"""Processes that share a GPU: an encoder of the recipe ``default`` leaves most of it idle, and takes about 1 GB."""


class Running(NamedTuple):
    """A job that a worker does."""

    job: Job
    seed: int
    begun: float
    """Time of the monotonic clock in seconds."""


def reproduce(
    what: Sequence[str] = ("all",),
    scale: str = "smoke",
    out: Path | None = None,
    *,
    data: Path | None = None,
    seeds: int | None = None,
    workers: int | None = None,
    only: str | None = None,
    quiet: bool = False,
) -> ReproductionState:
    """Reproduce tables and figures of the paper, and write the report beside the zoos and encoders.

    Args:
        what: names such as ``table1`` and ``figure8``, or ``all``.
        scale: ``smoke``, ``cpu``, ``paper`` or ``full`` (`representation.reproduction.scales`).
        out: the folder for zoos, encoders, results and the report; ``reproduction/<scale>`` by default. Existing zoos,
            encoders and results in it are used.
        data: folder of image files and of downloads (see `zootools.paths.data_folder`).
        seeds: encoders to train for each cell, with the seeds 0, 1, ...; by default as many as the scale says.
        workers: processes; one per core by default, with CUDA at most `GPU_WORKERS`. Encoders that do not fit into
            memory together are trained one after another.
        only: ``zoos`` builds the zoos; ``encoders`` trains and scores encoders on zoos that are built; ``report`` draws
            and writes with the results so far. By default all of it, each encoder as soon as its zoos are built.
        quiet: print nothing on stderr.

    Returns its state; `ReproductionState.filled` returns the cells of an item.

    If a job cannot be done, its cells have the reason. If the process is interrupted, the report is written with the
    results so far.

    Raises SpecError for unknown names and stages, or a folder with another content; StorageError when the disk refuses;
    WorkerError when a worker process died.
    """
    settings = find_scale(scale)
    items = [settings.part_of(item) for item in find_items(what)]
    workspace = Workspace.at(out, settings)
    stages = STAGES if only is None else (check_word("only", only, STAGES),)
    run = _Run(workspace, items, data, seeds or settings.seeds, workers or _cores(), stages, quiet)
    try:
        run.everything()
    finally:
        write_report(run.state)
    return run.state


def _cores() -> int:
    cores = os.cpu_count() or 1
    return min(cores, GPU_WORKERS) if torch.cuda.is_available() else cores


class _Run:
    """One call of `reproduce`."""

    def __init__(
        self,
        workspace: Workspace,
        items: list[Item],
        data: Path | None,
        seeds: int,
        workers: int,
        stages: Sequence[str],
        quiet: bool,
    ) -> None:
        self.workspace, self.items, self.data, self.seeds = workspace, items, data, seeds
        self.workers, self.stages, self.quiet, self.begun = workers, stages, quiet, time.monotonic()
        self.zoos = all_zoos(items)
        self.state = ReproductionState(workspace, items, seeds, data)
        self.built = set[str]()
        self.waiting = all_jobs(items)
        self.speeds: Speeds | None = None  # read before the first job, if the time left is printed

    def everything(self) -> None:
        """Build all zoos, do all jobs, draw all pictures; or those of these that were asked for."""
        self._look_for_images()
        there = [zoo for zoo in self.zoos if not self.state.zoos[zoo].reason]
        self.waiting = [job for job in self.waiting if job.zoo in there] if "encoders" in self.stages else []
        with _workers(self.workers) as pool:
            self._draw(pool)
            for zoo in there if "zoos" in self.stages else []:
                self._build(zoo)
                self.built.add(zoo)
                self._do(pool)
                self._draw(pool)
            # Without builds between them, the jobs of all zoos share the workers: none waits for the last of a zoo.
            self.built.update(there)
            self._do(pool)
            self._draw(pool)

    def _look_for_images(self) -> None:
        """Record which zoos there will not be, and which have other images."""
        unfit = dict[str, str]()  # reasons by image set, since a download that failed is not tried again
        for zoo in self.zoos:
            images = self.workspace.scale.spec(zoo).images
            built, stand_in, reason = self.workspace.is_built(zoo), None, ""
            if built or "zoos" in self.stages:
                stand_in = self.workspace.stand_in(zoo, self.data)
            else:
                reason = "no zoo: it is not built"
            if not built and not reason and stand_in is None and not has_images(images, self.data):
                if images.name not in unfit:
                    unfit[images.name] = self._fetch(images)
                reason = unfit[images.name]
            self.state.zoos[zoo] = ZooState(images.name if stand_in else "", stand_in, reason)

    def _fetch(self, images: Images) -> str:
        """Download images; return why that is not possible, or an empty string."""
        try:
            load_images(images, self.data)
        except StorageError as error:
            self._say(str(error))
            return f"no zoo: the image files of {images.name} are not here, nor could they be fetched"
        return ""

    def _build(self, zoo: str) -> None:
        """Build a zoo, or complete it."""
        spec = self.workspace.scale.spec(zoo, self.state.zoos[zoo].stand_in)
        self._say(f"{zoo}: {spec.models or spec.model_count} models, {spec.training.epochs} epochs")
        build(
            spec,
            self.workspace.zoo(zoo),
            backend=self.workspace.scale.backend,
            workers=self.workers,
            data=self.data,
            quiet=self.quiet,
        )

    def _do(self, pool: ProcessPoolExecutor) -> None:
        """Do the remaining jobs whose zoos are built, side by side as far as workers and memory allow."""
        if not (queue := self._ready()):
            return
        if not self.quiet and self.speeds is None:
            self.speeds = Speeds(self.workspace, all_jobs(self.items), self.seeds)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        free = pool.submit(free_memory, device).result()
        running = dict[Future[str], Running]()
        while queue or running:
            while len(running) < self.workers and (task := self._fitting(queue, running.values(), free)):
                queue.remove(task)
                running[pool.submit(do, self.workspace, *task)] = Running(*task[:2], time.monotonic())
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                (job, seed, _), reason = running.pop(future), future.result()
                if reason:
                    self.state.failures[job, seed] = reason
                elif self.speeds and (result := self.workspace.stored(job, seed)):
                    self.speeds.record(job, result.cpu_seconds)
                left = self._time_left(queue, running.values(), free)
                self._say(f"{job.name}, seed {seed}: {reason or 'done'}{left}")

    def _time_left(self, queue: Sequence[Task], running: Collection[Running], free: int) -> str:
        """Return how long the jobs take that are left; an empty string if none is, or nothing is printed."""
        if not self.speeds:
            return ""
        left = [*(job for job, _, _ in queue), *(job for job in self.waiting for _ in range(self.seeds))]
        times, now = [(job, self.speeds.seconds(job)) for job in left], time.monotonic()
        times += [(job, max(self.speeds.seconds(job) - (now - begun), 0)) for job, _, begun in running]
        if not times:
            return ""
        together = sum(seconds / self._side_by_side(job, free) for job, seconds in times)
        return f"; jobs take about {duration(max(together, *(seconds for _, seconds in times)))} more"

    def _side_by_side(self, job: Job, free: int) -> int:
        """Return how many jobs like this one can run at the same time."""
        return max(min(self.workers, free // max(job_memory(self.workspace.scale, job), 1)), 1)

    def _ready(self) -> list[Task]:
        """Return the tasks whose zoos are built and whose results are not there; their jobs wait no longer."""
        ready = list[Task]()
        for job in list(self.waiting):
            others = [zoo for zoo in job.transfers if zoo in self.zoos and not self.state.zoos[zoo].reason]
            wanted = {job.zoo, *others} if not job.last else {z for z in self.zoos if not self.state.zoos[z].reason}
            if wanted <= self.built:
                self.waiting.remove(job)
                seeds = [seed for seed in range(self.seeds) if self.workspace.found(job, seed, others) is None]
                ready += [(job, seed, others) for seed in seeds]
        return ready

    def _fitting(self, queue: Sequence[Task], running: Collection[Running], free: int) -> Task | None:
        """Return the first task that fits into the memory beside those that run; beside none, the first one."""
        used = [job_memory(self.workspace.scale, each.job) for each in running]
        fit = (task for task in queue if not used or job_memory(self.workspace.scale, task[0]) <= free - sum(used))
        return next(fit, None)

    def _draw(self, pool: ProcessPoolExecutor) -> None:
        """Draw the pictures whose zoos and encoders are finished, pictures of the same zoos in one worker.

        They share the projection of their zoos to the plane, which takes most of the time.
        """
        groups: dict[Any, list[Item]] = {}
        if "report" not in self.stages:
            return
        for item in [item for item in self.items if item.picture and item.name not in self.state.pictures]:
            missing = {zoo for zoo in item.zoos if not self.state.zoos[zoo].reason} - self.built
            if find_spec("matplotlib") is None:
                reason = "matplotlib is not installed (pip install 'zootools[plots]')"
                self.state.pictures[item.name] = Picture(reason=reason)
            elif not missing and not set(item.encoders) & set(self.waiting):
                groups.setdefault((item.zoos, item.encoders) if item.zoos else item.name, []).append(item)
        if not groups:
            return
        from representation.reproduction.pictures import draw

        there = [zoo for zoo in self.zoos if zoo in self.built]
        for future in as_completed([pool.submit(draw, self.workspace, group, there) for group in groups.values()]):
            self.state.pictures |= future.result()
            for name, picture in future.result().items():
                self._say(f"{name}: {picture.reason or 'drawn'}")

    def _say(self, text: str) -> None:
        if not self.quiet:
            say(f"[{duration(time.monotonic() - self.begun)}] {text}", err=True)


@contextmanager
def _workers(count: int) -> Iterator[ProcessPoolExecutor]:
    """Yield worker processes that end with this one, and immediately if the block raises."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["representation.reproduction.work"])
    watched, lifeline = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(count, context, _begin, (watched,))
    try:
        yield pool
        pool.shutdown()
    except BrokenProcessPool as error:
        raise WorkerError(
            "a worker process died; finished zoos, encoders and results are kept, and the same command resumes"
        ) from error
    finally:
        lifeline.close()
        pool.shutdown(cancel_futures=True)
        watched.close()


def _begin(watched: connection.Connection) -> None:
    """Set up a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=leave_with_parent, args=(watched,), daemon=True).start()
    torch.set_num_threads(1)  # networks of this size are slower on two, and there is a worker per core
