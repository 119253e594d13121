"Several processes as one training: shares of the data, groups that open and close, processes that fail or die, and steps of several batches. Most checks on two processes share one start, since that takes seconds."
import json, os, signal, socket, subprocess, sys, time
from functools import partial
from pathlib import Path
import numpy as np
import pytest, torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import nn, optim
from torch.utils.data import DataLoader, WeightedRandomSampler
from exp import nb_11b as nb
from exp.nb_11b import AmpCallback, AvgStatsCallback, Callback, CancelBatchException, DataBunch, Dataset, DistributedCallback, EarlyStopping, GradAccumulation, Learner, LR_Find, MixedPrecision, TerminateOnNaN
from exp.nb_11b import accuracy, default_device, launch, open_group, rank_loader, set_seed, torchrun_callbacks

def make_learn(n=64, n_valid=21, bs=8, cbs=(), shuffle=False, opt_func=partial(optim.SGD, momentum=.9)):
    "The same small learner each time."
    set_seed(3)
    x = torch.randn(n + n_valid, 10)
    ds = [Dataset(o, o[:, :4].argmax(1)) for o in (x[:n], x[n:])]
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 4))
    learn = Learner(model, DataBunch(DataLoader(ds[0], bs, shuffle=shuffle), DataLoader(ds[1], bs)), F.cross_entropy, opt_func, lr=.1, cbs=[AvgStatsCallback(accuracy), *cbs])
    learn.logger = lambda line: None
    return learn

class Note(Callback):
    "Takes down a random number and an image number at the start of each epoch."
    def begin_fit(self): self.numbers, self.items = [], []
    def begin_epoch(self): self.numbers.append(torch.rand(()).item())
    def begin_batch(self):
        if self.run.in_train: self.items.append(self.run.xb[0, 0].item())

class Fails(Callback):
    def after_backward(self):
        if self.run.epoch == 1: raise KeyboardInterrupt

class Poison(Callback):
    "Spoils a loss of rank 1, and only that one's."
    def after_loss(self):
        if os.environ['RANK'] == '1' and self.run.in_train and self.run.n_iter == 5: self.run.loss = self.run.loss*float('nan')

def weights(learn): return [p.detach().clone() for p in learn.model.parameters()]

def near(a, b): return all(torch.allclose(p, q, rtol=1e-4, atol=1e-6) for p, q in zip(a, b))

# shares of the data

def loader(n, bs, shuffle, drop_last): return DataLoader(range(n), bs, shuffle=shuffle, drop_last=drop_last)

