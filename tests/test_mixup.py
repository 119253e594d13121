"Lesson 10b beyond what it shows: the mixed losses against soft targets for any shapes, fits that end badly, loss functions of all kinds, and no waiting for the device."
import copy, math, pickle
from functools import partial
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
import exp.nb_05b as nb_05b
from exp.nb_04 import Learner as Bag
from exp.nb_10b import (AvgStatsCallback, Callback, CancelBatchException, CancelTrainException, CutMix, DataBunch, Dataset, LabelSmoothingCrossEntropy, Learner, Mixer, MixUp, NoneReduce, accuracy, get_dls,
                        reduce_loss, set_seed, unsqueeze)

quick = settings(max_examples=40)
seeds, several, alphas = st.integers(0, 10_000), st.integers(1, 6), st.sampled_from([.05, .4, 1., 8.])
classes, epsilons, reductions = st.integers(2, 7), st.sampled_from([0., .1, .5, 1.]), st.sampled_from(['mean', 'sum'])

class TakeDown(Callback):
    "What each batch was trained or validated with."
    _order = 95
    def begin_fit(self): self.seen = []
    def after_loss(self):
        run, mixer = self.run, next((cb for cb in self.run.cbs if isinstance(cb, Mixer)), None)
        self.seen.append(dict(train=run.in_train, xb=run.xb, yb=run.yb, pred=run.pred.detach(), loss=run.loss.detach(), λ=mixer and mixer.λ, yb1=mixer and mixer.yb1))

def problem(n=21, shape=(2, 5, 4), c=5, bs=8, seed=7):
    "Made-up images, and a linear model for them."
    set_seed(seed)
    ds = Dataset(torch.randn(n, *shape), torch.randint(c, (n,)))
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), c)), DataBunch(*get_dls(ds, ds, bs), shape[0], c)

def learner(loss_func=F.cross_entropy, **kw): return Learner(*problem(**kw), loss_func, lr=.1)

def one_hot(y, c): return F.one_hot(y, c).movedim(-1, 1).float()

def expected(s, c, soft_loss):
    "The loss for the targets mixed as one-hot vectors."
    if not s['train']: return soft_loss(s['pred'], one_hot(s['yb'], c))
    λ = s['λ'].view(-1, *[1]*s['yb'].ndim)
    return soft_loss(s['pred'], λ*one_hot(s['yb'], c) + (1 - λ)*one_hot(s['yb1'], c))

def check_seen(seen, c, soft_loss):
    for s in seen:
        want = expected(s, c, soft_loss)
        assert abs(want - s['loss']) <= 1e-6*max(1, abs(want)), s

# --- the loss is that of mixed one-hot targets ---

@quick
@given(mixer=st.sampled_from([MixUp, CutMix]), α=alphas, n=st.integers(1, 19), channels=several, h=several, w=several, c=classes, ε=epsilons, reduction=reductions, seed=seeds)
def test_the_loss_of_a_mixed_batch_is_that_of_mixed_one_hot_targets_and_validations_is_plain(mixer, α, n, channels, h, w, c, ε, reduction, seed):
    kw = dict(n=n, shape=(channels, h, w), c=c, bs=4, seed=seed)
    soft_loss = partial(F.cross_entropy, label_smoothing=ε, reduction=reduction)
    for loss_func in (soft_loss, LabelSmoothingCrossEntropy(ε, reduction), nn.CrossEntropyLoss(label_smoothing=ε, reduction=reduction)):
        learn, take = learner(loss_func, **kw), TakeDown()
        learn.fit(1, cbs=[mixer(α), take])
        assert sum(s['train'] for s in take.seen) == math.ceil(n/4)
        check_seen(take.seen, c, soft_loss)
        assert torch.equal(torch.cat([s['xb'] for s in take.seen if not s['train']]), learn.data.valid_ds.x)
        assert learn.loss_func is loss_func and getattr(loss_func, 'reduction', reduction) == reduction

@quick
@given(sizes=st.lists(several, min_size=0, max_size=3), α=alphas, c=classes, reduction=reductions, seed=seeds)
def test_items_of_any_rank_and_targets_of_any_further_shape(sizes, α, c, reduction, seed):
    "A label for each place, `[n, ...]`, from a model that is linear in each place's number."
    set_seed(seed)
    ds = Dataset(torch.randn(7, 1, *sizes), torch.randint(c, (7, *sizes)))
    class EachPlace(nn.Module):
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.randn(c))
        def forward(self, x): return x.movedim(1, -1)*self.w if not sizes else (x.movedim(1, -1)*self.w).movedim(-1, 1)
    loss_func, take = partial(F.cross_entropy, reduction=reduction), TakeDown()
    Learner(EachPlace(), DataBunch(*get_dls(ds, ds, 3), 1, c), loss_func, lr=.01).fit(1, cbs=[MixUp(α), take])
    check_seen(take.seen, c, loss_func)

