"Lesson 11a beyond what it shows: bodies of any network, what is frozen to the last bit, what optimizers get, every event, and files that are damaged or of another network."
import functools
import matplotlib
matplotlib.use('Agg')
import numpy as np
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F
from exp import nb_11a
from exp.nb_11a import (AdaptiveConcatPool2d, BatchTransformXCallback, Callback, CancelTrainException, DataBunch, Dataset, DebugCallback, Flatten, FreezeStatsCallback, ImageLearner, Learner,
                        Recorder, XResNet, adam_opt, adapt_model, bn_splitter, cb_types, cut_body, find_modules, freeze, get_dls, is_batchnorm, load_body,
                        random_splitter, save_body, sched_1cycle, set_grad, set_seed, sgd_mom_opt, sgd_opt, unfreeze, xresnet18, xresnet34, xresnet50, xresnet152)

tiny = functools.partial(XResNet.create, 1, [1, 1])

def toy_data(c_out=3, n=12, size=16, bs=4, c_in=3, valid=True):
    g = torch.Generator().manual_seed(0)
    def part(n): return Dataset(torch.randn(n, c_in, size, size, generator=g), torch.arange(n) % c_out)
    train, valid_dl = get_dls(part(n), part(8), bs)
    return DataBunch(train, valid_dl if valid else None, c_in, c_out)

def toy_learner(data=None, arch=tiny, **kw):
    set_seed(0)
    learn = Learner(arch(c_out=5), data or toy_data(), F.cross_entropy, **({'opt_func': adam_opt(), 'lr': .01, 'splitter': bn_splitter} | kw))
    learn.logger = lambda line: None
    return learn

@pytest.fixture
def data(): return toy_data()

@pytest.fixture
def learn(data): return adapt_model(toy_learner(data), data)

def state(m): return {k: v.clone() for k, v in m.state_dict().items()}
def same(a, b): return {k for k in a if torch.equal(a[k], b[k])}
STATS = ('running_mean', 'running_var', 'num_batches_tracked')

# random_splitter

@settings(max_examples=25)
@given(st.lists(st.from_regex(r'[a-z]{1,8}/[a-z0-9_]{1,8}\.jpg', fullmatch=True), min_size=1, unique=True), st.floats(0, 1), st.integers(0, 5), st.randoms())
def test_a_file_stays_on_its_side(names, p, seed, rng):
    "Whatever other files there are, in whatever order, wherever the folder lies, and whatever has drawn random numbers."
    sides = {n: random_splitter(n, p, seed) for n in names}
    rng.shuffle(names)
    torch.rand(3), np.random.rand(), nb_11a.random.random()
    assert sides == {n: random_splitter(nb_11a.Path('/some/where')/n, p, seed) for n in names}

@given(st.floats(0, 1), st.floats(0, 1), st.text('abc_0123456789', min_size=1))
def test_a_larger_share_keeps_what_was_in_validation(p, q, name):
    if random_splitter(f'd/{name}.jpg', min(p, q)): assert random_splitter(f'd/{name}.jpg', max(p, q))

@pytest.mark.parametrize('p', [0, .1, .5, 1])
@pytest.mark.parametrize('seed', [0, 42])
def test_shares(p, seed):
    share = np.mean([random_splitter(f'images/{i}.jpg', p, seed) for i in range(4000)])
    assert share == p if p in (0, 1) else abs(share - p) < .03

def test_seeds_differ_and_folders_count():
    a, b = ([random_splitter(f'x/{i}', .5, seed) for i in range(200)] for seed in (1, 2))
    assert a != b and a != [random_splitter(f'y/{i}', .5, 1) for i in range(200)]

def test_known_answers():
    "The split must be the same in ten years, and on other machines."
    assert [i for i in range(40) if random_splitter(f'images/{i}.jpg', .1)] == [9, 11, 18, 36]

def test_without_a_seed_python_decides():
    nb_11a.random.seed(0)
    drawn = [random_splitter('a/b', .5, None) for _ in range(20)]
    assert True in drawn and False in drawn
    nb_11a.random.seed(0)
    assert drawn == [random_splitter('a/b', .5, None) for _ in range(20)]

@pytest.mark.parametrize('p', [-.1, 1.1, 20])
def test_impossible_shares(p):
    with pytest.raises(ValueError, match='p_valid'): random_splitter('a/b.jpg', p)

