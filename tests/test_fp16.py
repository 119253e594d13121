"Lesson 10c beyond what it shows: mixed precision under overflows, errors, cancellation and resumption, on any optimizer, against torch.amp."
import copy, math, pickle
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn, optim
from torch.nn import functional as F
import exp.nb_10c as nb
from exp.nb_10c import (AmpCallback, AutocastForward, AvgStatsCallback, Callback, CancelBatchException, CancelEpochException, CancelTrainException, DataBunch, Dataset, HalfWeights, Learner, MixedPrecision,
                        RunningBatchNorm, SaveCheckpoint, StaticPrecision, adam_opt, bn_to_float, get_batch, get_dls, get_master, grad_overflow, model_to_half, set_seed, sgd_mom_opt, sgd_opt, to_master_grads, to_model_params)

quick = settings(max_examples=25)

def small_net(): return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

def small_data(n=32, bs=8):
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(n, 6, generator=g), torch.randint(0, 3, (n,), generator=g)
    return DataBunch(*get_dls(Dataset(x, y), Dataset(x, y), bs), c_in=6, c_out=3)

def learner(*cbs, opt_func=sgd_opt, lr=.05, model=None, **kw):
    set_seed(7)
    learn = Learner(model or small_net(), small_data(), F.cross_entropy, opt_func, lr, cbs=list(cbs), **kw)
    learn.logger = lambda *args: None
    return learn

def weights(model): return [p.detach().clone() for p in model.parameters()]
def same(a, b): return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))

class Inject(Callback):
    _order = 98
    def __init__(self, at, value=math.inf): self.at, self.value = {*at}, value
    def after_backward(self):
        if self.run.n_iter in self.at: next(self.run.model.parameters()).grad.view(-1)[0] = self.value

class Log(Callback):
    def __init__(self, of): self.of, self.log = of, []
    def begin_batch(self):
        if self.run.in_train: self.log.append(self.of.loss_scale)

# --- overflow ---

@quick
@given(bad=st.sets(st.tuples(st.integers(0, 3), st.integers(0, 5))), value=st.sampled_from([math.inf, -math.inf, math.nan]), dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]), seed=st.integers(0, 99))
def test_overflow_is_found_where_an_element_is_not_finite_and_nowhere_else(bad, value, dtype, seed):
    set_seed(seed)
    ps = [nn.Parameter(torch.zeros(6, dtype=dtype)) for _ in range(4)]
    for p in ps: p.grad = torch.randn_like(p)*1000
    for i, j in bad: ps[i].grad[j] = value
    assert grad_overflow([ps[:1], [], ps[1:]]) is bool(bad)
    assert [nb.test_overflow(p.grad) for p in ps] == [not p.grad.isfinite().all().item() for p in ps]

def test_many_large_halves_are_no_overflow():
    p = nn.Parameter(torch.zeros(10_000).half())
    p.grad = torch.full_like(p, 60_000)
    assert not grad_overflow([[p]]) and not nb.test_overflow(p.grad)

def test_no_gradient_is_no_overflow():
    assert grad_overflow([]) is False and grad_overflow([[nn.Parameter(torch.ones(2))]]) is False

@quick
@given(bad=st.sets(st.integers(0, 11)), wait=st.integers(1, 6), factor=st.sampled_from([2., 4.]), power=st.integers(4, 9))
def test_each_overflow_skips_one_step_and_the_scales_are_gradscalers(bad, wait, factor, power):
    logs = []
    for cb in (MixedPrecision(2.**power, scale_wait=wait, div_factor=factor, max_loss_scale=2.**60), AmpCallback(torch.float16, init_scale=2.**power, growth_interval=wait, growth_factor=factor, backoff_factor=1/factor)):
        log = Log(cb)
        learner(cb, log, Inject(bad), lr=0.).fit(3)
        logs.append((log.log, cb.skipped, cb.loss_scale))
    scale, good, expected = 2.**power, 0, []
    for i in range(12):
        expected.append(scale)
        if i in logs[0][1]: scale, good = scale/factor, 0
        else:
            good += 1
            if good == wait: scale, good = scale*factor, 0
    assert bad <= {*logs[0][1]} and logs[0] == logs[1] and logs[0][0] == expected and logs[0][2] == scale

