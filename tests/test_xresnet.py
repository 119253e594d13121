"Lesson 11's networks and learner beyond what it shows: any number of stages, the start, schedules, predictions against the model by hand, interpretation against numpy, exports that are broken or hostile."
import functools, json
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import nn
from torch.nn import functional as F
from exp import nb_11
from exp.nb_11 import (BatchTransformXCallback, CenterCrop, CropToBytes, ImageLearner, Interpretation, Learner, MixUp, NoData, PilRandomFlip, RandomResizedCrop, RandomRotate, ResBlock, ResizeFixed, TrainTransformXCallback, XResNet,
                       adam_opt, cnn_learner, create_phases, describe, get_batch, init_cnn, load_learner, make_rgb, model_summary, noop, norm_imagenette, normalize_chan,
                       plot_training, sched_1cycle, set_seed, sgd_opt, to_byte_tensor, to_float_tensor, undescribe, xresnet18, xresnet34, xresnet50, xresnet101, xresnet152)

tiny = functools.partial(XResNet.create, 1, [1, 1])

def on_meta(arch, **kw):
    with torch.device('meta'): return arch(**kw)

def n_params(m): return sum(p.numel() for p in m.parameters())

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Twelve images of three colours, two sizes and modes, in train and val."
    root, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    for part, n in (('train', 4), ('val', 2)):
        for c, colour in enumerate(('red', 'green', 'blue')):
            (root/part/colour).mkdir(parents=True)
            for i in range(n):
                a = rng.integers(0, 60, (40, 50 + 6*i, 3), dtype=np.uint8)
                a[..., c] += 150
                Image.fromarray(a).convert('RGBA' if i == 1 else 'RGB').save(root/part/colour/f'{i}.png')
    return root

def image_data(folder, tfms=None, **kw):
    il = nb_11.ImageList.from_files(folder, tfms=tfms or [make_rgb, ResizeFixed(32), to_byte_tensor])
    sd = nb_11.SplitData.split_by_func(il, functools.partial(nb_11.grandparent_splitter, valid_name='val'))
    return nb_11.label_by_func(sd, nb_11.parent_labeler, proc_y=nb_11.CategoryProcessor()).to_databunch(4, c_in=3, **kw)

@pytest.fixture
def data(folder): return image_data(folder)

@pytest.fixture
def learn(data):
    set_seed(1)
    learn = cnn_learner(tiny, data, F.cross_entropy, adam_opt(), lr=.01, norm=norm_imagenette, progress=False)
    learn.logger = lambda *a: None
    return learn

# the networks

@pytest.mark.parametrize('arch, n', [(xresnet18, 11_228_586), (xresnet34, 21_336_746), (xresnet50, 23_575_466), (xresnet101, 42_567_594), (xresnet152, 58_211_242)])
def test_parameter_counts(arch, n): assert n_params(on_meta(arch, c_out=10)) == n

@settings(max_examples=12)
@given(st.sampled_from([1, 2, 4]), st.lists(st.integers(1, 2), min_size=1, max_size=5), st.integers(1, 5), st.integers(1, 12))
def test_any_number_of_stages(expansion, layers, c_in, c_out):
    model = on_meta(XResNet.create, expansion=expansion, layers=layers, c_in=c_in, c_out=c_out)
    assert model(torch.empty(2, c_in, 64, 64, device='meta')).shape == (2, c_out)
    assert sum(isinstance(m, ResBlock) for m in model.modules()) == sum(layers)

@pytest.mark.parametrize('expansion', [1, 4])
@pytest.mark.parametrize('n', [1, 4, 5])
def test_stages_run_and_learn(expansion, n):
    set_seed(0)
    model, x, y = XResNet.create(expansion, [1]*n, c_out=2), torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 0, 1])
    F.cross_entropy(model(x), y).backward()
    assert all(p.grad is not None for p in model.parameters())