# pool, cut, head

@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(1, 3))
def test_concat_pool(n, c, h, w, sz):
    x = torch.randn(n, c, h, w)
    out = AdaptiveConcatPool2d(sz)(x)
    assert out.shape == (n, 2*c, sz, sz)
    assert torch.equal(out[:, :c], F.adaptive_max_pool2d(x, sz)) and torch.equal(out[:, c:], F.adaptive_avg_pool2d(x, sz))

@pytest.mark.parametrize('arch, ni', [(xresnet18, 512), (xresnet34, 512), (xresnet50, 2048), (xresnet152, 2048)])
def test_bodies_of_all_sizes(arch, ni):
    with torch.device('meta'): body = cut_body(arch())
    assert body(torch.empty(2, 3, 64, 64, device='meta')).shape == (2, ni, 2, 2)

@pytest.mark.parametrize('arch', [xresnet18, tiny, functools.partial(XResNet.create, 4, [1, 1]), functools.partial(XResNet.create, 1, [1]), functools.partial(XResNet.create, 2, [1]*5)])
def test_adapting_any_xresnet(arch):
    data = toy_data(7, size=64, n=4)
    learn = toy_learner(data, arch)
    body = list(learn.model)[:-3]
    adapt_model(learn, data)
    assert all(a is b for a, b in zip(learn.model[0], body, strict=True))
    assert learn.model(torch.randn(2, 3, 64, 64)).shape == (2, 7)

def test_any_sequential_of_that_shape_will_do(data):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(6, 9, 3)), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Dropout(.1), nn.Linear(9, 4))
    learn = adapt_model(Learner(model, data, F.cross_entropy), data)
    assert learn.model[-1].in_features == 18 and len(learn.model[0]) == 2

def test_the_last_pool_counts():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert [type(o) for o in cut_body(model)] == [nn.AdaptiveAvgPool2d, nn.Conv2d]

def test_adapting_twice_keeps_the_body(learn):
    body = learn.model[0]
    assert adapt_model(learn, toy_data(9)).model[0] is body and learn.model[-1].out_features == 9

def test_adapting_leaves_statistics_modes_and_random_streams_of_the_body(data):
    learn = toy_learner(data)
    learn.model.train()
    learn.model[0][1].eval()
    modes, before = [m.training for m in cut_body(learn.model).modules()], state(cut_body(learn.model))
    adapt_model(learn, data)
    assert [m.training for m in learn.model[0].modules()][1:] == modes[1:] and same(before, state(learn.model[0])) == set(before)

def test_the_callbacks_prepare_the_batch():
    "The body has one channel in; the callback makes it of three."
    data = toy_data(3)
    learn = Learner(XResNet.create(1, [1], c_in=1, c_out=2), data, F.cross_entropy, cbs=BatchTransformXCallback(lambda x: x.mean(1, keepdim=True)))
    assert adapt_model(learn, data).model[-1].in_features == 128

def test_no_validation_loader_is_needed():
    data = toy_data(valid=False)
    assert adapt_model(toy_learner(data), data).model[-1].out_features == 3

@pytest.mark.parametrize('model, error, message', [
    (nn.Sequential(nn.Flatten(), nn.Linear(768, 3)), ValueError, 'Flatten, Linear'), (nn.Linear(3, 3), TypeError, 'Linear'), (nn.Sequential(), ValueError, 'no layers'),
    (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), ValueError, 'with a body before it'), (nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool2d(1)), ValueError, 'maps'),
    (nn.Sequential(nn.Conv2d(5, 3, 3), nn.AdaptiveAvgPool2d(1)), RuntimeError, 'channels')])
def test_models_that_cannot_be_cut(model, error, message, data):
    learn = Learner(model, old := toy_data(2), F.cross_entropy)
    with pytest.raises(error, match=message): adapt_model(learn, data)
    assert learn.model is model and learn.data is old

def test_unknown_number_of_categories(data):
    learn, data.c_out = toy_learner(data), None
    with pytest.raises(ValueError, match='c_out'): adapt_model(learn, data)

def test_not_in_a_fit(learn):
    with pytest.raises(RuntimeError, match='in a fit'): learn.fit(1, DebugCallback('after_batch', lambda run: adapt_model(learn, learn.data)))

