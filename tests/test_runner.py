"The runner's faults: cells that raise, kernels that die or hang, Ctrl-C; and that outputs are saved only where they belong."
import json, os, signal, subprocess, sys, time
from functools import partial
from pathlib import Path
import psutil
import pytest
from exp.nb_00 import ExportError, UserError
from exp.pages import index_page, lesson_page, notebook_figures, replace_between, result_rows, results_markdown, write_pages
from exp.runner import _shorten, code_hash, kernel_env, pick_lessons, run_lessons, run_notebook, save_outputs

def kernels(of): return [p for p in psutil.process_iter(['cmdline', 'environ']) if 'ipykernel_launcher' in ' '.join(p.info['cmdline'] or []) and (p.info['environ'] or {}).get('EXP_TEST_MARK') == of]

@pytest.fixture
def mark(monkeypatch, request):
    monkeypatch.setenv('EXP_TEST_MARK', request.node.name)
    return request.node.name

def test_a_cell_that_raises(project, mark):
    o = run_notebook(project.write('05_x.ipynb', '# Title', 'x = 0', 'y = 1\nprint("seen")\ny/x', 'never = 1'))
    assert o.status == 'failed' and '05_x.ipynb, cell 3 of 4' in o.error and '2 | print("seen")' in o.error and 'ZeroDivisionError: division by zero' in o.error and '\x1b' not in o.error
    assert o.nb['cells'][3]['execution_count'] is None and not kernels(mark)

def test_a_kernel_that_dies(project, mark):
    o = run_notebook(project.write('05_x.ipynb', 'x = 0', 'import os; os.abort()'))
    assert o.status == 'failed' and 'cell 2 of 2' in o.error and 'kernel died' in o.error and not kernels(mark)

@pytest.mark.parametrize('failures', [2, 3])
def test_a_kernel_that_does_not_come_up_is_started_again(project, monkeypatch, failures):
    from nbclient import NotebookClient
    start, tried = NotebookClient.async_start_new_kernel_client, []
    async def started(self, **kw):
        tried.append(self)
        if len(tried) <= failures: raise RuntimeError('Kernel died before replying to kernel_info')
        return await start(self, **kw)
    monkeypatch.setattr(NotebookClient, 'async_start_new_kernel_client', started)
    res = run_notebook(project.write('01_x.ipynb', 'print(6*7)'))
    assert len(tried) == 3 and (res.error == '' and '42' in json.dumps(res.nb) if failures == 2 else 'Kernel died before replying' in res.error)

def test_a_kernel_that_exits(project, mark):
    o = run_notebook(project.write('05_x.ipynb', 'import os; os._exit(0)'))
    assert o.status == 'failed' and 'kernel died' in o.error and not kernels(mark)

def test_a_cell_that_never_ends(project, mark):
    o = run_notebook(project.write('05_x.ipynb', 'while True: pass'), timeout=2)
    assert o.status == 'failed' and 'more than 2 seconds' in o.error and not kernels(mark)

def test_children_of_a_kernel_are_gone_too(project, mark):
    o = run_notebook(project.write('05_x.ipynb', 'import subprocess\np = subprocess.Popen(["sleep", "600"])\np.pid', '1/0'))
    pid = int(o.nb['cells'][0]['outputs'][0]['data']['text/plain'])
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE

def test_no_notebook_is_said_so(project):
    (project.nbs/'05_x.ipynb').write_text('hello')
    with pytest.raises(ExportError, match='05_x.ipynb: not a notebook'): run_notebook(project.nbs/'05_x.ipynb')

def test_outputs_of_an_earlier_run_do_not_count(project):
    path = project.write('05_x.ipynb', 'from exp.nb_00 import report\nreport("a run", accuracy=.99)', '1')
    save_outputs(run_notebook(path))
    nb = json.loads(path.read_text())
    nb['cells'][0]['source'], nb['cells'][1]['source'], nb['cells'][1]['outputs'] = ['1/0'], ['2'], nb['cells'][0]['outputs']
    path.write_text(json.dumps(nb))
    o = run_notebook(path)
    assert o.status == 'failed' and not o.records and not result_rows(o.nb, path)

def test_the_last_error_is_the_one_shown(project):
    path = project.write('05_x.ipynb', 'int("allowed to fail")', '1/0')
    nb = json.loads(path.read_text())
    nb['cells'][0]['metadata'] = dict(tags=['raises-exception'])
    path.write_text(json.dumps(nb))
    o = run_notebook(path)
    assert 'cell 2 of 2' in o.error and 'ZeroDivisionError' in o.error and 'ValueError' not in o.error

