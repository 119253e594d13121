"""Lesson 12a's AWD-LSTM, all five dropouts on, against the same nn.LSTMs without any: python -m benchmarks.awd_lstm [--rounds N] [--threads N]

A step is the forward pass from the state of the batch before, the loss and the backward pass (the optimizer's part is the same for all). The peer is an embedding, nn.LSTMs of the same sizes and a decoder with tied weights, with the same
weights and state, and nothing dropped. All ways run in turn, in random order; a way's ratio is the median, over the rounds, of its processor time to the peer's *in the same round*.
"""
import statistics
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.machine import command_line, in_turn, quartiles, thread_count, using_threads

# name -> vocabulary, embedding, hidden, layers, texts in a batch, steps
SETTINGS = {'400-1152-400': (10_000, 400, 1152, 3, 32, 35), '100-256-100': (5_000, 100, 256, 3, 32, 35)}
PEER, GOAL = 'nn.LSTM, no dropout', 1.05


class PlainLM(nn.Module):
    "What there is without this lesson: an embedding, LSTMs, a decoder with the embedding's weight, and a state that is carried on."
    def __init__(self, vocab_sz, emb_sz, n_hid, n_layers):
        super().__init__()
        sizes = [emb_sz, *[n_hid]*(n_layers - 1), emb_sz]
        self.emb = nn.Embedding(vocab_sz, emb_sz, padding_idx=1)
        self.rnns = nn.ModuleList(nn.LSTM(ni, no, batch_first=True) for ni, no in zip(sizes, sizes[1:]))
        self.decoder = nn.Linear(emb_sz, vocab_sz)
        self.decoder.weight = self.emb.weight
        self.state = [None]*n_layers
    def forward(self, ids):
        x = self.emb(ids)
        for i, rnn in enumerate(self.rnns):
            x, state = rnn(x, self.state[i])
            self.state[i] = tuple(o.detach() for o in state)
        return self.decoder(x.flatten(0, 1))


def make_ways(vocab_sz, emb_sz, n_hid, n_layers):
    "Name -> (model, loss of a batch). All have the same weights."
    from exp.nb_12a import RNNTrainer, cross_entropy_flat, get_language_model
    drops = dict(output_p=.4, hidden_p=.2, input_p=.6, embed_p=.1, weight_p=.5)
    def ours(**drops): return get_language_model(vocab_sz, emb_sz, n_hid, n_layers, **drops)
    def loss(model, x, y): return cross_entropy_flat(model(x)[0], y)
    def regularised(model, x, y):
        trainer, (pred, raw, outs) = RNNTrainer(), model(x)
        trainer.raw, trainer.out = raw[-1], outs[-1]
        return cross_entropy_flat(pred, y) + trainer.penalty()
    ways = {PEER: (PlainLM(vocab_sz, emb_sz, n_hid, n_layers), lambda model, x, y: F.cross_entropy(model(x), y.flatten())), 'AWD-LSTM, dropouts of 0': (ours(**dict.fromkeys(drops, 0.)), loss),
            'AWD-LSTM, all dropouts': (ours(**drops), loss), 'the same, AR and TAR': (ours(**drops), regularised)}
    weights = list(ways[PEER][0].parameters())
    for model, _ in ways.values():
        with torch.no_grad():
            for p, w in zip(model.parameters(), weights, strict=True): p.copy_(w)
    return ways


def measure(setting, rounds=12, seed=0) -> dict[str, list[float]]:
    "Name -> seconds of processor time a step took, one for each round; without dropout, ours is checked to give the peer's loss and gradients."
    torch.manual_seed(seed)
    *sizes, bs, bptt = SETTINGS[setting]
    ways = make_ways(*sizes)
    x, y = torch.randint(2, sizes[0], (2, bs, bptt))
    def step(name):
        model, loss = ways[name]
        model.zero_grad()
        loss(model, x, y).backward()
        return [p.grad for p in model.parameters()]
    for a, b in zip(step(PEER), step('AWD-LSTM, dropouts of 0'), strict=True): torch.testing.assert_close(a, b)
    return in_turn({name: partial(step, name) for name in ways}, rounds, seed)


def main(rounds=12, threads=1) -> None:
    "Print the times, each as a multiple of the peer's, and the goal."
    print(f'a training step of a language model, {thread_count(threads)}, {rounds} rounds; processor time, as a ratio to {PEER} of the same round\n')
    print(f'| sizes, words, batch x steps | model | ms a step | times {PEER} (median) | quartiles | goal |\n| --- | --- | --- | --- | --- | --- |')
    with using_threads(threads):
        for setting, (vocab_sz, *_, bs, bptt) in SETTINGS.items():
            times = measure(setting, rounds)
            for name, ts in times.items():
                low, ratio, high = quartiles(ts, times[PEER])
                rest = ' | | ' if name == PEER else f'{ratio:.3f} | {low:.3f} to {high:.3f} | {GOAL if name == "AWD-LSTM, all dropouts" else ""}'
                print(f'| {setting}, {vocab_sz:,}, {bs} x {bptt} | {name} | {statistics.median(ts)*1e3:.1f} | {rest} |', flush=True)


if __name__ == '__main__': command_line(main, __doc__)
