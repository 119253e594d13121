"The command `python -m exp.train_ulmfit`: folders and tables, mistakes in one line, runs that repeat and resume exactly, a report that nothing in the texts can break."
import csv, dataclasses, errno, gzip, html, html.parser, itertools, json, lzma, math, os, re, shlex, shutil, subprocess, sys, tracemalloc
from pathlib import Path
from types import SimpleNamespace
import matplotlib
matplotlib.use('Agg')
import numpy as np
import pytest, torch
import torch.nn.functional as F
from exp import samples, train_ulmfit as tu
from exp.nb_12c import AmpCallback, Callback, SampledSoftmax, device_name, encoder_parts, lm_dropouts, lm_parts, load_learner, load_lm, ulmfit_drops

GOOD, BAD = 'a lovely film with a warm heart and a fine cast', 'an awful film with a dull plot and a poor cast'
SMALL = ('--valid', .2, '--lm-epochs', 2, '--lm-bs', 2, '--bptt', 8, '--emb-sz', 6, '--n-hid', 8, '--n-layers', 2, '--epochs', 1, '--bs', 4, '--min-freq', 1, '--workers', 1)
FAST = (*SMALL, '--no-gradual')

def texts_of(kind, n, seed=0):
    rng, words = np.random.default_rng([seed, kind == 'pos']), (GOOD if kind == 'pos' else BAD).split()
    return [' '.join(rng.permutation(words)[:rng.integers(5, len(words))]) + f' {i}.' for i in range(n)]

def make_folder(root, n=8, classes=('neg', 'pos'), seed=0):
    for c in classes:
        (root/c).mkdir(parents=True)
        for i, t in enumerate(texts_of(c, n, seed)): (root/c/f'{i}.txt').write_text(t, encoding='utf-8')
    return root

def make_csv(path, rows, columns=('text', 'label')):
    with open(path, 'w', encoding='utf-8', newline='') as f: csv.writer(f).writerows([columns, *rows])
    return path

def labelled(n=8): return [(t, k) for pair in zip(texts_of('neg', n), texts_of('pos', n)) for t, k in zip(pair, ('neg', 'pos'))]

@pytest.fixture
def folder(tmp_path): return make_folder(tmp_path/'texts')

@pytest.fixture
def table(tmp_path): return make_csv(tmp_path/'texts.csv', labelled())

def argv(data, out, *more, settings=FAST): return [str(o) for o in ('--data', data, '--out', out, *settings, *more)]

GRADUAL = dict(settings=(*SMALL, '--epochs', 2))

def done(out): return json.loads((out/'report.json').read_text(encoding='utf-8'))

def run(data, out, *more, **kw):
    assert tu.ulmfit_main(argv(data, out, *more, **kw)) == 0
    return done(out)

def without_times(o):
    if isinstance(o, dict): return {k: without_times(v) for k, v in o.items() if k not in ('time', 'seconds', 'stages', 'settings', 'models')}
    return [without_times(v) for v in o] if isinstance(o, list) else o

def error_of(args, capsys):
    "The one line that a mistake is answered with."
    capsys.readouterr()
    try: status = tu.ulmfit_main([str(a) for a in args])
    except SystemExit as e: status = e.code
    err = capsys.readouterr().err
    assert status == 2 and err.count('\n') == 1, (status, err)
    return err

class Stop(Callback):
    "A crash in an epoch (from 0) of the nth stage that the process trains."
    def __init__(self, epoch): self.epoch = epoch
    def begin_batch(self):
        if self.run.epoch == self.epoch: raise KeyboardInterrupt

def cut_off(args, monkeypatch, stage, epoch):
    calls, fit = [], tu.fit_stage
    def watched(learn, what, cbs=None, **kw):
        calls.append(what)
        return fit(learn, what, [*(cbs or []), *[Stop(epoch)]*(len(calls) == stage)], **kw)
    with monkeypatch.context() as m:
        m.setattr(tu, 'fit_stage', watched)
        assert tu.ulmfit_main(args) == 130

def stages_seen(monkeypatch, look=lambda learn, stage: learn):
    "What `look` gives for each stage of a training, before it begins."
    seen, fit = [], tu.fit_stage
    def watched(learn, stage, *args, **kw):
        seen.append(look(learn, stage))
        return fit(learn, stage, *args, **kw)
    monkeypatch.setattr(tu, 'fit_stage', watched)
    return seen

def weights(module): return {k: v.clone() for k, v in module.state_dict().items()}

# runs

def test_a_folder(folder, tmp_path):
    r, out = run(folder, tmp_path/'run', **GRADUAL), tmp_path/'run'
    assert {'settings.json', 'seconds.json', 'texts', 'forward', 'model.pth', 'report.json', 'report.html'} == {o.name for o in out.iterdir() if o.name != '.lock'}
    assert r['categories'] == ['neg', 'pos'] and 0 <= r['accuracy'] <= 1 and np.sum(r['confusion']) == r['data']['validation texts'] == 3
    assert set(r['perplexities']) == {'forward'} and r['settings']['bptt'] == 8

def test_folders_train_and_test(tmp_path):
    make_folder(tmp_path/'d'/'train')
    make_folder(tmp_path/'d'/'test', n=2, seed=1)
    assert run(tmp_path/'d', tmp_path/'run')['data']['validation texts'] == 4

@pytest.mark.parametrize('name', ['valid', 'val'])
def test_other_names_of_the_folder_for_validation(tmp_path, name):
    make_folder(tmp_path/'d'/'train')
    make_folder(tmp_path/'d'/name, n=2, seed=1)
    assert run(tmp_path/'d', tmp_path/'run')['data']['validation texts'] == 4

def test_texts_without_labels_are_for_the_language_model(folder, tmp_path):
    (folder/'unsup').mkdir()
    for i in range(5): (folder/'unsup'/f'{i}.txt').write_text('zebra zebra zebra', encoding='utf-8')
    r = run(folder, tmp_path/'run')
    assert r['categories'] == ['neg', 'pos'] and r['data']['texts without a label'] == 5
    assert 'zebra' in load_learner(tmp_path/'run'/'model.pth').text_vocab

def test_a_table(table, tmp_path):
    r = run(table, tmp_path/'run')
    assert r['categories'] == ['neg', 'pos'] and r['data']['validation texts'] == 3

def test_a_table_that_says_what_is_for_validation(tmp_path):
    table = make_csv(tmp_path/'t.csv', [(t, k, i >= 12) for i, (t, k) in enumerate(labelled())], ('text', 'label', 'check'))
    r = run(table, tmp_path/'run', '--is-valid', 'check')
    assert r['data']['validation texts'] == 4 and r['data']['training texts'] == 12

def test_a_table_without_a_header(tmp_path):
    rows = [(k, i >= 12, t) for i, (t, k) in enumerate(labelled())]
    r = run(make_csv(tmp_path/'t.csv', rows[1:], rows[0]), tmp_path/'run', '--no-header', '--labels', 0, '--is-valid', 1, '--text', 2)
    assert r['categories'] == ['neg', 'pos'] and r['data']['validation texts'] == 4 and r['data']['training texts'] == 12

def test_several_columns_of_a_table_without_a_header(tmp_path):
    make_csv(tmp_path/'t.csv', [(1, 0, 'a', 'b')], (0, 1, 'c', 'd'))
    source = tu.table_source(tmp_path/'t.csv', ['2', '3'], ['0', '1'], header=False)
    assert (source.vocab, source.labels, list(source.texts())) == (['0', '1'], [[0, 1], [1, 0]], ['xxfld 1 c xxfld 2 d', 'xxfld 1 a xxfld 2 b'])

@pytest.mark.parametrize('encoding', ['latin-1', 'utf-16', 'utf-8', 'UTF8', 'utf-8-sig'])
def test_other_encodings(tmp_path, encoding):
    texts = [f'für {i} €'.replace('€', '' if encoding == 'latin-1' else '€') for i in range(4)]
    (d := tmp_path/'d'/'neg').mkdir(parents=True)
    for i, t in enumerate(texts): (d/f'{i}.txt').write_text(t, encoding=encoding)
    assert list(tu.folder_source(tmp_path/'d', encoding).texts()) == texts
    (tmp_path/'t.csv').write_text('text,label\n' + ''.join(f'{t},ä\n' for t in texts), encoding=encoding)
    source = tu.table_source(tmp_path/'t.csv', ['text'], ['label'], encoding=encoding)
    assert list(source.texts()) == texts and set(source.labels) == {'ä'}

def test_a_run_with_another_encoding(folder, tmp_path):
    for p in folder.rglob('*.txt'): p.write_text(p.read_text() + ' für', encoding='latin-1')
    assert all(o['text'].endswith('für') for o in run(folder, tmp_path/'run', '--encoding', 'latin-1')['worst'])
    assert 'für' in load_learner(tmp_path/'run'/'model.pth').text_vocab

@pytest.mark.parametrize('subword', [(), ('--subword', 60)])
def test_bad_bytes_name_the_option(folder, tmp_path, capsys, subword):
    (folder/'neg'/'3.txt').write_bytes('für'.encode('latin-1'))
    err = error_of(argv(folder, tmp_path/'run', *subword), capsys)
    assert '3.txt is not UTF-8' in err and '--encoding' in err
    (folder/'neg'/'3.txt').write_text('a text')
    assert 'not UTF-16' in error_of(argv(folder, tmp_path/'run', '--encoding', 'utf-16', *subword), capsys)

def test_several_columns_of_text(tmp_path):
    table = make_csv(tmp_path/'t.csv', [(f'title{i}', t, k) for i, (t, k) in enumerate(labelled())], ('title', 'body', 'label'))
    run(table, tmp_path/'run', '--text', 'title', 'body')
    assert {'xxfld', 'title3'} <= set(load_learner(tmp_path/'run'/'model.pth').text_vocab)

def test_texts_with_any_number_of_labels(tmp_path):
    rows = [(t, int(k == 'neg'), i % 2) for i, (t, k) in enumerate(labelled())]
    r = run(make_csv(tmp_path/'t.csv', rows, ('text', 'rude', 'even')), tmp_path/'run', '--labels', 'rude', 'even')
    assert r['categories'] == ['rude', 'even'] and 'confusion' not in r and 0 <= r['f1'] <= 1
    assert load_learner(tmp_path/'run'/'model.pth').predict(GOOD).probs.shape == (2,)

def test_the_exported_model_predicts(folder, tmp_path):
    run(folder, tmp_path/'run')
    learn = load_learner(tmp_path/'run'/'model.pth')
    one = learn.predict(GOOD)
    assert one.label in ('neg', 'pos') and torch.allclose(one.probs.sum(), torch.tensor(1.), atol=1e-5)
    assert torch.allclose(learn.predict_probs([BAD, GOOD])[1], one.probs, atol=1e-5)

def make_parts(root):
    "A folder of texts to train with, and one to validate with."
    for name, n, seed in (('train', 8, 0), ('test', 3, 1)): make_folder(root/name, n, seed=seed)
    return root

def to_validate(root):
    "The texts to validate with, and the numbers of their labels."
    files = [(p, i) for i, c in enumerate(('neg', 'pos')) for p in sorted((root/'test'/c).iterdir())]
    return [p.read_text() for p, _ in files], torch.tensor([i for _, i in files])

def test_the_report_agrees_with_the_exported_model(tmp_path):
    r, (texts, targets) = run(make_parts(tmp_path/'d'), tmp_path/'run'), to_validate(tmp_path/'d')
    said = [o.index for o in load_learner(tmp_path/'run'/'model.pth').predict_many(texts)]
    assert np.mean(torch.tensor(said).eq(targets).tolist()) == pytest.approx(r['accuracy'])

@pytest.mark.parametrize('more', [('--sampled', 3), ('--amp',), ('--max-len', 3), ('--lang', 'de'), ('--drop', 0)])
def test_options(folder, tmp_path, more): run(folder, tmp_path/'run', *more)

def first_fit(data, out, options, monkeypatch):
    "The learner and the stage that a run would train first; nothing is trained."
    class Enough(Exception): pass
    def fit(learn, stage, *args, **kw): raise Enough(learn, stage)
    with monkeypatch.context() as m, pytest.raises(Enough) as e:
        m.setattr(tu, 'fit_stage', fit)
        tu.run_ulmfit(tu.ulmfit_parser().parse_args(argv(data, out, *options.split())))
    return e.value.args

def has(kind): return lambda learn, _: any(isinstance(c, kind) for c in learn.cbs)

@pytest.mark.parametrize('options, told', [
    ('--sampled 3', lambda learn, _: [c.n for c in learn.cbs if isinstance(c, SampledSoftmax)] == [3]), ('--amp', has(AmpCallback)),
    ('--lm-drop 1.5', lambda learn, _: (learn.model[0].input_dp.p, learn.model[0].rnns[0].weight_p) == pytest.approx([1.5*lm_dropouts[k] for k in ('input_p', 'weight_p')])),
    ('--emb-sz 4 --n-hid 5 --n-layers 3', lambda learn, _: learn.sizes == dict(emb_sz=4, n_hid=5, n_layers=3)),
    ('--lm-lr .03', lambda _, stage: stage.lrs[-1] == .03), ('--lm-epochs 3', lambda _, stage: stage.epochs == 3),
    ('--bptt 5 --lm-bs 3', lambda learn, _: next(iter(learn.data.train_dl))[0].shape == (3, 5)), ('--backward', lambda learn, _: learn.backwards),
    ('--max-vocab 20', lambda learn, _: 20 <= len(learn.text_vocab) < 30), ('--min-freq 5', lambda learn, _: '3' not in learn.text_vocab and 'film' in learn.text_vocab)])
