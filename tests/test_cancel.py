"Lesson 05b's exceptions from every event, and callbacks that stop a training: finder, early stopping, NaN guard."
import copy, math, pickle, random
import pytest
from torch.utils.data import BatchSampler, DataLoader, RandomSampler
from exp.nb_05b import (accuracy, AvgStatsCallback, Callback, CancelBatchException, CancelEpochException, CancelException, CancelStepException, CancelTrainException, DataBunch, Dataset, EarlyStopping, F, LR_Find, LR_Finder,
                        ParamScheduler, Recorder, Runner, SimpleNamespace, TerminateOnNaN, create_learner, get_dls, get_model, loader_generators, nn, np, optim, partial, plot_lrs, plt, sched_no, set_seed, snapshot, suggest_lrs, torch)

EVENTS = [e for e in Runner.events if 'cancel' not in e]
IN_BATCH = 'begin_batch after_pred after_loss after_backward after_step'.split()

def bn_model(data, opt_func=partial(optim.Adam, lr=.01)):
    model = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(.2), nn.Linear(16, data.c))
    return model, opt_func(model.parameters())

def tiny(model_func=get_model, n=40, bs=8, c=4):
    set_seed(7)
    x = torch.randn(n + 10, 10)
    ds = [Dataset(o, o[:, :c].argmax(1)) for o in (x[:n], x[n:])]
    return create_learner(model_func, F.cross_entropy, DataBunch(*get_dls(*ds, bs), c))

def quiet(*cbs):
    run = Runner(cbs)
    run.said = []
    run.logger = run.said.append
    return run

class Tracer(Callback):
    _order = -100
    def __init__(self):
        self.seen = []
        for e in Runner.events: setattr(self, e, partial(self.seen.append, e))

class Once(Callback):
    "Raises `error` the first time that `event` comes."
    def __init__(self, event, error):
        self.error = error
        setattr(self, event, self.raise_it)
    def raise_it(self):
        error, self.error = self.error, None
        if error: raise error

def traced(event, error, epochs=2):
    tracer = Tracer()
    run = quiet(tracer, Once(event, error), AvgStatsCallback())
    run.fit(epochs, tiny())
    return tracer.seen

@pytest.mark.parametrize('event', [e for e in EVENTS if e != 'after_fit'])
def test_cancelling_the_training_from_any_event(event):
    seen = traced(event, CancelTrainException())
    assert seen[-3:] == [event, 'after_cancel_train', 'after_fit'] and seen.count('after_fit') == 1

@pytest.mark.parametrize('event', [*IN_BATCH, 'begin_epoch', 'after_batch', 'begin_validate'])
def test_cancelling_the_epoch(event):
    seen = traced(event, CancelEpochException())
    i = seen.index('after_cancel_epoch')
    assert seen[i - 1] == event and seen[i + 1] == ('after_epoch' if event == 'begin_validate' else 'begin_validate')
    assert seen.count('after_epoch') == 2 and seen.count('after_cancel_epoch') == 1

@pytest.mark.parametrize('event', IN_BATCH)
def test_cancelling_a_batch(event):
    seen = traced(event, CancelBatchException())
    i = seen.index('after_cancel_batch')
    assert seen[i - 1] == event and seen[i + 1:i + 3] == ['after_batch', 'begin_batch']
    assert seen.count('after_batch') == seen.count('begin_batch')

def test_cancelling_a_step_skips_it_and_drops_the_gradients():
    learn = tiny()
    before = [p.detach().clone() for p in learn.model.parameters()]
    class NoSteps(Callback):
        clean = []
        def begin_batch(self): self.clean.append(all(p.grad is None for p in self.model.parameters()))
        def after_backward(self): raise CancelStepException()
    quiet(NoSteps()).fit(2, learn)
    assert all(torch.equal(p, q) for p, q in zip(learn.model.parameters(), before)) and all(NoSteps.clean)
    seen = traced('after_backward', CancelStepException())
    i = seen.index('after_cancel_step')
    assert seen[i - 1:i + 2] == ['after_backward', 'after_cancel_step', 'after_batch']

