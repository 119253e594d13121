"Lesson 06 beyond what it shows: hooks that always end, containers against Python's lists, any outputs, any device, bad input."
import copy, gc, math, os, pickle, subprocess, sys
from collections import namedtuple
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence
from exp import nb_06
from exp.nb_06 import (ActivationStats, Callback, CancelBatchException, CancelTrainException, CudaCallback, DataBunch, Dataset, GeneralRelu, Hook, Hooks, Learner, ListContainer,
                       Runner, append_stats, children, conv_layer, flatten, get_cnn_layers, get_cnn_model, get_dls, get_learn_run, get_runner, init_cnn, nb_auto_export,
                       normalize_to, set_seed, to_device, view_tfm)

def n_hooks(model): return sum(len(m._forward_hooks) for m in model.modules())
def note(hook, mod, inp, outp): hook.seen = getattr(hook, 'seen', 0) + 1
def rows(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

def problem(n=20, width=6, c=3):
    "A small data bunch with rows of `width` numbers."
    x = rows(n + 8, width)
    y = x[:, :c].argmax(1)
    return DataBunch(*get_dls(Dataset(x[:n], y[:n]), Dataset(x[n:], y[n:]), 5), c)

def mlp(): return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))

def fit(model, *cbs, epochs=1, data=None):
    learn, run = get_runner(model, data or problem(), lr=.1, cbs=list(cbs))
    run.fit(epochs, learn)
    return run

# normalising

@settings(max_examples=40)
@given(seed=st.integers(0, 2**31), mean=st.floats(-100, 100), scale=st.floats(.01, 100))
def test_normalize_to_uses_the_training_statistics_for_both(seed, mean, scale):
    train, valid = rows(50, 4, seed=seed)*scale + mean, rows(20, 4, seed=seed + 1)*scale + mean + 3*scale
    t, v = normalize_to(train, valid)
    assert abs(t.mean()) < .02 and abs(t.std() - 1) < .01
    assert torch.allclose(v, (valid - train.mean())/train.std(), atol=1e-4)

# devices

def test_to_device_keeps_the_kinds_of_containers():
    Pair = namedtuple('Pair', 'x y')
    moved = to_device(dict(a=Pair(torch.ones(2), 'text'), b=[torch.ones(1), None], c=(3,)), 'meta')
    assert isinstance(moved['a'], Pair) and moved['a'].x.device.type == 'meta' and moved['a'].y == 'text'
    assert moved['b'][0].device.type == 'meta' and moved['b'][1] is None and moved['c'] == (3,)

def test_to_device_moves_packed_sequences():
    packed = pack_padded_sequence(torch.ones(3, 2, 4), torch.tensor([3, 1]))
    assert type(to_device(packed, 'cpu')) is type(packed)

def test_the_optimizers_state_follows_the_model():
    model = mlp().to('meta')
    opt = torch.optim.SGD(model.parameters(), lr=.1, momentum=.9)
    for p in model.parameters(): opt.state[p]['momentum_buffer'] = torch.zeros(p.shape)
    Runner(CudaCallback('meta')).fit(0, Learner(model, opt, F.cross_entropy, problem()))
    assert all(s['momentum_buffer'].device.type == 'meta' for s in opt.state.values())

def test_a_device_that_makes_new_parameters_is_refused():
    with pytest.raises(RuntimeError, match='move the model first'): fit(mlp(), CudaCallback('meta'))

def test_neither_the_import_nor_the_callback_asks_for_a_device():
    code = 'import torch, exp.nb_06 as m; cb = m.CudaCallback(); assert not torch.cuda.is_initialized(); print("fine")'
    got = subprocess.run([sys.executable, '-c', code], env={**os.environ, 'EXP_DEVICE': 'cuda:99'}, capture_output=True, text=True)
    assert got.stdout.strip() == 'fine', got.stderr

def test_a_device_that_is_not_there_is_named_when_the_fit_begins(monkeypatch):
    monkeypatch.setenv('EXP_DEVICE', 'cuda:99')
    with pytest.raises(ValueError, match='cuda:99'): fit(mlp(), CudaCallback)

def test_cuda_callback_on_the_cpu_changes_nothing():
    results = []
    for cbs in ([], [CudaCallback('cpu')]):
        set_seed(3)
        model = mlp()
        fit(model, *cbs, epochs=2)
        results.append(model[0].weight.detach().clone())
    assert torch.equal(*results)