@settings(max_examples=20)
@given(st.sampled_from([1, 4]), st.integers(1, 3), st.integers(3, 12), st.integers(3, 12))
def test_a_block_rounds_sides_up(expansion, stride, h, w):
    out = ResBlock(expansion, 8, 16, stride)(torch.randn(2, 8*expansion, h, w))
    assert out.shape == (2, 16*expansion, -(-h//stride), -(-w//stride))

@pytest.mark.parametrize('expansion', [1, 4])
def test_a_new_network_is_its_shortcuts(expansion):
    "Whatever the convolutions of the blocks are, at first they add nothing."
    set_seed(0)
    model, x = XResNet.create(expansion, [2, 2], c_out=3).eval(), torch.randn(2, 3, 32, 32)
    before = model(x)
    for m in model.modules():
        if isinstance(m, ResBlock): nn.init.normal_(m.convs[0][0].weight)
    assert torch.equal(before, model(x))

def test_only_last_scales_start_at_zero():
    for m in xresnet18().modules():
        if isinstance(m, ResBlock):
            assert [bool((l[1].weight == 0).all()) for l in m.convs] == [False]*(len(m.convs) - 1) + [True]
            assert m.idconv is noop or (m.idconv[1].weight == 1).all()

def test_activations_are_modules_of_their_own():
    relus = [m for m in xresnet34().modules() if isinstance(m, nn.ReLU)]
    assert len(relus) == len({id(m) for m in relus}) == 3 + 2*16

def test_init_cnn_reaches_every_layer():
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Sequential(nn.Linear(400, 300)), nn.BatchNorm2d(5))
    nn.init.zeros_(model[2].weight)
    init_cnn(model)
    assert abs(model[0].weight.std() - (2/27)**.5) < .03 and abs(model[1][0].weight.std() - (2/400)**.5) < .002
    assert (model[0].bias == 0).all() and (model[1][0].bias == 0).all() and (model[2].weight == 0).all()

@pytest.mark.parametrize('kw, message', [(dict(expansion=0, layers=[1]), 'must divide'), (dict(expansion=3, layers=[1]), 'must divide'), (dict(expansion=1, layers=[]), 'each stage'), (dict(expansion=1, layers=[1, 0]), 'each stage'),
                                         (dict(expansion=1, layers=[1.5]), 'each stage')])
def test_impossible_networks(kw, message):
    with pytest.raises(ValueError, match=message): XResNet.create(**kw)

def test_the_wrong_number_of_channels_is_an_error():
    with pytest.raises(RuntimeError): tiny(c_in=1)(torch.randn(2, 3, 32, 32))

# schedules

@given(st.lists(st.floats(0, .25), max_size=4))
def test_phases_sum_to_one(phases):
    res = create_phases(phases)
    assert res[:-1] == phases and abs(sum(res) - 1) < 1e-9 and min(res) >= 0

@pytest.mark.parametrize('phases', [-.1, 1.2, [.5, .6]])
def test_impossible_phases(phases):
    with pytest.raises(ValueError, match='fractions of the training'): create_phases(phases)

@given(st.floats(1e-5, 10), st.floats(.05, .95))
def test_one_cycle(lr, pct):
    lr_s, mom_s = (cb.sched_funcs for cb in sched_1cycle(lr, pct))
    rates, moms = [lr_s(p) for p in np.linspace(0, 1, 50)], [mom_s(p) for p in np.linspace(0, 1, 50)]
    assert max(rates) <= lr*(1 + 1e-9) and min(moms) >= .85 - 1e-9 and np.isclose(rates[-1], lr/1e5) and np.isclose(lr_s(pct), lr)
    top = int(pct*49)
    assert (np.diff(rates[:top + 1]) >= -1e-12).all() and (np.diff(rates[top + 1:]) <= 1e-12).all()

def test_one_cycle_for_groups(data):
    def halves(m): return [list(m[:4].parameters()), list(m[4:].parameters())]
    learn = Learner(tiny(c_out=3), data, F.cross_entropy, adam_opt(), lr=[.1, .2], splitter=halves, cbs=[nb_11.Recorder(), BatchTransformXCallback(to_float_tensor)])
    learn.fit(1, sched_1cycle([1e-3, 1e-2]))
    assert len(learn.recorder.lrs) == 2 and np.allclose(np.array(learn.recorder.lrs[1]), np.array(learn.recorder.lrs[0])*10)

# learners

def test_the_lectures_code_runs(folder):
    data = image_data(folder, c_out=3)
    learn = cnn_learner(tiny, data, nb_11.LabelSmoothingCrossEntropy(), adam_opt(mom=.9, sqr_mom=.99, eps=1e-6, wd=1e-2), norm=norm_imagenette, mixup=.2, xtra_cb=[nb_11.Recorder])
    learn.logger = lambda *a: None
    learn.fit(2, sched_1cycle(1e-2))
    assert len(learn.avg_stats.history) == 2 and learn.recorder.losses and any(isinstance(cb, MixUp) for cb in learn.cbs)

def test_the_lectures_code_runs_as_it_is_written(folder):
    tfms = [make_rgb, RandomResizedCrop(32, scale=(.35, 1.)), PilRandomFlip(), to_byte_tensor]
    il = nb_11.ImageList.from_files(folder, tfms=tfms)
    sd = nb_11.SplitData.split_by_func(il, functools.partial(nb_11.grandparent_splitter, valid_name='val'))
    ll = nb_11.label_by_func(sd, nb_11.parent_labeler, proc_y=nb_11.CategoryProcessor())
    data = ll.to_databunch(4, c_in=3, c_out=10, num_workers=4)
    learn = cnn_learner(xresnet34, data, nb_11.LabelSmoothingCrossEntropy(), adam_opt(), norm=norm_imagenette)
    learn.logger = lambda *a: None
    learn.fit(1, nb_11.sched_1cycle(1e-3))
    assert len(learn.avg_stats.history) == 1 and learn.model[-1].out_features == 10

def test_bytes_become_floats_without_norm(data):
    learn = cnn_learner(tiny, data, F.cross_entropy, sgd_opt, progress=False)
    xb, _ = get_batch(data.train_dl, learn)
    assert xb.is_floating_point() and 0 <= xb.min() and xb.max() <= 1

def test_given_numbers_win(data): assert cnn_learner(tiny, data, F.cross_entropy, sgd_opt, c_out=7, progress=False).model[-1].out_features == 7

def test_unknown_numbers_are_named(folder):
    data = image_data(folder)
    data.c_in = None
    with pytest.raises(ValueError, match="doesn't know its c_in:"): cnn_learner(tiny, data, F.cross_entropy, sgd_opt)

def test_channels_last_trains_the_same(data):
    def losses(**kw):
        set_seed(3)
        learn = cnn_learner(tiny, data, F.cross_entropy, sgd_opt, norm=norm_imagenette, progress=False, xtra_cb=nb_11.Recorder, **kw)
        learn.logger = lambda *a: None
        learn.fit(2)
        return learn, learn.recorder.loss_values()
    (_, usual), (learn, last) = losses(), losses(channels_last=True)
    assert np.allclose(usual, last, atol=1e-3) and learn.model[0][0].weight.is_contiguous(memory_format=torch.channels_last)

def test_compile_keeps_names(learn):
    names = list(learn.model.state_dict())
    learn.model.compile(backend='eager')
    learn.fit(1)
    assert list(learn.model.state_dict()) == names

# predictions

def test_predictions_of_one_and_of_many_agree(learn, folder):
    learn.fit(2)
    files = [str(f) for f in learn.data.valid_ds.x.items]
    probs = learn.predict_probs(files, bs=4)
    for f, p in zip(files, probs): assert torch.allclose(learn.predict(f).probs, p, atol=1e-6)
    logits, _ = learn.get_preds()
    assert torch.allclose(logits.softmax(1), probs, atol=1e-6)

def test_no_image_has_no_prediction(learn): assert learn.predict_probs([]).shape == (0, 3)

@pytest.mark.parametrize('mode', ['L', 'P', 'RGBA', 'LA', 'CMYK', '1', 'I;16'])
def test_any_mode_of_image(learn, mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 45), dtype=np.uint8))
    image = Image.fromarray(np.asarray(image).astype(np.uint16)*256) if mode == 'I;16' else image.convert(mode)
    p = learn.predict(image)
    assert p.label == learn.vocab[p.index] and abs(p.probs.sum() - 1) < 1e-5