def test_relative_folders_in_the_environment_are_the_callers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('EXP_HOME', 'cache')
    monkeypatch.setenv('EXP_MIRROR', os.pathsep.join(['a', '/b']))
    env = kernel_env(tmp_path/'nbs', 'auto', 3, 'scratch')
    assert env['EXP_HOME'] == str(tmp_path/'cache') and env['EXP_MIRROR'] == os.pathsep.join([str(tmp_path/'a'), '/b'])
    assert env['EXP_DATA'] == 'auto' and env['OMP_NUM_THREADS'] == os.environ.get('OMP_NUM_THREADS', '3') and env['PYTHONPATH'].split(os.pathsep)[0] == str(tmp_path)

def test_lessons_run_in_their_folder_on_the_data_asked_for(project):
    o = run_notebook(project.write('05_x.ipynb', 'import os; print(os.path.basename(os.getcwd()), os.environ["EXP_DATA"])'), data='auto')
    assert o.nb['cells'][0]['outputs'][0]['text'] == 'nbs auto\n'

def test_a_clones_own_modules_come_first(project):
    (project.lib/'__init__.py').write_text('')
    (project.lib/'nb_05.py').write_text('where = "this clone"\n')
    o = run_notebook(project.write('06_x.ipynb', 'from exp.nb_05 import where\nprint(where)'))
    assert o.nb['cells'][0]['outputs'][0]['text'] == 'this clone\n'

def test_a_failed_lesson_does_not_end_the_run(project):
    paths = [project.write('01_a.ipynb', '1/0'), project.write('02_b.ipynb', '1')]
    assert [o.status for o in run_lessons(paths)] == ['failed', 'passed']
    assert [o.status for o in run_lessons(paths, jobs=2)] == ['failed', 'passed']

def test_a_file_that_is_no_notebook_fails_alone(project):
    paths = [project.write('01_a.ipynb', '1'), project.nbs/'02_b.ipynb']
    paths[1].write_text('<<<<<<< HEAD')
    outcomes = run_lessons(paths)
    assert [o.status for o in outcomes] == ['passed', 'failed'] and 'not a notebook' in outcomes[1].error
    assert write_pages(outcomes, project.root/'pages').exists()

def test_a_link_to_a_notebook_runs(project):
    (project.nbs/'02_b.ipynb').symlink_to(project.write('01_a.ipynb', '1'))
    done = []
    run_lessons([project.nbs/'02_b.ipynb'], on_done=lambda o: done.append(o.path.name))
    assert done == ['02_b.ipynb']

@pytest.mark.parametrize('sig', [signal.SIGINT, signal.SIGTERM], ids=['ctrl-c', 'sigterm'])
@pytest.mark.parametrize('jobs', [1, 2])
def test_ctrl_c_ends_a_run_and_leaves_no_kernel(project, mark, jobs, sig):
    for name in ('01_a', '02_b', '03_c'): project.write(f'{name}.ipynb', 'print(1)', f'import time\nopen("{name}.started", "w").close()\ntime.sleep(600)')
    p = subprocess.Popen([sys.executable, '-m', 'exp', 'run', '--jobs', str(jobs)], cwd=project.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, 'PYTHONPATH': str(Path(__file__).parent.parent)},
                         preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL))   # a shell that starts the tests in the background ignores Ctrl-C, and so would its children
    end = time.time() + 60
    while len(list(project.nbs.glob('*.started'))) < jobs and time.time() < end: time.sleep(.1)
    assert len(kernels(mark)) == jobs
    p.send_signal(sig)
    out, _ = p.communicate(timeout=60)
    assert p.returncode == 130 and 'interrupted' in out and 'Traceback' not in out
    assert not kernels(mark) and len(list(project.nbs.glob('*.started'))) == jobs
    assert (project.root/'_run'/'index.html').exists()

def test_outputs_are_saved_clean_and_stamped(project):
    path = project.write('05_x.ipynb', '# Title', f'from pathlib import Path\nprint({str(project.root)!r}, Path.home(), object())')
    save_outputs(run_notebook(path))
    nb = json.loads(path.read_text())
    text = ''.join(nb['cells'][1]['outputs'][0]['text'])
    assert str(project.root) not in text and str(Path.home()) not in text and 'object object' in text and ' at 0x' not in text
    assert nb['metadata']['exp']['code'] == code_hash(nb) and nb['cells'][1]['execution_count'] is None and nb['cells'][1]['id'] == 'c1'

