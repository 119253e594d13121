"Lesson 09b's Learner: what a fit promises, files that are damaged or don't fit, and fits that go on where a killed process stopped."
import copy, math, os, pickle, random, signal, subprocess, sys, time
import pytest
from hypothesis import given, settings, strategies as st
from exp.nb_09b import (AvgStatsCallback, BatchTransformXCallback, Callback, CategoryProcessor, CancelBatchException, CancelEpochException, CancelStepException, CancelTrainException, CudaCallback, DataBunch, Dataset, EarlyStopping, F,
                        LR_Find, Learner, ParamScheduler, Path, Recorder, Runner, SaveCheckpoint, SimpleNamespace, TerminateOnNaN, WorkerLoader, accuracy, adam_opt, check_weights, combine_scheds, conv_layer, cos_1cycle_anneal, get_batch, get_dls,
                        get_learner, make_opt, newest_checkpoint, nn, np, optim, param_getter, partial, pg_dicts, read_checkpoint, save_safely, set_seed, sgd_mom_opt, sgd_opt, torch)

@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    "A test's files needn't survive a power cut."
    monkeypatch.setattr(os, 'fsync', lambda fd: None)

OPTS = dict(sgd=sgd_opt, mom=sgd_mom_opt, adam=adam_opt(), torch_sgd=partial(optim.SGD, momentum=.9), torch_adamw=optim.AdamW, tensor_lr=lambda ps, lr: optim.Adam(ps, lr=torch.tensor(lr), foreach=False))

def make_data(n=40, bs=8, **kw):
    set_seed(7)
    x = torch.randn(n + 10, 10)
    ds = [Dataset(o, o[:, :4].argmax(1)) for o in (x[:n], x[n:])]
    return DataBunch(*get_dls(*ds, bs, WorkerLoader, **kw), 10, 4)

def net(nh=16): return nn.Sequential(nn.Linear(10, nh), nn.BatchNorm1d(nh), nn.ReLU(), nn.Dropout(.2), nn.Linear(nh, 4))

def tiny(*cbs, opt='adam', seed=1, data=None, model=None, **kw):
    data = data or make_data()
    set_seed(seed)
    learn = Learner(model or net(), data, F.cross_entropy, OPTS[opt], **dict(dict(lr=.01), **kw), cbs=[AvgStatsCallback(accuracy), Recorder(), *cbs])
    learn.said = []
    learn.logger = learn.said.append
    return learn

def weights(learn): return torch.cat([o.detach().flatten().double() for o in learn.model.state_dict().values()])

def two_halves(m): return [m[0].parameters(), m[4].parameters()]

class At(Callback):
    "Raises `error` the `n`-th time that `event` comes."
    _order = 5
    def __init__(self, event, error, n=1):
        self.error, self.left = error, n
        setattr(self, event, self.count)
    def count(self):
        self.left -= 1
        if self.left == 0: raise self.error

# the optimizer

@pytest.mark.parametrize('opt', OPTS)
def test_groups_get_their_rates(opt):
    learn = tiny(opt=opt, splitter=two_halves, lr=[0., .1], model=nn.Sequential(nn.Linear(10, 16), nn.Identity(), nn.ReLU(), nn.Identity(), nn.Linear(16, 4)))
    if opt == 'tensor_lr': learn.splitter = lambda m: pg_dicts(two_halves(m))   # a function: nobody can know that it wants dicts
    before = [learn.model[i].weight.detach().clone() for i in (0, 4)]
    learn.fit(1)
    assert torch.equal(learn.model[0].weight, before[0]) and not torch.equal(learn.model[4].weight, before[1])

def test_wrong_numbers_of_rates_and_empty_models_are_refused():
    with pytest.raises(ValueError, match='2 rates for 1 group of'): tiny(lr=[.1, .2]).fit(1)
    with pytest.raises(ValueError, match='1 rates for 2 groups'): make_opt(sgd_opt, two_halves(net()), [.1])
    with pytest.raises(ValueError, match='nothing to train'): tiny(model=nn.Identity()).fit(1)

def test_the_optimizer_is_made_once_and_again_when_asked():
    made = []
    def opt_func(ps, lr):
        made.append(lr)
        return optim.SGD(ps, lr=lr)
    learn = tiny()
    learn.opt_func = opt_func
    assert learn.opt is None
    learn.fit(1); learn.fit(1)
    assert len(made) == 1
    learn.lr = .5
    learn.fit(1, reset_opt=True)
    assert made == [.01, .5]

def test_a_thawed_layer_is_noticed():
    learn = tiny(splitter=lambda m: [p for p in m.parameters() if p.requires_grad])
    learn.model[0].requires_grad_(False)
    learn.fit(1)
    learn.model[0].requires_grad_(True)
    with pytest.raises(RuntimeError, match='replaced or thawed'): learn.fit(1)
    learn.fit(1, reset_opt=True)

# fits

EVENTS = [e for e in Runner.events if 'cancel' not in e]