@pytest.mark.parametrize('mixer', [MixUp, CutMix])
def test_several_labels_an_image_are_weighed_one_by_one(mixer):
    set_seed(0)
    ds = Dataset(torch.randn(10, 1, 4, 4), torch.randint(2, (10, 3)).float())
    take = TakeDown()
    Learner(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), DataBunch(*get_dls(ds, ds, 4), 1, 3), nn.BCEWithLogitsLoss()).fit(1, cbs=[mixer(1.), take])
    for s in take.seen:
        targets = s['λ'][:, None]*s['yb'] + (1 - s['λ'][:, None])*s['yb1'] if s['train'] else s['yb']
        assert abs(F.binary_cross_entropy_with_logits(s['pred'], targets) - s['loss']) < 1e-6

def test_gradients_are_those_of_the_soft_targets():
    set_seed(0)
    mixer, pred, y = MixUp(1.), torch.randn(6, 4, requires_grad=True), torch.randint(4, (6,))
    class Run: in_train = True
    mixer.run, mixer.plain, mixer.each, mixer.λ, mixer.yb1 = Run(), F.cross_entropy, NoneReduce(F.cross_entropy), torch.rand(6), y.flip(0)
    targets = mixer.λ[:, None]*one_hot(y, 4) + (1 - mixer.λ[:, None])*one_hot(mixer.yb1, 4)
    ours, theirs = (torch.autograd.grad(loss, pred)[0] for loss in (mixer.mixed_loss(pred, y), F.cross_entropy(pred, targets)))
    assert (ours - theirs).abs().max() < 1e-7

# --- what is drawn ---

def test_each_image_has_a_share_of_its_own_of_a_half_or_more_and_images_are_mixed_by_it():
    set_seed(0)
    x, x1, λ0 = torch.randn(64, 3, 4, 4), torch.randn(64, 3, 4, 4), torch.rand(64)
    mixed, λ = MixUp().mix(x, x1, λ0)
    assert λ.unique().numel() == 64 and λ.min() >= .5 and torch.equal(λ, torch.max(λ0, 1 - λ0))
    for i in range(64): assert (mixed[i] - (λ[i]*x[i] + (1 - λ[i])*x1[i])).abs().max() < 1e-6

@pytest.mark.parametrize('α', [1e-6, .01, .4, 1., 30., 1e6])
def test_shares_follow_the_beta_distribution_and_are_finite_for_extreme_parameters(α):
    import exp.nb_10b as nb
    set_seed(0)
    λ = nb._beta(α, 50_000, torch.device('cpu')).double()
    assert λ.isfinite().all() and λ.min() >= 0 and λ.max() <= 1
    assert abs(λ.mean() - .5) < .01 and abs(λ.var() - 1/(4*(2*α + 1))) < .005

@pytest.mark.parametrize('mixer', [MixUp, CutMix])
def test_the_same_seed_mixes_the_same_way(mixer):
    def run():
        learn, take = learner(), TakeDown()
        set_seed(3)
        learn.fit(1, cbs=[mixer(), take])
        return [s['loss'] for s in take.seen]
    assert run() == run()

@quick
@given(h=st.integers(1, 12), w=st.integers(1, 12), seed=seeds)
def test_cutmix_pastes_one_rectangle_whose_area_the_share_is(h, w, seed):
    set_seed(seed)
    x, x1, drawn = torch.zeros(9, 2, h, w), torch.ones(9, 2, h, w), torch.rand(9)
    cut, λ = CutMix().mix(x, x1, drawn)
    for im, l, d in zip(cut, λ, drawn):
        rows, cols = im[0].any(1).nonzero().flatten(), im[0].any(0).nonzero().flatten()
        pasted = torch.zeros(h, w)
        if len(rows): pasted[rows[0]:rows[-1] + 1, cols[0]:cols[-1] + 1] = 1
        assert torch.equal(im, pasted.expand(2, h, w))
        assert abs(1 - l - pasted.mean()) < 1e-6
        side = math.sqrt(1 - d)
        assert len(rows) <= side*h + 1 and len(cols) <= side*w + 1   # rounding both ends adds a pixel at most

