"""A step of lesson 09's optimizers against PyTorch's: python -m benchmarks.optimizers [--rounds N] [--threads N]

All step on tensors of the shapes of an XResNet18's parameters, with gradients that stay. Peers take turns in random order; a ratio is the median, over the rounds, of a step's time to that of its peer *in the same round*.
On a CPU it is processor time. PyTorch's default is a Python loop over the tensors on a CPU (its `foreach` and `fused` are measured beside it), and `foreach` on CUDA.
"""
import random, statistics, time

import torch
from torch import optim

from benchmarks.machine import command_line, quartiles, thread_count, using_threads
from exp.nb_09 import adam_opt, adamw_opt, lamb_opt, sgd_mom_opt, sgd_opt


def shapes(c_out: int = 10) -> list[tuple[int, ...]]:
    "Of an XResNet18's parameters: each convolution is followed by a batch norm's scale and shift."
    found = []
    def conv(ni, nf, ks): found.extend([(nf, ni, ks, ks), (nf,), (nf,)])
    for ni, nf in ((3, 32), (32, 64), (64, 64)): conv(ni, nf, 3)   # the stem
    ni = 64
    for nf in (64, 128, 256, 512):
        for _ in range(2):                                         # basic blocks
            conv(ni, nf, 3)
            conv(nf, nf, 3)
            if ni != nf: conv(ni, nf, 1)                           # the shortcut
            ni = nf
    return found + [(c_out, 512), (c_out,)]


ADAM = dict(mom=.9, sqr_mom=.999, eps=1e-8)
PEERS = {'SGD': (sgd_opt, optim.SGD, {}), 'SGD, momentum': (sgd_mom_opt, optim.SGD, dict(momentum=.9)), 'Adam': (adam_opt(**ADAM), optim.Adam, {}),
         'AdamW': (adamw_opt(), optim.AdamW, {}), 'LAMB': (lamb_opt(wd=.01, **ADAM), optim.Adam, {})}


def ways() -> dict[str, tuple]:
    "Name -> (what makes the optimizer, name of its peer)."
    found = {}
    for name, (ours, theirs, kw) in PEERS.items():
        peer = f'torch.optim.{theirs.__name__}{", momentum" if kw else ""}'
        found[peer] = lambda ps, theirs=theirs, kw=kw: theirs(ps, lr=1e-4, **kw), peer
        found[f'{peer}, foreach'] = lambda ps, theirs=theirs, kw=kw: theirs(ps, lr=1e-4, foreach=True, **kw), peer
        found[f'{peer}, fused'] = lambda ps, theirs=theirs, kw=kw: theirs(ps, lr=1e-4, fused=True, **kw), peer
        found[name] = lambda ps, ours=ours: ours(ps, lr=1e-4), peer
    return found


def parameters(device) -> list[torch.Tensor]:
    "The same for all: with gradients."
    g = torch.Generator().manual_seed(0)
    ps = [torch.randn(s, generator=g).mul_(.05).to(device).requires_grad_() for s in shapes()]
    for p in ps: p.grad = torch.randn(p.shape, generator=g).to(device)*.01
    return ps


def check(opts: dict, all_ways: dict):
    "What is called the same does the same."
    for name in PEERS:
        if name == 'LAMB': continue
        for ours, theirs in zip(opts[name].param_groups[0], opts[all_ways[name][1]].param_groups[0]['params']): torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6, msg=name)


def measure(rounds: int = 20, steps: int = 2, device: str = 'cpu') -> dict[str, list[float]]:
    "Name -> seconds a step, one for each round."
    def now():
        if device == 'cpu': return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()
    todo, times, order = ways(), {}, random.Random(0)
    opts = {w: make(parameters(device)) for w, (make, _) in todo.items()}
    for i in range(rounds + 1):
        for w in order.sample(list(todo), len(todo)):
            start = now()
            for _ in range(steps): opts[w].step()
            if i: times.setdefault(w, []).append((now() - start)/steps)   # the first one warms up
    check(opts, todo)
    return {w: times[w] for w in todo}


def main(rounds: int = 20, threads: int = 1) -> None:
    "Print the table, with ratios and goals."
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    with using_threads(threads): times = measure(rounds, device=device)
    n, all_ways = shapes(), ways()
    print(f'{len(n)} tensors, {sum(torch.Size(s).numel() for s in n)/1e6:.2f} million numbers, on {device}, {thread_count(threads)}, {rounds} rounds\n')
    print("| optimizer | ms a step | times PyTorch's default (median) | quartiles | goal |\n| --- | ---: | ---: | --- | --- |")
    for w, ts in times.items():
        low, ratio, high = quartiles(ts, times[all_ways[w][1]])
        print(f'| {w} | {statistics.median(ts)*1e3:.2f} | {ratio:.2f} | {low:.2f} to {high:.2f} | {"at most 1.1" if w in PEERS else ""} |')


if __name__ == '__main__': command_line(main, __doc__)