@pytest.mark.parametrize('error', [ValueError('x'), KeyboardInterrupt()], ids=['error', 'Ctrl-C'])
@pytest.mark.parametrize('event', EVENTS)
def test_a_fault_at_any_event_leaves_a_usable_learner(event, error):
    learn = tiny()
    class Meddler(Callback):
        _order = -50
        def begin_fit(self): self.run.loss_func, self.run.data, self.run.model = partial(F.cross_entropy, label_smoothing=.1), copy.copy(self.run.data), nn.Sequential(self.run.model)
    own = learn.model, learn.data, learn.loss_func
    with pytest.raises(type(error)): learn.fit(2, cbs=[At(event, error), Meddler()])
    assert (learn.model, learn.data, learn.loss_func) == own and learn.learn is None and learn._own is None
    assert [cb.name for cb in learn.cbs] == ['train_eval', 'avg_stats', 'recorder'] and not hasattr(learn, 'at') and not hasattr(learn, 'meddler')
    assert all(p.grad is None for p in learn.model.parameters())
    learn.fit(1)

@pytest.mark.parametrize('error, event', [(CancelStepException, 'after_backward'), (CancelBatchException, 'after_pred'), (CancelEpochException, 'begin_batch'), (CancelTrainException, 'after_step')])
def test_cancelling_works_as_in_the_runner(error, event):
    data, seen = make_data(), []
    class Tracer(Callback):
        _order = -100
        def __init__(self):
            self.seen = []
            for e in Runner.events: setattr(self, e, partial(self.seen.append, e))
    learn = tiny(data=data)
    bag = SimpleNamespace(model=copy.deepcopy(learn.model), loss_func=F.cross_entropy, data=data)
    bag.opt = make_opt(learn.opt_func, param_getter(bag.model), .01)
    for fit in (lambda cbs: learn.fit(2, cbs=cbs), lambda cbs: Runner(cbs).fit(2, bag)):
        tracer = Tracer()
        set_seed(3)
        fit([tracer, At(event, error(), n=3)])
        seen.append(tracer.seen)
    assert seen[0] == seen[1]
    assert all(torch.equal(p, q) for p, q in zip(learn.model.parameters(), bag.model.parameters()))

@pytest.mark.parametrize('bad', [-1, 1.5, '2', None])
def test_bad_numbers_of_epochs_are_refused_and_do_no_harm(bad):
    learn = tiny()
    with pytest.raises(ValueError, match='epochs must be'): learn.fit(bad)
    learn.fit(1)

def test_no_callback_is_added_if_one_is_bad():
    learn = tiny()
    with pytest.raises(TypeError, match='is no Callback'): learn.fit(1, cbs=[LR_Find(), 3])
    with pytest.raises(ValueError, match='given twice'): learn.fit(1, cbs=[learn.recorder])
    assert [cb.name for cb in learn.cbs] == ['train_eval', 'avg_stats', 'recorder']
    learn.fit(1)

def test_callbacks_can_be_removed_also_in_the_middle():
    learn = tiny()
    class Once(Callback):
        def begin_batch(self): self.run.remove_cbs(self)
    learn.fit(1, cbs=(once := Once()))
    assert once.run is None and not hasattr(learn, 'once')
    second = Recorder()
    learn.add_cb(second)
    assert learn.recorder_2 is second
    learn.remove_cbs(learn.recorder)
    assert learn.recorder is second and not hasattr(learn, 'recorder_2')
    with pytest.raises(ValueError, match='no callback of this learner'): learn.remove_cbs([second, once])
    assert learn.recorder is second

def test_a_callback_can_replace_the_loader_of_a_pass():
    learn = tiny()
    class Other(Callback):
        def begin_epoch(self): self.run.dl = [next(iter(self.run.dl))]*3
    learn.fit(2, cbs=Other())
    assert learn.n_iter == 6

def test_without_validation_data_there_is_no_validation():
    data = make_data()
    data.valid_dl = None
    learn = tiny(data=data)
    learn.fit(2)
    assert learn.epochs_done == 2 and set(learn.avg_stats.history[1]) == {'epoch', 'train_loss', 'train_accuracy'}
    with pytest.raises(ValueError, match='no validation loader'): learn.validate()

def test_an_empty_loader_says_so():
    data = make_data()
    data.train_dl = []
    with pytest.raises(ValueError, match='training loader gave no batch in epoch 0'): tiny(data=data).fit(1)

def test_a_fit_keeps_no_batch_alive():
    learn = tiny()
    learn.fit(1)
    assert not {'xb', 'yb', 'pred', 'loss', 'dl', 'learn'} & set(vars(learn))

