"The command `python -m exp.train_imagenette`: folders of any shape, mistakes in one line, runs that repeat and resume exactly."
import functools, json, os, re, shutil, subprocess, sys
import matplotlib
matplotlib.use('Agg')
import numpy as np
import pytest, torch
from PIL import Image
from exp import train_imagenette as ti
from exp.nb_11 import AmpCallback, Callback, load_learner

def make_images(root, classes=('cat', 'dog'), n=6, seed=0):
    rng = np.random.default_rng(seed)
    for c, name in enumerate(classes):
        (root/name).mkdir(parents=True)
        for i in range(n):
            a = rng.integers(0, 90, (24, 30, 3), dtype=np.uint8)
            a[..., c % 3] += 120
            Image.fromarray(a).save(root/name/f'{i}.png')
    return root

@pytest.fixture
def images(tmp_path): return make_images(tmp_path/'images')

@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    "So that a run takes a second."
    monkeypatch.setitem(ti._archs, 'xresnet18', functools.partial(ti.XResNet.create, 1, [1]))

def argv(images, out, *more, epochs=2): return [str(o) for o in ('--data', images, '--arch', 'xresnet18', '--size', 16, '--bs', 4, '--epochs', epochs, '--workers', 0, '--out', out, *more)]

def results(out): return json.loads((out/'results.json').read_text())

def without_times(history): return [{k: v for k, v in h.items() if k != 'time'} for h in history]

def error_of(args, capsys):
    "The one line that a mistake is answered with."
    try: status = ti.train_main([str(a) for a in args])
    except SystemExit as e: status = e.code
    err = capsys.readouterr().err
    assert status == 2 and err.count('\n') == 1, (status, err)
    return err

class Stop(Callback):
    "A crash in an epoch."
    def __init__(self, epoch): self.epoch = epoch
    def begin_batch(self):
        if self.run.epoch == self.epoch: raise KeyboardInterrupt

def cut_off(args, monkeypatch, epoch=1):
    with monkeypatch.context() as m:
        m.setattr(ti, 'sched_1cycle', lambda *args, f=ti.sched_1cycle: [*f(*args), Stop(epoch)])
        assert ti.train_main(args) == 130

# runs

def test_all_files_are_written(images, tmp_path):
    out = tmp_path/'run'
    assert ti.train_main(argv(images, out)) == 0
    assert {o.name for o in out.iterdir()} == {'checkpoints', 'curves.png', 'log.csv', 'model.pth', 'results.json', 'settings.json'}
    r = results(out)
    assert r['accuracy'] == r['history'][-1]['valid_accuracy'] and len(r['history']) == 2 and r['data']['categories'] == ['cat', 'dog'] and r['settings']['bs'] == 4
    log = (out/'log.csv').read_text().splitlines()
    assert len(log) == 3 and log[0].startswith('epoch,train_loss')
    assert Image.open(out/'curves.png').size[0] > 500

def test_folders_train_and_val(tmp_path):
    for part, n in (('train', 6), ('val', 3)): make_images(tmp_path/'d'/part, n=n)
    ti.train_main(argv(tmp_path/'d', tmp_path/'run', epochs=1))
    assert {k: results(tmp_path/'run')['data'][k] for k in ('train', 'valid')} == dict(train=12, valid=6)

@pytest.mark.parametrize('name', ['valid', 'validation'])
def test_other_names_will_do(tmp_path, name):
    for part in ('train', name): make_images(tmp_path/'d'/part, n=3)
    ti.train_main(argv(tmp_path/'d', tmp_path/'run', epochs=1))
    assert results(tmp_path/'run')['data']['valid'] == 6

def test_a_folder_without_val_is_split_by_the_seed(images):
    def split(*more): return [p.name for p in ti.image_data(ti.train_parser().parse_args(argv(images, 'x', *more))).valid_ds.x.items]
    assert split() == split() != split('--seed', 1)
    assert len(split('--valid', .5)) == 6

def data_of(folder, *more): return ti.image_data(ti.train_parser().parse_args(argv(folder, 'x', *more)))