@pytest.mark.parametrize('flat', [False, True])
@pytest.mark.parametrize('opt_func', [sgd_mom_opt, adam_opt(wd=.1), optim.AdamW, lambda ps, lr: optim.SGD(ps, lr=lr, momentum=.9)])
def test_a_skipped_step_leaves_no_trace(opt_func, flat):
    class Same(Callback):
        _order = 97
        def look(self): return str([p.detach() for p in nb.itertools.chain(*nb._group_params(self.run.opt))]), str(self.run.opt.state_dict())
        def begin_fit(self): self.same = []
        def after_backward(self): self.before = self.look()
        def after_cancel_step(self): self.same.append(self.look() == self.before)
    mp, witness = MixedPrecision(flat_master=flat), Same()
    learn = learner(mp, Inject([1, 2]), witness, opt_func=opt_func)
    learn.fit(1)
    assert mp.skipped == [1, 2] and mp.loss_scale == 128 and witness.same == [True, True]
    before = weights(learn.model)
    learn.fit(1)
    assert not same(before, weights(learn.model)) and all(w.isfinite().all() for w in weights(learn.model))

def test_a_skipped_step_is_as_if_the_batch_had_not_been_there():
    class Without(Callback):
        def after_backward(self):
            if self.run.n_iter == 2: raise nb.CancelStepException()
    results = []
    for cb in (Inject([2]), Without()):
        learn = learner(MixedPrecision(), cb)
        learn.fit(2)
        results.append(weights(learn.model))
    assert same(*results)

def test_without_dynamic_the_scale_stays_and_the_step_is_skipped_all_the_same():
    mp = MixedPrecision(64., dynamic=False, scale_wait=1)
    learner(mp, Inject([0, 3])).fit(1)
    assert mp.skipped == [0, 3] and mp.loss_scale == 64

def test_the_scale_stops_at_its_maximum():
    mp = MixedPrecision(8., max_loss_scale=20., scale_wait=1)
    learner(mp).fit(1)
    assert mp.loss_scale == 20

def test_endless_overflow_ends_the_fit_with_the_weights_as_they_were():
    learn = learner(MixedPrecision(), Inject(range(100)))
    before = weights(learn.model)
    with pytest.raises(FloatingPointError, match='40 steps in a row.*lower the learning rate'): learn.fit(20)
    assert same(before, weights(learn.model)) and learn.model(torch.randn(4, 6)).dtype == torch.float32

@pytest.mark.parametrize('kw', [dict(loss_scale=0), dict(loss_scale=2.**30), dict(div_factor=1.), dict(scale_wait=0), dict(loss_scale=math.nan), dict(max_loss_scale=math.inf, loss_scale=math.inf)])
def test_impossible_scales_are_refused(kw):
    with pytest.raises(ValueError, match='MixedPrecision needs'): MixedPrecision(**kw)

# --- the masters ---

@pytest.mark.parametrize('opt_func', [sgd_opt, sgd_mom_opt, adam_opt(), optim.SGD, optim.Adam])
def test_flat_masters_take_the_same_steps(opt_func):
    results = []
    for flat in (False, True):
        learn = learner(MixedPrecision(flat_master=flat), opt_func=opt_func)
        learn.fit(3)
        results.append(weights(learn.model))
    assert same(*results)

def test_a_flat_fit_leaves_no_shared_memory():
    learn = learner(MixedPrecision(flat_master=True))
    learn.fit(1)
    assert len({p.untyped_storage().data_ptr() for p in learn.model.parameters()}) == 6 and all(p.untyped_storage().nbytes() == p.nbytes for p in learn.model.parameters())

def test_our_optimizers_and_pytorchs_make_the_same_steps():
    results = []
    for opt_func in (sgd_opt, optim.SGD):
        learn = learner(MixedPrecision(), opt_func=opt_func)
        learn.fit(2)
        results.append(weights(learn.model))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*results))