@pytest.mark.parametrize('copied', [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=['deepcopy', 'pickle'])
def test_copies_of_a_learner_train_on_by_themselves(copied):
    data = make_data()
    data.train_dl = list(data.train_dl)
    learn = tiny(data=data)
    learn.logger = print
    learn.fit(1)
    other = copied(learn)
    set_seed(5); learn.fit(2)
    set_seed(5); other.fit(2)
    assert torch.equal(weights(learn), weights(other)) and learn.recorder is not other.recorder

def test_earlier_callbacks_work_on_it():
    data = make_data()
    nan = tiny(TerminateOnNaN(every=1), data=data, lr=.01)
    nan.loss_func = lambda p, y: F.cross_entropy(p, y)*(math.nan if nan.n_iter == 3 else 1)
    nan.fit(2)
    assert nan.terminate_on_nan.stopped_at == (0, 3) and nan.epochs_done == 0 and torch.isfinite(weights(nan)).all()
    learn = tiny(CudaCallback('cpu'), BatchTransformXCallback(lambda x: x*2), data=data)
    before = weights(learn)
    learn.fit(10, cbs=(finder := LR_Find(30, 1e-4, 1.)))
    assert torch.equal(weights(learn), before) and len(finder.lrs) > 5
    assert torch.equal(get_batch(data.valid_dl, learn)[0], next(iter(data.valid_dl))[0]*2)

class Poison(Callback):
    "Predictions in training batch `n` are multiplied by `value`: gradients and weights are spoilt for good."
    _order = 1
    def __init__(self, n, value=math.nan): self.n, self.value = n, value
    def after_pred(self):
        if self.run.in_train and self.run.n_iter == self.n: self.run.pred = self.run.pred*self.value

@pytest.mark.parametrize('value', [math.nan, math.inf])
@pytest.mark.parametrize('n, seen', [(0, (0, 49)), (48, (0, 49)), (50, (0, 99)), (105, (0, 119)), (119, (0, 119)), (130, (1, 49))])
def test_a_fit_stops_by_itself_when_its_loss_is_not_finite(value, n, seen):
    learn, given = tiny(Poison(n, value), data=make_data(8*120)), [Recorder()]
    learn.fit(5, cbs=given)
    assert learn.stopped_at == seen and learn.said[-1].startswith('stopped: the loss was') and learn.said[-1].endswith('in epoch {}, batch {}'.format(*seen))
    assert learn.epochs_done == seen[0] and len(given) == 1 and learn._guard is None and not any(isinstance(cb, TerminateOnNaN) for cb in learn.cbs)   # nothing is left of the guard

@pytest.mark.parametrize('name', ['Guard', 'NaNGuard', 'Poison', 'Stop', 'Seen'])
def test_the_fits_own_guard_takes_no_name_from_callbacks(name):
    learn = tiny(cb := type(name, (Callback,), {})(), data=make_data(8*60))
    learn.fit(1)
    assert getattr(learn, cb.name) is cb and learn.stopped_at is None

def test_a_guard_of_ones_own_takes_the_place_of_the_fits():
    data, own = make_data(8*120), TerminateOnNaN(every=1)
    learn = tiny(Poison(130), data=data)
    learn.fit(5, cbs=own)
    assert own.stopped_at == learn.stopped_at == (1, 10) and learn.n_iter == 130 and weights(learn).isfinite().all() and len([s for s in learn.said if s.startswith('stopped')]) == 1
    learn = tiny(Poison(130), data=data)
    learn.stop_on_nan = False
    learn.fit(2)
    assert learn.epochs_done == 2 and learn.stopped_at is None and not any(s.startswith('stopped') for s in learn.said)

def test_a_healthy_fit_after_a_stopped_one_is_not_stopped():
    learn = tiny(poison := Poison(3), data=make_data(8*60))
    learn.fit(1)
    assert learn.stopped_at == (0, 49)
    poison.n, learn.model = None, net()
    learn.fit(1, reset_opt=True)
    assert learn.stopped_at is None and learn.epochs_done == 1

def test_validation_that_is_nan_stops_nothing():
    class Spoil(Callback):
        def after_pred(self):
            if not self.run.in_train: self.run.pred = self.run.pred*math.nan
    learn = tiny(Spoil())
    learn.fit(2)
    assert learn.epochs_done == 2 and learn.stopped_at is None

def test_the_learning_rate_finder_may_go_to_infinity():
    learn = tiny(opt='sgd', data=make_data(8*120))
    learn.lr_find(max_iter=110, max_lr=1e20, plot=False)
    assert learn.said == []

def test_get_learner_makes_a_network_for_the_data():
    ds = Dataset(torch.randn(8, 3, 16, 16), torch.arange(8) % 2)
    learn = get_learner([8, 8], DataBunch(*get_dls(ds, ds, 4), 3, 2), .1, conv_layer, cb_funcs=[partial(AvgStatsCallback, accuracy), Recorder], opt_func=sgd_mom_opt)
    learn.logger = lambda s: None
    learn.fit(1)
    assert len(learn.recorder.losses) == 2 and learn.get_preds()[0].shape == (8, 2)

# files

def test_what_was_saved_is_what_is_loaded(tmp_path):
    for opt in [o for o in OPTS]:
        a, b = tiny(opt=opt), tiny(opt=opt, seed=5)
        a.fit(2)
        a.save(tmp_path/'a.pt')
        assert b.load(tmp_path/'a.pt') == 2 and b.n_iter == a.n_iter
        b.fit(2)
        a.load(tmp_path/'a.pt')
        a.fit(2)
        assert torch.equal(weights(a), weights(b)), opt
        assert a.recorder.loss_values().tolist() == b.recorder.loss_values().tolist()

def test_a_learner_can_be_saved_before_any_fit(tmp_path):
    a, b = tiny(), tiny(seed=5)
    b.fit(1)
    a.save(tmp_path/'a.pt')
    assert b.load(tmp_path/'a.pt') == 0 and b.opt is None
    b.fit(1)
    a.load(tmp_path/'a.pt')
    a.fit(1)
    assert torch.equal(weights(a), weights(b))

def test_only_the_model_can_be_loaded(tmp_path):
    a, b = tiny(), tiny(opt='torch_sgd', seed=5)
    a.fit(1)
    b.fit(1)
    a.save(tmp_path/'a.pt')
    opt, state = b.opt, torch.get_rng_state()
    b.load(tmp_path/'a.pt', only_model=True)
    assert torch.equal(weights(a), weights(b)) and b.opt is opt and torch.equal(torch.get_rng_state(), state)

@pytest.mark.parametrize('other', [dict(opt='sgd'), dict(opt='torch_adamw'), dict(splitter=two_halves), dict(model=net(5))], ids=['optimizer', 'make', 'groups', 'model'])
def test_what_does_not_fit_is_refused_and_nothing_changed(tmp_path, other):
    a, b = tiny(), tiny(**other)
    a.fit(1)
    b.fit(1)
    a.save(tmp_path/'a.pt')
    before, opt = weights(b), copy.deepcopy(b.opt.state_dict())
    with pytest.raises(ValueError, match='a.pt'): b.load(tmp_path/'a.pt')
    assert torch.equal(weights(b), before) and str(opt) == str(b.opt.state_dict())
    b.fit(1)

def named(*names, **words):
    "Data whose four categories have these names."
    data = make_data()
    data.train_ds.proc_y = CategoryProcessor(names)
    vars(data).update(words)
    return data

def test_a_model_of_other_categories_is_refused(tmp_path):
    a, b, c, d = (tiny(data=named(*names)) for names in ('abcd', 'abxd', 'abdc', 'abcd'))
    a.fit(1)
    a.save(tmp_path/'a.pt')
    before = weights(b)
    with pytest.raises(ValueError, match='a.pt .*only there: c; only here: x'): b.load(tmp_path/'a.pt')
    with pytest.raises(ValueError, match='another order'): c.load(tmp_path/'a.pt')
    assert torch.equal(weights(b), before) and b.opt is None
    for learn, kw in ((b, dict(only_model=True)), (d, {}), (tiny(), {})):   # the last one's data have no names to compare
        learn.load(tmp_path/'a.pt', **kw)
        assert torch.equal(weights(learn), weights(a))
    with pytest.raises(ValueError, match='only there: c'): tiny(data=named(*'abxd')).fit(2, resume=tmp_path/'a.pt')

def test_a_model_of_other_words_is_refused(tmp_path):
    tiny(data=named(*'abcd', text_vocab=['the', 'cat'])).save(tmp_path/'a.pt')
    with pytest.raises(ValueError, match='only there: cat; only here: dog'): tiny(data=named(*'abcd', text_vocab=['the', 'dog'])).load(tmp_path/'a.pt')

def test_older_files_without_names_can_be_loaded(tmp_path):
    a = tiny(data=named(*'abcd'))
    a.save(tmp_path/'a.pt')
    saved = read_checkpoint(tmp_path/'a.pt')
    assert saved.pop('names') == dict(vocab=[*'abcd'])
    save_safely(saved, tmp_path/'a.pt')
    assert tiny(data=named(*'wxyz')).load(tmp_path/'a.pt') == 0

def test_misfits_are_named():
    with pytest.raises(ValueError) as e: check_weights(net(5), {**net().state_dict(), 'extra': torch.zeros(2)}, 'x.pt')
    assert '0.weight is [5, 10] here and [16, 10] there' in str(e.value) and 'and' in str(e.value) and 'x.pt' in str(e.value)
    with pytest.raises(ValueError, match='more is missing|0.weight is missing'): check_weights(net(), {})

@settings(max_examples=25)
@given(share=st.floats(0, .999))
def test_a_file_cut_off_anywhere_is_named_and_nothing_changes(tmp_path_factory, share):
    folder = tmp_path_factory.getbasetemp()
    learn, whole = tiny(), folder/'whole.pt'
    if not whole.exists():
        learn.fit(1)
        learn.save(whole)
    content, before = whole.read_bytes(), weights(learn)
    (folder/'cut.pt').write_bytes(content[:int(share*len(content))])
    with pytest.raises(ValueError, match=r'cut\.pt'): learn.load(folder/'cut.pt')
    assert torch.equal(weights(learn), before)

def test_other_files_are_refused(tmp_path):
    learn = tiny()
    with pytest.raises(FileNotFoundError): learn.load(tmp_path/'none.pt')
    torch.save({'weights': torch.zeros(3)}, tmp_path/'other.pt')
    with pytest.raises(ValueError, match='no file that Learner.save wrote'): learn.load(tmp_path/'other.pt')
    (tmp_path/'text.pt').write_text('hello')
    with pytest.raises(ValueError, match=r'text\.pt'): learn.load(tmp_path/'text.pt')
    class Evil:
        def __reduce__(self): return os.system, (f'touch {tmp_path}/pwned',)
    torch.save({'kind': 'Learner', 'model': Evil()}, tmp_path/'evil.pt')
    with pytest.raises(ValueError, match=r'evil\.pt'): learn.load(tmp_path/'evil.pt')
    (tmp_path/'evil.pkl').write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r'evil\.pkl'): learn.load(tmp_path/'evil.pkl')
    assert not (tmp_path/'pwned').exists()

