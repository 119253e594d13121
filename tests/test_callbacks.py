"Lesson 04's loop and callbacks: faults at every event, averages for any sizes, and what mustn't be silent."
import copy, gc, pickle, weakref
import pytest
from hypothesis import given, settings, strategies as st
from exp import nb_04, nb_05b
from exp.nb_04 import (AvgStats, AvgStatsCallback, Callback, CallbackHost, DataBunch, DataLoader, Dataset, F, Learner, SimpleNamespace, TrainEvalCallback, accuracy, camel2snake,
                       check_callback, get_dls, get_model, listify, nn, np, optim, partial, set_seed, torch)

RUNNERS = pytest.mark.parametrize('Runner', [nb_04.Runner, nb_05b.Runner], ids=['04', '05b'])
EVENTS = nb_04.Runner.events

def tiny(n=43, bs=8, n_valid=11, c=4, lr=.1):
    set_seed(7)
    x = torch.randn(n + n_valid, 10)
    ds = [Dataset(o, o[:, :c].argmax(1)) for o in (x[:n], x[n:])]
    data = DataBunch(*get_dls(*ds, bs), c)
    return Learner(*get_model(data, lr, nh=16), F.cross_entropy, data)

def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()]).clone()

class Tracer(Callback):
    _order = -100
    def __init__(self, events=EVENTS):
        self.seen = []
        for e in events: setattr(self, e, partial(self.seen.append, e))

class RaiseAt(Callback):
    def __init__(self, event, error, n=0): setattr(self, event, partial(self.fail, error))
    def fail(self, error): raise error

@RUNNERS
def test_the_order_of_events(Runner):
    tracer = Tracer()
    Runner(tracer).fit(1, tiny(n=8))
    assert tracer.seen == ('begin_fit begin_epoch begin_batch after_pred after_loss after_backward after_step after_batch '
                           'begin_validate begin_batch after_pred after_loss after_batch after_epoch after_fit').split()

