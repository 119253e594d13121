"The exporter: properties that hold for any notebook, and what it refuses."
import json, os, signal, subprocess, sys, time
import pytest
from hypothesis import given, settings, strategies as st
from exp.nb_00 import (ExportError, UserError, check_code, export_all, export_cells, export_status, export_target, module_text, plan_export, project_root, raises,
                       report, short, stray_marker, write_atomic)

names = st.sampled_from(['a', 'b', 'größe', 'x1'])
lines = st.one_of(st.builds('{} = {!r}'.format, names, st.text(st.characters(blacklist_categories=['Cs']), max_size=30)), st.just('# a comment'), st.just('def f(): return 1'))
code_cells = st.lists(st.tuples(st.booleans(), st.lists(lines, min_size=1, max_size=4).map('\n'.join)), max_size=6)

@settings(max_examples=30)
@given(cells=code_cells, eol=st.sampled_from(['\n', '\r\n']))
def test_round_trip(cells, eol, tmp_path_factory):
    "What an import of the module defines is what running the marked cells defines, whatever the text in them."
    folder = tmp_path_factory.mktemp('trip')
    nb = folder/'05_x.ipynb'
    source = [('#export\n' if marked else '') + code for marked, code in cells]
    nb.write_text(json.dumps(dict(nbformat=4, nbformat_minor=5, metadata={}, cells=[dict(cell_type='code', metadata={}, id=f'i{i}', source=s.replace('\n', eol)) for i, s in enumerate(source)])), encoding='utf-8')
    expected, got = {}, {}
    for marked, code in cells:
        if marked: exec(code, expected)
    (folder/'lib').mkdir()
    export_all(folder, folder/'lib')
    module = folder/'lib'/'nb_05.py'
    if module.exists(): exec(compile(module.read_bytes(), 'nb_05', 'exec'), got)
    def plain(d): return {k: v for k, v in d.items() if k in ('a', 'b', 'größe', 'x1')}
    assert plain(got) == plain(expected)
    times = module.stat().st_mtime_ns if module.exists() else None
    export_all(folder, folder/'lib')
    assert (module.stat().st_mtime_ns if module.exists() else None) == times

@pytest.mark.parametrize('first, target', [('#export', ''), ('# export', ''), ('#| export', ''), ('#|export', ''), ('# | export', ''), ('#export ', ''), ('#export\t', ''), ('#export train_imagenette', 'train_imagenette'),
    ('#| export a.b', 'a.b'), ('# exported', None), ('#export a b', None), ('## export', None), (' #export', None), ('# Export', None), ('x = 1 #export', None), ('', None)])
def test_markers(first, target): assert export_target(f'{first}\nx = 1') == target

def test_a_marker_inside_a_string_is_no_marker():
    assert stray_marker('s = """\n#export\n"""') is None
    assert stray_marker('s = 1\n#export') == '#export'

@pytest.mark.parametrize('slip', ['#Export', '##export', '#export: a', '#export-me', '#exports', '#export a b'])
def test_a_slip_is_refused_rather_than_dropped(project, slip):
    project.write('05_x.ipynb', f'{slip}\nx = 1')
    with pytest.raises(ExportError, match='cell 1.*no marker'): export_all(project.nbs, project.lib)

def test_named_modules(project):
    project.write('05_x.ipynb', '# Title', '#export\nx = 1', '#export other\ny = 2', '#export pack.deep\nz = 3')
    export_all(project.nbs, project.lib)
    assert sorted(str(p.relative_to(project.lib)) for p in project.lib.rglob('*.py')) == ['nb_05.py', 'other.py', os.path.join('pack', 'deep.py')]

@pytest.mark.parametrize('bad, says', [('def f(:', 'SyntaxError'), ('%time f()', 'magic'), ('x = !ls', 'magic'), ('%%bash\nls', 'magic'), ('return 1', "'return' outside function"), ('await f()', 'await'),
    ('if True:\nx = 1', 'IndentationError'), ('s = "\ud800"', 'UnicodeEncodeError'), ('f?', 'magic')])