def test_what_a_safe_file_cannot_hold_is_named(tmp_path):
    class Odd(Callback):
        keeps = 'thing',
        def begin_fit(self): self.thing = {'f': [1, print]}
    learn = tiny(Odd())
    learn.fit(1)
    with pytest.raises(TypeError, match=r"callbacks\['odd'\]\['thing'\]\['f'\]\[1\] is a builtin_function"): learn.save(tmp_path/'a.pt')
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('fault', ['disk full', 'interrupt', 'rename'])
def test_a_save_that_fails_leaves_the_old_file(tmp_path, fault, monkeypatch):
    learn = tiny()
    learn.fit(1)
    learn.save(tmp_path/'a.pt')
    old = (tmp_path/'a.pt').read_bytes()
    def fail(*args, **kw): raise {'disk full': OSError(28, 'No space left on device'), 'interrupt': KeyboardInterrupt(), 'rename': OSError('no')}[fault]
    where = {'disk full': ('torch.save', fail), 'interrupt': ('os.fsync', fail), 'rename': ('os.replace', fail)}[fault]
    learn.fit(1)
    monkeypatch.setattr(*where)
    with pytest.raises((OSError, KeyboardInterrupt)): learn.save(tmp_path/'a.pt')
    assert [p.name for p in tmp_path.iterdir()] == ['a.pt'] and (tmp_path/'a.pt').read_bytes() == old
    monkeypatch.undo()
    assert tiny().load(tmp_path/'a.pt') == 1