def test_options_of_the_language_model(folder, tmp_path, monkeypatch, options, told):
    "They do something, which is not there without them."
    assert told(*first_fit(folder, tmp_path/'a', options, monkeypatch)) and not told(*first_fit(folder, tmp_path/'b', '', monkeypatch))

@pytest.mark.parametrize('options, told', [
    ('--amp', has(AmpCallback)), ('--max-len 3', lambda learn, _: learn.model[0].max_len == learn.recipe.sizes['max_len'] == 3), ('--bptt 5', lambda learn, _: learn.model[0].bptt == 5),
    ('--drop 0', lambda learn, _: not any(getattr(m, p, 0) for m in learn.model[0].modules() for p in ('p', 'embed_p', 'weight_p'))),
    ('--drop 1.5', lambda learn, _: [learn.recipe.sizes[k] for k in ulmfit_drops] == pytest.approx([1.5*p for p in ulmfit_drops.values()])),
    ('--lang de', lambda learn, _: 'z.b.' in learn.recipe.tokens(['Das ist z.B. gut'])[0]), ('--subword 60', lambda learn, _: any('▁' in o for o in learn.text_vocab)),
    ('--lr .03', lambda _, stage: stage.lrs[-1] == .03), ('--epochs 3', lambda _, stage: stage.epochs == 3), ('--bs 3', lambda learn, _: len(next(iter(learn.data.train_dl))[0]) == 3),
    ('--backward', lambda learn, _: learn.recipe.backwards), ('--valid .5', lambda learn, _: len(learn.data.valid_ds) == 8)])
def test_options_of_the_classifier(folder, tmp_path, monkeypatch, options, told):
    assert told(*first_fit(folder, tmp_path/'a', f'--lm-epochs 0 {options}', monkeypatch)) and not told(*first_fit(folder, tmp_path/'b', '--lm-epochs 0', monkeypatch))

def test_without_data_it_takes_imdb(tmp_path, monkeypatch):
    "Here a few texts of its built-in sample."
    make = samples.make_imdb
    monkeypatch.setattr(samples, 'make_imdb', lambda folder: make(folder, n_train=4, n_test=2, n_unsup=1))
    for name, value in dict(EXP_HOME=str(tmp_path/'home'), EXP_DATA='sample', EXP_MIRROR='').items(): monkeypatch.setenv(name, value)
    assert tu.ulmfit_main(argv('', tmp_path/'run')[2:]) == 0
    r, n = done(tmp_path/'run'), len(samples.LIBRARIES)
    assert r['settings']['data'] is None and r['categories'] == sorted(samples.LIBRARIES)
    assert [r['data'][k] for k in ('training texts', 'validation texts', 'texts without a label')] == [4*n, 2*n, n]

def test_a_stage_that_never_was_has_no_time(folder, tmp_path):
    assert list(run(folder, tmp_path/'run', '--lm-epochs', 0)['stages']) == ['texts', 'forward classifier']
    assert not list((tmp_path/'run').rglob('lm.pth'))

def test_subwords(folder, tmp_path):
    run(folder, tmp_path/'run', '--subword', 100)
    assert load_learner(tmp_path/'run'/'model.pth').predict('a film with unheard-of words').label in ('neg', 'pos')

def test_backward(folder, tmp_path):
    r = run(folder, tmp_path/'run', '--backward')
    assert set(r['accuracies']) == {'backward'} and load_learner(tmp_path/'run'/'model.pth').recipe.backwards

BOTH = '--ensemble', '--epochs', 3, '--lr', .1   # so that the two differ

@pytest.fixture(scope='module')
def both(tmp_path_factory):
    "A run in both directions that nothing interrupted, with its data."
    root = tmp_path_factory.mktemp('both')
    run(make_parts(root/'texts'), root/'run', *BOTH)
    return root/'texts', root/'run'

@pytest.fixture(scope='module')
def asked(both):
    "What each direction's exported model says of the texts to validate with."
    return {d: load_learner(both[1]/name).predict_probs(to_validate(both[0])[0]) for d, name in dict(forward='model.pth', backward='model_backward.pth').items()}

def test_an_ensemble_says_the_mean_of_both_directions(both, asked):
    r, (_, targets) = done(both[1]), to_validate(both[0])
    def loss(probs): return F.nll_loss(probs.log(), targets).item()
    mean = (asked['forward'] + asked['backward'])/2
    assert r['loss'] == pytest.approx(loss(mean), rel=1e-4)
    assert all((mean - o).abs().max() > 1e-3 for o in asked.values())   # so `worst`, below, tells the mean from each direction
    assert r['accuracy'] == pytest.approx((mean.argmax(1) == targets).float().mean().item())
    assert {o['number']: o['p_true'] for o in r['worst']} == pytest.approx(dict(enumerate(mean[range(6), targets].tolist())), rel=1e-4)

def test_an_ensembles_report_has_each_direction_alone(both, asked):
    r, (_, targets) = done(both[1]), to_validate(both[0])
    assert r['accuracies'] == pytest.approx({d: (o.argmax(1) == targets).float().mean().item() for d, o in asked.items()})
    assert r['perplexities'].keys() == asked.keys() and [Path(o) for o in r['models']] == [both[1]/'model.pth', both[1]/'model_backward.pth']

def test_of_an_ensemble_one_reads_backwards(both):
    learners = [load_learner(o) for o in done(both[1])['models']]
    words = [[o.text_vocab[i] for i in o.recipe.ids(['a warm film'])[0].tolist()] for o in learners]
    assert words == [w := ['xxbos', 'a', 'warm', 'film', 'xxeos'], w[::-1]]
    assert [encoder_parts(both[1]/d/'lm.pth').backwards for d in ('forward', 'backward')] == [False, True]

def like_pretrained(file, state, vocab):
    "Are the weights `state` of a language model with the words `vocab` those in `file`, but for words that aren't there?"
    old = lm_parts(file)
    known = [w for w in vocab if w in old.vocab]
    def rows(name, w, words): return w[[words.index(o) for o in known]] if 'emb' in name or 'decoder' in name else w
    return old.state.keys() == state.keys() and all(torch.equal(rows(k, w, old.vocab), rows(k, state[k], vocab)) for k, w in old.state.items())

def test_a_pretrained_language_model_is_taken_as_it_is(both, tmp_path):
    "With --lm-epochs 0."
    r = run(make_folder(tmp_path/'more', n=12, seed=2), tmp_path/'run', '--pretrained', file := both[1]/'forward'/'lm.pth', '--lm-epochs', 0)
    old, new = lm_parts(file), lm_parts(tmp_path/'run'/'forward'/'lm.pth')
    assert '11' not in old.vocab and '11' in new.vocab and like_pretrained(file, new.state, new.vocab)
    assert r['data']['of these known to the pretrained model'] == len({*old.vocab} & {*new.vocab})
    assert list(r['history']) == ['forward classifier'] and r['perplexities'] == {}

def test_a_pretrained_language_model_is_trained_further(both, tmp_path, monkeypatch):
    "And the classifier starts from what it has become."
    seen = stages_seen(monkeypatch, lambda learn, _: (weights(learn.model), learn.text_vocab))
    run(make_folder(tmp_path/'more', n=12, seed=2), tmp_path/'run', '--pretrained', file := both[1]/'forward'/'lm.pth')
    first, second, classifier = seen
    assert like_pretrained(file, *first) and not like_pretrained(file, *second)
    for k, w in encoder_parts(tmp_path/'run'/'forward'/'encoder.pth').state.items():
        assert torch.equal(classifier[0][f'0.module.{k}'], w) and not torch.equal(w, first[0][f'0.{k}'])

@pytest.mark.parametrize('more', ['--lang de', '--subword 60'])
def test_a_pretrained_language_model_brings_sizes_and_tokenizer(folder, tmp_path, more):
    run(folder, tmp_path/'first', *more.split())
    run(folder, tmp_path/'run', '--pretrained', file := tmp_path/'first'/'forward'/'lm.pth', '--emb-sz', 5, '--n-hid', 7, '--n-layers', 1)
    first, then = (load_learner(o/'model.pth').recipe for o in (tmp_path/'first', tmp_path/'run'))
    assert first.tokens.settings() == then.tokens.settings() and lm_parts(file).sizes.items() <= then.sizes.items()

# the same again

def test_a_seed_repeats_a_run(folder, tmp_path):
    a, b, c = (without_times(run(folder, tmp_path/name, '--seed', seed)) for name, seed in (('a', 1), ('b', 1), ('c', 2)))
    assert a == b != c

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A run that nothing interrupted, with its data."
    root = tmp_path_factory.mktemp('whole')
    data = make_folder(root/'texts')
    run(data, root/'run', **GRADUAL)
    return data, root/'run'

def same(a, b):
    assert without_times(done(a)) == without_times(done(b))
    for name in ('model.pth', *['model_backward.pth']*(len(done(a)['models']) > 1)):
        x, y = (torch.load(o/name, weights_only=True)['model'] for o in (a, b))
        assert x.keys() == y.keys() and all(torch.equal(v, y[k]) for k, v in x.items())

@pytest.mark.parametrize('stage, epoch', [(1, 0), (1, 1), (2, 0), (4, 0), (5, 0), (5, 1)])
def test_a_resumed_run_is_as_if_uninterrupted(whole, tmp_path, monkeypatch, stage, epoch):
    data, out = whole[0], tmp_path/'cut'
    cut_off(argv(data, out, **GRADUAL), monkeypatch, stage, epoch)
    assert not (out/'report.json').exists()
    run(data, out, '--resume', **GRADUAL)
    same(whole[1], out)

def test_a_resumed_stage_goes_on_with_the_next_epoch(whole, tmp_path, monkeypatch):
    cut_off(argv(whole[0], tmp_path/'cut', **GRADUAL), monkeypatch, 1, 1)
    epochs, fit = [], tu.fit_stage
    class See(Callback):
        def begin_batch(self): epochs.append(self.run.epoch)
    monkeypatch.setattr(tu, 'fit_stage', lambda learn, stage, cbs=None, **kw: fit(learn, stage, [*(cbs or []), See()], **kw))
    run(whole[0], tmp_path/'cut', '--resume', **GRADUAL)
    assert epochs[0] == 1

@pytest.mark.parametrize('stage, epoch', [(3, 0), (3, 1), (4, 0)])
def test_an_ensemble_interrupted_in_its_second_half(both, tmp_path, monkeypatch, stage, epoch):
    "Of the first half, nothing is trained again."
    data, out = both[0], tmp_path/'cut'
    cut_off(argv(data, out, *BOTH), monkeypatch, stage, epoch)
    seen = stages_seen(monkeypatch)
    run(data, out, *BOTH, '--resume')
    same(both[1], out)
    assert len(seen) == 5 - stage

@pytest.fixture(scope='module')
def tuned(whole, both, tmp_path_factory):
    "A run from a pretrained language model that nothing interrupted, and its arguments."
    more = '--pretrained', both[1]/'forward'/'lm.pth'
    run(whole[0], out := tmp_path_factory.mktemp('tuned')/'run', *more)
    return out, more

@pytest.mark.parametrize('epoch', [0, 1])
def test_fine_tuning_interrupted_in_its_second_stage(whole, tuned, tmp_path, monkeypatch, epoch):
    (wanted, more), out = tuned, tmp_path/'cut'
    cut_off(argv(whole[0], out, *more), monkeypatch, 2, epoch)
    seen = stages_seen(monkeypatch)
    run(whole[0], out, *more, '--resume')
    same(wanted, out)
    assert len(seen) == 2

def cut_texts(args, monkeypatch, moment):
    "A crash in the first stage."
    def crash(*args, **kw): raise KeyboardInterrupt
    def few_texts(args, source=tu.text_source):
        o = source(args)
        return dataclasses.replace(o, texts=lambda: (t if i < 5 else crash() for i, t in enumerate(o.texts())))
    where = dict(labels=(tu, 'text_source', crash), texts=(tu, 'text_source', few_texts), numbers=(tu.Corpus, 'save', crash), end=(tu, 'load_texts', crash))
    with monkeypatch.context() as m:
        m.setattr(*where[moment])
        assert tu.ulmfit_main(args) == 130

@pytest.mark.parametrize('moment', ['labels', 'texts', 'numbers', 'end'])
def test_interrupted_while_texts_are_read(whole, tmp_path, monkeypatch, moment):
    data, out = whole[0], tmp_path/'cut'
    cut_texts(argv(data, out, **GRADUAL), monkeypatch, moment)
    run(data, out, '--resume', **GRADUAL)
    same(whole[1], out)