def test_folders_inside_a_class_belong_to_it(tmp_path):
    images = make_images(tmp_path/'d')
    make_images(images/'cat'/'more', classes=['may'])
    data = data_of(images)
    assert data.vocab == ['cat', 'dog'] and len(data.train_ds) + len(data.valid_ds) == 18
    for part in ('train', 'val'): make_images(tmp_path/'e'/part)
    make_images(tmp_path/'e'/'train'/'dog', classes=['cat'])
    data = data_of(tmp_path/'e')
    assert data.vocab == ['cat', 'dog'] and data.train_ds.y.items.count(1) == 12

@pytest.mark.parametrize('parts', [('.',), ('train', 'val')])
def test_an_image_in_no_class_is_refused_by_name(tmp_path, capsys, parts):
    for part in parts: make_images(tmp_path/'d'/part)
    Image.new('RGB', (20, 20)).save(tmp_path/'d'/parts[0]/'cover.png')
    assert 'cover.png is in no folder of a class' in error_of(argv(tmp_path/'d', tmp_path/'run'), capsys)

def test_images_for_testing_are_left_alone(tmp_path, capsys):
    for part in ('train', 'test'): make_images(tmp_path/'d'/part)
    data = data_of(tmp_path/'d', '--valid', .25)
    assert data.vocab == ['cat', 'dog'] and (len(data.train_ds), len(data.valid_ds)) == (9, 3)
    assert {o.parent.parent.name for ds in (data.train_ds, data.valid_ds) for o in ds.x.items} == {'train'}
    assert '25% of the images in train' in (said := capsys.readouterr().out) and 'test is left alone' in said

def test_a_class_may_be_called_train(tmp_path, capsys):
    assert data_of(make_images(tmp_path/'d', classes=['plane', 'train'])).vocab == ['plane', 'train'] and not capsys.readouterr().out

def test_the_exported_model_predicts(images, tmp_path):
    ti.train_main(argv(images, tmp_path/'run'))
    loaded = load_learner(tmp_path/'run'/'model.pth')
    probs = loaded.predict(images/'cat'/'0.png').probs
    assert loaded.vocab == ['cat', 'dog'] and probs.shape == (2,) and loaded.valid_tfms[1].crop.size == (16, 16)

@pytest.mark.parametrize('more', [('--mixup', .3), ('--amp',), ('--amp', 'float16'), ('--no-channels-last',), ('--smooth', 0)])
def test_options(images, tmp_path, more):
    assert ti.train_main(argv(images, tmp_path/'run', *more, epochs=1)) == 0

@pytest.mark.parametrize('more, amp, dtypes', [([], False, []), (['--amp'], True, [None]), (['--amp', 'bfloat16'], 'bfloat16', [torch.bfloat16]), (['--amp', 'float16', '--seed', '1'], 'float16', [torch.float16])])
def test_formats_of_mixed_precision(images, more, amp, dtypes):
    args = ti.train_parser().parse_args(argv(images, 'x', *more))
    learn = ti.image_learner(args, ti.image_data(args))
    assert args.amp == amp and [cb.dtype for cb in learn.cbs if isinstance(cb, AmpCallback)] == dtypes

def test_options_together_on_the_default_images(tmp_path, monkeypatch):
    monkeypatch.setenv('EXP_DATA', 'sample')
    monkeypatch.delenv('EXP_MIRROR', raising=False)
    args = ['--arch', 'xresnet18', '--size', 16, '--bs', 64, '--epochs', 1, '--workers', 0, '--mixup', .2, '--amp', '--seed', 42, '--out', tmp_path/'run']
    assert ti.train_main([str(a) for a in args]) == 0
    r = results(tmp_path/'run')
    assert len(r['data']['categories']) == 10 and (r['settings']['mixup'], r['settings']['amp'], r['settings']['seed']) == (.2, True, 42)

@pytest.mark.skipif(not shutil.which('g++') and not shutil.which('clang++'), reason='no compiler here')
def test_compiled(images, tmp_path):
    assert ti.train_main(argv(images, tmp_path/'run', '--compile', epochs=1)) == 0
    assert load_learner(tmp_path/'run'/'model.pth').vocab == ['cat', 'dog']

