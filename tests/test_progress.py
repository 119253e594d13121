"Lesson 09c: what is shown of a training, and the log that outlives it."
import math, os, pickle, signal, subprocess, sys
import pytest
from hypothesis import given, strategies as st
from exp import nb_09c
from exp.nb_09c import (AvgStatsCallback, BarView, CSVLogger, Callback, CancelBatchException, CancelEpochException, DataBunch, Dataset, EarlyStopping, F, Learner, LineView, Path, ProgressCallback, SaveCheckpoint,
                        accuracy, as_cells, clock, get_dls, nn, pd, read_log, set_seed, share_done, time_left, torch)

@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    "A test's files needn't survive a power cut."
    monkeypatch.setattr(os, 'fsync', lambda fd: None)

def learner(*cbs, n=40, metrics=accuracy, seed=1):
    set_seed(seed)
    x = torch.randn(n + 10, 10)
    ds = [Dataset(o, o[:, :4].argmax(1)) for o in (x[:n], x[n:])]
    learn = Learner(nn.Linear(10, 4), DataBunch(*get_dls(*ds, 8), 10, 4), F.cross_entropy, lr=.1, cbs=[AvgStatsCallback(metrics), *cbs])
    learn.said = []
    learn.logger = learn.said.append
    return learn

class View(LineView):
    "Takes down the calls."
    def __init__(self, interval=1e9): self.calls, self.interval = [], interval
    def begin(self, columns, epochs): self.calls.append(('begin', columns, epochs))
    def row(self, cells): self.calls.append(('row', cells))
    def note(self, line): self.calls.append(('note', line))
    def start(self, what, batches, epoch): self.calls.append(('start', what, batches, epoch))
    def step(self, done, batches, left): self.calls.append(('step', done, batches, left))
    def draw(self, losses, valid): self.calls.append(('draw', len(losses), len(valid)))
    def end(self): self.calls.append(('end',))
    def kinds(self): return [c[0] for c in self.calls]

class At(Callback):
    _order = 5
    def __init__(self, event, error, epoch=1):
        self.error, self.at = error, epoch
        setattr(self, event, self.maybe)
    def maybe(self):
        if self.run.epoch == self.at: raise self.error

def test_the_calls_of_a_training():
    view = View()
    learner(ProgressCallback(view)).fit(2)
    assert view.kinds() == ['begin', *['start', 'start', 'row']*2, 'end']
    assert view.calls[0] == ('begin', ['epoch', 'train_loss', 'train_accuracy', 'valid_loss', 'valid_accuracy', 'time'], 2)
    assert view.calls[1] == ('start', 'training', 5, 0) and view.calls[5] == ('start', 'validation', 1, 1)
    assert all(len(c[1]) == 6 and '' not in c[1] for c in view.calls if c[0] == 'row')

def test_every_batch_counts_towards_the_end():
    view = View(interval=0)
    learner(ProgressCallback(view)).fit(2)
    steps = [c for c in view.calls if c[0] == 'step']
    assert [c[1:3] for c in steps] == [*[(i, 5) for i in range(1, 6)], (1, 1)]*2 and steps[-1][3] == '0.0 s left'

def test_updates_go_by_the_clock_not_by_the_batch(monkeypatch):
    now, view = [0.], View(interval=1.)
    def tick():
        now[0] += .01
        return now[0]
    monkeypatch.setattr(nb_09c, 'time', type('clock', (), dict(perf_counter=staticmethod(tick))))
    learner(ProgressCallback(view), n=8000).fit(1)
    assert 5 < view.kinds().count('step') < 15   # 1,000 batches at a look each

@pytest.mark.parametrize('event', ['begin_fit', 'begin_epoch', 'after_loss', 'begin_validate', 'after_epoch', 'after_fit'])
def test_the_logger_is_given_back_whatever_happens(event):
    class First(At): _order = -1 if event == 'begin_fit' else 5
    view = View()
    for own in (True, False):
        learn = learner(First(event, ZeroDivisionError(), epoch=0 if event == 'begin_fit' else 1), ProgressCallback(view))
        if not own: del learn.logger
        before = vars(learn).get('logger')
        with pytest.raises(ZeroDivisionError): learn.fit(2)
        assert vars(learn).get('logger') is before
        assert view.kinds()[-1:] in (['end'], [])
        if event != 'begin_fit': assert learn.progress.shown is None

