"What a measurement was taken on, and what benchmarks have in common."
import argparse, inspect, os, platform, random, statistics, time
from collections.abc import Callable
from contextlib import contextmanager
from datetime import datetime, timezone

import torch
from exp.nb_00a import cpu_name


def machine() -> str:
    "One line: processor, cores this process may use, load, accelerator, Python, PyTorch, its threads, date (UTC)."
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    load = [f'load {os.getloadavg()[0]:.1f}'] if hasattr(os, 'getloadavg') else []
    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    parts = [cpu_name(), f'{cores} cores', *load, *gpu, f'Python {platform.python_version()}',
             f'PyTorch {torch.__version__} ({torch.get_num_threads()} threads)', f'{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC']
    return ', '.join(parts)


@contextmanager
def using_threads(n: int):
    "In its body, PyTorch computes with `n` threads, and afterwards with as many as before."
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try: yield
    finally: torch.set_num_threads(before)


def thread_count(n: int) -> str: return f'{n} thread{"s"*(n > 1)}'


def in_turn(ways: dict[str, Callable], rounds: int, seed: int = 0, warm_up: int = 2, clock: Callable = time.process_time) -> dict[str, list[float]]:
    "Calls all `ways` once a round, each time in another order; gives for each name its seconds by `clock` (by default, of processor time), without those of the first `warm_up` rounds."
    order, times = random.Random(seed), {name: [] for name in ways}
    for i in range(rounds + warm_up):
        for name in order.sample(list(ways), len(ways)):
            start = clock()
            ways[name]()
            if i >= warm_up: times[name].append(clock() - start)
    return times


def quartiles(times: list[float], peers: list[float]) -> list[float]:
    "Of the ratios of `times` to those that a peer took in the same rounds: lower quartile, median, upper quartile."
    return statistics.quantiles([t/p for t, p in zip(times, peers, strict=True)], n=4)


def command_line(main, doc: str) -> None:
    "A benchmark by itself: the numbers that `main` takes are options, with its defaults."
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, o in inspect.signature(main).parameters.items(): p.add_argument(f'--{name}', type=int, default=o.default)
    args = p.parse_args()
    print(f'{machine()}\n')
    main(**vars(args))