def test_boxes_are_of_the_drawn_size_where_no_border_cuts_them_and_lie_everywhere():
    set_seed(0)
    cut, λ = CutMix().mix(torch.zeros(4000, 1, 64, 64), torch.ones(4000, 1, 64, 64), torch.full((4000,), .96))
    whole = ~(cut[:, 0, 0].any(1) | cut[:, 0, -1].any(1) | cut[:, 0, :, 0].any(1) | cut[:, 0, :, -1].any(1))
    assert abs((1 - λ[whole]).mean() - .04) < .002
    assert (cut.mean(0)[0, 8:-8, 8:-8] - .04).abs().max() < .02    # away from the border, each pixel as often as the others

@pytest.mark.parametrize('shape', [(6, 4, 4), (6, 3, 4, 5), (6, 2, 3, 4, 5)])
def test_images_of_any_rank_are_cut(shape):
    x = torch.zeros(shape)
    cut, λ = CutMix().mix(x, x + 1, torch.rand(6))
    assert cut.shape == x.shape and (cut.flatten(1).mean(1) - (1 - λ)).abs().max() < 1e-6

@pytest.mark.parametrize('mixer', [MixUp(), CutMix()])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_type_and_memory_format_of_the_images_stay(mixer, dtype):
    x = torch.randn(4, 3, 6, 6).to(dtype).to(memory_format=torch.channels_last)
    mixed, λ = mixer.mix(x, x[torch.randperm(4)], torch.rand(4))
    assert mixed.dtype == dtype and mixed.is_contiguous(memory_format=torch.channels_last) and λ.dtype == torch.float32

# --- fits, and how they end ---

@pytest.mark.parametrize('mixer', [MixUp, CutMix])
def test_under_lesson_05bs_runner_too(mixer):
    (model, data), take, stats = problem(), TakeDown(), AvgStatsCallback(accuracy)
    run, bag = nb_05b.Runner([mixer(), take, stats]), Bag(model, torch.optim.SGD(model.parameters(), lr=.1), F.cross_entropy, data)
    run.logger = lambda *a: None
    run.fit(2, bag)
    check_seen(take.seen, 5, F.cross_entropy)
    assert bag.loss_func is F.cross_entropy
    last = take.seen[-2:]
    n = [len(s['xb']) for s in last]
    assert abs(stats.history[-1]['valid_loss'] - sum(F.cross_entropy(s['pred'], s['yb'])*k for s, k in zip(last, n))/sum(n)) < 1e-5

class Fails(Callback):
    def __init__(self, event, error): self.error = error; setattr(self, event, self.fail)
    def fail(self):
        if self.run.in_train or self.run.epoch > 0: raise self.error

@pytest.mark.parametrize('event', ['begin_batch', 'after_pred', 'after_loss', 'after_backward', 'begin_validate', 'after_epoch'])
@pytest.mark.parametrize('error', [KeyError('x'), KeyboardInterrupt(), CancelTrainException()], ids=lambda e: type(e).__name__)
def test_the_loss_function_is_back_however_a_fit_ends(event, error):
    module, mixer = nn.CrossEntropyLoss(reduction='sum'), MixUp()
    learn = learner(module)
    try: learn.fit(3, cbs=[mixer, Fails(event, error)])
    except (KeyError, KeyboardInterrupt): pass
    assert learn.loss_func is module and module.reduction == 'sum' and mixer.plain is mixer.λ is mixer.yb1 is None
    learn.fit(1, cbs=mixer)    # and it can go on

def test_an_error_in_the_loss_itself_leaves_the_module_as_it_was():
    class Broken(nn.CrossEntropyLoss):
        def forward(self, *args): raise ZeroDivisionError
    module = Broken()
    learn = learner(module)
    with pytest.raises(ZeroDivisionError): learn.fit(1, cbs=MixUp())
    assert learn.loss_func is module and module.reduction == 'mean'

def test_an_error_before_it_began_is_the_one_that_is_seen():
    class First(Callback):
        _order = -5
        def begin_fit(self): raise KeyError('first')
    learn = learner()
    with pytest.raises(KeyError, match='first'): learn.fit(1, cbs=[First(), MixUp()])
    assert learn.loss_func is F.cross_entropy

def test_cancelled_batches_are_no_trouble():
    class Skip(Callback):
        def after_pred(self):
            if self.run.n_iter % 2: raise CancelBatchException()
    take, learn = TakeDown(), learner()
    learn.fit(2, cbs=[MixUp(), Skip(), take])
    check_seen(take.seen, 5, F.cross_entropy)