@pytest.mark.parametrize('event', ['after_step', 'after_cancel_step'])
def test_a_batch_cancelled_after_its_step_leaves_no_gradients(event):
    class Clean(Callback):
        seen = []
        def begin_batch(self): self.seen.append(all(p.grad is None for p in self.model.parameters()))
    quiet(Clean(), Once('after_backward', CancelStepException() if 'cancel' in event else None), Once(event, CancelBatchException())).fit(1, tiny())
    assert len(Clean.seen) > 2 and all(Clean.seen)

@pytest.mark.parametrize('error, events', [(CancelStepException, set(EVENTS) - {'after_backward', 'after_fit'}), (CancelBatchException, set(EVENTS) - {*IN_BATCH, 'after_fit'}), (CancelEpochException, {'begin_fit', 'after_epoch'})],
                         ids=['step', 'batch', 'epoch'])
def test_cancelling_where_there_is_nothing_to_cancel_says_so(error, events):
    for event in events:
        tracer = Tracer()
        run = quiet(tracer, Once(event, error()))
        with pytest.raises(RuntimeError, match=f'{error.__name__} was raised where there is nothing'): run.fit(1, tiny())
        assert tracer.seen.count('after_fit') == 1 and run.learn is None
        run.fit(1, tiny())

@pytest.mark.parametrize('event', ['after_cancel_step', 'after_cancel_batch', 'after_cancel_epoch', 'after_cancel_train'])
def test_a_fault_while_cancelling(event):
    error = {'step': CancelStepException, 'batch': CancelBatchException, 'epoch': CancelEpochException, 'train': CancelTrainException}[event.rpartition('_')[2]]()
    tracer = Tracer()
    run = quiet(tracer, Once('after_backward', error), Once(event, ValueError('in it')))
    with pytest.raises(ValueError, match='in it'): run.fit(1, tiny())
    assert tracer.seen.count('after_fit') == 1 and run.learn is None
    run.fit(1, tiny())

def own_generators(kind):
    ds, g = tiny().data.train_ds, torch.Generator().manual_seed(5)
    sampler = RandomSampler(ds, generator=g)
    return g, {'loader': lambda: DataLoader(ds, 8, shuffle=True, generator=g), 'sampler': lambda: DataLoader(ds, 8, sampler=sampler), 'batch_sampler': lambda: DataLoader(ds, batch_sampler=BatchSampler(sampler, 8, False)),
               'whole batches': lambda: DataLoader(ds, batch_size=None, sampler=BatchSampler(sampler, 8, False))}[kind]()

@pytest.mark.parametrize('kind', ['loader', 'sampler', 'batch_sampler', 'whole batches'])
def test_the_finder_puts_back_the_loaders_own_random_numbers(kind):
    learn = tiny()
    g, learn.data.train_dl = own_generators(kind)
    assert [o is g for o in loader_generators(learn.data.train_dl).values()] == [True]
    before = g.get_state()
    quiet(LR_Find(8, 1e-3, .1)).fit(3, learn)
    assert torch.equal(before, g.get_state())
    next(iter(learn.data.train_dl))
    assert not torch.equal(before, g.get_state())   # or the comparison says nothing

def test_loaders_without_random_numbers_of_their_own(): assert loader_generators(None) == loader_generators([(1, 2)]) == loader_generators(DataLoader(tiny().data.train_ds, 8, shuffle=True)) == {}

def test_all_four_are_of_one_kind_and_none_is_swallowed_by_a_bare_value_error():
    assert all(issubclass(e, CancelException) for e in (CancelStepException, CancelBatchException, CancelEpochException, CancelTrainException))
    assert not issubclass(CancelException, ValueError)

def test_a_cancelled_validation_prints_no_batch():
    class NoValidation(Callback):
        def begin_validate(self): raise CancelEpochException()
    run = quiet(NoValidation(), AvgStatsCallback())
    run.fit(1, tiny())
    assert run.said[1] == 'epoch 0 valid: no batch' and 'valid_loss' not in run.avg_stats.history[0]

# the finder