def test_other_lines_come_through_and_the_averages_do_not():
    view, learn = View(), learner(EarlyStopping('accuracy', patience=1, min_delta=1., mode='max'))
    learn.fit(5, cbs=ProgressCallback(view))
    assert [c[1][:13] for c in view.calls if c[0] == 'note'] == ['stopped after'] and view.kinds()[-3:] == ['row', 'note', 'end'] and learn.said == []

def test_cancelled_passes_leave_blanks():
    view = View()
    learner(At('begin_epoch', CancelEpochException(), 0), At('begin_validate', CancelEpochException(), 1), At('begin_batch', CancelBatchException(), 2), ProgressCallback(view)).fit(3)
    rows = [c[1] for c in view.calls if c[0] == 'row']
    assert rows[0][1:3] == ['', ''] and rows[0][3] != '' and rows[1][3:5] == ['', ''] and rows[1][1] != '' and rows[2][1:5] == ['']*4

def test_it_needs_neither_averages_nor_validation():
    view, learn = View(), learner()
    learn.remove_cbs(learn.avg_stats)
    learn.data.valid_dl = None
    learn.fit(1, cbs=ProgressCallback(view))
    assert view.calls[0][1] == ['epoch', 'time'] and view.kinds() == ['begin', 'start', 'row', 'end']
    learn.fit(0, cbs=ProgressCallback(view := View()))
    assert view.calls == []

def test_several_averages_share_a_row():
    def wrong(pred, yb): return 1 - accuracy(pred, yb)
    view = View()
    learner(AvgStatsCallback(wrong), ProgressCallback(view)).fit(1)
    assert view.calls[0][1] == ['epoch', 'train_loss', 'train_accuracy', 'train_wrong', 'valid_loss', 'valid_accuracy', 'valid_wrong', 'time'] and '' not in view.calls[3][1]

def test_a_resumed_fit_counts_only_what_it_does(tmp_path):
    learner(SaveCheckpoint(tmp_path)).fit(3)
    view = View(interval=0)
    learner(SaveCheckpoint(tmp_path), ProgressCallback(view)).fit(4, resume=True)
    assert view.calls[0][2] == 1 and [c[1][0] for c in view.calls if c[0] == 'row'] == ['3'] and [c[3] for c in view.calls if c[0] == 'step'][-1] == '0.0 s left'

def test_the_plot_is_drawn_each_epoch():
    view = View()
    learner(ProgressCallback(view, plot=True)).fit(3)
    assert [c[1:] for c in view.calls if c[0] == 'draw'] == [(5, 1), (10, 2), (15, 3)]

def test_trials_show_nothing():
    view, learn = View(), learner()
    learn.add_cb(ProgressCallback(view))
    learn.validate(), learn.get_preds(), learn.lr_find(15, 1e-3, 1., plot=False)
    assert view.calls == [] and learn.said == []

def test_what_is_shown_is_not_kept_alive_and_can_be_pickled():
    learn = learner(ProgressCallback(plot=True))
    learn.fit(1)
    assert learn.progress.losses == [] and pickle.loads(pickle.dumps(learn.progress)).plot

def test_a_terminal_has_one_line_for_progress(capsys):
    view = LineView(terminal=True)
    view.begin(['epoch', 'time'], 1)
    view.start('training', 10, 0)
    view.step(5, 10, '3.0 s left')
    view.row(['0', '6.0 s'])
    view.end()
    out = capsys.readouterr().out
    assert '\repoch 0, training: batch 5 of 10, 3.0 s left\x1b[K\r\x1b[K0         6.0 s\n' in out and out.count('\n') == 2

def test_a_pipe_gets_plain_lines():
    code = "from exp.nb_09c import *; from tests.test_progress import learner; learn = learner(ProgressCallback()); del learn.logger; learn.fit(2); print(type(pick_view()).__name__, pick_view().terminal, 'fastprogress' in sys.modules)"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=Path(__file__).parent.parent, env={**os.environ, 'PYTHONPATH': '.'})
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert len(lines) == 4 and lines[0].startswith('epoch     train_loss') and lines[3] == 'LineView False False' and not {'\r', '\x1b'} & set(done.stdout)