def test_bad_cells_are_refused_by_number_and_nothing_is_written(project, bad, says):
    project.write('04_good.ipynb', '#export\nx = 1')
    project.write('05_bad.ipynb', '# Title', 'y = 1', f'#export\n{bad}')
    with pytest.raises(ExportError, match=r'05_bad\.ipynb, cell 3: ') as e: export_all(project.nbs, project.lib)
    assert says in str(e.value)
    assert not list(project.lib.iterdir())

def test_future_imports_only_at_a_modules_top(project):
    project.write('05_x.ipynb', '#export\nfrom __future__ import annotations', '#export\nx = 1')
    export_all(project.nbs, project.lib)
    project.write('05_x.ipynb', '#export\nx = 1', '#export\nfrom __future__ import annotations')
    with pytest.raises(ExportError, match='cell 2.*first exported cell'): export_all(project.nbs, project.lib)

def test_a_keyword_is_no_module(project):
    project.write('05_x.ipynb', '#export class\nx = 1')
    with pytest.raises(ExportError, match="'class' is no name"): export_all(project.nbs, project.lib)

def test_two_notebooks_that_claim_one_module(project):
    project.write('05_x.ipynb', '#export\nx = 1')
    project.write('05_y.ipynb', '#export\nx = 1')
    with pytest.raises(ExportError, match='05_x.*05_y.*nb_05'): export_all(project.nbs, project.lib)
    project.write('05_y.ipynb', '#export nb_05\nx = 1')
    with pytest.raises(ExportError, match='05_x.*05_y.*nb_05'): export_all(project.nbs, project.lib)

@pytest.mark.parametrize('name, module', [('05.ipynb', 'nb_05'), ('05_a_b_c.ipynb', 'nb_05'), ('12b_größe.ipynb', 'nb_12b'), ('05_with space.ipynb', 'nb_05')])
def test_odd_file_names(project, name, module):
    project.write(name, '#export\nx = "ü"')
    export_all(project.nbs, project.lib)
    assert (project.lib/f'{module}.py').read_text(encoding='utf-8').endswith('x = "ü"\n')

def test_a_name_that_makes_no_module_is_refused_only_where_it_exports(project):
    project.write('Untitled copy.ipynb', 'x = 1')
    project.write('_draft.ipynb', '#export\n(')
    export_all(project.nbs, project.lib)
    project.write('05-x y.ipynb', '#export\nx = 1')
    with pytest.raises(ExportError, match="'nb_05-x y' is no name for a module"): export_all(project.nbs, project.lib)

def test_notebooks_without_cell_ids_export_the_same_twice(project):
    cells = [dict(cell_type='code', metadata={}, source=['#export\n', 'x = 1'])]
    (project.nbs/'05_old.ipynb').write_text(json.dumps(dict(nbformat=4, nbformat_minor=2, metadata={}, cells=cells)))
    assert plan_export(project.nbs, project.lib) == plan_export(project.nbs, project.lib)

def test_a_conflict_in_a_notebook_is_named(project):
    (project.nbs/'05_x.ipynb').write_text('<<<<<<< HEAD\n{}')
    with pytest.raises(ExportError, match=r'05_x\.ipynb: not a notebook'): export_all(project.nbs, project.lib)

def test_stale_missing_orphaned_and_foreign(project):
    project.write('04_a.ipynb', '#export\nx = 1')
    project.write('05_b.ipynb', '#export\nx = 1')
    project.write('06_c.ipynb', '#export\nx = 1')
    export_all(project.nbs, project.lib)
    (project.lib/'nb_04.py').write_text((project.lib/'nb_04.py').read_text() + '# edited by hand\n')
    (project.lib/'nb_05.py').unlink()
    (project.nbs/'06_c.ipynb').unlink()
    (project.lib/'mine.py').write_text('x = 1\n')
    found = {k: [p.name for p in v] for k, v in export_status(project.nbs, project.lib).items()}
    assert found == dict(current=[], stale=['nb_04.py'], missing=['nb_05.py'], orphaned=['nb_06.py'], foreign=['mine.py'])
    export_all(project.nbs, project.lib)
    found = {k: [p.name for p in v] for k, v in export_status(project.nbs, project.lib).items()}
    assert found == dict(current=['nb_04.py', 'nb_05.py'], stale=[], missing=[], orphaned=[], foreign=['mine.py'])

