"What mixing costs: a training step with MixUp, CutMix or label smoothing against the same step without, and the mixing alone against simpler ways to write it."
import random, time
from functools import partial
import pandas as pd
import torch
from torch.nn import functional as F
from exp.nb_10b import (Callback, CancelEpochException, CutMix, DataBunch, LabelSmoothingCrossEntropy, MixUp, conv_layer, default_device, get_learner, lin_comb, listify, set_seed, unsqueeze)

NFS, BS, STEPS = (128, 256), 64, 2

class NoValidation(Callback):
    "Leaves out validation."
    def begin_validate(self): raise CancelEpochException()

def sync(device):
    "Wait until `device` has done what it was given."
    if device.type == 'cuda': torch.cuda.synchronize(device)
    elif device.type == 'mps': torch.mps.synchronize()

def in_turns(ways: dict, rounds: int, device) -> pd.DataFrame:
    "Seconds of each way in each round, in random order, so that a busy moment hits all of them."
    times = {k: [] for k in ways}
    for f in ways.values(): f()   # a first time, not counted
    for _ in range(rounds):
        for k in random.sample(list(ways), len(ways)):
            sync(device)
            start = time.perf_counter()
            ways[k]()
            sync(device)
            times[k].append(time.perf_counter() - start)
    return pd.DataFrame(times)

def table(title: str, times: pd.DataFrame, per: int = 1):
    "Median milliseconds, and the median of the ratios to the first way in the same round."
    ratios = times.div(times.iloc[:, 0], axis=0).median()
    print(f'| {title} | ms | ratio |\n| --- | --- | --- |')
    for k, t in times.median().items(): print(f'| {k} | {t/per*1e3:.3f} | {ratios[k]:.3f} |')
    print()

def fitter(device, size: int, loss_func=F.cross_entropy, mixer=None):
    "A function that trains `STEPS` steps on one batch."
    set_seed(42)
    batch = torch.randn(BS, 3, size, size, device=device), torch.randint(10, (BS,), device=device)
    learn = get_learner(NFS, DataBunch([batch]*STEPS, [], 3, 10), 1e-3, conv_layer, loss_func=loss_func)
    learn.model.to(device)
    cbs = [NoValidation(), *listify(mixer)]
    return partial(learn.fit, 1, cbs=cbs)

def cut_by_loop(x, x1, λ):
    "CutMix with a Python loop over the images, which reads each corner."
    x, h, w = x.clone(), *x.shape[-2:]
    for i, l in enumerate(λ.tolist()):
        half, cy, cx = (1 - l)**.5/2, random.random()*h, random.random()*w
        rows, cols = slice(max(round(cy - half*h), 0), max(round(cy + half*h), 0)), slice(max(round(cx - half*w), 0), max(round(cx + half*w), 0))
        x[i, :, rows, cols] = x1[i, :, rows, cols]
    return x

def main(rounds: int = 15) -> None:
    "Print the tables."
    device = default_device()
    print(f'batches of {BS} on {device}, {torch.get_num_threads()} threads\n')
    for size, rounds in ((64, rounds), (128, rounds//3)):
        ways = dict(plain={}, label_smoothing=dict(loss_func=LabelSmoothingCrossEntropy()), MixUp=dict(mixer=MixUp()), CutMix=dict(mixer=CutMix()))
        table(f'a training step, {size} px', in_turns({k: fitter(device, size, **kw) for k, kw in ways.items()}, rounds, device), STEPS)
    x = torch.randn(BS, 3, 128, 128, device=device)
    x1, λ = x.flip(0), torch.rand(BS, device=device)
    ways = {'lin_comb': lambda: lin_comb(x, x1, unsqueeze(λ, (1, 2, 3))), 'MixUp.mix (lerp)': lambda: MixUp().mix(x, x1, λ), 'CutMix by a loop over images': lambda: cut_by_loop(x, x1, λ),
            'CutMix.mix (masks)': lambda: CutMix().mix(x, x1, λ)}
    table('mixing alone, 128 px', in_turns(ways, 20, device))