@settings(max_examples=60)
@given(st.integers(1, 70), st.integers(1, 9), st.integers(1, 5), st.booleans(), st.booleans(), st.integers(0, 3))
def test_training_shares_are_equally_many_and_cover_the_items(n, bs, world, shuffle, drop_last, epoch):
    if n//world < (bs if drop_last else 1): return
    shares = []
    for r in range(world):
        dl = rank_loader(loader(n, bs, shuffle, drop_last), r, world, seed=5)
        dl.sampler.set_epoch(epoch)
        shares.append([b.tolist() for b in dl])
    sizes = [[len(b) for b in s] for s in shares]
    assert all(s == sizes[0] for s in sizes) and sizes[0]
    seen = [i for s in shares for b in s for i in b]
    if not drop_last and sum(sizes[0]) == -(-n//world): assert set(seen) == set(range(n)) and len(seen) - n < world
    if drop_last: assert len(set(seen)) == len(seen) and all(s == bs for s in sizes[0])
    if len(sizes[0]) > 1 and n % bs != 1 and bs > 1: assert sizes[0][-1] > 1

@settings(max_examples=40)
@given(st.integers(1, 70), st.integers(1, 9), st.integers(1, 5), st.booleans())
def test_validation_shares_partition_the_items(n, bs, world, drop_last):
    if n < world: return
    seen = [i for r in range(world) for b in rank_loader(loader(n, bs, False, False), r, world, train=False) for i in b.tolist()]
    assert sorted(seen) == list(range(n))

def test_an_epochs_order_follows_from_seed_and_epoch():
    def order(seed, epoch):
        dl = rank_loader(loader(40, 4, True, False), 0, 2, seed=seed)
        dl.sampler.set_epoch(epoch)
        return [i for b in dl for i in b.tolist()]
    assert order(1, 0) == order(1, 0) and len({tuple(order(s, e)) for s in (1, 5) for e in (0, 1)}) == 4

@pytest.mark.parametrize('dl, match', [(lambda: DataLoader(range(8), 2, sampler=WeightedRandomSampler([1.]*8, 8)), 'WeightedRandomSampler'), (lambda: DataLoader(range(8), batch_size=None), "can't be shared out"),
                                       (lambda: DataLoader(range(8), batch_sampler=[[0, 1]]), 'list'), (lambda: DataLoader(range(9), 8, drop_last=True), 'drop_last'),
                                       (lambda: [(1, 2)], "a list can't be shared out.*give a DataLoader")])
def test_loaders_that_cant_be_shared(dl, match):
    with pytest.raises(ValueError, match=match): rank_loader(dl(), 0, 2)

def test_validation_with_fewer_items_than_processes():
    with pytest.raises(ValueError, match='1 items are too few for 2'): rank_loader(DataLoader(range(1)), 0, 2, train=False)

def test_a_loaders_other_settings_are_kept():
    dl = rank_loader(DataLoader(range(8), 2, collate_fn=list, num_workers=1, prefetch_factor=3, persistent_workers=True), 1, 2)
    assert (dl.collate_fn, dl.num_workers, dl.prefetch_factor, dl.persistent_workers) == (list, 1, 3, True)

# without torchrun

def test_clear_error_without_torchrun(monkeypatch):
    for k in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'): monkeypatch.delenv(k, raising=False)
    learn = make_learn()
    with pytest.raises(RuntimeError, match='start the program with torchrun'): learn.fit(1, DistributedCallback())
    assert torchrun_callbacks() == []
    learn.fit(1)   # and nothing is left of it

def test_callbacks_under_torchrun(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    [cb] = torchrun_callbacks(timeout=7)
    assert isinstance(cb, DistributedCallback) and cb.timeout == 7

# one step for several batches, in one process

def by_hand(n, bs, k, epochs=2):
    "Groups of k batches as one batch each."
    learn = make_learn(n)
    x, y, opt = learn.data.train_ds.x, learn.data.train_ds.y, optim.SGD(learn.model.parameters(), lr=.1, momentum=.9)
    for _ in range(epochs):
        for i in range(0, n, bs*k):
            F.cross_entropy(learn.model(x[i:i+bs*k]), y[i:i+bs*k]).backward()
            opt.step(), opt.zero_grad()
    return weights(learn)

@settings(max_examples=15)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 5))
def test_accumulated_steps_are_those_of_joint_batches(n, bs, k):
    learn = make_learn(n, bs=bs)
    learn.fit(2, GradAccumulation(k))
    assert near(weights(learn), by_hand(n, bs, k))

def test_losses_and_metrics_stay_those_of_single_batches():
    a, b = make_learn(opt_func=partial(optim.SGD, momentum=0.)), make_learn(opt_func=partial(optim.SGD, momentum=0.))
    for learn, cbs in ((a, []), (b, [GradAccumulation(4)])):
        learn.lr = 0.
        learn.fit(1, cbs)
    assert a.avg_stats.history == b.avg_stats.history

class CancelOne(Callback):
    _order = -50
    def __init__(self, at): self.at = at
    def begin_batch(self):
        if self.run.in_train and self.run.iter == self.at: raise CancelBatchException()

def test_a_group_whose_last_batch_is_cancelled_leaves_no_gradients():
    learn = make_learn(32)
    learn.fit(1, [GradAccumulation(8), CancelOne(3)])   # the epoch's last: no step at all
    assert near(weights(learn), weights(make_learn(32)))
    learn = make_learn(32)
    learn.fit(1, [GradAccumulation(2), CancelOne(1)])
    assert all(p.grad is None or not p.grad.any() for p in learn.model.parameters())

@pytest.mark.parametrize('cb', [partial(AmpCallback, torch.bfloat16), partial(AmpCallback, torch.float16), MixedPrecision])
def test_accumulation_beside_mixed_precision(cb):
    plain, mixed = make_learn(), make_learn()
    plain.fit(2, GradAccumulation(3))
    mixed.fit(2, [GradAccumulation(3), cb()])
    assert all(torch.allclose(p, q, atol=.02) for p, q in zip(weights(plain), weights(mixed))) and not near(weights(mixed), weights(make_learn()))

def test_accumulation_as_a_learners_own_callback():
    learn = make_learn(cbs=[GradAccumulation(3)])
    before = learn.validate()
    learn.fit(1)
    assert learn.validate()['loss'] < before['loss'] and len(learn.get_preds()[0]) == 21

@pytest.mark.parametrize('n', [0, -1, 1.5, 'two'])
def test_accumulation_refuses(n):
    with pytest.raises(ValueError, match='whole number'): GradAccumulation(n)

# two processes: one start for all of these