def test_validating_and_predicting_with_a_learner_that_has_it_for_good_mixes_nothing():
    learn = learner()
    learn.add_cb(MixUp())
    learn.fit(1)
    x, y = learn.data.valid_ds.x, learn.data.valid_ds.y
    learn.model.eval()
    with torch.no_grad(): pred = learn.model(x)
    got, targs = learn.get_preds()
    assert (got - pred).abs().max() < 1e-6 and torch.equal(targs, y)
    assert abs(learn.validate()['loss'] - F.cross_entropy(pred, y)) < 1e-6
    assert learn.loss_func is F.cross_entropy

def test_a_loss_function_that_another_callback_put_there_is_not_taken_away():
    def other(pred, yb): return F.cross_entropy(pred, yb)*2
    class Replace(Callback):
        _order = 99
        def begin_fit(self): self.run.loss_func = other
        def after_fit(self): seen.append(self.run.loss_func)
    seen = []
    learner().fit(1, cbs=[MixUp(), Replace()])
    assert seen == [other]

@pytest.mark.parametrize('mixer', [MixUp(.3), CutMix()])
def test_callbacks_copy_and_pickle(mixer):
    learn = learner()
    learn.fit(1, cbs=mixer)
    for o in (copy.deepcopy(mixer), pickle.loads(pickle.dumps(mixer))):
        assert o.α == mixer.α and o.run is None
        learn.fit(1, cbs=o)

# --- no waiting for the device ---

class NoWaiting(TorchDispatchMode):
    "Fails where a number is read from a tensor, or a shape depends on values: on a GPU, the processor would wait there."
    waits = ('_local_scalar_dense', 'nonzero', 'masked_select', 'item', 'unique', '_unique2', 'is_nonzero', 'equal')
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.waits: raise AssertionError(f'{func} waits for the device')
        return func(*args, **(kwargs or {}))

def test_that_waiting_would_be_noticed():
    with pytest.raises(AssertionError, match='waits'), NoWaiting(): torch.ones(2).sum().item()

@pytest.mark.parametrize('mixer', [MixUp, CutMix])
@pytest.mark.parametrize('loss_func', [F.cross_entropy, nn.CrossEntropyLoss(label_smoothing=.1)])
def test_a_batch_is_mixed_without_waiting_for_the_device(mixer, loss_func):
    class Guard(Callback):
        _order = 89
        def begin_batch(self): self.mode = NoWaiting(); self.mode.__enter__()
        def after_batch(self): self.mode.__exit__(None, None, None)
    learn = learner(loss_func)
    learn.opt_func = torch.optim.SGD
    learn.fit(1, cbs=[mixer(), Guard()])

# --- bad input ---

@pytest.mark.parametrize('α', [0, -.4, math.nan, math.inf])
@pytest.mark.parametrize('mixer', [MixUp, CutMix])
def test_parameters_that_no_beta_distribution_has_are_refused(mixer, α):
    with pytest.raises(ValueError, match=f'{mixer.__name__} draws from Beta'): mixer(α)
    with pytest.raises(ValueError, match='must be above 0'): mixer(alpha=α)

def test_alpha_can_be_spelled_out():
    assert MixUp(alpha=.2).α == .2 and CutMix(alpha=.3).α == .3 and (MixUp().α, CutMix().α) == (.4, 1.)

@pytest.mark.parametrize('pair', [(MixUp(), CutMix()), (CutMix(), CutMix())])
def test_two_mixers_in_one_fit_are_refused(pair):
    with pytest.raises(ValueError, match='in one fit would mix what is mixed already'): learner().fit(1, cbs=list(pair))

@pytest.mark.parametrize('loss_func', [lambda pred, yb: F.cross_entropy(pred, yb), 'cross_entropy'], ids=['neither', 'a name'])
def test_a_loss_that_cant_be_had_item_by_item_is_refused_before_the_first_batch(loss_func):
    learn, take = learner(loss_func), TakeDown()
    with pytest.raises(TypeError, match='NoneReduce needs a loss that can be had item by item'): learn.fit(1, cbs=[MixUp(), take])
    assert learn.loss_func is loss_func

weights = torch.tensor([1., 10, 10, 2, 3])

