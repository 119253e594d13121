"""Lesson 12's tokens, corpus and batches: python -m benchmarks.text [--rounds N] [--texts N] [--tokens N]

Tokenizing: IMDb's reviews (the real ones where they can be had, by EXP_DATA and EXP_MIRROR, else the built-in sample), read before the clock. The peer is spaCy's bare tokenizer for English, one process, without any rule; ours has all rules,
and gives numbers of words. Where fastai can be imported, its tokenizer with its rules takes part, too, in two processes. Each round makes everything anew, so nothing is known of any word at its start; the ways take turns in random order, and a way's ratio is the median, over the rounds, of its texts a second to the peer's in the same round.
Times are wall time, as two processes are compared with one: the machine should have two idle cores. Processor time is printed beside it.

The corpus: so many random tokens in texts of random lengths, written to a file; then, each in a process of its own, what it costs in memory when loaded, or memory-mapped, until the first batch, and for each batch.
"""
import argparse, os, random, statistics, subprocess, sys, tempfile, time
from importlib.metadata import version
from pathlib import Path
import numpy as np

from benchmarks.machine import machine

PEER, OURS, FASTAI = 'spaCy alone, 1 process', 'ours, 2 processes', "fastai's, 2 processes"
GOAL, FASTAI_GOAL, MEMORY_GOAL = 1.2, 3, 4.4

def load_texts(n):
    "Texts of IMDb, and whether they are the real ones."
    from exp.nb_12 import URLs, get_files, is_sample, read_file, untar_data
    path = untar_data(URLs.IMDB)
    files = get_files(path, '.txt', recurse=True, include=['train', 'test', 'unsup'])
    return [read_file(f) for f in random.Random(0).sample(files, min(n, len(files)))], is_sample(path)

def fastai_tokenizer():
    "What makes fastai's tokenizer of texts, or None if it can't be imported."
    try: from fastai.text.core import WordTokenizer, parallel_tokenize
    except ImportError: return None
    return lambda: lambda texts: list(parallel_tokenize(texts, WordTokenizer(), n_workers=2))

def ways():
    "Name -> a function that makes, outside of the clock, what tokenizes a list of texts."
    import spacy
    from exp.nb_12 import TokenizeProcessor
    def bare():
        tokenizer = spacy.blank('en').tokenizer
        return lambda texts: [[t.text for t in doc] for doc in tokenizer.pipe(texts)]
    def ours(n):
        proc = TokenizeProcessor(max_workers=n)
        proc.proc1('a')
        return proc
    theirs = fastai_tokenizer()
    return {PEER: bare, 'ours, 1 process': lambda: ours(1), OURS: lambda: ours(2)} | ({FASTAI: theirs} if theirs else {})

def cpu_time() -> float:
    "Processor time of this process and of its children that have ended."
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system

def measure(texts, rounds=3, seed=0):
    "Name -> (seconds of wall time, of processor time) of each round."
    order, times, makers = random.Random(seed), {}, ways()
    for _ in range(rounds):
        for w in order.sample(list(makers), len(makers)):
            f = makers[w]()
            cpu, start = cpu_time(), time.perf_counter()
            f(texts)
            times.setdefault(w, []).append((time.perf_counter() - start, cpu_time() - cpu))
    return times

CORPUS = '''
import sys, time, psutil
from exp.nb_12 import Corpus, LM_PreLoader, LMLoader
path, mmap = sys.argv[1], sys.argv[2] == 'mapped'
def resident(): return psutil.Process().memory_info().rss
before, start = resident(), time.perf_counter()
corpus = Corpus.load(path, mmap=mmap)
loader = LMLoader(LM_PreLoader(corpus, 64, 70, shuffle=True))
batches = iter(loader)
next(batches)
first, start = time.perf_counter() - start, time.perf_counter()
for _ in range(500): next(batches)
print(corpus.n_tokens, corpus.nbytes, resident() - before, first, (time.perf_counter() - start)/500)
'''