@pytest.mark.parametrize('flat', [False, True])
def test_groups_keep_their_rates(flat):
    learn = learner(MixedPrecision(flat_master=flat), splitter=lambda m: [list(m[:2].parameters()), list(m[2:].parameters())], lr=[0., .1])
    before = weights(learn.model)
    learn.fit(1)
    after = weights(learn.model)
    assert same(before[:4], after[:4]) and not torch.equal(before[4], after[4])

@pytest.mark.parametrize('flat', [False, True])
def test_what_is_frozen_keeps_every_bit(flat):
    learn = learner(MixedPrecision(flat_master=flat), opt_func=adam_opt(wd=.1))
    learn.model[0].requires_grad_(False)
    before = weights(learn.model)
    learn.fit(2)
    assert same(before[:2], weights(learn.model)[:2]) and not torch.equal(before[4], weights(learn.model)[4])
    assert [p.requires_grad for p in learn.model.parameters()] == [False]*2 + [True]*4

@pytest.mark.parametrize('flat', [False, True])
def test_a_parameter_without_gradient_is_not_moved_by_momentum_or_decay(flat):
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(6, 3), nn.Linear(6, 3)
        def forward(self, x): return self.used(x)
    learn = learner(MixedPrecision(flat_master=flat), opt_func=adam_opt(wd=.1), model=Partly())
    before = learn.model.unused.weight.detach().clone()
    learn.fit(2)
    assert torch.equal(before, learn.model.unused.weight)

def test_get_master_copies_halves_and_leaves_the_optimizer_alone():
    model = model_to_half(small_net())
    opt = sgd_opt([list(model[:2].parameters()), list(model[2:].parameters())], lr=.1)
    model_pgs, master_pgs = get_master(opt)
    assert all(p is q for p, q in zip(nb.itertools.chain(*model_pgs), model.parameters())) and all(p is q for a, b in zip(opt.param_groups, model_pgs) for p, q in zip(a, b))
    masters = list(nb.itertools.chain(*master_pgs))
    assert {m.dtype for m in masters} == {torch.float32} and [m is p for m, p in zip(masters, model.parameters())] == [False, False, True, True, False, False]
    with torch.no_grad(): masters[0].add_(1.)
    assert not torch.equal(masters[0].half(), model[0].weight)

@pytest.mark.parametrize('flat', [False, True])
def test_gradients_and_weights_travel_between_model_and_masters(flat):
    model = model_to_half(small_net())
    model_pgs, master_pgs = get_master(sgd_opt(model.parameters(), lr=.1), flat)
    model_pgs[0][0].grad = torch.ones_like(model_pgs[0][0])                      # all others have none
    to_master_grads(model_pgs, master_pgs, flat)
    if flat: assert master_pgs[0][0].grad.sum() == 48 and master_pgs[0][0].grad.dtype == torch.float32
    else: assert [m.grad is None for m in master_pgs[0]] == [False] + [True]*5
    with torch.no_grad():
        for m in master_pgs[0]: m.fill_(.1)
    to_model_params(model_pgs, master_pgs, flat)
    assert all(torch.equal(p, torch.full_like(p, .1)) for p in model.parameters())

def test_a_model_that_is_half_already_is_refused():
    with pytest.raises(ValueError, match=r'MixedPrecision.*must be float32.*float16.*model.float\(\)'): learner(MixedPrecision(), model=model_to_half(small_net())).fit(1)

# --- lending ---

def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3))
    model[1].weight = model[0].weight
    w = HalfWeights(model)
    w.lend()
    assert model[0].weight is model[1].weight and model[0].weight.dtype == torch.float16
    w.take_back()
    assert model[0].weight is model[1].weight
    learn = learner(MixedPrecision(), model=model, splitter=lambda m: list(dict.fromkeys(m.parameters())))
    learn.fit(1)
    assert model[0].weight is model[1].weight