@RUNNERS
@pytest.mark.parametrize('error', [ValueError('a bug'), KeyboardInterrupt(), SystemExit(1), AttributeError('inner')], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize('event', EVENTS)
def test_a_fault_at_any_event_leaves_everything_usable(Runner, event, error):
    learn, tracer, fault = tiny(), Tracer(), RaiseAt(event, error)
    run = Runner([tracer, fault, AvgStatsCallback(accuracy)])
    run.logger = lambda line: None
    with pytest.raises(type(error)) as caught: run.fit(2, learn)
    assert caught.value is error
    assert tracer.seen.count('after_fit') == 1
    assert [run.learn, run.model, run.opt, run.xb, run.pred, run.loss, run.in_train] == [None]*6 + [False]
    assert all(p.grad is None for p in learn.model.parameters())
    assert torch.is_grad_enabled()
    delattr(fault, event)
    tracer.seen.clear()
    run.fit(1, learn)
    assert tracer.seen[-1] == 'after_fit' and len(run.avg_stats.history) == 1

@RUNNERS
def test_a_fit_after_a_fault_is_the_fit_without_one(Runner):
    "A gradient left over from the broken step would show."
    plain, broken = tiny(), tiny()
    start = copy.deepcopy(broken.model.state_dict())
    with pytest.raises(ValueError): Runner(RaiseAt('after_backward', ValueError())).fit(1, broken)
    broken.model.load_state_dict(start)
    for learn in (plain, broken):
        set_seed(1)
        Runner().fit(1, learn)
    assert torch.equal(weights(plain), weights(broken))

@RUNNERS
def test_an_error_in_after_fit_does_not_mask_the_first_nor_keep_others_from_theirs(Runner):
    tracer = Tracer()
    tracer._order = 100
    with pytest.raises(ValueError, match='first') as caught: Runner([RaiseAt('begin_epoch', ValueError('first')), RaiseAt('after_fit', OSError('second')), tracer]).fit(1, tiny())
    assert 'second' in caught.value.__notes__[0] and tracer.seen[-1] == 'after_fit'
    with pytest.raises(OSError, match='second') as caught: Runner([RaiseAt('after_fit', OSError('second')), RaiseAt('after_fit', KeyError('third'))]).fit(1, tiny())
    assert 'third' in caught.value.__notes__[0]

@RUNNERS
def test_an_error_in_the_model_or_the_loader_is_a_fault_like_any_other(Runner):
    def broken(pred, yb): raise ZeroDivisionError
    learn, tracer = tiny(), Tracer()
    run = Runner(tracer)
    good, learn.loss_func = learn.loss_func, broken
    with pytest.raises(ZeroDivisionError): run.fit(1, learn)
    learn.loss_func, learn.data.train_dl = good, [(torch.zeros(2, 3), torch.zeros(2).long())]
    with pytest.raises(RuntimeError, match='shape'): run.fit(1, learn)
    assert tracer.seen.count('after_fit') == 2 and run.learn is None

@RUNNERS
def test_return_values_change_nothing(Runner):
    class Returns(Callback):
        def __init__(self, value):
            for e in EVENTS: setattr(self, e, lambda: value)
    results = []
    for value in (None, True, False, 'stop'):
        learn = tiny()
        set_seed(1)
        Runner(Returns(value)).fit(1, learn)
        results.append(weights(learn))
    assert all(torch.equal(results[0], r) for r in results[1:])

@RUNNERS
def test_a_fit_lets_go_of_the_batch_and_the_learner(Runner):
    learn, run = tiny(), Runner()
    refs = []
    class Watch(Callback):
        def after_loss(self): refs[:] = [weakref.ref(self.run.pred), weakref.ref(self.run.loss)]
    run.add_cbs(Watch())
    run.fit(1, learn)
    model = weakref.ref(learn.model)
    del learn
    gc.collect()
    assert model() is None and [r() for r in refs] == [None, None]

@RUNNERS
def test_a_fit_inside_a_fit_is_refused(Runner):
    class Again(Callback):
        def begin_epoch(self): self.run.fit(1, self.learn)
    with pytest.raises(RuntimeError, match='fitting already'): Runner(Again()).fit(1, tiny())

@RUNNERS
@pytest.mark.parametrize('epochs', [-1, 1.5, '3', None])
def test_bad_epochs(Runner, epochs):
    with pytest.raises(ValueError, match='whole number'): Runner().fit(epochs, tiny())

@RUNNERS
def test_no_epoch_at_all(Runner):
    tracer = Tracer()
    Runner(tracer).fit(0, tiny())
    assert tracer.seen == ['begin_fit', 'after_fit']

@RUNNERS
@pytest.mark.parametrize('which', ['train_dl', 'valid_dl'])
def test_an_epoch_without_a_batch_is_an_error_that_says_so(Runner, which):
    learn = tiny()
    setattr(learn.data, which, DataLoader(learn.data.train_ds, batch_size=100, drop_last=True))
    with pytest.raises(ValueError, match={'train_dl': 'training', 'valid_dl': 'validation'}[which] + ' loader gave no batch in epoch 0'): Runner(AvgStatsCallback()).fit(1, learn)

@RUNNERS
@pytest.mark.parametrize('which, name', [('train_dl', 'training'), ('valid_dl', 'validation')])
def test_a_loader_without_a_length_is_an_error_that_says_so(Runner, which, name):
    learn = tiny()
    setattr(learn.data, which, (batch for batch in learn.data.train_dl))
    with pytest.raises(TypeError, match=f'the {name} loader is a generator, which has no length'): Runner().fit(1, learn)

@settings(max_examples=40)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_averages_are_those_of_all_items(sizes, seed):
    g = torch.Generator().manual_seed(seed)
    preds, ys = [torch.randn(n, 3, generator=g) for n in sizes], [torch.randint(0, 3, (n,), generator=g) for n in sizes]
    stats = AvgStats([accuracy, lambda p, y: 2.5], False)
    for p, y in zip(preds, ys): stats.accumulate(SimpleNamespace(xb=p, yb=y, pred=p, loss=F.cross_entropy(p, y)))
    p, y = torch.cat(preds), torch.cat(ys)
    assert stats.avg_stats == pytest.approx([F.cross_entropy(p, y).item(), accuracy(p, y).item(), 2.5], rel=1e-5, abs=1e-6)
    assert stats.count == sum(sizes)

def test_averages_of_inputs_in_tuples_and_dicts():
    for xb in ((torch.zeros(3, 2), torch.zeros(5)), {'a': torch.zeros(3)}, [torch.zeros(3)]):
        stats = AvgStats()
        stats.accumulate(SimpleNamespace(xb=xb, yb=None, pred=None, loss=torch.tensor(2.)))
        assert (stats.count, stats.avg_stats) == (3, [2.])

def test_averages_hold_no_graph_and_half_precision_is_summed_in_full():
    stats, w = AvgStats(lambda p, y: p.mean()), torch.ones(8, requires_grad=True)
    for _ in range(1000): stats.accumulate(SimpleNamespace(xb=w, yb=None, pred=w*2, loss=(w.sum()/8).half()))
    assert not any(t.requires_grad for t in stats.totals) and stats.avg_stats == [1., 2.]

def test_averages_of_nothing():
    assert repr(AvgStats(accuracy, False)) == 'valid: no batch'
    with pytest.raises(ValueError, match='nothing to average'): AvgStats().avg_stats

@RUNNERS
def test_averages_read_nothing_while_batches_run(Runner, monkeypatch):
    "The host reads the sums after the epoch, and never in a batch."
    inside, reads = [False], []
    class Inside(Callback):
        def begin_batch(self): inside[0] = True
        def after_epoch(self): inside[0] = False
        _order = -50
    for name in ('item', 'tolist', '__bool__', '__float__', 'cpu', 'numpy'):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, *a, _f=original, _n=name, **kw: (reads.append(_n) if inside[0] else None, _f(self, *a, **kw))[1])
    def plain_accuracy(pred, yb): return (pred.argmax(1) == yb).float().mean()
    ds = TensorBatches(tiny())
    run = Runner([Inside(), AvgStatsCallback(plain_accuracy)])
    run.logger = lambda line: None
    run.fit(2, ds)
    assert reads == [] and len(run.avg_stats.history) == 2