def test_a_notebook_keeps_the_table_and_nothing_else():
    import nbformat
    from nbclient import NotebookClient
    code = ["from exp.nb_09c import *\nfrom tests.test_progress import learner", "learner(ProgressCallback(plot=True), n=400).fit(3)", "learner(ProgressCallback(), At('after_loss', ZeroDivisionError(), 1)).fit(3)"]
    code[0] += ', At'
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in code])
    env = {**os.environ, 'PYTHONPATH': '.', 'OMP_NUM_THREADS': '1'}
    env.pop('MPLBACKEND', None)
    NotebookClient(nb, timeout=120, allow_errors=True, kernel_name='python3', resources={'metadata': {'path': str(Path(__file__).parent.parent)}}).execute(env=env)
    whole, broken = ([o for o in c.outputs if o.output_type == 'display_data' and '<style>' not in o.data.get('text/html', '')] for c in nb.cells[1:])
    assert len(whole) == 2 and whole[0].data['text/html'].count('<tr>') == 4 and '<progress' not in whole[0].data['text/html'] and 'image/png' in whole[1].data
    assert len(broken) == 1 and broken[0].data['text/html'].count('<tr>') == 2 and '<progress' not in broken[0].data['text/html']
    assert nb.cells[2].outputs[-1].output_type == 'error'

def test_bars_show_how_far_it_is(monkeypatch):
    shown = []
    class Handle:
        def update(self, o): shown.append(str(o))
    def display(o, **kw):
        shown.append(str(o))
        return Handle()
    monkeypatch.setattr('IPython.display.display', display)
    view, learn = BarView(), learner()
    view.interval = 0
    learn.fit(2, cbs=ProgressCallback(view))
    assert view.rows == 2 and len(shown) > 10

# the parts

@given(st.floats(0, 1e6))
def test_clock_is_short_and_right(s):
    text = clock(s)
    parts = [float(o) for o in text.removesuffix(' s').split(':')]
    back = sum(p*60**i for i, p in enumerate(reversed(parts)))
    assert abs(back - s) <= (.051 if text.endswith('s') else .501) and len(text) <= 9

@given(st.integers(0, 50), st.integers(1, 50), st.integers(1, 500), st.integers(0, 600))
def test_the_share_done_is_a_share_and_grows(first, epochs, batches, done):
    shares = [share_done(first + e, d, batches, first + epochs, first) for e in range(epochs) for d in (0, min(done, batches), batches)]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == pytest.approx(1)

def test_cells_of_odd_values():
    assert as_cells(dict(epoch=1, a=math.nan, b=2, c='x'), ['epoch', 'a', 'b', 'c', 'd']) == ['1', 'nan', '2', 'x', '']
    assert time_left(10, 0) == 'time left unknown' and time_left(10, 1) == '0.0 s left'

# the log

def test_the_log_has_every_epoch_to_the_last_digit(tmp_path):
    learn = learner(CSVLogger(tmp_path/'deep'/'log.csv'))
    learn.fit(3)
    assert pd.read_csv(tmp_path/'deep'/'log.csv').to_dict('records') == learn.avg_stats.history

@pytest.mark.parametrize('event', ['after_loss', 'begin_validate', 'begin_epoch'])
def test_the_log_survives_a_crash(tmp_path, event):
    with pytest.raises(KeyboardInterrupt): learner(CSVLogger(tmp_path/'log.csv'), At(event, KeyboardInterrupt(), epoch=2)).fit(5)
    assert list(pd.read_csv(tmp_path/'log.csv').epoch) == [0, 1]

@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='needs SIGKILL')
def test_a_killed_process_has_logged_its_epochs(tmp_path, root):
    code = f'''
from tests.test_progress import *
class Kill(Callback):
    def begin_epoch(self):
        if self.epoch == 2: os.kill(os.getpid(), signal.SIGKILL)
learner(CSVLogger({str(tmp_path/'log.csv')!r}), Kill()).fit(5)
'''
    done = subprocess.run([sys.executable, '-c', code], cwd=root, env={**os.environ, 'PYTHONPATH': str(root)})
    assert done.returncode == -signal.SIGKILL and list(pd.read_csv(tmp_path/'log.csv').epoch) == [0, 1]