def test_what_reads_the_optimizer_reads_that_of_this_fit_too():
    "Loading an optimizer's own state makes new groups of parameters; whoever holds the old ones would see, and set, rates that nobody uses."
    model, data = mlp(), problem()
    learn = Learner(model, torch.optim.Adam(model.parameters(), lr=.01), F.cross_entropy, data)
    for rate in (.01, .003):
        recorder = nb_06.Recorder()
        run = Runner([recorder, nb_06.ParamScheduler('lr', nb_06.sched_no(rate, rate)), CudaCallback('cpu')])
        run.fit(1, learn)
        assert set(recorder.lrs[0]) == {rate} and learn.opt.param_groups[0]['lr'] == rate

# shapes

@settings(max_examples=60)
@given(n=st.integers(1, 5), size=st.lists(st.integers(1, 4), min_size=1, max_size=3), width=st.integers(1, 64))
def test_view_tfm_never_changes_the_number_of_items(n, size, width):
    x = rows(n, width)
    if width == math.prod(size): assert view_tfm(*size)(x).shape == (n, *size)
    else:
        with pytest.raises(ValueError, match=f'has {width} numbers'): view_tfm(*size)(x)

def test_view_tfm_takes_an_empty_batch_and_one_that_is_not_contiguous():
    with pytest.raises(ValueError): view_tfm(2, 3)(torch.zeros(4, 5))
    x = rows(6, 4).T
    assert torch.equal(view_tfm(2, 3)(x), x.reshape(4, 2, 3))

@settings(max_examples=40)
@given(ni=st.integers(1, 3), nf=st.integers(1, 4), ks=st.sampled_from([1, 3, 5, 7]), stride=st.integers(1, 3), n=st.integers(7, 20))
def test_conv_layer_divides_the_size_by_its_stride(ni, nf, ks, stride, n):
    assert conv_layer(ni, nf, ks, stride)(torch.zeros(2, ni, n, n)).shape == (2, nf, math.ceil(n/stride), math.ceil(n/stride))

def test_view_tfm_can_be_pickled():
    view = pickle.loads(pickle.dumps(view_tfm(2, 3)))
    assert torch.equal(view(rows(4, 6)), view_tfm(2, 3)(rows(4, 6)))

def test_the_weights_of_a_loss_follow_the_model():
    data = problem()
    learn = Learner(mlp().to('meta'), None, nn.CrossEntropyLoss(weight=torch.tensor([1., 2., 3.])), data)
    learn.opt = torch.optim.SGD(learn.model.parameters(), lr=.1)
    Runner(CudaCallback('meta')).fit(1, learn)
    assert learn.loss_func.weight.device.type == 'meta'

def test_get_cnn_layers_leaves_its_list_alone():
    nfs = [4, 5]
    get_cnn_layers(problem(), nfs, conv_layer)
    assert nfs == [4, 5]

def test_get_cnn_layers_needs_channels_and_classes():
    with pytest.raises(ValueError, match='nfs=\\[\\]'): get_cnn_layers(problem(), [], conv_layer)
    with pytest.raises(ValueError, match='data.c=None'): get_cnn_layers(DataBunch(None, None), [4], conv_layer)

def test_get_learn_run_trains_with_any_callbacks_and_optimizer():
    data = problem(width=64)
    learn, run = get_learn_run([4], data, .01, conv_layer, cbs=[nb_06.BatchTransformXCallback(view_tfm(1, 8, 8)), CudaCallback], opt_func=torch.optim.Adam, uniform=True, leak=.1)
    run.fit(1, learn)
    assert isinstance(learn.opt, torch.optim.Adam) and learn.model[0][1].leak == .1

def test_get_runner_refuses_what_makes_no_callback():
    with pytest.raises(TypeError): get_runner(mlp(), problem(), cbs=[3])
    with pytest.raises(TypeError): get_runner(mlp(), problem(), cbs=[dict])

# initialising and activating