def everything(learn):
    opt = copy.deepcopy(learn.opt.state_dict())
    return [{k: v.clone() for k, v in learn.model.state_dict().items()}, [b.clone() for b in learn.model.buffers()], opt['state'], [{k: v for k, v in g.items() if k != 'params'} for g in opt['param_groups']],
            [m.training for m in learn.model.modules()], torch.get_rng_state(), random.getstate(), np.random.get_state()]

def same(a, b):
    if isinstance(a, torch.Tensor): return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray): return np.array_equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b

OPTS = dict(sgd=partial(optim.SGD, lr=.1), momentum=partial(optim.SGD, lr=.1, momentum=.9, nesterov=True), adam=partial(optim.Adam, lr=.01, amsgrad=True), tensor_lr=lambda ps: optim.Adam(ps, lr=torch.tensor(.01), foreach=False))

@pytest.mark.parametrize('trained', [False, True], ids=['fresh', 'trained'])
@pytest.mark.parametrize('opt', OPTS)
@pytest.mark.parametrize('end', ['completed', 'diverged', 'nan', 'too short', 'begin_fit', 'after_pred', 'after_step', 'after_fit', 'after_epoch', 'Ctrl-C'])
def test_a_sweep_leaves_no_trace(end, opt, trained):
    learn = tiny(partial(bn_model, opt_func=OPTS[opt]))
    if trained: Runner().fit(2, learn)
    before = everything(learn)
    finder = {'completed': LR_Find(10, 1e-4, 1e-2), 'diverged': LR_Find(30, .1, 1e8)}.get(end, LR_Find(30, 1e-3, 1))
    faults = {'nan': [], 'Ctrl-C': [Once('after_backward', KeyboardInterrupt())]}.get(end, [Once(end, ValueError('x'))] if end in EVENTS else [])
    class Poison(Callback):
        def after_pred(self):
            if self.n_iter == 3: self.run.pred = self.pred*math.nan
    run = quiet(finder, *faults, *([Poison()] if end == 'nan' else []), ParamScheduler('lr', sched_no(5., 5.)))
    if faults:
        with pytest.raises((ValueError, KeyboardInterrupt)): run.fit(20, learn)
    else: run.fit(2 if end == 'too short' else 20, learn)
    assert same(before, everything(learn))
    if end == 'completed': assert len(finder.losses) == len(finder.lrs) == 10 and finder.lrs[0] == 1e-4 and finder.lrs[-1] == pytest.approx(1e-2)
    if end == 'nan': assert len(finder.losses) == 4 and math.isnan(finder.losses[-1])
    if end == 'diverged': assert len(finder.losses) < 30

def test_the_rates_of_a_sweep_are_those_that_it_trained_with():
    run = quiet(Recorder(), LR_Find(8, 1e-3, .1), ParamScheduler('lr', sched_no(7., 7.)))
    run.fit(9, tiny())
    assert run.recorder.lrs[0][:7] == run.lr_finder.lrs[:7]
    ratios = np.divide(run.lr_finder.lrs[1:], run.lr_finder.lrs[:-1])
    assert ratios == pytest.approx([ratios[0]]*7)

def test_a_sweep_moves_all_groups_and_puts_them_back():
    def two(data):
        model, _ = get_model(data)
        return model, optim.SGD([{'params': model[0].parameters(), 'lr': .5}, {'params': model[2].parameters(), 'lr': .05}])
    learn, run = tiny(two), quiet(Recorder(), LR_Find(8, 1e-3, .1))
    run.fit(9, learn)
    assert run.recorder.lrs[0] == run.recorder.lrs[1] and [g['lr'] for g in learn.opt.param_groups] == [.5, .05]

def test_an_optimizer_of_ones_own_is_put_back_by_its_state_dict():
    learn = tiny()
    inner = learn.opt
    class Mine:
        hypers, count = [dict(lr=.1)], 0
        def step(self): inner.step(); self.count += 1
        def zero_grad(self): inner.zero_grad()
        def state_dict(self): return dict(hypers=self.hypers, count=self.count)
        def load_state_dict(self, d): self.hypers, self.count = d['hypers'], d['count']
    learn.opt = Mine()
    quiet(LR_Find(5, 1e-3, 1e-2)).fit(3, learn)
    assert (learn.opt.hypers, learn.opt.count) == ([dict(lr=.1)], 0)