@pytest.mark.parametrize('tail', ['', '3,.5', '3,.5,.5,.5,.5,1.', 'x', '3,"a\n'])
@pytest.mark.parametrize('every', [1, 2])
def test_a_resumed_log_has_each_epoch_once(tmp_path, tail, every):
    def make(name, seed=1): return learner(CSVLogger(tmp_path/f'{name}.csv'), SaveCheckpoint(tmp_path/name, every=every), seed=seed)
    whole = make('whole')
    whole.fit(5)
    with pytest.raises(KeyboardInterrupt): make('cut').fit(5, cbs=At('after_loss', KeyboardInterrupt(), epoch=3))
    if '\n' not in tail:
        with open(tmp_path/'cut.csv', 'a') as f: f.write(tail)
    make('cut').fit(5, resume=True)
    a, b = (pd.read_csv(tmp_path/f'{n}.csv').drop(columns='time') for n in ('whole', 'cut'))
    assert a.equals(b) and list(b.epoch) == [0, 1, 2, 3, 4]

def test_a_new_fit_begins_a_new_log_unless_it_appends(tmp_path):
    for n, kw, epochs in ((2, {}, [0, 1]), (1, {}, [0]), (2, dict(append=True), [0, 0, 1])):
        learner(CSVLogger(tmp_path/'log.csv', **kw)).fit(n)
        assert list(pd.read_csv(tmp_path/'log.csv').epoch) == epochs

def test_an_appending_resumed_log_keeps_earlier_fits(tmp_path):
    def make(): return learner(CSVLogger(tmp_path/'log.csv', append=True), SaveCheckpoint(tmp_path/'run'))
    make().fit(2)
    for p in (tmp_path/'run').iterdir(): p.unlink()
    with pytest.raises(KeyboardInterrupt): make().fit(4, cbs=At('after_loss', KeyboardInterrupt(), epoch=2))
    make().fit(4, resume=True)
    assert list(pd.read_csv(tmp_path/'log.csv').epoch) == [0, 1, 0, 1, 2, 3]

@pytest.mark.parametrize('text', ['chapter,pages\n1,20\n', 'hello\n', 'epoch,loss\n1,2,3\n', 'epoch,loss\nx,2\n', '\n'])
@pytest.mark.parametrize('append', [False, True])
def test_a_file_that_is_no_log_is_left_alone(tmp_path, text, append):
    (tmp_path/'a.csv').write_text(text)
    with pytest.raises(ValueError, match=r'a\.csv'): learner(CSVLogger(tmp_path/'a.csv', append)).fit(1)
    assert (tmp_path/'a.csv').read_text() == text

def test_other_columns_are_refused(tmp_path):
    learner(CSVLogger(tmp_path/'a.csv')).fit(1)
    before = (tmp_path/'a.csv').read_text()
    with pytest.raises(ValueError, match='has the columns'): learner(CSVLogger(tmp_path/'a.csv', append=True), metrics=None).fit(1)
    assert (tmp_path/'a.csv').read_text() == before
    learner(CSVLogger(tmp_path/'a.csv'), metrics=None).fit(1)
    assert 'accuracy' not in (tmp_path/'a.csv').read_text()

def test_skipped_passes_are_empty_fields(tmp_path):
    learner(CSVLogger(tmp_path/'a.csv'), At('begin_validate', CancelEpochException(), 0)).fit(1)
    row = pd.read_csv(tmp_path/'a.csv').iloc[0]
    assert math.isnan(row.valid_loss) and row.train_loss > 0

def test_an_empty_file_is_a_log_without_rows(tmp_path):
    (tmp_path/'a.csv').write_text('')
    assert read_log(tmp_path/'a.csv') == ([], [])
    learner(CSVLogger(tmp_path/'a.csv', append=True)).fit(1)
    assert read_log(tmp_path/'a.csv')[1][0][0] == '0'

def test_trials_do_not_touch_the_log(tmp_path):
    learn = learner(CSVLogger(tmp_path/'a.csv'))
    learn.fit(2)
    before = (tmp_path/'a.csv').read_bytes()
    learn.validate(), learn.lr_find(15, 1e-3, 1., plot=False)
    assert (tmp_path/'a.csv').read_bytes() == before