@pytest.mark.parametrize('moment', ['labels', 'texts', 'numbers'])
def test_texts_that_were_read_in_part_leave_no_folder(whole, tmp_path, monkeypatch, moment):
    "So the run can be started again."
    data, out = whole[0], tmp_path/'cut'
    cut_texts(argv(data, out, **GRADUAL), monkeypatch, moment)
    assert not out.exists()

def test_started_again_after_texts_were_read_in_part(whole, tmp_path, monkeypatch):
    (out := tmp_path/'cut').mkdir()
    cut_texts(argv(whole[0], out, **GRADUAL), monkeypatch, 'texts')
    assert not os.listdir(out)
    run(whole[0], out, **GRADUAL)
    same(whole[1], out)

def test_interrupted_while_texts_are_read_again(whole, tmp_path, monkeypatch):
    "In a run whose texts were lost: it can still be resumed."
    shutil.copytree(whole[1], out := tmp_path/'cut')
    shutil.rmtree(out/'texts')
    cut_texts(argv(whole[0], out, '--resume', **GRADUAL), monkeypatch, 'texts')
    run(whole[0], out, '--resume', **GRADUAL)
    same(whole[1], out)

def test_interrupted_while_several_processes_tokenize(tmp_path, monkeypatch):
    cut_texts(argv(make_folder(tmp_path/'d', n=100), tmp_path/'cut', '--workers', 2), monkeypatch, 'texts')
    assert not (tmp_path/'cut').exists()

def test_interrupted_again_and_again(whole, tmp_path, monkeypatch):
    data, out = whole[0], tmp_path/'cut'
    for stage, epoch in ((1, 0), (1, 1), (1, 1), (2, 0), (1, 0), (3, 0), (2, 0)): cut_off(argv(data, out, '--resume', **GRADUAL), monkeypatch, stage, epoch)
    run(data, out, '--resume', **GRADUAL)
    same(whole[1], out)
    assert sum(done(out)['stages'].values()) > done(out)['seconds']   # what was done before each interruption counts

def test_resuming_a_finished_run_trains_no_more(whole, tmp_path, monkeypatch):
    data, out = whole
    before = done(out)
    monkeypatch.setattr(tu, 'fit_stage', None)
    after = run(data, out, '--resume', **GRADUAL)
    assert before | dict(settings=0) == after | dict(settings=0)

KILLED = """
import os, sys
from exp import train_ulmfit as tu
class Kill(tu.Callback):
    def begin_batch(self):
        if self.run.epoch == 1: os.kill(os.getpid(), 9)   # no time to tidy up
fit = tu.fit_stage
tu.fit_stage = lambda learn, stage, cbs=None, **kw: fit(learn, stage, [*cbs, Kill()], **kw)
tu.ulmfit_main(sys.argv[1:])
"""

def test_a_killed_process_is_resumed(root, whole, tmp_path):
    args = argv(whole[0], tmp_path/'cut', **GRADUAL)
    killed = subprocess.run([sys.executable, '-c', KILLED, *args], cwd=root, capture_output=True, text=True)
    assert killed.returncode == -9 and [p.name for p in (tmp_path/'cut').rglob('epoch_*.pt')] == ['epoch_0001.pt'], killed.stderr
    run(whole[0], tmp_path/'cut', '--resume', **GRADUAL)
    same(whole[1], tmp_path/'cut')

def spoiled(run, names, how, to):
    "A copy of the folder `run`, in which files are lost, or cut off."
    shutil.copytree(run, to)
    for file in (to/name for name in names.split()):
        if how == 'lost': file.unlink()
        else: file.write_bytes(file.read_bytes()[:100])
    return to

@pytest.mark.parametrize('names, how', [('model.pth forward/classifier.json', 'lost'), ('forward/encoder.pth forward/classifier.json', 'lost'), ('report.json', 'lost'),
                                        *((name, how) for name in ('model.pth', 'forward/classifier.json', 'forward/lm.pth', 'forward/lm.json') for how in ('lost', 'cut off')), ('texts/texts.json', 'lost')])
def test_what_is_lost_is_made_again(whole, tmp_path, names, how):
    run(whole[0], spoiled(whole[1], names, how, tmp_path/'run'), '--resume', **GRADUAL)
    same(whole[1], tmp_path/'run')
    assert {o.name for o in (tmp_path/'run'/'forward').iterdir()} == {o.name for o in (whole[1]/'forward').iterdir()}

@pytest.mark.parametrize('name', ['forward/encoder.pth', 'forward/answers.pt'])
@pytest.mark.parametrize('how', ['lost', 'cut off'])
def test_what_follows_from_the_rest_needs_no_training(whole, tmp_path, monkeypatch, name, how):
    monkeypatch.setattr(tu, 'fit_stage', None)
    run(whole[0], spoiled(whole[1], name, how, tmp_path/'run'), '--resume', **GRADUAL)
    same(whole[1], tmp_path/'run')
    assert (tmp_path/'run'/name).stat().st_size == (whole[1]/name).stat().st_size

@pytest.mark.parametrize('lost', ['stage_1', 'stage_1.json'])
def test_a_lost_part_of_a_training_is_made_again(whole, tmp_path, monkeypatch, lost):
    cut_off(argv(whole[0], tmp_path/'cut', **GRADUAL), monkeypatch, 3, 0)   # the classifier's second
    part = tmp_path/'cut'/'forward'/'classifier'/lost
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    run(whole[0], tmp_path/'cut', '--resume', **GRADUAL)
    same(whole[1], tmp_path/'cut')

def test_resume_without_a_run_starts_one(table, tmp_path): run(table, tmp_path/'run', '--resume')

def test_resume_without_a_run_and_without_data_is_a_mistake(tmp_path, capsys, monkeypatch):
    "In the name of the folder, most likely: IMDb isn't begun with."
    monkeypatch.setattr(tu, 'untar_data', None)
    assert f'no run in --out {tmp_path/"rnu"}' in error_of(['--out', tmp_path/'rnu', '--resume'], capsys)
    assert not (tmp_path/'rnu').exists()

def test_an_option_that_came_later_is_no_other_setting(whole, tmp_path, capsys):
    shutil.copytree(whole[1], out := tmp_path/'run')
    settings = json.loads((out/'settings.json').read_text())
    del settings['no_quotes']
    (out/'settings.json').write_text(json.dumps(settings))
    assert '--no-quotes was False, not True' in error_of(argv(whole[0], out, '--resume', '--no-quotes', **GRADUAL), capsys)
    run(whole[0], out, '--resume', **GRADUAL)

def test_the_data_are_read_only_once(whole, tmp_path):
    "A resumed run doesn't need them any more."
    shutil.copytree(whole[1], tmp_path/'run')
    (tmp_path/'run'/'report.json').unlink()
    settings = json.loads((tmp_path/'run'/'settings.json').read_text())
    (tmp_path/'run'/'settings.json').write_text(json.dumps(settings | dict(data='gone')))
    run('gone', tmp_path/'run', '--resume', **GRADUAL)

def test_a_damaged_checkpoint_is_made_again(folder, tmp_path, monkeypatch):
    cut_off(argv(folder, tmp_path/'run'), monkeypatch, 1, 1)
    file, = (tmp_path/'run').rglob('epoch_*.pt')
    file.write_bytes(file.read_bytes()[:500])
    run(folder, tmp_path/'run', '--resume')
    run(folder, tmp_path/'fresh')
    same(tmp_path/'fresh', tmp_path/'run')

def test_a_finished_stage_whose_last_checkpoint_is_damaged_is_finished_again(folder, tmp_path, monkeypatch, capsys):
    "Not taken from the epoch before, of which there is a checkpoint, too."
    def full(self, path): raise OSError(errno.ENOSPC, 'No space left on device')
    with monkeypatch.context() as m:
        m.setattr(tu.TextLearner, 'export', full)
        error_of(argv(folder, tmp_path/'run', '--epochs', 3), capsys)
    kept = sorted((tmp_path/'run'/'forward'/'classifier'/'stage_1').glob('epoch_*.pt'))
    assert [o.name for o in kept] == ['epoch_0002.pt', 'epoch_0003.pt']
    kept[1].write_bytes(kept[1].read_bytes()[:500])
    run(folder, tmp_path/'run', '--epochs', 3, '--resume')
    run(folder, tmp_path/'fresh', '--epochs', 3)
    same(tmp_path/'fresh', tmp_path/'run')

def test_a_middle_stage_whose_last_checkpoint_is_damaged_is_finished_again(folder, tmp_path, monkeypatch, capsys):
    "What the stage before has left is gone by then."
    stages = [tu.Stage(-1, 1, [1e-2]*4), tu.Stage(-2, 3, [1e-2]*4), tu.Stage(0, 1, [1e-2]*4)]
    monkeypatch.setattr(tu, '_classifier_stages', lambda *a: stages)
    args = argv(folder, tmp_path/'run')
    cut_off(args, monkeypatch, 4, 0)   # the language model's is the first
    last = max((tmp_path/'run'/'forward'/'classifier'/'stage_2').glob('epoch_*.pt'))
    assert last.name == 'epoch_0003.pt' and not (tmp_path/'run'/'forward'/'classifier'/'stage_1').exists()
    last.write_bytes(b'')
    run(folder, tmp_path/'run', '--resume')
    run(folder, tmp_path/'fresh')
    same(tmp_path/'fresh', tmp_path/'run')

def test_of_two_checkpoints_the_sound_one_counts(tmp_path):
    for n in (1, 2): torch.save(dict(kind='Learner'), tmp_path/f'epoch_000{n}.pt')
    (tmp_path/'epoch_0002.pt').write_bytes(b'cut')
    assert tu._sound(tmp_path).name == 'epoch_0001.pt' and [o.name for o in tmp_path.iterdir()] == ['epoch_0001.pt']
    (tmp_path/'epoch_0001.pt').write_bytes(b'')
    assert tu._sound(tmp_path) is None and not [*tmp_path.iterdir()]

def test_checkpoints_count_by_their_names(tmp_path):
    for n, when in ((1, 2e9), (2, 1e9)):   # a copied folder may have lost its times
        torch.save(dict(kind='Learner'), tmp_path/f'epoch_000{n}.pt')
        os.utime(tmp_path/f'epoch_000{n}.pt', (when, when))
    assert tu._sound(tmp_path).name == 'epoch_0002.pt'

@pytest.mark.parametrize('error', [MemoryError(), OSError(errno.EIO, 'the disk fails'), OSError(errno.EMFILE, 'too many files'), PermissionError(errno.EACCES, 'no right'), RuntimeError("DefaultCPUAllocator: can't allocate memory"), RuntimeError('MPS backend out of memory')])
def test_what_cannot_be_read_just_now_is_not_taken_for_damage(tmp_path, monkeypatch, error):
    torch.save(dict(kind='Learner'), tmp_path/'epoch_0001.pt')
    def fails(*a, **kw): raise error
    with monkeypatch.context() as m:
        m.setattr(torch, 'load', fails)
        with pytest.raises(type(error)) as e: tu._sound(tmp_path)
        assert not isinstance(error, OSError) or 'epoch_0001.pt' in str(e.value)
    assert tu._sound(tmp_path).name == 'epoch_0001.pt'

@pytest.mark.parametrize('name, now', [('texts.json', None), ('texts.json', b'{}'), ('texts.json', b'[]'), ('train/ids.npy', None), ('valid/offsets.npy', None), ('train/.exp.json', b''), ('valid.jsonl', None)])
def test_a_damaged_first_stage_is_named(whole, tmp_path, capsys, name, now):
    "With the file, and with what to do."
    shutil.copytree(whole[1], tmp_path/'run')
    file = tmp_path/'run'/'texts'/name
    file.write_bytes(file.read_bytes()[:30] if now is None else now)
    err = error_of(argv(whole[0], tmp_path/'run', '--resume', **GRADUAL), capsys)
    assert str(file.parent if name.startswith('train/.') else file) in err and f'{tmp_path/"run"/"texts"} is damaged' in err and 'remove this folder' in err
    shutil.rmtree(tmp_path/'run'/'texts')
    run(whole[0], tmp_path/'run', '--resume', **GRADUAL)

def test_texts_that_do_not_belong_together(whole, tmp_path):
    shutil.copytree(whole[1]/'texts', tmp_path/'texts')
    o = json.loads((tmp_path/'texts'/'texts.json').read_text())
    (tmp_path/'texts'/'texts.json').write_text(json.dumps(o | dict(y_valid=o['y_valid'][1:])))
    with pytest.raises(tu.DataError, match="don't belong together"): tu.load_texts(tmp_path/'texts')

# a loss that is no number

@pytest.mark.parametrize('rate, name, folder_of', [('--lm-lr', 'forward language model', 'lm'), ('--lr', 'forward classifier', 'classifier')])
def test_a_rate_that_is_far_too_high_ends_the_run(folder, tmp_path, capsys, rate, name, folder_of):
    out = tmp_path/'run'
    for more in ((), ('--resume',)):
        err = error_of(argv(folder, out, rate, 1e38, *more), capsys)
        assert re.search(f'{name} became NaN or infinite in step 1, .*epoch 0.* smaller {rate}( |$)', err.strip())
        assert not list((out/'forward'/folder_of).glob('stage_*.json')) and not (out/'report.json').exists() and not (out/'model.pth').exists()