def test_the_old_optimizer_is_gone(data):
    learn = toy_learner(data, splitter=nb_11a.param_getter)
    learn.fit(1)
    assert adapt_model(learn, data).opt is None
    learn.fit(1)
    assert sum(p.numel() for ps in learn.opt.param_groups for p in ps) == sum(p.numel() for p in learn.model.parameters())

# files

def test_bodies_fit_under_any_head(tmp_path, learn):
    path = save_body(learn.model, tmp_path/'deep'/'body.pt')
    set_seed(1)
    other = tiny(c_out=17)
    load_body(other, path)
    assert same(state(cut_body(other)), state(learn.model[0])) == set(learn.model[0].state_dict())
    assert [p.name for p in path.parent.iterdir()] == ['body.pt']

def test_another_body_is_refused_and_nothing_changed(tmp_path, learn):
    path, other = save_body(learn.model, tmp_path/'b.pt'), XResNet.create(1, [1, 2], c_out=2)
    before = state(other)
    with pytest.raises(ValueError, match=r"b\.pt don't fit"): load_body(other, path)
    assert same(before, state(other)) == set(before)

@pytest.mark.parametrize('damage', [lambda b: b[:len(b)//2], lambda b: b'', lambda b: b'no such thing'])
def test_damaged_files(tmp_path, learn, damage):
    path = save_body(learn.model, tmp_path/'b.pt')
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r'b\.pt'): load_body(learn.model, path)

def test_files_of_other_kinds(tmp_path, learn):
    torch.save({'a': 1}, tmp_path/'x.pt')
    with pytest.raises(ValueError, match='no file that save_body'): load_body(learn.model, tmp_path/'x.pt')
    with pytest.raises(FileNotFoundError, match='nothing'): load_body(learn.model, tmp_path/'nothing.pt')

class Evil:
    def __reduce__(self): return (print, ('code of a stranger',))

def test_code_in_a_file_is_not_run(tmp_path, learn, capsys):
    torch.save({'kind': 'body', 'weights': Evil()}, tmp_path/'evil.pt')
    with pytest.raises(ValueError, match='evil'): load_body(learn.model, tmp_path/'evil.pt')
    assert 'stranger' not in capsys.readouterr().out

def test_adapted_archs_make_what_adapt_model_made(data):
    learn = adapt_model(ImageLearner(tiny(c_out=5), data, F.cross_entropy, arch=functools.partial(tiny, c_out=5)), data)
    assert isinstance(learn.arch.arch, str)
    shapes = lambda m: {k: v.shape for k, v in m.state_dict().items()}
    assert shapes(learn.arch()) == shapes(learn.model)
    adapt_model(learn, toy_data(9))
    assert shapes(learn.arch()) == shapes(learn.model)

def test_an_arch_of_ones_own_is_kept_as_it_is(data):
    def mine(c_out=4): return nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, c_out))
    learn = adapt_model(ImageLearner(mine(), data, F.cross_entropy, arch=mine), data)
    assert learn.arch.arch is mine and learn.arch()[-1].in_features == 16

# freezing

@pytest.mark.parametrize('opt_func', [sgd_opt, sgd_mom_opt, adam_opt(wd=.1), torch.optim.SGD, functools.partial(torch.optim.AdamW, weight_decay=.1)])
@pytest.mark.parametrize('splitter', [bn_splitter, nb_11a.param_getter])
@pytest.mark.parametrize('train_bn', [True, False])
def test_the_frozen_does_not_move_by_a_bit(data, opt_func, splitter, train_bn):
    learn = adapt_model(toy_learner(data, opt_func=opt_func, splitter=splitter), data)
    freeze(learn.model, train_bn)
    frozen, before = {k for k, p in learn.model.named_parameters() if not p.requires_grad}, state(learn.model)
    learn.fit(2)
    after = state(learn.model)
    assert frozen and frozen <= same(before, after)
    moved = {k for k in before if not k.endswith(STATS)} - same(before, after)
    assert {'3.weight', '3.bias'} <= moved and any(k.startswith('0.') for k in moved) == train_bn