def on_two(folder):
    "Everything that is looked at below, by name."
    rank, out = int(os.environ['RANK']), {}
    def fit(name, learn, *cbs, epochs=2):
        error = ''
        try: learn.fit(epochs, [*cbs, DistributedCallback(timeout=240)])
        except (Exception, KeyboardInterrupt) as e: error = f'{type(e).__name__}: {e}'
        out[name] = dict(weights=weights(learn), history=learn.avg_stats.history, error=error, closed=not dist.is_initialized(), bare=type(learn.model) is nn.Sequential)
        return learn
    fit('plain', make_learn(bs=4))
    fit('accumulated', make_learn(bs=4), GradAccumulation(2))
    fit('uneven', make_learn(n=33, n_valid=5, bs=4, shuffle=True))
    learn, note = make_learn(shuffle=True), Note()
    fit('first', learn, note)
    out['numbers'], out['items'] = note.numbers, note.items
    fit('second', learn, note)
    out['numbers_2'], out['after'] = note.numbers, torch.rand(()).item()
    fit('fails', make_learn(), Fails(), epochs=3)
    fit('disagree', make_learn(n=64 + 8*rank))
    fit('amp', make_learn(bs=4), AmpCallback(torch.bfloat16))
    fit('stops', make_learn(), EarlyStopping(patience=1, min_delta=9.), epochs=9)
    guard = TerminateOnNaN(every=2)
    fit('nan', make_learn(), Poison(), guard, epochs=3)
    out['nan']['stopped'] = [guard.stopped_at, 'agree' in vars(guard)]
    fit('find', make_learn(), LR_Find())
    out['validate'] = list(learn.validate().values())
    open_group(timeout=240)
    dist.barrier()
    dist.destroy_process_group()
    done, t = Path(folder)/'done', time.perf_counter()
    open_group(timeout=12)
    if rank: 
        while not done.exists(): time.sleep(.1)   # alive, but doesn't come
    else:
        try: dist.all_reduce(torch.ones(3))
        except RuntimeError as e: out['waiting'] = [str(e), time.perf_counter() - t]
        done.touch()
    dist.destroy_process_group()
    return out

@pytest.fixture(scope='module')
def two(tmp_path_factory): return launch(on_two, str(tmp_path_factory.mktemp('two')), needs=[make_learn, Note, Fails, Poison, weights], timeout=500)

def test_two_processes_are_one_process(two):
    learn = make_learn()
    learn.fit(2)
    for out in two:
        assert not out['plain']['error'] and near(out['plain']['weights'], weights(learn))
        for row, goal in zip(out['plain']['history'], learn.avg_stats.history): assert row == pytest.approx(goal, rel=1e-4)

def test_both_have_the_same_bits(two):
    for name in ('plain', 'accumulated', 'uneven', 'second', 'amp'):
        a, b = (out[name] for out in two)
        assert not a['error'] and all(torch.equal(p, q) for p, q in zip(a['weights'], b['weights'])) and a['history'] == b['history'], (name, a['error'])

def test_accumulation_on_two_processes_is_the_joint_batch(two):
    learn = make_learn(bs=16)
    learn.fit(2)
    assert near(two[0]['accumulated']['weights'], weights(learn))

def test_random_numbers_and_items_differ_between_ranks_and_fits(two):
    a, b = two
    assert len({*a['numbers'], *b['numbers'], *a['numbers_2'], *b['numbers_2']}) == 8 and a['after'] == b['after']
    assert not {*a['items'][:4]} & {*b['items'][:4]}

def test_group_is_closed_and_model_bare_after_any_fit(two):
    for out in two:
        for name in ('plain', 'first', 'second', 'fails', 'disagree', 'stops'): assert out[name]['closed'] and out[name]['bare'], name
        assert out['fails']['error'].startswith('KeyboardInterrupt')

def test_processes_that_disagree_all_get_the_error(two):
    for out in two: assert 'the processes disagree on training batches: 4, 5' in out['disagree']['error']

def test_early_stopping_stops_all_at_once(two):
    assert [len(out['stops']['history']) for out in two] == [2, 2]

def test_a_loss_that_is_nan_on_one_stops_all(two):
    for out in two: assert out['nan']['stopped'] == [(1, 1), False] and not out['nan']['error'] and len(out['nan']['history']) == 1 and out['nan']['closed']

def test_finder_is_refused(two):
    for out in two: assert 'learn.lr_find()' in out['find']['error']

def test_validate_is_each_ranks_own_and_the_same(two): assert two[0]['validate'] == two[1]['validate']

def test_waiting_ends(two):
    message, seconds = two[0]['waiting']
    assert 'imed out' in message and 10 < seconds < 60, message

# processes that die, fail or hang

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