def test_a_loss_that_only_the_validation_sees():
    learn = lambda *losses: SimpleNamespace(avg_stats=SimpleNamespace(history=[dict(epoch=i, valid_loss=o) for i, o in enumerate(losses)]))
    calm = SimpleNamespace(stopped_at=None)
    assert tu._not_finite(learn(1., 2.), calm) is tu._not_finite(SimpleNamespace(avg_stats=SimpleNamespace(history=[dict(epoch=0)])), calm) is None
    assert tu._not_finite(learn(1., math.inf), calm) == 'the validation of epoch 1'

def test_json_has_no_nan(tmp_path):
    tu._write_json(tmp_path/'o.json', dict(a=[1., math.nan], b=dict(c=-math.inf), d='NaN'))
    assert json.loads((tmp_path/'o.json').read_text(), parse_constant=pytest.fail) == dict(a=[1., None], b=dict(c=None), d='NaN')

# mistakes

@pytest.mark.parametrize('more, message', [(('--epochs', 0), 'not a whole number from 1'), (('--lr', 'fast'), 'not a number'), (('--bs', 1), 'from 2'), (('--drop', 3), 'to 2'), (('--what',), '--what'),
                                           (('--backward', '--ensemble'), '--ensemble'), (('--lang', 'xx-none'), 'xx-none'), (('--encoding', 'rot13'), "'rot13' is no encoding"), (('--encoding', 'klingon'), "'klingon' is no encoding"), (('--subword', 30), 'sentencepiece refuses (Vocabulary size'), (('--pretrained', 'gone.pth'), 'gone.pth'),
                                           (('--lm-bs', 4, '--bptt', 900), 'bptt')])
def test_bad_arguments(folder, tmp_path, capsys, more, message):
    assert message in error_of(argv(folder, tmp_path/'run', *more), capsys)
    assert not (tmp_path/'run'/'report.json').exists()

def test_out_is_required(capsys): assert '--out' in error_of(['--epochs', 1], capsys)

def test_a_run_is_not_overwritten(whole, capsys): assert '--resume' in error_of(argv(*whole, **GRADUAL), capsys)

def test_a_mistake_leaves_no_folder(folder, tmp_path, capsys):
    "Nor those on the way to it; one that was there stays, and can be used."
    error_of(argv(tmp_path/'gone', tmp_path/'new'/'run'), capsys)
    (tmp_path/'old').mkdir()
    error_of(argv(tmp_path/'gone', tmp_path/'old'), capsys)
    assert not (tmp_path/'new').exists() and not os.listdir(tmp_path/'old')
    run(folder, tmp_path/'old')

@pytest.mark.parametrize('out', ['run', 'neg/run', '.'])
def test_a_run_is_not_among_the_texts(folder, tmp_path, capsys, monkeypatch, out):
    "In the next run it would be a class."
    monkeypatch.chdir(tmp_path)
    assert 'is inside of --data' in error_of(argv(folder.name, folder/out), capsys)
    assert sorted(o.name for o in folder.iterdir()) == ['neg', 'pos']

def test_a_run_may_be_beside_its_table(table): run(table, table.parent/'run', '--lm-epochs', 0)

def test_other_files_are_not_mixed_with(folder, tmp_path, capsys):
    (tmp_path/'run').mkdir()
    (tmp_path/'run'/'mine.txt').write_text('')
    assert 'other files' in error_of(argv(folder, tmp_path/'run'), capsys)
    assert 'other files' in error_of(argv(folder, tmp_path/'run'/'mine.txt'), capsys)

def test_a_folder_that_another_process_uses(whole, capsys):
    from filelock import FileLock
    with FileLock(whole[1]/'.lock'): assert 'in use' in error_of(argv(*whole, '--resume', **GRADUAL), capsys)

def test_resume_with_other_settings(whole, capsys):
    err = error_of(argv(*whole, '--resume', '--lr', .5, '--text', 'body', settings=SMALL), capsys)
    assert '--lr was' in err and '--epochs was 2, not 1' in err and '--text was' in err

@pytest.mark.parametrize('what, message', [('missing', 'd: there is no'), ('empty', 'no folders of texts'), ('no texts', 'no file ending in .txt'), ('loose texts', 'no folders of texts'), ('one class', "'neg'"),
                                           ('unseen', "label 'fair'"), ('not UTF-8', '3.txt is not UTF-8'), ('nothing written', 'no word'), ('few', '0 for validation')])
def test_bad_folders(tmp_path, capsys, what, message):
    d = tmp_path/'d'
    if what != 'missing': d.mkdir()
    if what == 'no texts': (d/'neg').mkdir()
    if what == 'loose texts': (d/'a.txt').write_text('a text')
    if what in ('one class', 'few'): make_folder(d/'train', classes=['neg'] if what == 'one class' else ['neg', 'pos'], n=1 if what == 'few' else 8)
    if what in ('not UTF-8', 'nothing written'): make_folder(d/'train')
    if what == 'not UTF-8': (d/'train'/'neg'/'3.txt').write_bytes('für'.encode('latin-1'))
    if what == 'nothing written':
        for p in d.rglob('*.txt'): p.write_text(' ')
    if what == 'unseen':
        make_folder(d/'train')
        make_folder(d/'test', classes=['neg', 'fair'])
    assert message in error_of(argv(d, tmp_path/'run'), capsys)
    assert not (tmp_path/'run').exists()

@pytest.mark.parametrize('what, message', [('no text column', "no column 'text'"), ('no rows', 'no rows'), ('empty', 'table'), ('latin-1', '--encoding'), ('binary', 't.csv'), ('no header', '--no-header'), ('uneven', 'table'), ('commas', 'more fields than its header'), ('no valid', '0 for validation'),
                                           ('bad flag', "row 2: 'maybe'"), ('no labels', '0 texts with a label'), ('one class', "'neg'"), ('unseen', "row 8 is for validation and has the label 'new'")])
def test_bad_tables(tmp_path, capsys, what, message):
    path, rows = tmp_path/'t.csv', [(t, k, int(i > 12)) for i, (t, k) in enumerate(labelled())]
    if what == 'bad flag': rows[1] = (*rows[1][:2], 'maybe')
    if what == 'no valid': rows = [(t, k, 0) for t, k, _ in rows]
    if what == 'no labels': rows = [(t, '', v) for t, _, v in rows]
    if what == 'one class': rows = [(t, 'neg', v) for t, _, v in rows]
    if what == 'unseen': rows[7] = ('a text', 'new', 1)
    make_csv(path, [] if what == 'no rows' else rows, ('words' if what == 'no text column' else 'text', 'label', 'check'))
    if what == 'empty': path.write_text('')
    if what == 'latin-1': path.write_bytes(path.read_bytes() + 'für,neg,0\n'.encode('latin-1'))
    if what == 'binary': path.write_bytes(bytes(range(256)))
    if what == 'commas': path.write_text('text,label,check\n' + 'warm, but dull,neg,0\n'*9)
    if what == 'no header': path.write_text(path.read_text().partition('\n')[2])
    if what == 'uneven': path.write_text(path.read_text() + 'a,b,0,c,d,e\n')
    assert message in error_of(argv(path, tmp_path/'run', '--is-valid', 'check'), capsys)
    assert not (tmp_path/'run').exists()

def test_a_pretrained_model_of_the_other_direction(whole, tmp_path, capsys):
    lm = whole[1]/'forward'/'lm.pth'
    for more in (('--backward', '--pretrained', lm), ('--ensemble', '--pretrained', lm), ('--pretrained', lm, lm)): assert 'for each direction' in error_of(argv(whole[0], tmp_path/'run', *more), capsys)
    assert 'brings its tokenizer' in error_of(argv(whole[0], tmp_path/'run', '--pretrained', lm, '--lang', 'de'), capsys)

def test_a_pretrained_model_is_needed_until_the_language_model_is_done(whole, tmp_path, capsys):
    shutil.copy(whole[1]/'forward'/'lm.pth', lm := tmp_path/'mine.pth')
    run(whole[0], tmp_path/'run', '--pretrained', lm)
    lm.unlink()
    (tmp_path/'run'/'forward'/'encoder.pth').unlink()   # that is in the language model
    run(whole[0], tmp_path/'run', '--pretrained', lm, '--resume')
    (tmp_path/'run'/'forward'/'lm.pth').unlink()
    assert f'no file {lm}' in error_of(argv(whole[0], tmp_path/'run', '--pretrained', lm, '--resume'), capsys)

def test_of_two_pretrained_models_the_one_that_is_still_needed(whole, tmp_path):
    lm = torch.load(whole[1]/'forward'/'lm.pth')
    torch.save(lm | dict(about=json.dumps(json.loads(lm['about']) | dict(backwards=True))), tmp_path/'backward.pth')
    args = tu.ulmfit_parser().parse_args(argv('x', 'x', '--ensemble', '--pretrained', tmp_path/'gone.pth', tmp_path/'backward.pth'))
    assert tu._pretrained(args, [True]) == {True: tmp_path/'backward.pth'} and tu._pretrained(args, []) == {}
    with pytest.raises(tu.UserError, match='gone.pth'): tu._pretrained(args, [False, True])

@pytest.mark.parametrize('change, fits', [(dict(chunksize=7), True), (dict(tokenizer=dict(kind='spacy', lang='de')), False), (dict(post_rules=[]), False)])
def test_two_pretrained_models_cut_texts_in_the_same_way(whole, tmp_path, change, fits):
    lm = torch.load(whole[1]/'forward'/'lm.pth')
    about = json.loads(lm['about'])
    torch.save(lm, tmp_path/'lm.pth')
    torch.save(lm | dict(about=json.dumps(about | dict(backwards=True, tokenizer=about['tokenizer'] | change))), tmp_path/'backward.pth')
    args = tu.ulmfit_parser().parse_args(argv('x', 'x', '--ensemble', '--pretrained', tmp_path/'lm.pth', tmp_path/'backward.pth'))
    if fits: assert len(tu._pretrained(args, [False, True])) == 2
    else:
        with pytest.raises(tu.UserError, match='lm.pth and .*backward.pth cut texts into tokens in different ways'): tu._pretrained(args, [False, True])

def test_a_pretrained_model_by_name(whole, tmp_path, monkeypatch, capsys):
    "The error says where it would be, and how to make it; for the direction that is missing."
    monkeypatch.setenv('EXP_HOME', str(tmp_path/'home'))
    args, file = ('--pretrained', 'wikitext-2'), tu.pretrained_path('wikitext-2')
    err = error_of(argv(whole[0], tmp_path/'run', *args), capsys)
    assert f'no file {file}' in err and f"pretrain_lm(untar_data('wikitext-2'), '{file}')" in err
    file.parent.mkdir(parents=True)
    shutil.copy(whole[1]/'forward'/'lm.pth', file)
    err = error_of(argv(whole[0], tmp_path/'run', '--ensemble', *args), capsys)
    assert 'wikitext-2-backwards' in err and 'backwards=True' in err
    assert 'of these known to the pretrained model' in run(whole[0], tmp_path/'run', *args)['data']

def test_a_pretrained_file_of_another_kind(whole, tmp_path, capsys): assert 'model.pth' in error_of(argv(whole[0], tmp_path/'run', '--pretrained', whole[1]/'model.pth'), capsys)

# texts and labels of any kind

def test_labels_stay_as_they_are_written(tmp_path):
    rows = [(t, '1' if k == 'pos' else 'None') for t, k in labelled()]
    assert run(make_csv(tmp_path/'t.csv', rows), tmp_path/'run')['categories'] == ['1', 'None']

def test_rows_without_a_label_are_for_the_language_model(tmp_path):
    r = run(make_csv(tmp_path/'t.csv', [*labelled(), ('more of a film', ''), ('NA', '')]), tmp_path/'run')
    assert r['data']['texts without a label'] == 2

def test_an_empty_text_among_others(tmp_path):
    rows = [*labelled(), ('', 'neg', ), ('', 'pos')]
    run(make_csv(tmp_path/'t.csv', rows), tmp_path/'run')

def test_labels_that_come_once_are_trained_with(tmp_path):
    rows = [*labelled(), *((f'a fair film, number {i}', f'rare {i}') for i in range(9))]
    for seed in range(4):
        source = tu.table_source(make_csv(tmp_path/'t.csv', rows), ['text'], ['label'])
        train, valid, _ = tu._split(source, .3, seed)
        assert {source.labels[i] for i in train} == {k for _, k in rows} and len(valid) == round(.3*len(rows))

def test_too_few_words_for_the_windows_of_a_language_model(folder, tmp_path, capsys):
    assert 'to validate with have' in error_of(argv(folder, tmp_path/'run', '--bptt', 100), capsys)
    assert not (tmp_path/'run').exists()

def test_a_table_is_read_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(tu._Csv, 'chunksize', 3)
    source = tu.table_source(make_csv(tmp_path/'t.csv', labelled()), ['text'], ['label'])
    assert list(source.texts()) == [t for t, _ in labelled()] and source.labels == [k for _, k in labelled()]

