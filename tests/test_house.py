"The package, the README and the commands that hold the house together."
import ast, configparser, json, os, re, shlex, shutil, subprocess, sys
from pathlib import Path
import pytest
from packaging.requirements import Requirement
from exp.nb_00 import lesson_paths
from exp.pages import readme_figures, replace_between, results_markdown

@pytest.fixture(scope='module')
def ini(root):
    ini = configparser.ConfigParser(delimiters=['='])
    ini.read(root/'settings.ini', encoding='utf-8')
    return ini['DEFAULT']

@pytest.fixture(scope='module')
def readme(root): return (root/'README.md').read_text(encoding='utf-8')

@pytest.mark.parametrize('key', ['requirements', 'dev_requirements'])
def test_every_requirement_is_bounded_and_met_here(ini, key):
    from importlib.metadata import version
    for line in filter(None, ini[key].splitlines()):
        r = Requirement(line)
        assert {s.operator for s in r.specifier} == {'>=', '<'}, line
        assert r.specifier.contains(version(r.name), prereleases=True), (line, version(r.name))

def test_no_module_unpickles_files(root):
    "torch.load only with weights_only=True, np.load without pickles; pickle's own loading only of what the same expression has dumped."
    import ast
    for path in (root/'exp').glob('*.py'):
        for o in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            given = {k.arg: ast.unparse(k.value) for k in o.keywords} if isinstance(o, ast.Call) else {}
            where = f'{path.name}, line {getattr(o, "lineno", 0)}'
            match o:
                case ast.Call(func=ast.Name(id='partial'), args=[ast.Attribute(attr='load', value=ast.Name(id='torch')), *_]): assert given.get('weights_only') == 'True', where
                case ast.Call(func=ast.Attribute(attr='load', value=ast.Name(id='torch'))): assert given.get('weights_only') == 'True', where
                case ast.Call(func=ast.Attribute(attr='load', value=ast.Name(id='np' | 'numpy'))): assert given.get('allow_pickle', 'False') == 'False', where
                case ast.Call(func=ast.Attribute(attr='load' | 'loads' | 'Unpickler', value=ast.Name(id='pickle')), args=args): assert ast.unparse(args[0]).startswith('pickle.dumps('), where
                case ast.ImportFrom(module='pickle' | 'joblib' | 'dill' | 'cloudpickle'): raise AssertionError(where)

def test_what_the_modules_import_is_required(root, ini):
    import ast
    names = {'sklearn': 'scikit-learn', 'PIL': 'pillow', 'IPython': 'ipykernel', 'nbformat': 'nbclient', 'fastcore': 'nbdev', 'jupyterlab': 'jupyterlab'}
    required = {Requirement(o).name for o in ini['requirements'].splitlines() if o}
    for path in (root/'exp').glob('*.py'):
        for n in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            tops = [a.name.split('.')[0] for a in n.names] if isinstance(n, ast.Import) else [n.module.split('.')[0]] if isinstance(n, ast.ImportFrom) else []
            for top in set(tops) - set(sys.stdlib_module_names) - {'exp'}: assert names.get(top, top) in required, f'{path.name} imports {top}'

def test_the_installed_package_works_outside_of_the_clone(root, tmp_path):
    "A wheel built from the clone, unpacked elsewhere: imports, and its command runs."
    src = tmp_path/'src'
    src.mkdir()
    for name in ('settings.ini', 'setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE'): shutil.copy(root/name, src)
    shutil.copytree(root/'exp', src/'exp', ignore=shutil.ignore_patterns('__pycache__'))
    pip = [sys.executable, '-m', 'pip', '--quiet', '--disable-pip-version-check', 'install', '--no-deps', '--no-build-isolation']
    subprocess.run([*pip, '--target', tmp_path/'site', src], check=True, capture_output=True, text=True)
    env = {**os.environ, 'PYTHONPATH': str(tmp_path/'site'), 'EXP_HOME': str(tmp_path/'home'), 'EXP_MIRROR': ''}
    def run(*cmd): return subprocess.run(cmd, cwd=tmp_path, env=env, capture_output=True, text=True)
    where = run(sys.executable, '-P', '-c', 'import exp.nb_01; print(exp.__file__)')
    assert where.stdout.startswith(str(tmp_path/'site')), where.stderr
    command = next((tmp_path/'site'/'bin').glob('exp*'))
    listed = run(sys.executable, command, 'data')
    assert listed.returncode == 0 and 'mnist' in listed.stdout.lower(), listed.stderr
    refused = run(sys.executable, command, 'run')
    assert refused.returncode == 1 and 'clone' in refused.stderr and 'Traceback' not in refused.stderr