def test_what_moved_before_stays_once_frozen(learn):
    "Momentum that is there already must not carry a frozen parameter on."
    learn.opt_func = sgd_mom_opt
    learn.fit(1)
    freeze(learn.model, train_bn=False)
    before = state(learn.model[0])
    learn.fit(1)
    assert all(k.endswith(STATS) for k in set(before) - same(before, state(learn.model[0])))

@pytest.mark.parametrize('train_bn, keep, moves', [(False, False, True), (False, True, False), (True, True, True), (True, False, True)])
def test_statistics(learn, train_bn, keep, moves):
    freeze(learn.model, train_bn)
    before = state(learn.model[0])
    learn.fit(1, [FreezeStatsCallback()] if keep else [])
    changed = {k for k in set(before) - same(before, state(learn.model[0])) if k.endswith(STATS)}
    assert changed == ({k for k in before if k.endswith(STATS)} if moves else set())

def test_statistics_are_kept_in_every_epoch_and_only_of_the_frozen(learn):
    freeze(learn.model, train_bn=False)
    set_grad(learn.model[0][0], True)
    modes = []
    learn.fit(2, [FreezeStatsCallback(), DebugCallback('after_loss', lambda run: modes.append((run.in_train, [m.training for m in run.model.modules() if is_batchnorm(m)])))])
    for in_train, ms in modes: assert ms == [in_train] + [False]*(len(ms) - 1)

def test_a_frozen_body_gives_the_same_in_training_and_evaluation(learn):
    freeze(learn.model, train_bn=False)
    x, outs = torch.randn(4, 3, 16, 16), []
    learn.fit(1, [FreezeStatsCallback(), DebugCallback('after_step', lambda run: outs.append(run.model[0](x)))])
    assert all(torch.equal(o, learn.model[0].eval()(x)) for o in outs)

@pytest.mark.parametrize('bn', [nn.BatchNorm1d(4), nn.BatchNorm2d(4), nn.BatchNorm3d(4), nn.SyncBatchNorm(4)])
def test_all_batchnorms_are_known(bn): assert is_batchnorm(bn) and not is_batchnorm(nn.LayerNorm(4)) and not is_batchnorm(nn.GroupNorm(2, 4))

def test_batchnorms_without_parameters(data):
    "There is nothing to freeze in them: they follow the batch."
    learn = adapt_model(Learner(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.AdaptiveAvgPool2d(1)), data, F.cross_entropy), data)
    learn.logger = lambda line: None
    freeze(learn.model)
    learn.fit(1, FreezeStatsCallback())
    assert learn.model[0][1].num_batches_tracked == len(data.train_dl)

@pytest.mark.parametrize('b, bn', [(True, None), (False, None), (True, False), (False, True)])
def test_set_grad(b, bn):
    model = tiny()
    for p in model.parameters(): p.grad = torch.ones_like(p)
    set_grad(model, b, bn)
    norms = {id(p) for m in find_modules(model, is_batchnorm) for p in m.parameters()}
    for p in model.parameters():
        assert p.requires_grad == (b if bn is None or id(p) not in norms else bn)
        assert (p.grad is None) == (not p.requires_grad)

@pytest.mark.parametrize('f', [freeze, bn_splitter])
@pytest.mark.parametrize('model', [nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))])
def test_models_without_two_parts(f, model):
    with pytest.raises(TypeError, match=f.__name__): f(model)

# groups and the optimizer

@pytest.mark.parametrize('prepare', [unfreeze, freeze, functools.partial(freeze, train_bn=False)])
def test_the_optimizer_gets_each_trainable_parameter_once(learn, prepare):
    prepare(learn.model)
    learn.fit(1)
    got = [id(p) for ps in learn.opt.param_groups for p in ps]
    assert sorted(got) == sorted(id(p) for p in learn.model.parameters() if p.requires_grad)

def test_groups(learn):
    low, high = bn_splitter(learn.model)
    assert all(p.ndim == 4 for p in low) and {p.ndim for p in high} == {1, 2}
    assert sorted(id(p) for p in low + high) == sorted(id(p) for p in learn.model.parameters())
    assert len(high) == 2*len(find_modules(learn.model, is_batchnorm)) + 2

def test_thawing_is_noticed(learn):
    freeze(learn.model)
    learn.fit(1)
    unfreeze(learn.model)
    before = state(learn.model)
    with pytest.raises(RuntimeError, match='reset_opt'): learn.fit(1)
    assert same(before, state(learn.model)) == set(before)
    learn.fit(1, reset_opt=True)
    assert not {k for k in same(before, state(learn.model)) if not k.endswith(STATS)}

