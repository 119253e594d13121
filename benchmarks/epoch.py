"""A training epoch beside the sum of its parts: python -m benchmarks.epoch [--images N] [--rounds N] [--workers N...] [--arch NAME] [--size PIXELS] [--bs N] [--threads N]

Lesson 11's training of an XResNet on Imagenette-160, by its recipe (random crops decoded as bytes, flip, normalisation, a step of Muon a batch), on `images` of its files. In each round, and by turns: the loader alone, which only hands its batches over;
the model alone, with batches that are there already; and the Learner's epoch, which does both. `the sum` is what the parts make if one comes after the other: so many images a second. `of the sum` is the epoch's, as a ratio to that: above 1, loading goes on beside
the model. `of the slower` is the same with the slower of the parts, as if the two never got in each other's way (on a CPU they do: they share its cores). `waited` is the share of the epoch's time in which the training process stood waiting for the next batch, after the first.
The real Imagenette-160 where it can be had (EXP_DATA, EXP_MIRROR), else the built-in sample.
"""
import argparse, statistics, time

import torch

from benchmarks.machine import machine

class Waiting:
    "A loader that takes down how long each batch was waited for."
    def __init__(self, dl): self.dl, self.seconds = dl, []
    def __len__(self): return len(self.dl)
    def __getattr__(self, k): return getattr(self.dl, k)
    def __iter__(self):
        it = iter(self.dl)
        for _ in range(len(self.dl)):
            start = time.perf_counter()
            batch = next(it)
            self.seconds.append(time.perf_counter() - start)
            yield batch

def make(path, images, workers, arch, size, bs, amp):
    "The learner for the images in `path`, without bars and metrics."
    import exp.nb_11 as nb
    r = nb.imagenette_recipe
    il = nb.ImageList.from_files(path/'train', tfms=[nb.make_rgb, nb.CropToBytes(nb.RandomResizedCrop(size, scale=r['scale']), p=.5)])
    il.items = [il.items[i] for i in torch.randperm(len(il), generator=torch.Generator().manual_seed(0)).tolist()[:images]]
    for f in il.items: f.read_bytes()
    ll = nb.LabeledData.label_by_func(il, nb.parent_labeler, proc_y=nb.CategoryProcessor())
    kw = dict(num_workers=workers, persistent_workers=True) if workers else {}
    data = nb.DataBunch(nb.WorkerLoader(ll, bs, shuffle=True, drop_last=True, collate_fn=nb.collate_images, **kw), None, 3, len(ll.proc_y.vocab))
    opt_func = nb.muon_opt(wd=r['wd'], **{k: r[k] for k in ('mom', 'sqr_mom', 'eps', 'adam_share')})
    learn = nb.cnn_learner(getattr(nb, arch), data, nb.LabelSmoothingCrossEntropy(r['smooth']), opt_func, lr=1e-3, norm=nb.norm_imagenette, progress=False, channels_last=True, xtra_cb=[nb.AmpCallback()]*amp)
    learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, nb.AvgStatsCallback)])
    learn.logger = nb.noop
    return learn

def rounds_of(learn, rounds):
    "For each round, the seconds of the loader alone, of the model alone, of the epoch, and of waiting in it."
    dl, rows = learn.data.train_dl, []
    ready = list(dl)   # also starts the workers
    for i in range(rounds + 1):
        start = time.perf_counter()
        for _ in dl: pass
        loader = time.perf_counter() - start
        def fit(batches):
            learn.data.train_dl = batches
            start = time.perf_counter()
            learn.fit(1)
            if learn.stopped_at: raise SystemExit(f'the loss was not finite in batch {learn.stopped_at[1]}: no epoch to be timed')
            if learn_device(learn) == 'cuda': torch.cuda.synchronize()
            return time.perf_counter() - start
        model, waiting = fit(ready), Waiting(dl)
        epoch = fit(waiting)
        learn.data.train_dl = dl
        if i: rows.append((loader, model, epoch, sum(waiting.seconds[1:])))   # the first round warms up
    return rows

def learn_device(learn): return next(learn.model.parameters()).device.type

def main(images=640, rounds=3, workers=(0, 2), arch='xresnet18', size=128, bs=64, threads=0, amp=(False, True)) -> None:
    "Print the table of parts, for each format and number of workers."
    from exp.nb_11 import URLs, untar_data
    before, path = torch.get_num_threads(), untar_data(URLs.IMAGENETTE_160)
    if threads: torch.set_num_threads(threads)
    try:
        print('| format | workers | loader alone, images/s | model alone | the sum | epoch | of the sum | of the slower | waited |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |')
        for half in amp:
            for n in workers:
                learn = make(path, images, n, arch, size, bs, half)
                rows = rounds_of(learn, rounds)
                seen = len(learn.data.train_dl)*bs
                loader, model, both, epoch = (statistics.median(seen/f(r) for r in rows) for f in (lambda r: r[0], lambda r: r[1], lambda r: r[0] + r[1], lambda r: r[2]))
                of_sum, of_slower, waited = (statistics.median(f(r)/r[2] for r in rows) for f in (lambda r: r[0] + r[1], lambda r: max(r[0], r[1]), lambda r: r[3]))
                print(f'| {"mixed" if half else "float32"} | {n} | {loader:.0f} | {model:.1f} | {both:.1f} | {epoch:.1f} | {of_sum:.2f} | {of_slower:.2f} | {waited:.1%} |', flush=True)
        print(f'\n{path.name}, {seen} images in batches of {bs}, {size} x {size}, {arch} on {learn_device(learn)}, {torch.get_num_threads()} threads, medians of {rounds} rounds; mixed: AmpCallback()')
    finally: torch.set_num_threads(before)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--images', type=int, default=640)
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--workers', type=int, nargs='+', default=[0, 2])
    p.add_argument('--arch', default='xresnet18')
    p.add_argument('--size', type=int, default=128)
    p.add_argument('--bs', type=int, default=64)
    p.add_argument('--threads', type=int, default=0, help='for the model; default: all')
    args = p.parse_args()
    print(f'{machine()}\n')
    main(args.images, args.rounds, args.workers, args.arch, args.size, args.bs, args.threads)