def test_windows_line_ends_can_be_saved(project):
    path = project.write('05_x.ipynb', 'x = 1\r\nx')
    save_outputs(run_notebook(path))
    assert json.loads(path.read_text())['cells'][0]['outputs']

def test_what_shows_nothing_is_not_saved(project):
    path = project.write('05_x.ipynb', "from IPython.display import HTML, display\nfor o in ('', ' ', '<b>x</b>'): display(HTML(o))\nprint()\n''")
    save_outputs(run_notebook(path))
    outputs = json.loads(path.read_text())['cells'][0]['outputs']
    assert [''.join(o['data']['text/html']) for o in outputs if 'text/html' in o.get('data', {})] == ['<b>x</b>'] and len(outputs) == 3

def test_only_whole_folders_are_shortened():
    assert _shorten(['/course/a.py /course2/b </td>'], {'/course': '.', '/': '~'}) == ['./a.py /course2/b </td>']

def test_the_stamp_follows_code_and_only_code(project):
    path = project.write('05_x.ipynb', '# Title', 'x = 1')
    save_outputs(run_notebook(path))
    nb = json.loads(path.read_text())
    stamp = nb['metadata']['exp']['code']
    nb['cells'][0]['source'] = ['# Another title']
    assert code_hash(nb) == stamp
    nb['cells'][1]['source'] = ['x = 2']
    assert code_hash(nb) != stamp

def test_failed_or_edited_lessons_are_not_saved(project):
    path = project.write('05_x.ipynb', '1/0')
    before, o = path.read_bytes(), run_notebook(path)
    with pytest.raises(UserError, match='failed'): save_outputs(o)
    assert path.read_bytes() == before
    o = run_notebook(project.write('05_x.ipynb', '1'))
    edited = project.write('05_x.ipynb', '2').read_bytes()
    with pytest.raises(UserError, match='edited while it ran'): save_outputs(o)
    assert path.read_bytes() == edited

def test_lessons_by_number_and_prefix(project):
    for name in ('00_a', '02_b', '02a_c', '02b_d', '12_e'): project.write(f'{name}.ipynb', '1')
    def picked(*names): return [p.stem for p in pick_lessons(list(names), project.nbs)]
    assert picked() == ['00_a', '02_b', '02a_c', '02b_d', '12_e']
    assert picked('02') == ['02_b'] and picked('12', '00') == ['00_a', '12_e'] and picked('02a') == ['02a_c'] and picked('0') == ['00_a', '02_b', '02a_c', '02b_d']
    assert picked('nbs/02b_d.ipynb') == ['02b_d']
    for unknown in ('2c', 'nbs/'):
        with pytest.raises(UserError, match=f'no lesson is called {unknown!r}'): picked(unknown)

PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=='
SHOW = f'''from IPython.display import display
from exp.nb_00 import report
display({{"image/png": "{PNG}"}}, raw=True)
report("<b>a run</b>", accuracy=.5)'''

@pytest.fixture
def shown(project): return run_notebook(project.write('05_x.ipynb', '# <i>Title</i>', SHOW))

def test_pages(shown, tmp_path):
    index = write_pages([shown], tmp_path/'out').read_text()
    assert shown.status == 'passed' and notebook_figures(shown.nb) == ['data:image/png;base64,' + PNG]
    assert PNG in index and 'accuracy 0.5' in index and 'href="05_x.html"' in index and 'passed' in index
    assert '&lt;b&gt;a run&lt;/b&gt;' in index and '<b>a run</b>' not in index and '<i>Title' not in index
    assert '<html' in (tmp_path/'out'/'05_x.html').read_text() and json.loads((tmp_path/'out'/'05_x.ipynb').read_text())['cells']

def test_pages_without_any_result(tmp_path, project):
    o = run_notebook(project.write('05_x.ipynb', '1/0'))
    assert 'No lesson reported a result' in index_page([o]) and 'ZeroDivisionError' in index_page([o]) and lesson_page(o)

def test_results_table(shown, project):
    save_outputs(shown)
    assert result_rows(shown.nb, shown.path) == [('05_x', '<b>a run</b>', 'accuracy 0.5', '-')]
    assert results_markdown(project.nbs).splitlines()[2] == '| 05_x | <b>a run</b> | accuracy 0.5 | - |'

def test_replace_between():
    assert replace_between('a\n<!-- x -->\nold\n<!-- /x -->\nb', 'x', 'new\n') == 'a\n<!-- x -->\nnew\n<!-- /x -->\nb'
    with pytest.raises(UserError, match='<!-- y -->'): replace_between('', 'y', '')