def test_predicting_changes_nothing(learn, folder):
    learn.model.train()
    state = {k: v.clone() for k, v in learn.model.state_dict().items()}
    numbers = torch.get_rng_state()
    learn.predict(learn.data.valid_ds.x.items[0])
    assert learn.model.training and torch.equal(numbers, torch.get_rng_state())
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k, v in state.items())

def test_what_is_done_to_training_batches_only_has_no_part_in_predictions(data, tmp_path):
    set_seed(1)
    learn = cnn_learner(tiny, data, F.cross_entropy, sgd_opt, norm=norm_imagenette, progress=False, xtra_cb=[TrainTransformXCallback(RandomRotate(90., p=1.))])
    files = data.valid_ds.x.items
    assert learn.batch_tfms == [norm_imagenette]
    probs = learn.predict_probs(files)
    assert torch.equal(probs, learn.predict_probs(files)) and torch.allclose(probs, learn.interpret().probs, atol=1e-5)
    assert torch.equal(load_learner(learn.export(tmp_path/'m.pth')).predict_probs(files), probs)

def test_modes_are_put_back_after_an_error(learn, tmp_path):
    (tmp_path/'no.png').write_text('no image')
    learn.model.train()
    with pytest.raises(nb_11.DataError, match='no.png'): learn.predict(tmp_path/'no.png')
    assert learn.model.training