@pytest.mark.parametrize('mixer', [MixUp, CutMix])
@pytest.mark.parametrize('loss_func', [nn.CrossEntropyLoss(weight=weights), nn.CrossEntropyLoss(ignore_index=0), nn.NLLLoss(weight=weights), partial(F.cross_entropy, weight=weights), partial(F.cross_entropy, ignore_index=0)], ids=['weights', 'ignored', 'nll', 'function, weights', 'function, ignored'])
def test_a_weighted_mean_is_refused_before_the_first_batch(mixer, loss_func):
    learn = learner(loss_func)
    with pytest.raises(ValueError, match=f"{mixer.__name__} takes the plain mean .* give it reduction='sum'"): learn.fit(1, cbs=mixer())
    assert learn.loss_func is loss_func

@pytest.mark.parametrize('mixer', [MixUp, CutMix])
def test_a_weighted_sum_is_that_of_the_mixed_one_hot_targets(mixer):
    for loss_func in (nn.CrossEntropyLoss(weight=weights, reduction='sum'), partial(F.cross_entropy, weight=weights, reduction='sum')):
        learn, take = learner(loss_func), TakeDown()
        learn.fit(1, cbs=[mixer(), take])
        check_seen(take.seen, 5, loss_func)

def test_a_sum_may_leave_out_labels():
    loss_func = nn.CrossEntropyLoss(ignore_index=0, reduction='sum')
    learn, take = learner(loss_func), TakeDown()
    learn.fit(1, cbs=[MixUp(), take])
    check_seen(take.seen, 5, nn.CrossEntropyLoss(weight=torch.tensor([0., 1, 1, 1, 1]), reduction='sum'))

def test_weights_in_a_mean_that_is_plain_are_mixed():
    "PyTorch's binary cross-entropy with weights divides by the number of items."
    loss_func = nn.BCEWithLogitsLoss(weight=weights, pos_weight=weights)
    learn, take = learner(loss_func), TakeDown()
    learn.data.train_ds.y, learn.data.valid_ds.y = (one_hot(o.y, 5) for o in (learn.data.train_ds, learn.data.valid_ds))
    learn.fit(1, cbs=[MixUp(), take])
    for s in take.seen:
        targets = s['λ'][:, None]*s['yb'] + (1 - s['λ'][:, None])*s['yb1'] if s['train'] else s['yb']
        assert abs(loss_func(s['pred'], targets) - s['loss']) <= 1e-6*max(1, abs(s['loss']))

def test_a_loss_that_ignores_reduction_is_named():
    def loss(pred, yb, reduction='mean'): return F.cross_entropy(pred, yb)
    with pytest.raises(ValueError, match=r'MixUp needs a loss for each of the 8 items, but .* gave the shape \[\]'): learner(loss).fit(1, cbs=MixUp())

@pytest.mark.parametrize('change, says', [(lambda x: x.byte(), 'torch.uint8'), (lambda x: [x, x], 'list')])
def test_batches_that_cant_be_mixed_are_named(change, says):
    class Change(Callback):
        def begin_batch(self): self.run.xb = change(self.run.xb)
    with pytest.raises(TypeError, match=f'MixUp mixes a batch that is one float tensor, .* not {says} with torch.int64'): learner().fit(1, cbs=[Change(), MixUp()])

def test_cutmix_refuses_labels_of_pixels_and_inputs_that_are_no_images():
    ds = Dataset(torch.randn(8, 1, 4, 4), torch.randint(3, (8, 4, 4)))
    learn = Learner(nn.Conv2d(1, 3, 1), DataBunch(*get_dls(ds, ds, 4), 1, 3), F.cross_entropy)
    with pytest.raises(ValueError, match='paste those too'): learn.fit(1, cbs=CutMix())
    with pytest.raises(ValueError, match=r'not \[8, 7\]'): learner(n=8, shape=(7,)).fit(1, cbs=CutMix())

# --- NoneReduce, reduce_loss, unsqueeze ---

class OwnReduction(nn.Module):
    "A loss without the attribute, whose forward takes the argument."
    def forward(self, pred, yb, reduction='sum'): return F.mse_loss(pred, yb, reduction=reduction)

class NoReduction(nn.Module):
    def forward(self, pred, yb): return (pred - yb).pow(2).mean()

def any_keywords(pred, yb, **kw): return F.mse_loss(pred, yb, **kw)

@pytest.mark.parametrize('loss_func, own', [(F.mse_loss, 'mean'), (partial(F.mse_loss, reduction='sum'), 'sum'), (partial(partial(F.huber_loss, delta=2.), reduction='sum'), 'sum'), (nn.MSELoss(), 'mean'),
                                            (nn.HuberLoss(reduction='sum'), 'sum'), (nn.MSELoss(reduction='none'), 'none'), (OwnReduction(), 'sum'), (any_keywords, 'mean')])
