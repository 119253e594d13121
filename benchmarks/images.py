"""The input pipeline against torchvision's: python -m benchmarks.images [--rounds N] [--files N] [--workers N...]

JPEGs of 160 pixels -> a random resized crop of 128 -> a random flip -> batches of 64 as floats 0..1, in the training process, by the same PyTorch loader with 0 and 2 workers.
The peer is torchvision's transforms of Pillow images, if torchvision can be imported; else their steps, written as torchvision does them. The ways take turns in random order; a way's ratio is the median, over the rounds,
of its images a second to the peer's *in the same round*. Files are read before the first round, so that they come from the system's cache; workers are started before the clock.
The real Imagenette-160 where it can be had (EXP_DATA, EXP_MIRROR), else the built-in sample.
"""
import argparse, math, random, statistics, time
from importlib.metadata import version
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.machine import machine

SIZE, BS = 128, 64

def _crop_box(w, h, scale=(.08, 1.), ratio=(3/4, 4/3)):
    "torchvision's RandomResizedCrop.get_params, with the same ten tries and the same kind of random numbers."
    log_ratio = torch.log(torch.tensor(ratio))
    for _ in range(10):
        area = w*h*torch.empty(1).uniform_(*scale).item()
        r = torch.exp(torch.empty(1).uniform_(log_ratio[0], log_ratio[1])).item()
        wc, hc = round(math.sqrt(area*r)), round(math.sqrt(area/r))
        if 0 < wc <= w and 0 < hc <= h:
            top, left = torch.randint(0, h - hc + 1, size=(1,)).item(), torch.randint(0, w - wc + 1, size=(1,)).item()
            return left, top, left + wc, top + hc
    side = min(w, h)
    return (w - side)//2, (h - side)//2, (w + side)//2, (h + side)//2

def torchvision_steps(img):
    "RandomResizedCrop, RandomHorizontalFlip and ToTensor of torchvision, step by step, for one image."
    img = img.crop(_crop_box(*img.size)).resize((SIZE, SIZE), Image.BILINEAR)
    if torch.rand(1) < .5: img = img.transpose(Image.FLIP_LEFT_RIGHT)
    x = torch.from_numpy(np.array(img, np.uint8, copy=True)).view(img.size[1], img.size[0], 3)
    return x.permute((2, 0, 1)).contiguous().to(dtype=torch.get_default_dtype()).div(255)

def torchvision_transforms():
    "torchvision's own, or None if it can't be imported."
    try: from torchvision import transforms as T
    except (ImportError, RuntimeError, OSError): return None
    return T.Compose([T.RandomResizedCrop(SIZE), T.RandomHorizontalFlip(), T.ToTensor()])

class PeerFiles:
    "As torchvision's ImageFolder: opened, made RGB, transformed."
    def __init__(self, files, labels, tfm): self.files, self.labels, self.tfm = files, labels, tfm
    def __len__(self): return len(self.files)
    def __getitem__(self, i):
        with open(self.files[i], 'rb') as f: img = Image.open(f).convert('RGB')
        return self.tfm(img), self.labels[i]

class Decoded(PeerFiles):
    "Decoding alone, and nothing that is made of it."
    def __getitem__(self, i):
        with Image.open(self.files[i]) as img: img.load()
        return 0, self.labels[i]

def make_ways(n_files):
    "Name -> (dataset, collate function, what is done to a batch in the training process); the peer is the first."
    from exp.nb_10 import (CategoryProcessor, CropToBytes, ImageList, ItemList, LabeledData, PilRandomFlip, RandomResizedCrop, URLs, collate_images, default_collate, make_rgb,
                           parent_labeler, to_byte_tensor, to_float_tensor, untar_data)
    path = untar_data(URLs.IMAGENETTE_160)
    il = ImageList.from_files(path/'train')
    files = random.Random(0).sample(il.items, min(n_files, len(il.items)))
    for f in files: f.read_bytes()
    names = [parent_labeler(f) for f in files]
    labels = CategoryProcessor()(names)
    def ours(*tfms): return LabeledData(ImageList(files, path, tfms=tfms), ItemList(names), proc_y=CategoryProcessor())
    def same(x): return x
    tv = torchvision_transforms()
    ways = {'torchvision': (PeerFiles(files, labels, tv), default_collate, same)} if tv else {}
    return ways | {"torchvision's steps": (PeerFiles(files, labels, torchvision_steps), default_collate, same),
                   'ours, Pillow transforms': (ours(make_rgb, RandomResizedCrop(SIZE), PilRandomFlip(), to_byte_tensor), default_collate, to_float_tensor),
                   'ours, CropToBytes': (ours(make_rgb, CropToBytes(RandomResizedCrop(SIZE), p=.5)), collate_images, to_float_tensor),
                   'decoding alone': (Decoded(files, labels, None), default_collate, same)}, path

def check(ways):
    "All ways give batches of the same kind."
    for name, (ds, collate, finish) in ways.items():
        if name == 'decoding alone': continue
        x, y = collate([ds[i] for i in range(4)])
        x = finish(x)
        assert x.shape == (4, 3, SIZE, SIZE) and x.dtype == torch.float32 and 0 <= x.min() and x.max() <= 1 and y.dtype == torch.int64, name

def measure(rounds=15, files=640, workers=0, seed=0):
    "Name -> images a second, one for each round; and where the files are."
    torch.manual_seed(seed)
    ways, path = make_ways(files)
    check(ways)
    loaders = {w: DataLoader(ds, batch_size=BS, shuffle=True, num_workers=workers, persistent_workers=workers > 0, collate_fn=collate) for w, (ds, collate, _) in ways.items()}
    rates, order = {w: [] for w in ways}, random.Random(seed)
    for i in range(rounds + 1):
        for w in order.sample(list(ways), len(ways)):
            finish, n, start = ways[w][2], 0, time.perf_counter()
            for x, y in loaders[w]:
                finish(x)
                n += len(y)
            if i: rates[w].append(n/(time.perf_counter() - start))   # the first round starts the workers and warms up
    return rates, path

GOALS = {'ours, CropToBytes': 1.5}

def main(rounds=15, files=640, workers=(0, 2), threads=1) -> None:
    "Print the tables of ways, with their ratios and the goal."
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try: tables = {n: measure(rounds, files, n) for n in workers}
    finally: torch.set_num_threads(before)
    peer, path = next(iter(tables[workers[0]][0])), tables[workers[0]][1]
    print(f'{path.name}, {files} JPEGs to batches of {BS} floats of {SIZE} x {SIZE}; {threads} thread{"s"*(threads > 1)}, {rounds} rounds; the peer is {peer}' + (f' {version(peer)}' if peer == 'torchvision' else ''))
    for n, (rates, _) in tables.items():
        print(f'\n| {n} workers | images/s (median) | times the peer (median) | quartiles | goal |\n| --- | --- | --- | --- | --- |')
        for w, rs in rates.items():
            low, ratio, high = statistics.quantiles([r/p for r, p in zip(rs, rates[peer])], n=4)
            print(f'| {w} | {statistics.median(rs):.0f} | {"" if w == peer else f"{ratio:.2f}"} | {"" if w == peer else f"{low:.2f} to {high:.2f}"} | {GOALS.get(w, "")} |')

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=15)
    p.add_argument('--files', type=int, default=640)
    p.add_argument('--workers', type=int, nargs='+', default=[0, 2])
    p.add_argument('--threads', type=int, default=1)
    args = p.parse_args()
    print(f'{machine()}\n')
    main(args.rounds, args.files, args.workers, args.threads)