def test_numpys_numbers_do_not_spoil_a_file(tmp_path):
    for opt in ('adam', 'torch_adamw'):
        learn = tiny(opt=opt, lr=np.float64(.01))
        learn.fit(1)
        learn.save(tmp_path/'a.pt')
        assert tiny(opt=opt).load(tmp_path/'a.pt') == 1

def test_callbacks_that_wrap_the_model_do_not_get_into_the_file(tmp_path):
    class Wrap(Callback):
        _order = -50
        def begin_fit(self): self.run.model = nn.Sequential(self.run.model)
    learn = tiny()
    learn.fit(2, cbs=[Wrap(), SaveCheckpoint(tmp_path)])
    assert read_checkpoint(tmp_path/'epoch_0002.pt')['model'].keys() == learn.model.state_dict().keys()
    again = tiny(seed=4)
    again.fit(3, cbs=[Wrap(), SaveCheckpoint(tmp_path)], resume=True)
    assert again.n_iter == 15

# checkpoints and going on

def sched(): return ParamScheduler('lr', combine_scheds([.3, .7], cos_1cycle_anneal(.001, .02, .0001)))
def to_resume(folder, seed=1, opt='adam', data=None, **kw): return tiny(sched(), EarlyStopping(patience=20), SaveCheckpoint(folder, **kw), opt=opt, seed=seed, data=data)

@pytest.mark.parametrize('event', ['after_step', 'begin_validate', 'after_epoch', 'begin_epoch'])
@pytest.mark.parametrize('opt', OPTS)
def test_a_resumed_fit_is_the_uninterrupted_one(tmp_path, opt, event):
    whole = to_resume(tmp_path/'whole', opt=opt)
    whole.fit(5)
    cut = to_resume(tmp_path/'cut', opt=opt)
    with pytest.raises(ZeroDivisionError): cut.fit(5, cbs=At(event, ZeroDivisionError(), n=13 if event == 'after_step' else 3))
    random.seed(99)
    resumed = to_resume(tmp_path/'cut', seed=77, opt=opt)
    resumed.fit(5, resume=True)
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.recorder.loss_values().tolist() == whole.recorder.loss_values().tolist() and resumed.recorder.lrs == whole.recorder.lrs
    assert resumed.avg_stats.history == whole.avg_stats.history and (resumed.n_iter, resumed.n_epochs) == (whole.n_iter, whole.n_epochs)
    assert (resumed.early_stopping.best, resumed.early_stopping.waited) == (whole.early_stopping.best, whole.early_stopping.waited)