class Counting(nn.Module):
    "Two buffers that the forward pass changes, in place and by assignment."
    def __init__(self):
        super().__init__()
        self.register_buffer('seen', torch.zeros(()))
        self.register_buffer('last', torch.zeros(()))
        self.register_buffer('fixed', torch.tensor(.1))
        self.register_buffer('count', torch.tensor(0))
    def forward(self, x):
        if self.training:
            self.seen += 1
            self.last = x.detach().abs().max()
            self.count += 1
        return x*self.fixed

def test_buffers_that_the_forward_pass_changes_are_kept_and_the_others_keep_their_bits():
    model = nn.Sequential(Counting(), nn.Linear(6, 3))
    learner(MixedPrecision(), model=model).fit(1)
    assert model[0].seen == 4 and model[0].last > 0 and model[0].count == 4 and torch.equal(model[0].fixed, torch.tensor(.1))
    assert {b.dtype for b in model.buffers()} == {torch.float32, torch.int64}

@pytest.mark.parametrize('norm', [nn.BatchNorm1d, RunningBatchNorm, nn.LayerNorm, lambda n: nn.GroupNorm(2, n)])
def test_norms_compute_in_float32_and_train(norm):
    learn = learner(MixedPrecision(), model=nn.Sequential(nn.Linear(6, 8), norm(8), nn.ReLU(), nn.Linear(8, 3)))
    before = weights(learn.model)
    learn.fit(2)
    assert not any(torch.equal(a, b) for a, b in zip(before[2:4], weights(learn.model)[2:4])) and all(w.isfinite().all() for w in learn.model.state_dict().values())
    assert not learn.model[1]._forward_hooks and not learn.model[1]._forward_pre_hooks

def test_recurrent_layers_use_what_is_lent():
    model = nn.LSTM(4, 3)
    w = HalfWeights(model)
    w.lend()
    assert model(torch.randn(5, 2, 4).half())[0].dtype == torch.float16
    w.take_back()
    assert model(torch.randn(5, 2, 4))[0].dtype == torch.float32 and all(a is b for a, b in zip(model._flat_weights, model.parameters()))

def test_running_statistics_are_those_of_the_training():
    (a := learner()).fit(1)
    (b := learner(MixedPrecision())).fit(1)
    assert torch.allclose(a.model[1].running_var, b.model[1].running_var, rtol=.01) and b.model[1].num_batches_tracked == 4

@pytest.mark.parametrize('make', [model_to_half, lambda m: bn_to_float(m.half())])
def test_all_but_norms_become_half(make):
    assert [p.dtype for p in make(small_net()).parameters()] == [torch.float16]*2 + [torch.float32]*2 + [torch.float16]*2

# --- what else happens in fits ---

callbacks = pytest.mark.parametrize('make', [MixedPrecision, lambda: MixedPrecision(flat_master=True), AmpCallback, lambda: AmpCallback(torch.float16, init_scale=256.)], ids=['mixed', 'flat', 'bfloat16', 'float16'])

class Raise(Callback):
    def __init__(self, event, error, at=1, order=200):
        self.error, self.at, self._order = error, at, order
        setattr(self, event, self.go)
    def go(self):
        if self.run.n_iter == self.at: raise self.error

EVENTS = ['begin_fit', 'begin_epoch', 'begin_batch', 'after_pred', 'after_loss', 'after_backward', 'after_step', 'after_batch', 'begin_validate', 'after_epoch']

@callbacks
@pytest.mark.parametrize('event', EVENTS)
@pytest.mark.parametrize('order', [-5, 200])
def test_an_error_anywhere_leaves_a_usable_float32_model(make, event, order):
    learn = learner(make())
    at = dict(begin_fit=0, begin_epoch=0, begin_validate=4, after_epoch=4).get(event, 1)
    params = list(learn.model.parameters())
    with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=[Raise(event, KeyboardInterrupt(), at, order)])
    assert all(p is q for p, q in zip(params, learn.model.parameters())) and {p.dtype for p in params} == {torch.float32} and not any(p.grad is not None for p in params)
    assert not torch.is_autocast_enabled('cpu') and learn.model(torch.randn(4, 6)).dtype == torch.float32
    learn.fit(1)