@pytest.mark.parametrize('more, order', [((), torch.channels_last), (('--no-channels-last',), torch.contiguous_format)])
def test_batches_lie_in_memory_as_asked(images, more, order):
    xb, _ = next(iter(data_of(images, *more).train_dl))
    assert xb.shape == (4, 3, 16, 16) and xb.dtype == torch.uint8 and xb.is_contiguous(memory_format=order)

def test_a_last_batch_of_one_image_is_left_out(tmp_path):
    for part, n in (('train', 5), ('val', 1)): make_images(tmp_path/'d'/part, n=n)
    Image.new('RGB', (20, 20)).save(tmp_path/'d'/'train'/'cat'/'more.png')   # 11 = 2*5 + 1
    data = ti.image_data(ti.train_parser().parse_args(argv(tmp_path/'d', 'x') + ['--bs', '5']))
    assert len(data.train_dl) == 2

# the same again

def test_a_seed_repeats_a_run(images, tmp_path):
    for name, seed in dict(a=1, b=1, c=2).items(): ti.train_main(argv(images, tmp_path/name, '--seed', seed))
    a, b, c = (without_times(results(tmp_path/name)['history']) for name in 'abc')
    assert a == b != c

@pytest.mark.parametrize('more', [(), ('--workers', 1), ('--mixup', .4)])
def test_a_resumed_run_is_as_if_uninterrupted(images, tmp_path, monkeypatch, more):
    whole, cut = tmp_path/'whole', tmp_path/'cut'
    assert ti.train_main(argv(images, whole, *more, epochs=3)) == 0
    cut_off(argv(images, cut, *more, epochs=3), monkeypatch)
    assert not (cut/'results.json').exists()
    assert ti.train_main(argv(images, cut, *more, '--resume', epochs=3)) == 0
    assert without_times(results(whole)['history']) == without_times(results(cut)['history'])
    a, b = (torch.load(o/'model.pth', weights_only=True)['model'] for o in (whole, cut))
    assert all(torch.equal(v, b[k]) for k, v in a.items())
    assert [line.split(',')[0] for line in (cut/'log.csv').read_text().splitlines()] == ['epoch', '0', '1', '2']

def test_a_finished_run_stays_as_it_is(images, tmp_path, monkeypatch, capsys):
    ti.train_main(argv(images, tmp_path/'run'))
    before, said = {p: p.stat().st_mtime_ns for p in (tmp_path/'run').rglob('*')}, capsys.readouterr().out.splitlines()[-1]
    assert ti.train_main(argv(images, tmp_path/'run', '--resume')) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path/'run').rglob('*')} == before and capsys.readouterr().out.strip() == said

def test_results_that_were_not_written_come_with_a_resume(images, tmp_path):
    ti.train_main(argv(images, tmp_path/'run'))
    before = results(tmp_path/'run')
    (tmp_path/'run'/'results.json').unlink()
    assert ti.train_main(argv(images, tmp_path/'run', '--resume')) == 0
    assert results(tmp_path/'run') == before | dict(settings=before['settings'] | dict(resume=True))

def test_seconds_count_all_epochs_of_a_resumed_run(images, tmp_path, monkeypatch):
    cut_off(argv(images, tmp_path/'run'), monkeypatch)
    ti.train_main(argv(images, tmp_path/'run', '--resume'))
    r = results(tmp_path/'run')
    assert len(r['history']) == 2 and abs(r['seconds'] - sum(h['time'] for h in r['history'])) < .06

def test_images_are_looked_at_once(images, tmp_path, monkeypatch):
    looks = []
    monkeypatch.setattr(ti, 'verify_images', lambda *args, f=ti.verify_images: looks.append(1) or f(*args))
    cut_off(argv(images, tmp_path/'run'), monkeypatch)
    ti.train_main(argv(images, tmp_path/'run', '--resume'))
    assert looks == [1]

def test_resume_without_a_run_starts_one(images, tmp_path):
    assert ti.train_main(argv(images, tmp_path/'run', '--resume', epochs=1)) == 0

def test_a_damaged_checkpoint_is_named(images, tmp_path, monkeypatch, capsys):
    cut_off(argv(images, tmp_path/'run'), monkeypatch)
    file = next((tmp_path/'run'/'checkpoints').iterdir())
    file.write_bytes(file.read_bytes()[:500])
    capsys.readouterr()
    assert file.name in error_of(argv(images, tmp_path/'run', '--resume'), capsys)