@pytest.mark.parametrize('kw', [dict(generator=True), dict(inner=True), dict(drop_last=True), dict(num_workers=1), dict(num_workers=2, persistent_workers=True)], ids=str)
def test_the_order_of_the_batches_is_resumed(tmp_path, kw):
    def data():
        g = torch.Generator().manual_seed(3)
        if 'inner' not in kw: return make_data(**{**kw, **({'generator': g} if 'generator' in kw else {})})
        d = make_data()
        d.train_dl = torch.utils.data.DataLoader(d.train_ds, batch_size=None, sampler=torch.utils.data.BatchSampler(torch.utils.data.RandomSampler(d.train_ds, generator=g), 8, False))   # a sampler in a sampler
        return d
    whole = to_resume(tmp_path/'whole', data=data())
    whole.fit(3)
    cut = to_resume(tmp_path/'cut', data=data())
    with pytest.raises(ZeroDivisionError): cut.fit(3, cbs=At('after_step', ZeroDivisionError(), n=11))
    resumed = to_resume(tmp_path/'cut', seed=77, data=data())
    torch.manual_seed(99)
    resumed.fit(3, resume=True)
    assert resumed.recorder.loss_values().tolist() == whole.recorder.loss_values().tolist()
    assert not any('workers start anew' in s for s in resumed.said)

class Noisy(Dataset):
    "Items with noise that is drawn as they are read, by three sources of random numbers."
    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return x + torch.randn(10)*.1 + random.random() + float(np.random.rand()), y

@pytest.mark.parametrize('kw, exact', [(dict(num_workers=0), True), (dict(num_workers=2), True), (dict(num_workers=2, persistent_workers=True), True), (dict(num_workers=2, persistent_workers=True, loader=torch.utils.data.DataLoader), False)], ids=str)
def test_what_transforms_draw_is_resumed(tmp_path, kw, exact):
    kw = dict(kw)
    loader = kw.pop('loader', WorkerLoader)
    def data():
        set_seed(7)
        x = torch.randn(50, 10)
        return DataBunch(*get_dls(*(Noisy(o, o[:, :4].argmax(1)) for o in (x[:40], x[40:])), 8, loader, **kw), 10, 4)
    whole = to_resume(tmp_path/'whole', data=data())
    whole.fit(3)
    with pytest.raises(ZeroDivisionError): to_resume(tmp_path/'cut', data=data()).fit(3, cbs=At('after_step', ZeroDivisionError(), n=11))
    resumed = to_resume(tmp_path/'cut', seed=77, data=data())
    torch.manual_seed(99)
    resumed.fit(3, resume=True)
    assert (resumed.recorder.loss_values().tolist() == whole.recorder.loss_values().tolist()) == exact
    assert any('workers start anew' in s for s in resumed.said) != exact

def test_a_finished_fit_has_nothing_to_go_on_with(tmp_path):
    learn = to_resume(tmp_path)
    learn.fit(2)
    before = weights(learn)
    again = to_resume(tmp_path, seed=4)
    again.fit(2, resume=True)
    assert torch.equal(weights(again), before) and len(again.avg_stats.history) == 2
    with pytest.raises(ValueError, match='2 epochs behind it'): again.fit(1, resume=True)
    again.fit(3, resume=True)
    assert any('fit of 2 epochs; in one of 3' in s for s in again.said) and len(again.avg_stats.history) == 3

def test_resume_needs_something_to_go_on_from(tmp_path):
    learn = tiny()
    with pytest.raises(ValueError, match='SaveCheckpoint'): learn.fit(1, resume=True)
    for path in (tmp_path, tmp_path/'none.pt'):
        with pytest.raises(FileNotFoundError, match='nothing to resume from'): learn.fit(1, resume=path)
    learn.fit(1, cbs=SaveCheckpoint(tmp_path/'new'), resume=True)
    tiny().fit(2, resume=tmp_path/'new')
    tiny().fit(2, resume=tmp_path/'new'/'epoch_0001.pt')

def test_a_damaged_checkpoint_stops_before_anything_happens(tmp_path):
    learn = to_resume(tmp_path)
    learn.fit(1)
    (tmp_path/'epoch_0001.pt').write_bytes(b'PK\x03\x04')
    before = weights(learn)
    with pytest.raises(ValueError, match=r'epoch_0001\.pt'): learn.fit(2, resume=True)
    assert torch.equal(weights(learn), before)
    learn.fit(1)

def test_before_a_damaged_checkpoint_there_is_another(tmp_path):
    learn, said = to_resume(tmp_path), []
    learn.fit(4)
    newest, before = tmp_path/'epoch_0004.pt', tmp_path/'epoch_0003.pt'
    newest.write_bytes(newest.read_bytes()[:1000])
    again = to_resume(tmp_path)
    again.logger = said.append
    again.fit(4, resume=True)
    assert torch.equal(weights(again), weights(learn)) and 'epoch_0004.pt' in said[0] and said[0].endswith('going on from epoch_0003.pt')
    assert read_checkpoint(newest)['counts']['epochs_done'] == 4
    for p in (newest, before): p.write_bytes(b'')
    with pytest.raises(ValueError, match='epoch_0004'): to_resume(tmp_path).fit(4, resume=tmp_path)