_endless = '''
import sys
sys.path[:0] = {path!r}
from test_distributed import *
class Alive(Callback):
    def begin_batch(self):
        if self.run.epoch == 1: Path({folder!r}, os.environ['RANK']).touch()
make_learn().fit(100000, [Alive(), DistributedCallback(timeout=120)])
'''

def test_when_one_is_killed_the_other_ends_with_an_error(tmp_path):
    env = os.environ | dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()), OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    script = tmp_path/'endless.py'
    script.write_text(_endless.format(path=[str(Path(__file__).parent)], folder=str(tmp_path)))
    processes = [subprocess.Popen([sys.executable, str(script)], env=env | dict(RANK=str(r)), stderr=subprocess.PIPE, text=True) for r in range(2)]
    try:
        end = time.monotonic() + 240
        while not all((tmp_path/str(r)).exists() for r in range(2)):
            assert time.monotonic() < end and all(p.poll() is None for p in processes)
            time.sleep(.05)
        processes[1].kill()   # SIGKILL
        _, err = processes[0].communicate(timeout=200)
        assert processes[0].returncode not in (0, None) and 'Error' in err
    finally:
        for p in processes:
            p.kill()
            p.communicate()

def fails_on_rank_1():
    if os.environ['RANK'] == '1': raise ValueError('the second one has no data')
    open_group(timeout=240)   # where nobody comes

def left_behind(folder): return [p for p in Path('/proc').glob('[0-9]*') if folder.encode() in p.joinpath('cmdline').read_bytes()] if Path('/proc').is_dir() else []

def test_launch_names_who_failed(tmp_path):
    with pytest.raises(RuntimeError, match='rank 1: ValueError: the second one has no data'): launch(fails_on_rank_1)

def my_device(): return [os.environ.get('EXP_DEVICE', ''), str(default_device())]

def test_launch_can_choose_the_device(monkeypatch):
    monkeypatch.delenv('EXP_DEVICE', raising=False)
    assert launch(my_device, nproc=1, device='cpu') == [['cpu', 'cpu']]

def sleeps(): time.sleep(600)

def test_launch_that_takes_too_long_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(nb.tempfile, 'tempdir', str(tmp_path))
    with pytest.raises(TimeoutError, match='sleeps was not ready after 6'): launch(sleeps, timeout=6)
    time.sleep(.2)
    assert not left_behind(str(tmp_path)) and not list(tmp_path.glob('*/worker.py'))

# the command

def torchrun_command(folder, *more, nproc=2):
    "Runs the command on images of two classes, on several processes."
    rng = np.random.default_rng(0)
    for c in ('cat', 'dog'):
        (folder/'images'/c).mkdir(parents=True, exist_ok=True)
        for i in range(10): Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(folder/'images'/c/f'{i}.png')
    args = ['--data', folder/'images', '--arch', 'xresnet18', '--size', 16, '--bs', 4, '--epochs', 2, '--workers', 0, *more]
    start = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', nproc] if nproc > 1 else []
    command = [sys.executable, *start, '-m', 'exp.train_imagenette', *args]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=500, env=os.environ | dict(OMP_NUM_THREADS='1', MPLBACKEND='agg'))

def test_train_imagenette_under_torchrun(tmp_path):
    out = tmp_path/'run'
    done = torchrun_command(tmp_path, '--out', out)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((out/'results.json').read_text())
    assert len(results['history']) == 2 and results['data']['train'] == 16 and results['processes'] == 2 and done.stdout.count('after 2 epochs') == 1
    assert len((out/'log.csv').read_text().splitlines()) == 3 and sorted(p.name for p in (out/'checkpoints').iterdir()) == ['epoch_0001.pt', 'epoch_0002.pt']
    for p in (out/'results.json', out/'checkpoints'/'epoch_0002.pt'): p.unlink()   # as if it had been interrupted in the second epoch
    alone = torchrun_command(tmp_path, '--out', out, '--resume', nproc=1)
    assert alone.returncode == 2 and 'the number of processes was 2, not 1' in alone.stderr
    done = torchrun_command(tmp_path, '--out', out, '--resume')
    assert done.returncode == 0, done.stderr[-2000:]
    again = json.loads((out/'results.json').read_text())
    assert [{k: v for k, v in h.items() if k != 'time'} for h in again['history']] == [{k: v for k, v in h.items() if k != 'time'} for h in results['history']]

def test_train_imagenette_under_torchrun_ends_at_nan(tmp_path):
    done = torchrun_command(tmp_path, '--out', tmp_path/'run', '--lr', 1e30)
    assert done.returncode != 0 and 'the loss was not finite in epoch' in done.stderr and not (tmp_path/'run'/'results.json').exists()