def test_ci_runs_the_readmes_test_command(root, readme):
    assert 'make test' in readme and 'make run' in readme
    assert re.search(r'^exec make test$', (root/'.ci'/'run').read_text(), re.M)
    assert 'run: make test' in (root/'.github'/'workflows'/'test.yml').read_text()

def test_make_targets_named_in_the_readme_exist(root, readme):
    targets = set(re.findall(r'^(\w+):', (root/'Makefile').read_text(), re.M))
    assert set(re.findall(r'\bmake (\w+)', readme)) <= targets

def test_exp_commands_in_the_readme_parse(readme):
    from exp.cli import make_parser
    commands = re.findall(r'^(?:\.venv/bin/)?exp ([^#\n`]+)', '\n'.join(re.findall(r'```(?:bash|sh)\n(.*?)```', readme, re.S)), re.M)
    assert commands
    for c in commands: make_parser().parse_args(c.split())

def test_training_commands_in_the_readme_parse(readme):
    "And the lines that follow use the model in the folder of --out, by names that are there."
    from exp import nb_11, nb_12c, train_imagenette, train_ulmfit
    kinds = dict(train_imagenette=(train_imagenette.train_parser, nb_11.ImageLearner), train_ulmfit=(train_ulmfit.ulmfit_parser, nb_12c.TextLearner))
    every = re.findall(r'^python -m exp\.(\w+) (.*?)(?:  +#.*)?$', readme, re.M)
    assert len(every) == readme.count('python -m exp.')
    for module, options in every: kinds[module][0]().parse_args(shlex.split(options))
    commands = re.findall(r'```bash\npython -m exp\.(\w+) (.*?)\n```.*?```text\n(>>> .*?)```', readme, re.S)
    assert [o for o, *_ in commands] == [*kinds]
    for module, options, lines in commands:
        parser, learner = kinds[module]
        args = parser().parse_args(shlex.split(options))
        code = ast.parse('\n'.join(re.findall('^>>> (.*)$', lines, re.M)))
        assert len(code.body) == 3
        used = {o.attr for o in ast.walk(code) if isinstance(o, ast.Attribute)}
        assert used == {'predict', 'label'} and hasattr(learner, 'predict') and hasattr(nb_11.Prediction, 'label')
        exec(ast.unparse(code.body[0]), names := {})
        called = [o for o in ast.walk(code) if isinstance(o, ast.Call) and isinstance(o.func, ast.Name)]
        assert [(o.func.id in names, o.args[0].value) for o in called] == [(True, f'{args.out}/model.pth')]

def test_the_readmes_python_runs(root, readme, tmp_path):
    blocks = re.findall(r'```python\n(.*?)```', readme, re.S)
    assert blocks
    for code in blocks:
        done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, 'EXP_DATA': 'sample'})
        assert done.returncode == 0, done.stderr

def test_the_readmes_map_lists_every_lesson(root, readme):
    missing = [p.stem for p in lesson_paths(root/'nbs') if f'nbs/{p.name}' not in readme]
    assert not missing

def test_links_in_the_readme_lead_somewhere(root, readme):
    links = [l for l in re.findall(r'\]\(([^)#]+)\)', readme) if '://' not in l]
    assert links and not [l for l in links if not (root/l).exists()]

def test_the_readmes_results_and_figures_are_the_lessons_own(root, readme):
    assert replace_between(readme, 'results', results_markdown(root/'nbs')) == readme
    for path, data in readme_figures(readme, root/'nbs').items(): assert path.read_bytes() == data, path.name

def test_links_between_lessons_lead_somewhere(root):
    lost = []
    for p in lesson_paths(root/'nbs'):
        text = '\n'.join(''.join(c['source']) for c in json.loads(p.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'markdown')
        lost += [(p.name, l) for l in re.findall(r'\]\(([\w.]+\.ipynb)\)', text) if not (p.parent/l).exists()]
    assert not lost

def test_tracked_files_hold_no_path_of_a_machine(root):
    done = subprocess.run(['git', 'ls-files', '-z'], cwd=root, capture_output=True, text=True)
    if done.returncode: pytest.skip('not a git checkout')
    for name in filter(None, done.stdout.split('\0')):
        path = root/name
        if not path.is_file() or name.startswith('.ci/'): continue
        text = path.read_bytes().decode('utf-8', errors='replace')
        assert not re.search(r'/(?:root|home/(?!you/)\w+|Users/\w+)/', text), name