@pytest.mark.parametrize('every, keep, files', [(1, 2, [4, 5]), (2, None, [2, 4, 5]), (3, 1, [5]), (10, 5, [5])])
def test_which_files_are_kept(tmp_path, every, keep, files):
    learn = tiny(SaveCheckpoint(tmp_path, every=every, keep=keep))
    learn.fit(5)
    assert sorted(int(p.stem[-4:]) for p in tmp_path.iterdir()) == files
    assert newest_checkpoint(tmp_path).stem == 'epoch_0005'

class Scripted(Callback):
    "Losses of the validation as given."
    _order = 5
    def __init__(self, values): self.values = values
    def after_epoch(self): self.run.avg_stats.history[-1]['valid_loss'] = self.values[self.run.epoch]

@pytest.mark.parametrize('every, files', [(1, [3, 4]), (3, [3, 4]), (10, [4])])
def test_the_epoch_in_which_early_stopping_ends_the_fit_is_saved(tmp_path, every, files):
    class StopAfter(Callback):
        _order = 100
        def after_epoch(self):
            if self.run.epoch == 3: raise CancelTrainException()
    saver = SaveCheckpoint(tmp_path, every=every, metric='valid_loss')
    learn = tiny(Scripted([3., 2., 4., 1.]), StopAfter(), saver)
    learn.fit(9)
    assert sorted(int(p.stem[-4:]) for p in tmp_path.glob('epoch*')) == files
    assert read_checkpoint(tmp_path/'best.pt')['counts']['epochs_done'] == 4 and saver.best_epoch == 3

def test_a_fit_that_is_cancelled_in_an_epoch_saves_nothing_of_it(tmp_path):
    tiny(SaveCheckpoint(tmp_path), At('after_step', CancelTrainException(), n=11)).fit(5)
    assert [p.stem for p in sorted(tmp_path.iterdir())] == ['epoch_0001', 'epoch_0002']

def test_an_epoch_that_ended_in_nan_is_not_saved(tmp_path):
    class Spoil(Callback):
        def after_pred(self):
            if self.run.epoch == 2: self.run.pred = self.run.pred*math.nan
    learn = tiny(Spoil(), SaveCheckpoint(tmp_path), TerminateOnNaN(every=100))
    learn.data.valid_dl = None   # so that the guard looks at the end of the epoch
    learn.fit(5)
    assert learn.terminate_on_nan.stopped_at[0] == 2 and [p.stem for p in sorted(tmp_path.iterdir())] == ['epoch_0001', 'epoch_0002']

def test_a_second_training_in_the_same_folder_is_announced(tmp_path):
    tiny(SaveCheckpoint(tmp_path)).fit(2)
    learn = tiny(SaveCheckpoint(tmp_path))
    learn.fit(4, resume=True)
    assert not any('another training' in s for s in learn.said)
    learn.fit(1)
    assert sum('another training, which this one replaces' in s for s in learn.said) == 1

def test_the_best_epoch_is_kept_over_a_resume(tmp_path):
    values = [3., 1., math.nan, 2., .5]
    saver = SaveCheckpoint(tmp_path, metric='valid_loss')
    tiny(Scripted(values), saver).fit(4)
    assert (saver.best, saver.best_epoch) == (1., 1) and read_checkpoint(tmp_path/'best.pt')['counts']['epochs_done'] == 2
    again = SaveCheckpoint(tmp_path, metric='valid_loss')
    tiny(Scripted([9.]*4 + [1.5]), again).fit(5, resume=tmp_path)
    assert (again.best, again.best_epoch) == (1., 1) and read_checkpoint(tmp_path/'best.pt')['counts']['epochs_done'] == 2

def test_bad_settings_of_a_checkpoint_are_refused(tmp_path):
    for kw in (dict(every=0), dict(keep=0)):
        with pytest.raises(ValueError, match='1 or more'): SaveCheckpoint(tmp_path, **kw)
    with pytest.raises(ValueError, match='say which is better'): SaveCheckpoint(tmp_path, metric='valid_accuracy')
    with pytest.raises(ValueError, match="no 'valid_f1'.*valid_accuracy"): tiny(SaveCheckpoint(tmp_path, metric='valid_f1', mode='max')).fit(1)

SCRIPT = '''
import os, signal, sys
sys.path.insert(0, {root!r})
from tests.test_learner import *
class Kill(Callback):
    def after_step(self):
        if self.epoch == 2 and self.iter == 3: os.kill(os.getpid(), signal.SIGKILL)
torch.set_num_threads(1)
learn = to_resume(Path({folder!r}), seed=int(sys.argv[2]), data=make_data(n=80))
learn.fit(4, cbs=[Kill()] if sys.argv[1] == 'kill' else [], resume=True)
torch.save([weights(learn), learn.recorder.loss_values().tolist()], {out!r})
'''