def test_init_cnn_reaches_every_convolution_and_nothing_else():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.ModuleDict(dict(a=nn.Conv1d(200, 200, 1), b=nn.Sequential(nn.Conv3d(30, 60, 3, bias=False), nn.Linear(20, 20), nn.BatchNorm2d(3))))
    m = Block()
    linear = m.inner['b'][1].weight.clone()
    for uniform in (False, True):
        init_cnn(m, uniform, a=0.)
        for conv, fan_in in ((m.inner['a'], 200), (m.inner['b'][0], 30*27)): assert conv.weight.std().item() == pytest.approx(math.sqrt(2/fan_in), rel=.03)
    assert m.inner['a'].bias.abs().sum() == 0 and torch.equal(m.inner['b'][1].weight, linear) and torch.equal(m.inner['b'][2].weight, torch.ones(3))

maybe = lambda a, b: st.none() | st.floats(a, b)

@settings(max_examples=80)
@given(leak=maybe(0, 2), sub=maybe(-1, 1), maxv=maybe(.5, 6), seed=st.integers(0, 2**31))
def test_general_relu_is_its_formula_and_not_in_place(leak, sub, maxv, seed):
    x = (rows(40, seed=seed)*5).requires_grad_()
    before = x.detach().clone()
    y = GeneralRelu(leak, sub, maxv)(x*1)
    expected = np.where(before > 0, before, before*(leak or 0)) - (sub or 0)
    assert np.allclose(y.detach().numpy(), np.minimum(expected, np.inf if maxv is None else maxv), atol=1e-5)
    y.sum().backward()
    slope = np.where(before > 0, 1, leak or 0)*(True if maxv is None else expected < maxv)
    assert np.allclose(x.grad, slope, atol=1e-6) and torch.equal(x.detach(), before)

def test_general_relu_in_a_network_with_every_setting_learns():
    for leak in (None, .1):
        model = nn.Sequential(nn.Linear(6, 5), GeneralRelu(leak, .4, 6.), nn.Linear(5, 3))
        before = model[0].weight.detach().clone()
        fit(model)
        assert not torch.equal(model[0].weight, before)

# ListContainer

@settings(max_examples=200)
@given(data=st.data(), n=st.integers(0, 12))
def test_list_container_indexes_like_a_list_and_more(data, n):
    items = [f'item {i}' for i in range(n)]
    c = ListContainer(items)
    s = data.draw(st.slices(n))
    assert c[s] == items[s] and list(c) == items and len(c) == n
    mask = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    many = [items[i] for i in range(n) if mask[i]]
    for m in (mask, tuple(mask), torch.tensor(mask, dtype=torch.bool), np.array(mask, dtype=bool), [np.bool_(o) for o in mask], [torch.tensor(o) for o in mask]): assert c[m] == many
    if n:
        idxs = data.draw(st.lists(st.integers(-n, n - 1), max_size=9))
        for many in (idxs, tuple(idxs), torch.tensor(idxs, dtype=torch.long), np.array(idxs, dtype=np.int32), [torch.tensor(i) for i in idxs]): assert c[many] == [items[i] for i in idxs]
        i = data.draw(st.integers(-n, n - 1))
        for one in (i, torch.tensor(i), np.int16(i), np.array(i)): assert c[one] == items[i]

@settings(max_examples=100)
@given(data=st.data(), n=st.integers(1, 12))
def test_list_container_deletes_like_a_list_and_more(data, n):
    s, idxs = data.draw(st.slices(n)), data.draw(st.lists(st.integers(-n, n - 1), max_size=5))
    c, items = ListContainer(range(n)), list(range(n))
    del c[s]
    del items[s]
    assert c.items == items
    c = ListContainer(range(n))
    del c[torch.tensor(idxs, dtype=torch.long)]
    assert c.items == [i for i in range(n) if i not in {j % n for j in idxs}]

@pytest.mark.parametrize('bad, error, what', [
    (5, IndexError, 'there are 5'), (-6, IndexError, '-6'), ([0, 5], IndexError, '5'), ([True], IndexError, '5, not 1'), (torch.zeros(4, dtype=torch.bool), IndexError, '5, not 4'),
    (True, TypeError, 'True'), (torch.tensor(True), TypeError, 'True'), (1., TypeError, '1.0'), (torch.tensor(1.), TypeError, '1.0'), (torch.ones(2), TypeError, '1.0'), ('1', TypeError, '1'),
    (None, TypeError, 'None'), ([True, 0], TypeError, 'True'), (torch.zeros(2, 2, dtype=torch.long), TypeError, '0, 0'), ([[0]], TypeError, '0')])