def test_before_a_damaged_checkpoint_there_is_another(images, tmp_path, monkeypatch, capsys):
    whole, cut = tmp_path/'whole', tmp_path/'cut'
    ti.train_main(argv(images, whole, epochs=3))
    cut_off(argv(images, cut, epochs=3), monkeypatch, epoch=2)
    newest = cut/'checkpoints'/'epoch_0002.pt'
    newest.write_bytes(newest.read_bytes()[:500])
    assert ti.train_main(argv(images, cut, '--resume', epochs=3)) == 0
    assert without_times(results(whole)['history']) == without_times(results(cut)['history']) and 'going on from epoch_0001.pt' in capsys.readouterr().out

@pytest.mark.parametrize('what', ['workers', 'processes'])
def test_what_may_change_is_said_and_the_rest_refused(images, tmp_path, monkeypatch, capsys, what):
    cut_off(argv(images, tmp_path/'run'), monkeypatch)
    capsys.readouterr()
    if what == 'workers':
        assert ti.train_main(argv(images, tmp_path/'run', '--resume', '--workers', 1)) == 0
        assert '--workers was 0, not 1: what comes is not' in capsys.readouterr().out
    else:
        monkeypatch.setenv('WORLD_SIZE', '2')
        assert 'the number of processes was 1, not 2' in error_of(argv(images, tmp_path/'run', '--resume'), capsys)

# losses that aren't finite

def test_a_loss_that_is_nan_ends_the_run(images, tmp_path, capsys):
    err = error_of(argv(images, tmp_path/'run', '--lr', 1e30, epochs=5), capsys)
    assert re.search(r'epoch \d, batch \d.* --lr below 1e\+30', err) and not (tmp_path/'run'/'results.json').exists()

def test_results_have_null_for_what_is_not_finite(images, tmp_path, monkeypatch):
    class Spoil(Callback):
        "A validation loss that isn't finite."
        _order = 60
        def after_epoch(self): self.run.avg_stats.history[-1]['valid_loss'] = float('nan')
    monkeypatch.setattr(ti, 'sched_1cycle', lambda *args, f=ti.sched_1cycle: [*f(*args), Spoil()])
    assert ti.train_main(argv(images, tmp_path/'run', epochs=1)) == 0
    def none(name): raise AssertionError(f'{name} is no JSON')
    assert json.loads((tmp_path/'run'/'results.json').read_text(), parse_constant=none)['history'][0]['valid_loss'] is None

# mistakes

@pytest.mark.parametrize('more, message', [(('--epochs', 0), 'not a whole number from 1'), (('--lr', 'fast'), 'not a number'), (('--lr', 'inf'), 'not a number'), (('--valid', 0), 'above 0 up to 0.9'), (('--arch', 'vgg'), 'vgg'), (('--size', 3), 'from 16'), (('--smooth', 2), 'to 1'), (('--amp', 'int8'), 'int8'), (('--what',), '--what')])
def test_bad_arguments(images, tmp_path, capsys, more, message):
    assert message in error_of(argv(images, tmp_path/'run', *more), capsys)
    assert not (tmp_path/'run').exists()

def test_out_is_required(capsys): assert '--out' in error_of(['--epochs', 1], capsys)

def test_a_run_is_not_overwritten(images, tmp_path, capsys):
    ti.train_main(argv(images, tmp_path/'run', epochs=1))
    assert '--resume' in error_of(argv(images, tmp_path/'run', epochs=1), capsys)

def test_other_files_are_not_mixed_with(images, tmp_path, capsys):
    (tmp_path/'run').mkdir()
    (tmp_path/'run'/'mine.txt').write_text('')
    assert 'other files' in error_of(argv(images, tmp_path/'run'), capsys)

def test_resume_with_other_settings(images, tmp_path, capsys):
    ti.train_main(argv(images, tmp_path/'run', epochs=1))
    err = error_of(argv(images, tmp_path/'run', '--resume', '--lr', .5, epochs=3), capsys)
    assert '--epochs was 1, not 3' in err and '--lr was' in err