@callbacks
@pytest.mark.parametrize('event', ['begin_batch', 'after_pred', 'after_loss', 'after_backward'])
def test_a_cancelled_batch_is_just_left_out(make, event):
    learn = learner(make())
    class Look(Callback):
        def begin_batch(self): self.autocast = torch.is_autocast_enabled('cpu')
    look = Look()
    learn.fit(1, cbs=[Raise(event, CancelBatchException(), order=-5), look])
    assert not look.autocast and all(w.isfinite().all() for w in weights(learn.model)) and not torch.is_autocast_enabled('cpu')

@callbacks
@pytest.mark.parametrize('error', [CancelEpochException, CancelTrainException])
def test_gradients_of_a_cancelled_epoch_are_dropped(make, error):
    class Grads(Callback):
        left = 0
        def begin_batch(self): self.left += sum(p.grad is not None for p in self.run.model.parameters())
    learn, grads = learner(make()), Grads()
    learn.fit(2, cbs=[Raise('after_backward', error(), order=-5), grads])
    assert grads.left == 0 and not any(p.grad is not None for p in learn.model.parameters())

@pytest.mark.parametrize('make', [lambda: StaticPrecision(1024.), lambda: MixedPrecision(1024.), lambda: AmpCallback(torch.float16, init_scale=1024.)])
def test_other_callbacks_see_the_loss_unscaled(make):
    class See(Callback):
        def __init__(self, order): self._order, self.losses = order, []
        def after_loss(self): self.losses.append(self.run.loss.item())
        def after_batch(self): self.losses.append(self.run.loss.item())
    see = See(0)
    learner(make(), see).fit(1)
    assert max(see.losses) < 10

@callbacks
def test_validate_and_get_preds_agree_with_the_validation_in_a_fit(make):
    stats = AvgStatsCallback()
    learn = learner(make(), stats)
    learn.fit(1)
    before = weights(learn.model)
    assert learn.validate()['loss'] == pytest.approx(stats.history[-1]['valid_loss'], abs=1e-6)
    preds, _ = learn.get_preds()
    assert preds.dtype == torch.float32 and same(before, weights(learn.model)) and {p.dtype for p in learn.model.parameters()} == {torch.float32}

@callbacks
def test_lr_find_changes_nothing(make):
    learn = learner(make(), lr=.05)
    learn.fit(1)
    before, scale = copy.deepcopy(learn.model.state_dict()), getattr(learn.cbs[-1], 'loss_scale', None)
    try: learn.lr_find(max_iter=12, plot=False)
    except ValueError: pass                                                     # a sweep in which the loss never falls
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items()) and getattr(learn.cbs[-1], 'loss_scale', None) == scale

@callbacks
def test_a_resumed_fit_goes_on_exactly_scale_included(make, tmp_path):
    def new():
        cb = make()
        if isinstance(cb, MixedPrecision): cb.scale_wait = 3
        return cb, learner(cb, Inject([1, 5, 9] if isinstance(cb, MixedPrecision) or cb.dtype else []), opt_func=adam_opt())
    cb, whole = new()
    whole.fit(3)
    _, part = new()
    with pytest.raises(RuntimeError, match='crash'): part.fit(3, cbs=[SaveCheckpoint(tmp_path), Raise('after_loss', RuntimeError('crash'), at=10)])
    cb2, rest = new()
    rest.fit(3, resume=tmp_path)
    assert same(weights(whole.model), weights(rest.model))
    assert getattr(cb, 'loss_scale', None) == getattr(cb2, 'loss_scale', None) and cb.skipped == cb2.skipped

def test_checkpoints_hold_the_float32_weights(tmp_path):
    learn = learner(MixedPrecision())
    learn.fit(1, cbs=[SaveCheckpoint(tmp_path)])
    saved = torch.load(next(tmp_path.glob('epoch_*.pt')), weights_only=True)['model']
    assert {v.dtype for v in saved.values()} == {torch.float32, torch.int64} and all(torch.equal(v, saved[k]) for k, v in learn.model.state_dict().items())
    assert not torch.equal(saved['0.weight'].half().float(), saved['0.weight'])