def test_list_container_says_what_is_wrong_with_an_index(bad, error, what):
    with pytest.raises(error, match=what): ListContainer(range(5))[bad]

def test_list_container_copies_its_list_and_prints_ten_items():
    items = list(range(11))
    c = ListContainer(items)
    c[0] = 'changed'
    assert items[0] == 0 and repr(c) == "ListContainer (11 items)\n['changed', 1, 2, 3, 4, 5, 6, 7, 8, 9, …]"
    class Files(ListContainer): pass
    assert repr(Files('a')) == "Files (1 items)\n['a']"

# hooks end

def test_a_hook_ends_when_nobody_holds_it():
    m = nn.Linear(2, 2)
    hook = Hook(m, note)
    m(rows(1, 2))
    assert hook.seen == 1
    del hook
    assert n_hooks(m) == 0

def test_a_hook_in_a_cycle_ends_with_garbage_collection():
    m, holder = nn.Linear(2, 2), type('Holder', (), {})()
    holder.hooks = Hooks([m], note)
    holder.hooks[0].holder = holder
    del holder
    gc.collect()
    assert n_hooks(m) == 0

def test_hooks_end_on_a_module_that_is_gone():
    m = nn.Linear(2, 2)
    hooks = Hooks([m], note)
    del m
    hooks.remove()

def test_one_hook_leaves_those_of_others():
    m = nn.Linear(2, 2)
    others = m.register_forward_hook(lambda *o: None)
    with Hook(m, note) as a, Hook(m, note) as b: m(rows(1, 2))
    assert a.seen == b.seen == 1 and n_hooks(m) == 1
    others.remove()

def test_a_hook_may_remove_itself_while_it_is_called():
    m = nn.Linear(2, 2)
    def once(hook, mod, inp, outp):
        note(hook, mod, inp, outp)
        hook.remove()
    hook = Hook(m, once)
    for _ in range(3): m(rows(1, 2))
    assert hook.seen == 1

@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_hooks_end_when_the_hooked_function_raises(error):
    m = mlp()
    def fails(hook, mod, inp, outp): raise error
    with pytest.raises(error):
        with Hooks(m, fails): m(rows(1, 6))
    assert n_hooks(m) == 0

def test_what_a_hook_returns_replaces_the_output():
    m = mlp()
    with Hooks(m, lambda hook, mod, inp, outp: outp*0): assert m(rows(2, 6)).abs().sum() == 0
    assert m(rows(2, 6)).abs().sum() > 0