def test_a_snapshot_can_be_used_again():
    learn = tiny(bn_model)
    Runner().fit(1, learn)
    restore, before = snapshot(learn.model, learn.opt), everything(learn)
    for _ in range(2):
        Runner().fit(1, learn)
        restore()
        assert same(before, everything(learn))

def test_buffers_that_a_state_dict_leaves_out_come_back():
    model = nn.Linear(2, 2)
    model.register_buffer('hidden', torch.zeros(2), persistent=False)
    restore = snapshot(model, optim.SGD(model.parameters(), lr=.1))
    model.hidden += 1
    restore()
    assert model.hidden.tolist() == [0, 0]

@pytest.mark.parametrize('kw', [dict(max_iter=1), dict(min_lr=0), dict(min_lr=1, max_lr=.1), dict(min_lr=-1)])
def test_a_sweep_that_makes_no_sense(kw):
    with pytest.raises(ValueError, match='LR_Find goes from'): LR_Find(**kw)

def test_suggestions_and_plot():
    run = quiet(LR_Find(40, 1e-3, 10))
    run.fit(9, tiny())
    s = run.lr_finder.suggestions()
    assert set(s) == {'steepest', 'tenth_of_minimum'} and all(1e-4 <= v <= 10 for v in s.values())
    ax = run.lr_finder.plot()
    assert (ax.get_xscale(), ax.get_xlabel(), ax.get_ylabel()) == ('log', 'learning rate', 'loss')
    plt.close(ax.figure)
    with pytest.raises(ValueError, match='too short'): suggest_lrs([1e-3, 1e-2], [1., math.nan])
    assert LR_Finder is LR_Find

# early stopping

def stopped(values, **kw):
    cb = EarlyStopping(**kw)
    stats = AvgStatsCallback(accuracy)
    cb.set_runner(SimpleNamespace(cbs=[stats], logger=lambda line: None))
    cb.begin_fit()
    for cb.run.epoch, v in enumerate(values):
        stats.history.append({} if v is None else {cb.metric: v})
        try: cb.after_epoch()
        except CancelTrainException: return cb.run.epoch, cb.best_epoch

@pytest.mark.parametrize('values, kw, expected', [
    ([3, 2, 1, 1, 1, 1], dict(patience=3), (5, 2)), ([3, 2, 1], dict(patience=1), None), ([1, 1], dict(patience=1), (1, 0)), ([1, .95, .91, .5, .6, .6], dict(patience=2, min_delta=.06), (5, 3)),
    ([1, 2, 3, 2, 2], dict(patience=2, metric='accuracy', mode='max'), (4, 2)), ([math.nan, math.nan], dict(patience=2), (1, None)), ([1, math.nan, math.nan], dict(patience=2), (2, 0)), ([1, math.nan, .5, .6], dict(patience=2), None),
    ([-math.inf, -1], dict(patience=1), (1, 0)), ([2, 1, 1], dict(patience=1, metric='train_loss'), (2, 1)), ([1, 2, 1], dict(patience=2, mode='max'), None),
    ([1, None, None, 2, None, 2], dict(patience=2), (5, 0))])
def test_early_stopping(values, kw, expected): assert stopped(values, **kw) == expected

def test_early_stopping_starts_anew_with_each_fit():
    run = quiet(AvgStatsCallback(), EarlyStopping(patience=1, min_delta=1e9))
    for _ in range(2):
        run.fit(5, tiny())
        assert len(run.avg_stats.history) == 2 and run.early_stopping.best_epoch == 0 and 'stopped after epoch 1' in run.said[-1]

def test_early_stopping_has_the_last_word_in_an_epoch():
    class Last(Callback):
        epochs_seen = 0
        def after_epoch(self): self.epochs_seen += 1
    last = Last()
    run = quiet(EarlyStopping(patience=1, min_delta=1e9), last, AvgStatsCallback())
    run.fit(5, tiny())
    assert last.epochs_seen == 2

