"""Lesson 09b's Learner against loops written by hand: python -m benchmarks.learner [--rounds N] [--threads N]

As in benchmarks/loop.py: the same network (784-50-10, SGD), the same ready-made batches of 64, all ways in turn in random order; a way's ratio is the median, over the rounds, of its processor time to that of its raw loop
*in the same round*. The Learner's own fit starts each epoch (callbacks added and removed, groups checked), as it does for a user who trains an epoch at a time.
"""
import argparse, random, statistics, tempfile, time
from pathlib import Path

import torch
from torch import nn, optim
from torch.nn import functional as F

from benchmarks.loop import BS, TRAIN, VALID, plain_accuracy, raw, raw_averages
from benchmarks.machine import machine

def make_ways(batches, folder):
    "Name -> (a new learner, what trains an epoch with it, its peer's name)."
    from exp.nb_09c import AvgStatsCallback, CSVLogger, DataBunch, Learner, LineView, ProgressCallback, Recorder, SaveCheckpoint, accuracy
    data = DataBunch(batches, batches[:VALID])
    def learner(*cbs):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 10))
        learn = Learner(model, data, F.cross_entropy, optim.SGD, lr=.1, cbs=cbs)
        learn.logger = str
        learn.opt = optim.SGD(model.parameters(), lr=.1)
        return learn
    def fit(learn): learn.fit(1)
    def view(): return LineView(str)
    mean = 'raw loop with averages'
    return {'raw loop': (learner(), raw, 'raw loop'), 'Learner': (learner(), fit, 'raw loop'), 'Learner, Recorder': (learner(Recorder()), fit, 'raw loop'), 'Learner, ProgressCallback': (learner(ProgressCallback(view())), fit, 'raw loop'),
            mean: (learner(), raw_averages, mean), 'Learner, AvgStats(plain accuracy)': (learner(AvgStatsCallback(plain_accuracy)), fit, mean),
            'Learner, AvgStats': (learner(AvgStatsCallback(accuracy)), fit, mean), 'Learner, AvgStats, ProgressCallback': (learner(AvgStatsCallback(accuracy), ProgressCallback(view())), fit, mean),
            'the same, CSVLogger, SaveCheckpoint': (learner(AvgStatsCallback(accuracy), ProgressCallback(view()), CSVLogger(folder/'log.csv'), SaveCheckpoint(folder/'run')), fit, mean)}

def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])

def check(ways):
    "One epoch of each has done the same work."
    for name, (learn, f, peer) in ways.items():
        f(learn)
        assert torch.equal(weights(learn), weights(ways['raw loop'][0])), name

def measure(rounds=60, threads=1, seed=0):
    "Name -> seconds of processor time an epoch took, one for each round."
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    x, y, order = torch.rand(TRAIN*BS, 784), torch.randint(0, 10, (TRAIN*BS,)), random.Random(seed)
    batches = list(zip(x.split(BS), y.split(BS)))
    with tempfile.TemporaryDirectory() as folder:
        ways = make_ways(batches, Path(folder))
        check(ways)
        times = {w: [] for w in ways}
        for i in range(rounds + 1):
            for w in order.sample(list(ways), len(ways)):
                learn, f, _ = ways[w]
                start = time.process_time()
                f(learn)
                if i: times[w].append(time.process_time() - start)   # the first warms up
    return times, {w: peer for w, (*_, peer) in ways.items()}

GOALS = {'Learner': 1.05, 'Learner, AvgStats': 1.05}

def main(rounds=60, threads=1) -> None:
    "Print the table of ways, with their ratios and the goals."
    before = torch.get_num_threads()
    try: times, peers = measure(rounds, threads)
    finally: torch.set_num_threads(before)
    print(f'MLP 784-50-10, batches of {BS}, {threads} thread{"s"*(threads > 1)}, {rounds} rounds; processor time, as a ratio to the raw loop of the same round\n')
    print('| loop | µs a batch | times its raw loop (median) | quartiles | goal |\n| --- | --- | --- | --- | --- |')
    for w, ts in times.items():
        low, ratio, high = statistics.quantiles([t/r for t, r in zip(ts, times[peers[w]])], n=4)
        is_raw = w == peers[w]
        print(f'| {w} | {statistics.median(ts)/(TRAIN + VALID)*1e6:.1f} | {"" if is_raw else f"{ratio:.3f}"} | {"" if is_raw else f"{low:.3f} to {high:.3f}"} | {GOALS.get(w, "")} |')

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=60)
    p.add_argument('--threads', type=int, default=1)
    args = p.parse_args()
    print(f'{machine()}\n')
    main(args.rounds, args.threads)
