"""A training step of an XResNet, in the formats that a processor may have units for: python -m benchmarks.step [--rounds N] [--threads N] [--images N] [--size PIXELS] [--compiled 0]

Forward and backward pass of xresnet18 on ready batches, all ways in turn in random order; a way's ratio is the median over the rounds of its time to that of the plain step (float32, channels first) *in the same round*, so that below 1 is faster.
`channels last` stores a pixel's channels side by side; `bfloat16` is PyTorch's autocast; `compiled` has gone through torch.compile, whose own time isn't counted, but said (`--compiled 0` leaves it out: it can take minutes). Whether bfloat16 gains depends on the processor's units.
"""
import copy, time

import torch
from torch.nn import functional as F

from benchmarks.machine import command_line, in_turn, quartiles, thread_count, using_threads

def ways_of(model, x, y, compiled):
    "Name -> a step, and name -> seconds that its first step took."
    last, x_last = copy.deepcopy(model).to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    def step(model, x, half):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half): loss = F.cross_entropy(model(x).float(), y)
        loss.backward()
        model.zero_grad()
        if x.device.type == 'cuda': torch.cuda.synchronize()
    def made(m, x, half=False): return lambda: step(m, x, half)
    ways = {'float32': made(model, x), 'float32, channels last': made(last, x_last), 'bfloat16': made(model, x, True), 'bfloat16, channels last': made(last, x_last, True)}
    if compiled:
        for name, half in (('float32', False), ('bfloat16', True)): ways[f'{name}, channels last, compiled'] = made(torch.compile(copy.deepcopy(last)), x_last, half)
    seconds = {}
    for name, f in ways.items():
        start = time.perf_counter()
        f()
        seconds[name] = time.perf_counter() - start
    return ways, seconds

def main(rounds=10, threads=1, images=32, size=128, compiled=1) -> None:
    "Print the table of ways."
    from exp.nb_11 import default_device, has_units, to_device, xresnet18
    with using_threads(threads):
        torch.manual_seed(0)
        device = default_device()
        ways, first = ways_of(*to_device((xresnet18(c_out=10), torch.randn(images, 3, size, size), torch.randint(10, (images,))), device), compiled)
        times = in_turn(ways, rounds, warm_up=1, clock=time.perf_counter)
    print('| step | images/s | time, as a ratio to float32 (median) | quartiles | first step, s |\n| --- | ---: | ---: | --- | ---: |')
    for name, ts in times.items():
        low, median, high = quartiles(ts, times['float32'])
        print(f'| {name} | {images/sorted(ts)[len(ts)//2]:.1f} | {median:.2f} | {low:.2f} to {high:.2f} | {first[name]:.1f} |')
    print(f'\nxresnet18, batches of {images}, {size} x {size}, {thread_count(threads)}, {rounds} rounds; this {device} has {"" if has_units(torch.bfloat16, device.type) else "no "}units for bfloat16')

if __name__ == '__main__': command_line(main, __doc__)
