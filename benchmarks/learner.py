"""Lesson 09b's Learner against loops written by hand: python -m benchmarks.learner [--rounds N] [--threads N]

As in benchmarks/loop.py: the same network (784-50-10, SGD), the same ready-made batches of 64, all ways in turn in random order; a way's ratio is the median, over the rounds, of its processor time to that of its raw loop
*in the same round*. The Learner's own fit starts each epoch (callbacks added and removed, groups checked), as it does for a user who trains an epoch at a time.
"""
import random, tempfile, time
from pathlib import Path

import torch
from torch import nn, optim
from torch.nn import functional as F

from benchmarks.loop import BS, TRAIN, VALID, plain_accuracy, print_table, raw, raw_averages, weights
from benchmarks.machine import command_line, using_threads

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

def check(ways):
    "One epoch of each has done the same work."
    for name, (learn, f, peer) in ways.items():
        f(learn)
        assert torch.equal(weights(learn), weights(ways['raw loop'][0])), name

def measure(rounds=60, seed=0):
    "Name -> seconds of processor time an epoch took, one for each round."
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
    with using_threads(threads): times, peers = measure(rounds)
    print_table(times, peers, GOALS, rounds, threads)

if __name__ == '__main__': command_line(main, __doc__)