def test_a_missing_file_is_named(learn, tmp_path):
    with pytest.raises(Exception, match='gone.png'): learn.predict(tmp_path/'gone.png')

def test_show_results_marks_mistakes(learn):
    learn.model[-1].weight.data.zero_()
    learn.model[-1].bias.data.copy_(torch.tensor([9., 0, 0]))
    axs = learn.show_results(n=6, c=3)
    titles = [ax.title for ax in axs.flat]
    assert sum(t.get_color() == 'black' for t in titles) == 2 and all(t.get_text().startswith(learn.vocab[0]) for t in titles)
    plt.close('all')

def test_plot_training(learn):
    learn.add_cb(nb_11.Recorder())
    learn.fit(2)
    fig = plot_training(learn)
    assert [ax.get_xlabel() for ax in fig.axes] == ['training batch', 'epoch']
    plt.close('all')

# interpretation

@settings(max_examples=25)
@given(st.integers(2, 6), st.integers(1, 40), st.integers(0, 99))
def test_interpretation_against_counting(c, n, seed):
    rng = np.random.default_rng(seed)
    probs, targets = torch.tensor(rng.dirichlet(np.ones(c), n)), torch.tensor(rng.integers(0, c, n))
    i = Interpretation(probs, targets, [f'c{k}' for k in range(c)])
    pred = probs.numpy().argmax(1)
    table = i.confusion()
    assert all(table.loc[f'c{a}', f'c{b}'] == ((targets.numpy() == a) & (pred == b)).sum() for a in range(c) for b in range(c))
    assert np.isclose(i.accuracy, (pred == targets.numpy()).mean())
    assert i.most_confused(c*c).times.sum() == (pred != targets.numpy()).sum()
    top = i.top_losses(n).loss.to_numpy()
    assert (np.diff(top) <= 0).all() and np.allclose(sorted(top), sorted(F.nll_loss(probs.log(), targets, reduction='none').numpy()))

def test_interpretation_of_what_does_not_fit():
    with pytest.raises(ValueError, match='3 targets of 2 categories'): Interpretation(torch.ones(3, 4)/4, torch.zeros(3), ['a', 'b'])

