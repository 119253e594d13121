"Every lesson as a test: it runs top to bottom on the built-in samples, and what is committed of it is in order."
import ast, json, os, re, subprocess, sys
from functools import lru_cache
from pathlib import Path
import pytest
from exp.nb_00 import export_status, export_target, lesson_paths, read_cells
from exp.runner import code_hash, notebook_records, run_notebook

ROOT = Path(__file__).resolve().parent.parent
LESSONS = lesson_paths(ROOT/'nbs')
lesson = pytest.mark.parametrize('path', LESSONS, ids=[p.stem for p in LESSONS])

# Rewriting these is what the later lesson is about; every other name is exported once.
REEXPORTED: dict[str, set[str]] = {'nb_05b': {'Runner'}, 'nb_07': {'conv_layer'}, 'nb_08': {'DataBunch', 'get_cnn_layers', 'get_cnn_model', 'get_learn_run'},
    'nb_09b': {'Learner'}, 'nb_11': {'conv_layer', 'init_cnn', 'model_summary'}, 'nb_12c': {'load_learner'}}

def parts(paths): return [pytest.param(p, id=p.stem, marks=pytest.mark.xdist_group(p.stem)) for p in paths]

@lru_cache
def sample_run(path, threads): return run_notebook(path, data='sample', timeout=600, threads=threads)

@pytest.mark.parametrize('path', parts(LESSONS))
def test_lesson_runs(path, threads_share):
    outcome = sample_run(path, threads_share)
    assert outcome.status == 'passed', outcome.error
    assert any(r['kind'] == 'ran_on' for r in outcome.records), 'the last cell must be ran_on(...)'
    assert any(r['kind'] == 'report' for r in outcome.records), 'a lesson says by report(...) what it found'

@lesson
def test_saved_outputs_belong_to_the_code(path):
    nb = json.loads(path.read_text(encoding='utf-8'))
    assert 'exp' in nb['metadata'], 'the lesson was never saved by `exp run --save`'
    assert nb['metadata']['exp']['code'] == code_hash(nb), 'the code changed since the outputs were saved: run `exp run --data full --save` on it'

@lesson
def test_saved_outputs_are_from_real_data(path):
    data = json.loads(path.read_text(encoding='utf-8'))['metadata']['exp']['data']
    allowed = {'00a_datasets'}   # its subject is the samples
    assert path.stem in allowed or not any('sample' in source for source in data.values()), data

@lesson
def test_saved_outputs_hold_no_error_and_no_path_of_a_machine(path):
    nb = json.loads(path.read_text(encoding='utf-8'))
    outputs = [o for c in nb['cells'] for o in c.get('outputs', [])]
    assert not [o for o in outputs if o['output_type'] == 'error']
    text = json.dumps([{k: v for k, v in o.get('data', {}).items() if not k.startswith('image/')} | {'stream': o.get('text', '')} for o in outputs])
    assert not re.findall(r'/(?:root/|home/(?!you/)\w+|Users/)|C:\\\\Users', text)   # /home/you is an example

@lesson
def test_lesson_is_of_moderate_size(path):
    assert path.stat().st_size < 1.5e6

@lesson
def test_lesson_imports_at_most_its_predecessor(path):
    imported = {n.module for c in read_cells(path) if c['cell_type'] == 'code' and export_target(c['source']) == '' for n in ast.walk(ast.parse(c['source']))
                if isinstance(n, ast.ImportFrom) and (n.module or '').startswith('exp.nb_')}
    assert len(imported) <= 1, imported

def test_exp_is_in_step_with_nbs(root):
    status = export_status(root/'nbs', root/'exp')
    assert not {k: v for k, v in status.items() if v and k != 'current'}

def definitions(tree):
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)): yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for t in getattr(node, 'targets', None) or [node.target]: yield from (n.id for n in ast.walk(t) if isinstance(n, ast.Name))

def modules(root): return {p.stem: ast.parse(p.read_text(encoding='utf-8')) for p in sorted((root/'exp').glob('*.py'))}

def test_a_name_is_exported_once(root):
    owner, twice = {}, {}
    for module, tree in modules(root).items():
        for name in set(definitions(tree)):
            if name.startswith('_') or name in REEXPORTED.get(module, ()): continue
            if owner.setdefault(name, module) != module: twice[name] = (owner[name], module)
    assert not twice

def test_modules_have_no_all(root):
    assert not [m for m, tree in modules(root).items() if '__all__' in definitions(tree)]

def test_every_public_name_has_a_docstring(root):
    def public(tree, where):
        for n in tree.body:
            if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith('_'):
                yield n, f'{where}.{n.name}'
    missing = [where for module, tree in modules(root).items() for n, where in public(tree, module) if not ast.get_docstring(n)]
    assert not missing

MODULES = sorted(p.stem for p in (ROOT/'exp').glob('*.py') if p.stem != '__main__')

@pytest.mark.parametrize('module', MODULES)
def test_import_touches_no_gpu(module, root):
    code = f'''
import sys
import exp.{module}
torch = sys.modules.get('torch')
assert torch is None or not torch.cuda.is_initialized(), 'CUDA was initialised'
'''
    spy = '''
import sys
def watch(frame, event, arg):
    if event == 'call' and frame.f_code.co_name in ('_lazy_init', 'is_available', 'device_count', 'current_device') and 'torch/cuda' in frame.f_code.co_filename.replace('\\\\', '/'):
        f = frame
        while f:
            if '/exp/' in f.f_code.co_filename.replace('\\\\', '/'): raise SystemExit(f'importing calls torch.cuda.{frame.f_code.co_name}')
            f = f.f_back
sys.setprofile(watch)
'''
    done = subprocess.run([sys.executable, '-c', spy + code], cwd=root, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(root)})
    assert done.returncode == 0, done.stderr

@pytest.mark.parametrize('path', parts(p for p in LESSONS if p.stem.partition('_')[0] in ('02', '03', '12a')))
def test_two_runs_print_the_same_numbers(path, threads_share):
    "Cells that show measured times say `# timing` and are left out, everything else must agree, figures included."
    first, second = sample_run(path, threads_share), run_notebook(path, data='sample', threads=threads_share)
    assert second.status == 'passed', second.error
    def shown(c): return [(o.get('text'), o.get('data')) for o in c['outputs']]
    for a, b in zip(first.nb['cells'], second.nb['cells']):
        if a['cell_type'] == 'code' and not any(t in a['source'] for t in ('# timing', 'ran_on(')): assert shown(a) == shown(b), a['source']

@lesson
def test_nbdev_clean_leaves_the_lesson_unchanged(path, tmp_path, root):
    "nbdev's own command, on a copy of the project."
    (tmp_path/'pyproject.toml').write_text((root/'pyproject.toml').read_text())
    (tmp_path/'nbs').mkdir()
    copy = tmp_path/'nbs'/path.name
    copy.write_bytes(path.read_bytes())
    subprocess.run([Path(sys.executable).parent/'nbdev-clean', '--fname', 'nbs'], cwd=tmp_path, check=True, capture_output=True)
    assert copy.read_bytes() == path.read_bytes()
