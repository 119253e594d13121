"""The training loop against loops written by hand: python -m benchmarks.loop [--rounds N] [--threads N]

All ways train the same network (784-50-10, SGD) on the same ready-made batches of 64 from memory: 200 for training, 40 for validation. They take turns in random order; a way's ratio is the median,
over the rounds, of its processor time to that of the raw loop *in the same round*, so a machine that slows down or is shared slows both.
"""
import statistics
from functools import partial
from types import SimpleNamespace

import torch
from torch import nn, optim
from torch.nn import functional as F

from benchmarks.machine import command_line, in_turn, quartiles, thread_count, using_threads

TRAIN, VALID, BS = 200, 40, 64

def raw(learn):
    "What a good PyTorch user would write."
    model, opt, loss_func = learn.model, learn.opt, learn.loss_func
    model.train()
    for xb, yb in learn.data.train_dl:
        loss = loss_func(model(xb), yb)
        loss.backward()
        opt.step()
        opt.zero_grad()
    model.eval()
    with torch.no_grad():
        for xb, yb in learn.data.valid_dl: loss = loss_func(model(xb), yb)

def plain_accuracy(pred, yb): return (pred.argmax(dim=1) == yb).float().mean()

def raw_averages(learn):
    "The same with the averages of loss and accuracy, weighted by batch size, read once a pass."
    model, opt, loss_func = learn.model, learn.opt, learn.loss_func
    averages = []
    model.train()
    total_loss, total_acc, count = 0., 0., 0
    for xb, yb in learn.data.train_dl:
        pred = model(xb)
        loss = loss_func(pred, yb)
        loss.backward()
        opt.step()
        opt.zero_grad()
        n = len(xb)
        total_loss += loss.detach()*n
        total_acc += plain_accuracy(pred, yb)*n
        count += n
    averages += [(total_loss/count).item(), (total_acc/count).item()]
    model.eval()
    total_loss, total_acc, count = 0., 0., 0
    with torch.no_grad():
        for xb, yb in learn.data.valid_dl:
            pred = model(xb)
            n = len(xb)
            total_loss += loss_func(pred, yb)*n
            total_acc += plain_accuracy(pred, yb)*n
            count += n
    return averages + [(total_loss/count).item(), (total_acc/count).item()]

def make_ways():
    "Name -> (what trains an epoch, its peer's name)."
    from exp.nb_05b import AvgStatsCallback, ParamScheduler, Recorder, Runner, accuracy, combine_scheds, cos_1cycle_anneal
    def fitter(*cbs):
        run = Runner(cbs)
        run.logger = str
        def one_epoch(learn):
            run.fit(1, learn)
            return [v for k, v in run.avg_stats.history[-1].items() if k != 'epoch'] if hasattr(run, 'avg_stats') else None
        return one_epoch
    def sched(): return ParamScheduler('lr', combine_scheds([.3, .7], cos_1cycle_anneal(.1, .2, .05)))
    return {'raw loop': (raw, 'raw loop'), 'Runner': (fitter(), 'raw loop'), 'Runner, ParamScheduler, Recorder': (fitter(sched(), Recorder()), 'raw loop'),
            'raw loop with averages': (raw_averages, 'raw loop with averages'), 'Runner, AvgStats(plain accuracy)': (fitter(AvgStatsCallback(plain_accuracy)), 'raw loop with averages'),
            'Runner, AvgStats': (fitter(AvgStatsCallback(accuracy)), 'raw loop with averages'),
            'Runner, AvgStats, ParamScheduler, Recorder': (fitter(AvgStatsCallback(accuracy), sched(), Recorder()), 'raw loop with averages')}

def make_learner(batches):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 10))
    return SimpleNamespace(model=model, opt=optim.SGD(model.parameters(), lr=.1), loss_func=F.cross_entropy, data=SimpleNamespace(train_dl=batches, valid_dl=batches[:VALID]))

def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])

def check(ways, batches):
    "All unscheduled ways do the same work."
    results = {}
    for name, (f, peer) in ways.items():
        if 'Scheduler' in name: continue
        learn = make_learner(batches)
        averages = f(learn)
        results[name] = weights(learn), averages
        assert torch.equal(results[name][0], results[peer][0]), name
        assert averages is None or all(abs(a - b) < 1e-4 for a, b in zip(averages, results[peer][1])), name

def measure(rounds=60, seed=0):
    "Name -> seconds of processor time an epoch took, one for each round."
    torch.manual_seed(seed)
    x, y = torch.rand(TRAIN*BS, 784), torch.randint(0, 10, (TRAIN*BS,))
    batches, ways = list(zip(x.split(BS), y.split(BS))), make_ways()
    check(ways, batches)
    times = in_turn({w: partial(f, make_learner(batches)) for w, (f, _) in ways.items()}, rounds, seed)
    return times, {w: peer for w, (_, peer) in ways.items()}

def print_table(times, peers, goals, rounds, threads):
    "The ways in turn: their times a batch, and as multiples of those of their raw loops."
    print(f'MLP 784-50-10, batches of {BS}, {thread_count(threads)}, {rounds} rounds; processor time, as a ratio to the raw loop of the same round\n')
    print('| loop | µs a batch | times its raw loop (median) | quartiles | goal |\n| --- | --- | --- | --- | --- |')
    for w, ts in times.items():
        low, ratio, high = quartiles(ts, times[peers[w]])
        is_raw = w == peers[w]
        print(f'| {w} | {statistics.median(ts)/(TRAIN + VALID)*1e6:.1f} | {"" if is_raw else f"{ratio:.3f}"} | {"" if is_raw else f"{low:.3f} to {high:.3f}"} | {goals.get(w, "")} |')

GOALS = {'Runner': 1.05, 'Runner, AvgStats': 1.05}

def main(rounds=60, threads=1) -> None:
    "Print the table of ways, with their ratios and the goals."
    with using_threads(threads): times, peers = measure(rounds)
    print_table(times, peers, GOALS, rounds, threads)

if __name__ == '__main__': command_line(main, __doc__)