def test_interpret_knows_its_images(learn):
    i = learn.interpret()
    top = i.top_losses(2)
    assert list(top.item) == [learn.data.valid_ds.x.items[k] for k in top.index]
    i.plot_confusion()
    i.plot_top_losses(2)
    plt.close('all')

# exports

def test_an_export_predicts_the_same(learn, tmp_path):
    learn.fit(1)
    loaded = load_learner(learn.export(tmp_path/'a'/'m.pth'))
    files = learn.data.valid_ds.x.items
    assert torch.equal(loaded.predict_probs(files), learn.predict_probs(files)) and loaded.vocab == learn.vocab and loaded.predict(files[0]).label == learn.predict(files[0]).label

def test_an_export_of_an_export(learn, tmp_path):
    first = learn.export(tmp_path/'1.pth')
    second = load_learner(first).export(tmp_path/'2.pth')
    assert torch.equal(load_learner(second).predict_probs(learn.data.valid_ds.x.items), learn.predict_probs(learn.data.valid_ds.x.items))

def test_a_loaded_learner_with_data_validates_and_trains(learn, data, tmp_path):
    learn.fit(1)
    loaded = load_learner(learn.export(tmp_path/'m.pth'), data, opt_func=adam_opt(), lr=.01)
    loaded.logger = lambda *a: None
    assert loaded.validate() == pytest.approx(learn.validate())
    loaded.fit(1)

def test_other_categories_are_refused(learn, tmp_path, data):
    path = learn.export(tmp_path/'m.pth')
    data.train_ds.proc_y.vocab = ['x', 'y', 'z']
    with pytest.raises(ValueError, match='knows the categories'): load_learner(path, data)

def test_other_parts_can_be_made_known(folder, tmp_path):
    class Darker:
        _order = 15
        def __init__(self, by): self.by = by
        def __call__(self, image): return image.point(lambda v: v*self.by)
    def my_arch(c_in, c_out): return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(c_in*4, c_out))
    learn = cnn_learner(my_arch, image_data(folder, tfms=[make_rgb, CenterCrop(24), Darker(.5), to_byte_tensor]), F.cross_entropy, sgd_opt, progress=False)
    with pytest.raises(ValueError, match='not among what a file can describe'): learn.export(tmp_path/'m.pth')
    assert not (tmp_path/'m.pth').exists()
    known = my_arch, Darker
    learn.export(tmp_path/'m.pth', known)
    with pytest.raises(ValueError, match='not known here'): load_learner(tmp_path/'m.pth')
    f = learn.data.valid_ds.x.items[0]
    assert torch.equal(load_learner(tmp_path/'m.pth', known=known).predict(f).probs, learn.predict(f).probs)

def test_a_transform_around_another_is_exported(learn, folder, tmp_path):
    tfms = [make_rgb, CropToBytes(CenterCrop((30, 20), scale=1.2))]
    learn.data = image_data(folder, tfms)
    files = learn.data.valid_ds.x.items
    loaded = load_learner(learn.export(tmp_path/'m.pth'))
    assert torch.equal(loaded.predict_probs(files), learn.predict_probs(files)) and vars(loaded.valid_tfms[1].crop) == vars(tfms[1].crop)
    learn.data.valid_ds.x.tfms = [make_rgb, CropToBytes(nb_11.RandomResizedCrop(20))]
    with pytest.raises(ValueError, match='RandomResizedCrop is not among'): learn.export(tmp_path/'n.pth')

def test_a_changed_model_is_not_exported(learn, tmp_path):
    learn.model[-1] = nn.Linear(128, 8)
    with pytest.raises(ValueError, match='another model than this learner has'): learn.export(tmp_path/'m.pth')
    assert not list(tmp_path.iterdir())

def test_a_learner_without_architecture_is_not_exported(data, tmp_path):
    with pytest.raises(ValueError, match="doesn't know its architecture"): ImageLearner(tiny(c_out=3), data, F.cross_entropy).export(tmp_path/'m.pth')