@callbacks
def test_model_and_callback_can_be_copied_and_pickled_after_a_fit(make):
    cb = make()
    learn = learner(cb)
    learn.fit(1)
    for again in (copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))):
        assert same(weights(again(learn.model)), weights(learn.model))
        assert again(cb).loss_scale == cb.loss_scale

def test_structured_batches_and_predictions():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.lin = nn.Embedding(5, 6), nn.Linear(6, 3)
        def forward(self, xs): return dict(main=self.lin(self.emb(xs[0]) + xs[1]), rest=(xs[1],))
    x = [(torch.tensor(i % 5), torch.randn(6)) for i in range(16)]
    items = [(o, i % 3) for i, o in enumerate(x)]
    data = DataBunch(*get_dls(items, items, 8), c_in=6, c_out=3)
    for make in (MixedPrecision, AmpCallback):
        seen = []
        def loss(pred, yb):
            seen.append({pred['main'].dtype, pred['rest'][0].dtype})
            return F.cross_entropy(pred['main'], yb)
        Learner(Two(), data, loss, lr=.1, cbs=[make()]).fit(1)
        assert all(s == {torch.float32} for s in seen)

@callbacks
def test_a_batch_prepared_without_a_fit_suits_the_model(make):
    "get_batch, and with it model_summary, runs the callbacks of a learner that may never have been in a fit."
    learn = learner(make())
    for _ in range(2):
        xb, _ = get_batch(learn.data.valid_dl, learn)
        assert learn.model(xb).dtype == torch.float32 and not torch.is_autocast_enabled('cpu')
        learn.fit(1)

# --- against torch.amp ---

@pytest.mark.parametrize('opt_func', [sgd_opt, adam_opt(), optim.SGD, optim.AdamW])
def test_by_hand_and_torch_amp_make_the_same_steps(opt_func):
    results = []
    for cb in (MixedPrecision(256.), AmpCallback(torch.float16, init_scale=256.)):
        learn = learner(cb, opt_func=opt_func, lr=.01)
        learn.fit(2)
        results.append(weights(learn.model))
    assert all(torch.allclose(a, b, atol=2e-3) for a, b in zip(*results))

def test_the_loop_makes_one_step_a_batch_under_the_scaler():
    calls = []
    def opt_func(params, lr):
        opt = optim.SGD(params, lr=lr)
        step = opt.step
        opt.step = lambda: (calls.append(1), step())
        return opt
    learner(AmpCallback(torch.float16, init_scale=16.), opt_func=opt_func).fit(1)
    assert len(calls) == 4

def test_bfloat16_needs_no_scaler():
    cb = AmpCallback()
    learner(cb).fit(1)
    assert cb.scaler is None and cb.loss_scale == 1 and cb.skipped == []

@pytest.mark.parametrize('cls', [AmpCallback, AutocastForward])
def test_other_types_are_refused(cls):
    with pytest.raises(ValueError, match='float16.*bfloat16.*float64'): cls(torch.float64)

def test_unknown_arguments_of_the_scaler_are_refused_at_once():
    with pytest.raises(TypeError): AmpCallback(torch.float16, init_scal=2.)


# --- files ---

class SavesAt(Callback):
    def __init__(self, path, event):
        self.path = path
        setattr(self, event, self.save)
    def save(self):
        if self.run.in_train: self.run.save(self.path)

@pytest.mark.parametrize('flat', [False, True])
@pytest.mark.parametrize('event', ['after_step', 'after_batch'])
def test_a_file_saved_in_an_epoch_has_the_exact_weights(tmp_path, flat, event):
    learn = learner(MixedPrecision(flat_master=flat), SavesAt(tmp_path/'a.pt', event))
    learn.fit(1)
    state = nb.read_checkpoint(tmp_path/'a.pt')['model']
    assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float32}
    assert all(torch.equal(state[k], p) for k, p in learn.model.named_parameters())   # the last step's are the fit's
    assert (state['0.weight'].half().float() != state['0.weight']).any()