def test_a_kill_at_any_moment_leaves_the_old_module_or_the_new(project):
    "A process exports two versions in turn without pause and is killed; whatever it left must be one of the two."
    old, new = [f'#export\nx = {i}\ny = "{str(i)*200_000}"' for i in (1, 2)]
    texts = set()
    for source in (old, new):
        project.write('05_x.ipynb', source)
        texts.add(plan_export(project.nbs, project.lib)[project.lib/'nb_05.py'])
    loop = f'from exp.nb_00 import write_atomic\nimport sys\ntexts, path = sys.stdin.read().split("\\0"), {str(project.lib/"nb_05.py")!r}\nwrite_atomic(path, texts[0])\nprint("go", flush=True)\nwhile True:\n  for t in texts: write_atomic(path, t)'
    for i in range(8):
        p = subprocess.Popen([sys.executable, '-c', loop], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        p.stdin.write('\0'.join(sorted(texts)))
        p.stdin.close()
        p.stdout.readline()
        time.sleep(.03 + .011*i)
        p.send_signal(signal.SIGKILL)
        p.wait()
        p.stdout.close()
        assert (project.lib/'nb_05.py').read_text(encoding='utf-8') in texts

def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path/'a.py'
    write_atomic(path, 'old')
    def full(*a): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError): write_atomic(path, 'new')
    assert path.read_text() == 'old' and [p.name for p in tmp_path.iterdir()] == ['a.py']

def test_a_module_keeps_its_permissions(tmp_path):
    path = tmp_path/'a.py'
    write_atomic(path, 'old')
    path.chmod(0o640)
    write_atomic(path, 'new')
    assert path.stat().st_mode & 0o777 == 0o640

@given(st.text(max_size=200))
def test_check_code_never_raises(code): check_code(code)

@given(st.text(max_size=200))
def test_stray_marker_never_raises(code): stray_marker(code)

def test_project_root_from_anywhere_inside(project):
    (project.nbs/'deep').mkdir()
    assert project_root(project.nbs/'deep') == project.root.resolve()

def test_outside_of_a_clone_is_said_so(tmp_path):
    with pytest.raises(UserError, match='clone'): project_root(tmp_path)

def test_raises_fails_where_nothing_is_raised():
    with pytest.raises(AssertionError, match='was not raised'):
        with raises(ValueError): pass
    with pytest.raises(AssertionError, match='is not in its message'):
        with raises(ValueError, match='this'): raise ValueError('that')
    with pytest.raises(KeyError):
        with raises(ValueError): raise KeyError('other errors pass through')

def test_raises_takes_several_errors_and_names_them_where_none_is_raised():
    for error in (KeyError, ValueError):
        with raises((KeyError, ValueError), match='this') as caught: raise error('this')
        assert type(caught[0]) is error
    with pytest.raises(AssertionError, match='^KeyError or ValueError was not raised$'):
        with raises((KeyError, ValueError)): pass

def test_report_outside_of_jupyter_prints(capsys):
    report('a run', accuracy=.98764, n=60_000)
    assert capsys.readouterr().out == 'a run: accuracy 0.9876, n 60,000\n'

def test_report_of_a_nan_is_valid_json(monkeypatch):
    import exp.nb_00
    records = []
    monkeypatch.setattr(exp.nb_00, 'show_record', lambda record, *a: records.append(record))
    report('a run', loss=float('nan'), accuracy=.5)
    assert json.loads(json.dumps(records[0], allow_nan=False))['figures'] == [['loss', 'nan'], ['accuracy', .5]]

def test_short(): assert [short(v) for v in (.98764, 12345.6, 60_000, True, 'none', 0.)] == ['0.9876', '12,346', '60,000', 'True', 'none', '0']

def test_a_module_text_names_its_notebook_and_cells(project):
    nb = project.write('05_x.ipynb', '# A title\n> What it does.', '#export\nx = 1')
    text = module_text(nb, project.lib, 'nb_05', export_cells(nb)['nb_05'])
    assert '# AUTOGENERATED! DO NOT EDIT! File to edit: ../nbs/05_x.ipynb.' in text and '# %% ../nbs/05_x.ipynb #c1\nx = 1' in text