@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='needs SIGKILL')
def test_a_killed_process_is_resumed_by_another(tmp_path, root):
    def run(folder, how, seed):
        out = tmp_path/f'{folder}.out'
        code = SCRIPT.format(root=str(root), folder=str(tmp_path/folder), out=str(out))
        done = subprocess.run([sys.executable, '-c', code, how, str(seed)], cwd=root, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(root)})
        return done, out
    done, _ = run('cut', 'kill', 1)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert newest_checkpoint(tmp_path/'cut').stem == 'epoch_0002'
    done, resumed = run('cut', 'go on', 1234)
    assert done.returncode == 0, done.stderr
    done, whole = run('whole', 'go on', 1)
    assert done.returncode == 0, done.stderr
    (w, losses), (w2, losses2) = torch.load(resumed), torch.load(whole)
    assert torch.equal(w, w2) and losses == losses2

def test_a_process_killed_while_saving_leaves_the_older_file(tmp_path, root):
    code = f'''
import os, signal, torch
from exp.nb_09b import save_safely
save_safely({{'kind': 'Learner', 'n': 1}}, {str(tmp_path/'a.pt')!r})
def die(fd): os.kill(os.getpid(), signal.SIGKILL)
os.fsync = die
save_safely({{'kind': 'Learner', 'n': 2}}, {str(tmp_path/'a.pt')!r})
'''
    done = subprocess.run([sys.executable, '-c', code], cwd=root, env={**os.environ, 'PYTHONPATH': str(root)})
    assert done.returncode == -signal.SIGKILL
    assert read_checkpoint(tmp_path/'a.pt')['n'] == 1 and len(list(tmp_path.iterdir())) == 2
    save_safely({'kind': 'Learner', 'n': 3}, tmp_path/'a.pt')
    assert read_checkpoint(tmp_path/'a.pt')['n'] == 3 and len(list(tmp_path.iterdir())) == 1

# without training

def everything(learn):
    return [weights(learn), learn.opt and str(learn.opt.state_dict()), [m.training for m in learn.model.modules()], torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), learn.avg_stats.history,
            [float(o) for o in learn.recorder.losses], {k: v for k, v in vars(learn).items() if k in ('n_iter', 'n_epochs', 'epoch', 'epochs', 'epochs_done', 'in_train')}, [cb.run is learn for cb in learn.cbs]]

def same(a, b): return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True))

@pytest.mark.parametrize('trial', [lambda l: l.validate(), lambda l: l.validate(l.data.train_dl), lambda l: l.get_preds(l.data.train_dl, with_input=True), lambda l: l.lr_find(20, 1e-4, 1., plot=False)],
                         ids=['validate', 'validate train', 'get_preds', 'lr_find'])
@pytest.mark.parametrize('opt', ['adam', 'torch_adamw'])
def test_trials_leave_no_trace(tmp_path, trial, opt):
    class Doubles(Callback):
        def begin_fit(self): self.seen = 0
        def begin_batch(self):
            self.seen += 1
            self.run.xb = self.run.xb*2
    learn = tiny(Doubles(), SaveCheckpoint(tmp_path), sched(), EarlyStopping(patience=1), opt=opt)
    learn.fit(3)
    before, seen, files = everything(learn), learn.doubles.seen, {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    learn.said.clear()
    trial(learn)
    assert same(everything(learn), before) and learn.doubles.seen == seen and {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == files and not learn.said
    fault = At('after_pred', ZeroDivisionError())
    learn.add_cb(fault)
    with pytest.raises(ZeroDivisionError): trial(learn)
    learn.remove_cbs(fault)
    assert same(everything(learn), before)

def test_lists_of_callbacks_do_not_grow_in_trials():
    class Notes(Callback):
        def __init__(self): self.seen, self.names = [], {}
        def after_batch(self):
            self.seen.append(self.run.n_iter)
            self.names[len(self.names)] = 1
    notes = Notes()
    learn = tiny(notes)
    seen, names = notes.seen, notes.names
    learn.validate(), learn.get_preds(), learn.lr_find(15, 1e-4, .1, plot=False)
    assert notes.seen is seen and notes.names is names and not seen and not names

def test_trials_before_any_fit_make_no_optimizer():
    learn = tiny()
    learn.validate(), learn.get_preds(), learn.lr_find(15, 1e-4, .1, plot=False)
    assert learn.opt is None and learn.model.training

def test_predictions_are_in_the_loaders_order_and_see_the_transforms():
    learn = tiny(BatchTransformXCallback(lambda x: x + 1))
    x, preds, targets = learn.get_preds(with_input=True)
    assert torch.equal(x, learn.data.valid_ds.x + 1) and torch.equal(targets, learn.data.valid_ds.y)
    learn.model.eval()
    assert torch.allclose(preds, learn.model(x), atol=1e-6) and not preds.requires_grad
    measured = learn.validate()
    assert measured['loss'] == pytest.approx(F.cross_entropy(preds, targets).item(), rel=1e-5) and measured['accuracy'] == pytest.approx(accuracy(preds, targets).item())

def test_trials_inside_a_fit_are_refused():
    class Peek(Callback):
        def after_epoch(self): self.run.get_preds()
    learn = tiny()
    with pytest.raises(RuntimeError, match="can't be tried out"): learn.fit(1, cbs=Peek())
    learn.fit(1)