def test_a_copy_made_in_an_epoch_has_its_own_state():
    class Copies(Callback):
        def after_step(self): self.copy = copy.deepcopy(self.run.model)
    copies = Copies()
    learn = learner(MixedPrecision(), copies)
    learn.fit(1)
    with torch.no_grad(): next(copies.copy.parameters()).fill_(7.)
    assert (copies.copy.state_dict()['0.weight'] == 7).all() and not learn.model._state_dict_hooks

def test_a_checkpoint_in_float16_goes_on_in_bfloat16(tmp_path):
    learn = learner(AmpCallback(torch.float16))
    learn.fit(1)
    learn.save(tmp_path/'a.pt')
    other = learner(AmpCallback(torch.bfloat16))
    other.load(tmp_path/'a.pt')
    other.fit(1)
    assert all(p.isfinite().all() for p in other.model.parameters())

@pytest.mark.parametrize('can, halves', [(dict(avx2=True), (False, False)), (dict(amx_bf16=True), (True, False)), (dict(avx512_bf16=True, avx512_fp16=True), (True, False)), (dict(neon=True, bf16=True), (True, False)), ({}, (True, True))], ids=str)
def test_units_for_short_types_are_what_pytorch_tells(monkeypatch, can, halves):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: can, raising=False)
    assert (nb.has_units(torch.bfloat16), nb.has_units(torch.float16)) == halves and nb.has_units(torch.float32)
    monkeypatch.delattr(torch.cpu, 'get_capabilities')
    assert nb.has_units(torch.bfloat16)   # nothing is known

@pytest.mark.parametrize('can, said', [(dict(avx2=True), 1), (dict(avx512_bf16=True), 0)])
def test_a_type_that_is_imitated_is_said(monkeypatch, can, said):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: can, raising=False)
    lines, x = [], torch.randn(8, 4)
    learn = Learner(nn.Linear(4, 2), DataBunch(*[[(x, torch.zeros(8).long())]]*2), F.cross_entropy, cbs=[AmpCallback()])
    learn.logger = lines.append
    learn.fit(1)
    assert len([s for s in lines if 'no fast arithmetic for bfloat16' in s]) == said

class Overflow(Callback):
    "A forward pass that overflows, in the training batches `at`."
    _order = 98
    def __init__(self, at): self.at = at
    def after_pred(self):
        if self.run.in_train and self.run.n_iter in self.at: self.run.pred = self.run.pred*math.inf

def ten_batches(cb, at, lines):
    x = torch.randn(80, 4)
    learn = Learner(nn.Linear(4, 2), DataBunch(*[[(b, torch.zeros(8).long()) for b in x.split(8)]]*2), F.cross_entropy, cbs=[cb, Overflow(at)])
    learn.logger = lines.append
    return learn

@pytest.mark.parametrize('make', [lambda: MixedPrecision(), lambda: AmpCallback(torch.float16)], ids=['by hand', 'torch.amp'])
def test_a_single_bad_batch_costs_a_step_and_endless_ones_the_fit(make):
    cb = make()
    learn = ten_batches(cb, {5}, [])
    learn.fit(2)
    assert cb.skipped == [5] and learn.epochs_done == 2 and learn.stopped_at is None and all(p.isfinite().all() for p in learn.model.parameters())
    learn = ten_batches(make(), range(100), [])
    before = copy.deepcopy(learn.model.state_dict())
    with pytest.raises(FloatingPointError, match='40 steps in a row'): learn.fit(5)
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())

def test_bfloat16_skips_nothing_so_a_bad_batch_ends_the_fit():
    lines = []
    learn = ten_batches(AmpCallback(torch.bfloat16), {5}, lines)
    learn.fit(2)
    assert learn.stopped_at == (0, 9) and lines[-1].startswith('stopped: the loss was')   # the last of the pass