@pytest.mark.parametrize('copier', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_of_a_hooked_model_do_not_report_to_its_hooks(copier):
    m = mlp()
    with Hooks(m, append_stats) as hooks:
        c = copier(m)
        assert torch.equal(c(rows(2, 6)), m(rows(2, 6)))
        assert [len(h.stats[0]) for h in hooks] == [1, 1, 1]

def test_a_list_with_something_that_is_no_module_hooks_nothing():
    m = mlp()
    with pytest.raises(TypeError, match='number 2 is None') as caught: Hooks([m[0], m[1], None], note)
    assert n_hooks(m) == 0, caught

def test_deleting_some_hooks_ends_those():
    m = mlp()
    hooks = Hooks(m, note)
    del hooks[[True, False, True]]
    m(rows(2, 6))
    assert len(hooks) == 1 and n_hooks(m) == 1 and hooks[0].seen == 1

# what append_stats takes down

def stats_of(out, **kw):
    with Hook(nn.Identity(), lambda hook, mod, inp, outp: append_stats(hook, mod, inp, outp, **kw)) as hook: hook.f(hook, None, (), out)
    return [o[0] for o in hook.stats]

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_append_stats_takes_every_type_of_number(dtype):
    x = (rows(100, 300)*50).to(dtype)
    mean, std, hist = stats_of(x)
    assert mean.item() == pytest.approx(x.double().mean().item(), abs=1e-2) and std.item() == pytest.approx(x.double().std().item(), rel=1e-3)
    assert hist.sum() == x.numel()

@pytest.mark.parametrize('wrap', [lambda o: (o, 3), lambda o: [None, (o,)], lambda o: dict(a='text', b=o)])
def test_append_stats_takes_the_first_tensor_of_several_outputs(wrap):
    x = rows(4, 5)
    assert stats_of(wrap(x))[0] == stats_of(x)[0]

def test_append_stats_survives_nan_inf_and_single_numbers():
    mean, std, hist = stats_of(torch.tensor([math.nan, math.inf, -math.inf, 0.]))
    assert mean.isnan() and hist.sum() == 3
    assert [o.item() for o in stats_of(torch.tensor(2.))[:2]] == [2., 0.]

def test_append_stats_keeps_no_graph_and_waits_for_no_device(monkeypatch):
    m, x = mlp(), rows(8, 6)
    def waits(*args): raise AssertionError('this would wait for a GPU')
    with Hooks(m, append_stats) as hooks, monkeypatch.context() as patch:
        for name in ('item', 'tolist', 'cpu', 'numpy', '__bool__', '__float__', '__int__'): patch.setattr(torch.Tensor, name, waits)
        m(x).sum().backward()
    assert not any(t.requires_grad for h in hooks for o in h.stats for t in o)

def test_histograms_of_some_items_are_of_the_first():
    x = torch.cat([torch.zeros(3, 4), torch.ones(5, 4)*100])
    assert stats_of(x, items=3, bins=4, lim=(-2., 2.))[2].tolist() == [0, 0, 12, 0]
    assert stats_of(x, bins=4, lim=(-2., 2.))[2].tolist() == [0, 0, 12, 20]

# ActivationStats

class RaiseAt(Callback):
    _order = 30
    def __init__(self, event, error): setattr(self, event, self.fail); self.error = error
    def fail(self): raise self.error

@pytest.mark.parametrize('event', [e for e in Runner.events if 'cancel' not in e])
@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, CancelTrainException])
def test_the_hooks_are_gone_after_any_fit(event, error):
    model = mlp()
    try: fit(model, ActivationStats, RaiseAt(event, error()))
    except (ValueError, KeyboardInterrupt, RuntimeError): pass   # RuntimeError: a cancellation with nothing to cancel
    assert n_hooks(model) == 0

def test_the_hooks_are_gone_when_the_model_fails():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(4, 3))
    with pytest.raises(RuntimeError): fit(model, ActivationStats)
    assert n_hooks(model) == 0

def test_a_fit_that_fails_before_the_hooks_are_made():
    class First(RaiseAt): _order = -5
    stats = ActivationStats()
    with pytest.raises(ValueError): fit(mlp(), stats, First('begin_fit', ValueError()))
    assert stats.layers == {} and stats.hooks is None

def test_recording_changes_nothing_of_the_training():
    results = []
    for cbs in ([], [ActivationStats(), ActivationStats(every=2)]):
        set_seed(1)
        model = mlp()
        fit(model, *cbs, epochs=3)
        results.append(model[0].weight.detach().clone())
    assert torch.equal(*results)

@pytest.mark.parametrize('every', [1, 2, 3, 100])
def test_it_records_each_nth_training_batch_and_no_other(every):
    stats = ActivationStats(every=every)
    fit(mlp(), stats, epochs=2)
    for o in stats.layers.values():
        assert o.batch.tolist() == list(range(0, 8, every))
        assert o.mean.shape == o.std.shape == o.near_zero.shape == o.batch.shape and o.hist.shape == (40, len(o.batch))

def test_each_fit_starts_afresh():
    model, stats = mlp(), ActivationStats()
    learn, run = get_runner(model, problem(), cbs=stats)
    for _ in range(2): run.fit(1, learn)
    assert [len(o.batch) for o in stats.layers.values()] == [4]*3

def test_other_calls_of_the_model_are_not_recorded():
    class Again(Callback):
        def after_loss(self): self.model(self.xb)
    stats = ActivationStats()
    fit(mlp(), stats, Again())
    assert [len(o.batch) for o in stats.layers.values()] == [4]*3

def test_cancelled_batches_leave_it_in_order():
    class Skip(Callback):
        def after_loss(self):
            if self.in_train and self.n_iter == 0 and not hasattr(self, 'did'):
                self.did = True
                raise CancelBatchException()
    stats = ActivationStats()
    fit(mlp(), stats, Skip())
    assert {len(o.mean) for o in stats.layers.values()} == {len(o.batch) for o in stats.layers.values()} and not stats.hooks