@pytest.mark.parametrize('what, message', [('missing', 'd: there is no'), ('empty', 'no file'), ('text', 'no file ending'), ('one class', '1 class'), ('broken', 'bad.png'), ('few', 'lower --bs'), ('unseen', 'dog')])
def test_bad_folders(tmp_path, capsys, what, message):
    d = tmp_path/'d'
    if what != 'missing': d.mkdir()
    if what == 'text': (d/'a.txt').write_text('')
    if what == 'one class': make_images(d, classes=['cat'])
    if what in ('broken', 'few'): make_images(d, n=6 if what == 'broken' else 2)
    if what == 'broken': (d/'cat'/'bad.png').write_bytes(b'no image')
    if what == 'unseen':
        make_images(d/'train', classes=['cat', 'cow'])
        make_images(d/'val', classes=['cat', 'dog'])
    assert message in error_of(argv(d, tmp_path/'run'), capsys)
    assert not (tmp_path/'run').exists()

def test_a_part_of_unknown_name_is_refused(tmp_path, capsys):
    for part in ('train', 'holdout'): make_images(tmp_path/'d'/part)
    assert 'beside it holdout' in error_of(argv(tmp_path/'d', tmp_path/'run'), capsys)

def test_train_may_be_a_class(tmp_path):
    ti.train_main(argv(make_images(tmp_path/'d', classes=['bus', 'train']), tmp_path/'run', epochs=1))
    assert results(tmp_path/'run')['data']['categories'] == ['bus', 'train']

def test_results_among_the_images_are_refused(images, capsys):
    assert 'is inside of --data' in error_of(argv(images, images/'runs'/'x'), capsys)
    assert not (images/'runs').exists()

@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('bad', ['broken', 'floats'])
def test_an_image_that_fails_in_training_is_named(images, tmp_path, monkeypatch, capsys, bad, workers):
    def verified(files, workers): return ti.pd.DataFrame(columns=['file', 'problem'])
    monkeypatch.setattr(ti, 'verify_images', verified)
    if bad == 'broken': (images/'cat'/'bad.png').write_bytes(b'no image')
    else: Image.fromarray(np.random.rand(20, 20).astype('float32')).save(images/'cat'/'bad.tif')
    err = error_of(argv(images, tmp_path/'run', '--workers', workers), capsys)
    assert ('bad.png' if bad == 'broken' else 'bad.tif') in err and ("can't be read" if bad == 'broken' else 'an image of floats') in err

@pytest.mark.parametrize('change', ['added', 'removed', 'moved'])
def test_other_images_are_noticed_at_a_resume(images, tmp_path, monkeypatch, capsys, change):
    cut_off(argv(images, tmp_path/'run'), monkeypatch)
    capsys.readouterr()
    if change == 'added': shutil.copy(images/'cat'/'0.png', images/'cat'/'new.png')
    if change == 'removed': (images/'cat'/'3.png').unlink()
    if change == 'moved': (images/'cat'/'3.png').rename(images/'dog'/'30.png')
    assert '--resume goes on with the same images' in error_of(argv(images, tmp_path/'run', '--resume'), capsys)
    shutil.rmtree(images)
    make_images(images)
    assert ti.train_main(argv(images, tmp_path/'run', '--resume')) == 0

# as a command

def command(root, *args):
    return subprocess.run([sys.executable, '-m', 'exp.train_imagenette', *args], cwd=root, capture_output=True, text=True, env={**os.environ, 'MPLBACKEND': 'Agg'})

def test_help_explains_every_option(root):
    done = command(root, '--help')
    options = [a.option_strings[-1] for a in ti.train_parser()._actions]
    assert done.returncode == 0 and all(o.removeprefix('--no-') in done.stdout for o in options) and all(a.help for a in ti.train_parser()._actions)
    assert 'default: None' not in done.stdout and f"default: {ti.imagenette_recipe['lr']}" in re.sub(r'\s+', ' ', done.stdout)

def test_the_command_fails_with_status_2(root, tmp_path):
    done = command(root, '--data', str(tmp_path/'gone'), '--out', str(tmp_path/'run'))
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and 'gone' in done.stderr and not done.stdout