def TensorBatches(learn):
    "The learner with its batches made beforehand."
    learn.data = SimpleNamespace(train_dl=list(learn.data.train_dl), valid_dl=list(learn.data.valid_dl))
    return learn

@RUNNERS
@pytest.mark.parametrize('method, nearest', [('after_bacth', 'after_batch'), ('begin_ftt', 'begin_fit'), ('before_batch', 'begin_batch'), ('aftr_step', 'after_step'), ('begin_', None), ('after_everything', None)])
def test_a_misspelt_event_is_an_error_with_the_nearest_name(Runner, method, nearest):
    cb = type('Mine', (Callback,), {method: lambda self: None})()
    with pytest.raises(AttributeError, match=f'Mine.{method} would never be called') as e: Runner(cb)
    assert (f"did you mean '{nearest}'" if nearest else 'the events are') in str(e.value) or nearest is None

def test_names_that_only_look_a_little_like_events_are_fine():
    class Fine(Callback):
        begin, after, fit_one, batch_size, after_images = (lambda self: 0), (lambda self: 0), (lambda self: 0), 3, 7
        def _after_nothing(self): pass
    check_callback(Fine(), EVENTS)

def test_a_misspelt_event_on_the_object_itself():
    cb = Callback()
    cb.after_bach = print
    with pytest.raises(AttributeError, match='after_batch'): nb_04.Runner(cb)

def test_new_events_are_registered_by_a_subclass():
    class Mine(nb_04.Runner): events = (*nb_04.Runner.events, 'after_download')
    class Listens(Callback):
        done = 0
        def after_download(self): self.done += 1
    run = Mine(Listens())
    run('after_download')
    assert run.listens.done == 1
    with pytest.raises(AttributeError): nb_04.Runner(Listens())

@RUNNERS
def test_an_unknown_event(Runner):
    with pytest.raises(ValueError, match="did you mean 'after_batch'"): Runner()('after_batsh')

@RUNNERS
def test_what_is_no_callback(Runner):
    for bad in (TrainEvalCallback, 3, 'x', [TrainEvalCallback]):
        with pytest.raises(TypeError, match='no Callback'): Runner(bad)

def test_a_name_that_would_hide_the_runs_own():
    for name in ('Loss', 'Fit', 'Learn', 'Epoch'):
        with pytest.raises(ValueError, match=f"'{name.lower()}' would hide"): nb_04.Runner(type(name, (Callback,), {})())

def test_a_refused_callback_leaves_the_run_as_it_was():
    class Good(Callback): pass
    run = nb_04.Runner()
    with pytest.raises(TypeError): run.add_cbs([Good(), 3])
    assert [cb.name for cb in run.cbs] == ['train_eval']
    run.add_cbs(o for o in [Good(), Good()])
    assert [cb.name for cb in run.cbs] == ['train_eval', 'good', 'good'] and run.good is not run.good_2

def test_order_and_ties():
    said = []
    class Says(Callback):
        def __init__(self, n, order): self.n, self._order = n, order
        def begin_fit(self): said.append(self.n)
    nb_04.Runner([Says(0, 3), Says(1, 0), Says(2, -1), Says(3, 0)], cb_funcs=[partial(Says, 4, 0), partial(Says, 5, -2)]).fit(0, tiny())
    assert said == [5, 2, 1, 3, 4, 0]