@pytest.mark.parametrize('share', [0, .01, .5, .99])
def test_a_cut_off_file(learn, tmp_path, share):
    path = learn.export(tmp_path/'m.pth')
    all_of_it = path.read_bytes()
    path.write_bytes(all_of_it[:int(len(all_of_it)*share)])
    with pytest.raises(ValueError, match='m.pth is no export.*cut off'): load_learner(path)

@pytest.mark.parametrize('what', [b'text', dict(a=1), [1], dict(format='image learner, 1'), dict(format='image learner, 1', parts='{', model={}), dict(format='image learner, 1', parts='{}', model={}),
                                  dict(format='image learner, 1', parts='[]', model={})])
def test_other_files(tmp_path, what):
    path = tmp_path/'m.pth'
    path.write_bytes(what) if isinstance(what, bytes) else torch.save(what, path)
    with pytest.raises(ValueError, match='m.pth'): load_learner(path)

def test_a_missing_export(tmp_path):
    with pytest.raises(FileNotFoundError, match='gone.pth'): load_learner(tmp_path/'gone.pth')

def test_a_checkpoint_is_told_apart(learn, tmp_path):
    learn.fit(1)
    learn.save(tmp_path/'m.pth')
    with pytest.raises(ValueError, match='no export'): load_learner(tmp_path/'m.pth')

class Evil:
    def __init__(self, path): self.path = path
    def __reduce__(self): return open, (str(self.path), 'w')

def test_code_in_a_file_is_not_run(tmp_path):
    torch.save(dict(format='image learner, 1', parts=Evil(tmp_path/'ran'), model={}), tmp_path/'m.pth')
    with pytest.raises(ValueError, match='no export'): load_learner(tmp_path/'m.pth')
    assert not (tmp_path/'ran').exists()

@pytest.mark.parametrize('name', ['os.system', 'builtins.eval', 'partial', 'XResNet.__init__', 'ImageLearner', '__import__'])
def test_names_in_a_file_are_only_looked_up(learn, tmp_path, name):
    saved = torch.load(learn.export(tmp_path/'m.pth'), weights_only=True)
    parts = json.loads(saved['parts'])
    parts['arch']['name'] = name
    torch.save(saved | dict(parts=json.dumps(parts)), tmp_path/'m.pth')
    with pytest.raises(ValueError, match='which is not known here'): load_learner(tmp_path/'m.pth')

def test_weights_of_another_shape(learn, tmp_path):
    saved = torch.load(learn.export(tmp_path/'m.pth'), weights_only=True)
    key = next(iter(saved['model']))
    saved['model'][key] = saved['model'][key][:1]
    torch.save(saved, tmp_path/'m.pth')
    with pytest.raises(ValueError, match="m.pth don't fit"): load_learner(tmp_path/'m.pth')

@given(st.integers(1, 500), st.integers(1, 500), st.floats(1, 2))
def test_descriptions_there_and_back(w, h, scale):
    known = {'CenterCrop': CenterCrop, 'normalize_chan': normalize_chan}
    d = json.loads(json.dumps(describe(CenterCrop((w, h), scale), known)))
    assert vars(undescribe(d, known)) == vars(CenterCrop((w, h), scale))

def test_the_same_name_is_not_enough():
    def make_rgb(im): return im
    make_rgb.__qualname__ = 'make_rgb'
    with pytest.raises(ValueError, match='make_rgb is not among'): describe(make_rgb, {'make_rgb': nb_11.make_rgb})

def test_no_data_can_be_asked_for_quietly(): assert getattr(NoData(['a'], []), 'train_dl', None) is None

# summaries

def test_summary_of_a_module_and_of_a_learner(learn, data):
    a, b = model_summary(learn, data), model_summary(learn.model, data)
    assert a.equals(b) and a.parameters.sum() == n_params(learn.model)

def test_summary_prints_modules(learn, data, capsys):
    model_summary(learn, data, find_all=True, print_mod=True)
    assert capsys.readouterr().out.count('Conv2d(') == 3 + 4 + 1
