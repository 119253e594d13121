"What hooks cost: the time of a training step of lesson 06's network with them, against the same step without any."
import time
from functools import partial
import torch
from torch.nn import functional as F
from exp.nb_06 import ActivationStats, DataBunch, Hooks, Learner, Runner, append_stats, conv_layer, get_cnn_model, default_device, init_cnn, set_seed

NFS, BS = [8, 16, 32, 32], 512

def make():
    "A model, its optimizer, and a batch on the device to train on."
    set_seed(42)
    device = default_device()
    model = get_cnn_model(DataBunch(None, None, 10), NFS, conv_layer, leak=.1, sub=.4, maxv=6.)
    init_cnn(model)
    model.to(device)
    return model, torch.optim.SGD(model.parameters(), lr=.01), torch.randn(BS, 1, 28, 28, device=device), torch.randint(10, (BS,), device=device)

class Step:
    "Training steps on one batch, with hooks."
    def __init__(self, hooks=None):
        self.model, self.opt, self.x, self.y = make()
        self.hooks, self.device = hooks and hooks(self.model), self.x.device
    def __call__(self):
        F.cross_entropy(self.model(self.x), self.y).backward()
        self.opt.step()
        self.opt.zero_grad()
        for h in self.hooks or []:
            if hasattr(h, 'stats') and len(h.stats[0]) > 100: del h.stats   # else memory would grow with the number of repeats

class RunnerStep(Step):
    "The same within a Runner, for callbacks; the batches are the one batch again and again."
    def __init__(self, *cbs):
        super().__init__()
        loader = Again((self.x, self.y), 10)
        self.learn, self.run = Learner(self.model, self.opt, F.cross_entropy, DataBunch(loader, Again((self.x[:2], self.y[:2]), 1))), Runner(list(cbs))
    def __call__(self): self.run.fit(1, self.learn)

class Again:
    "A loader that gives one batch `n` times."
    dataset = None
    def __init__(self, batch, n): self.batch, self.n = batch, n
    def __len__(self): return self.n
    def __iter__(self): return iter([self.batch]*self.n)

def best(steps: dict, repeats: int = 30) -> dict[str, float]:
    "Each one's best time in seconds, in turn, so that a busy moment hits all of them."
    times = {k: [] for k in steps}
    for _ in range(repeats):
        for k, step in steps.items():
            start = time.perf_counter()
            step()
            if step.device.type == 'cuda': torch.cuda.synchronize()
            times[k].append(time.perf_counter() - start)
    return {k: min(v) for k, v in times.items()}

def table(title: str, times: dict, per: int) -> None:
    "Times a step, and as ratios to the first."
    base = next(iter(times.values()))
    print(f'| {title} | ms a step | ratio |\n| --- | --- | --- |')
    for k, t in times.items(): print(f'| {k} | {t/per*1e3:.2f} | {t/base:.2f} |')
    print()

def nothing(hook, mod, inp, outp): pass

def main() -> None:
    "Print both tables."
    print(f'{len(NFS)} convolutions, batch of {BS}, on {default_device()}; hooks on all 7 layers\n')
    hooked = {'no hooks': None, 'hooks that do nothing': lambda m: Hooks(m, nothing), 'append_stats, histograms of 64 items': lambda m: Hooks(m, partial(append_stats, items=64)),
              'append_stats': lambda m: Hooks(m, append_stats)}
    table('a plain training step', best({k: Step(h) for k, h in hooked.items()}), 1)
    cbs = {'no callback': (), 'ActivationStats(every=10)': (ActivationStats(every=10),), 'ActivationStats()': (ActivationStats(),), 'ActivationStats(items=None)': (ActivationStats(items=None),)}
    table('a step in a Runner', best({k: RunnerStep(*c) for k, c in cbs.items()}, repeats=5), 10)