@pytest.mark.parametrize('kw, says', [(dict(metric='accuracy'), 'say which is better'), (dict(mode='up'), 'say which is better'), (dict(patience=0), 'patience'), (dict(min_delta=-1), 'min_delta')])
def test_bad_early_stopping(kw, says):
    with pytest.raises(ValueError, match=says): EarlyStopping(**kw)

# NaN

class Poison(Callback):
    "Spoils the loss of training batch `n`."
    def __init__(self, n, value=math.nan): self.n, self.value = n, value
    def after_loss(self):
        if self.in_train and self.n_iter == self.n: self.run.loss = self.loss + self.value

@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('every', [1, 2, 3, 5, 7, 100])
@pytest.mark.parametrize('n', [0, 1, 4, 5, 9])
def test_a_loss_that_is_not_finite_ends_the_training_and_is_named(n, every, value):
    learn, run = tiny(), quiet(Poison(n, value), TerminateOnNaN(every), TerminateOnNaN(every))
    run.fit(3, learn)
    assert run.terminate_on_nan.stopped_at == (n//5, n % 5)
    assert f'epoch {n//5}, batch {n % 5}' in run.said[-1] and run.epoch == n//5
    if every == 1: assert all(p.isfinite().all() for p in learn.model.parameters()) and run.n_iter == n

def test_a_healthy_training_is_left_alone():
    run = quiet(TerminateOnNaN(3))
    run.fit(2, tiny())
    assert run.terminate_on_nan.stopped_at is None and run.said == [] and run.n_iter == 10

# what a first reader found

class CancelAt(Callback):
    "Raises `error` at `event` of the training batches (or epochs) whose number is in `ns`."
    def __init__(self, event, error, *ns, order=0):
        self.error, self.ns, self._order = error, ns, order
        setattr(self, event, self.maybe)
    def maybe(self):
        if self.in_train and self.n_iter in self.ns: raise self.error()

@pytest.mark.parametrize('event', ['begin_batch', 'after_pred'])
def test_a_recorder_has_no_entry_for_a_batch_without_a_loss(event):
    run = quiet(Recorder(), AvgStatsCallback(), CancelAt(event, CancelBatchException, 0, 3, 5))
    run.fit(2, tiny())
    assert len(run.recorder.losses) == len(run.recorder.lrs[0]) == 7 and run.n_iter == 10 and run.avg_stats.train_stats.count == 4*8

@pytest.mark.parametrize('every', [1, 3, 100])
def test_the_batch_that_went_bad_is_named_where_others_cancel(every):
    class NoValidation(Callback):
        def begin_validate(self): raise CancelEpochException()
    run = quiet(NoValidation(), Poison(3), TerminateOnNaN(every))
    run.fit(3, tiny())
    assert run.terminate_on_nan.stopped_at == (0, 3)
    run = quiet(CancelAt('begin_batch', CancelBatchException, 0, 1, 6), Poison(8), TerminateOnNaN(every))
    run.fit(3, tiny())
    assert run.terminate_on_nan.stopped_at == (1, 3)

def test_a_buffer_that_forward_replaces_comes_back():
    class Ema(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer('ema', torch.zeros(()))
            self.register_buffer('nothing', None)
        def forward(self, x):
            self.ema = .9*self.ema + x.detach().mean()
            return x
    learn = tiny()
    learn.model = nn.Sequential(Ema(), learn.model)
    ema = learn.model[0].ema
    restore = snapshot(learn.model, learn.opt)
    quiet().fit(1, learn)
    assert learn.model[0].ema is not ema and learn.model[0].ema != 0
    restore()
    assert learn.model[0].ema is ema and ema == 0 and learn.model[0].nothing is None

def test_a_cancelled_epoch_leaves_no_gradients_to_the_next():
    clean = []
    class Look(Callback):
        def begin_epoch(self): clean.append(all(p.grad is None for p in self.model.parameters()))
        def begin_validate(self): clean.append(all(p.grad is None for p in self.model.parameters()))
    quiet(CancelAt('after_backward', CancelEpochException, 2), Look()).fit(2, tiny())
    assert clean == [True]*4

def test_leaving_the_validation_leaves_training_as_it_was():
    "Gradients that are being added up over the end of an epoch are not validation's business."
    class AddUp(Callback):
        def after_backward(self):
            if self.n_iter == 4: raise CancelBatchException()
    class NoValidation(Callback):
        def begin_validate(self): raise CancelEpochException()
    results = []
    for more in ([], [NoValidation()]):
        learn = tiny()
        learn.data.valid_dl = list(learn.data.valid_dl)
        set_seed(1)
        quiet(AddUp(), *more).fit(2, learn)
        results.append([p.detach() for p in learn.model.parameters()])
    assert all(map(torch.equal, *results))

def test_rates_and_losses_of_a_sweep_with_cancelled_batches_belong_together():
    used = []
    class Used(Callback):
        _order = 50
        def after_loss(self): used.append((self.opt.param_groups[0]['lr'], self.loss.item()))
    run = quiet(LR_Find(8, 1e-3, .1), CancelAt('after_pred', CancelBatchException, 1, 4), Used())
    run.fit(9, tiny())
    assert len(run.lr_finder.losses) == 8 and list(zip(run.lr_finder.lrs, run.lr_finder.losses)) == used

def test_a_sweep_that_runs_out_of_batches_says_so():
    run = quiet(LR_Find(100))
    run.fit(2, tiny())
    assert run.said == ['LR_Find: the sweep ended with the epochs, at batch 10 of 100: give fit more of them']
    run = quiet(LR_Find(10))
    run.fit(2, tiny())
    assert run.said == []

def test_a_sweep_that_only_rises_suggests_nothing():
    lrs = np.geomspace(1e-3, 1, 30)
    with pytest.raises(ValueError, match='never falls'): suggest_lrs(lrs, np.linspace(1, 2, 30))
    plt.close(plot_lrs(lrs, np.linspace(1, 2, 30)).figure)

def test_a_sweep_of_a_negative_loss_goes_on():
    learn = tiny()
    learn.loss_func = lambda pred, yb: F.cross_entropy(pred, yb) - 100
    run = quiet(LR_Find(20, 1e-4, 1e-2))
    run.fit(9, learn)
    assert len(run.lr_finder.losses) == 20

def test_a_sweep_puts_a_loaders_own_random_numbers_back():
    results = []
    for sweep in (True, False):
        learn = tiny()
        learn.data = DataBunch(*get_dls(learn.data.train_ds, learn.data.valid_ds, 8, generator=torch.Generator().manual_seed(5)), 4)
        if sweep: quiet(LR_Find(10)).fit(5, learn)
        quiet().fit(2, learn)
        results.append([p.detach() for p in learn.model.parameters()])
    assert all(map(torch.equal, *results))

def test_a_finder_lets_go_of_the_model_and_can_be_pickled():
    run, learn = quiet(LR_Find(10)), tiny()
    run.fit(5, learn)
    other = pickle.loads(pickle.dumps(run.lr_finder))
    assert other.lrs == run.lr_finder.lrs and not other.setters and len(pickle.dumps(run.lr_finder)) < 2000
    quiet(other).fit(5, tiny())

def test_early_stopping_with_stats_by_another_name():
    class Mine(AvgStatsCallback): pass
    run = quiet(Mine(), EarlyStopping(patience=1, min_delta=1e9))
    run.fit(5, tiny())
    assert run.early_stopping.best_epoch == 0 and len(run.mine.history) == 2

@pytest.mark.parametrize('event', ['after_fit', 'after_cancel_train'])
def test_cancelling_when_the_training_is_over_already_says_so(event):
    run = quiet(Once('after_step', CancelTrainException()), Once(event, CancelTrainException()))
    with pytest.raises(RuntimeError, match='CancelTrainException was raised where there is nothing'): run.fit(1, tiny())
    assert run.learn is None
    run.fit(1, tiny())