def test_several_processes_give_the_same(folder, tmp_path):
    def ids(workers):
        (to := tmp_path/str(workers)).mkdir()
        args = tu.ulmfit_parser().parse_args(argv(folder, 'x', '--workers', workers))
        source = tu.folder_source(folder)
        tok = tu._tokenizer(args, source, np.arange(len(source)))
        tok.max_workers, tok.chunksize = workers, 3
        words, counts, corpus = tu._tokens(tok, source, [i for i in range(len(source)) if i not in (1, 4)], [1, 4], to)
        return words, counts, [o.tolist() for o in corpus], (to/'valid.jsonl').read_text()
    assert ids(1) == ids(2)

class ReadyTokens(tu.TokenizeProcessor):
    "Gives the same tokens for each text, in no time."
    words, part = [f'w{i}' for i in range(1000)], np.arange(20_000, dtype=np.int32) % 1000
    def proc1(self, item): return []
    def chunks(self, items):
        while n := len(list(itertools.islice(items, 100))): yield self.words, self.part[:200*n], np.full(n, 200)

def test_a_corpus_is_never_in_memory(tmp_path, monkeypatch):
    "8 million tokens, as numbers 32 MB."
    n, labels = 40_000, ['ab'[i % 2] for i in range(40_000)]
    monkeypatch.setattr(tu, 'text_source', lambda args: tu.TextSource(['a text']*n, labels, None, lambda: itertools.repeat('a text', n)))
    monkeypatch.setattr(tu, '_tokenizer', lambda *_: ReadyTokens())
    tracemalloc.start()
    t = tu.read_texts(tu.ulmfit_parser().parse_args(['--out', 'x']), tmp_path/'texts')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert t.ids.n_tokens + t.valid.n_tokens == 200*n and isinstance(t.ids.ids.base, np.memmap) and peak < 4*200*n/2

def test_the_first_stage_keeps_the_order_of_the_texts(tmp_path):
    "Labelled ones first, then those without a label; and each with its own label."
    rows = [(f'{k} text{i}', k if i % 3 else '', i > 20) for i, k in enumerate(['neg', 'pos']*15)]
    path = make_csv(tmp_path/'t.csv', rows, ('text', 'label', 'check'))
    t = tu.read_texts(tu.ulmfit_parser().parse_args(argv(path, 'x', '--is-valid', 'check')), tmp_path/'texts')
    texts = [f'xxbos {r[0]} xxeos' for r in [*(r for r in rows[:21] if r[1]), *(r for r in rows[:21] if not r[1])]]   # what is for validation and has no label is in neither
    assert [' '.join(t.numbers.deproc1(o)) for o in t.ids] == texts and [t.vocab[i] for i in t.y] == [o.split()[1] for o in texts[:t.n_labelled]]
    assert t.names == [f'row {i + 1}' for i in range(21, 30) if i % 3] and t.written([1]) == {1: rows[int(t.names[1][4:]) - 1][0]}

def test_a_text_with_line_breaks_is_kept_as_it_is(tmp_path):
    rows = [(f'one\r\ntwo\u2028three "{i}"\x85\n\u00fc\U0001f600', 'ab'[i % 2], i > 3) for i in range(8)]
    t = tu.read_texts(tu.ulmfit_parser().parse_args(argv(make_csv(tmp_path/'t.csv', rows, ('text', 'label', 'check')), 'x', '--is-valid', 'check')), tmp_path/'texts')
    assert t.written(range(9)) == {i: row[0] for i, row in enumerate(rows[4:])}

def watched(monkeypatch):
    "What is said of how far it is: for each piece of work, how much of how much was done in the end."
    seen, add = {}, tu._Progress.add
    def seen_add(self, n):
        add(self, n)
        seen[self.what] = self.done, self.total
    monkeypatch.setattr(tu._Progress, 'add', seen_add)
    return seen

def test_a_table_is_parsed_twice_and_says_how_far_it_is(table, tmp_path, monkeypatch):
    seen, reads, read = watched(monkeypatch), [], tu._Csv.chunks
    monkeypatch.setattr(tu._Csv, 'chunks', lambda self, *a: reads.append(a) or read(self, *a))
    run(table, tmp_path/'run')
    size = table.stat().st_size
    assert len(reads) == 2 and seen == {'reading labels, byte': (size, size), 'tokenizing, text': (16, 16), 'asking, text': (3, 3)}

def test_learning_pieces_says_how_far_it_is(folder, tmp_path, monkeypatch):
    seen = watched(monkeypatch)
    args = tu.ulmfit_parser().parse_args(argv(folder, 'x', '--subword', 60))
    tok = tu._pieces(args, tu.folder_source(folder), np.arange(16))
    assert seen == {'reading texts to learn pieces from, text': (16, 16)}
    assert tu._pieces(args, tu.folder_source(folder), np.arange(16), most=8).model != tok.model == tu._pieces(args, tu.folder_source(folder), np.arange(16)).model

@pytest.mark.parametrize('suffix, opened', [('.gz', gzip.open), ('.xz', lzma.open)])
def test_a_packed_table(table, suffix, opened):
    with opened(packed := table.with_suffix(f'.csv{suffix}'), 'wb') as f: f.write(table.read_bytes())
    plain, source = (tu.table_source(o, ['text'], ['label']) for o in (table, packed))
    assert list(source.texts()) == list(plain.texts()) and source.labels == plain.labels

# the report

EVIL = '<script>alert(1)</script><img src=x onerror=alert(2)> & "quotes" </td></table>'

class Page(html.parser.HTMLParser):
    "The tags of a page, and the addresses that it loads."
    def __init__(self, text):
        super().__init__()
        self.tags, self.loads, self.text = [], [], ''
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [v for k, v in attrs if k in ('src', 'href', 'srcset') or k.startswith('on')]
    def handle_data(self, data): self.text += data

@pytest.mark.parametrize('several', [False, True])
def test_the_report_shows_what_is_in_texts_and_does_nothing_with_it(tmp_path, several):
    rows = [(EVIL + t, k == 'pos', k == 'neg') if several else (EVIL + t, f'{k}<b>{EVIL}') for t, k in labelled()]
    names = [f'<i>{EVIL}', 'b'] if several else ['label']
    run(make_csv(tmp_path/'t.csv', rows, ('text', *names)), tmp_path/'run', '--labels', *names)
    page = Page((tmp_path/'run'/'report.html').read_text(encoding='utf-8'))
    assert not {'script', 'b', 'i', 'link', 'iframe'} & set(page.tags) and page.tags.count('img') == 1 and '<script>' in page.text
    assert [o[:22] for o in page.loads] == ['data:image/png;base64,']

def test_the_report_needs_no_other_file(whole):
    page = (whole[1]/'report.html').read_text(encoding='utf-8')
    assert 'http' not in page and 'url(' not in page and page.startswith('<!doctype html>') and '<meta charset="utf-8">' in page

def test_the_reports_figures_are_plain_json(tmp_path):
    "A category that was never said has no share of right ones: null, not NaN."
    r = tu.summarize(torch.tensor([[.9, .1, 0], [.8, .2, 0]]), torch.tensor([0, 1]), ['a', 'b', 'c'])
    json.dumps(r, allow_nan=False)
    assert r['by_category'][-1] == dict(category='c', texts=0, recognised=None, right_when_said=None)

def test_the_report_of_a_perfect_model():
    r = tu.summarize(torch.eye(3), torch.arange(3), ['a', 'b', 'c'])
    assert r['accuracy'] == 1 and r['confusion'] == np.eye(3).tolist() and r['loss'] == 0

def test_the_counts_of_each_of_several_labels():
    from sklearn.metrics import multilabel_confusion_matrix
    g = torch.Generator().manual_seed(0)
    probs, targets = torch.rand(40, 3, generator=g), (torch.rand(40, 3, generator=g) < .4).long()
    by = {o['category']: o for o in tu.summarize(probs, targets, list('abc'))['by_category']}
    for label, ((tn, fp), (fn, tp)) in zip('abc', multilabel_confusion_matrix(targets, probs >= .5)):
        assert [by[label][k] for k in ('true_positive', 'false_negative', 'false_positive', 'true_negative')] == [tp, fn, fp, tn]

def test_the_report_names_the_device_and_the_time_of_each_stage(whole):
    r, page = done(whole[1]), (whole[1]/'report.html').read_text(encoding='utf-8')
    assert list(r['stages']) == ['texts', 'forward language model', 'forward classifier'] and min(r['stages'].values()) > 0
    assert sum(r['stages'].values()) > r['seconds'] > 0 and r['device'] == device_name() and html.escape(r['device']) in page
    times = page.partition('<h2>Time</h2>')[2].partition('<h2>')[0]
    assert all(f'>{stage}<' in times for stage in r['stages'])

def test_the_time_before_an_interruption_counts(tmp_path):
    clocks = iter([100., 103., 200., 204.])
    with pytest.MonkeyPatch.context() as m:
        m.setattr(tu.time, 'perf_counter', lambda: next(clocks))
        (tmp_path/'settings.json').write_text('{}')
        with pytest.raises(KeyboardInterrupt), tu._timed(tmp_path, 'texts', tmp_path/'left'): raise KeyboardInterrupt
        with tu._timed(tmp_path, 'texts', tmp_path/'left'): (tmp_path/'left').touch()
    assert tu._seconds(tmp_path) == dict(texts=7.)

def test_the_time_of_a_finished_stage_stays(tmp_path):
    for name in ('settings.json', 'left'): (tmp_path/name).write_text('{}')
    with tu._timed(tmp_path, 'texts', tmp_path/'left'): pass
    assert tu._seconds(tmp_path) == {}
    with tu._timed(tmp_path, 'texts', tmp_path/'left'): (tmp_path/'left').unlink()
    with tu._timed(tmp_path, 'texts', tmp_path/'left'): (tmp_path/'left').write_text('{}')
    once = tu._seconds(tmp_path)
    assert [*once] == ['texts']
    with tu._timed(tmp_path, 'texts', tmp_path/'left'): pass
    assert tu._seconds(tmp_path) == once

@pytest.mark.parametrize('damage', ['', '[', '[1]', '{"texts": "x"}'])
def test_damaged_times_are_left_out(tmp_path, damage):
    for name, text in {'settings.json': '{}', 'seconds.json': damage}.items(): (tmp_path/name).write_text(text)
    with tu._timed(tmp_path, 'texts', tmp_path/'left'): (tmp_path/'left').touch()
    assert list(tu._seconds(tmp_path)) == ['texts']

def test_a_time_that_cant_be_written_hides_no_error(tmp_path, monkeypatch):
    (tmp_path/'settings.json').write_text('{}')
    def full(*_): raise OSError('no space left')
    monkeypatch.setattr(tu, '_write_json', full)
    with pytest.raises(ZeroDivisionError), tu._timed(tmp_path, 'texts', tmp_path/'left'): 1/0
    with tu._timed(tmp_path, 'texts', tmp_path/'left'): (tmp_path/'left').touch()

def test_a_class_folder_without_texts_is_warned_of(tmp_path):
    d = make_folder(tmp_path/'d')
    (d/'fair').mkdir()
    with pytest.warns(UserWarning, match='no text in .*fair'): found = tu.folder_source(d)
    assert {*found.labels} == {'neg', 'pos'}

def usage(out): return html.unescape(re.search('<pre>(.*?)</pre>', (out/'report.html').read_text(encoding='utf-8'), re.S)[1])

def test_the_report_says_how_to_predict(whole, capsys):
    exec(usage(whole[1]), {})
    assert len(usage(whole[1]).splitlines()) == 3 and 'Prediction(label=' in capsys.readouterr().out

def test_the_report_says_how_an_ensemble_predicts(both, asked, capsys):
    exec(usage(both[1]), names := {})
    assert len(usage(both[1]).splitlines()) == 3 and 'Prediction(label=' in capsys.readouterr().out
    assert torch.allclose(names['learn'].predict_probs(to_validate(both[0])[0]), (asked['forward'] + asked['backward'])/2, atol=1e-5)

@pytest.mark.parametrize('texts, labels', [(['title', 'body'], ['label']), (['body'], ['neg', 'pos']), (["the film's title", 'body'], ['neg', 'pos'])])
def test_the_report_says_how_to_predict_with_several_columns(tmp_path, capsys, texts, labels):
    table = make_csv(tmp_path/'t.csv', [('A film', t, k, k == 'neg', k == 'pos') for t, k in labelled()], (texts[0] if len(texts) > 1 else 'title', 'body', 'label', 'neg', 'pos'))
    run(table, tmp_path/"the film's", '--lm-epochs', 0, '--text', *texts, '--labels', *labels)
    exec(usage(tmp_path/"the film's"), {})
    assert 'Prediction(label=' in capsys.readouterr().out