def test_losses_of_all_kinds_item_by_item(loss_func, own):
    pred, yb = torch.randn(4, 3), torch.randn(4, 3)
    before, reducer = loss_func(pred, yb), NoneReduce(loss_func)
    assert reducer.reduction == own
    for _ in range(2):
        with reducer as f: each = f(pred, yb)
        assert each.shape == pred.shape and torch.allclose(reduce_loss(each, own), before) and torch.equal(loss_func(pred, yb), before)

def test_nested_and_repeated_use_puts_back_what_was_there():
    module = nn.MSELoss(reduction='sum')
    reducer = NoneReduce(module)
    with pytest.raises(KeyError), reducer, reducer, NoneReduce(module):
        assert module.reduction == 'none'
        raise KeyError
    assert module.reduction == 'sum'
    module.reduction = 'mean'
    with reducer: pass
    assert module.reduction == reducer.reduction == 'mean'

@pytest.mark.parametrize('loss_func', [NoReduction(), accuracy, None, 3])
def test_what_has_no_reduction_is_refused(loss_func):
    with pytest.raises(TypeError, match='NoneReduce needs a loss'): NoneReduce(loss_func)

@pytest.mark.parametrize('reduction', ['batchmean', '', None, 'Mean'])
def test_unknown_reductions_are_refused(reduction):
    with pytest.raises(ValueError, match="must be 'mean', 'sum' or 'none'"): reduce_loss(torch.ones(2), reduction)
    with pytest.raises(ValueError, match="must be 'mean', 'sum' or 'none'"): LabelSmoothingCrossEntropy(reduction=reduction)

def test_axes_are_put_in_one_after_the_other():
    x = torch.arange(3)
    assert [tuple(unsqueeze(x, d).shape) for d in (0, -1, (), (1, 2), [0, 0], range(1, 4))] == [(1, 3), (3, 1), (3,), (3, 1, 1), (1, 1, 3), (3, 1, 1, 1)]
    assert unsqueeze(x, 0).data_ptr() == x.data_ptr()
    with pytest.raises(IndexError): unsqueeze(x, 5)

# --- label smoothing ---

@quick
@given(n=several, c=classes, sizes=st.lists(several, max_size=2), ε=st.floats(0, 1), reduction=st.sampled_from(['mean', 'sum', 'none']), scale=st.sampled_from([.1, 1., 50.]), seed=seeds)
def test_label_smoothing_is_pytorchs_with_its_gradients(n, c, sizes, ε, reduction, scale, seed):
    set_seed(seed)
    out, y = (torch.randn(n, c, *sizes, dtype=torch.float64)*scale).requires_grad_(), torch.randint(c, (n, *sizes))
    ours, theirs = LabelSmoothingCrossEntropy(ε, reduction)(out, y), F.cross_entropy(out, y, label_smoothing=ε, reduction=reduction)
    assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    assert torch.allclose(*(torch.autograd.grad(o.sum(), out)[0] for o in (ours, theirs)), rtol=1e-9, atol=1e-12)

def test_label_smoothing_takes_labels_of_any_whole_type_and_is_finite_for_huge_logits():
    out = torch.tensor([[1e4, -1e4, 0.]])
    for dtype in (torch.uint8, torch.int32, torch.int64): assert LabelSmoothingCrossEntropy()(out, torch.tensor([1], dtype=dtype)).isfinite()
    assert repr(LabelSmoothingCrossEntropy(.2)) == "LabelSmoothingCrossEntropy(ε=0.2, reduction='mean')"

@pytest.mark.parametrize('y, error, says', [(torch.tensor([0, -100]), IndexError, 'labels from -100 to 0 for 3 classes'), (torch.tensor([0, 3]), IndexError, 'labels from 0 to 3 for 3 classes'),
                                            (torch.tensor([[0], [1]]), ValueError, r'need labels \[n, ...\], but there are \[2, 1\]'), (torch.eye(3)[:2], TypeError, 'soft targets')])
def test_labels_that_cant_be_smoothed_are_named(y, error, says):
    with pytest.raises(error, match=says): LabelSmoothingCrossEntropy()(torch.randn(2, 3), y)

@pytest.mark.parametrize('ε', [-.1, 1.1, math.nan])
def test_shares_outside_of_0_to_1_are_refused(ε):
    with pytest.raises(ValueError, match='a share of the target, from 0 to 1'): LabelSmoothingCrossEntropy(ε)
