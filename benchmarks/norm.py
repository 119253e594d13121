"""Lesson 07's normalisations, a forward and a backward pass through one layer in training, against PyTorch's: python -m benchmarks.norm [--rounds N] [--threads N]

The layers take turns in random order; a layer's ratio is the median, over the rounds, of its processor time to that of PyTorch's layer *in the same round*, so a machine that is shared slows both.
"""
import statistics
from functools import partial

import torch
from torch import nn

from benchmarks.machine import command_line, in_turn, quartiles, thread_count, using_threads
from exp.nb_07 import RunningBatchNorm, set_seed

SHAPES = [(64, 16, 14, 14), (64, 64, 28, 28), (512, 32, 7, 7)]
PEER = 'nn.BatchNorm2d'


class BatchNorm(nn.Module):
    "Batch normalisation from elementary operations, as lesson 07 arrives at it."
    def __init__(self, nf, mom=.1, eps=1e-5):
        super().__init__()
        self.mom, self.eps = mom, eps
        self.mults, self.adds = nn.Parameter(torch.ones(nf)), nn.Parameter(torch.zeros(nf))
        self.register_buffer('means', torch.zeros(nf))
        self.register_buffer('vars', torch.ones(nf))

    def forward(self, x):
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        n = x.numel()/x.shape[1]
        self.means.lerp_(mean.detach(), self.mom)
        self.vars.lerp_(var.detach()*n/(n - 1), self.mom)
        mean, var, mults, adds = (o.view(-1, 1, 1) for o in (mean, var, self.mults, self.adds))
        return (x - mean)/(var + self.eps).sqrt()*mults + adds


def passes(layer, x, g):
    x.grad = None
    layer(x).backward(g)


def measure(shape, rounds=40, seed=0) -> dict[str, list[float]]:
    "Name -> seconds of processor time, one for each round; the layers are checked to agree first."
    set_seed(seed)
    x, g, nf = torch.randn(shape, requires_grad=True), torch.randn(shape), shape[1]
    layers = {PEER: nn.BatchNorm2d(nf), 'BatchNorm by hand': BatchNorm(nf), 'RunningBatchNorm': RunningBatchNorm(nf)}
    expected = nn.BatchNorm2d(nf)(x)
    for layer in layers.values(): torch.testing.assert_close(layer(x), expected, atol=1e-4, rtol=1e-4)
    repeats = max(1, 2_000_000//x.numel())
    def repeated(layer):
        for _ in range(repeats): passes(layer, x, g)
    times = in_turn({name: partial(repeated, layer) for name, layer in layers.items()}, rounds, seed)
    return {name: [t/repeats for t in ts] for name, ts in times.items()}


def main(rounds=40, threads=1) -> None:
    "Print the times, and each as a multiple of PyTorch's."
    print(f'one layer in training, forward and backward, {thread_count(threads)}, {rounds} rounds; processor time, as a ratio to {PEER} in the same round\n')
    print(f'| batch, channels, height, width | layer | ms | times {PEER} (median) | quartiles |\n| --- | --- | --- | --- | --- |')
    with using_threads(threads):
        for shape in SHAPES:
            times = measure(shape, rounds)
            for name, ts in times.items():
                low, ratio, high = quartiles(ts, times[PEER])
                rest = ' | ' if name == PEER else f'{ratio:.2f} | {low:.2f} to {high:.2f}'
                print(f'| {" x ".join(map(str, shape))} | {name} | {statistics.median(ts)*1e3:.2f} | {rest} |')


if __name__ == '__main__': command_line(main, __doc__)