def test_freezing_needs_no_new_optimizer(learn):
    learn.fit(1)
    opt = learn.opt
    freeze(learn.model)
    learn.fit(1)
    assert learn.opt is opt

@pytest.mark.parametrize('opt_func', [adam_opt(), sgd_mom_opt, torch.optim.Adam])
def test_rates_by_group(learn, opt_func):
    learn.opt_func, learn.lr = opt_func, [.001, .01]
    learn.add_cb(Recorder())
    learn.fit(2, sched_1cycle([.001, .01])[0])
    low, high = (np.array([float(o) for o in lrs]) for lrs in learn.recorder.lrs)
    assert np.allclose(high/low, 10) and high.max() > .005

def test_a_group_may_be_empty(learn):
    freeze(learn.model)
    assert bn_splitter(learn.model)[0] == []
    learn.lr = [.001, .01]
    learn.fit(1, sched_1cycle([.001, .01]))

# DebugCallback

@pytest.mark.parametrize('event', Learner.events)
def test_every_event_can_be_heard(learn, event):
    "Those of cancelling, when something is cancelled."
    class Cancel(Callback):
        def __init__(self): self.where = {'step': 'after_backward', 'batch': 'after_loss', 'epoch': 'begin_batch', 'train': 'after_batch'}.get(event.removeprefix('after_cancel_') if 'cancel' in event else None)
        def handler(self, e): return self.leave if e == self.where else None
        def leave(self): raise getattr(nb_11a, f'Cancel{event.rpartition("_")[2].capitalize()}Exception')()
    heard, data = [], learn.data
    learn.fit(1, [Cancel(), DebugCallback(getattr(cb_types, event), heard.append)])
    n_train, n = len(data.train_dl), len(data.train_dl) + len(data.valid_dl)
    times = dict(begin_batch=n, after_pred=n, after_loss=n, after_batch=n, after_backward=n_train, after_step=n_train, after_cancel_step=n_train, after_cancel_batch=n, after_cancel_epoch=2)
    assert heard == [learn]*times.get(event, 1)

def test_it_comes_last(learn):
    order = []
    class Other(Callback):
        _order = 500
        def after_batch(self): order.append('other')
    learn.fit(1, [DebugCallback('after_batch', lambda run: order.append('debug')), Other()])
    assert order == ['other', 'debug']*(len(order)//2) and order

@pytest.mark.parametrize('name', ['after_bacth', 'before_batch', 'fit', '', 'keys'])
def test_misspelt_events(name):
    with pytest.raises(ValueError, match='no event is called'): DebugCallback(name)

def test_the_nearest_event_is_named():
    with pytest.raises(ValueError, match="did you mean 'begin_validate'"): DebugCallback('begin_validation')

def test_f_must_be_a_function():
    with pytest.raises(TypeError, match='int'): DebugCallback('after_batch', 3)

def test_without_a_function_it_stops(learn, monkeypatch):
    stops = []
    def hook(): stops.append(nb_11a.sys._getframe(1).f_locals['run'])
    monkeypatch.setattr('sys.breakpointhook', hook)
    learn.fit(2, DebugCallback('begin_epoch'))
    assert stops == [learn]*2

def test_what_f_raises_comes_out_and_the_learner_is_usable(learn):
    with pytest.raises(ZeroDivisionError): learn.fit(1, DebugCallback('after_pred', lambda run: 1/0))
    learn.fit(1)
    seen = []
    def stop(run):
        seen.append(run.n_iter)
        raise CancelTrainException()
    learn.fit(5, DebugCallback('after_step', stop))
    assert seen == [0]

def test_two_at_one_event(learn):
    a, b = [], []
    learn.fit(1, [DebugCallback('after_epoch', a.append), DebugCallback('after_epoch', b.append)])
    assert len(a) == len(b) == 1

def test_it_has_no_part_in_validate(learn):
    heard = []
    learn.add_cb(DebugCallback('after_pred', heard.append))
    learn.validate()
    assert not heard

def test_cb_types_are_the_events(): assert vars(cb_types) == {o: o for o in Learner.events}
