"The matmul ladder of lesson 01, per multiply-add, against what the machine can do at best: `python -m benchmarks.matmul`."
import torch

from benchmarks.machine import machine
from exp.nb_01 import set_seed, test_near, time_it

GOAL = 100_000    # the last step's speed, in times the first's


def three_loops(a, b):
    c = torch.zeros(a.shape[0], b.shape[1])
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            for k in range(a.shape[1]): c[i, j] += a[i, k] * b[k, j]
    return c


def elementwise(a, b):
    c = torch.zeros(a.shape[0], b.shape[1])
    for i in range(a.shape[0]):
        for j in range(b.shape[1]): c[i, j] = (a[i] * b[:, j]).sum()
    return c


def broadcasting(a, b):
    c = torch.zeros(a.shape[0], b.shape[1])
    for i in range(a.shape[0]): c[i] = (a[i, :, None] * b).sum(0)
    return c


def einsum(a, b): return torch.einsum('ik,kj->ij', a, b)


def per_madd(f, a, b) -> float:
    "Seconds for each multiply-add of the product of `a` and `b` by `f`."
    return time_it(f, a, b) / (a.shape[0]*a.shape[1]*b.shape[1])


def peak_gflops(sizes=(256, 512, 1024, 2048), threads=None) -> float:
    "The best GFLOP/s of square float32 products over `sizes`, with `threads` threads (default: as PyTorch is set)."
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try: return max(2e-9/per_madd(torch.matmul, m, m) for m in (torch.randn(n, n) for n in sizes))
    finally: torch.set_num_threads(before)


def ladder(rows: int = 50_000) -> dict[str, float]:
    "Seconds for a multiply-add of each step: five of [5,784] @ [784,10], and the last of [rows,784] @ [784,10]."
    set_seed(42)
    batch, weights = torch.rand(rows, 784), torch.randn(784, 10)
    few, steps = batch[:5], {'three loops': three_loops, 'elementwise': elementwise, 'broadcasting': broadcasting, 'einsum': einsum, '@': torch.matmul}
    for f in steps.values(): test_near(f(few, weights), few @ weights)
    return {name: per_madd(f, few, weights) for name, f in steps.items()} | {f'@, {rows:,} rows': per_madd(torch.matmul, batch, weights)}


def main() -> None:
    "Print the ladder as a table, and how its ends compare with the goal."
    one, peak = peak_gflops(threads=1), peak_gflops()
    best, times = max(one, peak), ladder()
    first, last = (list(times.values())[i] for i in (0, -1))
    print(f'Peak: {best:,.1f} GFLOP/s (1 thread {one:,.1f}, {torch.get_num_threads()} threads {peak:,.1f}; square float32 products, the best of four sizes).\n')
    print('| step | ns a multiply-add | GFLOP/s | of the peak | times the first |\n| --- | ---: | ---: | ---: | ---: |')
    for name, t in times.items(): print(f'| {name} | {t*1e9:,.4g} | {2e-9/t:,.3g} | {200e-9/t/best:.2g} % | {first/t:,.0f} |')
    print(f'\nThe last step is {first/last:,.0f} times as fast as the first, {"reached" if first/last >= GOAL else "MISSED"}: the goal is at least {GOAL:,}.')


if __name__ == '__main__':
    print(f'{machine()}\n')
    main()