def test_attributes_of_a_callback():
    class Mine(Callback):
        @property
        def broken(self): return [].nothing
        @property
        def good(self): return 5
    cb = Mine()
    assert not hasattr(cb, 'loss') and cb.good == 5 and cb.run is None
    with pytest.raises(AttributeError, match="'list' object has no attribute 'nothing'"): cb.broken
    run = nb_04.Runner(cb)
    with pytest.raises(AttributeError, match="'list' object has no attribute 'nothing'"): cb.broken
    with pytest.raises(AttributeError, match="neither Mine nor its run has an attribute 'lots'"): cb.lots
    assert cb.in_train is False and not hasattr(cb, 'lots') and getattr(cb, 'lots', 3) == 3
    cb.epoch = 77
    assert run.epoch == 0 and cb.epoch == 77
    cb.run.epoch = 5
    assert run.epoch == 5

def test_an_error_in_a_property_of_the_run_is_not_masked():
    class Odd(nb_04.Runner):
        @property
        def odd(self): return [].nothing
    cb = Callback()
    Odd(cb)
    with pytest.raises(AttributeError, match="'list' object has no attribute 'nothing'"): cb.odd

def test_copies_and_pickles():
    for run in (None, nb_04.Runner()):
        for cb in (TrainEvalCallback(), AvgStatsCallback(accuracy)):
            if run: run.add_cbs(cb)
            cb.note = [1]
            for other in (copy.copy(cb), copy.deepcopy(cb), pickle.loads(pickle.dumps(cb))):
                assert type(other) is type(cb) and other.note == [1] and other.run is None
    run.fit(1, tiny())
    assert copy.deepcopy(run).fit(1, tiny()) is None

def test_a_callback_moves_on_to_another_run():
    cb = AvgStatsCallback(accuracy)
    a, b = nb_04.Runner(cb), nb_04.Runner(cb)
    for run in (a, b, a):
        run.logger = lambda line: None
        run.fit(1, tiny())
        assert cb.run is run and len(cb.history) == 1

def test_replacing_the_model_for_one_fit():
    class Wrap(Callback):
        def begin_fit(self): self.run.model = nn.Sequential(self.model, nn.Identity())
    learn = tiny()
    before, model = weights(learn), learn.model
    run = nb_04.Runner(Wrap())
    run.fit(1, learn)
    assert learn.model is model and run.model is None and not torch.equal(before, weights(learn))

def test_events_nobody_listens_to_have_empty_lists():
    run = nb_04.Runner()
    run.attach()
    assert {e: len(f) for e, f in run._handlers.items() if f} == dict(begin_fit=1, begin_epoch=1, after_batch=1, begin_validate=1)

@pytest.mark.parametrize('o, expected', [(None, []), ('ab', ['ab']), (b'ab', [b'ab']), ((1, 2), [1, 2]), ({'a': 1}, ['a']), (0, [0]), (False, [False]), (np.array(3), [3]), (torch.tensor(2), [2]), ([], []), (dict, [dict])])
def test_listify(o, expected): assert listify(o) == expected

def test_listify_takes_iterators_once(): assert listify(iter('ab')) == ['a', 'b']

@given(st.lists(st.from_regex(r'[A-Z][a-z]+[0-9]?', fullmatch=True), min_size=1, max_size=4))
def test_camel2snake(words): assert camel2snake(''.join(words)) == '_'.join(w.lower() for w in words)

def test_n_epochs_is_exact_at_the_ends_of_epochs():
    seen = []
    class See(Callback):
        _order = 5
        def after_batch(self):
            if self.in_train: seen.append((self.n_iter, self.n_epochs))
    nb_04.Runner(See()).fit(3, tiny(n=49, bs=7))
    assert [s for s in seen if s[0] % 7 == 0] == [(7, 1.), (14, 2.), (21, 3.)] and all(abs(e - i/7) < 1e-12 for i, e in seen)

def test_a_host_without_training():
    class Day(CallbackHost): events = ('begin_day',)
    cb = type('Cb', (Callback,), {'begin_day': lambda self: setattr(self.run, 'awake', True)})()
    day = Day(cb)
    day('begin_day')
    assert day.awake