def corpus_costs(n_tokens):
    "'loaded' and 'mapped' -> tokens, bytes of the corpus, growth of resident memory, seconds to the first batch, and for each batch."
    from exp.nb_12 import Corpus
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as d:
        lengths = rng.integers(50, 500, n_tokens//275)
        ids = np.empty(int(lengths.sum()), np.int32)
        for i in range(0, len(ids), 1 << 22): ids[i:i + (1 << 22)] = rng.integers(0, 60_000, len(ids[i:i + (1 << 22)]), dtype=np.int32)
        Corpus(ids, np.concatenate([[0], np.cumsum(lengths)])).save(Path(d)/'corpus')
        del ids
        run = lambda how: subprocess.run([sys.executable, '-c', CORPUS, str(Path(d)/'corpus'), how], capture_output=True, text=True, check=True).stdout.split()
        return {how: [float(o) for o in run(how)] for how in ('loaded', 'mapped')}

def padding(lengths, bs=64):
    "Order -> share of padding."
    import torch
    from exp.nb_12 import SortishSampler, SortSampler, padding_share
    torch.manual_seed(0)
    key = lengths.tolist().__getitem__
    orders = {'random': torch.randperm(len(lengths)).tolist(), 'sortish': SortishSampler(lengths, key, bs), 'sorted': SortSampler(lengths, key)}
    return {k: padding_share(lengths, o, bs) for k, o in orders.items()}

def main(rounds=3, n_texts=20_000, n_tokens=100_000_000) -> None:
    "Print the three tables."
    from exp.nb_12 import TokenizeProcessor
    texts, sample = load_texts(n_texts)
    times = measure(texts, rounds)
    print(f'{len(texts):,} texts of {"the built-in sample" if sample else "IMDb"}, {rounds} rounds' + (f'; fastai {version("fastai")}' if FASTAI in times else '') + '\n')
    print('| tokenizer | texts a second | times spaCy alone (median) | from, to | processor time a text, µs | goal |\n| --- | --- | --- | --- | --- | --- |')
    for w, ts in times.items():
        ratios = sorted(p[0]/t[0] for t, p in zip(ts, times[PEER]))
        ours = '' if w == PEER else f'{statistics.median(ratios):.2f} | {ratios[0]:.2f} to {ratios[-1]:.2f}'
        print(f'| {w} | {len(texts)/statistics.median(t[0] for t in ts):,.0f} | {ours or " | "} | {statistics.median(t[1] for t in ts)/len(texts)*1e6:.0f} | {GOAL if w == OURS else ""} |')
    if FASTAI in times:
        ratios = sorted(theirs[0]/ours[0] for ours, theirs in zip(times[OURS], times[FASTAI]))
        print(f'\nOurs in 2 processes, times fastai\'s in 2: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), goal {FASTAI_GOAL}')
    else: print('\nfastai is not installed, so its tokenizer takes no part.')
    lengths = TokenizeProcessor(max_workers=1)(texts[:5000]).corpus.lengths
    print(f'\nOurs makes {lengths.mean():.0f} tokens of a text: {lengths.mean()*len(texts)/statistics.median(t[0] for t in times[OURS]):,.0f} a second in 2 processes.')
    costs = corpus_costs(n_tokens)
    print(f'\n| a corpus of {costs["loaded"][0]/1e6:.0f} million tokens | MB in its files | bytes a token | more memory in use, MB | first batch after, s | each batch, µs |\n| --- | --- | --- | --- | --- | --- |')
    for how, (n, size, memory, first, each) in costs.items(): print(f'| {how} | {size/1e6:.0f} | {size/n:.2f} | {memory/1e6:.0f} | {first:.2f} | {each*1e6:.0f} |')
    print(f'\nGoals: at most {MEMORY_GOAL} bytes a token in memory, and less than a second, mapped. Batches are 64 x 70, texts in random order.\n')
    print('Padding in batches of 64 texts: ' + ', '.join(f'{k} {v:.1%}' for k, v in padding(lengths).items()))

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--texts', type=int, default=20_000)
    p.add_argument('--tokens', type=int, default=100_000_000, help='at least 3,000,000, which makes 500 batches')
    args = p.parse_args()
    if args.tokens < 3_000_000: p.error('--tokens: at least 3,000,000')
    print(f'{machine()}\n')
    main(args.rounds, args.texts, args.tokens)