def test_perplexities_are_those_of_the_language_models_in_the_end(both):
    "After their last epoch, and of what was kept."
    r, args = done(both[1]), tu.ulmfit_parser().parse_args(argv(*both))
    for d, backwards in dict(forward=False, backward=True).items():
        losses = [o['valid_loss'] for o in r['history'][f'{d} language model']]
        assert len(losses) == 2 and r['perplexities'][d] == pytest.approx(math.exp(losses[1])) != pytest.approx(math.exp(losses[0]))
        learn = load_lm(both[1]/d/'lm.pth', tu.ulmfit_lm_data(tu.load_texts(both[1]/'texts'), args, backwards))
        assert learn.token_losses().mean().exp().item() == pytest.approx(r['perplexities'][d], rel=1e-3)

def test_worst_texts_are_named_and_cut(tmp_path):
    d = make_folder(tmp_path/'d')
    for p in d.rglob('*.txt'): p.write_text(p.read_text() + f' {"abcdefghijkl"*16}'*10)
    worst = run(d, tmp_path/'run')['worst']
    assert all((d/o['where']).exists() and len(o['text']) < 1600 and ' … ' in o['text'] for o in worst) and len(worst) == 3

def test_worst_texts_are_shown_as_they_were_written(folder, tmp_path):
    "Also when the data is gone since."
    for p in folder.rglob('*.txt'): p.write_text(f'What a RARITY, {p.stem}!!!!!')
    written = run(folder, tmp_path/'run', '--min-freq', 2)['worst']
    assert all(o['text'] == (folder/o['where']).read_text() for o in written)
    shutil.rmtree(folder)
    (tmp_path/'run'/'report.json').unlink()
    assert run(folder, tmp_path/'run', '--min-freq', 2, '--resume')['worst'] == written

# as a command

def command(root, *args):
    return subprocess.run([sys.executable, '-m', 'exp.train_ulmfit', *args], cwd=root, capture_output=True, text=True, env={**os.environ, 'MPLBACKEND': 'Agg', 'OMP_NUM_THREADS': '1'})

def test_help_explains_every_option(root):
    done, actions = command(root, '--help'), tu.ulmfit_parser()._actions
    assert done.returncode == 0 and all(a.option_strings[-1] in done.stdout and a.help for a in actions)
    assert 'wikitext-2' in done.stdout and 'default: None' not in done.stdout and 'default: False' not in done.stdout and f"default: {tu.ulmfit_recipe['lr']}" in re.sub(r'\s+', ' ', done.stdout)

def test_the_command_fails_with_status_2(root, tmp_path):
    done = command(root, '--data', str(tmp_path/'gone'), '--out', str(tmp_path/'run'))
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and 'gone' in done.stderr and not done.stdout

def test_a_label_that_the_terminal_has_no_letters_for(root, table, tmp_path):
    path = make_csv(tmp_path/'t.csv', [(t, dict(neg='差', pos='好')[k]) for t, k in labelled()])
    done_ = subprocess.run([sys.executable, '-m', 'exp.train_ulmfit', *argv(path, tmp_path/'run', '--lm-epochs', '0')], cwd=root, capture_output=True, encoding='cp1252', env={**os.environ, 'MPLBACKEND': 'Agg', 'OMP_NUM_THREADS': '1', 'PYTHONIOENCODING': 'cp1252'})
    assert done_.returncode == 0 and r'\u597d' in done_.stdout, done_.stderr
    assert done(tmp_path/'run')['categories'] == ['好', '差']

def test_a_warning_is_a_line(root, folder, tmp_path):
    (folder/'more').mkdir()
    done = command(root, *argv(folder, tmp_path/'run', '--lm-epochs', '0'))
    assert done.returncode == 0 and re.search(r'^train_ulmfit: .*no text in .*more', done.stderr, re.M) and 'warn(' not in done.stderr and '.py:' not in done.stderr

def test_the_readmes_lines_about_texts(root, tmp_path, monkeypatch):
    "Its command, on a table such as it names and with small sizes; then its lines that use the model."
    section = (root/'README.md').read_text(encoding='utf-8').partition('### Training on your own texts')[2].partition('\n## ')[0]
    options, resume, predict = re.findall(r'^python -m exp.train_ulmfit (.*?)(?:  +#.*)?$', section, re.M)
    args = tu.ulmfit_parser().parse_args(shlex.split(options))
    monkeypatch.chdir(tmp_path)
    make_csv(tmp_path/args.data, [(*[t]*len(args.text), *[k]*len(args.labels)) for t, k in labelled()], [*args.text, *args.labels])
    assert tu.ulmfit_main([*shlex.split(options), *map(str, FAST)]) == 0 and f'{args.out}/report.html' in section and (tmp_path/args.out/'report.html').exists()
    assert tu.ulmfit_main(shlex.split(resume)) == 0
    new = tu.ulmfit_parser().parse_args(shlex.split(predict)).predict
    make_csv(tmp_path/new, [[t]*len(args.text) for t, _ in labelled(2)], args.text)
    assert tu.ulmfit_main(shlex.split(predict)) == 0 and f'{args.out}/predictions.csv' in section and len(predictions(tmp_path/args.out)) == 4
    *lines, last = re.findall(r'^>>> (.*)$', section, re.M)
    exec('\n'.join(lines), names := {})
    assert eval(last, names) in ('neg', 'pos')

@pytest.mark.parametrize('train, valid', [('train', 'validation'), ('Train', 'Test'), ('train', 'dev')])
def test_folders_by_other_names(tmp_path, train, valid):
    for part, n in ((train, 3), (valid, 2)):
        for c in ('neg', 'pos'):
            (tmp_path/part/c).mkdir(parents=True)
            for i in range(n): (tmp_path/part/c/f'{i}.txt').write_text(f'{c} {i}')
    s = tu.folder_source(tmp_path)
    assert sum(s.is_valid) == 4 and len(s) == 10 and {*s.labels} == {'neg', 'pos'}

def test_what_lies_unused_beside_train_is_said(tmp_path):
    make_folder(tmp_path/'d'/'train')
    (d := tmp_path/'d').joinpath('more').mkdir()
    with pytest.warns(UserWarning, match='what is in more is not used'): tu.folder_source(d)

def test_a_text_to_validate_with_needs_a_label(tmp_path, capsys):
    rows = [(f'{k} word{i}', k if i % 5 else '', i > 20) for i, k in enumerate(['neg', 'pos']*15)]
    t = tu.read_texts(tu.ulmfit_parser().parse_args(argv(make_csv(tmp_path/'t.csv', rows, ('text', 'label', 'check')), 'x', '--is-valid', 'check')), tmp_path/'texts')
    assert 'word25' not in t.numbers.vocab and 'word20' in t.numbers.vocab and len(t.ids) + len(t.valid) == 30 - 1 and '1 that are for validation' in capsys.readouterr().out

def test_the_row_is_said_after_which_a_file_is_no_text(tmp_path):
    file = tmp_path/'t.csv'
    file.write_bytes(b'label,text\n' + b'a,some words here\n'*100_000 + b'a,caf\xe9\n')
    with pytest.raises(tu.DataError, match=r'not UTF-8 text after row [1-9][0-9,]*00 .*--encoding'): list(tu.table_source(file, ['text'], ['label']).texts())

def test_a_label_that_is_nowhere_has_no_f1():
    r = tu.summarize(torch.tensor([[.9, .1], [.2, .1]]), torch.tensor([[1, 0], [0, 0]]), ['a', 'b'])
    assert r['f1'] == 1. and r['by_category'][-1]['f1'] is None

@pytest.mark.parametrize('n', [200, 201])
def test_confusion_of_very_many_categories_is_left_out(n):
    r = tu.summarize(torch.eye(n), torch.arange(n), list(range(n)))
    assert ('confusion' in r) == (n == 200) and r['accuracy'] == 1.

def test_texts_that_stand_on_both_sides_are_counted(table, tmp_path):
    rows = [('the same words', 'pos'), *[(f'text number {i} is {k}', k) for i, k in enumerate(['neg', 'pos']*12)]]
    rows = [(*r, 0) for r in rows] + [('the same words', 'pos', 1), ('other words', 'neg', 1)]
    r = run(make_csv(tmp_path/'t.csv', rows, ('text', 'label', 'check')), tmp_path/'run', '--is-valid', 'check')
    assert r['data']['of these also among the training texts'] == 1

def test_sizes_of_batches_may_change(folder, tmp_path, monkeypatch):
    cut_off(argv(folder, tmp_path/'run'), monkeypatch, 2, 0)
    r = run(folder, tmp_path/'run', '--resume', '--bs', 2, '--lm-bs', 3)
    assert r['settings']['bs'] == 2

def test_too_little_memory_is_said(folder, tmp_path, monkeypatch, capsys):
    def full(*_, **__): raise torch.OutOfMemoryError('CUDA out of memory')
    with monkeypatch.context() as m:
        m.setattr(tu, 'train_classifier', full)
        assert '--resume and a smaller --bs' in error_of(argv(folder, tmp_path/'run'), capsys)
    run(folder, tmp_path/'run', '--resume', '--bs', 2)

@pytest.mark.parametrize('error, message', [(MemoryError(), 'a smaller --bs'), (RuntimeError('cuDNN error: CUDNN_STATUS_ALLOC_FAILED'), 'a smaller --bs'), (FloatingPointError('40 overflows'), '40 overflows')])
def test_errors_that_say_what_to_do(folder, tmp_path, monkeypatch, capsys, error, message):
    def fails(*_, **__): raise error
    monkeypatch.setattr(tu, 'train_classifier', fails)
    assert message in error_of(argv(folder, tmp_path/'run', '--lm-epochs', 0), capsys)

def test_other_errors_are_shown_whole(folder, tmp_path, monkeypatch):
    def fails(*_, **__): raise RuntimeError('a mistake in the program')
    monkeypatch.setattr(tu, 'train_classifier', fails)
    with pytest.raises(RuntimeError, match='a mistake'): tu.ulmfit_main(argv(folder, tmp_path/'run', '--lm-epochs', 0))

def test_a_training_that_was_done_goes_to_the_device_too(folder, tmp_path, monkeypatch):
    args = tu.ulmfit_parser().parse_args(argv(folder, 'x'))
    data = tu.ulmfit_clas_data(tu.read_texts(args, tmp_path/'texts'), args, False)
    def make(): return tu.text_classifier_learner(data, 6, 8, 2, xtra_cb=[tu.Recorder], progress=False)
    def trained(): return tu.train_in_stages(make, [tu.Stage(0, 1, [.01]*4)], tmp_path/'training', 0)[0]
    trained()
    monkeypatch.setattr(tu, 'default_device', lambda: torch.device('meta'))
    assert all(p.is_meta for p in trained().model.parameters())

def test_no_stage_is_shorter_than_its_epochs(tmp_path):
    "A process that was killed has left only these."
    (tmp_path/'seconds.json').write_text('{"texts": 2.0, "forward classifier": 3.0}')
    history = {'forward language model': [dict(time=5.), dict(time=6.)], 'forward classifier': [dict(time=1.)]}
    assert tu._stage_times(tmp_path, history) == {'texts': 2., 'forward classifier': 3., 'forward language model': 11.}

def test_a_model_of_several_columns_takes_rows(tmp_path):
    rows = [(f'subject {i}', f'a {k} body', k) for i, k in enumerate(['neg', 'pos']*12)]
    run(make_csv(tmp_path/'t.csv', rows, ('subject', 'body', 'label')), tmp_path/'run', '--text', 'subject', 'body')
    learn, row = load_learner(tmp_path/'run'/'model.pth'), dict(body='a pos body', subject='subject 3', other=1)
    joined = tu.join_columns(tu.pd.DataFrame([row]), ['subject', 'body'])
    expected = learn.predict_probs(joined)
    for o in (row, [row], tu.pd.DataFrame([row]), [tu.pd.Series(row)]): assert torch.equal(learn.predict_probs(o), expected)
    assert learn.explain(row).words[:1] == learn.explain(joined[0]).words[:1]
    with pytest.raises(TypeError, match="'subject', 'body'"): learn.predict('a pos body')
    with pytest.raises(ValueError, match="no column 'subject'"): learn.predict(dict(body='x'))

def test_the_report_has_the_sizes_of_the_network(folder, tmp_path):
    r = run(folder, tmp_path/'run')
    assert r['network'] == {k: r['settings'][k] for k in ('emb_sz', 'n_hid', 'n_layers')}
    r = run(folder, tmp_path/'more', '--pretrained', tmp_path/'run'/'forward'/'lm.pth', '--emb-sz', 99)
    assert r['network']['emb_sz'] != 99 and 'emb_sz' not in r['settings']

# ---- rates, rows, pieces: what suits the size of things

def stages_of(args, out, monkeypatch):
    seen = stages_seen(monkeypatch, lambda learn, stage: stage)
    assert tu.ulmfit_main(args) == 0
    return seen

@pytest.mark.parametrize('width, more, rates', [(8, (), [.01, .008, .0064]), (501, (), [.01, .005, .0025]), (501, ('--decay', .8), [.01, .008, .0064]), (8, ('--decay', .5), [.01, .005, .0025])])
def test_rates_of_the_thaw_suit_the_width(folder, tmp_path, monkeypatch, width, more, rates):
    args = argv(folder, tmp_path/'run', '--n-hid', width, '--n-layers', 1, '--emb-sz', 2, '--lm-epochs', 1, *more, settings=SMALL)
    _, *thaw = stages_of(args, tmp_path/'run', monkeypatch)
    assert [s.lrs[-1] for s in thaw] == pytest.approx(rates) and [s.freeze_to for s in thaw] == [-1, -2, 0]
    assert thaw[-1].lrs[-2] == pytest.approx(thaw[-1].lrs[-1]/(1 if width == 8 else 2.6))