def test_optimizers_and_data_are_only_used_as_such():
    "Any iterable with a length is a loader; any object with step and zero_grad an optimizer."
    learn = TensorBatches(tiny())
    opt, steps = optim.SGD(learn.model.parameters(), lr=.1), []
    learn.opt = SimpleNamespace(step=lambda: (steps.append(1), opt.step()), zero_grad=opt.zero_grad)
    nb_04.Runner().fit(2, learn)
    assert len(steps) == 12

# what a first reader found

@RUNNERS
@pytest.mark.parametrize('spoil', [lambda learn: nn.Linear(2, 2), lambda learn: Learner(learn.model, None, F.cross_entropy, learn.data), lambda learn: None], ids=['a model', 'no optimizer', 'None'])
def test_a_wrong_learner_leaves_the_run_usable(Runner, spoil):
    run, learn = Runner(), tiny()
    with pytest.raises(AttributeError): run.fit(1, spoil(learn))
    assert run.learn is None
    run.fit(1, learn)

@RUNNERS
def test_an_optimizer_that_fails_while_cleaning_up(Runner):
    run, learn = Runner(), tiny()
    opt, calls = learn.opt, []
    def zero_grad():
        calls.append(1)
        if len(calls) > 7: raise OSError('gone')
    learn.opt = SimpleNamespace(step=opt.step, zero_grad=zero_grad)
    with pytest.raises(OSError, match='gone'): run.fit(1, learn)
    assert run.learn is None and run.model is None
    learn.opt = opt
    run.fit(1, learn)

@RUNNERS
def test_a_batch_begins_without_the_last_ones_results(Runner):
    seen = []
    class Look(Callback):
        def begin_batch(self): seen.append((self.run.pred, self.run.loss))
    Runner(Look()).fit(1, tiny())
    assert len(seen) > 6 and set(seen) == {(None, None)}

@RUNNERS
def test_the_same_callback_twice_is_refused(Runner):
    cb = AvgStatsCallback()
    with pytest.raises(ValueError, match='given twice'): Runner([cb, cb])
    run = Runner(cb)
    with pytest.raises(ValueError, match='given twice'): run.add_cbs([cb])
    assert [o.name for o in run.cbs] == ['train_eval', 'avg_stats']

@RUNNERS
@pytest.mark.parametrize('when', ['before', 'during'])
def test_a_callback_that_is_at_work_is_not_taken_away(Runner, when):
    shared = AvgStatsCallback()
    early = Runner(shared) if when == 'before' else None
    class Inner(Callback):
        _order = 5
        def begin_epoch(self):
            with pytest.raises(ValueError, match='at work in the fit of another run'): (early or Runner(shared)).fit(1, tiny())
            Runner(AvgStatsCallback())
    run = Runner([shared, Inner()])
    run.logger = lambda line: None
    run.fit(1, tiny())
    assert shared.run is run and len(shared.history) == 1

@pytest.mark.parametrize('name', ['Cbs', 'CbsCallback', 'Events'])
def test_a_callback_cannot_be_named_like_what_the_host_keeps(name):
    with pytest.raises(ValueError, match='would hide'): nb_04.Runner(type(name, (Callback,), {})())

def test_metrics_of_one_name_are_numbered():
    def topk(pred, yb, k): return (pred.topk(k, 1).indices == yb[:, None]).any(1).float().mean()
    run = nb_04.Runner(AvgStatsCallback([partial(topk, k=1), partial(topk, k=2), partial(topk, k=4)]))
    run.logger = lambda line: None
    run.fit(1, tiny())
    row = run.avg_stats.history[0]
    assert row['valid_topk'] <= row['valid_topk_2'] <= row['valid_topk_3'] == 1.

def test_a_callback_among_the_makers_is_told_where_it_belongs():
    with pytest.raises(TypeError, match='objects go into cbs'): nb_04.Runner(cb_funcs=[AvgStatsCallback(accuracy)])

def test_a_missing_attribute_on_an_array_is_reported_as_itself():
    class Odd(nb_04.Runner):
        @property
        def odd(self): return np.zeros(3).nothing
    cb = Callback()
    Odd(cb)
    with pytest.raises(AttributeError, match="'numpy.ndarray' object has no attribute 'nothing'"): cb.odd

@pytest.mark.parametrize('xb', [['abc'], 'abc', 3, [3.]])
def test_a_batch_of_unknown_size(xb):
    with pytest.raises(TypeError, match="anybody's guess"): AvgStats().accumulate(SimpleNamespace(xb=xb, yb=None, pred=None, loss=torch.tensor(1.)))