class Unusual(nn.Module):
    "A lone child, a list, an RNN with several outputs, a part that is called twice and one that never is."
    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.rnn, self.act, self.unused, self.head = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 8)]), nn.LSTM(8, 4, batch_first=True), nn.ReLU(), nn.Linear(2, 2), nn.Linear(4, 3)
        def forward(self, x):
            for l in self.layers: x = self.act(l(x))
            return self.head(self.rnn(x[:, None])[0][:, -1])
    def __init__(self):
        super().__init__()
        self.body = Unusual.Body()
    def forward(self, x): return self.body(x)

def test_it_watches_unusual_models():
    stats = ActivationStats()
    fit(Unusual(), stats)
    got = {name: len(o.batch) for name, o in stats.layers.items()}
    assert got == {'body.layers.0: Linear': 4, 'body.layers.1: Linear': 4, 'body.rnn: LSTM': 4, 'body.act: ReLU': 8, 'body.head: Linear': 4}
    stats.plot()
    plt.close('all')

def test_a_model_of_one_layer_is_watched_itself():
    stats = ActivationStats()
    fit(nn.Linear(6, 3), stats)
    assert list(stats.layers) == ['Linear']

def test_modules_can_be_picked():
    stats = ActivationStats(modules=lambda m: [m[1]])
    fit(mlp(), stats)
    assert list(stats.layers) == ['1: ReLU']
    stats = ActivationStats(modules=children)
    fit(mlp(), stats)
    assert len(stats.layers) == 3
    with pytest.raises(TypeError, match='number 0 is'): fit(mlp(), ActivationStats(modules=lambda m: ['0']))

def test_near_zero_is_a_share():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.Parameter(torch.ones(1))
        def forward(self, x): return torch.cat([x[:, :1]*0, x[:, :1]*0 + 1, x[:, :1]*0 + .2, x[:, :1]*0 - .2], 1)*self.p
    for eps, share in ((.05, .25), (.5, .75)):
        stats = ActivationStats(eps=eps)
        fit(Half(), stats, data=problem(c=3))
        assert list(stats.layers.values())[0].near_zero[0].item() == pytest.approx(share)

@pytest.mark.parametrize('depth, batches', [(1, 1), (13, 4)])
def test_plots_of_any_size(depth, batches):
    stats = ActivationStats(every=5 - batches)
    fit(nn.Sequential(*[nn.Linear(6, 6) for _ in range(depth)], nn.Linear(6, 3)), stats)
    stats.plot('a title')
    assert plt.gcf().get_suptitle() == 'a title'
    plt.close('all')
    assert list(stats.summary(last=1).columns) == ['mean', 'std', 'near_zero']

def test_activations_that_are_nan_can_be_drawn():
    stats = ActivationStats()
    fit(nn.Sequential(nn.Linear(6, 4), nb_06.Lambda(lambda x: x*math.nan), nn.Linear(4, 3)), stats)
    stats.plot()
    plt.close('all')
    assert stats.summary()['mean'].isna().any()

def test_nothing_recorded_is_said():
    for call in (ActivationStats().plot, ActivationStats().summary):
        with pytest.raises(ValueError, match='nothing is recorded'): call()

@pytest.mark.parametrize('bad', [dict(every=0), dict(bins=0), dict(lim=(1., 1.))])
def test_settings_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))): ActivationStats(**bad)

def test_records_can_be_pickled_after_the_fit():
    stats = ActivationStats()
    fit(mlp(), stats)
    again = pickle.loads(pickle.dumps(stats))
    assert torch.equal(again.layers['1: ReLU'].hist, stats.layers['1: ReLU'].hist)

# compiling from a notebook

def test_nb_auto_export_prints_what_changed(project, capsys):
    project.write('01_one.ipynb', '#export\nx = 1')
    nb_auto_export(project.nbs)
    assert capsys.readouterr().out == f'new: {os.path.join("exp", "nb_01.py")}\n'
    nb_auto_export(project.root)
    assert capsys.readouterr().out == ''
    project.write('01_one.ipynb', '#export\nx = 2')
    nb_auto_export(project.root)
    assert capsys.readouterr().out.startswith('updated: ')

def test_nb_auto_export_outside_of_a_clone(tmp_path):
    with pytest.raises(Exception, match='clone'): nb_auto_export(tmp_path)