@pytest.mark.parametrize('width, more, div', [(8, (), 1), (501, (), 2.6), (8, ('--div', 2), 2)])
def test_a_language_model_that_has_read_before_finds_places_for_its_words_first(width, more, div):
    args = tu.ulmfit_parser().parse_args(argv('x', 'y', '--lm-epochs', 3, '--lm-lr', .1, '--pretrained', 'lm.pth', *more, settings=()))
    last, whole = tu._lm_stages(args, 3, width)
    assert (last.freeze_to, last.epochs, last.lrs[-1], whole.freeze_to, whole.epochs) == (-1, 1, .1, 0, 3)
    assert whole.lrs == pytest.approx([.05/div**2, .05/div, .05])

def test_without_a_language_model_all_layers_learn_at_once(folder, tmp_path, monkeypatch):
    stage, = stages_of(argv(folder, tmp_path/'run', '--lm-epochs', 0, '--div', 3, settings=SMALL), tmp_path/'run', monkeypatch)
    assert stage.freeze_to == 0 and stage.epochs == 1 and stage.lrs == [.01]*4

def test_few_texts_for_validation_leave_the_training_its_rows(tmp_path, capsys):
    rows = [(f'{w} {w} film', w, 0) for w in ('good', 'bad')]*40 + [('good', 'good', 1), ('bad film film', 'bad', 1)]
    path = make_csv(tmp_path/'t.csv', rows, ('text', 'label', 'check'))
    args = tu.ulmfit_parser().parse_args(argv(path, 'x', '--is-valid', 'check', '--lm-bs', 10, '--bptt', 4))
    t = tu.read_texts(args, tmp_path/'texts')
    data = tu.ulmfit_lm_data(t, args, False)
    assert (data.train_dl.batch_size, data.valid_dl.batch_size) == (10, 1) and 'rows at a time' not in capsys.readouterr().out
    args.lm_bs = 1000
    assert tu.ulmfit_lm_data(t, args, False).train_dl.batch_size == 80 and 'reads 80 rows at a time, not 1000' in capsys.readouterr().out

def test_pieces_are_learned_from_texts_without_labels_too(tmp_path, monkeypatch):
    pytest.importorskip('sentencepiece')
    path, seen = make_csv(tmp_path/'t.csv', [(f'text {i}', 'ab'[i % 2] if i < 10 else '') for i in range(40)]), []
    def train(texts, n):
        seen.extend(texts)
        raise RuntimeError('enough')
    monkeypatch.setattr(tu.SubwordTokenizer, 'train', train)
    assert tu.ulmfit_main(argv(path, tmp_path/'run', '--subword', 30)) == 2
    assert len(seen) == 38 and {f'text {i}' for i in range(10, 40)} < {*seen}

def test_the_size_of_chunks_is_not_kept(folder, tmp_path):
    t = tu.read_texts(tu.ulmfit_parser().parse_args(argv(folder, 'x')), tmp_path/'texts')
    assert t.tokens.chunksize == tu.TokenizeProcessor().chunksize

def test_numbers_as_labels_are_in_their_order(tmp_path):
    path = make_csv(tmp_path/'t.csv', [('text', str(i % 11)) for i in range(110)])
    t = tu.read_texts(tu.ulmfit_parser().parse_args(argv(path, 'x')), tmp_path/'texts')
    assert t.vocab == [str(i) for i in range(11)]

@pytest.mark.parametrize('labels', [['10', 'nan', '2', '1'], ['inf', '3', 'nan'], ['1', 'x', '10']])
def test_labels_that_are_not_all_finite_numbers_are_in_the_order_of_words(labels):
    "However they came: a set has another order in each process."
    for some in itertools.permutations(labels): assert tu._in_order(some) == sorted(labels)

def test_a_pretrained_model_as_it_is_takes_short_texts(both, tmp_path):
    rows = [('a good film', 'good', 0), ('a dull film', 'bad', 0)]*6 + [('good', 'good', 1), ('dull', 'bad', 1)]
    path = make_csv(tmp_path/'t.csv', rows, ('text', 'label', 'check'))
    run(path, tmp_path/'run', '--is-valid', 'check', '--pretrained', both[1]/'forward'/'lm.pth', '--lm-epochs', 0)
    assert tu.ulmfit_main(argv(path, tmp_path/'more', '--is-valid', 'check', '--pretrained', both[1]/'forward'/'lm.pth', '--lm-epochs', 1)) == 2
    assert not (tmp_path/'more').exists()

@pytest.mark.parametrize('name, dtype', [('bfloat16', torch.bfloat16), (None, None)])
def test_the_format_of_mixed_precision(name, dtype):
    args = tu.ulmfit_parser().parse_args(['--out', 'x', '--amp', *([name] if name else [])])
    recorder, amp = tu._xtra(args)
    a, b = amp(), amp()
    assert type(a) is AmpCallback and a.dtype == dtype and a is not b

# ---- a run that goes on

def test_resume_needs_no_other_words(whole, tmp_path, monkeypatch):
    cut_off(argv(whole[0], out := tmp_path/'cut', **GRADUAL), monkeypatch, 2, 0)
    assert tu.ulmfit_main(['--out', str(out), '--resume']) == 0
    same(whole[1], out)
    assert json.loads((out/'settings.json').read_text()) == json.loads((whole[1]/'settings.json').read_text())

def test_a_smaller_batch_stays_for_the_next_time(folder, tmp_path, monkeypatch):
    cut_off(argv(folder, out := tmp_path/'run', settings=SMALL), monkeypatch, 2, 0)
    cut_off(['--out', str(out), '--resume', '--bs', '2'], monkeypatch, 1, 0)
    seen = stages_seen(monkeypatch, lambda learn, stage: learn.data.train_dl.batch_sampler.batch_size)
    assert tu.ulmfit_main(['--out', str(out), '--resume']) == 0 and {*seen} == {2}

def test_other_texts_are_trained_on_anew(tmp_path, capsys):
    path = make_csv(tmp_path/'t.csv', labelled())
    before = run(path, tmp_path/'run')
    make_csv(path, [*labelled(), ('a new word', 'neg')])
    shutil.rmtree(tmp_path/'run'/'texts')
    capsys.readouterr()
    after = run(path, tmp_path/'run', '--resume')
    assert 'the texts are others now' in capsys.readouterr().out and after['data']['training texts'] == before['data']['training texts'] + 1
    fresh = run(path, tmp_path/'fresh')
    assert without_times(after) == without_times(fresh)

def test_the_same_texts_made_again_keep_what_was_trained(folder, tmp_path, capsys):
    run(folder, tmp_path/'run')
    shutil.rmtree(tmp_path/'run'/'texts')
    capsys.readouterr()
    run(folder, tmp_path/'run', '--resume')
    out = capsys.readouterr().out
    assert 'others now' not in out and 'step' not in out

# ---- tables and folders of other kinds

def test_two_folders_without_labels_keep_their_order(tmp_path):
    make_folder(d := tmp_path/'d'/'train')
    for name in ('unsup', 'train/unsup'):
        (d.parent/name).mkdir()
        (d.parent/name/'1.txt').write_text(name)
    assert tu.folder_source(d.parent).names[-2:] == ['unsup/1.txt', 'train/unsup/1.txt']

@pytest.mark.skipif(sys.platform != 'linux', reason='other systems have no such names')
@pytest.mark.parametrize('option', ['--out', '--data'])
def test_a_path_that_is_not_utf_8_is_refused_at_once(folder, tmp_path, capsys, monkeypatch, option):
    monkeypatch.setattr(tu, 'read_texts', None)
    strange = tmp_path/os.fsdecode(b'caf\xe9')
    assert f'{option} {tmp_path}/caf\\xe9: this name is not UTF-8' in error_of(argv(*((folder, strange) if option == '--out' else (strange, tmp_path/'run'))), capsys)
    assert not strange.exists()

def test_names_that_are_not_utf_8(tmp_path):
    d = make_folder(tmp_path/'d', n=6, classes=('neg', 'pos'))
    for i, f in enumerate((d/'neg').iterdir()): f.rename(f.with_name(os.fsdecode(b'caf\xe9%d.txt' % i)))
    (d/'neg').rename(d/os.fsdecode(b'n\xe9g'))
    r = run(d, tmp_path/'run', '--valid', .5)
    assert r['categories'] == [r'n\xe9g', 'pos'] and {o['where'] for o in r['worst']} & {rf'n\xe9g/caf\xe9{i}.txt' for i in range(6)}
    assert tu.ulmfit_main(['--out', str(tmp_path/'run'), '--predict', str(d)]) == 0
    assert {row['where'] for row in predictions(tmp_path/'run')} > {rf'n\xe9g/caf\xe9{i}.txt' for i in range(6)}

@pytest.mark.parametrize('name, sign, more', [('t.tsv', '\t', ()), ('t.csv', ';', ('--sep', ';')), ('t.csv', '\t', ('--sep', 'tab')), ('t.tsv.gz', '\t', ())])
def test_signs_between_fields(tmp_path, name, sign, more):
    text = '\n'.join(sign.join(row) for row in [('text', 'label'), ('one, two', 'a'), ('three', 'b')])
    (gzip.open if name.endswith('gz') else open)(tmp_path/name, 'wt').write(text)
    source = tu.text_source(tu.ulmfit_parser().parse_args(argv(tmp_path/name, 'x', *more)))
    assert list(source.texts()) == ['one, two', 'three'] and source.labels == ['a', 'b']

@pytest.mark.parametrize('sign, name', [(';', '--sep ";"'), ('\t', '--sep tab')])
def test_another_sign_between_fields_is_guessed(tmp_path, capsys, sign, name):
    (tmp_path/'t.csv').write_text(f'text{sign}label\na{sign}b\n')
    assert name in error_of(argv(tmp_path/'t.csv', tmp_path/'run'), capsys)

def test_a_comma_between_fields_is_guessed(table, tmp_path, capsys): assert '--sep ","' in error_of(argv(table, tmp_path/'run', '--sep', ';'), capsys)

QUOTES = [('text', 'label'), ('"Great start', 'pos'), ('foo', 'neg'), ('bar', 'neg'), ('"Bad" end', 'neg'), ('so-so"', 'pos')]

def test_quotation_marks_as_characters(tmp_path):
    (tmp_path/'t.tsv').write_text('\n'.join(map('\t'.join, QUOTES)) + '\n')
    with pytest.warns(UserWarning, match='t.tsv, row 1: .*--no-quotes'): source = tu.table_source(tmp_path/'t.tsv', ['text'], ['label'])
    assert len(source) < 5
    source = tu.text_source(tu.ulmfit_parser().parse_args(argv(tmp_path/'t.tsv', 'x', '--no-quotes')))
    assert [*zip(source.texts(), source.labels)] == QUOTES[1:]

@pytest.mark.parametrize('name', ['t.tsv', 't.csv'])
def test_quotation_that_is_usual_is_not_suspected(tmp_path, name, recwarn):
    import pandas as pd
    rows = pd.DataFrame(dict(text=['over\nlines, with "marks"', 'and "more"', '\tand tabs'], label=['a', 'b', 'a']))
    rows.to_csv(tmp_path/name, index=False, sep='\t' if name == 't.tsv' else ',')
    source = tu.table_source(tmp_path/name, ['text'], ['label'])
    assert [*source.texts()] == rows.text.tolist() and not recwarn

def test_blank_rows_of_a_table_of_one_column_count(tmp_path):
    import pandas as pd
    texts = ['a lovely film', '   ', 'an awful film', '', 'warm heart']
    pd.DataFrame(dict(text=texts)).to_csv(tmp_path/'t.csv', index=False)
    source = tu.table_source(tmp_path/'t.csv', ['text'], [])
    assert [*source.texts()] == texts and source.names == [f'row {i}' for i in range(1, 6)]
    (tmp_path/'plain.csv').write_text('one\n\ntwo\n')
    assert [*tu.table_source(tmp_path/'plain.csv', ['0'], [], header=False).texts()] == ['one', '', 'two']
    (tmp_path/'two.csv').write_text('text,label\n\na,b\n\n')   # with more columns, an empty line is no row
    assert [*tu.table_source(tmp_path/'two.csv', ['text'], ['label']).texts()] == ['a']

@pytest.mark.parametrize('name', ['t.parquet', 't.jsonl', 't.XLSX', 't.json.gz'])
def test_tables_that_are_no_csv_are_named(tmp_path, capsys, name):
    (tmp_path/name).write_bytes(b'PAR1')
    assert f'and not .{name.split(".")[1].lower()}' in error_of(argv(tmp_path/name, tmp_path/'run'), capsys)

@pytest.mark.parametrize('name', ['t.csv.zip', 't.csv.gz', 't.csv.bz2', 't.csv.xz'])
@pytest.mark.parametrize('n', [0, 30])
def test_packed_tables_that_are_cut_off(tmp_path, capsys, name, n):
    import pandas as pd
    pd.DataFrame(labelled(40), columns=['text', 'label']).to_csv(tmp_path/name, index=False)
    (tmp_path/name).write_bytes((tmp_path/name).read_bytes()[:n and -n])
    assert name in error_of(argv(tmp_path/name, tmp_path/'run'), capsys)

@pytest.mark.parametrize('more, column', [(('--text', 'text', 'text'), 'text'), (('--labels', 'label', '--is-valid', 'label'), 'label')])
def test_a_column_that_is_asked_for_twice(table, tmp_path, capsys, more, column):
    assert f"the column '{column}' is asked for twice" in error_of(argv(table, tmp_path/'run', *more), capsys)

def test_unsup_in_any_spelling_and_place(tmp_path):
    d = make_folder(tmp_path/'d'/'Train').parent
    for place in (d/'UNSUP', d/'Train'/'Unsup'):
        place.mkdir()
        (place/'1.txt').write_text('a text')
    source = tu.folder_source(d)
    assert source.labels.count(None) == 2 and {*source.labels} == {'neg', 'pos', None}

def test_a_class_may_be_called_as_a_part(tmp_path):
    assert {*tu.folder_source(make_folder(tmp_path/'d', classes=('train', 'bus', 'test'))).labels} == {'train', 'bus', 'test'}

def test_a_test_set_beside_classes_is_left_alone(tmp_path):
    make_folder(d := tmp_path/'d')
    make_folder(d/'test')
    with pytest.warns(UserWarning, match='what is in test is not used'): source = tu.folder_source(d)
    assert {*source.labels} == {'neg', 'pos'} and len(source) == 16 and source.is_valid is None

# ---- labels for new texts

def predictions(out):
    with open(out/'predictions.csv', encoding='utf-8', newline='') as f: return list(csv.DictReader(f))

def asked_to_predict(out, data, capsys):
    capsys.readouterr()
    assert tu.ulmfit_main(['--out', str(out), '--predict', str(data)]) == 0
    return capsys.readouterr().out

def test_labels_for_a_folder(both, tmp_path, capsys):
    out = tmp_path/'moved'
    shutil.copytree(both[1], out)
    said = asked_to_predict(out, both[0]/'test', capsys)
    rows, texts = predictions(out), [(both[0]/'test'/r['where']).read_text() for r in predictions(out)]
    learn = tu.TextEnsemble([load_learner(out/'model.pth'), load_learner(out/'model_backward.pth')])
    assert [r['label'] for r in rows] == [o.label for o in learn.predict_many(texts)]
    assert np.array([[float(r[f'p({c})']) for c in learn.recipe.labels] for r in rows]) == pytest.approx(learn.predict_probs(texts).numpy(), rel=1e-3)
    right = sum(r['label'] == r['where'].split('/')[0] for r in rows)
    assert f'{right/len(rows):.4f} of the {len(rows)} with a label are right' in said and done(out)['accuracy'] == pytest.approx(right/len(rows))

def test_labels_for_a_table_without_any(table, tmp_path, capsys):
    run(table, out := tmp_path/'run')
    make_csv(tmp_path/'new.csv', [(1, t) for t in texts_of('pos', 5, seed=3)], ('id', 'text'))
    said = asked_to_predict(out, tmp_path/'new.csv', capsys)
    learn = load_learner(out/'model.pth')
    assert 'right' not in said and [r['label'] for r in predictions(out)] == [o.label for o in learn.predict_many(texts_of('pos', 5, seed=3))]
    assert [r['where'] for r in predictions(out)] == [f'row {i}' for i in range(1, 6)]

def test_labels_of_a_table_of_several_columns(tmp_path, capsys):
    rows = [(t, 'a title', 0, int('lovely' in t), int('awful' in t)) for t, _ in labelled(10)]
    path = make_csv(tmp_path/'t.csv', rows, ('body', 'title', 'x', 'good', 'bad'))
    run(path, out := tmp_path/'run', '--text', 'title', 'body', '--labels', 'good', 'bad')
    said = asked_to_predict(out, path, capsys)
    learn, found = load_learner(out/'model.pth'), predictions(out)
    wanted = [o.label for o in learn.predict_many([dict(title=r[1], body=r[0]) for r in rows])]
    assert [r['label'] for r in found] == [', '.join(o) for o in wanted]
    right = sum(o == [n for n, on in (('good', r[3]), ('bad', r[4])) if on] for o, r in zip(wanted, rows))
    assert f'{right/20:.4f} of the 20 with a label' in said

def test_labels_that_the_run_does_not_know_are_counted_apart(table, tmp_path, capsys):
    run(table, out := tmp_path/'run')
    said = asked_to_predict(out, make_csv(tmp_path/'new.csv', [*labelled(2), ('a text', '0'), ('a text', '0'), ('a text', '1')]), capsys)
    assert 'of the 4 with a label are right' in said and "3 have labels that the run does not know, such as '0': it knows 'neg', 'pos'" in said
    said = asked_to_predict(out, make_csv(tmp_path/'new.csv', [('a text', '0')]), capsys)
    assert 'right' not in said and '1 have labels' in said
    assert 'does not know' not in asked_to_predict(out, table, capsys)

def test_several_columns_are_not_joined_for_a_run_that_knows_one(table, folder, tmp_path, capsys):
    run(table, tmp_path/'of_table')
    run(folder, tmp_path/'of_folder')
    path = make_csv(tmp_path/'new.csv', [('a', 'b')], ('title', 'text'))
    for out in ('of_table', 'of_folder'):
        assert '--text names 2 columns: give it one' in error_of(['--out', tmp_path/out, '--predict', path, '--text', 'title', 'text'], capsys)
        asked_to_predict(tmp_path/out, path, capsys)

@pytest.mark.parametrize('what, why', [('gone.csv', 'no such folder or file'), ('empty', 'no file ending in .txt'), ('bad.csv', "no column 'text'")])
def test_what_cannot_be_predicted(whole, tmp_path, capsys, what, why):
    (tmp_path/'empty').mkdir()
    make_csv(tmp_path/'bad.csv', [('a', 'b')], ('body', 'label'))
    before = {f: f.read_bytes() for f in whole[1].rglob('*') if f.is_file()}
    assert why in error_of(['--out', whole[1], '--predict', tmp_path/what], capsys)
    assert {f: f.read_bytes() for f in whole[1].rglob('*') if f.is_file()} == before

def test_labels_in_another_order_and_folders_named_like_labels(tmp_path, capsys):
    rows = [(t, int('lovely' in t), int('awful' in t)) for t, _ in labelled(10)]
    run(make_csv(tmp_path/'t.csv', rows, ('text', 'good', 'bad')), out := tmp_path/'run', '--labels', 'good', 'bad')
    said = asked_to_predict(out, tmp_path/'t.csv', capsys)
    assert 'of the 20 with a label are right' in said
    assert tu.ulmfit_main(['--out', str(out), '--predict', str(tmp_path/'t.csv'), '--labels', 'bad', 'good']) == 0
    assert capsys.readouterr().out.splitlines()[-1] == said.splitlines()[-1]
    make_folder(tmp_path/'new', n=2, classes=('good', 'bad'))
    assert 'right' not in asked_to_predict(out, tmp_path/'new', capsys)   # one label says nothing about several

def test_settings_that_may_not_be_read_are_an_error_of_one_line(whole, tmp_path, monkeypatch, capsys):
    def no_right(*a): raise PermissionError(errno.EACCES, 'no right', 'settings.json')
    monkeypatch.setattr(tu, '_read_json', no_right)
    capsys.readouterr()
    with pytest.raises(SystemExit): tu.ulmfit_main(['--out', str(whole[1]), '--resume'])
    assert 'settings.json' in (err := capsys.readouterr().err) and 'Traceback' not in err

def test_texts_of_several_columns_are_not_read_from_files(tmp_path, capsys):
    rows = [(t, 'a title', k) for t, k in labelled(8)]
    run(make_csv(tmp_path/'t.csv', rows, ('body', 'title', 'label')), out := tmp_path/'run', '--text', 'title', 'body')
    for more in ([make_folder(tmp_path/'new')], [tmp_path/'t.csv', '--text', 'body']):
        assert "learned from 2 columns, 'title', 'body'" in error_of(['--out', out, '--predict', *more], capsys)
    assert not (out/'.predictions.csv').exists()

def test_a_run_on_a_table_without_a_header_takes_rows_of_another(tmp_path, capsys):
    "Whose columns pandas calls by numbers. Its words are explained, and not the marks of its columns."
    import pandas as pd
    with open(tmp_path/'t.csv', 'w', newline='') as f: csv.writer(f).writerows([(k, 'a title', t) for t, k in labelled(8)])
    run(tmp_path/'t.csv', out := tmp_path/'run', '--no-header', '--labels', 0, '--text', 1, 2, '--lm-epochs', 0)
    learn, rows = load_learner(out/'model.pth'), pd.read_csv(tmp_path/'t.csv', header=None)
    said, wanted = learn.predict_many(rows), [dict(zip('12', o)) for o in rows[[1, 2]].itertuples(index=False)]
    assert torch.equal(torch.stack([o.probs for o in said]), torch.stack([o.probs for o in learn.predict_many(wanted)]))
    assert learn.explain({1: 'one 2', 2: 'three'}).words == ['one', '2', 'three']

def test_a_prediction_that_fails_leaves_nothing(whole, folder, tmp_path, monkeypatch, capsys):
    shutil.copytree(whole[1], out := tmp_path/'run')
    def fails(*a): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(tu, '_quietly', fails)
        assert tu.ulmfit_main(['--out', str(out), '--predict', str(folder)]) == 130
    assert 'nothing was kept' in capsys.readouterr().err and not {o.name for o in out.iterdir()} & {'.predictions.csv', 'predictions.csv'}
    asked_to_predict(out, folder, capsys)
    def no_memory(*a): raise RuntimeError('MPS backend out of memory')
    monkeypatch.setattr(tu, '_quietly', no_memory)
    assert 'not enough memory: give a smaller --bs' in error_of(['--out', out, '--predict', folder], capsys)

def test_answers_come_in_batches_that_fit(folder, tmp_path, monkeypatch, capsys):
    seen, probs = [], tu.TextLearner.probs
    monkeypatch.setattr(tu.TextLearner, 'probs', lambda self, ids, bs=64: seen.append(bs) or probs(self, ids, bs))
    run(folder, out := tmp_path/'run', '--bs', 3)
    asked_to_predict(out, folder, capsys)
    assert seen and {*seen} == {3}

def test_predicting_takes_as_many_processes_as_asked_for(whole, folder, tmp_path, monkeypatch, capsys):
    shutil.copytree(whole[1], tmp_path/'run')
    seen = []
    def dies(predict, texts, bs):
        seen.append(predict.__self__.recipe.tokens.max_workers)
        raise RuntimeError('one of 3 worker processes died') from tu.BrokenProcessPool()
    monkeypatch.setattr(tu, '_quietly', dies)
    err = error_of(['--out', tmp_path/'run', '--predict', folder, '--workers', 3], capsys)
    assert '--workers 1 does without' in err and seen == [3]

def test_only_a_finished_run_predicts(folder, tmp_path, monkeypatch, capsys):
    cut_off(argv(folder, tmp_path/'run', settings=SMALL), monkeypatch, 1, 0)
    for out in (tmp_path/'run', tmp_path/'none'): assert 'needs a finished run' in error_of(['--out', out, '--predict', folder], capsys)
    assert not (tmp_path/'none').exists()

def test_labels_that_all_come_once_are_suspected(table, tmp_path, capsys):
    path = make_csv(tmp_path/'t.csv', [(t, f'mail {i}') for i, (t, _) in enumerate(labelled())])
    err = error_of(argv(path, tmp_path/'run'), capsys)
    assert "No label comes twice, such as 'mail 0'" in err and '--labels' in err
    assert 'twice' not in error_of(argv(make_csv(tmp_path/'u.csv', labelled(1)[:1]), tmp_path/'run'), capsys)

def test_few_texts_that_are_all_right_have_an_error_all_the_same():
    def spread(right, n): return tu._spread(dict(accuracy=right/n, data={'validation texts': n}))
    assert spread(1, 1) > .2 and spread(0, 3) == pytest.approx(spread(3, 3)) and spread(3, 3) > .1
    assert spread(700, 1000) == pytest.approx(math.sqrt(.7*.3/1000), rel=.01)

def test_the_page_says_what_guessing_gets(tmp_path):
    r = run(make_csv(tmp_path/'t.csv', [*labelled(4), *[(t, 'pos') for t in texts_of('pos', 30, 5)]]), tmp_path/'run')
    page = (tmp_path/'run'/'report.html').read_text()
    shares = [o['texts'] for o in r['by_category']]
    assert r['most_frequent'] == pytest.approx(max(shares)/sum(shares)) and 'most frequent category were always said' in page and '<h1>A classifier of texts: t.csv</h1>' in page
